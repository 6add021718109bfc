"""YOLO-World-v2-Seg-L fine-tuned on LVIS-Base masks, mask branches only (AdamW 2e-4, 80 epochs).

Row: LVIS, YOLO-World-v2-Seg-L, seg head; judged on LVIS val 1.0.
Expected: mask AP 19.8, APr 17.2, APc 17.5, APf 23.6.
Cost: about 35 GPU-hours, by FLOPs from the original's log of v1-L on COCO; without validation.
Run: ray job submit --working-dir . -- python experiments/lvis_seg_v2_l_head.py --compute.workers 8
"""

from yw_ray.baselines import lvis_seg_finetune
from yw_ray.jobs.launch import main
from yw_ray.recipe import ModelConfig

recipe = lvis_seg_finetune(
    name="lvis_seg_v2_l_head",
    title="YOLO-World-v2-Seg-L, seg head",
    recipe_id="lvis_seg_l_v2_seghead",
    model=ModelConfig(size="l", version="v2", neck="vlpan_bn"),
    trained="seg_head",
    published={"segm/AP": 19.8, "segm/APr": 17.2, "segm/APc": 17.5, "segm/APf": 23.6},
)

if __name__ == "__main__":
    main(recipe)

"""YOLO-World-v2-Seg-M fine-tuned on LVIS-Base masks, mask branches only (AdamW 2e-4, 80 epochs).

Row: LVIS, YOLO-World-v2-Seg-M, seg head; judged on LVIS val 1.0.
Expected: mask AP 17.8, APr 13.9, APc 15.5, APf 22.0.
Cost: about 20 GPU-hours, by FLOPs from the original's log of v1-L on COCO; without validation.
Run: ray job submit --working-dir . -- python experiments/lvis_seg_v2_m_head.py --compute.workers 8
"""

from yw_ray.baselines import lvis_seg_finetune
from yw_ray.jobs.launch import main
from yw_ray.recipe import ModelConfig

recipe = lvis_seg_finetune(
    name="lvis_seg_v2_m_head",
    title="YOLO-World-v2-Seg-M, seg head",
    recipe_id="lvis_seg_m_v2_seghead",
    model=ModelConfig(size="m", version="v2", neck="vlpan_bn"),
    trained="seg_head",
    published={"segm/AP": 17.8, "segm/APr": 13.9, "segm/APc": 15.5, "segm/APf": 22.0},
)

if __name__ == "__main__":
    main(recipe)

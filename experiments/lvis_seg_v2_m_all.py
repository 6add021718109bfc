"""YOLO-World-v2-Seg-M fine-tuned on LVIS-Base masks, all modules (AdamW 2e-4, 80 epochs).

Row: LVIS, YOLO-World-v2-Seg-M, all modules; judged on LVIS val 1.0.
Expected: mask AP 25.9, APr 13.4, APc 24.9, APf 32.6 (printed alike for v1 and v2).
Cost: about 50 GPU-hours, by FLOPs from the original's log of v1-L on COCO; without validation.
Run: ray job submit --working-dir . -- python experiments/lvis_seg_v2_m_all.py --compute.workers 8
"""

from yw_ray.baselines import lvis_seg_finetune
from yw_ray.jobs.launch import main
from yw_ray.recipe import ModelConfig

recipe = lvis_seg_finetune(
    name="lvis_seg_v2_m_all",
    title="YOLO-World-v2-Seg-M, all modules",
    recipe_id="lvis_seg_m_v2_allmodules",
    model=ModelConfig(size="m", version="v2", neck="vlpan_bn"),
    trained="all_modules",
    published={"segm/AP": 25.9, "segm/APr": 13.4, "segm/APc": 24.9, "segm/APf": 32.6},
    notes=(
        "Derived: no v2 configuration or weights of this kind exist; the published table repeats "
        "the v1 figures, which are no evidence for v2.",
        "Training all modules lowers zero-shot detection.",
    ),
)

if __name__ == "__main__":
    main(recipe)

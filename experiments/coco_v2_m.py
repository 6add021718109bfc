"""YOLO-World-v2-M fine-tuned on COCO with mask-refine (AdamW 2e-4, 80 epochs).

Row: COCO, YOLO-World-v2-M.
Expected: AP 51.0, AP50 67.5, AP75 55.2; zero-shot before training 42.8.
Cost: about 40 GPU-hours, by FLOPs from the original's log of v1-L; without validation.
Run: ray job submit --working-dir . -- python experiments/coco_v2_m.py --compute.workers 8
"""

from yw_ray.baselines import coco_finetune
from yw_ray.jobs.launch import main
from yw_ray.recipe import ModelConfig

recipe = coco_finetune(
    name="coco_v2_m",
    title="YOLO-World-v2-M, AdamW 2e-4, 80 epochs, mask-refine",
    recipe_id="coco_v2_m_adamw_80e_maskrefine",
    model=ModelConfig(size="m", version="v2", neck="vlpan_bn"),
    published={"bbox/AP_ZS": 42.8, "bbox/AP": 51.0, "bbox/AP50": 67.5, "bbox/AP75": 55.2},
)

if __name__ == "__main__":
    main(recipe)

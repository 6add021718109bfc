"""YOLO-World-v2-X fine-tuned on COCO with mask-refine (AdamW 2e-4, 80 epochs).

Row: COCO, YOLO-World-v2-X.
Expected: AP 54.7, AP50 71.6, AP75 59.6; zero-shot before training 46.8.
Cost: about 125 GPU-hours, by FLOPs from the original's log of v1-L; without validation.
Run: ray job submit --working-dir . -- python experiments/coco_v2_x.py --compute.workers 8
"""

from yw_ray.baselines import coco_finetune
from yw_ray.jobs.launch import main
from yw_ray.recipe import ModelConfig

recipe = coco_finetune(
    name="coco_v2_x",
    title="YOLO-World-v2-X, AdamW 2e-4, 80 epochs, mask-refine",
    recipe_id="coco_v2_x_adamw_80e_maskrefine",
    model=ModelConfig(size="x", version="v2", neck="vlpan_bn"),
    published={"bbox/AP_ZS": 46.8, "bbox/AP": 54.7, "bbox/AP50": 71.6, "bbox/AP75": 59.6},
)

if __name__ == "__main__":
    main(recipe)

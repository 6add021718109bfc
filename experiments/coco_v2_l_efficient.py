"""YOLO-World-v2-L with the efficient neck, fine-tuned on COCO with mask-refine.

Row: none of the table; the efficient neck has no text attention.
Expected: no figure was published.
Cost: about 80 GPU-hours, by FLOPs from the original's log of v1-L; without validation.
Run: ray job submit --working-dir . -- python experiments/coco_v2_l_efficient.py --compute.workers 8
"""

from yw_ray.baselines import coco_finetune
from yw_ray.jobs.launch import main
from yw_ray.recipe import ModelConfig

recipe = coco_finetune(
    name="coco_v2_l_efficient",
    title="YOLO-World-v2-L, efficient neck, AdamW 2e-4, 80 epochs, mask-refine",
    recipe_id="coco_v2_l_efficient_neck",
    model=ModelConfig(size="l", version="v2", neck="efficient"),
    notes=(
        "No figure was published for the efficient neck.",
        "Attention weights of the pre-trained file have no place in this neck and are left out.",
    ),
)

if __name__ == "__main__":
    main(recipe)

"""Dry run: what a recipe would do, without doing it.

Place in the flow: `--dry-run` of every experiment; needs neither Ray nor a GPU nor data.
"""

from __future__ import annotations

from pathlib import Path

import torch

from yw_ray.data.feed import plan_for
from yw_ray.data.plan import check_world
from yw_ray.data.shards import load_manifest
from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import Recipe, to_dotted
from yw_ray.training.freeze import apply_freeze, describe_freeze
from yw_ray.training.optim import decay_factor
from yw_ray.training.schedule import Schedule


def describe(recipe: Recipe) -> str:
    """The resolved recipe, parameter counts and steps as text."""
    fields = to_dotted(recipe)
    width = max(len(key) for key in fields)
    lines = [f"{key:<{width}}  {value}" for key, value in fields.items()]
    with torch.device("meta"):
        model = build_model(recipe.model)
    total = sum(p.numel() for p in model.parameters())
    lines += ["", f"parameters without text tower: {total / 1e6:.2f} M", ""]
    freeze = apply_freeze(
        model,
        recipe.freeze,
        train_text_encoder=recipe.train_text_encoder,
        train_seg_norms=recipe.train_seg_norms,
    )
    lines += [describe_freeze(model, freeze), ""]
    return "\n".join([*lines, *_steps(recipe)])


def _steps(recipe: Recipe) -> list[str]:
    batch, lanes = recipe.schedule.global_batch, recipe.data.lanes
    world = max(recipe.compute.workers, 1)
    check_world(world, lanes, batch)
    decay = recipe.optim.weight_decay
    if recipe.optim.scale_weight_decay:
        decay *= decay_factor(batch)
    share, size = batch // world, max(batch // lanes, 1)
    joined = min(max(recipe.compute.max_images_per_forward // size, 1) * size, share)
    lines = [
        f"global batch {batch} = {world} workers x {share} images, in forwards of at most {joined};"
        f" losses normalised over {size} images, whatever the workers",
        f"peak rate {recipe.optim.base_lr:g}, effective weight decay {decay:g}",
    ]
    folder = Path(recipe.data.train)
    if not folder.exists():
        return [*lines, f"steps: not known, no prepared data at {folder} (see yw-ray prepare)"]
    plan = plan_for(recipe, load_manifest(folder))
    schedule = Schedule(recipe.optim, recipe.schedule, plan.steps_per_epoch)
    return [
        *lines,
        f"{plan.num_rows} images: {plan.steps_per_epoch} steps an epoch, "
        f"{plan.steps_per_epoch * recipe.schedule.epochs} in all; "
        f"{plan.padding} repeated samples in each last batch",
        f"warm-up {schedule.warmup_steps} steps; mosaic closes before epoch "
        f"{recipe.schedule.epochs - recipe.schedule.close_mosaic_epochs} (from 0)",
    ]

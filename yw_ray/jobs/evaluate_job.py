"""Evaluation as a job of its own: a checkpoint scored on prepared validation shards.

Place in the flow: `yw-ray evaluate`. Shares are Ray tasks, or one share in this process; a share
that an interrupted job finished is not made again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from yw_ray.data.shards import load_manifest
from yw_ray.evaluation.ap_table import ApTable
from yw_ray.jobs.cluster import ensure_ray, wait_for_resources
from yw_ray.jobs.evaluate import judge_shares, predict_share
from yw_ray.jobs.place import Place
from yw_ray.jobs.run import absolute_paths
from yw_ray.models.text_encoder import ClipText
from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import Recipe, with_overrides
from yw_ray.training.checkpoint import load_checkpoint


def evaluate_checkpoint(
    checkpoint: Path,
    *,
    data: Path | None = None,
    out: Path | None = None,
    workers: int = 0,
    max_images: int | None = None,
) -> ApTable:
    """Score the average of a checkpoint and print its table.

    Returns: the table, also written to `out/table.json` and `out/table.md`.
    Raises: ValueError for a checkpoint or data folder that cannot be used.
    """
    state = load_checkpoint(checkpoint)
    changes: dict[str, Any] = {"data.max_val_images": max_images}
    if data is not None:
        changes["data.val"] = str(data)
    recipe = absolute_paths(with_overrides(Recipe.model_validate(state["recipe"]), changes))
    val_set = load_manifest(Path(recipe.data.val))
    scored = f"{val_set.dataset_digest[:12]}_{max_images or 'all'}"
    folder = (out or checkpoint.parent.parent / "eval" / f"{checkpoint.name}_on_{scored}").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    world = max(workers, 1)
    if workers:
        _predict_on_ray(recipe, checkpoint.resolve(), folder, world)
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _predict(recipe, checkpoint, folder, Place(device=device))
    train_classes = None
    if Path(recipe.data.train).exists():
        train_classes = load_manifest(Path(recipe.data.train)).classes
    table = judge_shares(recipe, train_classes, val_set, folder, world)
    table.to_json(folder / "table.json")
    (folder / "table.md").write_text(table.markdown())
    console = Console()
    console.print(table.rich_table(title=str(checkpoint)))
    console.print(f"written to {folder}")
    return table


def _predict(recipe: Recipe, checkpoint: Path, folder: Path, place: Place) -> None:
    model = build_model(recipe.model)
    if recipe.train_text_encoder:
        model.text_encoder = ClipText()
    model.load_state_dict(load_checkpoint(checkpoint)["ema"]["module"])
    model = model.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    predict_share(model.eval(), recipe, load_manifest(Path(recipe.data.val)), folder, place)


def _predict_on_ray(recipe: Recipe, checkpoint: Path, folder: Path, world: int) -> None:
    import ray

    local = ensure_ray(world)
    on_gpu = ray.cluster_resources().get("GPU", 0) >= world and recipe.compute.device != "cpu"
    needed = {"CPU": float(world), **({"GPU": float(world)} if on_gpu else {})}
    wait_for_resources(needed, 0 if local else recipe.compute.cluster_wait_s)

    @ray.remote(num_cpus=1, num_gpus=1 if on_gpu else 0, max_retries=recipe.compute.max_failures)
    def share(tree: dict[str, Any], rank: int) -> None:
        device = torch.device("cuda" if on_gpu else "cpu")
        place = Place(rank=rank, world=world, device=device)
        _predict(Recipe.model_validate(tree), checkpoint, folder, place)

    ray.get([share.remote(recipe.model_dump(mode="json"), rank) for rank in range(world)])

"""Evaluate: each worker predicts its share of the validation shards, rank 0 makes the table.

Place in the flow: during training at each validation, and as a job of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from yw_ray.data.plan import share_windows
from yw_ray.data.shards import Manifest
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.data.windows import row_groups
from yw_ray.evaluation.ap_table import ApTable, subset_metrics
from yw_ray.evaluation.coco import evaluate
from yw_ray.evaluation.predict import load_detections, merge_shares, predict, save_detections
from yw_ray.jobs.build import text_vectors
from yw_ray.jobs.place import Place
from yw_ray.models.yolo_world import YoloWorld
from yw_ray.recipe import Recipe

_WINDOW_ROWS = 64


def predict_share(
    model: YoloWorld,
    recipe: Recipe,
    val_set: Manifest,
    folder: Path,
    place: Place,
    on_images: Callable[[int], None] | None = None,
) -> Path:
    """Predict this rank's rows and write them to `folder/share_R_of_W.npz`; a share that is
    there already is not made again."""
    path = folder / f"share_{place.rank:03d}_of_{place.world:03d}.npz"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    windows = share_windows(
        row_groups(val_set, recipe.data.max_val_images),
        rank=place.rank,
        world=place.world,
        window_rows=_WINDOW_ROWS,
    )
    vocabulary = Vocabulary.from_classes(val_set.classes)
    text_feats = None
    if recipe.model.prompts == "texts":
        table = text_vectors(recipe, model, vocabulary.texts)
        text_feats = table[vocabulary.eval_text_ids()].to(place.device)
    read = place.read(Path(recipe.data.val), [(window, 0) for window in windows])
    found = predict(
        model,
        (record for _, _, records in read for record in records),
        text_feats,
        config=recipe.eval,
        image_size=recipe.data.image_size,
        device=place.device,
        threads=recipe.compute.augment_threads,
        on_images=on_images,
    )
    save_detections(path, list(found))
    return path


def judge_shares(
    recipe: Recipe,
    train_classes: list[list[str]] | None,
    val_set: Manifest,
    folder: Path,
    world: int,
) -> ApTable:
    """Join all shares, each image id exactly once, and score them.

    Classes that training never names get figures of their own, `base/` and `novel/`.
    """
    paths = [folder / f"share_{rank:03d}_of_{world:03d}.npz" for rank in range(world)]
    shares = [load_detections(path) for path in paths]
    ids = sorted(d.image_id for share in shares for d in share)
    detections = merge_shares(shares, ids)
    expected = min(recipe.data.max_val_images or val_set.num_images, val_set.num_images)
    if len(ids) != expected:
        raise RuntimeError(f"{len(ids)} images predicted, {expected} expected")
    table = evaluate(
        Path(recipe.data.val) / val_set.annotations_file,
        detections,
        val_set.category_ids,
        kind=recipe.eval.kind,
        style=recipe.eval.style,
        engine=recipe.eval.engine,
        image_ids=ids,
    )
    table = table.with_protocol(
        prompts=len(val_set.classes),
        text_encoder=recipe.text.encoder,
        image_size=recipe.data.image_size,
        precision="fp32",
        dataset=val_set.dataset_digest[:12],
    )
    if train_classes is None:
        return table
    known = {names[0] for names in train_classes}
    novel = [
        category
        for category, names in zip(val_set.category_ids, val_set.classes, strict=True)
        if names[0] not in known
    ]
    if not novel:
        return table
    base = [category for category in val_set.category_ids if category not in set(novel)]
    extra = {
        f"{part}/{key}": value
        for part, categories in (("base", base), ("novel", novel))
        for key, value in subset_metrics(table, categories).items()
    }
    return table.model_copy(update={"metrics": {**table.metrics, **extra}})

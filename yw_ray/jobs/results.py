"""Results: what a finished run leaves for eyes: a Markdown table and pictures.

Place in the flow: `jobs/run.py` calls it after training; the files lie in the run folder and are
logged as MLflow artifacts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from yw_ray.data.pipelines import load
from yw_ray.data.plan import share_windows
from yw_ray.data.sample import Record
from yw_ray.data.shards import Manifest
from yw_ray.data.windows import read_windows, row_groups
from yw_ray.evaluation.ap_table import ApTable, percent
from yw_ray.evaluation.pictures import write_loss_curve, write_pictures
from yw_ray.evaluation.predict import load_detections
from yw_ray.recipe import Recipe

NUM_PICTURES = 6


def save_tables(
    run_dir: Path, start: ApTable, final: ApTable, published: Mapping[str, float]
) -> Path:
    """Write `table.md`: figures before and after training, then each class."""
    lines = [
        f"# {run_dir.name}",
        "",
        "## Before training (zero-shot)",
        "",
        start.markdown(),
        "## After training",
        "",
        final.markdown(published),
        "## Per class",
        "",
        "| class | objects | AP | AP50 | AP75 |",
        "|---|--:|--:|--:|--:|",
    ]
    for entry in final.per_class:
        figures = " | ".join(percent(value) for value in (entry.AP, entry.AP50, entry.AP75))
        lines.append(f"| {entry.name} | {entry.num_gt} | {figures} |")
    path = run_dir / "table.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def save_pictures(recipe: Recipe, run_dir: Path, val_set: Manifest) -> list[Path]:
    """Truth beside prediction for a few validation images, and the loss curve."""
    folder = run_dir / "pictures"
    folder.mkdir(exist_ok=True)
    shares = sorted((run_dir / "eval" / f"epoch_{recipe.schedule.epochs:03d}").glob("share_*.npz"))
    annotations = json.loads((Path(recipe.data.val) / val_set.annotations_file).read_bytes())
    pictures = write_pictures(
        folder,
        {r.image_id: load(r, False).image for r in _spread(recipe, val_set, NUM_PICTURES)},
        annotations["annotations"],
        [d for share in shares for d in load_detections(share)],
        [texts[0] for texts in val_set.classes],
        val_set.category_ids,
    )
    return [*pictures, write_loss_curve(folder / "loss.png", run_dir / "metrics.jsonl")]


def _spread(recipe: Recipe, val_set: Manifest, count: int) -> Iterator[Record]:
    """Records at even distances over the first window of the validation shards."""
    groups = row_groups(val_set, recipe.data.max_val_images)
    windows = share_windows(groups, rank=0, world=1, window_rows=64)[:1]
    for _, _, records in read_windows(Path(recipe.data.val), [(w, 0) for w in windows]):
        step = max(len(records) // count, 1)
        yield from records[::step][:count]

"""Quickstart: the main job on embedded defaults and a generated world.

Place in the flow: `make quickstart`. The same prepare, stream, trainer, evaluation and records as
any experiment, at scale n, from random weights, with stand-in text vectors: what it learns is real,
what it scores is no published row.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from yw_ray.evaluation.ap_table import ApTable
from yw_ray.jobs.prepare import prepare_synth
from yw_ray.jobs.run import run
from yw_ray.jobs.train import needed_resources
from yw_ray.recipe import (
    AugmentConfig,
    ComputeConfig,
    DataConfig,
    EmaConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TextConfig,
    TrackingConfig,
)
from yw_ray.tracking.store import warm_up

NUM_TRAIN, NUM_VAL, IMAGE_SIZE = 800, 150, 160


def quickstart_recipe(storage: Path, workers: int = 2) -> Recipe:
    """A detector of coloured shapes that two cores train in about two minutes."""
    world = storage / "quickstart_world"
    return Recipe(
        name="quickstart",
        title="generated world, scale n, from random weights, stand-in text",
        model=ModelConfig(size="n"),
        text=TextConfig(encoder="hashed-words", num_train_texts=30),
        data=DataConfig(
            train=str(world / "train"),
            val=str(world / "val"),
            image_size=IMAGE_SIZE,
            lanes=2,
        ),
        augment=AugmentConfig(scale=(0.7, 1.3), mixup=0.0),
        optim=OptimConfig(base_lr=2e-3, scale_weight_decay=False, decay_norm_and_bias=False),
        schedule=ScheduleConfig(
            epochs=4,
            global_batch=16,
            close_mosaic_epochs=2,
            warmup_epochs=1.0,
            warmup_min_steps=0,
            third_group_warmup_from=None,
        ),
        ema=EmaConfig(momentum=1e-3, gamma=100.0),
        eval=EvalConfig(every_epochs=4, batch=32),
        compute=ComputeConfig(
            workers=workers, augment_threads=1, decoded_cache_mb=200, checkpoint_every_epochs=2
        ),
        tracking=TrackingConfig(storage=str(storage)),
    )


def run_quickstart(storage: Path, workers: int) -> dict[str, Any]:
    """Generate, prepare, train, evaluate, record; writes `quickstart/result.json`.

    Returns: what the file holds.
    """
    begin = time.monotonic()
    console = Console()
    recipe = quickstart_recipe(storage, workers)
    console.print(
        f"a world of {NUM_TRAIN} training pictures of coloured shapes; 6 colour and shape pairs "
        "are kept out of training and scored as novel (zero-shot)"
    )
    warm_up(recipe.tracking.uri, storage / "mlartifacts")  # a new store takes seconds
    prepare_synth(
        storage / "quickstart_world",
        num_train=NUM_TRAIN,
        num_val=NUM_VAL,
        num_cpus=int(needed_resources(recipe)["CPU"]),
    )
    result = run(recipe, console)
    path = storage / "quickstart" / "result.json"
    if not result.trained and path.exists():
        console.print(f"nothing to do; delete {result.run_dir} to train again")
        return json.loads(path.read_text())
    figures = _speed(result.run_dir / "metrics.jsonl")
    report: dict[str, Any] = {
        "base": _part(result.final, "base"),
        "novel": _part(result.final, "novel"),
        "untrained": {
            "base": _part(result.start, "base"),
            "novel": _part(result.start, "novel"),
            **_part(result.start, ""),
        },
        "seconds": round(time.monotonic() - begin, 1),
        **figures,
        "mlflow_run_id": result.mlflow_run_id,
        "text_encoder": "hashed-words (stand-in)",
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    novel, before = report["novel"]["AP50"], report["untrained"]["novel"]["AP50"]
    console.print(
        f"base AP50 {100 * report['base']['AP50']:.1f}; on pairs never trained "
        f"{100 * novel:.1f} (untrained model: {100 * before:.1f}); {report['seconds']:.0f} s; "
        f"{path}"
    )
    return report


def _part(table: ApTable, part: str) -> dict[str, float]:
    prefix = f"{part}/" if part else ""
    return {key: table.metrics[prefix + key] for key in ("AP", "AP50", "AP75")}


def _speed(spool: Path) -> dict[str, float]:
    """Mean rate and data-wait share over all logged training steps."""
    seconds = images = waited = 0.0
    for raw in spool.read_text().splitlines():
        metrics = json.loads(raw)["metrics"]
        if "train/images_per_s" in metrics:
            took = metrics["train/seconds"]
            seconds += took
            images += metrics["train/images_per_s"] * took
            waited += metrics["train/data_wait_share"] * took
    return {
        "images_per_s": round(images / max(seconds, 1e-9), 2),
        "data_wait_share": round(waited / max(seconds, 1e-9), 4),
    }

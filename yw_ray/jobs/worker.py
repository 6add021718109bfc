"""Worker: what one training process runs, from shards to checkpoints; no Ray in it.

Place in the flow: `jobs/train.py` starts it under Ray Train, or calls it in this process. Rank 0
writes the metric spool, checkpoints and tables; every rank trains and predicts its share.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import torch
from torch import nn

from yw_ray.data.feed import SampleMaker, ordered_samples, plan_for, step_batches
from yw_ray.data.plan import Cursor, Plan
from yw_ray.data.sample import StepBatch
from yw_ray.data.shards import Manifest, load_manifest
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.evaluation.ap_table import ApTable
from yw_ray.jobs.build import initial_model, text_vectors
from yw_ray.jobs.evaluate import judge_shares, predict_share
from yw_ray.jobs.place import Place
from yw_ray.losses.criterion import Criterion
from yw_ray.models.text_encoder import ClipText
from yw_ray.models.yolo_world import YoloWorld
from yw_ray.recipe import Recipe
from yw_ray.training.checkpoint import latest_checkpoint, load_checkpoint, prune, save_checkpoint
from yw_ray.training.ema import Ema
from yw_ray.training.freeze import apply_freeze, describe_freeze
from yw_ray.training.loop import TrainParts, train_epoch
from yw_ray.training.metric_log import MetricLog
from yw_ray.training.optim import build_optimizer
from yw_ray.training.schedule import Schedule


def train_worker(recipe: Recipe, run_dir: Path, place: Place) -> dict[str, Any]:
    """Train to the end of the recipe, from the last complete checkpoint of the run folder.

    Returns: rank 0's summary: steps, seconds of this attempt, workers.
    """
    begin = time.perf_counter()
    cv2.setNumThreads(0)  # the augment threads are the parallelism
    train_set = load_manifest(Path(recipe.data.train))
    val_set = load_manifest(Path(recipe.data.val))
    vocabulary = Vocabulary.from_classes(train_set.classes)
    plan = plan_for(recipe, train_set)
    record = RunRecord(recipe, run_dir, place, plan, train_set, val_set)
    model = initial_model(recipe, vocabulary)
    parts = build_parts(recipe, model, place, plan, vocabulary)
    average = cast(YoloWorld, parts.ema.module)
    cursor = resume(parts, run_dir)
    record.event("start", world=place.world, epoch=cursor.epoch, step=cursor.step)
    if cursor == Cursor():
        record.text("freeze.txt", describe_freeze(model, parts.freeze))
        record.validate(average, 0)
    close_from = recipe.schedule.epochs - recipe.schedule.close_mosaic_epochs
    for epoch in range(cursor.epoch, recipe.schedule.epochs):
        first_step = cursor.step if epoch == cursor.epoch else 0
        train_epoch(
            parts,
            epoch_batches(recipe, place, plan, vocabulary, epoch, first_step),
            steps_per_epoch=plan.steps_per_epoch,
            on_log=record.step,
        )
        place.average_buffers(parts.model, average)
        number, last = epoch + 1, epoch + 1 == recipe.schedule.epochs
        if last or number % recipe.compute.checkpoint_every_epochs == 0:
            record.save(parts, Cursor(number, 0))
        metrics: dict[str, float] = {}
        if last or number % recipe.eval.every_epochs == 0 or number > close_from:
            metrics = record.validate(average, number)
        place.report({"epoch": number, **metrics})
    return {
        "steps": recipe.schedule.epochs * plan.steps_per_epoch,
        "seconds": time.perf_counter() - begin,
        "world": place.world,
    }


def build_parts(
    recipe: Recipe, model: YoloWorld, place: Place, plan: Plan, vocabulary: Vocabulary
) -> TrainParts:
    """Everything a step works on, on this worker's device."""
    device = place.device
    freeze = apply_freeze(
        model,
        recipe.freeze,
        train_text_encoder=recipe.train_text_encoder,
        train_seg_norms=recipe.train_seg_norms,
    )
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = Ema(model, recipe.ema)
    wrapped: nn.Module = model
    if place.world > 1:
        if device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    optimizer = build_optimizer(model, recipe.optim, total_batch=recipe.schedule.global_batch)
    dtype = precision_of(recipe, device)
    table = tokens = None
    if isinstance(model.text_encoder, ClipText):
        tokens = model.text_encoder.tokenize(vocabulary.texts).to(device)
    elif recipe.model.prompts == "texts":
        table = text_vectors(recipe, model, vocabulary.texts).to(device)
    return TrainParts(
        model=model,
        wrapped=wrapped,
        criterion=Criterion(),
        optimizer=optimizer,
        schedule=Schedule(recipe.optim, recipe.schedule, plan.steps_per_epoch),
        ema=ema,
        freeze=freeze,
        text_table=table,
        tokens=tokens,
        device=device,
        dtype=dtype,
        clip_norm=recipe.optim.clip_norm,
        world=place.world,
        scaler=torch.amp.GradScaler() if dtype == torch.float16 else None,
    )


def precision_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The autocast type: fp32 on a CPU, bf16 where a GPU has it, else fp16."""
    chosen = recipe.compute.precision
    if chosen == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[chosen]


def resume(parts: TrainParts, run_dir: Path) -> Cursor:
    """Put the last complete checkpoint, if there is one, into the parts."""
    folder = latest_checkpoint(run_dir / "checkpoints")
    if folder is None:
        return Cursor()
    state = load_checkpoint(folder)
    parts.model.load_state_dict(state["model"])
    parts.ema.load_state_dict(state["ema"])
    parts.optimizer.load_state_dict(state["optimizer"])
    if parts.scaler and state["scaler"]:
        parts.scaler.load_state_dict(state["scaler"])
    return Cursor(*state["cursor"])


def epoch_batches(
    recipe: Recipe, place: Place, plan: Plan, vocabulary: Vocabulary, epoch: int, first_step: int
) -> Iterator[StepBatch]:
    """A worker's batches of an epoch from a step on, in the plan's order."""
    wanted = plan.worker_windows(epoch, place.rank, place.world, first_step)
    lanes = [
        lane
        for step in range(first_step, plan.steps_per_epoch)
        for lane in plan.worker_lanes(place.rank, place.world, step)
    ]
    texts = vocabulary if recipe.model.prompts == "texts" else None  # else labels stay classes
    folder, make = Path(recipe.data.train), SampleMaker(recipe, plan, texts)
    if place.make_samples:
        samples = place.make_samples(folder, wanted, lanes, make)
    else:
        samples = ordered_samples(
            place.read(folder, wanted),
            lanes,
            make,
            threads=recipe.compute.augment_threads,
            cache_bytes=recipe.compute.decoded_cache_mb * 2**20,
            ahead=2 * recipe.schedule.global_batch // place.world,
        )
    return step_batches(
        samples,
        plan,
        epoch=epoch,
        first_step=first_step,
        rank=place.rank,
        world=place.world,
        max_images=recipe.compute.max_images_per_forward,
    )


class RunRecord:
    """The run folder as one rank sees it; only rank 0 writes figures."""

    def __init__(
        self,
        recipe: Recipe,
        run_dir: Path,
        place: Place,
        plan: Plan,
        train_set: Manifest,
        val_set: Manifest,
    ) -> None:
        self._recipe, self._dir, self._place, self._plan = recipe, run_dir, place, plan
        self._train_set, self._val_set = train_set, val_set
        self._spool = MetricLog(run_dir / "metrics.jsonl") if place.rank == 0 else None

    def event(self, name: str, **facts: Any) -> None:
        """Append to `events.jsonl`: starts, checkpoints."""
        if self._spool:
            with (self._dir / "events.jsonl").open("a") as out:
                out.write(json.dumps({"event": name, "time": time.time(), **facts}) + "\n")

    def text(self, name: str, text: str) -> None:
        if self._spool:
            (self._dir / name).write_text(text + "\n")

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Training figures after global step number `step` (0-based)."""
        if self._spool:
            self._spool.log(step + 1, {f"train/{name}": value for name, value in figures.items()})

    def validate(self, model: YoloWorld, epoch: int) -> dict[str, float]:
        """Score the validation shards after `epoch` epochs; 0 is the model as it came.

        A table that an interrupted run left behind is kept, not made again.
        """
        folder = self._dir / "eval" / f"epoch_{epoch:03d}"
        table_file = folder / "table.json"
        if not table_file.exists():
            begin = time.perf_counter()
            predict_share(model, self._recipe, self._val_set, folder, self._place)
            self._place.barrier()
            if self._spool:
                table = judge_shares(
                    self._recipe,
                    self._train_set.classes,
                    self._val_set,
                    folder,
                    self._place.world,
                )
                table.to_json(table_file)
                figures = {f"val/{key}": value for key, value in table.defined().items()}
                figures["val/seconds"] = time.perf_counter() - begin
                figures["epoch"] = float(epoch)
                self._spool.log(epoch * self._plan.steps_per_epoch, figures)
                self._drop_shares(keep=folder)
            self._place.barrier()
        return ApTable.from_json(table_file).metrics

    def _drop_shares(self, keep: Path) -> None:
        """Detections of earlier validations are not needed once judged; their tables stay."""
        for path in (self._dir / "eval").glob("epoch_*/share_*.npz"):
            if path.parent != keep:
                path.unlink()

    def save(self, parts: TrainParts, cursor: Cursor) -> None:
        """Write a checkpoint on rank 0 and drop old ones."""
        if self._spool:
            root = self._dir / "checkpoints"
            save_checkpoint(
                root / f"epoch_{cursor.epoch:03d}_step_{cursor.step:06d}",
                model=parts.model,
                ema=parts.ema,
                optimizer=parts.optimizer,
                scaler=parts.scaler,
                cursor=(cursor.epoch, cursor.step),
                recipe=self._recipe,
                dataset_digest=self._train_set.dataset_digest,
            )
            prune(root, self._recipe.compute.keep_checkpoints)
            self.event("checkpoint", epoch=cursor.epoch, step=cursor.step)
        self._place.barrier()

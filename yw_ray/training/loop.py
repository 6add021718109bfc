"""Loop: one optimiser step and one epoch, in plain PyTorch, distributed or not.

Place in the flow: `StepBatch` values in, a trained model and its average out. The update of a step
is the sum over lanes of the lane's loss times its number of images, whatever the number of workers
and forwards: DDP averages, so each worker's loss is multiplied by the number of workers.
Source: training reference of YOLO-World (arXiv 2401.17270), losses per GPU batch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from yw_ray.data.sample import Batch, StepBatch
from yw_ray.losses.criterion import Criterion
from yw_ray.models.yolo_world import normalize_images
from yw_ray.training.ema import Ema
from yw_ray.training.freeze import FreezePlan, set_train_mode
from yw_ray.training.optim import clip_gradients
from yw_ray.training.schedule import Schedule

LOG_STEPS = 10
"""Steps between two figures of the log; losses stay on the device in between."""


@dataclass(kw_only=True)
class TrainParts:
    """What a step works on.

    model: the bare model; wrapped: the same, under DDP where there are several workers;
    text_table: (T, 512) float32 vectors of `Vocabulary.texts` on the device, None where prompts
    are learned, folded, or made by a tower that is trained; tokens: (T, L) token ids for that one.
    """

    model: nn.Module
    wrapped: nn.Module
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: Ema
    freeze: FreezePlan
    text_table: Tensor | None
    device: torch.device
    dtype: torch.dtype
    clip_norm: float
    tokens: Tensor | None = None
    world: int = 1
    scaler: torch.amp.GradScaler | None = None


@dataclass
class StepLog:
    """Figures of the last steps: mean losses, rates and waiting."""

    steps: int = 0
    images: int = 0
    wait_s: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def add(self, terms: dict[str, Tensor], images: int, wait_s: float) -> None:
        self.steps += 1
        self.images += images
        self.wait_s += wait_s
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def figures(self) -> dict[str, float]:
        """Means over the steps since the last call; one host synchronisation."""
        seconds = max(time.perf_counter() - self.since, 1e-9)
        steps = max(self.steps, 1)
        names = list(self.sums)
        values = torch.stack([self.sums[name].float() for name in names]).tolist() if names else []
        out = {name: value / steps for name, value in zip(names, values, strict=True)}
        out["seconds"] = seconds
        out["images_per_s"] = self.images / seconds
        out["data_wait_share"] = min(self.wait_s / seconds, 1.0)
        return out


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, pictures still uint8."""
    if device.type == "cpu":
        return batch

    def move(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.pin_memory().to(device, non_blocking=True)

    return Batch(
        images=move(batch.images),  # type: ignore[arg-type]
        text_ids=move(batch.text_ids),
        boxes=move(batch.boxes),  # type: ignore[arg-type]
        labels=move(batch.labels),  # type: ignore[arg-type]
        image_index=move(batch.image_index),  # type: ignore[arg-type]
        image_ids=batch.image_ids,
        masks=move(batch.masks),
        letterboxes=batch.letterboxes,
    )


def train_step(parts: TrainParts, work: StepBatch, global_step: int) -> dict[str, Tensor]:
    """One update from a worker's share of a step.

    Returns: detached loss terms summed over this worker's lanes, and the gradient norm.
    """
    parts.schedule.apply(parts.optimizer, global_step)
    parts.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, cpu_batch in enumerate(work.micro):
        batch = move_batch(cpu_batch, parts.device)
        last = number == len(work.micro) - 1
        # gradients of earlier forwards wait for the last one before they cross the network
        quiet = parts.world > 1 and not last
        with parts.wrapped.no_sync() if quiet else contextlib.nullcontext():  # type: ignore[operator]
            with torch.autocast(
                parts.device.type, parts.dtype, enabled=parts.dtype != torch.float32
            ):
                prompts = _prompts(parts, batch.text_ids)
                images = normalize_images(batch.images).contiguous(
                    memory_format=torch.channels_last
                )
                outputs = parts.wrapped(images, **prompts)
            terms = parts.criterion(outputs, batch, groups=work.groups)
            loss = terms["total"] * parts.world
            (parts.scaler.scale(loss) if parts.scaler else loss).backward()
        for name, value in terms.items():
            value = value.detach()
            sums[name] = sums[name] + value if name in sums else value
    if parts.scaler:
        parts.scaler.unscale_(parts.optimizer)
    sums["grad_norm"] = clip_gradients(parts.optimizer, parts.clip_norm)
    if parts.scaler:
        parts.scaler.step(parts.optimizer)
        parts.scaler.update()
    else:
        parts.optimizer.step()
    parts.ema.update(parts.model)
    return sums


def _prompts(parts: TrainParts, text_ids: Tensor | None) -> dict[str, Tensor]:
    """What the model is told about the texts of a batch, (B, K) indices or None."""
    if text_ids is None:
        return {}
    if parts.tokens is not None:  # each distinct text passes the trained tower once
        distinct, rows = text_ids.unique(return_inverse=True)
        return {"tokens": parts.tokens[distinct], "token_rows": rows}
    assert parts.text_table is not None
    return {"text_feats": parts.text_table[text_ids]}


def train_epoch(
    parts: TrainParts,
    batches: Iterator[StepBatch],
    *,
    steps_per_epoch: int,
    on_log: Callable[[int, dict[str, float]], None],
    on_step: Callable[[int, int], bool] | None = None,
) -> int:
    """Run the steps that `batches` holds.

    Args:
        on_log: called every few steps with the global step and the mean figures since.
        on_step: called after each step with (epoch, step); a true answer ends the epoch early.
    Returns: number of steps done.
    Raises: FloatingPointError naming term, step and likely cause when a loss is not finite.
    """
    set_train_mode(parts.model, parts.freeze)
    log, done, data_s = StepLog(), 0, time.perf_counter()
    for work in batches:
        wait = time.perf_counter() - data_s
        global_step = work.epoch * steps_per_epoch + work.step
        terms = train_step(parts, work, global_step)
        done += 1
        images = sum(len(batch.images) for batch in work.micro)
        log.add(terms, images * parts.world, wait)
        stop = on_step(work.epoch, work.step) if on_step else False
        if log.steps >= LOG_STEPS or work.step == steps_per_epoch - 1 or stop:
            figures = log.figures()
            _check_finite(figures, global_step, parts)
            positives = figures.pop("num_positives", 0.0) * log.steps * parts.world
            figures["positives_per_image"] = positives / max(log.images, 1)
            figures["lr"] = parts.optimizer.param_groups[0]["lr"]
            on_log(global_step, {"epoch": float(work.epoch), **figures})
            log = StepLog()
        if stop:
            break
        data_s = time.perf_counter()
    return done


def _check_finite(figures: dict[str, float], step: int, parts: TrainParts) -> None:
    """Stop a run whose loss is lost, with its likely cause.

    Overflows under fp16 are the scaler's business: it skips such steps, so only losses count.
    """
    names = [name for name in figures if name.startswith("loss_") or name == "total"]
    if parts.scaler is None:
        names.append("grad_norm")
    bad = [name for name in names if not _finite(figures[name])]
    if not bad:
        return
    lr = parts.optimizer.param_groups[0]["lr"]
    weights_lost = any(
        not bool(torch.isfinite(p).all()) for p in parts.model.parameters() if p.requires_grad
    )
    cause = (
        "the weights themselves are no longer finite: lower optim.base_lr or lengthen the warm-up"
        if weights_lost
        else "the weights are finite: look at the boxes and labels of this batch"
    )
    raise FloatingPointError(
        f"{bad[0]} is not finite within {LOG_STEPS} steps before step {step} (lr {lr:.3g}); {cause}"
    )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")

"""Schedule: learning rate and momentum as a pure function of the step.

Place in the flow: `training/loop.py` calls `apply` before each optimiser step; nothing is kept
between calls, so a resumed run continues exactly. Groups come from `training/optim.py`.
Source: the published recipes' linear schedule with warm-up (YOLOv8 rules as YOLO-World ran them),
checked against recorded numbers in `tests/parity/test_schedule.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from yw_ray.recipe import OptimConfig, ScheduleConfig

WARMUP_MOMENTUM = 0.8
"""SGD momentum at step 0; the same in every published SGD recipe."""


@dataclass(frozen=True)
class Schedule:
    """Rates over one run of `config.epochs * steps_per_epoch` optimiser steps.

    Raises: ValueError if steps_per_epoch is not positive.
    """

    optim: OptimConfig
    config: ScheduleConfig
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"an epoch has {self.steps_per_epoch} steps, expected at least 1; "
                "the training set holds no image or lanes are empty"
            )

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """Last step of the warm-up (itself included): 3 epochs, but at least 1000 steps."""
        by_epochs = round(self.config.warmup_epochs * self.steps_per_epoch)
        return max(by_epochs, self.config.warmup_min_steps)

    def decay(self, epoch: int) -> float:
        """f(e): linear from 1 at epoch 0 towards `final_lr_factor` at the (never run) last."""
        low = self.config.final_lr_factor
        return (1.0 - epoch / self.config.epochs) * (1.0 - low) + low

    def lr_factor(self, step: int) -> float:
        """Share of its base rate that an ordinary group has at `step` (0-based).

        The warm-up follows f of the running epoch. After it the rate changes only between epochs
        and lags one: epoch e uses f(e - 1), and the epoch in which the warm-up ends keeps f(e).
        """
        return self._rate(1.0, 0.0, step)

    def group_lr(self, base_lr: float, step: int, *, third_group: bool = False) -> float:
        """Rate at `step` of a group whose peak rate is `base_lr`."""
        start = self.config.third_group_warmup_from if third_group else None
        return self._rate(base_lr, 0.0 if start is None else start, step)

    def momentum(self, step: int) -> float:
        """SGD momentum at `step`: 0.8 at first, linear to `optim.momentum` over the warm-up."""
        return _between(WARMUP_MOMENTUM, self.optim.momentum, step, self.warmup_steps)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set every group's rate (and momentum of SGD) for optimiser step `step`.

        Groups must carry `base_lr` and `third_group`, as `build_optimizer` makes them.
        """
        momentum = self.momentum(step)
        for group in optimizer.param_groups:
            group["lr"] = self.group_lr(group["base_lr"], step, third_group=group["third_group"])
            if "momentum" in group:
                group["momentum"] = momentum

    def _rate(self, base: float, start: float, step: int) -> float:
        epoch = step // self.steps_per_epoch
        warmup = self.warmup_steps
        if step <= warmup:
            return _between(start, base * self.decay(epoch), step, warmup)
        warmup_epoch = warmup // self.steps_per_epoch
        return base * self.decay(epoch if epoch <= warmup_epoch else epoch - 1)


def _between(start: float, end: float, step: int, steps: int) -> float:
    """Linear from `start` at step 0 to `end` at `steps`, constant after."""
    return end if step >= steps else start + (end - start) * (step / steps)

"""Rates are a function of the step alone."""

import random

import pytest
import torch
from torch import nn

from yw_ray.recipe import OptimConfig, ScheduleConfig
from yw_ray.training.optim import build_optimizer
from yw_ray.training.schedule import Schedule


def _schedule(steps_per_epoch: int = 925, **changes: object) -> Schedule:
    config = ScheduleConfig.model_validate(changes)
    return Schedule(OptimConfig(), config, steps_per_epoch)


def test_rates_of_a_public_log_are_met() -> None:
    schedule = _schedule()
    assert schedule.group_lr(2e-4, 49) == pytest.approx(3.5315e-6, rel=1e-4)
    assert schedule.group_lr(2e-4, 99) == pytest.approx(7.1351e-6, rel=1e-4)


def test_two_epochs_after_the_warm_up_share_a_rate_and_the_last_uses_the_one_before() -> None:
    schedule = _schedule()
    rate = {epoch: schedule.lr_factor(epoch * 925 + 900) for epoch in (3, 4, 5, 79)}
    assert rate[3] == rate[4] == schedule.decay(3)
    assert rate[5] == schedule.decay(4)
    assert rate[79] == schedule.decay(78) == pytest.approx(0.03475)


def test_a_short_epoch_is_warmed_up_for_a_thousand_steps() -> None:
    schedule = _schedule(120)
    assert schedule.warmup_steps == 1000 and _schedule(925).warmup_steps == 2775
    assert schedule.lr_factor(999) < schedule.lr_factor(1000) == schedule.decay(8)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    schedule = _schedule(10, warmup_epochs=0, warmup_min_steps=0, epochs=20)
    assert schedule.lr_factor(0) == 1.0 and schedule.momentum(0) == 0.937
    assert schedule.lr_factor(10) == schedule.decay(0)
    assert schedule.lr_factor(20) == schedule.decay(1)


def test_a_warm_up_longer_than_the_run_never_reaches_the_full_rate() -> None:
    schedule = _schedule(5, epochs=4, close_mosaic_epochs=0)
    factors = [schedule.lr_factor(step) for step in range(schedule.total_steps)]
    assert max(factors) < 0.02 and factors[0] == 0.0


def test_the_third_group_warms_from_a_tenth_unless_the_quirk_is_off() -> None:
    schedule = _schedule()
    assert schedule.group_lr(2e-4, 0, third_group=True) == 0.1
    assert schedule.group_lr(2e-4, 2775, third_group=True) == schedule.group_lr(2e-4, 2775)
    off = _schedule(third_group_warmup_from=None)
    assert off.group_lr(2e-4, 5, third_group=True) == off.group_lr(2e-4, 5)


def test_steps_may_come_in_any_order_as_after_a_resume() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    optim = OptimConfig(kind="sgd", base_lr=1e-3)
    schedule = Schedule(optim, ScheduleConfig(epochs=40, close_mosaic_epochs=0), 50)
    optimizer = build_optimizer(model, optim, total_batch=128)

    def figures(step: int) -> list[tuple[float, float]]:
        schedule.apply(optimizer, step)
        return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]

    in_order = [figures(step) for step in range(schedule.total_steps)]
    steps = random.Random(0).sample(range(schedule.total_steps), 200)
    assert [figures(step) for step in steps] == [in_order[step] for step in steps]
    assert in_order[0][0][1] == 0.8 and in_order[-1][0][1] == 0.937


def test_momentum_of_adamw_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimConfig(), total_batch=64)
    _schedule().apply(optimizer, 10)
    assert all(group["betas"] == (0.9, 0.999) for group in optimizer.param_groups)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_an_epoch_without_steps_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="0 steps, expected at least 1"):
        _schedule(0)

"""The schedule gives the recorded rate and momentum at every recorded step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yw_ray.recipe import OptimConfig, ScheduleConfig
from yw_ray.training.schedule import Schedule


def _entries(goldens: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((goldens / "schedule").glob("*.json")):
        for name, entry in json.loads(path.read_text()).items():
            if "iterations_per_epoch" in entry:
                found[f"{path.stem}-{name}"] = entry
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    entries = _entries(Path(metafunc.config.getoption("--goldens")))
    metafunc.parametrize("entry", entries.values(), ids=entries)


def _schedule_and_optimizer(entry: dict[str, Any]) -> tuple[Schedule, torch.optim.Optimizer]:
    """The schedule under test, on one group for each recorded one.

    The file does not spell out the peak rates; they are read off the last recorded epoch.
    """
    sgd = entry["optimizer"] == "SGD"
    columns = len(entry["groups"])
    optim = OptimConfig(kind="sgd" if sgd else "adamw")
    schedule = Schedule(
        optim,
        ScheduleConfig(
            epochs=entry["max_epochs"],
            close_mosaic_epochs=0,
            final_lr_factor=entry["hook"]["lr_factor"],
        ),
        entry["iterations_per_epoch"],
    )
    last = entry["epochs"][-1]
    factor = schedule.lr_factor(last[0] * entry["iterations_per_epoch"])
    groups = [
        {
            "params": [nn.Parameter(torch.zeros(1))],
            "base_lr": float(f"{rate / factor:.6g}"),
            "third_group": index == "2",
        }
        for index, rate in zip(entry["groups"], last[1 : 1 + columns], strict=True)
    ]
    if sgd:
        return schedule, torch.optim.SGD(groups, lr=1.0, momentum=0.937, nesterov=True)
    return schedule, torch.optim.AdamW(groups, lr=1.0)


def _row(schedule: Schedule, optimizer: torch.optim.Optimizer, step: int) -> list[float]:
    schedule.apply(optimizer, step)
    row = [group["lr"] for group in optimizer.param_groups]
    if "momentum" in optimizer.param_groups[0]:
        row.append(optimizer.param_groups[0]["momentum"])
    return row


def test_warm_up_has_the_recorded_length(entry: dict[str, Any]) -> None:
    schedule, _ = _schedule_and_optimizer(entry)
    assert schedule.warmup_steps == entry["warmup_iterations"]


def test_every_recorded_iteration_has_the_recorded_rate(entry: dict[str, Any]) -> None:
    schedule, optimizer = _schedule_and_optimizer(entry)
    for step, *expected in entry["iterations"]:
        assert _row(schedule, optimizer, step) == pytest.approx(expected, rel=1e-7, abs=0), step


def test_every_epoch_has_the_recorded_rate_at_both_ends(entry: dict[str, Any]) -> None:
    schedule, optimizer = _schedule_and_optimizer(entry)
    steps = entry["iterations_per_epoch"]
    for epoch, *expected in entry["epochs"]:
        got = _row(schedule, optimizer, epoch * steps)
        got += _row(schedule, optimizer, (epoch + 1) * steps - 1)
        assert got == pytest.approx(expected, rel=1e-7, abs=0), epoch

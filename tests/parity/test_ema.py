"""The moving average gives the recorded momentum and the recorded toy averages."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from yw_ray.recipe import EmaConfig
from yw_ray.training.ema import Ema, ema_momentum


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--goldens")) / "schedule"
    cases: dict[str, tuple[EmaConfig, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        for momentum, entry in json.loads(path.read_text()).get("ema", {}).items():
            config = EmaConfig(momentum=float(momentum), gamma=entry["gamma"])
            cases[f"{path.stem}-{momentum}"] = (config, entry)
    metafunc.parametrize(("config", "entry"), cases.values(), ids=cases)


def test_momentum_is_the_recorded_one(config: EmaConfig, entry: dict[str, Any]) -> None:
    for update, expected in entry["momentum_at_step"]:
        assert ema_momentum(config, update) == pytest.approx(expected, rel=1e-7), update


def test_toy_averages_are_the_recorded_ones(config: EmaConfig, entry: dict[str, Any]) -> None:
    toy = entry["toy"]

    class Toy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(toy["weight0"]))
            self.norm = nn.BatchNorm1d(len(toy["rows"][0][2]))

    model = Toy()
    ema = Ema(model, config)
    recorded = {row[0]: row[1:] for row in toy["rows"]}
    norm, average = model.norm, ema.module.state_dict()
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    for update in range(max(recorded) + 1):
        model.weight.data += 0.1 * ((update % 3) - 0.7)
        norm.running_mean.fill_(0.01 * update)
        norm.num_batches_tracked.fill_(update + 1)
        ema.update(model)
        if update in recorded:
            weight, mean, batches = recorded[update]
            assert average["weight"].tolist() == pytest.approx(weight, rel=1e-5), update
            assert average["norm.running_mean"].tolist() == pytest.approx(mean, rel=1e-5), update
            assert average["norm.num_batches_tracked"].item() == batches, update

"""The optimiser treats every parameter as the recorded one did, in fewer groups."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_models import config_of, manifest
from torch import nn

from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import Freeze, OptimConfig
from yw_ray.training.freeze import apply_freeze
from yw_ray.training.optim import build_optimizer, parameter_rules
from yw_ray.weights.official import TEXT_TOWER, official_from_ours, ours_from_official


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--goldens"))
    metafunc.parametrize("key", sorted(path.stem for path in (folder / "params").glob("*.json")))


class Case:
    """A recorded optimiser beside ours, for the same model on the meta device."""

    def __init__(self, goldens: Path, key: str) -> None:
        self.entry = json.loads((goldens / "params" / f"{key}.json").read_text())
        tower = json.loads((goldens / "manifest" / "text_tower.json").read_text())["tensors"]
        with torch.device("meta"):
            self.model = build_model(config_of(manifest(goldens, key)["tensors"]))
            if self.entry["text_tower"] is not None:
                self.model.text_encoder = _tower(tower)
        head_only = bool(self.entry["batchnorms_in_eval_during_training"])
        strategy: Freeze = "all_but_seg_head" if head_only else "none"
        text = self.entry["text_tower"]
        trains_text = text is not None and text["values"][0][-1] == 1
        apply_freeze(self.model, strategy, train_text_encoder=trains_text)
        rules = self.entry["paramwise_cfg"] or {}
        sgd = self.entry["optimizer"] == "SGD"
        self.optim = OptimConfig(
            kind="sgd" if sgd else "adamw",
            base_lr=self.entry["defaults"]["lr"],
            weight_decay=5e-4
            if sgd
            else 0.025
            if self.entry["config"].startswith("pretrain")
            else 0.05,
            decay_norm_and_bias="norm_decay_mult" not in rules,
            single_group=self.entry["number_of_groups"] == 1,
        )
        self.batch = self.entry["world_size"] * self.entry["batch_size_per_gpu"]
        self.rules = parameter_rules(self.model, self.optim, total_batch=self.batch)


def _tower(tensors: dict[str, Any]) -> nn.Module:
    """Parameters with the recorded shapes of the text tower."""
    tower = nn.ParameterDict()
    for name, (shape, dtype) in tensors.items():
        if dtype == "float32" and name.startswith(TEXT_TOWER):
            tower[name.replace(".", "_")] = nn.Parameter(torch.empty(shape))
    return tower


@pytest.fixture
def case(goldens: Path, key: str) -> Case:
    return Case(goldens, key)


def test_every_parameter_has_its_recorded_place_in_the_order(case: Case) -> None:
    names = [n for n, _ in case.model.named_parameters() if not n.startswith("text_encoder.")]
    assert [official_from_ours(n) for n in names] == [row[0] for row in case.entry["table"]]


def test_every_parameter_has_its_recorded_rule(case: Case) -> None:
    for name, _, rate, decay, trained in case.entry["table"]:
        ours = ours_from_official(name)
        assert (ours in case.rules) == bool(trained), name
        if trained:
            assert ours is not None
            assert case.rules[ours][:2] == pytest.approx((rate, decay), rel=1e-9), name


def test_only_the_recorded_third_group_has_the_other_warm_up(case: Case) -> None:
    expected = {
        ours_from_official(name)
        for name, *_, trained in case.entry["table"]
        if trained and name in (case.entry["group2"] or [])
    }
    assert {name for name, rule in case.rules.items() if rule[2]} == expected


def test_the_text_tower_has_its_recorded_rules(case: Case) -> None:
    tower = {rule for name, rule in case.rules.items() if name.startswith("text_encoder.")}
    recorded = case.entry["text_tower"]
    values = recorded["values"] if recorded else []
    trained = sorted((rate, decay) for rate, decay, requires_grad in values if requires_grad)
    assert sorted(rule[:2] for rule in tower) == [
        pytest.approx(value, rel=1e-9) for value in trained
    ]
    if trained:
        names = [name for name in case.rules if name.startswith("text_encoder.")]
        assert len(names) == recorded["tensors"]


def test_groups_of_the_optimizer_hold_each_trained_parameter_once(case: Case) -> None:
    optimizer = build_optimizer(case.model, case.optim, total_batch=case.batch)
    seen = {
        name: (group["lr"], group["weight_decay"], group["third_group"])
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert seen == case.rules
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(case.rules)
    assert len(optimizer.param_groups) <= 5


def test_settings_of_the_optimizer_are_the_recorded_ones(case: Case) -> None:
    optimizer = build_optimizer(case.model, case.optim, total_batch=case.batch)
    recorded = case.entry["defaults"]
    for setting in ("betas", "eps", "amsgrad", "momentum", "dampening", "nesterov", "maximize"):
        if setting in recorded:
            expected = recorded[setting]
            for group in optimizer.param_groups:
                got = group[setting]
                assert got == (tuple(expected) if setting == "betas" else expected), setting
    assert case.optim.clip_norm == case.entry["clip_grad"]["max_norm"]


def test_the_recorded_batch_norms_stand_still_and_no_others(case: Case) -> None:
    norms = {
        official_from_ours(f"{name}.weight").removesuffix(".weight"): module
        for name, module in case.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert len(norms) == case.entry["batchnorms_total"]
    still = {name for name, norm in norms.items() if not norm.training}
    assert still == set(case.entry["batchnorms_in_eval_during_training"])

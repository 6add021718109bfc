"""Few groups move the weights as one group a parameter would; clipping is over all of them."""

import copy

import pytest
import torch
from torch import Tensor, nn

from yw_ray.models.yolo_world import build_model
from yw_ray.recipe import ModelConfig, OptimConfig
from yw_ray.training.freeze import apply_freeze
from yw_ray.training.optim import build_optimizer, clip_gradients, parameter_rules


class Toy(nn.Module):
    """Parts named as in the detector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.text_encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.neck = nn.Conv2d(4, 4, 1)
        self.head = nn.Module()
        self.head.logit_scale = nn.Parameter(torch.tensor(0.5))

    def fill_gradients(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_merged_groups_move_the_weights_as_one_group_each_would(kind: str, fused: bool) -> None:
    optim = OptimConfig.model_validate({"kind": kind, "base_lr": 1e-2, "weight_decay": 0.05})
    merged, single = Toy(), Toy()
    rules = parameter_rules(single, optim, total_batch=128)
    named = dict(single.named_parameters())
    groups = [
        {"params": [named[name]], "lr": rate, "weight_decay": decay}
        for name, (rate, decay, _) in rules.items()
    ]
    ours = build_optimizer(merged, optim, total_batch=128, fused=fused)
    theirs: torch.optim.Optimizer
    if kind == "sgd":
        theirs = torch.optim.SGD(groups, lr=1.0, momentum=0.937, nesterov=True, foreach=False)
    else:
        theirs = torch.optim.AdamW(groups, lr=1.0, foreach=False)
    assert len(ours.param_groups) < len(theirs.param_groups)
    for step in range(5):
        merged.fill_gradients(step)
        single.fill_gradients(step)
        ours.step()
        theirs.step()
    for a, b in zip(merged.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_text_tower_is_slower_and_its_decay_is_not_scaled() -> None:
    rules = parameter_rules(Toy(), OptimConfig(), total_batch=128)
    assert rules["text_encoder.0.weight"] == pytest.approx((2e-6, 0.05, False))
    assert rules["neck.weight"] == pytest.approx((2e-4, 0.1, False))


def test_norms_and_biases_are_exempt_from_decay_only_where_the_recipe_says_so() -> None:
    model = Toy()
    exempt = parameter_rules(model, OptimConfig(decay_norm_and_bias=False), total_batch=64)
    decayed = {name for name, (_, decay, _) in exempt.items() if decay}
    assert decayed == {"backbone.0.weight", "text_encoder.0.weight", "neck.weight"}
    everywhere = parameter_rules(model, OptimConfig(), total_batch=64)
    assert {name for name, (_, decay, _) in everywhere.items() if not decay} == {"head.logit_scale"}


def test_learned_prompts_do_not_decay() -> None:
    with torch.device("meta"):
        model = build_model(ModelConfig(size="n", prompts="embeddings"))
    apply_freeze(model, "all_but_prompts")
    optim = OptimConfig(base_lr=2e-3, decay_norm_and_bias=False)
    rules = parameter_rules(model, optim, total_batch=128)
    assert rules == {"prompts.embeddings": (2e-3, 0.0, False)}


def test_a_single_group_has_one_rule_for_everything() -> None:
    optimizer = build_optimizer(Toy(), OptimConfig(single_group=True), total_batch=128)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["third_group"]) == (2e-4, 0.1, False)


def test_only_the_third_parameter_is_the_third_group_even_behind_frozen_ones() -> None:
    model = Toy()
    assert [
        n for n, r in parameter_rules(model, OptimConfig(), total_batch=64).items() if r[2]
    ] == ["backbone.1.bias"]
    model.backbone.requires_grad_(False)
    rules = parameter_rules(model, OptimConfig(), total_batch=64)
    assert not any(third for _, _, third in rules.values())


def test_frozen_parameters_get_no_group_and_a_frozen_model_is_refused() -> None:
    model = Toy()
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(), total_batch=64)
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert "neck.weight" in names and not any(name.startswith("backbone") for name in names)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter is left to train"):
        build_optimizer(model, OptimConfig(), total_batch=64)


def _clipped(scale: float, max_norm: float) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    model = Toy()
    model.fill_gradients(0)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad *= scale
    reference = copy.deepcopy(model)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert ours.grad is not None
        theirs.grad = ours.grad.clone()
    optimizer = build_optimizer(model, OptimConfig(), total_batch=64)
    norm = clip_gradients(optimizer, max_norm)
    expected = nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
    grads = [[p.grad for p in m.parameters() if p.grad is not None] for m in (model, reference)]
    return norm, expected, grads[0], grads[1]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_clipping_is_by_the_norm_over_all_groups(scale: float) -> None:
    norm, expected, ours, theirs = _clipped(scale, 10.0)
    torch.testing.assert_close(norm, expected)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    norm, *_ = _clipped(float("inf"), 10.0)
    assert not torch.isfinite(norm)


def test_parameters_without_gradient_are_left_alone_by_clip_and_step() -> None:
    model = Toy()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, OptimConfig(), total_batch=64)
    assert clip_gradients(optimizer, 10.0) == 0
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

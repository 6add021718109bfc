"""A strategy decides what trains, what stands still, and can prove that it did."""

import pytest
import torch
from torch import nn

from yw_ray.models.yolo_world import YoloWorld, build_model
from yw_ray.recipe import Freeze, ModelConfig, OptimConfig
from yw_ray.training.freeze import (
    apply_freeze,
    describe_freeze,
    frozen_changes,
    frozen_digest,
    set_train_mode,
)
from yw_ray.training.optim import build_optimizer


def _model(**changes: object) -> YoloWorld:
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate({"size": "n", "segmentation": True, **changes}))
    model.text_encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    return model


def _trained_parts(model: nn.Module) -> set[str]:
    """First names, and second names inside the head, of trained parameters."""
    return {
        ".".join(name.split(".")[: 2 if name.startswith("head.") else 1])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


HEAD = {
    "head.cls_branches",
    "head.box_branches",
    "head.mask_branches",
    "head.contrasts",
    "head.protos",
}


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("none", {"backbone", "neck"} | HEAD),
        ("backbone", {"neck"} | HEAD),
        ("neck", {"backbone"} | HEAD),
        ("backbone_neck", HEAD),
        ("all_but_seg_head", {"head.mask_branches", "head.protos"}),
    ],
)
def test_each_strategy_trains_exactly_its_parts(strategy: Freeze, expected: set[str]) -> None:
    model = _model()
    plan = apply_freeze(model, strategy)
    assert _trained_parts(model) == expected
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert set(plan.frozen) == frozen


def test_the_text_tower_trains_only_when_asked_and_never_beside_a_lone_head() -> None:
    model = _model()
    apply_freeze(model, "none", train_text_encoder=True)
    assert "text_encoder" in _trained_parts(model)
    apply_freeze(model, "all_but_seg_head", train_text_encoder=True)
    assert "text_encoder" not in _trained_parts(model)


def test_a_later_strategy_undoes_an_earlier_one() -> None:
    model = _model()
    apply_freeze(model, "all_but_seg_head")
    apply_freeze(model, "none", train_text_encoder=True)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_prompts_alone_are_trained_with_their_adapter() -> None:
    model = build_model(ModelConfig(size="n", prompts="embeddings", prompt_adapter=True))
    apply_freeze(model, "all_but_prompts")
    assert _trained_parts(model) == {"prompts"}
    assert not model.backbone.training and not model.head.contrasts.training


@pytest.mark.parametrize("train_seg_norms", [False, True])
def test_norms_of_the_mask_branches_move_their_statistics_and_train_only_on_request(
    train_seg_norms: bool,
) -> None:
    model = _model()
    apply_freeze(model, "all_but_seg_head", train_seg_norms=train_seg_norms)
    norms = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and name.startswith(("head.mask_branches", "head.protos"))
    ]
    assert len(norms) == 9
    for norm in norms:
        assert norm.training and norm.weight.requires_grad == train_seg_norms
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    assert trained == (33 if train_seg_norms else 15)


@pytest.mark.parametrize(
    ("strategy", "config", "wanted"),
    [
        ("all_but_seg_head", ModelConfig(size="n"), "segmentation"),
        ("all_but_prompts", ModelConfig(size="n"), "prompts"),
    ],
)
def test_a_strategy_that_leaves_nothing_to_train_is_refused(
    strategy: Freeze, config: ModelConfig, wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"freeze={strategy} leaves nothing.*{wanted}"):
        apply_freeze(build_model(config), strategy)


def _step(model: YoloWorld, optimizer: torch.optim.Optimizer) -> None:
    """One optimiser step with gradients for everything that trains."""
    outputs = model(torch.rand(2, 3, 64, 64), torch.randn(2, 3, 512))
    assert outputs.mask_coeffs is not None and outputs.protos is not None
    loss = sum(x.square().mean() for x in (*outputs.cls_logits, *outputs.box_dist))
    loss = loss + sum(x.square().mean() for x in (*outputs.mask_coeffs, outputs.protos))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("strategy", ["backbone", "neck", "backbone_neck", "all_but_seg_head"])
def test_frozen_parts_are_bit_identical_after_training_and_the_others_are_not(
    strategy: Freeze,
) -> None:
    model = _model()
    plan = apply_freeze(model, strategy)
    before = frozen_digest(model, plan)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model, OptimConfig(), total_batch=64)
    for _ in range(2):
        model.eval()  # as validation does in between
        set_train_mode(model, plan)
        _step(model, optimizer)
    assert frozen_changes(before, frozen_digest(model, plan)) == []
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, values[n])}
    still_statistics = [n for n in before if n.endswith("running_mean")]
    assert moved and not moved & set(before) and still_statistics
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names <= moved


@pytest.mark.parametrize(
    "name",
    ["backbone.stem.conv.weight", "neck.top_down.0.expand.bn.running_var", "text_encoder.1.bias"],
)
def test_one_changed_bit_is_named(name: str) -> None:
    model = _model()
    plan = apply_freeze(model, "all_but_seg_head")
    before = frozen_digest(model, plan)
    flat = model.state_dict()[name].view(-1).view(torch.int32)
    flat[-1] ^= 1
    assert frozen_changes(before, frozen_digest(model, plan)) == [name]


def test_trained_tensors_are_not_in_the_digest() -> None:
    model = _model()
    plan = apply_freeze(model, "all_but_seg_head")
    digest = frozen_digest(model, plan)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not trained & digest.keys()
    assert "head.protos.conv1.bn.weight" in digest  # frozen by the original's accident
    assert "head.protos.conv1.bn.running_mean" not in digest  # and yet this moves


def test_the_table_adds_up() -> None:
    model = _model()
    plan = apply_freeze(model, "backbone_neck")
    total = describe_freeze(model, plan).splitlines()[-1].replace(",", "").split()
    trained, frozen, moving, fixed = (int(word) for word in total[1:])
    assert trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained + frozen == sum(p.numel() for p in model.parameters())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert moving == sum(norm.training for norm in norms) and moving + fixed == len(norms)

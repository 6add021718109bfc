"""Freezing: one strategy name decides what is trained and which batch norms stand still.

Place in the flow: `apply_freeze` runs once, before the optimiser is built; `set_train_mode`
replaces every `model.train()` of the loop; `frozen_digest` before and after a run proves that
what was frozen did not move.
Source: the trained parts of the published rows; the original froze neck and head inside `train()`,
after the optimiser was built, which comes to the same trained tensors.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from yw_ray.recipe import Freeze

_FIXED_PARTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "backbone": ("backbone.",),
    "neck": ("neck.",),
    "backbone_neck": ("backbone.", "neck."),
}
_TRAINED_PARTS: dict[str, tuple[str, ...]] = {
    "all_but_seg_head": ("head.mask_branches.", "head.protos."),
    "all_but_prompts": ("prompts.",),
}


@dataclass(frozen=True)
class FreezePlan:
    """What a strategy came to for one model.

    frozen: names of parameters that are not trained; eval_modules: modules kept in eval mode,
    whose batch norms use and keep their statistics.
    """

    strategy: Freeze
    frozen: tuple[str, ...]
    eval_modules: tuple[str, ...]


def apply_freeze(
    model: nn.Module,
    strategy: Freeze,
    *,
    train_text_encoder: bool = False,
    train_seg_norms: bool = False,
) -> FreezePlan:
    """Set `requires_grad` of every parameter and the train mode of every module.

    Args:
        train_text_encoder: train the text tower too; the `all_but_*` strategies freeze it anyway.
        train_seg_norms: with `all_but_seg_head`, train batch-norm weights and biases of the mask
            branches as well; the original froze them by accident (their statistics move).
    Raises: ValueError if the strategy leaves nothing to train in this model.
    """
    text = () if train_text_encoder else ("text_encoder.",)
    fixed = _FIXED_PARTS.get(strategy, ()) + text
    only = _TRAINED_PARTS.get(strategy, ("",))
    parts = [name for name, _ in model.named_children() if name != "head"]
    parts += [f"head.{name}" for name, _ in model.get_submodule("head").named_children()]
    eval_modules = tuple(
        part for part in parts if f"{part}.".startswith(fixed) or not f"{part}.".startswith(only)
    )
    still_norms: frozenset[str] = frozenset()
    if strategy == "all_but_seg_head" and not train_seg_norms:
        still_norms = _norm_parameters(model)
    frozen = []
    for name, parameter in model.named_parameters():
        train = name.startswith(only) and not name.startswith(fixed) and name not in still_norms
        parameter.requires_grad_(train)
        if not train:
            frozen.append(name)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"freeze={strategy} leaves nothing to train in this model; choose another freeze, or "
            "a model with the part it trains (model.segmentation, model.prompts=embeddings)"
        )
    plan = FreezePlan(strategy, tuple(frozen), eval_modules)
    set_train_mode(model, plan)
    return plan


def set_train_mode(model: nn.Module, plan: FreezePlan) -> None:
    """`model.train()`, with the frozen modules put back in eval mode."""
    model.train()
    for name in plan.eval_modules:
        model.get_submodule(name).eval()


def describe_freeze(model: nn.Module, plan: FreezePlan) -> str:
    """A table for the log: part, parameters trained and frozen, batch norms by mode."""
    rows: list[tuple[str, ...]] = [("part", "trained", "frozen", "batch norms moving", "fixed")]
    counts: dict[str, list[int]] = {}
    frozen = set(plan.frozen)
    for name, parameter in model.named_parameters():
        row = counts.setdefault(_part(name), [0, 0, 0, 0])
        row[name in frozen] += parameter.numel()
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            row = counts.setdefault(_part(f"{name}.weight"), [0, 0, 0, 0])
            row[3 if _inside(name, plan.eval_modules) else 2] += 1
    rows += [(part, *(f"{n:,}" for n in row)) for part, row in counts.items()]
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    rows.append(("total", *(f"{n:,}" for n in totals)))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([f"freeze={plan.strategy}", *lines])


def frozen_digest(model: nn.Module, plan: FreezePlan) -> dict[str, str]:
    """SHA-256 of every frozen parameter and of every buffer inside a fixed module, by name."""
    frozen = set(plan.frozen)
    digests: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if name in frozen or _inside(name, plan.eval_modules):
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            header = f"{value.dtype}{tuple(value.shape)}".encode()
            digests[name] = hashlib.sha256(header + raw.numpy().tobytes()).hexdigest()
    return digests


def frozen_changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names whose content differs between two digests, missing and new ones included."""
    return sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _norm_parameters(model: nn.Module) -> frozenset[str]:
    """Names of batch-norm weights and biases."""
    return frozenset(
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for own, _ in module.named_parameters(recurse=False)
    )


def _part(name: str) -> str:
    """First name of a parameter; two names deep inside the head, so that its branches show."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] == "head" and len(parts) > 2 else 1])

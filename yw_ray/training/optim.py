"""Optimiser: parameter groups as the published recipes had them, few enough to run fused.

Place in the flow: made once by `training/loop.py` after `training/freeze.py` has decided what is
trained; `training/schedule.py` sets the rates; `training/checkpoint.py` saves the state.
The original gave every parameter a group of its own. Every rule here acts on single elements, so
parameters with equal rules share a group and the numbers stay the same
(`tests/parity/test_params.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from yw_ray.recipe import OptimConfig

NOMINAL_BATCH = 64
THIRD_PARAMETER = 2


def decay_factor(total_batch: int) -> float:
    """What the configured weight decay is multiplied by: total batch / 64, at least about 1.

    128 gives 2, 64 and 16 give 1. Values stated for single parameters are not multiplied.
    """
    accumulate = max(round(NOMINAL_BATCH / total_batch), 1)
    return total_batch * accumulate / NOMINAL_BATCH


def parameter_rules(
    model: nn.Module, optim: OptimConfig, *, total_batch: int
) -> dict[str, tuple[float, float, bool]]:
    """Name of every trained parameter -> (peak rate, weight decay, is the third parameter).

    The third parameter of the model (the stem's batch-norm bias) is the one the original warms
    up from 0.1 by an accident of counting groups; it counts frozen parameters too.
    """
    factor = decay_factor(total_batch) if optim.scale_weight_decay else 1.0
    rules: dict[str, tuple[float, float, bool]] = {}
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        if optim.single_group:
            rules[name] = (optim.base_lr, optim.weight_decay * factor, False)
            continue
        in_text_tower = name.startswith("text_encoder.")
        rate = optim.base_lr * (optim.text_lr_mult if in_text_tower else 1.0)
        decay = optim.weight_decay * (1.0 if in_text_tower else factor)
        # Norm weights and all biases, and nothing else, have at most one axis.
        exempt_by_kind = not optim.decay_norm_and_bias and parameter.ndim <= 1
        exempt_by_name = name.endswith("logit_scale") or name == "prompts.embeddings"
        if exempt_by_kind or exempt_by_name:
            decay = 0.0
        rules[name] = (rate, decay, index == THIRD_PARAMETER)
    return rules


def build_optimizer(
    model: nn.Module, optim: OptimConfig, *, total_batch: int, fused: bool | None = None
) -> torch.optim.Optimizer:
    """AdamW or SGD over the trained parameters of `model`, one group per rule.

    Args:
        model: after `apply_freeze`; frozen parameters get no group.
        total_batch: images per optimiser step over all workers (scales the weight decay).
        fused: one kernel for all parameters; None takes it wherever the device has it.
    Returns: groups carry `base_lr`, `third_group` (read by `Schedule.apply`) and `param_names`.
    Raises: ValueError if nothing is left to train.
    """
    named = dict(model.named_parameters())
    merged: dict[tuple[float, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, rule in parameter_rules(model, optim, total_batch=total_batch).items():
        merged.setdefault(rule, []).append((name, named[name]))
    if not merged:
        raise ValueError("no parameter is left to train; choose another freeze")
    groups: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": rate,
            "base_lr": rate,
            "weight_decay": decay,
            "third_group": third,
        }
        for (rate, decay, third), parameters in merged.items()
    ]
    if fused is None:
        devices = {p.device.type for group in merged.values() for _, p in group}
        fused = devices <= {"cpu", "cuda"}
    if optim.kind == "sgd":
        return torch.optim.SGD(
            groups, lr=optim.base_lr, momentum=optim.momentum, nesterov=True, fused=fused
        )
    return torch.optim.AdamW(groups, lr=optim.base_lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def gradients(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Gradients of everything the optimiser trains, those without one left out."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield parameter.grad


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients in place so that their common L2 norm is at most `max_norm`.

    Call after unscaling. Nothing waits for the device: the norm stays a tensor there.
    Returns: () norm before clipping; not finite where a gradient is not.
    """
    grads = list(gradients(optimizer))
    if not grads:
        return torch.zeros(())
    norms = torch._foreach_norm(grads)
    total = torch.linalg.vector_norm(torch.stack(norms))
    # The original's 1e-6 in the denominator and its clamp, no branch on the host.
    torch._foreach_mul_(grads, (max_norm / (total + 1e-6)).clamp(max=1.0))
    return total

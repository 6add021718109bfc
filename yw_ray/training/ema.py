"""Exponential moving average of a model, floating-point buffers included.

Place in the flow: `training/loop.py` updates it after every optimiser step; validation and every
published number use `Ema.module`; `training/checkpoint.py` saves it.
Source: the published recipes' average with a fast start, checked against recorded numbers in
`tests/parity/test_ema.py`.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from yw_ray.recipe import EmaConfig


def ema_momentum(config: EmaConfig, update: int) -> float:
    """Weight of the new value at `update` (0-based): near 1 at first, then `config.momentum`."""
    low = config.momentum
    return (1.0 - low) * math.exp(-(1 + update) / config.gamma) + low


class Ema:
    """Average of a model's parameters and floating-point buffers.

    module: the averaged copy, in eval mode, without gradients.
    num_updates: updates so far; the first copies, so integer buffers keep their first values.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.config = config
        self.num_updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self._averaged = _tensors(self.module)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in `model` after an optimiser step.

        Frozen parameters are copied once and then left alone: averaging equal values is exact.
        """
        source = _tensors(model)
        assert source.keys() == self._averaged.keys(), "the model has changed its tensors"
        if self.num_updates == 0:
            for name, value in source.items():
                self._averaged[name].copy_(value)
        else:
            names = [
                name
                for name, value in source.items()
                if value.is_floating_point()
                and (value.requires_grad or not isinstance(value, nn.Parameter))
            ]
            torch._foreach_lerp_(
                [self._averaged[name] for name in names],
                [source[name] for name in names],
                ema_momentum(self.config, self.num_updates),
            )
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.num_updates = int(state["num_updates"])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, the live tensors themselves."""
    return dict(model.state_dict(keep_vars=True))

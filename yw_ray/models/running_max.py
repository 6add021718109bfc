"""Strongest response of each pixel over many texts, without holding all responses.

Place in the flow: called by the attention blocks of `fusion.py`.
Source: max-sigmoid attention of YOLO-World (arXiv 2401.17270, section 3.3). The maximum is kept
chunk by chunk and its gradient touches only the winning text of each pixel, so neither pass holds
a (B, K, H, W) tensor; the gradients equal those of the dense form.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 128
"""Texts whose responses exist at one time."""


def dense_max(queries: Tensor, keys: Tensor) -> Tensor:
    """The definition: max over K of the inner products.

    Args:
        queries: (B, h, c, N) image features, N pixels.
        keys: (B, h, K, c) text features.
    Returns: (B, h, N).
    """
    return (keys @ queries).max(dim=2).values


def running_max(queries: Tensor, keys: Tensor) -> Tensor:
    """`dense_max` in chunks over K, with a gather/scatter backward; same shapes and values."""
    if torch.is_autocast_enabled(queries.device.type):
        dtype = torch.get_autocast_dtype(queries.device.type)
        queries, keys = queries.to(dtype), keys.to(dtype)
    if not (torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad)):
        return _chunked_values(queries, keys)
    return _RunningMax.apply(queries, keys)


def _chunked_values(queries: Tensor, keys: Tensor) -> Tensor:
    best: Tensor | None = None
    for chunk in keys.split(CHUNK, dim=2):
        values = (chunk @ queries).amax(dim=2)
        best = values if best is None else torch.maximum(best, values)
    assert best is not None
    return best


class _RunningMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor) -> Tensor:
        best: Tensor | None = None
        index: Tensor | None = None
        for start in range(0, keys.shape[2], CHUNK):
            values, where = (keys[:, :, start : start + CHUNK] @ queries).max(dim=2)
            if best is None or index is None:
                best, index = values, where
            else:
                # Strictly greater: of equal responses the first text wins, as in the dense form.
                better = values > best
                best = torch.where(better, values, best)
                index = torch.where(better, where + start, index)
        assert best is not None and index is not None
        ctx.save_for_backward(queries, keys, index)
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys, index = ctx.saved_tensors
        rows = index.unsqueeze(-1).expand(-1, -1, -1, keys.shape[3])
        grad_queries = torch.gather(keys, 2, rows).mul_(grad.unsqueeze(-1)).transpose(2, 3)
        pulls = (queries * grad.unsqueeze(2)).transpose(2, 3)
        # Sums of many pixels per text are kept in float32 under mixed precision.
        grad_keys = torch.zeros(keys.shape, dtype=torch.float32, device=keys.device)
        grad_keys.scatter_add_(2, rows, pulls.float())
        return grad_queries, grad_keys.to(keys.dtype)

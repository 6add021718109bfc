"""Strongest response of each pixel over many texts, without holding all responses.

Place in the flow: called by the attention blocks of `fusion.py`.
Source: max-sigmoid attention of YOLO-World (arXiv 2401.17270, section 3.3). The maximum is kept
chunk by chunk and its gradient touches only the winning text of each pixel, so neither pass holds
a (B, K, H, W) tensor; values and gradients equal those of the dense form.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 16
"""Texts of one block: block maxima are cheap, indices are sought in the winning block alone."""
_MAX_CHUNK = 256
_MAX_ELEMENTS = 2**25
"""Responses that exist at one time, over the batch."""


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
    device = queries.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        queries, keys = queries.to(dtype), keys.to(dtype)
    if torch.is_grad_enabled() and (queries.requires_grad or keys.requires_grad):
        return _RunningMax.apply(queries, keys)
    best: Tensor | None = None
    for chunk in keys.split(_chunk_size(queries), dim=2):
        values = (chunk @ queries).amax(dim=2)
        best = values if best is None else torch.maximum(best, values)
    assert best is not None
    return best


def _chunk_size(queries: Tensor) -> int:
    b, heads, _, pixels = queries.shape
    blocks = _MAX_ELEMENTS // (b * heads * pixels) // _BLOCK
    return _BLOCK * max(1, min(blocks, _MAX_CHUNK // _BLOCK))


def _best_and_index(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over K and where it is: (B, h, N) values and int64 indices."""
    b, heads, c, pixels = queries.shape
    num_texts = keys.shape[2]
    # Repeats of the last text fill the last block; they win nothing.
    filler = keys[:, :, -1:].expand(-1, -1, -num_texts % _BLOCK, -1)
    flat_keys = torch.cat([keys, filler], 2).flatten(0, 1)
    flat_queries = queries.reshape(b * heads, c, pixels)
    size = min(_chunk_size(queries), flat_keys.shape[1])
    buffer = flat_queries.new_empty(size * b * heads * pixels)
    best: Tensor | None = None
    index: Tensor | None = None
    start = 0
    for chunk in flat_keys.split(size, dim=1):
        # One buffer for all chunks: mapping fresh pages costs more than the products.
        responses = buffer[: chunk.shape[1] * b * heads * pixels].view(b * heads, -1, pixels)
        blocks = torch.bmm(chunk, flat_queries, out=responses).unflatten(1, (-1, _BLOCK))
        values, block = blocks.amax(2).max(1)
        rows = block[:, None, None].expand(-1, -1, _BLOCK, -1)
        where = start + block * _BLOCK + blocks.gather(1, rows).squeeze(1).max(1).indices
        if best is None or index is None:
            best, index = values, where
        else:
            # Strictly greater: of equal responses the first text wins, as in the dense form.
            better = values > best
            best = torch.where(better, values, best)
            index = torch.where(better, where, index)
        start += chunk.shape[1]
    assert best is not None and index is not None
    index = index.clamp_(max=num_texts - 1)
    return best.unflatten(0, (b, heads)), index.unflatten(0, (b, heads))


class _RunningMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor) -> Tensor:
        best, index = _best_and_index(queries, keys)
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

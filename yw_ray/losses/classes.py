"""Class loss: binary cross-entropy of all logits without ever building targets.

Place in the flow: the first term of `criterion.py`, from the class logits and the assignment.
Source: BCE(x, y) = softplus(x) - x * y, so only the few targets above zero need to be named; the
loss is that of YOLOv8 and YOLO-World (arXiv 2401.17270).

With K texts a batch has B x N x K logits (160 million at K = 1203, B = 16, 640 px). The forward
keeps nothing of that size, and the backward makes one tensor of it: the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_CPU, _CHUNK_GPU = 1 << 18, 1 << 25
"""Logits looked at together: what a core's cache holds, or enough to keep a GPU busy."""


def class_at(
    cls_logits: tuple[Tensor, ...], image: Tensor, anchor: Tensor, label: Tensor
) -> Tensor:
    """Logits of given (image, anchor, label) triples, without joining the levels.

    Args: cls_logits: per level (B, K, h, w); image, anchor, label: (P,) int64.
    Returns: (P,) float32.
    """
    picked = torch.zeros(anchor.shape, device=anchor.device)
    start = 0
    for level in cls_logits:
        size = level.shape[2] * level.shape[3]
        cell = anchor - start
        here = (cell >= 0) & (cell < size)
        cell = torch.where(here, cell, 0)
        values = level[image, label, cell // level.shape[3], cell % level.shape[3]]
        picked = torch.where(here, values.float(), picked)
        start += size
    return picked


def _softplus_sums(logits: Tensor, text_mask: Tensor | None) -> Tensor:
    """(B, K, h, w) -> (B,) float32, a few images or rows at a time."""
    batch, classes, height, width = logits.shape
    chunk = _CHUNK_CPU if logits.device.type == "cpu" else _CHUNK_GPU
    rows = min(height, max(1, chunk // (classes * width)))
    images = max(1, chunk // (classes * width * height))
    sums = torch.zeros(batch, device=logits.device)
    for i in range(0, batch, images):
        for row in range(0, height, rows):
            part = F.softplus(logits[i : i + images, :, row : row + rows].float())
            if text_mask is not None:
                part *= text_mask[i : i + images, :, None, None]
            sums[i : i + images] += part.sum((1, 2, 3))
    return sums


class _LevelCrossEntropy(torch.autograd.Function):
    """sum_b scale_b * sum softplus(logits_b) - sum_f factor_f * logits[positive_f], one level."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        scale: Tensor,
        factor: Tensor,
        image: Tensor,
        label: Tensor,
        cell: Tensor,
        text_mask: Tensor | None,
    ) -> Tensor:
        width = logits.shape[3]
        index = (image, label, cell // width, cell % width)
        sums = _softplus_sums(logits, text_mask)
        ctx.save_for_backward(logits, scale, factor, *index, text_mask)
        return (sums * scale).sum() - (logits[index].float() * factor).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, scale, factor, *index, text_mask = ctx.saved_tensors
        slope = logits.float().sigmoid()
        slope *= (scale * grad)[:, None, None, None]
        if text_mask is not None:
            slope *= text_mask[:, :, None, None]
        slope.index_put_(tuple(index), -factor * grad, accumulate=True)
        return slope.to(logits.dtype), None, None, None, None, None, None


def class_loss(
    cls_logits: tuple[Tensor, ...],
    scale: Tensor,
    image: Tensor,
    anchor: Tensor,
    label: Tensor,
    factor: Tensor,
    text_mask: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of all logits, each image scaled, targets given for the foreground only.

    Args:
        cls_logits: per level (B, K, h, w).
        scale: (B,) factor of each image.
        image, anchor, label: (F,) of the foreground; factor: (F,) target times the image's scale.
        text_mask: (B, K), 0 for texts that do not count; default: all count.
    Returns: scalar float32.
    """
    if text_mask is not None:
        factor = factor * text_mask[image, label]
    total = scale.new_zeros(())
    start = 0
    for level in cls_logits:
        size = level.shape[2] * level.shape[3]
        cell = anchor - start
        here = (cell >= 0) & (cell < size)
        # Anchors of other levels add zero at cell 0: no count has to travel to the host.
        cell, own = torch.where(here, cell, 0), torch.where(here, factor, 0.0)
        args = (level, scale, own, image, label, cell, text_mask)
        total = total + _LevelCrossEntropy.apply(*args)
        start += size
    return total

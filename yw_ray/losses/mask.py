"""Mask loss: prototypes and coefficients of foreground anchor points against object masks.

Place in the flow: the fourth term of `criterion.py`, for segmenting models.
Source: YOLACT (arXiv 1904.02689), section 3.2, as used by YOLOv5-seg and YOLO-World (arXiv
2401.17270): pixel-wise cross-entropy inside the object's box, divided by the box area.

The gradient is computed in the forward, a few hundred anchor points at a time, so that memory does
not grow with the number of foreground anchor points.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_PIXELS = 1 << 22


class _CroppedCrossEntropy(torch.autograd.Function):
    """sum_f scale_f * sum_pixels inside_f * BCE(coeffs_f . protos, mask_f), gradient included."""

    @staticmethod
    def forward(
        ctx: Any,
        coeffs: Tensor,
        protos: Tensor,
        image: Tensor,
        masks: Tensor,
        target: Tensor,
        boxes: Tensor,
        scale: Tensor,
    ) -> Tensor:
        height, width = protos.shape[2:]
        cols = torch.arange(width, device=protos.device)
        rows = torch.arange(height, device=protos.device)
        loss = scale.new_zeros(())
        coeff_grad, proto_grad = torch.zeros_like(coeffs), torch.zeros_like(protos)
        step = max(1, _CHUNK_PIXELS // (height * width))
        first = 0
        for i, count in enumerate(torch.bincount(image, minlength=len(protos)).tolist()):
            proto = protos[i].flatten(1)
            for start in range(first, first + count, step):
                part = slice(start, min(start + step, first + count))
                logits = coeffs[part] @ proto
                truth = masks[target[part]].flatten(1).to(logits.dtype)
                x1, y1, x2, y2 = boxes[part].unsqueeze(2).unbind(1)
                in_cols = (cols >= x1) & (cols < x2)
                in_rows = (rows >= y1) & (rows < y2)
                inside = (in_rows[:, :, None] & in_cols[:, None]).flatten(1) * scale[part, None]
                bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
                loss += (bce * inside).sum()
                if any(ctx.needs_input_grad):
                    slope = logits.sigmoid_().sub_(truth).mul_(inside)
                    coeff_grad[part] = slope @ proto.T
                    proto_grad[i] += (coeffs[part].T @ slope).view_as(proto_grad[i])
            first += count
        ctx.save_for_backward(coeff_grad, proto_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        coeff_grad, proto_grad = ctx.saved_tensors
        return coeff_grad * grad, proto_grad * grad, None, None, None, None, None


def mask_loss(
    coeffs: Tensor,
    protos: Tensor,
    image: Tensor,
    target: Tensor,
    boxes: Tensor,
    masks: Tensor,
    input_size: tuple[int, int],
    *,
    area: float | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Mask loss, mean over the foreground anchor points of an image, summed over images.

    Args:
        coeffs: (F, P) mask coefficients of the foreground, ordered by image.
        protos: (B, P, h, w) prototypes.
        image: (F,) ascending; target: (F,) row of boxes and masks.
        boxes: (M, 4) xyxy pixels of the input; masks: (M, h', w') bool, resized by nearest where
            their size is not that of the prototypes.
        input_size: (H, W) pixels of the input.
        area: pixels that box areas are shares of; default: H * W.
        counts: (B,) bool, images that count; default: all.
    Returns: scalar float32; double differentiation is not supported.
    Source: arXiv 1904.02689, section 3.2.
    """
    height, width = protos.shape[2:]
    if masks.shape[1:] != (height, width):
        masks = F.interpolate(masks[None].float(), (height, width), mode="nearest")[0]
    box = boxes[target].float()
    share = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = share / (area or input_size[0] * input_size[1])
    positives = torch.bincount(image, minlength=len(protos))
    scale = 1 / (share * positives[image] * (height * width))
    if counts is not None:
        scale = torch.where(counts[image], scale, 0.0)
    cells = box.new_tensor([width, height, width, height])
    pixels = box.new_tensor([input_size[1], input_size[0], input_size[1], input_size[0]])
    args = (image, masks, target, box * (cells / pixels), scale)
    return _CroppedCrossEntropy.apply(coeffs.float(), protos.float(), *args)

"""RawOutputs and Detections: what a model returns before and after post-processing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


class RawOutputs(NamedTuple):
    """Per level (strides 8, 16, 32) predictions; a tuple so that DDP and compile see tensors.

    cls_logits: 3 x (B, K, h, w); box_dist: 3 x (B, 4 * 16, h, w) side-major distance logits;
    mask_coeffs: 3 x (B, 32, h, w) or None; protos: (B, 32, H / 4, W / 4) or None.
    """

    cls_logits: tuple[Tensor, ...]
    box_dist: tuple[Tensor, ...]
    mask_coeffs: tuple[Tensor, ...] | None = None
    protos: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """Results of one image in its original pixels, best score first.

    boxes: (n, 4) float32 xyxy; scores: (n,) float32; labels: (n,) int64 into the prompts;
    masks: n COCO run-length encodings ({"size": [h, w], "counts": bytes}) or None.
    """

    image_id: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict[str, Any]] | None = None

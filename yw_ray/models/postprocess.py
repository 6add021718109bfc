"""Post-processing: raw outputs to detections in the original image.

Place in the flow: after the model, before evaluation; `postprocess` is the door, the functions
below it are its steps. Runs on the device of the outputs; boxes are float32, NMS float64.
Source: the test settings of YOLO-World (arXiv 2401.17270); masks after YOLACT (arXiv 1904.02689).

What makes it quick without changing a result: scores are compared as logits, so that most of the
B x N x K sigmoids are never taken, and NMS sees a growing prefix of the score order, since the
first survivors depend on better candidates only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from yw_ray.boxes import decode_boxes
from yw_ray.models.outputs import Detections, RawOutputs
from yw_ray.recipe import EvalConfig

_FIRST_PREFIX = 1000
_MASK_PIXELS_CPU, _MASK_PIXELS_GPU = 1 << 21, 1 << 26
"""Pixels of masks made together: what a core's cache helps with, or what keeps a GPU busy."""


class Fit(Protocol):
    """How an image was fitted into the input; `data.sample.Letterbox` is one."""

    @property
    def original_size(self) -> tuple[int, int]:
        """(h, w) pixels."""

    @property
    def scale(self) -> tuple[float, float]:
        """(w, h) factors applied."""

    @property
    def pad(self) -> tuple[float, float, float, float]:
        """(top, bottom, left, right) pixels."""


class Candidates(NamedTuple):
    """P (anchor point, class) pairs of one image.

    logits: (P,) float32; pairs: (P,) int64, anchor * classes + label.
    """

    logits: Tensor
    pairs: Tensor
    classes: int

    @property
    def anchors(self) -> Tensor:
        """(P,) int64 among the N anchor points."""
        return self.pairs // self.classes

    @property
    def labels(self) -> Tensor:
        """(P,) int64 among the K classes."""
        return self.pairs % self.classes

    @property
    def scores(self) -> Tensor:
        """(P,) float32 class probabilities; by way of float64, so that they keep the order."""
        return self.logits.double().sigmoid().float()

    def take(self, index: Tensor) -> Candidates:
        """The candidates of given positions."""
        return Candidates(self.logits[index], self.pairs[index], self.classes)


@torch.no_grad()
def postprocess(
    outputs: RawOutputs,
    letterboxes: Sequence[Fit],
    config: EvalConfig,
    image_ids: Sequence[int],
    *,
    strides: Sequence[int] = (8, 16, 32),
    multi_label: bool = True,
    fast_masks: bool = True,
    symmetric_pad: bool = False,
) -> list[Detections]:
    """Detections of B images, best score first, in original pixels.

    Args:
        outputs: of B images of any input size; masks are made where config.kind is "segm".
        letterboxes: how each image was fitted into the input.
        image_ids: of the B images.
        multi_label: an anchor point may answer for several classes; off for a single class.
        fast_masks, symmetric_pad: see `paste_masks`.
    Raises: ValueError for masks from a model without a mask head, or lengths that differ.
    """
    num_images = len(outputs.cls_logits[0])
    if not len(letterboxes) == len(image_ids) == num_images:
        raise ValueError(
            f"{num_images} images came with {len(letterboxes)} letterboxes and "
            f"{len(image_ids)} image ids; give one of each per image"
        )
    with_masks = config.kind == "segm"
    if with_masks and (outputs.mask_coeffs is None or outputs.protos is None):
        raise ValueError(
            "eval.kind is segm but the model has no mask head; set model.segmentation or use bbox"
        )
    height, width = (side * strides[0] for side in outputs.cls_logits[0].shape[2:])
    decoded = decode_boxes(outputs.box_dist, strides)
    results = []
    for i, (fit, image_id) in enumerate(zip(letterboxes, image_ids, strict=True)):
        candidates = find_candidates(
            [level[i] for level in outputs.cls_logits], config.score_threshold, multi_label
        )
        boxes = decoded[i]
        if with_masks:
            # Masks are cropped by letterboxed boxes, so these go through NMS, as in the original.
            kept = suppress(candidates, boxes, config)
            found = boxes[kept.anchors]
            assert outputs.mask_coeffs is not None and outputs.protos is not None
            levels = [level[i].flatten(1).T for level in outputs.mask_coeffs]
            coeffs = torch.cat(levels)[kept.anchors]
            masks = paste_masks(
                coeffs,
                outputs.protos[i],
                found,
                fit,
                (height, width),
                fast=fast_masks,
                symmetric_pad=symmetric_pad,
            )
            h, w = fit.original_size
            top, bottom, left, right = fit.pad
            scale = ((width - left - right) / w, (height - top - bottom) / h)
            found = remove_letterbox(found, fit.pad, scale)
        else:
            boxes = remove_letterbox(boxes, fit.pad, fit.scale)
            kept = suppress(candidates, boxes, config)
            found = boxes[kept.anchors]
            masks = None
        results.append(
            Detections(
                image_id=int(image_id),
                boxes=clip_boxes(found, fit.original_size).cpu().numpy(),
                scores=kept.scores.cpu().numpy(),
                labels=kept.labels.cpu().numpy(),
                masks=masks,
            )
        )
    return results


def remove_letterbox(
    boxes: Tensor, pad: tuple[float, float, float, float], scale: tuple[float, float]
) -> Tensor:
    """(M, 4) xyxy pixels of the input to pixels of the original image, not clipped.

    Args: pad: (top, bottom, left, right) pixels; scale: (w, h) factors.
    """
    top, _, left, _ = pad
    return (boxes - boxes.new_tensor([left, top] * 2)) / boxes.new_tensor(list(scale) * 2)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(M, 4) xyxy cut to an image of size (h, w)."""
    limit = boxes.new_tensor([size[1], size[0]] * 2)
    return torch.minimum(boxes.clamp(min=0), limit)


def find_candidates(
    cls_logits: Sequence[Tensor], threshold: float, multi_label: bool = True
) -> Candidates:
    """All (anchor point, class) pairs that score above the threshold, by anchor, then class.

    Args:
        cls_logits: per level (K, h, w) logits of one image.
        threshold: of the class probability, 0 <= threshold < 1.
        multi_label: otherwise only the best class of each anchor point.
    """
    limit = math.log(threshold / (1 - threshold)) if threshold else -math.inf
    classes = len(cls_logits[0])
    logits, pairs = [], []
    start = 0
    for level in cls_logits:
        flat = level.flatten(1).T.float()
        if multi_label and classes > 1:
            flat = flat.flatten()
            pair = (flat > limit).nonzero().squeeze(1)
            logits.append(flat.index_select(0, pair))
        else:
            best, label = flat.max(1)
            cell = (best > limit).nonzero().squeeze(1)
            pair = cell * classes + label[cell]
            logits.append(best[cell])
        pairs.append(pair + start)
        start += level[0].numel() * classes
    return Candidates(torch.cat(logits), torch.cat(pairs), classes)


def best_first(scores: Tensor, k: int) -> Tensor:
    """Positions of the k largest scores in descending order; equal ones by ascending position."""
    if k >= len(scores):
        return scores.argsort(descending=True, stable=True)
    if not k:
        return torch.empty(0, dtype=torch.long, device=scores.device)
    # A top-k alone picks among equal scores as it likes, and so differently for each k.
    among = (scores >= scores.topk(k).values[-1]).nonzero().squeeze(1)
    return among[scores[among].argsort(descending=True, stable=True)[:k]]


def class_nms(boxes: Tensor, candidates: Candidates, iou: float, span: Tensor) -> Tensor:
    """Greedy NMS within each class; positions of the survivors, best first.

    Args:
        boxes: (P, 4) xyxy of P candidates; iou: overlap above which the worse goes.
        span: power of two, no less than the extent of all boxes; classes are set that far apart.
    """
    # A power of two in float64: the sums are exact to 2e-9 px at 1203 classes, float32's are not.
    apart = boxes.double() + (candidates.labels.double() * span)[:, None]
    from torchvision.ops import nms  # slow to load; only predicting processes need it

    return nms(apart, candidates.logits.double(), iou)


def suppress(candidates: Candidates, boxes: Tensor, config: EvalConfig) -> Candidates:
    """The detections of one image: best `nms_pre`, NMS, best `max_detections`.

    Args: candidates: of `find_candidates`; boxes: (N, 4) xyxy of all anchor points.
    Returns: survivors, best first.
    """
    total = min(len(candidates.logits), config.nms_pre)
    extent = (boxes.amax() - boxes.amin() + 1).double()
    span = torch.exp2(extent.log2().ceil())
    size = max(_FIRST_PREFIX, 2 * config.max_detections)
    while True:
        size = min(size, total)
        prefix = candidates.take(best_first(candidates.logits, size))
        kept = class_nms(boxes[prefix.anchors], prefix, config.nms_iou, span)
        if len(kept) >= config.max_detections or size == total:
            return prefix.take(kept[: config.max_detections])
        size *= 4


def paste_masks(
    coeffs: Tensor,
    protos: Tensor,
    boxes: Tensor,
    fit: Fit,
    input_size: tuple[int, int],
    *,
    threshold: float = 0.5,
    fast: bool = True,
    symmetric_pad: bool = False,
) -> list[dict[str, Any]]:
    """Masks of n detections in the original image, as COCO run-length encodings.

    Args:
        coeffs: (n, P); protos: (P, h, w); boxes: (n, 4) xyxy pixels of the input, not clipped.
        input_size: (H, W) of the network input.
        fast: threshold after the resize to the original size; otherwise before it, with OpenCV's
            rounding resize of 0/1 maps.
        symmetric_pad: remove bottom and right padding by the amounts of top and left, one pixel
            wrong where padding is odd, as the original does (tests/parity/test_postprocess.py).
    Returns: n dictionaries {"size": [h, w], "counts": bytes}.
    Source: arXiv 1904.02689, section 3.1. A chunk of masks is at full size at a time.
    """
    if not len(boxes):
        return []
    height, width = input_size
    top, bottom, left, right = (round(side) for side in fit.pad)
    if symmetric_pad:
        bottom, right = top, left
    size = fit.original_size
    cols = torch.arange(width, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)
    chunk = _MASK_PIXELS_CPU if boxes.device.type == "cpu" else _MASK_PIXELS_GPU
    step = max(1, chunk // max(height * width, size[0] * size[1]))
    encoded: list[dict[str, Any]] = []
    for coeff, box in zip(coeffs.split(step), boxes.split(step), strict=True):
        probs = (coeff.float() @ protos.float().flatten(1)).sigmoid()
        masks = F.interpolate(
            probs.view(1, -1, *protos.shape[1:]), input_size, mode="bilinear", align_corners=False
        )[0]
        x1, y1, x2, y2 = box[:, :, None].unbind(1)
        inside_cols = (cols >= x1) & (cols < x2)
        inside_rows = (rows >= y1) & (rows < y2)
        masks *= inside_cols[:, None]
        masks *= inside_rows[:, :, None]
        masks = masks[:, top : height - bottom, left : width - right]
        if masks.shape[1:] == size:  # a resize to its own size changes no bit
            final = masks > threshold
        elif fast:
            masks = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
            final = masks > threshold
        else:
            final = _resize_binary(masks > threshold, size)
        encoded += encode_masks(final)
    return encoded


def _resize_binary(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) bool to (n, *size) bool by OpenCV's bilinear resize of 0/1 bytes."""
    import cv2  # only this mode needs it

    resized = [
        cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)
        for mask in masks.to(torch.uint8).cpu().numpy()
    ]
    return torch.from_numpy(np.stack(resized)).bool()


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """(n, h, w) bool to n COCO run-length encodings {"size": [h, w], "counts": bytes}."""
    # The encoder reads columns: transposing on the device leaves it nothing to copy.
    columns = masks.transpose(1, 2).contiguous().to(torch.uint8).cpu().numpy()
    return coco_mask.encode(columns.transpose(2, 1, 0))

"""Boxes: the one place where their arithmetic lives.

Place in the flow: shared by the losses (assignment, CIoU) and by post-processing (decoding, NMS).
Boxes are xyxy pixels unless a name says cxcywh.
Sources: CIoU from Zheng et al. (arXiv 1911.08287); anchor-free distances and their distribution
from Li et al. (arXiv 2006.04388), as used by YOLOv8 and YOLO-World (arXiv 2401.17270).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_EPS = 1e-7


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to (..., 4) corners, same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners to (..., 4) centre and size, same unit."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), -1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) xyxy to (...) area, squared unit; no +1 offset."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    w, h = (bottom_right - top_left).clamp(min=0).unbind(-1)
    inter = w * h
    return inter, box_area(boxes1) + box_area(boxes2) - inter + _EPS


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of boxes paired by broadcasting.

    Args: boxes1, boxes2: (..., 4) xyxy, broadcastable; (M, 1, 4) and (N, 4) give all pairs.
    Returns: (...) in [0, 1].
    """
    inter, union = _intersection_and_union(boxes1, boxes2)
    return inter / union


def box_ciou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Complete IoU of boxes paired by broadcasting: overlap, centre distance and aspect ratio.

    Args: boxes1, boxes2: (..., 4) xyxy in one unit, broadcastable.
    Returns: (...) in [-1, 1]; no gradient flows through the aspect-ratio weight.
    Source: arXiv 1911.08287, equations 9 to 12; eps 1e-7 on union, diagonal and heights.
    """
    inter, union = _intersection_and_union(boxes1, boxes2)
    iou = inter / union
    x1, y1, x2, y2 = boxes1.unbind(-1)
    u1, v1, u2, v2 = boxes2.unbind(-1)
    enclosing_w = torch.maximum(x2, u2) - torch.minimum(x1, u1)
    enclosing_h = torch.maximum(y2, v2) - torch.minimum(y1, v1)
    diagonal = enclosing_w.square() + enclosing_h.square() + _EPS
    centre = ((u1 + u2 - x1 - x2).square() + (v1 + v2 - y1 - y2).square()) / 4
    angle1 = torch.atan((x2 - x1) / (y2 - y1 + _EPS))
    angle2 = torch.atan((u2 - u1) / (v2 - v1 + _EPS))
    aspect = (4 / math.pi**2) * (angle2 - angle1).square()
    with torch.no_grad():
        alpha = aspect / (aspect - iou + (1 + _EPS))
    return (iou - centre / diagonal - alpha * aspect).clamp(-1, 1)


def distances_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes from points and their distances to the left, top, right and bottom sides.

    Args: points: (..., 2) xy; distances: (..., 4) ltrb, same unit, broadcastable.
    Returns: (..., 4) xyxy.
    """
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), -1)


def boxes_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Inverse of `distances_to_boxes`; negative where a point lies outside its box."""
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1)


def anchor_points(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Cell centres of all levels, levels concatenated, each row-major.

    Args: shapes: (h, w) of each level; strides: pixels per cell of each level.
    Returns: points (N, 2) float32 xy pixels; stride of each point (N,) float32.
    """
    points, point_strides = [], []
    for (h, w), stride in zip(shapes, strides, strict=True):
        x = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) * stride
        y = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) * stride
        points.append(torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).reshape(-1, 2))
        point_strides.append(x.new_full((h * w,), stride))
    return torch.cat(points), torch.cat(point_strides)


def expected_distances(box_dist: Tensor) -> Tensor:
    """Expectation of the four side distributions, in float32.

    Args: box_dist: (B, 4 * R, ...) side-major logits over R bins 0 .. R - 1.
    Returns: (B, 4, ...) ltrb in units of the stride.
    """
    bins = box_dist.shape[1] // 4
    probs = box_dist.float().unflatten(1, (4, bins)).softmax(2)
    values = torch.arange(bins, device=box_dist.device, dtype=torch.float32)
    return (probs * values.view(bins, *[1] * (box_dist.ndim - 2))).sum(2)


def decode_boxes(box_dist: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """Boxes of all anchor points from the raw head outputs, in float32.

    Args: box_dist: per level (B, 4 * R, h, w) logits; strides: pixels per cell of each level.
    Returns: (B, N, 4) xyxy pixels of the network input, not clipped.
    """
    shapes = [(level.shape[-2], level.shape[-1]) for level in box_dist]
    points, point_strides = anchor_points(shapes, strides, box_dist[0].device)
    logits = torch.cat([level.flatten(2) for level in box_dist], 2)
    distances = expected_distances(logits).transpose(1, 2) * point_strides[:, None]
    return distances_to_boxes(points, distances)

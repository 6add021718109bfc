"""Task-aligned assignment: which anchor points answer for which object.

Place in the flow: decoded boxes and class scores of a batch, with its objects -> `Assignment`, a
flat list of foreground anchor points; `criterion.py` builds all losses on it. No gradient.
Sources: TOOD (arXiv 2108.07755) with the settings of YOLOv8 and YOLO-World (arXiv 2401.17270).

Only (object, anchor point) pairs whose anchor lies inside the object are ever formed: about 1.5 %
of all pairs, so that nothing of the size images x objects x anchors exists.

Rules where the sources leave room:
- Candidates of an object are its (at most) ten best inside anchors with a metric above zero; equal
  metrics go by ascending anchor. A top-k over all anchors of the image, as in the original, fills
  up with arbitrary anchors of metric zero where an object has fewer than ten; nearly all of those
  lie outside it and are background anyway. Here none is taken.
- An anchor claimed by several objects goes to the one of best overlap among all objects of its
  image, even one that did not claim it; ties go to the first object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from yw_ray.boxes import box_ciou

ScoreAt = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(image, anchor, label), each (P,) int64 -> (P,) float32 class probabilities."""

_CONTEST_CHUNK = 1 << 19


class Assignment(NamedTuple):
    """F foreground anchor points, ordered by image, then anchor.

    image: (F,) int64; anchor: (F,) int64 among N; target: (F,) int64 row of the batch's boxes;
    weight: (F,) float32, the target score of the object's class.
    """

    image: Tensor
    anchor: Tensor
    target: Tensor
    weight: Tensor


def pairs_inside(
    boxes: Tensor, shapes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """All (object, anchor point) pairs with the anchor strictly inside the object.

    Args: boxes: (M, 4) xyxy pixels; shapes: (h, w) cells of each level; strides: pixels per cell.
    Returns: target (P,) and anchor (P,) int64, ordered by target, then anchor.
    """
    device = boxes.device
    levels = len(shapes)
    cells = torch.tensor([(w, h) for h, w in shapes], device=device)
    stride = torch.tensor(strides, device=device)
    # The cells around a box on each level, one cell too many at most; the exact test comes last.
    low = (boxes[:, None, :2] / stride[:, None] - 0.5).floor().clamp(min=0)
    high = (boxes[:, None, 2:] / stride[:, None] - 0.5).ceil()
    low = torch.minimum(low, cells).long()
    high = torch.minimum(high, cells - 1).long()
    extent = (high - low + 1).clamp(min=0)
    sizes = (extent[..., 0] * extent[..., 1]).flatten()
    run = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    offset = torch.arange(len(run), device=device) - (sizes.cumsum(0) - sizes)[run]
    columns = extent[..., 0].flatten()[run]
    row = offset // columns
    column = offset - row * columns + low[..., 0].flatten()[run]
    row = row + low[..., 1].flatten()[run]
    target = run // levels
    level = run - target * levels
    starts = torch.tensor([0, *(h * w for h, w in shapes[:-1])], device=device).cumsum(0)
    anchor = starts[level] + row * cells[level, 0] + column
    centre = (torch.stack((column, row), 1) + 0.5) * stride[level, None]
    box = boxes[target]
    sides = torch.minimum(centre - box[:, :2], box[:, 2:] - centre)
    inside = (sides.amin(1) > 1e-9).nonzero().squeeze(1)
    return target[inside], anchor[inside]


def _best_per_target(metric: Tensor, target: Tensor, num_targets: int, k: int) -> Tensor:
    """Positions of the k largest metrics (> 0) of each target; ties go to the lowest position."""
    # One stable integer sort: the bits of a positive float32 order like the float.
    key = (target << 32) - metric.view(torch.int32)
    order = key.sort(stable=True).indices
    counts = torch.bincount(target, minlength=num_targets)
    rank = torch.arange(len(target), device=target.device)
    rank = rank - (counts.cumsum(0) - counts)[target[order]]
    return order[rank < k]


def _best_overlap(candidates: Tensor, image: Tensor, boxes: Tensor, counts: Tensor) -> Tensor:
    """For each candidate box (C, 4) of `image` (C,): the object of best overlap in that image."""
    if not len(candidates):
        return image
    first = counts.cumsum(0) - counts
    most = int(counts.max())
    rank = torch.arange(most, device=image.device)
    best = []
    step = max(1, _CONTEST_CHUNK // most)
    for box, owner in zip(candidates.split(step), image.split(step), strict=True):
        exists = rank < counts[owner, None]
        target = torch.where(exists, first[owner, None] + rank, 0)
        overlap = box_ciou(box[:, None], boxes[target]).clamp(min=0)
        best.append(first[owner] + torch.where(exists, overlap, -1.0).argmax(1))
    return torch.cat(best)


@torch.no_grad()
def assign(
    pred_boxes: Tensor,
    score_at: ScoreAt,
    boxes: Tensor,
    labels: Tensor,
    image_index: Tensor,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    top_k: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Assign anchor points to objects by score^alpha * overlap^beta.

    Args:
        pred_boxes: (B, N, 4) float32 xyxy pixels.
        score_at: class probability of given (image, anchor, label) triples.
        boxes: (M, 4) float32 xyxy pixels; labels: (M,); image_index: (M,) ascending.
        shapes, strides: grid of each level; N is the number of all cells.
    Returns: the foreground; empty where no object holds an anchor point.
    Source: arXiv 2108.07755, section 3.2.
    """
    num_images, num_points = pred_boxes.shape[:2]
    num_targets = len(boxes)
    assert sum(h * w for h, w in shapes) == num_points
    boxes = boxes.float()

    def overlap_and_metric(image: Tensor, anchor: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        overlap = box_ciou(pred_boxes[image, anchor], boxes[target]).clamp(min=0)
        score = score_at(image, anchor, labels[target])
        return overlap, score.pow(alpha) * overlap.pow(beta)

    target, anchor = pairs_inside(boxes, shapes, strides)
    _, metric = overlap_and_metric(image_index[target], anchor, target)
    useful = (metric > 0).nonzero().squeeze(1)
    target, anchor, metric = target[useful], anchor[useful], metric[useful]
    chosen = _best_per_target(metric, target, num_targets, top_k)
    target, anchor = target[chosen], anchor[chosen]

    cell = image_index[target] * num_points + anchor
    claims = torch.bincount(cell, minlength=num_images * num_points)
    contested = (claims > 1).nonzero().squeeze(1)
    counts = torch.bincount(image_index, minlength=num_images)
    winner = _best_overlap(
        pred_boxes.reshape(-1, 4)[contested], contested // num_points, boxes, counts
    )
    owner = torch.full_like(claims, -1)
    owner[cell] = target
    owner[contested] = winner
    cell = (owner >= 0).nonzero().squeeze(1)
    target = owner[cell]
    image, anchor = cell // num_points, cell % num_points

    overlap, metric = overlap_and_metric(image, anchor, target)
    zeros = metric.new_zeros(num_targets)
    best_metric = zeros.scatter_reduce(0, target, metric, "amax")
    best_overlap = zeros.scatter_reduce(0, target, overlap, "amax")
    weight = metric * best_overlap[target] / (best_metric[target] + 1e-9)
    return Assignment(image, anchor, target, weight)

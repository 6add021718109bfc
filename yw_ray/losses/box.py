"""Box losses of foreground anchor points: complete IoU and distribution focal loss.

Place in the flow: foreground predictions and their target boxes -> one value an anchor point;
`criterion.py` weights and sums them.
Sources: CIoU, arXiv 1911.08287; distribution focal loss, arXiv 2006.04388, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yw_ray.boxes import box_ciou, boxes_to_distances, distances_to_boxes, expected_distances


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy to the two bins around a distance, weighted by nearness.

    Args: logits: (..., R) over bins 0 .. R - 1; distances: (...) in [0, R - 1), stride units.
    Returns: (...) loss.
    Source: arXiv 2006.04388, equation 6.
    """
    left = distances.floor()
    share = distances - left
    log_probs = logits.log_softmax(-1)
    bins = torch.stack((left, left + 1), -1).long()
    pair = log_probs.gather(-1, bins)
    return -(pair[..., 0] * (1 - share) + pair[..., 1] * share)


def box_losses(dist_logits: Tensor, points: Tensor, target_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Both box losses of F foreground anchor points, unweighted.

    Args:
        dist_logits: (F, 4 * R) side-major distance logits.
        points: (F, 2) anchor centres; target_boxes: (F, 4) xyxy; both in units of the stride.
    Returns: 1 - CIoU (F,) and the distribution focal loss summed over the four sides (F,).
    """
    bins = dist_logits.shape[1] // 4
    pred_boxes = distances_to_boxes(points, expected_distances(dist_logits))
    distances = boxes_to_distances(points, target_boxes).clamp(0, bins - 1 - 0.01)
    dfl = distribution_focal_loss(dist_logits.float().view(-1, 4, bins), distances)
    return 1 - box_ciou(pred_boxes, target_boxes), dfl.sum(1)

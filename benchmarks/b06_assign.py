"""B6: assignment by inside pairs against the dense form with a one-hot top-k.

    python benchmarks/b06_assign.py

Two images at 640 px with G objects each, 80 classes, one thread. Checks that owners and target
scores agree, then times. Not covered: a GPU.
"""

from __future__ import annotations

import torch
from memory import peak_mb, report_peak
from timing import interleave, report
from torch import Tensor
from torch.nn import functional as F

from yw_ray.boxes import anchor_points, box_ciou
from yw_ray.losses.assigner import Assignment, assign

STRIDES = (8, 16, 32)
SIDE, IMAGES, CLASSES = 640, 2, 80
SHAPES = [(SIDE // s, SIDE // s) for s in STRIDES]


def dense_assign(
    pred: Tensor, scores: Tensor, boxes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The textbook form on padded objects; labels (B, G), boxes (B, G, 4).

    Returns: foreground (B, N), object of each anchor (B, N), target scores (B, N, K).
    """
    points, _ = anchor_points(SHAPES, STRIDES)
    num_objects = boxes.shape[1]
    overlap = box_ciou(pred[:, None], boxes[:, :, None]).clamp(min=0)
    index = labels[:, :, None].expand(-1, -1, pred.shape[1])
    metric = scores.transpose(1, 2).gather(1, index).pow(0.5) * overlap.pow(6)
    sides = torch.cat((points - boxes[:, :, None, :2], boxes[:, :, None, 2:] - points), -1)
    inside = (sides.amin(-1) > 1e-9).float()
    top = (metric * inside).topk(10, dim=2).indices
    claims = F.one_hot(top, pred.shape[1]).sum(2)
    claims = torch.where(claims > 1, 0, claims) * inside
    several = claims.sum(1, keepdim=True) > 1
    best = F.one_hot(overlap.argmax(1), num_objects).transpose(1, 2)
    claims = torch.where(several, best.float(), claims)
    owner = claims.argmax(1)
    metric = metric * claims
    share = (overlap * claims).amax(2, keepdim=True) / (metric.amax(2, keepdim=True) + 1e-9)
    weight = (metric * share).amax(1)
    label = labels.gather(1, owner)
    targets = F.one_hot(label, CLASSES) * (claims.sum(1) > 0)[..., None] * weight[..., None]
    return claims.sum(1) > 0, owner, targets


def make_case(objects: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Objects of COCO-like sizes and predictions scattered around them."""
    g = torch.Generator().manual_seed(objects)
    extent = SIDE * (0.02 + 0.3 * torch.rand(IMAGES, objects, 2, generator=g) ** 2)
    corner = torch.rand(IMAGES, objects, 2, generator=g) * (SIDE - extent)
    boxes = torch.cat((corner, corner + extent), -1)
    labels = torch.randint(0, CLASSES, (IMAGES, objects), generator=g)
    points, strides = anchor_points(SHAPES, STRIDES)
    reach = strides[:, None] * 4 * torch.rand(IMAGES, len(points), 4, generator=g)
    pred = torch.cat((points - reach[..., :2], points + reach[..., 2:]), -1)
    scores = torch.rand(IMAGES, len(points), CLASSES, generator=g)
    return pred, scores, boxes, labels


def main() -> None:
    torch.set_num_threads(1)
    for objects in (30, 100, 300):
        pred, scores, boxes, labels = make_case(objects)
        flat, label = boxes.flatten(0, 1), labels.flatten()
        image = torch.arange(IMAGES).repeat_interleave(objects)

        def ours(
            pred: Tensor = pred,
            scores: Tensor = scores,
            flat: Tensor = flat,
            label: Tensor = label,
            image: Tensor = image,
        ) -> Assignment:
            return assign(
                pred, lambda i, a, k: scores[i, a, k], flat, label, image, SHAPES, STRIDES
            )

        def dense(
            pred: Tensor = pred,
            scores: Tensor = scores,
            boxes: Tensor = boxes,
            labels: Tensor = labels,
        ) -> object:
            return dense_assign(pred, scores, boxes, labels)

        fg = ours()
        owner, targets = dense_assign(pred, scores, boxes, labels)[1:]
        weight = targets.sum(2)
        got = torch.zeros_like(weight)
        got[fg.image, fg.anchor] = fg.weight
        torch.testing.assert_close(got, weight, rtol=1e-5, atol=1e-7)
        wanted = owner[fg.image, fg.anchor] + fg.image * objects
        assert torch.equal(fg.target, wanted), "anchors belong to other objects than in the peer"

        seconds = interleave({"pairs": ours, "dense": dense}, repeats=9)
        name = f"b06_assign_g{objects}"
        report(name, seconds["pairs"], seconds["dense"], 4.0, positives=len(fg.anchor))
        pairs_mb, dense_mb = ([peak_mb(call) for _ in range(5)] for call in (ours, dense))
        report_peak(f"{name}_peak", pairs_mb, dense_mb, 5.0)


if __name__ == "__main__":
    main()

"""B9: threshold on logits and NMS by prefixes against the full rule with NMS class by class.

    python benchmarks/b09_postprocess.py

One image at 640 px to 300 detections, one thread. Checks that the detections are identical, then
times. Not covered: a GPU, masks.
"""

from __future__ import annotations

import torch
from timing import interleave, report
from torch import Tensor
from torchvision.ops import nms

from yw_ray.boxes import anchor_points
from yw_ray.models.postprocess import Candidates, find_candidates, suppress
from yw_ray.recipe import EvalConfig

SIDE, STRIDES = 640, (8, 16, 32)
SHAPES = [(SIDE // s, SIDE // s) for s in STRIDES]
CONFIG = EvalConfig()


def full_rule(boxes: Tensor, cls_logits: list[Tensor]) -> Candidates:
    """Scores of all pairs, threshold, sort, best 30000, NMS of each class, best 300."""
    logits = torch.cat([x.flatten(1).T for x in cls_logits])
    scores = logits.sigmoid()
    anchors, labels = (scores > CONFIG.score_threshold).nonzero(as_tuple=True)
    found = logits[anchors, labels]
    order = found.argsort(descending=True, stable=True)[: CONFIG.nms_pre]
    anchors, labels, found = anchors[order], labels[order], found[order]
    keep = torch.zeros(len(found), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        kept = nms(boxes[anchors[rows]].double(), found[rows].double(), CONFIG.nms_iou)
        keep[rows[kept]] = True
    first = keep.nonzero().squeeze(1)[: CONFIG.max_detections]
    return Candidates(
        found[first], anchors[first] * logits.shape[1] + labels[first], logits.shape[1]
    )


def make_case(classes: int) -> tuple[Tensor, list[Tensor]]:
    """Boxes of 40 objects seen by all anchors near them; some 8 % of all pairs above 0.001."""
    g = torch.Generator().manual_seed(classes)
    points, _ = anchor_points(SHAPES, STRIDES)
    objects = torch.rand(40, 2, generator=g) * SIDE
    near = torch.cdist(points, objects).argmin(1)
    size = 20 + 150 * torch.rand(40, 2, generator=g)
    jitter = 1 + 0.1 * torch.randn(len(points), 4, generator=g)
    half = size[near].repeat(1, 2) / 2 * jitter
    boxes = torch.cat((objects[near] - half[:, :2], objects[near] + half[:, 2:]), 1)
    logits = 2.2 * torch.randn(len(points), classes, generator=g) - 10
    distance = torch.linalg.vector_norm(points - objects[near], dim=1)
    favourite = torch.randint(0, classes, (40,), generator=g)[near]
    logits[torch.arange(len(points)), favourite] += 8 * torch.exp(-((distance / 40) ** 2))
    levels = logits.split([h * w for h, w in SHAPES])
    return boxes, [
        x.view(*s, classes).permute(2, 0, 1) for x, s in zip(levels, SHAPES, strict=True)
    ]


def main() -> None:
    torch.set_num_threads(1)
    for classes in (80, 1203):
        boxes, cls_logits = make_case(classes)

        def ours(boxes: Tensor = boxes, cls_logits: list[Tensor] = cls_logits) -> Candidates:
            return suppress(find_candidates(cls_logits, CONFIG.score_threshold), boxes, CONFIG)

        def full(boxes: Tensor = boxes, cls_logits: list[Tensor] = cls_logits) -> Candidates:
            return full_rule(boxes, cls_logits)

        for got, want in zip(ours()[:2], full()[:2], strict=True):
            assert torch.equal(got, want), "detections differ from the full rule"
        candidates = len(find_candidates(cls_logits, CONFIG.score_threshold).logits)
        seconds = interleave({"prefix": ours, "full": full}, repeats=9)
        name = f"b09_postprocess_k{classes}"
        report(name, seconds["prefix"], seconds["full"], 4.0, candidates=candidates)


if __name__ == "__main__":
    main()

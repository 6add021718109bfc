"""B7: class loss without dense targets against one-hot targets and element-wise cross-entropy.

    python benchmarks/b07_loss.py

Forward and backward from given logits of two images at 640 px, one thread. Checks loss and
gradients, then times. Not covered: a GPU, half precision.
"""

from __future__ import annotations

import torch
from memory import peak_mb, report_peak
from timing import interleave, report
from torch import Tensor
from torch.nn import functional as F

from yw_ray.losses.classes import class_at, class_loss

SIDE, IMAGES, POSITIVES = 640, 2, 300


def dense_loss(
    cls_logits: tuple[Tensor, ...], image: Tensor, anchor: Tensor, label: Tensor, weight: Tensor
) -> Tensor:
    """Levels joined, scores of all classes, one-hot targets, element-wise cross-entropy."""
    levels = [x.permute(0, 2, 3, 1).flatten(1, 2) for x in cls_logits]
    logits = torch.cat(levels, 1)
    logits.detach().sigmoid()  # what a dense assigner reads
    labels = torch.zeros(logits.shape[:2], dtype=torch.long)
    labels[image, anchor] = label
    weights = torch.zeros(logits.shape[:2])
    weights[image, anchor] = weight
    targets = F.one_hot(labels, logits.shape[2]) * weights[..., None]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum()


def main() -> None:
    torch.set_num_threads(1)
    for classes in (80, 866, 1203):
        g = torch.Generator().manual_seed(classes)
        logits = tuple(
            torch.randn(IMAGES, SIDE // s, SIDE // s, classes, generator=g)
            .sub(4)
            .permute(0, 3, 1, 2)  # channels last, as the head lays them out
            .requires_grad_()
            for s in (8, 16, 32)
        )
        cells = IMAGES * sum((SIDE // s) ** 2 for s in (8, 16, 32))
        cell = torch.randperm(cells, generator=g)[:POSITIVES].sort().values
        image, anchor = cell // (cells // IMAGES), cell % (cells // IMAGES)
        label = torch.randint(0, classes, (POSITIVES,), generator=g)
        weight = torch.rand(POSITIVES, generator=g)
        scale = torch.ones(IMAGES)

        def step(loss: Tensor, logits: tuple[Tensor, ...] = logits) -> tuple[Tensor, ...]:
            return loss, *torch.autograd.grad(loss, logits)

        def ours(
            logits: tuple[Tensor, ...] = logits,
            args: tuple[Tensor, Tensor, Tensor] = (image, anchor, label),
            scale: Tensor = scale,
            weight: Tensor = weight,
        ) -> tuple[Tensor, ...]:
            class_at(tuple(x.detach() for x in logits), *args)  # what our assigner reads
            return step(class_loss(logits, scale, *args, weight), logits)

        def dense(
            logits: tuple[Tensor, ...] = logits,
            args: tuple[Tensor, ...] = (image, anchor, label, weight),
        ) -> tuple[Tensor, ...]:
            return step(dense_loss(logits, *args), logits)

        for got, want in zip(ours(), dense(), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        seconds = interleave({"sparse": ours, "dense": dense}, repeats=7)
        name, large = f"b07_loss_k{classes}", classes == 1203
        report(name, seconds["sparse"], seconds["dense"], 1.5 if large else 1.0)
        sparse_mb, dense_mb = ([peak_mb(call) for _ in range(5)] for call in (ours, dense))
        report_peak(f"{name}_peak", sparse_mb, dense_mb, 4.0 if large else 1.0)


if __name__ == "__main__":
    main()

"""Criterion: raw outputs and targets to named, weighted loss terms.

Place in the flow: the one door between model and losses; the loop adds nothing to `total`.
Sources: TOOD (arXiv 2108.07755), YOLOv8 and YOLO-World (arXiv 2401.17270); mask term from YOLACT
(arXiv 1904.02689). Everything is computed in float32, whatever autocast says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from yw_ray.boxes import anchor_points, decode_boxes
from yw_ray.losses.assigner import Assignment, assign
from yw_ray.losses.box import box_losses
from yw_ray.losses.classes import class_at, class_loss
from yw_ray.losses.mask import mask_loss
from yw_ray.models.outputs import RawOutputs


class Targets(Protocol):
    """The fields of a `Batch` that losses read; the number of images comes from the outputs."""

    @property
    def boxes(self) -> Tensor:
        """(M, 4) xyxy pixels of the network input."""

    @property
    def labels(self) -> Tensor:
        """(M,) positions in the image's text list."""

    @property
    def image_index(self) -> Tensor:
        """(M,) ascending."""

    @property
    def masks(self) -> Tensor | None:
        """(M, h, w) bool at the resolution of the prototypes, or None."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """All loss terms of a batch.

    Each group of images (one batch of the original's processes) is normalised by its own sum of
    target scores and multiplied by its number of images; groups are summed.
    """

    strides: tuple[int, ...] = (8, 16, 32)
    cls_weight: float = 0.5
    box_weight: float = 7.5
    dfl_weight: float = 0.375
    """1.5 / 4: all four sides are summed."""
    mask_weight: float = 1.0
    mask_area: float | None = None
    """Pixels that box areas are shares of in the mask term; None: the input's own number. The
    original takes 640 * 640 whatever the input (tests/parity/test_head_loss.py)."""
    skip_single_object_image: bool = False
    """The original leaves the first image of a batch out of the mask term when only its first
    object is matched (tests/parity/test_head_loss.py); here every image counts."""

    def __call__(
        self,
        outputs: RawOutputs,
        batch: Targets,
        groups: int = 1,
        text_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, weighted, with gradient, and detached figures.

        Args:
            outputs: B images of any size that the strides divide.
            batch: objects of these images.
            groups: number of equal consecutive runs of images.
            text_mask: (B, K), 0 for texts whose class loss is left out; default: all count.
        Returns: loss_cls, loss_bbox, loss_dfl, with mask outputs loss_mask, and total;
            num_positives (detached).
        Raises: ValueError if groups does not divide the number of images, or if mask outputs
            meet a batch without masks.
        """
        num_images = len(outputs.cls_logits[0])
        if num_images % groups:
            raise ValueError(f"groups {groups} must divide the {num_images} images of the batch")
        with torch.autocast(outputs.cls_logits[0].device.type, enabled=False):
            fg = self.assign(outputs, batch)
            terms = self.terms(outputs, batch, fg, num_images // groups, text_mask)
        total = torch.stack(list(terms.values())).sum()
        positives = torch.tensor(len(fg.anchor), device=fg.anchor.device)
        return {**terms, "total": total, "num_positives": positives}

    def assign(self, outputs: RawOutputs, batch: Targets) -> Assignment:
        """Foreground anchor points of the batch; no gradient."""
        shapes = [(level.shape[2], level.shape[3]) for level in outputs.cls_logits]
        with torch.no_grad():
            return assign(
                decode_boxes(outputs.box_dist, self.strides),
                lambda i, a, k: class_at(outputs.cls_logits, i, a, k).sigmoid(),
                batch.boxes,
                batch.labels,
                batch.image_index,
                shapes,
                self.strides,
            )

    def terms(
        self,
        outputs: RawOutputs,
        batch: Targets,
        fg: Assignment,
        per_group: int,
        text_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted terms for a given foreground; compiles as one graph but for the mask term.

        Args: per_group: images of each group. Others as in `__call__`.
        """
        # Normaliser of each group, and the factor images / normaliser of each foreground anchor.
        group = fg.image // per_group
        groups = len(outputs.cls_logits[0]) // per_group
        norm = fg.weight.new_zeros(groups).index_add(0, group, fg.weight).clamp(min=1)
        factor = fg.weight * (per_group / norm)[group]

        loss_cls = class_loss(
            outputs.cls_logits,
            (per_group / norm).repeat_interleave(per_group),
            fg.image,
            fg.anchor,
            batch.labels[fg.target],
            factor,
            text_mask,
        )

        shapes = [(level.shape[2], level.shape[3]) for level in outputs.box_dist]
        points, strides = anchor_points(shapes, self.strides, fg.anchor.device)
        stride = strides[fg.anchor, None]
        dist = torch.cat([level.flatten(2) for level in outputs.box_dist], 2).transpose(1, 2)
        iou_loss, dfl = box_losses(
            dist[fg.image, fg.anchor],
            points[fg.anchor] / stride,
            batch.boxes[fg.target].float() / stride,
        )
        terms = {
            "loss_cls": self.cls_weight * loss_cls,
            "loss_bbox": self.box_weight * (factor * iou_loss).sum(),
            "loss_dfl": self.dfl_weight * (factor * dfl).sum(),
        }
        if outputs.mask_coeffs is not None:
            terms["loss_mask"] = self.mask_weight * self._mask_term(outputs, batch, fg, per_group)
        return terms

    def _mask_term(
        self, outputs: RawOutputs, batch: Targets, fg: Assignment, per_group: int
    ) -> Tensor:
        """Not multiplied by the number of images: it is a sum over images already."""
        assert outputs.mask_coeffs is not None and outputs.protos is not None
        if batch.masks is None:
            raise ValueError(
                "a segmenting model needs masks in the batch, got none; prepare polygons and set "
                "model.segmentation only for data that has them"
            )
        height, width = outputs.cls_logits[0].shape[2:]
        counts = None
        if self.skip_single_object_image:
            num_images = len(outputs.protos)
            objects = torch.bincount(batch.image_index, minlength=num_images)
            before = (objects.cumsum(0) - objects)[fg.image // per_group * per_group]
            counts = fg.image.new_zeros(num_images).index_add(0, fg.image, fg.target - before) > 0
        coeffs = torch.cat([level.flatten(2) for level in outputs.mask_coeffs], 2)
        return mask_loss(
            coeffs.transpose(1, 2)[fg.image, fg.anchor],
            outputs.protos,
            fg.image,
            fg.target,
            batch.boxes,
            batch.masks,
            (height * self.strides[0], width * self.strides[0]),
            area=self.mask_area,
            counts=counts,
        )

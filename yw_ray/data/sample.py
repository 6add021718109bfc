"""Record, Sample and Batch: the values that travel from shard to loss.

Place in the flow: shards -> Record -> (decode, augment) -> Sample -> (collate) -> Batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Polygons:
    """Polygons of M objects as flat ragged arrays.

    points: (P, 2) float32 pixels; part_sizes: (Q,) int32 vertices of each part;
    parts_per_object: (M,) int32 parts of each object (0: the object has no polygon).
    """

    points: np.ndarray
    part_sizes: np.ndarray
    parts_per_object: np.ndarray

    def __len__(self) -> int:
        return len(self.parts_per_object)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One shard row: an encoded image and its annotations, order as in the source file.

    jpeg: encoded bytes as in the source; height, width: of the decoded image;
    boxes: (M, 4) float32 xyxy pixels of the json, not clipped; refined_boxes: (M, 4) float32
    extremes of the polygons, NaN rows where an object has none; labels: (M,) int64 into the
    vocabulary's classes; crowd: (M,) bool; polygons: of all M objects.
    """

    image_id: int
    jpeg: bytes
    height: int
    width: int
    boxes: np.ndarray
    refined_boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    polygons: Polygons


@dataclass(frozen=True, slots=True, kw_only=True)
class Letterbox:
    """How an evaluation image was fitted, to map boxes back.

    original_size: (h, w); scale: (w, h) factors applied; pad: (top, bottom, left, right) pixels.
    """

    original_size: tuple[int, int]
    scale: tuple[float, float]
    pad: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A decoded image with its objects.

    image: (H, W, 3) uint8 BGR; boxes: (M, 4) float32 xyxy pixels; labels: (M,) int64, dataset
    classes until texts are sampled, then positions in `text_ids`; polygons: of the M objects or
    None; masks: (M, h, w) uint8 0/1 after rasterising or None; text_ids: (K,) int64 into
    `Vocabulary.texts` after sampling or None; letterbox: evaluation only.
    """

    image_id: int
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    polygons: Polygons | None = None
    masks: np.ndarray | None = None
    text_ids: np.ndarray | None = None
    letterbox: Letterbox | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one forward sees.

    images: (B, 3, H, W) uint8 BGR; text_ids: (B, K) int64 into `Vocabulary.texts`, or None where
    prompts are fixed; boxes: (M, 4) float32 xyxy pixels; labels: (M,) int64 positions in the
    image's text list; image_index: (M,) int64 ascending; masks: (M, h, w) bool or None;
    image_ids: (B,) int64; letterboxes: evaluation only.
    """

    images: torch.Tensor
    text_ids: torch.Tensor | None
    boxes: torch.Tensor
    labels: torch.Tensor
    image_index: torch.Tensor
    image_ids: torch.Tensor
    masks: torch.Tensor | None = None
    letterboxes: tuple[Letterbox, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """A worker's share of one optimiser step.

    micro: batches to pass through the model one after the other; each holds whole lanes, lane by
    lane; groups: lanes in each of them, every lane being one unit of loss normalisation.
    """

    epoch: int
    step: int
    micro: tuple[Batch, ...]
    groups: int

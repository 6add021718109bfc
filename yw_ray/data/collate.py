"""Samples -> Batch: images as uint8 planes, targets as flat rows.

Place in the flow: last step on the CPU; the device casts and scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from yw_ray.data.sample import Batch, Letterbox, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples of one image size.

    Returns: Batch with images (B, 3, H, W) uint8 BGR; text_ids, masks and letterboxes only where
    every sample has them. Raises: ValueError for no samples or different sizes.
    """
    if not samples:
        raise ValueError("collate: got no samples, expected at least one")
    shapes = {s.image.shape for s in samples}
    if len(shapes) > 1:
        raise ValueError(
            f"collate: got image shapes {sorted(shapes)}, expected one; letterbox first"
        )
    height, width, _ = samples[0].image.shape
    planes = np.empty((len(samples), 3, height, width), np.uint8)
    for out, sample in zip(planes, samples, strict=True):
        cv2.split(sample.image, mv=list(out))  # writes into the planes
    counts = [len(s.boxes) for s in samples]
    return Batch(
        images=torch.from_numpy(planes),
        text_ids=_stack([s.text_ids for s in samples]),
        boxes=torch.from_numpy(np.concatenate([s.boxes for s in samples])),
        labels=torch.from_numpy(np.concatenate([s.labels for s in samples])),
        image_index=torch.from_numpy(np.repeat(np.arange(len(samples)), counts)),
        image_ids=torch.tensor([s.image_id for s in samples], dtype=torch.int64),
        masks=_join_masks([s.masks for s in samples]),
        letterboxes=_all_or_none([s.letterbox for s in samples]),
    )


def _stack(rows: list[np.ndarray | None]) -> torch.Tensor | None:
    present = [r for r in rows if r is not None]
    assert len(present) in (0, len(rows)), "some samples have texts and some have not"
    return torch.from_numpy(np.stack(present)) if present else None


def _join_masks(masks: list[np.ndarray | None]) -> torch.Tensor | None:
    present = [m for m in masks if m is not None]
    assert len(present) in (0, len(masks)), "some samples have masks and some have not"
    return torch.from_numpy(np.concatenate(present)).bool() if present else None


def _all_or_none(letterboxes: list[Letterbox | None]) -> tuple[Letterbox, ...] | None:
    present = [x for x in letterboxes if x is not None]
    return tuple(present) if len(present) == len(letterboxes) else None

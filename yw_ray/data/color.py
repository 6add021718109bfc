"""Pixel transforms that leave the geometry alone: HSV jitter, blur, median, grey, CLAHE.

Place in the flow: after mixing and affine, before the flip; images are BGR uint8.
Source: published YOLO-World recipes (HSV jitter; rare transforms at library defaults).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_BLUR_SIZES = (3, 5, 7)
_CLAHE_CLIP = (1.0, 4.0)
_CLAHE_GRID = (8, 8)
_VECTOR_PIXELS = 32  # of the builds that the numbers were recorded with
_LONGEST_VECTOR = 64


@dataclass(frozen=True, slots=True)
class JitterDraws:
    """blur, median: kernel sizes, 0 for none; grey: whether; clahe: clip limit, 0 for none."""

    blur: int = 0
    median: int = 0
    grey: bool = False
    clahe: float = 0.0


def draw_jitter(rng: np.random.Generator, chance: float) -> JitterDraws:
    """Each of the four with its own coin of the given chance."""
    blur, median, grey, clahe = rng.random(4) < chance
    return JitterDraws(
        blur=_BLUR_SIZES[rng.integers(len(_BLUR_SIZES))] if blur else 0,
        median=_BLUR_SIZES[rng.integers(len(_BLUR_SIZES))] if median else 0,
        grey=bool(grey),
        clahe=float(rng.uniform(*_CLAHE_CLIP)) if clahe else 0.0,
    )


def jitter(image: np.ndarray, draws: JitterDraws) -> np.ndarray:
    """(H, W, 3) uint8 BGR through the drawn transforms, in the order blur, median, grey, CLAHE.

    Grey and CLAHE read the channels as RGB although they are BGR: the original does.
    """
    if draws.blur:
        image = cv2.blur(image, (draws.blur, draws.blur))
    if draws.median:
        image = cv2.medianBlur(np.ascontiguousarray(image), draws.median)
    if draws.grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if draws.clahe:
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        equalise = cv2.createCLAHE(clipLimit=draws.clahe, tileGridSize=_CLAHE_GRID)
        lab[..., 0] = equalise.apply(np.ascontiguousarray(lab[..., 0]))
        image = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return image


def draw_hsv(rng: np.random.Generator, deltas: tuple[float, float, float]) -> np.ndarray:
    """(3,) float64 gains of hue, saturation, value: 1 + U(-1, 1) * delta."""
    return 1 + rng.uniform(-1, 1, 3) * np.asarray(deltas)


def hsv(image: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 BGR with the 8-bit hue, saturation and value multiplied by `gains`."""
    levels = np.arange(256, dtype=np.float64)
    tables = (
        (levels * gains[0]) % 180,
        np.clip(levels * gains[1], 0, 255),
        np.clip(levels * gains[2], 0, 255),
    )
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    for plane, table in zip(planes, tables, strict=True):
        cv2.LUT(plane, table.astype(np.uint8), dst=plane)
    changed = cv2.merge(planes)
    vectors = changed.shape[1] - changed.shape[1] % _VECTOR_PIXELS
    if vectors == changed.shape[1]:
        return _to_bgr_by_vectors(changed)
    # The left-over columns of a row are rounded where vectors truncate.
    out = cv2.cvtColor(np.ascontiguousarray(changed[:, vectors:]), cv2.COLOR_HSV2BGR)
    return np.concatenate((_to_bgr_by_vectors(changed[:, :vectors]), out), axis=1)


def _to_bgr_by_vectors(image: np.ndarray) -> np.ndarray:
    """HSV to BGR as one row of whole vectors: the same bytes on every processor."""
    row = np.ascontiguousarray(image).reshape(1, -1, 3)
    count = row.shape[1]
    if not count:
        return image
    if count % _LONGEST_VECTOR:
        row = np.pad(row, ((0, 0), (0, -count % _LONGEST_VECTOR), (0, 0)))
    return cv2.cvtColor(row, cv2.COLOR_HSV2BGR)[:, :count].reshape(image.shape)

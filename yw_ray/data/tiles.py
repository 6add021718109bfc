"""Pictures drawn straight into the output, and labels that follow the pixels as drawn.

Place in the flow: the fast law's renderer, under mosaic and stage 2. A canvas exists as numbers
only: each picture has a place on it, the affine maps canvas to output, and one crop and resize
per picture fills its share of the output.
Source: own; equal to canvas + warp up to whole-pixel rounding of crops (tests/unit/test_mixing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from yw_ray.data.geometry import (
    MIN_AREA_RATIO_PLAIN,
    MIN_AREA_RATIO_REFINED,
    box_areas,
    keep_boxes,
    resize,
    visible_boxes,
)
from yw_ray.data.masks import map_points, select
from yw_ray.data.sample import Polygons, Sample

_CANDIDATES = 8
_SUBPIXEL_BITS = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture's place on the canvas; pairs are (x, y).

    resized: (w, h) whole pixels; corner: canvas position of the resized picture's corner;
    window: ((left, right), (top, bottom)) of what the canvas shows of it; shrink_by_area: area
    interpolation where it gets smaller.
    """

    sample: Sample
    resized: tuple[int, int]
    corner: tuple[int, int]
    window: tuple[tuple[int, int], tuple[int, int]]
    shrink_by_area: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Picture pixels (w, h)."""
        return self.sample.image.shape[1], self.sample.image.shape[0]

    @property
    def scale(self) -> tuple[float, float]:
        """Canvas pixels per picture pixel."""
        return self.resized[0] / self.size[0], self.resized[1] / self.size[1]


@dataclass(frozen=True, slots=True)
class CanvasMap:
    """Canvas to output: X = scale * c + offset, the same scale on both axes; offset is (x, y)."""

    scale: float
    offset: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Span:
    """Along one axis: picture pixels [start, stop) land on output pixels [out_start, out_stop).

    The output end may lie outside the output; what sticks out is cut off.
    """

    start: int
    stop: int
    out_start: int
    out_stop: int


def fit_span(
    need: tuple[float, float], limit: tuple[int, int], scale: float, offset: float, size: int
) -> Span | None:
    """Whole-pixel crop and place of a picture under X = scale * x + offset.

    Args:
        need: interval of the picture that must be drawn; limit: interval that may be used.
        size: output pixels; nothing outside [0, size] needs drawing.
    Returns: None where less than half a pixel would show. Where the picture goes on beyond what
    is needed, the cut falls where the rounding error is least.
    """
    low, high = max(need[0], -offset / scale), min(need[1], (size - offset) / scale)
    start, stop = max(math.floor(low), limit[0]), min(math.ceil(high), limit[1])
    if start >= stop:
        return None

    def off_grid(x: int) -> float:
        at = scale * x + offset
        return abs(at - round(at))

    start = min(range(start, max(start - _CANDIDATES, limit[0]) - 1, -1), key=off_grid)
    stop = min(range(stop, min(stop + _CANDIDATES, limit[1]) + 1), key=off_grid)
    out_start, out_stop = round(scale * start + offset), round(scale * stop + offset)
    if out_stop <= 0 or out_start >= size or out_start == out_stop:
        return None
    return Span(start, stop, out_start, out_stop)


def _shown(tile: Tile, axis: int) -> tuple[int, int]:
    """Whole picture pixels that the canvas shows."""
    low, high = ((edge - tile.corner[axis]) / tile.scale[axis] for edge in tile.window[axis])
    return max(math.floor(low + 1e-6), 0), min(math.ceil(high - 1e-6), tile.size[axis])


def _fit(
    tile: Tile, axis: int, seen: tuple[float, float], scale: float, offset: float, size: int
) -> tuple[Span | None, float, float]:
    """Span of the canvas interval `seen`, and the canvas-to-output scale and offset as drawn."""
    per_pixel, corner = tile.scale[axis], tile.corner[axis]
    need = ((seen[0] - corner) / per_pixel, (seen[1] - corner) / per_pixel)
    span = fit_span(need, _shown(tile, axis), scale * per_pixel, scale * corner + offset, size)
    if span is None:
        return None, scale, offset
    drawn = (span.out_stop - span.out_start) / (span.stop - span.start) / per_pixel
    return span, drawn, span.out_start - drawn * (span.start * per_pixel + corner)


def _patch(tile: Tile, x: Span, y: Span) -> np.ndarray:
    crop = tile.sample.image[y.start : y.stop, x.start : x.stop]
    return resize(crop, y.out_stop - y.out_start, x.out_stop - x.out_start, tile.shrink_by_area)


def _cut(out: np.ndarray, patch: np.ndarray, left: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The common part of `out` and of `patch` laid with its corner at (left, top), as two views."""
    y0, y1 = max(top, 0), min(top + patch.shape[0], out.shape[0])
    x0, x1 = max(left, 0), min(left + patch.shape[1], out.shape[1])
    return out[y0:y1, x0:x1], patch[y0 - top : y1 - top, x0 - left : x1 - left]


def draw_tile(out: np.ndarray, tile: Tile, to_out: CanvasMap) -> tuple[float, ...]:
    """Draw one picture into `out`.

    Returns: scale x, scale y, offset x, offset y from canvas to output, as drawn after rounding.
    """
    size = out.shape[0]
    x, scale_x, offset_x = _fit(tile, 0, tile.window[0], to_out.scale, to_out.offset[0], size)
    y, scale_y, offset_y = _fit(tile, 1, tile.window[1], to_out.scale, to_out.offset[1], size)
    if x is None or y is None:
        return to_out.scale, to_out.scale, *to_out.offset
    view, patch = _cut(out, _patch(tile, x, y), x.out_start, y.out_start)
    view[:] = patch
    return scale_x, scale_y, offset_x, offset_y


def draw_mirrored(
    out: np.ndarray, tile: Tile, outline: np.ndarray, to_out: CanvasMap, canvas: int
) -> tuple[float, ...]:
    """Draw one object a second time, mirrored about the canvas's vertical axis.

    outline: (n, 2) its contour on the canvas, not mirrored, which cuts the pixels out.
    Returns: as `draw_tile`, the mirroring included (scale x is negative).
    """
    size, a = out.shape[0], to_out.scale
    (left, top), (right, bottom) = outline.min(axis=0), outline.max(axis=0)
    # From the right edge of the output leftwards the mirrored object runs like the original.
    from_right = size - a * canvas - to_out.offset[0]
    x, scale_x, offset_x = _fit(tile, 0, (float(left), float(right)), a, from_right, size)
    y, scale_y, offset_y = _fit(tile, 1, (float(top), float(bottom)), a, to_out.offset[1], size)
    drawn = (-scale_x, scale_y, size - offset_x, offset_y)
    if x is None or y is None:
        return drawn
    x0, y0 = size - x.out_stop, y.out_start
    patch = cv2.flip(_patch(tile, x, y), 1)
    # Pixel i covers [i, i + 1): the drawing function wants its middle.
    points = outline * np.array(drawn[:2]) + np.array(drawn[2:]) - np.array((x0 + 0.5, y0 + 0.5))
    mask = np.zeros(patch.shape[:2], np.uint8)
    fixed = np.round(points * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], (1,), shift=_SUBPIXEL_BITS)
    view, patch = _cut(out, patch, x0, y0)
    _, mask = _cut(out, mask, x0, y0)
    if view.size:
        cv2.copyTo(patch, np.ascontiguousarray(mask), dst=view)
    return drawn


def labels_as_drawn(
    named: Sample,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    polygons: Polygons | None,
    maps: np.ndarray,
) -> Sample:
    """The finished sample: labels from canvas to output, objects hardly visible dropped.

    Args:
        named: gives the image id; image: (S, S, 3); boxes: (M, 4) on the canvas.
        maps: (M, 4) scale x, y and offset x, y of each object.
    """
    size = image.shape[0]
    scale, offset = maps[:, :2], maps[:, 2:]
    corners = boxes.reshape(-1, 2, 2) * scale[:, None] + offset[:, None]
    full = np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1).astype(np.float32)
    if polygons is None:
        visible, min_ratio = np.clip(full, 0, size), MIN_AREA_RATIO_PLAIN
    else:
        polygons = map_points(polygons, scale, offset)
        visible, min_ratio = visible_boxes(polygons, size), MIN_AREA_RATIO_REFINED
    keep = keep_boxes(visible, box_areas(full), min_ratio)
    return replace(
        named,
        image=image,
        boxes=visible[keep],
        labels=labels[keep],
        polygons=None if polygons is None else select(polygons, keep),
    )

"""Pictures drawn straight into the output, without the canvas.

Place in the flow: the fast law's renderer, under mosaic and stage 2. A canvas exists as numbers
only: each picture has a place on it, the affine maps canvas to output, and each picture fills its
share of the output by one crop and resize, or by one warp where whole pixels are too coarse.
Pixel i covers [i, i + 1), so labels lie exactly on the pixels; the original's warp takes i for the
pixel's middle, which moves its pictures by (1 - scale) / 2 pixels against its labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from yw_ray.data.sample import Sample

TOLERANCE_PX = 0.125
_CANDIDATES = 12
_SUBPIXEL_BITS = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture's place on the canvas; pairs are (x, y).

    resized: (w, h) whole pixels; corner: canvas position of the resized picture's corner;
    window: ((left, right), (top, bottom)) of what the canvas shows of it.
    """

    sample: Sample
    resized: tuple[int, int]
    corner: tuple[int, int]
    window: tuple[tuple[int, int], tuple[int, int]]

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
    """Canvas to output: X = scale * c + offset; pairs are (x, y), a negative scale mirrors."""

    scale: tuple[float, float]
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


def fit_span(scale: float, offset: float, length: int, wanted: tuple[int, int]) -> Span | None:
    """A whole-pixel crop that covers the wanted output pixels under X = scale * x + offset.

    Args:
        length: pixels of the picture; wanted: first and last + 1 output pixel.
    Returns: None unless both ends of the crop land within 1/8 px of whole pixels. Where the
    picture goes on beyond what is wanted, an end may lie a few pixels further out.
    """

    def off_grid(x: int) -> float:
        at = scale * x + offset
        return abs(at - round(at))

    first = math.floor((wanted[0] + TOLERANCE_PX - offset) / scale)
    last = math.ceil((wanted[1] - TOLERANCE_PX - offset) / scale)
    starts = range(max(first - _CANDIDATES, 0), min(first, length) + 1)
    stops = range(max(last, 0), min(last + _CANDIDATES, length) + 1)
    if not starts or not stops:
        return None
    start, stop = min(starts, key=off_grid), min(stops, key=off_grid)
    if start >= stop or max(off_grid(start), off_grid(stop)) > TOLERANCE_PX:
        return None
    return Span(start, stop, round(scale * start + offset), round(scale * stop + offset))


def _picture_to_output(tile: Tile, to_out: CanvasMap, axis: int) -> tuple[float, float]:
    """Scale and offset of X = scale * x + offset from picture to output pixels."""
    scale, offset = to_out.scale[axis], to_out.offset[axis]
    return scale * tile.scale[axis], scale * tile.corner[axis] + offset


def _warp(
    image: np.ndarray,
    maps: list[tuple[float, float]],
    wanted: list[tuple[int, int]],
) -> np.ndarray:
    """The wanted output rectangle of a picture under a scale and offset per axis (x, y)."""
    back = np.zeros((2, 3))
    for axis, ((scale, offset), (start, _)) in enumerate(zip(maps, wanted, strict=True)):
        back[axis, axis] = 1 / scale
        back[axis, 2] = (start + 0.5 - offset) / scale - 0.5
    (x0, x1), (y0, y1) = wanted
    return cv2.warpAffine(
        image,
        back,
        (x1 - x0, y1 - y0),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def draw_tile(out: np.ndarray, tile: Tile, to_out: CanvasMap) -> None:
    """Draw one picture into its whole output pixels; the places are exact to 1/8 px."""
    size, image = out.shape[0], tile.sample.image
    wanted, maps, spans = [], [], []
    for axis in (0, 1):
        low, high = (
            round(to_out.scale[axis] * edge + to_out.offset[axis]) for edge in tile.window[axis]
        )
        wanted.append((max(low, 0), min(high, size)))
        maps.append(_picture_to_output(tile, to_out, axis))
        if wanted[axis][0] >= wanted[axis][1]:
            return
        spans.append(fit_span(*maps[axis], tile.size[axis], wanted[axis]))
    (x0, x1), (y0, y1) = wanted
    x, y = spans
    if x is None or y is None:
        out[y0:y1, x0:x1] = _warp(image, maps, wanted)
        return
    crop = image[y.start : y.stop, x.start : x.stop]
    patch = cv2.resize(crop, (x.out_stop - x.out_start, y.out_stop - y.out_start))
    out[y0:y1, x0:x1] = patch[
        y0 - y.out_start : y1 - y.out_start, x0 - x.out_start : x1 - x.out_start
    ]


def draw_cut_out(out: np.ndarray, tile: Tile, outline: np.ndarray, to_out: CanvasMap) -> None:
    """Draw what lies inside an outline of the picture a second time, elsewhere.

    outline: (n, 2) contour on the canvas; to_out: may mirror.
    """
    points = outline * np.array(to_out.scale) + np.array(to_out.offset)
    low = np.maximum(np.floor(points.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0)), out.shape[0]).astype(int)
    if (low >= high).any():
        return
    (x0, y0), (x1, y1) = low, high
    maps = [_picture_to_output(tile, to_out, axis) for axis in (0, 1)]
    patch = _warp(tile.sample.image, maps, [(x0, x1), (y0, y1)])
    # A margin of one pixel: the drawing function smears along the border it clips at. And it takes
    # whole numbers for the middle of a pixel.
    mask = np.zeros((y1 - y0 + 2, x1 - x0 + 2), np.uint8)
    fixed = np.round((points - low + 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], (1,), shift=_SUBPIXEL_BITS)
    cv2.copyTo(patch, mask[1:-1, 1:-1], dst=out[y0:y1, x0:x1])

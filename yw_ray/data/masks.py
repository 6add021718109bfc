"""Ragged polygons: from COCO lists, to boxes, to one contour per object, to bitmaps.

Place in the flow: annotations build Polygons once; `load` merges the parts of each object; the
transforms move the points; segmentation rasterises what is left at the end.
Source: mask-refine of YOLOv5/YOLOv8 training as used by YOLO-World (arXiv 2401.17270).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from yw_ray.data.sample import Polygons


def empty_polygons(num_objects: int = 0) -> Polygons:
    """Polygons of objects that have none."""
    return Polygons(
        points=np.zeros((0, 2), np.float32),
        part_sizes=np.zeros(0, np.int32),
        parts_per_object=np.zeros(num_objects, np.int32),
    )


def polygons_from_coco(segmentations: Sequence[Any]) -> Polygons:
    """Polygons of COCO `segmentation` fields, one per object.

    Parts need an even number >= 6 of coordinates; others are left out. Run-length encodings,
    empty lists and None give an object without polygon.
    """
    parts: list[np.ndarray] = []
    per_object = np.zeros(len(segmentations), np.int32)
    for i, segmentation in enumerate(segmentations):
        if not isinstance(segmentation, list):
            continue
        for part in segmentation:
            if len(part) >= 6 and len(part) % 2 == 0:
                parts.append(np.asarray(part, np.float32).reshape(-1, 2))
                per_object[i] += 1
    if not parts:
        return empty_polygons(len(segmentations))
    return Polygons(
        points=np.concatenate(parts),
        part_sizes=np.array([len(p) for p in parts], np.int32),
        parts_per_object=per_object,
    )


def contours(points: np.ndarray, sizes: np.ndarray) -> Polygons:
    """Polygons of one part per object. points: (P, 2); sizes: (M,) vertices of each object."""
    return Polygons(
        points=points,
        part_sizes=np.asarray(sizes, np.int32),
        parts_per_object=np.ones(len(sizes), np.int32),
    )


def points_per_object(polygons: Polygons) -> np.ndarray:
    """(M,) int64 number of vertices of each object."""
    return np.diff(_object_ends(polygons), prepend=0)


def _object_ends(polygons: Polygons) -> np.ndarray:
    part_ends = np.concatenate(([0], np.cumsum(polygons.part_sizes, dtype=np.int64)))
    return part_ends[np.cumsum(polygons.parts_per_object, dtype=np.int64)]


def _ragged_rows(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Row numbers of the runs start..start+size, one after the other."""
    ends = np.cumsum(sizes, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - sizes), sizes)


def select(polygons: Polygons, keep: np.ndarray) -> Polygons:
    """Polygons of the chosen objects. keep: (M,) bool, or indices in the wanted order."""
    objects = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
    num_parts = polygons.parts_per_object[objects].astype(np.int64)
    first_part = np.cumsum(polygons.parts_per_object, dtype=np.int64) - polygons.parts_per_object
    parts = _ragged_rows(first_part[objects], num_parts)
    sizes = polygons.part_sizes[parts].astype(np.int64)
    first_point = np.cumsum(polygons.part_sizes, dtype=np.int64) - polygons.part_sizes
    rows = _ragged_rows(first_point[parts], sizes)
    return Polygons(
        points=polygons.points[rows],
        part_sizes=polygons.part_sizes[parts],
        parts_per_object=polygons.parts_per_object[objects],
    )


def concat(several: Sequence[Polygons]) -> Polygons:
    """Objects of all, in order."""
    return Polygons(
        points=np.concatenate([p.points for p in several]),
        part_sizes=np.concatenate([p.part_sizes for p in several]),
        parts_per_object=np.concatenate([p.parts_per_object for p in several]),
    )


def map_points(polygons: Polygons, scale: np.ndarray, offset: np.ndarray) -> Polygons:
    """Scale and shift. scale, offset: (2,) for all or (M, 2) per object, order x, y."""
    if scale.ndim == 2:
        counts = points_per_object(polygons)
        scale, offset = np.repeat(scale, counts, axis=0), np.repeat(offset, counts, axis=0)
    points = polygons.points * scale.astype(np.float32) + offset.astype(np.float32)
    return Polygons(points, polygons.part_sizes, polygons.parts_per_object)


def extremes(polygons: Polygons) -> np.ndarray:
    """(M, 4) float32 xyxy box around all points of each object; NaN rows where there are none."""
    boxes = np.full((len(polygons), 4), np.nan, np.float32)
    counts = points_per_object(polygons)
    filled = counts > 0
    if filled.any():
        starts = (np.cumsum(counts) - counts)[filled]
        boxes[filled, :2] = np.minimum.reduceat(polygons.points, starts, axis=0)
        boxes[filled, 2:] = np.maximum.reduceat(polygons.points, starts, axis=0)
    return boxes


def merge_parts(polygons: Polygons) -> Polygons:
    """One contour per object: its parts joined at nearest vertices, there and back.

    The vertex order is the original's, which matters where contours are resampled by vertex
    number. Objects of one part are unchanged; objects without polygon stay without.
    """
    if not (polygons.parts_per_object > 1).any():
        return polygons
    parts = np.split(polygons.points, np.cumsum(polygons.part_sizes)[:-1])
    merged: list[np.ndarray] = []
    first = 0
    for n in polygons.parts_per_object:
        if n:
            merged.append(_join(parts[first : first + n]) if n > 1 else parts[first])
        first += n
    return Polygons(
        points=np.concatenate(merged),
        part_sizes=np.array([len(m) for m in merged], np.int32),
        parts_per_object=np.minimum(polygons.parts_per_object, 1).astype(np.int32),
    )


def _join(parts: list[np.ndarray]) -> np.ndarray:
    last = len(parts) - 1
    exits, entries = [0] * (last + 1), [0] * (last + 1)
    for i in range(last):
        gap = parts[i][:, None].astype(np.float64) - parts[i + 1][None]
        nearest = int(np.argmin((gap**2).sum(axis=2)))
        exits[i], entries[i + 1] = divmod(nearest, len(parts[i + 1]))
    outward = [_closed(parts[0], exits[0])]
    homeward = []
    for i in range(1, last):
        a, b, points = entries[i], exits[i], parts[i]
        if a > b:
            # The original swaps the numbers and turns the order without renumbering, so that
            # these joins miss the nearest vertices; test_pipeline holds cases of it.
            a, b, points = b, a, points[::-1]
        loop = _closed(points, a)
        outward.append(loop[: b - a + 1])
        homeward.append(loop[b - a :])
    return np.concatenate([*outward, _closed(parts[last], entries[last]), *reversed(homeward)])


def _closed(points: np.ndarray, start: int) -> np.ndarray:
    turned = np.roll(points, -start, axis=0)
    return np.concatenate((turned, turned[:1]))


def fill(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 0/1 of one contour. points: (n, 2) pixels, truncated to integers."""
    canvas = np.zeros((height, width), np.uint8)
    if len(points):
        cv2.fillPoly(canvas, [points.astype(np.int32)], (1,))
    return canvas


def rasterize(polygons: Polygons, height: int, width: int, stride: int = 4) -> np.ndarray:
    """Bitmaps of one-contour objects on the reduced grid, drawn inside their rectangles only.

    Args:
        polygons: at most one part per object, pixels of the height x width image; points
            outside of it are clipped.
        stride: reduction; a cell is set where two or more of its four central pixels are.
    Returns: (M, height / stride, width / stride) uint8 0/1.
    """
    out = np.zeros((len(polygons), height // stride, width // stride), np.uint8)
    ends = _object_ends(polygons)
    start = 0
    for i, end in enumerate(ends):
        points = polygons.points[start:end]
        start = end
        if not len(points):
            continue
        (l, t), (r, b) = points.min(axis=0), points.max(axis=0)
        x0, x1 = max(int(l) // stride, 0), min(int(r) // stride + 1, width // stride)
        y0, y1 = max(int(t) // stride, 0), min(int(b) // stride + 1, height // stride)
        if x0 >= x1 or y0 >= y1:
            continue
        shape = ((y1 - y0) * stride, (x1 - x0) * stride)
        # Truncate in picture coordinates, as the full-size drawing does, then shift.
        at = points.astype(np.int32) - np.array((x0 * stride, y0 * stride), np.int32)
        window = np.zeros(shape, np.uint8)
        cv2.fillPoly(window, [at], (1,))
        out[i, y0:y1, x0:x1] = cv2.resize(window, (x1 - x0, y1 - y0))
    return out

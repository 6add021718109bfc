"""The original's arithmetic, step by step: `data.law="reference"`.

Place in the flow: the same doors as `mixing` and `masks.rasterize`, slower; what the fast law is
measured against. tests/parity/test_pipeline.py holds it to recorded numbers of the original.
Source: published YOLO-World training pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from yw_ray.data.geometry import (
    FILL,
    FILL_QUIRK,
    MIN_AREA_RATIO_PLAIN,
    MIN_AREA_RATIO_REFINED,
    AffineDraws,
    box_areas,
    keep_boxes,
    letterbox_image,
    mirror_boxes,
    plan_letterbox,
    resize,
)
from yw_ray.data.masks import (
    concat,
    contours,
    fill,
    map_points,
    points_per_object,
    select,
)
from yw_ray.data.mixing import MosaicDraws, choose_pasted, join_objects, mosaic_tiles
from yw_ray.data.sample import Polygons, Sample
from yw_ray.recipe import AugmentConfig

NUM_RESAMPLED = 1000
_BOX_MARGIN = 1e-3


def mosaic_affine(
    samples: Sequence[Sample],
    draws: MosaicDraws,
    config: AugmentConfig,
    size: int,
    *,
    text_free: bool = False,
) -> Sample:
    """As `mixing.mosaic_affine`, by way of the full canvas."""
    sample = mosaic(samples, draws.centre, size, text_free=text_free)
    if sample.polygons is not None and config.copy_paste:
        order = draws.paste_order
        sample = copy_paste(sample, choose_pasted(sample.boxes, 2 * size, order, config.copy_paste))
    return random_affine(sample, draws.affine, border=-size // 2)


def letterbox_affine(
    sample: Sample, draws: AffineDraws, config: AugmentConfig, size: int
) -> Sample:
    """As `mixing.letterbox_affine`, in two steps."""
    fill_value = FILL_QUIRK if config.stage2_pad_quirk else FILL
    return random_affine(letterbox(sample, size, fill_value), draws, border=0)


def letterbox(
    sample: Sample, size: int, fill_value: tuple[int, int, int], allow_scale_up: bool = True
) -> Sample:
    """Boxes follow the true quotients of the sizes, polygons int(side * s + 0.5) / side."""
    height, width = sample.image.shape[:2]
    plan = plan_letterbox(height, width, size, allow_scale_up)
    shift = np.array((plan.pad[2], plan.pad[0]), np.float32)
    scale = np.array(plan.scale, np.float32)
    polygons = sample.polygons
    if polygons is not None:
        ratio = size / max(height, width)
        polygons = map_points(polygons, _rounded_scale(height, width, ratio), shift)
    return replace(
        sample,
        image=letterbox_image(sample.image, plan, fill_value),
        boxes=sample.boxes * np.tile(scale, 2) + np.tile(shift, 2),
        polygons=polygons,
    )


def _rounded_scale(height: int, width: int, ratio: float) -> np.ndarray:
    return np.array([int(side * ratio + 0.5) / side for side in (width, height)])


def mosaic(
    samples: Sequence[Sample], centre: tuple[int, int], size: int, *, text_free: bool = False
) -> Sample:
    """Four pictures on a canvas of 2 * size; boxes and vertices clipped to it, none dropped.

    text_free: the mosaic of recipes without texts scales polygons by the true quotients.
    """
    canvas = np.full((2 * size, 2 * size, 3), FILL[0], np.uint8)
    boxes, polygons = [], []
    for tile in mosaic_tiles(samples, centre, size):
        height, width = tile.sample.image.shape[:2]
        (x0, x1), (y0, y1) = tile.window
        x, y = tile.corner
        image = resize(tile.sample.image, tile.resized[1], tile.resized[0])
        canvas[y0:y1, x0:x1] = image[y0 - y : y1 - y, x0 - x : x1 - x]
        ratio = min(size / height, size / width)
        corner = np.array(tile.corner, np.float32)
        boxes.append(tile.sample.boxes * np.float32(ratio) + np.tile(corner, 2))
        if tile.sample.polygons is not None:
            scale = np.array(tile.scale) if text_free else _rounded_scale(height, width, ratio)
            polygons.append(map_points(tile.sample.polygons, scale, corner))
    assert len(polygons) in (0, 4), "polygons on some pictures of a mosaic only"
    joined = concat(polygons) if polygons else None
    return replace(
        samples[0],
        image=canvas,
        boxes=np.clip(np.concatenate(boxes), 0, 2 * size),
        labels=np.concatenate([s.labels for s in samples]),
        polygons=joined and replace(joined, points=np.clip(joined.points, 0, 2 * size)),
    )


def copy_paste(sample: Sample, chosen: np.ndarray) -> Sample:
    """The chosen objects once more, mirrored about the vertical axis, through a full-size mask."""
    if not len(chosen):
        return sample
    assert sample.polygons is not None
    height, width = sample.image.shape[:2]
    source = select(sample.polygons, chosen)
    mask = np.zeros((height, width), np.uint8)
    for points in _split(source):
        mask |= fill(points, height, width)
    pasted = cv2.flip(mask, 1).astype(bool)
    image = sample.image.copy()
    image[pasted] = cv2.flip(sample.image, 1)[pasted]
    boxes = mirror_boxes(sample.boxes[chosen], width)
    mirrored = map_points(source, np.array((-1.0, 1.0)), np.array((width, 0.0)))
    return replace(
        sample,
        image=image,
        boxes=np.concatenate((sample.boxes, boxes)),
        labels=np.concatenate((sample.labels, sample.labels[chosen])),
        polygons=concat((sample.polygons, mirrored)),
    )


def _split(polygons: Polygons) -> list[np.ndarray]:
    """Points of each object."""
    return np.split(polygons.points, np.cumsum(points_per_object(polygons))[:-1])


def affine_matrix(draws: AffineDraws, height: int, width: int, border: int) -> np.ndarray:
    """(3, 3) float32 canvas to output. border: added on each side of the height x width canvas."""
    out_h, out_w = height + 2 * border, width + 2 * border

    def matrix(*rows: tuple[float, float, float]) -> np.ndarray:
        return np.array((*rows, (0, 0, 1)), np.float32)

    turn, sx, sy = (np.deg2rad(v) for v in (draws.rotation, draws.shear_x, draws.shear_y))
    to_middle = matrix((1, 0, -width / 2), (0, 1, -height / 2))
    scaling = matrix((draws.scale, 0, 0), (0, draws.scale, 0))
    rotation = matrix((np.cos(turn), -np.sin(turn), 0), (np.sin(turn), np.cos(turn), 0))
    shear = matrix((1, np.tan(sx), 0), (np.tan(sy), 1, 0))
    translation = matrix((1, 0, draws.translate_x * out_w), (0, 1, draws.translate_y * out_h))
    return translation @ shear @ rotation @ scaling @ to_middle


def random_affine(
    sample: Sample,
    draws: AffineDraws,
    border: int,
    min_area_ratio: float | None = None,
) -> Sample:
    """Warp the canvas; boxes from 1000 points a contour, or from corners without polygons.

    min_area_ratio: default 0.01 with polygons, 0.1 without.
    """
    height, width = sample.image.shape[:2]
    matrix = affine_matrix(draws, height, width, border)
    out_h, out_w = height + 2 * border, width + 2 * border
    image = cv2.warpPerspective(sample.image, matrix, (out_w, out_h), borderValue=FILL)
    limit = np.array((out_w, out_h), np.float32)
    if sample.polygons is None:
        polygons = None
        boxes = np.clip(_corner_boxes(sample.boxes, matrix), 0, np.tile(limit, 2))
        default = MIN_AREA_RATIO_PLAIN
    else:
        points = transform(resample(sample.polygons), matrix)
        boxes = inside_boxes(points, limit)
        flat = np.clip(points, 0, limit).reshape(-1, 2)
        polygons = contours(flat, np.full(len(points), NUM_RESAMPLED))
        default = MIN_AREA_RATIO_REFINED
    ratio = default if min_area_ratio is None else min_area_ratio
    keep = keep_boxes(boxes, box_areas(sample.boxes * np.float32(draws.scale)), ratio)
    return replace(
        sample,
        image=image,
        boxes=boxes[keep],
        labels=sample.labels[keep],
        polygons=polygons and select(polygons, keep),
    )


def _corner_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    corners = transform(boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2), matrix)
    return np.concatenate((corners.min(axis=1), corners.max(axis=1)), axis=1)


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(..., 2) float32 points through a (3, 3) matrix whose last row is 0 0 1."""
    return (points @ matrix[:2, :2].T + matrix[:2, 2]).astype(np.float32)


def resample(polygons: Polygons, count: int = NUM_RESAMPLED) -> np.ndarray:
    """(M, count, 2) float32: closed contours at equally spaced vertex numbers, both ends."""
    out = np.zeros((len(polygons), count, 2), np.float32)
    for i, points in enumerate(_split(polygons) if len(polygons) else []):
        closed = np.concatenate((points, points[:1]))
        at, known = np.linspace(0, len(points), count), np.arange(len(closed))
        for axis in (0, 1):
            out[i, :, axis] = np.interp(at, known, closed[:, axis])
    return out


def inside_boxes(points: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """(M, 4) extremes of the points inside [0, limit]; zeros where none is. points: (M, n, 2)."""
    inside = ((points >= 0) & (points <= limit)).all(axis=2, keepdims=True)
    low = np.where(inside, points, np.inf).min(axis=1, initial=np.inf)
    high = np.where(inside, points, -np.inf).max(axis=1, initial=-np.inf)
    boxes = np.concatenate((low, high), axis=1)
    boxes[~np.isfinite(low).all(axis=1)] = 0
    return np.clip(boxes, 0, np.tile(limit - _BOX_MARGIN, 2)).astype(np.float32)


def rasterize(polygons: Polygons, height: int, width: int, stride: int = 4) -> np.ndarray:
    """As `masks.rasterize`, each object on the full picture."""
    out = np.zeros((len(polygons), height // stride, width // stride), np.uint8)
    for i, points in enumerate(_split(polygons) if len(polygons) else []):
        full = fill(points, height, width)
        out[i] = cv2.resize(full, (width // stride, height // stride))
    return out


def mixup(first: Sample, second: Sample, ratio: float) -> Sample:
    """As `mixing.mixup`, in float64 and truncated."""
    blend = first.image.astype(np.float64) * ratio + second.image.astype(np.float64) * (1 - ratio)
    return join_objects(first, second, blend.astype(np.uint8))

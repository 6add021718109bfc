"""Small pictures with coloured outlines, so that a test can find an object by its colour."""

from __future__ import annotations

import cv2
import numpy as np

from yw_ray.data import masks
from yw_ray.data.sample import Polygons, Record, Sample

BACKGROUND = 30


def star(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> np.ndarray:
    """(n, 2) float32 star-shaped contour."""
    count = int(rng.integers(8, 16))
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    reach = radius * rng.uniform(0.6, 1.0, count)
    around = np.stack((np.cos(angles), np.sin(angles)), axis=1) * reach[:, None]
    return (np.array(centre) + around).astype(np.float32)


def drawn_sample(
    rng: np.random.Generator,
    height: int,
    width: int,
    num_objects: int,
    *,
    image_id: int = 0,
    num_classes: int = 10,
    refine: bool = True,
) -> Sample:
    """Filled stars of different colours on a dark picture; label j has blue level 60 + 15 j."""
    labels = rng.integers(0, num_classes, num_objects)
    image = np.full((height, width, 3), BACKGROUND, np.uint8)
    outlines = []
    for label in labels:
        radius = rng.uniform(0.08, 0.25) * min(height, width)
        middle = rng.uniform(0.25, 0.75, 2) * (width, height)
        points = np.clip(star(rng, (middle[0], middle[1]), radius), 0, (width, height))
        outlines.append(points.astype(np.float32))
        draw = np.round((points - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(image, [draw], (60 + 15 * int(label), 200, 120), shift=4)
    polygons = (
        masks.contours(np.concatenate(outlines), np.array([len(o) for o in outlines]))
        if outlines
        else masks.empty_polygons()
    )
    return Sample(
        image_id=image_id,
        image=image,
        boxes=masks.extremes(polygons),
        labels=labels.astype(np.int64),
        polygons=polygons if refine else None,
    )


def record_of(
    sample: Sample, crowd: list[int] | None = None, without: list[int] | None = None
) -> Record:
    """A lossless shard row; crowd: objects marked so; without: objects lacking polygons."""
    assert sample.polygons is not None
    height, width = sample.image.shape[:2]
    polygons = sample.polygons
    if without:
        sizes = polygons.part_sizes
        parts = np.split(polygons.points, np.cumsum(sizes)[:-1])
        kept = [i for i in range(len(sizes)) if i not in without]
        per_object = np.ones(len(sizes), np.int32)
        per_object[without] = 0
        polygons = Polygons(np.concatenate([parts[i] for i in kept]), sizes[kept], per_object)
    marked = np.zeros(len(sample.labels), bool)
    marked[crowd or []] = True
    return Record(
        image_id=sample.image_id,
        jpeg=cv2.imencode(".png", sample.image)[1].tobytes(),
        height=height,
        width=width,
        boxes=sample.boxes + np.float32(0.25),
        refined_boxes=masks.extremes(polygons),
        labels=sample.labels,
        crowd=marked,
        polygons=polygons,
    )


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(M,) IoU of boxes row by row."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=1)
    areas = [(x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b)]
    return inter / (areas[0] + areas[1] - inter)

"""Photo-like JPEG rows of COCO-like sizes, for the benchmarks of the data side.

Place in the flow: imported by `b0*.py` beside it. Pictures are octaves of smooth noise with a
little grain (about 150 kB at 640 x 480, as COCO has), 7.3 instances a picture of about 28 vertices.
"""

from __future__ import annotations

import cv2
import numpy as np

from yw_ray.data.masks import contours, extremes
from yw_ray.data.sample import Polygons, Record

SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (480, 640), (425, 640), (375, 500))
_JPEG_QUALITY = 92
_GRAIN_LEVELS = 9.0
_CLASSES = 80


def photo(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 with the falling spectrum of a photo."""
    image = np.full((height, width, 3), 120.0, np.float32)
    for octave in range(2, 8):
        grid = rng.normal(0, 90 / octave**1.2, (2**octave, 2**octave, 3)).astype(np.float32)
        image += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, _GRAIN_LEVELS, (height, width, 1)).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def outlines(rng: np.random.Generator, count: int, height: int, width: int) -> Polygons:
    """`count` star-shaped contours of 8 to 48 vertices, small ones more often."""
    found = []
    for _ in range(count):
        n = int(rng.integers(8, 49))
        angles = np.sort(rng.uniform(0, 2 * np.pi, n))
        sides = np.exp(rng.uniform(np.log(6), np.log(0.45 * min(height, width)), 2))
        reach = rng.uniform(0.7, 1.0, n)[:, None] * sides
        points = rng.random(2) * (width, height) + reach * np.stack(
            (np.cos(angles), np.sin(angles)), axis=1
        )
        found.append(np.clip(points, 0, (width, height)).astype(np.float32))
    joined = np.concatenate(found) if found else np.zeros((0, 2), np.float32)
    return contours(joined, np.array([len(f) for f in found], np.int32))


def photo_records(count: int, seed: int = 0, instances: float = 7.3) -> list[Record]:
    """`count` shard rows."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        ok, coded = cv2.imencode(
            ".jpg", photo(rng, height, width), (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY)
        )
        assert ok
        polygons = outlines(rng, int(rng.poisson(instances)), height, width)
        boxes = extremes(polygons)
        records.append(
            Record(
                image_id=i,
                jpeg=coded.tobytes(),
                height=height,
                width=width,
                boxes=boxes,
                refined_boxes=boxes,
                labels=rng.integers(0, _CLASSES, len(boxes)),
                crowd=np.zeros(len(boxes), bool),
                polygons=polygons,
            )
        )
    return records

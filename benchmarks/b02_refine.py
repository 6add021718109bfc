"""B2: boxes of clipped outlines by edge clip, against resampling to 1000 points.

    python benchmarks/b02_refine.py [--mosaics 40]

Ragged outlines of mosaics (four pictures, LVIS-like 13.3 instances each) under the affine of the
published recipes. Checks first: against 60001 points an object no box differs by more than the
distance between two samples, against 1000 points the mean IoU is above 0.99.
Not covered: real outlines.
"""

from __future__ import annotations

import argparse

import numpy as np
from photos import outlines
from timing import interleave, report

from yw_ray.data import masks, reference_law
from yw_ray.data.geometry import affine_offset, draw_affine, visible_boxes
from yw_ray.data.sample import Polygons

SIZE = 640
PER_MOSAIC = 53
FINE = 60001


def mosaics(count: int) -> list[Polygons]:
    """Outlines in output pixels, many of them cut by the border."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        canvas = outlines(rng, PER_MOSAIC, 2 * SIZE, 2 * SIZE)
        draws = draw_affine(rng, (0.5, 1.5), 0.1)
        offset = np.array(affine_offset(draws, 2 * SIZE, SIZE))
        made.append(masks.map_points(canvas, np.full(2, draws.scale), offset))
    return made


def by_resampling(polygons: Polygons, points: int = reference_law.NUM_RESAMPLED) -> np.ndarray:
    resampled = reference_law.resample(polygons, points)
    return reference_law.inside_boxes(resampled, np.full(2, SIZE, np.float32))


def sample_gaps(polygons: Polygons, points: int = FINE) -> np.ndarray:
    """(M,) longest distance in px between neighbouring samples of each resampled outline."""
    resampled = reference_law.resample(polygons, points)
    return np.linalg.norm(np.diff(resampled, axis=1), axis=2).max(axis=1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU row by row of the boxes that both see."""
    seen = (a[:, 2:] - a[:, :2]).min(axis=1) * (b[:, 2:] - b[:, :2]).min(axis=1) > 0
    a, b = a[seen], b[seen]
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    inter = np.clip(high - low, 0, None).prod(axis=1)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mosaics", type=int, default=40)
    cases = mosaics(parser.parse_args().mosaics)
    ours = [visible_boxes(c, SIZE) for c in cases]
    for case, boxes in zip(cases[:4], ours, strict=False):
        fine = by_resampling(case, FINE)
        both = (boxes[:, 2] > boxes[:, 0]) & (fine[:, 2] > fine[:, 0])
        off = np.abs(boxes - fine).max(axis=1)
        assert (off <= sample_gaps(case) + 1e-3)[both].all(), "edge clip is off"
    overlaps = np.concatenate(
        [overlap(b, by_resampling(c)) for b, c in zip(ours, cases, strict=True)]
    )
    assert overlaps.mean() >= 0.99, f"mean IoU with 1000 points is {overlaps.mean():.4f}"
    seconds = interleave(
        {
            "edge clip": lambda: [visible_boxes(c, SIZE) for c in cases],
            "1000 points": lambda: [by_resampling(c) for c in cases],
        },
        repeats=9,
    )
    report(
        "b02_refine",
        seconds["edge clip"],
        seconds["1000 points"],
        15.0,
        peer_name="1000 points",
        mosaics=len(cases),
        objects=len(overlaps),
        mean_iou=round(float(overlaps.mean()), 4),
        worst_iou=round(float(overlaps.min()), 4),
    )


if __name__ == "__main__":
    main()

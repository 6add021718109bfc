"""B3: mosaic and affine drawn straight into the output, against canvas and warp.

    python benchmarks/b03_tiles.py [--samples 40]

Decoded pictures of COCO-like sizes, plain boxes, 640 output, scale 0.5 to 1.5. Checks first: the
same labels, boxes within 1.5 px (whole pixels of resized pictures), pictures within a mean of
`MEAN_LEVELS` of a canvas warped with the middles of pixels where the tiles have them (the pictures
carry grain, which any resampling at another phase changes). Not covered: rotation and shear, which
no recipe uses.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
from photos import photo_records
from timing import interleave, report

from yw_ray.data import mixing, reference_law
from yw_ray.data.geometry import FILL
from yw_ray.data.pipelines import load
from yw_ray.data.sample import Sample
from yw_ray.recipe import AugmentConfig

SIZE = 640
MEAN_LEVELS = 2.0
CONFIG = AugmentConfig(mask_refine=False, copy_paste=0, scale=(0.5, 1.5))

Case = tuple[list[Sample], mixing.MosaicDraws]


def cases(count: int) -> list[Case]:
    rng = np.random.default_rng(0)
    pool = [load(r, mask_refine=False) for r in photo_records(24)]
    made = []
    for _ in range(count):
        four = [pool[i] for i in rng.integers(len(pool), size=4)]
        draws = mixing.draw_mosaic(rng, sum(len(s.labels) for s in four), CONFIG, SIZE)
        made.append((four, draws))
    return made


def by_canvas(case: Case) -> Sample:
    four, draws = case
    return reference_law.mosaic_affine(four, draws, CONFIG, SIZE)


def by_tiles(case: Case) -> Sample:
    four, draws = case
    return mixing.mosaic_affine(four, draws, CONFIG, SIZE)


def check(case: Case) -> float:
    """Mean difference in levels; asserts labels, boxes and picture."""
    four, draws = case
    ours, reference = by_tiles(case), by_canvas(case)
    assert ours.labels.tolist() == reference.labels.tolist(), "the laws keep other objects"
    assert np.abs(ours.boxes - reference.boxes).max(initial=0) < 1.5, "boxes are off"
    canvas = reference_law.mosaic(four, draws.centre, SIZE).image
    matrix = reference_law.affine_matrix(draws.affine, 2 * SIZE, 2 * SIZE, -SIZE // 2)
    matrix[:2, 2] += (draws.affine.scale - 1) / 2
    warped = cv2.warpPerspective(canvas, matrix, (SIZE, SIZE), borderValue=FILL)
    return float(np.abs(ours.image.astype(int) - warped).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=40)
    work = cases(parser.parse_args().samples)
    cv2.setNumThreads(0)
    off = [check(case) for case in work]
    assert np.mean(off) < MEAN_LEVELS, f"pictures differ by {np.mean(off):.2f} levels"
    seconds = interleave(
        {
            "tiles": lambda: [by_tiles(c) for c in work],
            "canvas": lambda: [by_canvas(c) for c in work],
        },
        repeats=9,
    )
    report(
        "b03_tiles",
        seconds["tiles"],
        seconds["canvas"],
        3.0,
        peer_name="canvas and warp",
        samples=len(work),
        mean_levels=round(float(np.mean(off)), 3),
    )


if __name__ == "__main__":
    main()

"""Several pictures in one: mosaic with copy-paste and affine, stage 2 without them, and mixup.

Place in the flow: first step of both training stages. This is the fast law; `reference_law` holds
the original's arithmetic behind the same signatures.
Source: published YOLO-World recipes (mosaic, copy-paste and mixup of YOLOv5 and YOLOv8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from yw_ray.data.geometry import (
    FILL,
    FILL_QUIRK,
    MIN_AREA_RATIO_PLAIN,
    MIN_AREA_RATIO_REFINED,
    AffineDraws,
    affine_offset,
    box_areas,
    draw_affine,
    keep_boxes,
    letterbox_resize,
    mirror_boxes,
    plan_letterbox,
    visible_boxes,
)
from yw_ray.data.masks import concat, map_points, points_per_object, select
from yw_ray.data.sample import Polygons, Sample
from yw_ray.data.tiles import CanvasMap, Tile, draw_cut_out, draw_tile
from yw_ray.recipe import AugmentConfig

_OVERLAP_LIMIT = 0.3
_MIXUP_BETA = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MosaicDraws:
    """centre: (x, y) whole canvas pixels; paste_order: (M,) the lowest are pasted; affine."""

    centre: tuple[int, int]
    paste_order: np.ndarray
    affine: AffineDraws


def draw_mosaic(
    rng: np.random.Generator, num_objects: int, config: AugmentConfig, size: int
) -> MosaicDraws:
    """Centre int(U(0.5, 1.5) * size) on a canvas of 2 * size, order of pasting, affine.

    The translation is moved by half a pixel at most, so that the seams between the pictures fall
    on whole output pixels: pictures can then be resized instead of warped.
    num_objects: of all four pictures.
    """
    x, y = rng.uniform(0.5, 1.5, 2)
    centre = (int(x * size), int(y * size))
    order = rng.random(num_objects)
    affine = draw_affine(rng, config.scale, config.translate)
    shift_x, shift_y = (
        round(at) - at if 0 < at < size else 0.0
        for at in (
            affine.scale * c + offset
            for c, offset in zip(centre, affine_offset(affine, 2 * size, size), strict=True)
        )
    )
    affine = replace(
        affine,
        translate_x=affine.translate_x + shift_x / size,
        translate_y=affine.translate_y + shift_y / size,
    )
    return MosaicDraws(centre=centre, paste_order=order, affine=affine)


def mosaic_tiles(samples: Sequence[Sample], centre: tuple[int, int], size: int) -> list[Tile]:
    """Four pictures (top left, top right, bottom left, bottom right) that meet at the centre."""
    assert len(samples) == 4
    tiles = []
    for i, sample in enumerate(samples):
        height, width = sample.image.shape[:2]
        ratio = min(size / height, size / width)
        w, h = max(int(width * ratio), 1), max(int(height * ratio), 1)
        x = centre[0] if i % 2 else centre[0] - w
        y = centre[1] if i >= 2 else centre[1] - h
        shown = ((max(x, 0), min(x + w, 2 * size)), (max(y, 0), min(y + h, 2 * size)))
        tiles.append(Tile(sample, (w, h), (x, y), shown))
    return tiles


def mirrored_overlaps(boxes: np.ndarray, width: float) -> np.ndarray:
    """(M, M) share of each box (column) that the mirror image of each box (row) covers."""
    mirrored = mirror_boxes(boxes, width)
    low = np.maximum(mirrored[:, None, :2], boxes[None, :, :2])
    high = np.minimum(mirrored[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    return common / (box_areas(boxes) + 1e-7)


def paste_candidates(boxes: np.ndarray, width: float) -> np.ndarray:
    """Objects whose mirror image covers less than 0.3 of every box, their own included."""
    return np.flatnonzero((mirrored_overlaps(boxes, width) < _OVERLAP_LIMIT).all(axis=1))


def choose_pasted(boxes: np.ndarray, width: float, order: np.ndarray, share: float) -> np.ndarray:
    """The round(share * n) of the n candidates that come first in `order` (M,)."""
    candidates = paste_candidates(boxes, width)
    count = round(share * len(candidates))
    return candidates[np.argsort(order[candidates])[:count]]


def mosaic_affine(
    samples: Sequence[Sample],
    draws: MosaicDraws,
    config: AugmentConfig,
    size: int,
    *,
    text_free: bool = False,
) -> Sample:
    """Mosaic, copy-paste and affine in one pass.

    Args:
        samples: this picture and three partners, all with polygons or all without.
        size: side of the output; the canvas has twice that.
        text_free: concerns the reference law only.
    Returns: (size, size, 3) sample with the first one's id; polygons reach beyond the output.
    """
    canvas, scale = 2 * size, draws.affine.scale
    offset = affine_offset(draws.affine, canvas, size)
    to_out = CanvasMap((scale, scale), offset)
    out = np.full((size, size, 3), FILL[0], np.uint8)
    tiles = mosaic_tiles(samples, draws.centre, size)
    for tile in tiles:
        draw_tile(out, tile, to_out)
    boxes = np.concatenate([_boxes_on_canvas(tile, canvas) for tile in tiles])
    labels = np.concatenate([s.labels for s in samples])
    polygons = _polygons_on_canvas(tiles, canvas)
    if polygons is not None and config.copy_paste:
        chosen = choose_pasted(boxes, canvas, draws.paste_order, config.copy_paste)
        mirrored = CanvasMap((-scale, scale), (scale * canvas + offset[0], offset[1]))
        owners = np.repeat(np.arange(4), [len(s.labels) for s in samples])
        ends = np.cumsum(points_per_object(polygons))
        for i in chosen:
            outline = polygons.points[ends[i - 1] if i else 0 : ends[i]]
            draw_cut_out(out, tiles[owners[i]], outline, mirrored)
        twins = map_points(select(polygons, chosen), np.array((-1.0, 1.0)), np.array((canvas, 0.0)))
        polygons = concat((polygons, twins))
        boxes = np.concatenate((boxes, mirror_boxes(boxes[chosen], canvas)))
        labels = np.concatenate((labels, labels[chosen]))
    return _to_output(samples[0], out, boxes, labels, polygons, to_out)


def letterbox_affine(
    sample: Sample, draws: AffineDraws, config: AugmentConfig, size: int
) -> Sample:
    """Stage 2: letterbox into size x size and affine, in one pass.

    The letterbox pads with (114, 0, 0) BGR under `stage2_pad_quirk`; all else is 114.
    """
    height, width = sample.image.shape[:2]
    plan = plan_letterbox(height, width, size, allow_scale_up=True)
    (h, w), (top, _, left, _) = plan.fitted, plan.pad
    tile = Tile(sample, (w, h), (left, top), ((left, left + w), (top, top + h)))
    boxes, polygons = _boxes_on_canvas(tile, size), _polygons_on_canvas([tile], size)
    if max(height, width) > size:  # shrunk by area, as at test time
        image = letterbox_resize(sample.image, plan)
        tile = replace(tile, sample=replace(sample, image=image))
    offset = affine_offset(draws, size, size)
    out = np.full((size, size, 3), FILL[0], np.uint8)
    if config.stage2_pad_quirk:
        (x0, x1), (y0, y1) = (
            (max(round(o), 0), max(round(draws.scale * size + o), 0)) for o in offset
        )
        out[y0:y1, x0:x1] = FILL_QUIRK
    to_out = CanvasMap((draws.scale, draws.scale), offset)
    draw_tile(out, tile, to_out)
    return _to_output(sample, out, boxes, sample.labels, polygons, to_out)


def _boxes_on_canvas(tile: Tile, canvas: int) -> np.ndarray:
    scale, corner = np.tile(tile.scale, 2), np.tile(tile.corner, 2)
    return np.clip(tile.sample.boxes * scale + corner, 0, canvas).astype(np.float32)


def _polygons_on_canvas(tiles: Sequence[Tile], canvas: int) -> Polygons | None:
    """Vertices clipped one by one to the canvas, as the original does."""
    moved = [
        map_points(t.sample.polygons, np.array(t.scale), np.array(t.corner))
        for t in tiles
        if t.sample.polygons is not None
    ]
    assert len(moved) in (0, len(tiles)), "polygons on some pictures of a mosaic only"
    if not moved:
        return None
    joined = concat(moved)
    return replace(joined, points=np.clip(joined.points, 0, canvas))


def _to_output(
    named: Sample,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    polygons: Polygons | None,
    to_out: CanvasMap,
) -> Sample:
    """Labels from canvas to output; objects of which hardly anything shows are dropped."""
    size, scale, offset = image.shape[0], np.array(to_out.scale), np.array(to_out.offset)
    boxes = (boxes * np.tile(scale, 2) + np.tile(offset, 2)).astype(np.float32)
    if polygons is None:
        visible, min_ratio = np.clip(boxes, 0, size), MIN_AREA_RATIO_PLAIN
    else:
        polygons = map_points(polygons, scale, offset)
        visible, min_ratio = visible_boxes(polygons, size), MIN_AREA_RATIO_REFINED
    keep = keep_boxes(visible, box_areas(boxes), min_ratio)
    return replace(
        named,
        image=image,
        boxes=visible[keep],
        labels=labels[keep],
        polygons=None if polygons is None else select(polygons, keep),
    )


# ---- mixup ----------------------------------------------------------------------------------


def draw_mixup(rng: np.random.Generator) -> float:
    """Weight of the first picture, Beta(32, 32)."""
    return float(rng.beta(_MIXUP_BETA, _MIXUP_BETA))


def mixup(first: Sample, second: Sample, ratio: float) -> Sample:
    """`ratio` of the first picture over the second, with the objects of both.

    Blends in float32 and rounds down, so a level may differ from the reference law by one.
    """
    # addWeighted rounds to nearest; just under a half less makes it round down.
    image = cv2.addWeighted(first.image, ratio, second.image, 1 - ratio, -0.4999)
    return join_objects(first, second, image)


def join_objects(first: Sample, second: Sample, image: np.ndarray) -> Sample:
    """The first sample with another image and the objects of both."""
    polygons = None
    if first.polygons is not None and second.polygons is not None:
        polygons = concat((first.polygons, second.polygons))
    return replace(
        first,
        image=image,
        boxes=np.concatenate((first.boxes, second.boxes)),
        labels=np.concatenate((first.labels, second.labels)),
        polygons=polygons,
    )

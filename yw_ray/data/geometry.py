"""Where things are: letterbox, affine, boxes of clipped outlines, object filter, flip.

Place in the flow: used by the mixing step, by both laws and by evaluation. Draws and their
application are separate, so that recorded draws can be applied.
Source: published YOLO-World recipes; boxes from outlines by clipping edges (Liang and Barsky 1984).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from yw_ray.data.masks import extremes, map_points, points_per_object, select
from yw_ray.data.sample import Letterbox, Polygons, Sample

FILL = (114, 114, 114)
FILL_QUIRK = (114, 0, 0)
MIN_SIDE_PX = 2.0
MAX_ASPECT = 100.0
MIN_AREA_RATIO_REFINED = 0.01
MIN_AREA_RATIO_PLAIN = 0.1
_BOX_MARGIN = 1e-3


# ---- letterbox ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LetterboxPlan:
    """How a picture is fitted into a square; sizes are (h, w), scale (w, h).

    kept: after the keep-ratio resize; fitted: after the second resize, mostly the same;
    pad: (top, bottom, left, right).
    """

    kept: tuple[int, int]
    fitted: tuple[int, int]
    scale: tuple[float, float]
    pad: tuple[int, int, int, int]


def plan_letterbox(height: int, width: int, size: int, allow_scale_up: bool) -> LetterboxPlan:
    """Keep-ratio resize to `size` on the long side, then centre in size x size.

    allow_scale_up concerns the second resize only: it fills a side that truncation left short.
    """
    ratio = size / max(height, width)
    kept = (
        (height, width) if ratio == 1 else (max(int(height * ratio), 1), max(int(width * ratio), 1))
    )
    again = min(size / kept[0], size / kept[1])
    if not allow_scale_up:
        again = min(again, 1.0)
    fitted = (round(kept[0] * again), round(kept[1] * again))
    top, left = (round((size - side) // 2 - 0.1) for side in fitted)
    return LetterboxPlan(
        kept=kept,
        fitted=fitted,
        scale=(fitted[1] / width, fitted[0] / height),
        pad=(top, size - fitted[0] - top, left, size - fitted[1] - left),
    )


def resize(image: np.ndarray, height: int, width: int, shrink_by_area: bool = False) -> np.ndarray:
    """Bilinear, or area where asked for and shrinking; the image itself if nothing changes."""
    if image.shape[:2] == (height, width):
        return image
    area = shrink_by_area and max(height, width) < max(image.shape[:2])
    how = cv2.INTER_AREA if area else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


def letterbox_resize(image: np.ndarray, plan: LetterboxPlan) -> np.ndarray:
    """The picture at its fitted size, before padding."""
    return resize(resize(image, *plan.kept, shrink_by_area=True), *plan.fitted)


def letterbox_image(
    image: np.ndarray, plan: LetterboxPlan, fill: tuple[int, int, int]
) -> np.ndarray:
    """(size, size, 3) uint8 BGR."""
    image = letterbox_resize(image, plan)
    return cv2.copyMakeBorder(image, *plan.pad, cv2.BORDER_CONSTANT, value=fill)


def letterbox(sample: Sample, size: int) -> Sample:
    """The evaluation fit: the sample in size x size with grey borders and `letterbox` set."""
    height, width = sample.image.shape[:2]
    plan = plan_letterbox(height, width, size, allow_scale_up=False)
    scale = np.array(plan.scale, np.float32)
    shift = np.array((plan.pad[2], plan.pad[0]), np.float32)
    polygons = sample.polygons
    return replace(
        sample,
        image=letterbox_image(sample.image, plan, FILL),
        boxes=sample.boxes * np.tile(scale, 2) + np.tile(shift, 2),
        polygons=None if polygons is None else map_points(polygons, scale, shift),
        letterbox=Letterbox(original_size=(height, width), scale=plan.scale, pad=plan.pad),
    )


# ---- affine ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineDraws:
    """rotation, shear: degrees; scale: factor; translate: centre's place, share of the output."""

    rotation: float = 0.0
    scale: float = 1.0
    shear_x: float = 0.0
    shear_y: float = 0.0
    translate_x: float = 0.5
    translate_y: float = 0.5


def draw_affine(
    rng: np.random.Generator, scale: tuple[float, float], translate: float
) -> AffineDraws:
    """Scale U(*scale), translation U(0.5 - translate, 0.5 + translate); no rotation, no shear."""
    return AffineDraws(
        scale=float(rng.uniform(*scale)),
        translate_x=float(rng.uniform(0.5 - translate, 0.5 + translate)),
        translate_y=float(rng.uniform(0.5 - translate, 0.5 + translate)),
    )


def affine_offset(draws: AffineDraws, canvas: int, size: int) -> tuple[float, float]:
    """Output position (x, y) of the canvas corner under the drawn scale and translation."""
    centre = draws.scale * canvas / 2
    return draws.translate_x * size - centre, draws.translate_y * size - centre


# ---- boxes ----------------------------------------------------------------------------------


def visible_boxes(polygons: Polygons, size: int) -> np.ndarray:
    """Box of the part of each outline that lies inside the square [0, size].

    Every edge is clipped exactly, all objects at once; a region corner that the outline does not
    touch is not part of the box. polygons: at most one closed contour per object.
    Returns: (M, 4) float32 xyxy, zeros for outlines wholly outside; sides clipped to size - 1e-3.
    """
    boxes = extremes(polygons)
    low, high = boxes[:, :2], boxes[:, 2:]
    with np.errstate(invalid="ignore"):
        inside = np.all((low >= 0) & (high <= size), axis=1)
        touches = np.all((low <= size) & (high >= 0), axis=1)
    boxes[~touches] = 0
    cut = np.flatnonzero(touches & ~inside)
    if len(cut):
        boxes[cut] = _clip_edges(select(polygons, cut), size)
    return np.minimum(boxes, np.float32(size - _BOX_MARGIN))


def _clip_edges(polygons: Polygons, size: int) -> np.ndarray:
    p = polygons.points.astype(np.float64)
    counts = points_per_object(polygons)
    ends = np.cumsum(counts)
    following = np.arange(1, len(p) + 1)
    following[ends - 1] = ends - counts
    d = p[following] - p
    with np.errstate(divide="ignore", invalid="ignore"):
        to_low, to_high = -p / d, (size - p) / d
    flat = d == 0
    level = flat & (p >= 0) & (p <= size)
    enter = np.where(flat, np.where(level, -np.inf, np.inf), np.minimum(to_low, to_high))
    leave = np.where(flat, np.where(level, np.inf, -np.inf), np.maximum(to_low, to_high))
    first = np.maximum(enter.max(axis=1), 0.0)
    last = np.minimum(leave.min(axis=1), 1.0)
    seen = first <= last
    first[~seen] = last[~seen] = 0
    a, b = p + first[:, None] * d, p + last[:, None] * d
    low = np.where(seen[:, None], np.minimum(a, b), np.inf)
    high = np.where(seen[:, None], np.maximum(a, b), -np.inf)
    starts = ends - counts
    boxes = np.concatenate(
        (np.minimum.reduceat(low, starts, axis=0), np.maximum.reduceat(high, starts, axis=0)), 1
    )
    boxes[~np.isfinite(boxes).all(axis=1)] = 0
    return np.clip(boxes, 0, size).astype(np.float32)


def keep_boxes(boxes: np.ndarray, full_areas: np.ndarray, min_area_ratio: float) -> np.ndarray:
    """(M,) bool: larger than 2 px on both sides, enough of the object left, not too thin.

    boxes: (M, 4) after the affine; full_areas: (M,) area of the incoming box times scale squared.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    tiny = 1e-16
    aspect = np.maximum(width / (height + tiny), height / (width + tiny))
    return (
        (width > MIN_SIDE_PX)
        & (height > MIN_SIDE_PX)
        & (width * height / (full_areas + tiny) > min_area_ratio)
        & (aspect < MAX_ASPECT)
    )


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """(M,) areas of (M, 4) xyxy boxes."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def mirror_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """(M, 4) boxes mirrored about the vertical axis of a picture of that width."""
    mirrored = boxes.copy()
    mirrored[:, 0::2] = width - boxes[:, 2::-2]
    return mirrored


# ---- flip -----------------------------------------------------------------------------------


def flip(sample: Sample) -> Sample:
    """Mirror image, boxes and polygons about the vertical axis."""
    width = sample.image.shape[1]
    polygons = sample.polygons
    if polygons is not None:
        polygons = map_points(polygons, np.array((-1.0, 1.0)), np.array((width, 0.0)))
    return replace(
        sample,
        image=cv2.flip(sample.image, 1),
        boxes=mirror_boxes(sample.boxes, width),
        polygons=polygons,
    )

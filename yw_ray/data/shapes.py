"""Outlines, colours and filling of the generated world's shapes.

Place in the flow: `synth.py` draws its pictures with these. Points are (V, 2) float64 (x, y) pixels
counted from the outer edge of the first pixel, as COCO counts polygons.
"""

from functools import cache

import cv2
import numpy as np

_SUBPIXEL_BITS = 4
HUES = {  # OpenCV hue (0-179), saturation, value
    "red": (0, 225, 225),
    "yellow": (30, 225, 225),
    "green": (60, 225, 190),
    "cyan": (90, 225, 225),
    "blue": (120, 225, 225),
    "magenta": (150, 225, 225),
    "orange": (15, 225, 225),
    "white": (0, 0, 250),
    "black": (0, 0, 10),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "moon", "diamond", "hexagon", "arrow")


@cache
def outline(shape: str) -> np.ndarray:
    """(V, 2) vertices of a shape that just fills the square from -1 to 1."""

    def arc(start: float, stop: float, number: int, radius: float = 1.0) -> np.ndarray:
        angle = np.deg2rad(np.linspace(start, stop, number))
        return radius * np.stack([np.cos(angle), np.sin(angle)], 1)

    if shape == "circle":
        points = arc(0, 360, 41)[:-1]
    elif shape == "square":
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    elif shape == "triangle":
        points = np.array([[0, -1], [1, 1], [-1, 1]])
    elif shape == "star":
        radius = np.tile([1, 0.42], 5)[:, None]
        points = arc(-90, 270, 11)[:-1] * radius
    elif shape == "cross":
        quarter = np.array([[-1, -3], [1, -3], [1, -1]])  # then turned three times
        points = np.concatenate([quarter @ _turn(k) for k in range(4)]) / 3
    elif shape == "moon":
        half = np.rad2deg(np.arctan2(0.798, 0.602))
        inner = np.rad2deg(np.arctan2(0.798, 0.052))
        hollow = arc(360 - inner, inner, 17, 0.8)[1:-1] + np.array([0.55, 0])
        points = np.concatenate([arc(half, 360 - half, 25), hollow])
    elif shape == "diamond":
        points = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])
    elif shape == "hexagon":
        points = arc(0, 360, 7)[:-1]
    else:
        points = np.array([[-3, -1], [0, -1], [0, -3], [3, 0], [0, 3], [0, 1], [-3, 1]])
    low, high = points.min(0), points.max(0)
    return 2 * (points - low) / (high - low) - 1


def _turn(quarters: int) -> np.ndarray:
    return np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), quarters)


def pixel_color(name: str, rng: np.random.Generator) -> tuple[float, ...]:
    """A BGR colour near the named one: hue within 3 steps of 180, brightness within 25 levels."""
    hue, saturation, value = HUES[name]
    shift = rng.integers((-3, -25, -25), (4, 26, 26))
    if not saturation:
        shift[:2] = 0
    hsv = np.clip([saturation + shift[1], value + shift[2]], 0, 255)
    pixel = np.array([[[(hue + shift[0]) % 180, *hsv]]], np.uint8)
    return tuple(float(v) for v in cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0])


def fill(image: np.ndarray, points: np.ndarray, color: tuple[float, ...]) -> None:
    """Fill a polygon; smooth edges on pictures, hard ones on masks.

    Annotations count from the edge of the first pixel, OpenCV from its centre: hence the half.
    """
    fixed = np.round((points - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    line = cv2.LINE_AA if image.ndim == 3 else cv2.LINE_8
    cv2.fillPoly(image, [fixed], color, lineType=line, shift=_SUBPIXEL_BITS)


def box_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection of two xyxy boxes over the smaller area."""
    inner = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if inner.min() <= 0:
        return 0.0
    return float(inner.prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def cut_in_two(points: np.ndarray) -> list[np.ndarray]:
    """Two parts of an outline, left and right of a vertical gap of 12 % of its width."""
    low, high = points[:, 0].min(), points[:, 0].max()
    centre, half_gap = (low + high) / 2, 0.06 * (high - low)
    parts = [_clip(points, centre - half_gap, 1.0), _clip(points, centre + half_gap, -1.0)]
    return [np.round(part, 2) for part in parts]


def _clip(points: np.ndarray, x: float, sign: float) -> np.ndarray:
    """The piece of a polygon where sign * point_x <= sign * x (Sutherland and Hodgman)."""
    kept: list[np.ndarray] = []
    for a, b in zip(points, np.roll(points, -1, 0), strict=True):
        inside_a, inside_b = sign * a[0] <= sign * x, sign * b[0] <= sign * x
        if inside_a:
            kept.append(a)
        if inside_a != inside_b:
            kept.append(a + (b - a) * (x - a[0]) / (b[0] - a[0]))
    return np.array(kept)


def polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Column-wise run lengths of a 0/1 mask, beginning with the zeros, as COCO counts."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs

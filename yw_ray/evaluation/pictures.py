"""Pictures of results: ground truth beside predictions, precision over recall, loss over steps.

Place in the flow: Detections and annotations -> PNG files -> run folder and tracker artifacts.
Drawn with OpenCV and with matplotlib's Agg canvas; no display, no global figure state.
"""

import colorsys
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pycocotools import mask as rle

if TYPE_CHECKING:
    from yw_ray.models.outputs import Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_GAP_PX = 6
_HEADER_PX = 24
_MASK_OPACITY = 0.45


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    """What is drawn of one object; box xyxy and mask in the pixels of the original image."""

    box: Sequence[float]
    text: str
    colour: tuple[int, int, int]
    mask: np.ndarray | None = None
    dashed: bool = False


def draw_side_by_side(
    image: np.ndarray,
    annotations: Sequence[Mapping[str, Any]],
    detections: "Detections",
    names: Sequence[str],
    category_ids: Sequence[int],
    score_threshold: float = 0.3,
    max_drawn: int = 50,
) -> np.ndarray:
    """Ground truth left, predictions right, the same colour for the same class.

    Args:
        image: (H, W, 3) uint8 BGR, the original size.
        annotations: of this image, COCO or LVIS json entries; crowd regions are drawn dashed.
        detections: of this image, boxes xyxy pixels; masks are shaded where there are any.
        names: of each label; category_ids: json category id of each label.
        score_threshold: weaker predictions are left out; max_drawn: at most so many.
    Returns: (H + header, 2 W + gap, 3) uint8 BGR.
    """
    scale = max(1.0, 480 / max(image.shape[:2]))
    label_of = {c: k for k, c in enumerate(category_ids)}
    truths = []
    for annotation in annotations:
        label = label_of.get(int(annotation["category_id"]))
        x, y, w, h = annotation["bbox"]
        truths.append(
            _Object(
                box=(x, y, x + w, y + h),
                text=names[label] if label is not None else f"id {annotation['category_id']}",
                colour=_colour(label or 0),
                mask=annotation_mask(annotation, *image.shape[:2]),
                dashed=bool(annotation.get("iscrowd", 0)),
            )
        )
    shown = np.flatnonzero(detections.scores >= score_threshold)[:max_drawn]
    found = [
        _Object(
            box=detections.boxes[k].tolist(),
            text=f"{names[detections.labels[k]]} {detections.scores[k]:.2f}",
            colour=_colour(int(detections.labels[k])),
            mask=rle.decode(detections.masks[k]) if detections.masks is not None else None,
        )
        for k in shown[::-1]  # the best on top
    ]
    left, right = _draw(image, truths, scale), _draw(image, found, scale)
    titles = (
        f"truth: {len(annotations)}",
        f"predicted: {len(shown)} of {len(detections.scores)} (score >= {score_threshold:g})",
    )
    return _join(left, right, titles)


def write_pictures(
    folder: Path,
    images: Mapping[int, np.ndarray],
    annotations: Sequence[Mapping[str, Any]],
    detections: Sequence["Detections"],
    names: Sequence[str],
    category_ids: Sequence[int],
    score_threshold: float = 0.3,
) -> list[Path]:
    """One PNG for each given image: `IMAGE_ID.png`.

    Args: images: id -> (H, W, 3) uint8 BGR; annotations: of any images; detections: likewise;
    images without detections show none.
    """
    from yw_ray.models.outputs import Detections

    folder.mkdir(parents=True, exist_ok=True)
    by_image = {int(one.image_id): one for one in detections}
    paths = []
    for image_id, image in images.items():
        none = Detections(
            image_id=image_id,
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
        )
        picture = draw_side_by_side(
            image,
            [a for a in annotations if int(a["image_id"]) == image_id],
            by_image.get(image_id, none),
            names,
            category_ids,
            score_threshold,
        )
        paths.append(folder / f"{image_id}.png")
        _write_png(paths[-1], picture)
    return paths


def annotation_mask(annotation: Mapping[str, Any], height: int, width: int) -> np.ndarray | None:
    """(height, width) uint8 0/1 of an annotation's polygons or run lengths; None without."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        encoded = rle.merge(rle.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        encoded = rle.frPyObjects(segmentation, height, width)
    else:
        encoded = segmentation
    return np.asarray(rle.decode(encoded), np.uint8)


def write_pr_curve(
    path: Path,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str = "Precision over recall",
) -> Path:
    """PNG of precision over recall.

    Args: curves: legend -> (recalls, precisions), as `tables.precision_recall_curve` gives; a
    curve without precisions is named in the legend as having no ground truth.
    """
    figure, axes = _figure(title)
    for name, (recalls, precisions) in curves.items():
        if len(precisions):
            axes.plot(recalls, precisions, label=f"{name} (AP {precisions.mean():.3f})")
        else:
            axes.plot([], [], label=f"{name} (no ground truth)")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="lower left", frameon=False)
    return _save(figure, path)


def write_loss_curve(
    path: Path, spool: Path, prefix: str = "train/loss", title: str = "Training loss"
) -> Path:
    """PNG of the loss terms over steps, read from a metric spool.

    Args: spool: lines of {"step", "metrics"}, see `training.metric_log`; prefix: of the metrics
    to draw. Steps that a resumed run repeated count once, the last time; long runs are drawn
    with a running mean over them.
    """
    curves = read_curves(spool, prefix)
    figure, axes = _figure(title)
    for name, (steps, values) in curves.items():
        (line,) = axes.plot(steps, values, linewidth=0.8, alpha=0.35 if len(steps) > 40 else 1.0)
        if len(steps) > 40:
            width = max(len(steps) // 40, 5)
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[width - 1 :], smooth, color=line.get_color(), label=name)
        else:
            line.set_label(name)
    if curves:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no steps recorded yet", ha="center", transform=axes.transAxes)
    axes.set(xlabel="step", ylabel="loss")
    axes.set_ylim(bottom=0)
    return _save(figure, path)


def read_curves(spool: Path, prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (steps ascending, values) of the metrics whose names begin with `prefix`.

    Lines that are torn and values that are not finite are left out.
    """
    points: dict[str, dict[int, float]] = {}
    for line in spool.read_text().splitlines() if spool.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        for name, value in entry.get("metrics", {}).items():
            if name.startswith(prefix) and math.isfinite(value):
                points.setdefault(name, {})[entry["step"]] = value
    return {
        name: (np.array(sorted(values)), np.array([values[s] for s in sorted(values)]))
        for name, values in sorted(points.items())
    }


def _draw(image: np.ndarray, objects: Sequence[_Object], scale: float) -> np.ndarray:
    """The enlarged image with masks, then boxes, then names, so that names stay readable."""
    nearest = cv2.INTER_NEAREST
    canvas = cv2.resize(image, None, fx=scale, fy=scale, interpolation=nearest)
    height, width = canvas.shape[:2]
    for one in objects:
        if one.mask is not None:
            mask = cv2.resize(
                np.ascontiguousarray(one.mask), (width, height), interpolation=nearest
            )
            tint = np.array(one.colour) * _MASK_OPACITY
            inside = mask > 0
            canvas[inside] = (canvas[inside] * (1 - _MASK_OPACITY) + tint).astype(np.uint8)
            rims, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(canvas, rims, -1, one.colour, 1)
    for one in objects:
        left, top, right, bottom = (round(v * scale) for v in one.box)
        if one.dashed:
            _dashed_box(canvas, (left, top, right, bottom), one.colour)
        else:
            cv2.rectangle(canvas, (left, top), (right, bottom), one.colour, 2)
    for one in objects:
        _write_name(canvas, one, scale)
    return canvas


def _write_name(canvas: np.ndarray, one: _Object, scale: float) -> None:
    """The name above the box's corner, moved inside the picture; in place."""
    height, width = canvas.shape[:2]
    (wide, high), base = cv2.getTextSize(one.text, _FONT, 0.45, 1)
    x = int(np.clip(round(one.box[0] * scale), 0, max(width - wide - 4, 0)))
    y = int(np.clip(round(one.box[1] * scale), high + base + 2, height - 2))
    cv2.rectangle(canvas, (x, y - high - base - 2), (x + wide + 4, y), one.colour, -1)
    blue, green, red = one.colour
    ink = (255, 255, 255) if 0.114 * blue + 0.587 * green + 0.299 * red < 140 else (0, 0, 0)
    cv2.putText(canvas, one.text, (x + 2, y - base), _FONT, 0.45, ink, 1, cv2.LINE_AA)


def _dashed_box(
    canvas: np.ndarray, box: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> None:
    left, top, right, bottom = box
    for x in range(left, right, 12):
        for y in (top, bottom):
            cv2.line(canvas, (x, y), (min(x + 6, right), y), colour, 2)
    for y in range(top, bottom, 12):
        for x in (left, right):
            cv2.line(canvas, (x, y), (x, min(y + 6, bottom)), colour, 2)


def _join(left: np.ndarray, right: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    height, width = left.shape[:2]
    canvas = np.full((height + _HEADER_PX, 2 * width + _GAP_PX, 3), 255, np.uint8)
    for x, part, title in ((0, left, titles[0]), (width + _GAP_PX, right, titles[1])):
        canvas[_HEADER_PX:, x : x + width] = part
        cv2.putText(canvas, title, (x + 4, 17), _FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas


def _colour(label: int) -> tuple[int, int, int]:
    """BGR of a class; neighbours differ by the golden angle of hue."""
    red, green, blue = colorsys.hsv_to_rgb(0.61803399 * label % 1.0, 0.75, 0.95 - 0.2 * (label % 2))
    return round(255 * blue), round(255 * green), round(255 * red)


def _figure(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")
    return path


def _write_png(path: Path, picture: np.ndarray) -> None:
    done, data = cv2.imencode(".png", picture)
    assert done, f"{path} could not be encoded"
    path.write_bytes(data.tobytes())

"""Annotations to judge by, and detections in the engines' form; all user errors live here.

Place in the flow: annotation json + Detections -> (coco, lvis) engines.
Source: COCO results format (cocodataset.org/#format-results), LVIS v1 annotation format.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from yw_ray.models.outputs import Detections


@dataclass(frozen=True, slots=True)
class Results:
    """Detections of all judged images as columns.

    image_ids, category_ids: (N,) int64; boxes: (N, 4) float64 xywh pixels; scores: (N,) float64;
    masks: N compressed run-length encodings, or None for boxes.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    masks: list[dict[str, Any]] | None

    def __len__(self) -> int:
        return len(self.scores)

    def array(self) -> np.ndarray:
        """(N, 7) float64 of image, x, y, w, h, score, category."""
        columns = (self.image_ids, *self.boxes.T, self.scores, self.category_ids)
        return np.stack([np.asarray(c, np.float64) for c in columns], axis=1)

    def dicts(self) -> list[dict[str, Any]]:
        """COCO results; masks without boxes, so that the oracles take the mask's area."""
        rows = zip(
            self.image_ids.tolist(), self.category_ids.tolist(), self.scores.tolist(), strict=True
        )
        base = [{"image_id": i, "category_id": c, "score": s} for i, c, s in rows]
        if self.masks is None:
            for row, box in zip(base, self.boxes.tolist(), strict=True):
                row["bbox"] = box
        else:
            for row, mask in zip(base, self.masks, strict=True):
                row["segmentation"] = mask
        return base


def as_results(
    detections: Sequence["Detections"],
    category_ids: Sequence[int],
    kind: str,
    known_images: Sequence[int],
    image_ids: Sequence[int] | None,
) -> Results:
    """Detections as columns, labels turned into json category ids.

    Detections of images that are known but not listed in `image_ids` are left out.
    Raises: ValueError for an image twice or unknown, a label without category, a score that is
    no number, or missing masks.
    """
    known, judged = set(known_images), set(known_images if image_ids is None else image_ids)
    lookup = np.asarray(category_ids, np.int64)
    seen: set[int] = set()
    kept = []
    for one in detections:
        image_id = int(one.image_id)
        if image_id in seen:
            raise ValueError(
                f"detections hold image {image_id} twice; predict each image exactly once"
            )
        if image_id not in known:
            raise ValueError(
                f"detections hold image {image_id}, which the annotations do not; "
                "use the annotation file of the same split"
            )
        seen.add(image_id)
        if image_id in judged and len(one.scores):
            _check_detections(one, len(lookup), kind)
            kept.append(one)
    masks = [m for one in kept for m in one.masks or ()] if kind == "segm" else None
    if not kept:
        none = np.zeros(0, np.int64)
        return Results(none, none, np.zeros((0, 4)), np.zeros(0), masks)
    boxes = np.concatenate([one.boxes for one in kept]).astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    labels = np.concatenate([one.labels for one in kept])
    counts = [len(one.scores) for one in kept]
    return Results(
        np.repeat(np.array([one.image_id for one in kept], np.int64), counts),
        lookup[labels],
        boxes,
        np.concatenate([one.scores for one in kept]).astype(np.float64),
        masks,
    )


def check_categories(category_ids: Sequence[int], known: Sequence[int]) -> None:
    """Raises: ValueError when a label would have no category, or two labels the same one."""
    unknown = sorted(set(category_ids) - set(known))
    if unknown:
        raise ValueError(
            f"category id {unknown[0]} is not among the {len(known)} categories of the "
            "annotations; labels and annotation file belong to different vocabularies"
        )
    if len(set(category_ids)) != len(category_ids):
        raise ValueError("category_ids holds an id twice; each label needs a category of its own")


def judged_images(image_ids: Sequence[int] | None, known: Sequence[int]) -> list[int]:
    """The image ids to judge, ascending: all known ones, or the listed ones.

    Raises: ValueError for a listed image that the annotations do not hold, or an empty list.
    """
    listed = sorted({int(i) for i in (known if image_ids is None else image_ids)})
    unknown = sorted(set(listed) - set(known))
    if unknown:
        raise ValueError(
            f"image {unknown[0]} is to be judged but not in the annotations "
            f"({len(known)} images); use the annotation file of the same split"
        )
    if not listed:
        raise ValueError("no image to judge; the annotations or the list of image ids are empty")
    return listed


def read_annotations(source: Path | Mapping[str, Any], style: str) -> dict[str, Any]:
    """The annotation json as a dict, its outline checked.

    Raises: ValueError for an unreadable file or one that is no COCO (LVIS) annotation file.
    """
    if isinstance(source, Mapping):
        name, tree = "annotations", dict(source)
    else:
        name, tree = str(source), read_json(source)
        if not isinstance(tree, dict):
            raise ValueError(
                f"{name} holds a JSON {type(tree).__name__}, expected an annotation file with "
                "images, annotations and categories (are ground truth and detections swapped?)"
            )
    check_outline(name, tree, style)
    return tree


def check_outline(name: str, tree: Mapping[str, Any], style: str) -> None:
    """Raises: ValueError naming the first field that a COCO or LVIS annotation file must have."""
    fields = {
        "images": ["id"],
        "annotations": ["id", "image_id", "category_id", "bbox", "area"],
        "categories": ["id", "name"] + (["frequency"] if style == "lvis" else []),
    }
    for section, keys in fields.items():
        entries = tree.get(section)
        if not isinstance(entries, list) or (not entries and section != "annotations"):
            raise ValueError(
                f"{name} has no list {section!r}; expected a {style.upper()} annotation file"
            )
        for entry in entries:
            missing = next((key for key in keys if key not in entry), None)
            if missing:
                hint = "; is this a COCO file? then use style coco" if style == "lvis" else ""
                raise ValueError(
                    f"{name}: entry {entry.get('id', '?')} of {section!r} has no {missing!r}{hint}"
                )


def read_json(path: Path) -> Any:
    """Parse a JSON file, gzipped where its name ends in .gz.

    Raises: ValueError in one line when it is missing, unreadable or broken.
    """
    try:
        content = path.read_bytes()
        return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; give the path of a JSON file") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _check_detections(one: "Detections", num_classes: int, kind: str) -> None:
    sizes = {len(one.boxes), len(one.scores), len(one.labels)}
    if kind == "segm":
        if one.masks is None:
            raise ValueError(
                f"detections of image {one.image_id} have no masks; "
                "segm needs a segmentation model, or judge kind bbox"
            )
        sizes.add(len(one.masks))
    assert len(sizes) == 1, f"image {one.image_id}: columns of lengths {sorted(sizes)}"
    low, high = int(one.labels.min()), int(one.labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"image {one.image_id} has label {low if low < 0 else high}, but there are "
            f"{num_classes} categories; predict with the vocabulary of the annotations"
        )
    if not (np.isfinite(one.scores).all() and np.isfinite(one.boxes).all()):
        raise ValueError(
            f"image {one.image_id} has a score or box that is not finite; the model diverged"
        )

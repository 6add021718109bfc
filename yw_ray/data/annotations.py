"""COCO and LVIS json -> one annotation list per image, by the rules of the published training.

Place in the flow: the first reader of a user's files; `jobs/prepare.py` turns its result and the
pictures into shards. Whatever a damaged or hostile file holds ends in a ValueError of one line.
Source: YOLO-World fine-tuning recipes (arXiv 2401.17270); COCO and LVIS v1 file layouts.
"""

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from yw_ray.data.masks import polygons_from_coco
from yw_ray.data.sample import Polygons

Style = Literal["coco", "lvis"]
MIN_TRAIN_SIDE = 32
_MAX_SIDE = 1 << 20
_LVIS_RESPELLED = {
    "speaker_(stero_equipment)": "speaker_(stereo_equipment)",
    "monitor_(computer_equipment) computer_monitor": "monitor_(computer_equipment)",
    "wiper_(for_windshield/screen)": "wiper_(for_windshield or screen)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageAnnotations:
    """One image of the json with the objects that are kept, in file order.

    path: below the image root, posix; height, width: as the json says; boxes: (M, 4) float32 xyxy
    pixels, not clipped; labels: (M,) int64 into the classes; crowd: (M,) bool; polygons: of all M
    objects (run-length encoded ones have none).
    """

    image_id: int
    path: str
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    polygons: Polygons


@dataclass(frozen=True, kw_only=True)
class AnnotationSet:
    """A parsed annotation file.

    images: in file order; classes: texts of each label; category_ids: label -> json id;
    source_images: images in the file before filtering; dropped: reason -> how many.
    """

    images: list[ImageAnnotations]
    classes: tuple[tuple[str, ...], ...]
    category_ids: tuple[int, ...]
    source_images: int
    dropped: dict[str, int]


def load_json(path: Path) -> dict[str, Any]:
    """Read an annotation file.

    Coordinate lists are packed as they are met: the Python objects of a million polygons would
    take several times the memory.
    Raises: ValueError if the file cannot be read or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_packed)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot read annotations {path}: {reason}; check the path") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "give a COCO or LVIS annotation file, unpacked and whole"
        ) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise ValueError(f"{path} is not JSON text; give a COCO or LVIS annotation file") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected a COCO object")
    return content


def parse_annotations(
    content: Mapping[str, Any],
    *,
    style: Style = "coco",
    wanted: Collection[str] | None = None,
    frequencies: str = "rcf",
    min_side: int = 0,
    filter_empty: bool = False,
) -> AnnotationSet:
    """Apply the parsing and filter rules of the published training.

    Labels count the wanted categories in the order of the json's `categories`. Dropped:
    annotations flagged `ignore`, without area or thinner than a pixel, outside their image, of
    other categories. Crowds are kept and marked. Boxes are not clipped.

    Args:
        content: a COCO or LVIS object.
        wanted: category names to keep; None keeps all.
        frequencies: LVIS: frequency letters to keep ("cf" is LVIS-Base).
        min_side: images with a shorter side are dropped (training: 32).
        filter_empty: drop images without an annotation of the kept categories.
    Raises: ValueError naming the first thing that is wrong.
    Source: YOLO-World training recipes; the 866 classes of LVIS-Base are LVIS v1 without "r".
    """
    images, annotations, categories = (
        _entries(content, key) for key in ("images", "annotations", "categories")
    )
    if not images:
        raise ValueError("the annotations hold no images: give a file with at least one")
    labels, classes = _read_categories(categories, style, wanted, frequencies)
    sizes: dict[int, tuple[int, int]] = {}
    paths: dict[int, str] = {}
    for entry in images:
        image_id = _integer(entry, "id", "image")
        if image_id < 0:  # ids seed the random numbers of their images
            raise ValueError(f"image id {image_id} is negative: ids must be 0 or more")
        if image_id in sizes:
            raise ValueError(f"image id {image_id} occurs twice: ids must be unique")
        what = f"image {image_id}"
        sizes[image_id] = (_side(entry, "height", what), _side(entry, "width", what))
        paths[image_id] = image_path(entry, style)

    dropped: Counter[str] = Counter()
    kept: dict[int, list[Mapping[str, Any]]] = {image_id: [] for image_id in sizes}
    boxes: dict[int, list[list[float]]] = {image_id: [] for image_id in sizes}
    occupied: set[int] = set()
    known = {_integer(category, "id", "category") for category in categories}
    seen: set[int] = set()
    for entry in annotations:
        annotation_id = _integer(entry, "id", "annotation")
        if annotation_id in seen:
            raise ValueError(f"annotation id {annotation_id} occurs twice: ids must be unique")
        seen.add(annotation_id)
        what = f"annotation {annotation_id}"
        image_id = _integer(entry, "image_id", what)
        category_id = _integer(entry, "category_id", what)
        if image_id not in sizes:
            dropped["annotations of unknown images"] += 1
            continue
        if category_id not in labels:
            other = "other" if category_id in known else "unknown"
            dropped[f"annotations of {other} categories"] += 1
            continue
        occupied.add(image_id)
        x, y, w, h = _box(entry, what)
        _check_segmentation(entry, what)
        reason = _why_dropped(entry, x, y, w, h, sizes[image_id], what)
        if reason:
            dropped[reason] += 1
            continue
        kept[image_id].append(entry)
        boxes[image_id].append([x, y, x + w, y + h])

    parsed: list[ImageAnnotations] = []
    for image_id, (height, width) in sizes.items():
        if min(height, width) < min_side:
            dropped["images too small"] += 1
        elif filter_empty and image_id not in occupied:
            dropped["images without objects"] += 1
        else:
            objects = kept.pop(image_id)
            parsed.append(
                ImageAnnotations(
                    image_id=image_id,
                    path=paths[image_id],
                    height=height,
                    width=width,
                    boxes=np.array(boxes.pop(image_id), np.float32).reshape(-1, 4),
                    labels=np.array([labels[o["category_id"]] for o in objects], np.int64),
                    crowd=np.array([bool(o.get("iscrowd")) for o in objects], bool),
                    polygons=polygons_from_coco([o.get("segmentation") for o in objects]),
                )
            )
    if not parsed:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items()))
        raise ValueError(f"no image is left after filtering ({reasons}): check file and options")
    return AnnotationSet(
        images=parsed,
        classes=tuple(classes),
        category_ids=tuple(labels),
        source_images=len(images),
        dropped=dict(sorted(dropped.items())),
    )


def image_path(entry: Mapping[str, Any], style: Style) -> str:
    """Path of an image below the image root.

    COCO: `file_name`. LVIS: the last two components of `coco_url`, else `file_name`.
    Raises: ValueError if there is none or it leaves the root.
    """
    name, url = entry.get("file_name"), entry.get("coco_url")
    if style == "lvis" and isinstance(url, str) and url.count("/") >= 2:
        name = "/".join(url.split("/")[-2:])
    what = f"image {entry.get('id')}"
    if not isinstance(name, str) or not name:
        hint = "is it LVIS?" if url and style == "coco" else "name the file of each image"
        raise ValueError(f"{what} has no file_name; {hint}")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or not parts or not name.isprintable():
        raise ValueError(f"{what}: file_name {name!r} leaves the image folder; it is refused")
    return PurePosixPath(name).as_posix()


def lvis_texts(synonyms: Sequence[str]) -> list[str]:
    """Class texts of an LVIS category: `_` is a space, `x_(y)` gives `x` and `x y`, order kept.

    Three synonyms are respelled as in the published text list of the 1203 classes.
    """
    texts: list[str] = []
    for synonym in synonyms:
        synonym = _LVIS_RESPELLED.get(synonym, synonym)
        bracketed = re.fullmatch(r"(.+)_\((.+)\)", synonym)
        forms = [bracketed[1], f"{bracketed[1]} {bracketed[2]}"] if bracketed else [synonym]
        texts += [form.replace("_", " ") for form in forms]
    return texts


def _read_categories(
    categories: list[Mapping[str, Any]],
    style: Style,
    wanted: Collection[str] | None,
    frequencies: str,
) -> tuple[dict[int, int], list[tuple[str, ...]]]:
    """Category id -> label, and the texts of each label."""
    labels: dict[int, int] = {}
    classes: list[tuple[str, ...]] = []
    names: dict[str, int] = {}
    ids: set[int] = set()
    for entry in categories:
        category_id = _integer(entry, "id", "category")
        if category_id in ids:
            raise ValueError(f"category id {category_id} occurs twice: ids must be unique")
        ids.add(category_id)
        name, what = entry.get("name"), f"category {category_id}"
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{what} has no name: each class needs a text to be found by")
        if names.setdefault(name, category_id) != category_id:
            raise ValueError(f"categories {names[name]} and {category_id} are both named {name!r}")
        texts = [name]
        if style == "lvis":
            synonyms = entry.get("synonyms", [name])
            texts = lvis_texts(synonyms) if _are_texts(synonyms) else []
            if not texts or not all(text.strip() for text in texts):
                raise ValueError(
                    f"{what} ({name!r}) has no usable synonyms, expected a list of texts"
                )
            frequency = entry.get("frequency")
            if frequency not in ("r", "c", "f"):
                raise ValueError(
                    f"{what} ({name!r}) has no frequency r, c or f: it is no LVIS file"
                )
            if frequency not in frequencies:
                continue
        if wanted is None or name in wanted:
            labels[category_id] = len(classes)
            classes.append(tuple(texts))
    missing = sorted(set(wanted or ()) - set(names))
    if missing:
        raise ValueError(f"no category is named {missing[0]!r}: correct the wanted names")
    if not classes:
        raise ValueError(f"no category is left of {len(categories)}: check the file and options")
    return labels, classes


def _why_dropped(
    entry: Mapping[str, Any],
    x: float,
    y: float,
    w: float,
    h: float,
    size: tuple[int, int],
    what: str,
) -> str | None:
    if entry.get("ignore"):
        return "annotations flagged ignore"
    height, width = size
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return "annotations outside their image"
    if _number(entry, "area", what) <= 0 or w < 1 or h < 1:
        return "annotations without area"
    return None


def _packed(entry: dict[str, Any]) -> dict[str, Any]:
    """Replace lists of coordinates by arrays; what is no list of numbers stays for the checks."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):
        entry["segmentation"] = [_pack(part) for part in segmentation]
    return entry


def _pack(part: Any) -> Any:
    if not isinstance(part, list):
        return part
    try:
        return array("f", part)
    except (TypeError, OverflowError):
        return part


def _check_segmentation(entry: Mapping[str, Any], what: str) -> None:
    segmentation = entry.get("segmentation")
    if segmentation is None or isinstance(segmentation, dict):
        return
    if isinstance(segmentation, list):
        parts = [p if isinstance(p, array) else _pack(p) for p in segmentation]
        if all(isinstance(p, array) and all(map(math.isfinite, p)) for p in parts):
            return
    raise ValueError(
        f"{what}: segmentation must be a list of polygons, each a flat list of finite numbers, "
        "or a run-length encoding"
    )


def _entries(content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"the annotations have no list of objects {key!r}: not a COCO file")
    return entries


def _integer(entry: Mapping[str, Any], key: str, what: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{what}: {key} must be a whole number, got {_shown(value)}")
    return value


def _side(entry: Mapping[str, Any], key: str, what: str) -> int:
    value = _integer(entry, key, what)
    if not 1 <= value <= _MAX_SIDE:
        raise ValueError(f"{what}: {key} must be 1 to {_MAX_SIDE} pixels, got {value}")
    return value


def _number(entry: Mapping[str, Any], key: str, what: str) -> float:
    return _finite(entry.get(key), key, what)


def _finite(value: Any, key: str, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise ValueError(f"{what}: {key} must hold finite numbers, got {_shown(value)}")
    return float(value)


def _box(entry: Mapping[str, Any], what: str) -> list[float]:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"{what}: bbox must be [x, y, width, height], got {_shown(box)}")
    return [_finite(value, "bbox", what) for value in box]


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _shown(value: Any) -> str:
    """A value of a user's file, short enough for one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

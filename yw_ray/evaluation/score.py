"""Score: a pair of JSON files, annotations and detections -> ApTable.

Place in the flow: beside `coco.evaluate`, for results that already lie on disk, whoever made them.
Source: COCO results format (cocodataset.org/#format-results); LVIS takes the same.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yw_ray.evaluation.ap_table import ApTable
from yw_ray.evaluation.coco import (
    Engine,
    Kind,
    Style,
    check_engine,
    load_truth,
    protocol_of,
    run_engine,
)
from yw_ray.evaluation.ground_truth import judged_images, read_json
from yw_ray.evaluation.tables import to_ap_table


def score_files(
    ground_truth: Path,
    detections: Path,
    kind: Kind = "bbox",
    style: Style = "coco",
    engine: Engine = "hotcoco",
) -> ApTable:
    """Judge a file of COCO results against an annotation file, all of its images.

    Args:
        ground_truth: COCO or LVIS annotation json.
        detections: json list of {image_id, category_id, score, bbox or segmentation}; rows that
            carry both are judged by their masks for segm, with the area of their boxes, as
            pycocotools and lvis do.
        kind, style, engine: as in `coco.evaluate`.
    Raises: ValueError in one line for a missing, broken or mismatched file.
    """
    check_engine(kind, style, engine)
    truth, known, categories = load_truth(ground_truth, style, engine)
    judged = judged_images(None, known)
    rows = read_results(detections, kind, set(known), set(categories))
    tables = run_engine(truth, rows, kind, style, engine, judged)
    return to_ap_table(tables, protocol_of(tables, sorted(categories), judged, engine))


def score_json(table: ApTable) -> str:
    """The table as `{"metrics": {...}, "protocol": {...}}`, fractions, -1 where undefined."""
    return json.dumps({"metrics": table.metrics, "protocol": table.protocol}, indent=1)


def read_results(
    path: Path, kind: str, image_ids: set[int], category_ids: set[int]
) -> list[dict[str, Any]]:
    """COCO results, each row checked.

    Raises: ValueError naming the first row that cannot be judged and why.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} holds a JSON {type(rows).__name__}, expected a list of detections "
            "(are ground truth and detections swapped?)"
        )
    for number, row in enumerate(rows):
        fault = _fault(row, kind, image_ids, category_ids)
        if fault:
            raise ValueError(f"{path}: detection {number} {fault}")
    return rows


def _fault(row: Any, kind: str, image_ids: set[int], category_ids: set[int]) -> str:
    if not isinstance(row, dict):
        return f"is a JSON {type(row).__name__}, expected an object with image_id, category_id, ..."
    missing = next((k for k in ("image_id", "category_id", "score") if k not in row), None)
    if missing:
        return f"has no {missing!r}"
    odd = next((k for k in ("image_id", "category_id") if type(row[k]) is not int), None)
    if odd:
        return f"has {odd} {row[odd]!r}, expected an integer"
    if row["image_id"] not in image_ids:
        return (
            f"is of image {row['image_id']}, which the annotations do not hold; "
            "use the annotation file of the same split"
        )
    if row["category_id"] not in category_ids:
        return (
            f"has category {row['category_id']}, which the annotations do not hold; "
            "write the json category ids, not the labels"
        )
    if not _is_number(row["score"]):
        return f"has score {row['score']!r}, expected a finite number"
    if "bbox" not in row and "segmentation" not in row:
        return "has neither 'bbox' nor 'segmentation'"
    if kind == "segm" and "segmentation" not in row:
        return "has no 'segmentation'; score it with kind bbox"
    if "segmentation" in row and not _is_mask(row["segmentation"]):
        return "has a segmentation that is no compressed run-length encoding {size, counts}"
    if "bbox" in row and not _is_box(row["bbox"]):
        return f"has bbox {row['bbox']!r}, expected [x, y, width, height] in pixels"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_box(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 4 and all(map(_is_number, value))


def _is_mask(value: Any) -> bool:
    return isinstance(value, dict) and "size" in value and isinstance(value.get("counts"), str)

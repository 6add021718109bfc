"""EvalTables: the raw precision and recall arrays of one evaluation, whatever engine made them.

Place in the flow: engines (`coco`, `lvis`) -> EvalTables -> ApTable, PR curves. All summary
figures are computed here, by one arithmetic, so that engines can only differ in the arrays.
Source: COCOeval.summarize and LVISEval.summarize (pycocotools 2.0.11, lvis 0.5.3).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from yw_ray.evaluation.ap_table import ApTable, ClassAp

AREAS = ("all", "small", "medium", "large")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
FREQUENCIES = ("r", "c", "f")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalTables:
    """Arrays over T = 10 IoU thresholds, R = 101 recalls, K classes, A = 4 areas, M caps.

    precision: (T, R, K, A, M) float64, -1 where a class has no ground truth;
    recall: (T, K, A, M) float64; max_dets: the M caps on detections, ascending: of each image and
    class for COCO, of each image for LVIS; category_ids: (K,) ascending json ids; names and
    num_gt: of the K classes; frequencies: of the K classes, () for COCO.
    """

    style: str
    kind: str
    precision: np.ndarray
    recall: np.ndarray
    max_dets: tuple[int, ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    num_gt: tuple[int, ...]
    frequencies: tuple[str, ...]
    num_images: int


def summary_metrics(tables: EvalTables) -> dict[str, float]:
    """The twelve COCO or thirteen LVIS figures, fractions, -1 where undefined."""
    precision, recall = tables.precision[..., -1], tables.recall
    metrics = {
        "AP": _mean_defined(precision[..., 0]),
        "AP50": _mean_defined(precision[_iou_index(0.5), ..., 0]),
        "AP75": _mean_defined(precision[_iou_index(0.75), ..., 0]),
    }
    for area in AREAS[1:]:
        metrics[f"AP{area[0]}"] = _mean_defined(precision[..., AREAS.index(area)])
    for group in FREQUENCIES if tables.style == "lvis" else ():
        of_group = [f == group for f in tables.frequencies]
        metrics[f"AP{group}"] = _mean_defined(precision[:, :, np.array(of_group, bool), 0])
    if tables.style == "lvis":
        names = [(f"AR{area[:1] if area != 'all' else ''}@300", area, -1) for area in AREAS]
    else:
        names = [(f"AR{cap}", "all", m) for m, cap in enumerate(tables.max_dets)]
        names += [(f"AR{area[0]}", area, -1) for area in AREAS[1:]]
    for name, area, m in names:
        metrics[name] = _mean_defined(recall[:, :, AREAS.index(area), m])
    return metrics


def to_ap_table(tables: EvalTables, protocol: Mapping[str, str | int | float]) -> ApTable:
    """Summary, per-class figures and protocol in one value."""
    precision = tables.precision[:, :, :, 0, -1]
    at_50, at_75 = precision[_iou_index(0.5)], precision[_iou_index(0.75)]
    per_class = [
        ClassAp.model_validate(
            {
                "class": name,
                "category_id": tables.category_ids[k],
                "AP": _mean_defined(precision[:, :, k]),
                "AP50": _mean_defined(at_50[:, k]),
                "AP75": _mean_defined(at_75[:, k]),
                "num_gt": tables.num_gt[k],
                "frequency": tables.frequencies[k] if tables.frequencies else "",
            }
        )
        for k, name in enumerate(tables.names)
    ]
    return ApTable(
        metrics=summary_metrics(tables), per_class=tuple(per_class), protocol=dict(protocol)
    )


def precision_recall_curve(tables: EvalTables, iou: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Precision over recall, averaged over the classes that have ground truth.

    Returns: (101,) recalls and (101,) precisions; the precisions are empty when no class has any.
    """
    precision = tables.precision[_iou_index(iou), :, :, 0, -1]
    with_truth = precision.min(axis=0, initial=0.0) > -1
    if not with_truth.any():
        return RECALL_THRESHOLDS, np.empty(0)
    return RECALL_THRESHOLDS, precision[:, with_truth].mean(axis=1)


def names_digest(names: Sequence[str]) -> str:
    """Twelve hex digits that change with any name or with their order."""
    text = json.dumps(list(names), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def ids_digest(image_ids: Sequence[int]) -> str:
    """Twelve hex digits of a set of image ids."""
    return hashlib.sha256(json.dumps(sorted(image_ids)).encode()).hexdigest()[:12]


def class_facts(
    categories: Sequence[Mapping[str, Any]], num_gt: Mapping[int, int], style: str
) -> dict[str, Any]:
    """`category_ids`, `names`, `num_gt` and `frequencies` of `EvalTables`, ascending by id."""
    ordered = sorted(categories, key=lambda category: int(category["id"]))
    ids = tuple(int(category["id"]) for category in ordered)
    return {
        "category_ids": ids,
        "names": tuple(str(category["name"]) for category in ordered),
        "num_gt": tuple(num_gt.get(i, 0) for i in ids),
        "frequencies": tuple(c["frequency"] for c in ordered) if style == "lvis" else (),
    }


def _iou_index(iou: float) -> int:
    return int(np.abs(IOU_THRESHOLDS - iou).argmin())


def _mean_defined(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0

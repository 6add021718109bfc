"""Detections -> ApTable: the door of evaluation, and the COCO engines behind it.

Place in the flow: postprocess -> Detections -> here -> ApTable -> tracking.
hotcoco judges by default; pycocotools gives the same tables and stays selectable.
Source: COCO detection evaluation (pycocotools 2.0.11): IoU 0.50:0.95, caps 1, 10 and 100.
"""

import contextlib
import importlib.metadata
import io
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from yw_ray.evaluation import lvis
from yw_ray.evaluation.ap_table import ApTable
from yw_ray.evaluation.ground_truth import (
    Results,
    as_results,
    check_categories,
    check_outline,
    judged_images,
    read_annotations,
)
from yw_ray.evaluation.tables import (
    EvalTables,
    class_facts,
    ids_digest,
    names_digest,
    to_ap_table,
)

if TYPE_CHECKING:
    from yw_ray.models.outputs import Detections

Kind = Literal["bbox", "segm"]
Style = Literal["coco", "lvis"]
Engine = Literal["hotcoco", "pycocotools", "lvis"]
ENGINES: dict[str, tuple[str, ...]] = {
    "coco": ("hotcoco", "pycocotools"),
    "lvis": ("hotcoco", "lvis"),
}
LVIS_MAX_DETS = 300


def evaluate(
    ground_truth: Path | Mapping[str, Any],
    detections: Sequence["Detections"],
    category_ids: Sequence[int],
    kind: Kind = "bbox",
    style: Style = "coco",
    engine: Engine = "hotcoco",
    image_ids: Sequence[int] | None = None,
    protocol: Mapping[str, str | int | float] | None = None,
) -> ApTable:
    """Judge detections against annotations.

    Args:
        ground_truth: COCO or LVIS annotation json, or its content.
        detections: of each image at most once; images without detections may be absent.
        category_ids: json category id of each label.
        kind: boxes or masks; masks are judged by their own area.
        style: LVIS honours negative and not exhaustively annotated categories, at most 300
            detections an image; COCO at most 100 of each class.
        engine: `hotcoco`, or the slow oracle of the style: `pycocotools`, `lvis`.
        image_ids: judge these only, whatever else was detected; None for all.
        protocol: further entries for the table, such as split, text_encoder, image_size.
    Returns: figures over all categories of the annotations.
    Raises: ValueError for anything a user can get wrong, in one line.
    Source: COCO and LVIS evaluation; Lin et al. arXiv 1405.0312, Gupta et al. arXiv 1908.03195.
    """
    tables, facts = evaluate_tables(
        ground_truth, detections, category_ids, kind, style, engine, image_ids
    )
    return to_ap_table(tables, {**facts, **(protocol or {})})


def evaluate_tables(
    ground_truth: Path | Mapping[str, Any],
    detections: Sequence["Detections"],
    category_ids: Sequence[int],
    kind: Kind = "bbox",
    style: Style = "coco",
    engine: Engine = "hotcoco",
    image_ids: Sequence[int] | None = None,
) -> tuple[EvalTables, dict[str, str | int | float]]:
    """As `evaluate`, but the raw precision and recall arrays, and the protocol entries."""
    check_engine(kind, style, engine)
    truth, known, categories = load_truth(ground_truth, style, engine)
    check_categories(category_ids, categories)
    judged = judged_images(image_ids, known)
    results = as_results(detections, category_ids, kind, known, image_ids)
    found = results if engine == "hotcoco" else results.dicts()
    tables = run_engine(truth, found, kind, style, engine, judged)
    return tables, protocol_of(tables, category_ids, judged, engine)


def load_truth(
    source: Path | Mapping[str, Any], style: str, engine: str
) -> tuple[Any, list[int], list[int]]:
    """Annotations in the engine's form, and the image and category ids they hold."""
    if engine == "hotcoco":
        truth = load_hotcoco(source, style)
        return truth, truth.get_img_ids(), truth.get_cat_ids()
    tree = read_annotations(source, style)
    images, categories = ([int(e["id"]) for e in tree[part]] for part in ("images", "categories"))
    return tree, images, categories


def protocol_of(
    tables: EvalTables, category_ids: Sequence[int], judged: Sequence[int], engine: str
) -> dict[str, str | int | float]:
    """What evaluation itself knows of the protocol; the caller adds split, texts and the like."""
    names = dict(zip(tables.category_ids, tables.names, strict=True))
    return {
        "style": tables.style,
        "kind": tables.kind,
        "images": len(judged),
        "image_set": ids_digest(judged),
        "max_dets": tables.max_dets[-1],
        "classes": len(category_ids),
        "class_order": names_digest([names[i] for i in category_ids]),
        "engine": engine,
        "engine_version": importlib.metadata.version(engine),
    }


def check_engine(kind: str, style: str, engine: str) -> None:
    """Raises: ValueError for a kind or style that does not exist, or an engine it has not."""
    if kind not in ("bbox", "segm"):
        raise ValueError(f"kind must be bbox or segm, got {kind!r}")
    if style not in ENGINES:
        raise ValueError(f"style must be coco or lvis, got {style!r}")
    if engine not in ENGINES[style]:
        raise ValueError(
            f"style {style} is judged by {' or '.join(ENGINES[style])}, got {engine!r}"
        )


def run_engine(
    truth: Any,
    found: Results | list[dict[str, Any]],
    kind: str,
    style: str,
    engine: str,
    judged: list[int],
) -> EvalTables:
    """Call the engine.

    Args: truth: in the engine's own form, from `load_truth`; found: COCO results, or columns,
    which hotcoco alone takes.
    """
    if engine == "hotcoco":
        return _hotcoco(truth, _load_results(truth, found), kind, style, judged)
    assert isinstance(found, list), f"{engine} reads COCO results"
    if engine == "pycocotools":
        return _pycocotools(truth, found, kind, judged)
    return lvis.lvis_tables(truth, found, kind, judged)


def load_hotcoco(source: Path | Mapping[str, Any], style: str) -> Any:
    """Annotations as a hotcoco.COCO, parsed outside Python.

    Raises: ValueError in one line for a file that cannot be read or is no annotation file.
    """
    import hotcoco

    name = "annotations" if isinstance(source, Mapping) else str(source)
    if isinstance(source, Path) and source.suffix == ".gz":
        source = read_annotations(source, style)
    try:
        truth = hotcoco.COCO(dict(source) if isinstance(source, Mapping) else name)
    except FileNotFoundError as error:
        raise ValueError(f"{name} does not exist; give the path of an annotation json") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name} is no {style.upper()} annotation file: {reason}") from error
    outline = {
        "images": truth.load_imgs(truth.get_img_ids()),
        "annotations": [],
        "categories": truth.load_cats(truth.get_cat_ids()),
    }
    check_outline(name, outline, style)
    return truth


def _load_results(truth: Any, found: Results | list[dict[str, Any]]) -> Any:
    """Detections as a hotcoco.COCO; columns need no Python object for each detection."""
    import hotcoco

    if isinstance(found, list):
        return truth.load_res(found)
    if not found.masks:
        return truth.load_res(found.array())
    loaded = truth.load_res(found.array(), segmentation=found.masks)
    # It takes the area of the boxes; masks are to be judged by their own.
    ids = np.arange(1, len(found) + 1)
    loaded.update_anns(ids=ids, area=np.asarray(hotcoco.mask.area(found.masks), np.float64))
    return loaded


def _hotcoco(truth: Any, found: Any, kind: str, style: str, judged: list[int]) -> EvalTables:
    import hotcoco

    if style == "lvis":
        truth, found = _as_lvis_reads(truth, found)
    judge = hotcoco.COCOeval(truth, found, kind, lvis_style=style == "lvis")
    judge.params.img_ids = judged
    judge.evaluate()
    judge.accumulate()
    arrays = judge.eval
    assert arrays is not None
    # COCO leaves crowd regions out of the count; LVIS has none and ignores the flag.
    crowd = None if style == "lvis" else False
    everything = len(judged) == len(truth.get_img_ids())
    images: dict[str, Any] = {} if everything else {"img_ids": judged}
    ids = truth.get_cat_ids()
    num_gt = {i: len(truth.get_ann_ids(cat_ids=[i], iscrowd=crowd, **images)) for i in ids}
    return EvalTables(
        style=style,
        kind=kind,
        precision=arrays["precision"],
        recall=arrays["recall"],
        max_dets=tuple(judge.params.max_dets),
        num_images=len(judged),
        **class_facts(truth.load_cats(ids), num_gt, style),
    )


def _as_lvis_reads(truth: Any, found: Any) -> tuple[Any, Any]:
    """Leave out what has no area, detections after the cap of 300 an image.

    lvis asks for annotations with an area above 0 and thereby never judges flat ones, neither
    for nor against the detector; hotcoco 1.3 judges them.
    """
    import hotcoco

    above_zero = [sys.float_info.min, math.inf]  # hotcoco includes the limits
    if len(found.get_ann_ids(area_rng=above_zero)) < len(found.get_ann_ids()):
        found = found.cap_detections_per_image(LVIS_MAX_DETS).filter(
            area_rng=above_zero, drop_empty_images=False
        )
    if len(truth.get_ann_ids(area_rng=above_zero)) < len(truth.get_ann_ids()):
        tree = truth.dataset
        tree["annotations"] = [a for a in tree["annotations"] if a["area"] > 0]
        truth = hotcoco.COCO(tree)
    return truth, found


def _pycocotools(
    tree: dict[str, Any], rows: list[dict[str, Any]], kind: str, judged: list[int]
) -> EvalTables:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools writes marks into the annotations it judges, and insists on `iscrowd`.
    tree = {**tree, "annotations": [{"iscrowd": 0, **a} for a in tree["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = tree
        truth.createIndex()
        if rows:
            found = truth.loadRes(rows)
        else:  # loadRes looks at the first result
            found = COCO()
            found.dataset = {**tree, "annotations": []}
            found.createIndex()
        judge = COCOeval(truth, found, kind)
        judge.params.imgIds = judged
        judge.evaluate()
        judge.accumulate()
    wanted = set(judged)
    num_gt = Counter(
        int(a["category_id"])
        for a in tree["annotations"]
        if a["image_id"] in wanted and not a.get("iscrowd", 0)
    )
    return EvalTables(
        style="coco",
        kind=kind,
        precision=np.asarray(judge.eval["precision"]),
        recall=np.asarray(judge.eval["recall"]),
        max_dets=tuple(judge.params.maxDets),
        num_images=len(judged),
        **class_facts(tree["categories"], num_gt, "coco"),
    )

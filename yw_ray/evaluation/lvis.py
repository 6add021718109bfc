"""The LVIS oracle behind `evaluation.coco.evaluate`: lvis 0.5.3, made to run on present NumPy.

Place in the flow: detections -> here -> EvalTables. hotcoco is the default for LVIS too; this
engine is slow, keeps everything in memory, and is there to check it.
Source: lvis-api (arXiv 1908.03195): federated annotations, at most 300 detections an image.
"""

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from yw_ray.evaluation.tables import EvalTables, class_facts

_NO_LISTS: dict[str, list[int]] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}


def lvis_tables(
    tree: dict[str, Any], rows: list[dict[str, Any]], kind: str, judged: list[int]
) -> EvalTables:
    """Precision and recall arrays of `lvis.LVISEval`.

    Args:
        tree: LVIS annotation json; rows: COCO results of the judged images;
        judged: image ids, ascending.
    """
    with _quiet(), _numpy_float():
        from lvis import LVIS, LVISEval, LVISResults

        # LVIS marks the annotations it judges, and its constructor takes a path only.
        truth = LVIS.__new__(LVIS)
        truth.dataset = {
            **tree,
            "images": [{**_NO_LISTS, **image} for image in tree["images"]],
            "annotations": [dict(a) for a in tree["annotations"]],
        }
        truth.logger = logging.getLogger("lvis.lvis")
        truth._create_index()
        if rows:
            found = LVISResults(truth, [dict(row) for row in rows])
        else:  # its constructor looks at the first result
            found = LVISResults.__new__(LVISResults)
            found.dataset = {**truth.dataset, "annotations": []}
            found.logger = truth.logger
            found._create_index()
        judge = LVISEval(truth, found, kind)
        judge.params.img_ids = judged
        judge.evaluate()
        judge.accumulate()
    wanted = set(judged)
    num_gt = Counter(
        int(a["category_id"])
        for a in tree["annotations"]
        if a["image_id"] in wanted and a["area"] > 0
    )
    return EvalTables(
        style="lvis",
        kind=kind,
        precision=judge.eval["precision"][..., None],
        recall=judge.eval["recall"][..., None],
        max_dets=(int(judge.params.max_dets),),
        num_images=len(judged),
        **class_facts(tree["categories"], num_gt, "lvis"),
    )


@contextlib.contextmanager
def _numpy_float() -> Iterator[None]:
    """lvis 0.5.3 says `np.float`, which NumPy dropped in 1.24: lend it the name for one call."""
    had = "float" in vars(np)
    if not had:
        setattr(np, "float", float)  # noqa: B010
    try:
        yield
    finally:
        if not had:
            delattr(np, "float")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lvis warns that it trusts its caller, each time: hold its loggers for one call."""
    loggers = [logging.getLogger(f"lvis.{part}") for part in ("lvis", "results", "eval")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was

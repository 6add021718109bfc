"""LVIS: federated annotations, frequency groups, the cap of 300, and a clean NumPy afterwards."""

import numpy as np
import pytest

from yw_ray.evaluation.coco import evaluate
from yw_ray.models.outputs import Detections

ENGINES = ["hotcoco", "lvis"]
LABELS = [1, 2, 3, 4]


@pytest.fixture
def truth():
    """Two images; the fourth class has no object anywhere."""
    boxes = {1: [10, 10, 40, 40], 2: [60, 10, 40, 40], 3: [10, 100, 40, 40]}
    return {
        "images": [
            {
                "id": 1,
                "height": 200,
                "width": 200,
                "neg_category_ids": [4],
                "not_exhaustive_category_ids": [3],
            },
            {"id": 2, "height": 200, "width": 200, "neg_category_ids": [1]},
        ],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "bbox": box, "area": 1600}
            for k, box in boxes.items()
        ],
        "categories": [{"id": k, "name": f"thing {k}", "frequency": "rcff"[k - 1]} for k in LABELS],
    }


def found(image_id, rows):
    """Detections of one image from (box xywh, score, label)."""
    boxes = np.array([r[0] for r in rows], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        image_id=image_id,
        boxes=boxes,
        scores=np.array([r[1] for r in rows], np.float32),
        labels=np.array([r[2] for r in rows], np.int64),
    )


RIGHT = [([10, 10, 40, 40], 0.5, 0), ([60, 10, 40, 40], 0.5, 1), ([10, 100, 40, 40], 0.5, 2)]
ELSEWHERE = [150, 150, 30, 30]


def judge(truth, engine, *detections, **more):
    return evaluate(truth, list(detections), LABELS, style="lvis", engine=engine, **more)


@pytest.mark.parametrize("engine", ENGINES)
def test_frequency_groups_have_their_own_figures(truth, engine):
    table = judge(truth, engine, found(1, RIGHT[1:]))
    assert table["APr"] == 0.0
    assert table["APc"] == pytest.approx(1.0)
    assert table["APf"] == pytest.approx(1.0)
    assert table["AP"] == pytest.approx(2 / 3)
    assert [entry.frequency for entry in table.per_class] == list("rcff")
    assert [entry.num_gt for entry in table.per_class] == [1, 1, 1, 0]
    assert table.protocol["max_dets"] == 300


@pytest.mark.parametrize("engine", ENGINES)
def test_a_false_positive_costs_only_where_the_class_is_known_to_be_absent(truth, engine):
    right = found(1, RIGHT)
    free = judge(truth, engine, right, found(2, [(ELSEWHERE, 0.9, 1)]))
    assert free["AP"] == pytest.approx(1.0)  # class 2 was not checked in image 2
    costly = judge(truth, engine, right, found(2, [(ELSEWHERE, 0.9, 0)]))
    assert costly["APr"] == pytest.approx(0.5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_class_not_exhaustively_annotated_forgives_further_detections(truth, engine):
    table = judge(truth, engine, found(1, [*RIGHT, (ELSEWHERE, 0.9, 2)]))
    assert table["AP"] == pytest.approx(1.0)
    table = judge(truth, engine, found(1, [*RIGHT, (ELSEWHERE, 0.9, 1)]))
    assert table["APc"] == pytest.approx(0.5)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_best_300_of_an_image_are_judged(truth, engine):
    crowd = [(ELSEWHERE, 0.9, 3)] * 300
    assert judge(truth, engine, found(1, crowd + RIGHT))["AP"] == 0.0
    assert judge(truth, engine, found(1, crowd[3:] + RIGHT))["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize("engine", ENGINES)
def test_detections_without_area_are_not_judged_but_fill_the_cap(truth, engine):
    flat = [([5, 5, 0, 20], 0.9, 0)]
    assert judge(truth, engine, found(1, RIGHT + flat))["AP"] == pytest.approx(1.0)
    assert judge(truth, engine, found(1, RIGHT + flat * 300))["AP"] == 0.0


@pytest.mark.parametrize("engine", ENGINES)
def test_only_listed_images_are_judged_and_none_detected_scores_zero(truth, engine):
    penalty = found(2, [(ELSEWHERE, 0.9, 0)])
    table = judge(truth, engine, found(1, RIGHT), penalty, image_ids=[1])
    assert table["AP"] == pytest.approx(1.0)
    assert judge(truth, engine)["AP"] == 0.0
    assert judge(truth, engine)["APr"] == 0.0


def test_the_old_engine_leaves_numpy_and_loggers_as_they_were(truth):
    import logging

    judge(truth, "lvis", found(1, RIGHT))
    assert "float" not in vars(np)
    assert not logging.getLogger("lvis.results").disabled

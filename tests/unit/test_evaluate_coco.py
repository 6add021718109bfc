"""Detections in, AP table out: figures by hand, subsets of images, and all that can go wrong."""

import json

import numpy as np
import pytest
from pycocotools import mask as rle

from yw_ray.evaluation.ap_table import subset_metrics
from yw_ray.evaluation.coco import evaluate, evaluate_tables
from yw_ray.evaluation.tables import precision_recall_curve
from yw_ray.models.outputs import Detections

ENGINES = ["hotcoco", "pycocotools"]


def annotation(number, image_id, category_id, box, crowd=0):
    x, y, w, h = box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": w * h,
        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        "iscrowd": crowd,
    }


@pytest.fixture
def truth():
    """Three images, three classes; `bird` has no object, image 30 has none at all."""
    return {
        "images": [{"id": i, "height": 200, "width": 300} for i in (10, 20, 30)],
        "annotations": [
            annotation(1, 10, 3, [10, 10, 100, 100]),
            annotation(2, 10, 5, [150, 50, 20, 20]),
            annotation(3, 20, 3, [20, 20, 50, 50]),
        ],
        "categories": [
            {"id": 5, "name": "dog"},
            {"id": 3, "name": "cat"},
            {"id": 8, "name": "bird"},
        ],
    }


def found(image_id, *rows):
    """Detections of one image from (box xywh, score, label)."""
    boxes = np.array([r[0] for r in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    grids = []
    for x, y, w, h in (r[0] for r in rows):
        grid = np.zeros((200, 300), np.uint8, order="F")
        grid[y : y + h, x : x + w] = 1
        grids.append(grid)
    return Detections(
        image_id=image_id,
        boxes=boxes,
        scores=np.array([r[1] for r in rows], np.float32),
        labels=np.array([r[2] for r in rows], np.int64),
        masks=[rle.encode(grid) for grid in grids],
    )


LABELS = [3, 5, 8]  # label 0 is the cat: the order of labels is not that of the file


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_by_hand(truth, engine, kind):
    detections = [
        found(10, ([10, 10, 100, 100], 0.9, 0), ([150, 50, 20, 20], 0.8, 1)),
        found(20, ([200, 100, 50, 50], 0.95, 0)),
    ]
    table = evaluate(truth, detections, LABELS, kind, engine=engine)
    # cat: the false positive comes first, then 1 of 2 found: precision 1/2 up to recall 0.5.
    cat = 51 * 0.5 / 101
    assert table["AP"] == pytest.approx((cat + 1) / 2, abs=1e-12)
    assert table["APl"] == pytest.approx(1.0)
    assert [entry.name for entry in table.per_class] == ["cat", "dog", "bird"]
    assert [entry.num_gt for entry in table.per_class] == [2, 1, 0]
    assert [entry.AP for entry in table.per_class] == pytest.approx([cat, 1, -1], abs=1e-12)
    assert table.protocol["kind"] == kind
    assert table.protocol["images"] == 3
    assert table.protocol["max_dets"] == 100
    assert subset_metrics(table, ["dog", "bird"])["AP"] == pytest.approx(1.0)
    assert subset_metrics(table, [3])["AP50"] == pytest.approx(cat, abs=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_only_the_listed_images_are_judged(truth, engine):
    right = found(10, ([10, 10, 100, 100], 0.9, 0), ([150, 50, 20, 20], 0.8, 1))
    wrong = found(20, ([200, 100, 50, 50], 0.95, 0))
    table = evaluate(truth, [right, wrong], LABELS, engine=engine, image_ids=[10, 30])
    assert table["AP"] == pytest.approx(1.0)
    assert [entry.num_gt for entry in table.per_class] == [1, 1, 0]
    assert table.protocol["images"] == 2
    whole = evaluate(truth, [right, wrong], LABELS, engine=engine)
    assert whole.protocol["image_set"] != table.protocol["image_set"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_no_detections_score_zero_and_absent_classes_stay_undefined(truth, engine, kind):
    for detections in ([], [found(10), found(30)]):
        table = evaluate(truth, detections, LABELS, kind, engine=engine)
        assert table["AP"] == 0.0
        assert [entry.AP for entry in table.per_class] == [0, 0, -1]


@pytest.mark.parametrize("engine", ENGINES)
def test_without_any_ground_truth_every_figure_is_undefined(truth, engine):
    truth["annotations"] = []
    table = evaluate(truth, [found(10, ([1, 1, 9, 9], 0.5, 0))], LABELS, engine=engine)
    assert set(table.metrics.values()) == {-1.0}
    assert table.defined() == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_crowd_regions_neither_count_nor_cost(truth, engine):
    truth["annotations"][1] = annotation(2, 10, 5, [100, 100, 60, 60], crowd=1)
    hits = [([10, 10, 100, 100], 0.5, 0), ([110, 110, 20, 20], 0.9, 1)]
    table = evaluate(truth, [found(10, *hits)], LABELS, engine=engine, image_ids=[10])
    assert table["AP"] == pytest.approx(1.0)
    assert [entry.num_gt for entry in table.per_class] == [1, 0, 0]


def test_the_annotation_file_is_read_from_disk_and_class_order_is_recorded(truth, tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(truth))
    one = evaluate(path, [], LABELS)
    assert one.metrics == evaluate(truth, [], LABELS).metrics
    other = evaluate(path, [], [5, 3, 8])
    assert one.protocol["class_order"] != other.protocol["class_order"]
    extra = evaluate(path, [], LABELS, protocol={"split": "val", "image_size": 640})
    assert extra.protocol["split"] == "val"


def test_evaluation_leaves_annotations_as_they_were(truth):
    before = json.dumps(truth)
    for engine in ENGINES:
        evaluate(truth, [found(10, ([1, 1, 9, 9], 0.5, 0))], LABELS, "segm", engine=engine)
    assert json.dumps(truth) == before


def test_curve_is_the_mean_over_classes_with_ground_truth(truth):
    detections = [found(10, ([10, 10, 100, 100], 0.9, 0))]
    tables, _ = evaluate_tables(truth, detections, LABELS)
    recalls, precisions = precision_recall_curve(tables)
    assert recalls.shape == precisions.shape == (101,)
    assert precisions[0] == pytest.approx(0.5)  # the cat is found, the dog is not
    assert precisions[-1] == 0.0


def case(change, message):
    return pytest.param(change, message, id=message.split("(")[0][:40])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "arguments, message",
    [
        case({"detections": [found(10), found(10)]}, "image 10 twice"),
        case({"detections": [found(99)]}, "image 99, which the annotations do not"),
        case({"image_ids": [10, 11]}, "image 11 is to be judged but not in the annotations"),
        case({"image_ids": []}, "no image to judge"),
        case({"category_ids": [3, 4]}, "category id 4 is not among the 3 categories"),
        case({"category_ids": [3, 3]}, "category_ids holds an id twice"),
        case(
            {"detections": [found(10, ([1, 1, 9, 9], 0.5, 3))]},
            "image 10 has label 3, but there are 3 categories",
        ),
        case(
            {"detections": [found(10, ([1, 1, 9, 9], np.nan, 0))]},
            "image 10 has a score or box that is not finite",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(truth, engine, arguments, message):
    given = {"detections": [], "category_ids": LABELS, **arguments}
    with pytest.raises(ValueError, match=message) as caught:
        evaluate(truth, engine=engine, **given)
    assert "\n" not in str(caught.value)


def test_masks_are_needed_for_segm(truth):
    boxes_only = Detections(
        image_id=10,
        boxes=np.ones((1, 4), np.float32),
        scores=np.ones(1, np.float32),
        labels=np.zeros(1, np.int64),
    )
    with pytest.raises(ValueError, match="detections of image 10 have no masks"):
        evaluate(truth, [boxes_only], LABELS, "segm")

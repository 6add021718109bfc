"""Pictures show what they claim: sides, colours, scores, masks, and curves one can read back."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from yw_ray.evaluation.pictures import (
    annotation_mask,
    draw_side_by_side,
    read_curves,
    write_loss_curve,
    write_pictures,
    write_pr_curve,
)
from yw_ray.models.outputs import Detections
from yw_ray.training.metric_log import MetricLog

NAMES, IDS = ["red circle", "blue square"], [3, 9]
HEADER, GAP = 24, 6


@pytest.fixture
def image():
    return np.full((240, 480, 3), 128, np.uint8)  # long side 480: drawn at its own size


def found(rows, masks=None):
    """Detections of image 1 from (box xyxy, score, label)."""
    return Detections(
        image_id=1,
        boxes=np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        scores=np.array([r[1] for r in rows], np.float32),
        labels=np.array([r[2] for r in rows], np.int64),
        masks=masks,
    )


def annotation(category_id, box, **more):
    return {"image_id": 1, "category_id": category_id, "bbox": box, **more}


def changed(picture, side, width=480):
    """Which pixels of one side differ from the grey image."""
    start = HEADER, side * (width + GAP)
    part = picture[start[0] :, start[1] : start[1] + width]
    return (part != 128).any(axis=2)


def test_truth_is_left_and_predictions_right_in_the_colour_of_their_class(image):
    truth = [annotation(3, [40, 60, 50, 50])]
    hits = found([((300, 100, 360, 160), 0.9, 0), ((400, 100, 440, 160), 0.8, 1)])
    picture = draw_side_by_side(image, truth, hits, NAMES, IDS)
    assert picture.shape == (240 + HEADER, 2 * 480 + GAP, 3)
    left, right = changed(picture, 0), changed(picture, 1)
    assert left[60:111, 40].all() and not left[:, 200:].any()
    assert right[100:161, 300].all() and not right[:, :290].any()
    colour_of_truth = picture[HEADER + 90, 40]
    assert (picture[HEADER + 130, 480 + GAP + 300] == colour_of_truth).all()
    assert (picture[HEADER + 130, 480 + GAP + 400] != colour_of_truth).any()
    assert (image == 128).all()


def test_weak_predictions_are_left_out(image):
    hits = found([((300, 100, 360, 160), 0.29, 0)])
    assert not changed(draw_side_by_side(image, [], hits, NAMES, IDS), 1).any()
    assert changed(draw_side_by_side(image, [], hits, NAMES, IDS, 0.2), 1).any()


def test_masks_are_shaded_on_both_sides_and_crowds_are_dashed(image):
    grid = np.zeros((240, 480), np.uint8)
    grid[120:140, 320:340] = 1
    hits = found([((300, 100, 360, 160), 0.9, 0)], [rle.encode(np.asfortranarray(grid))])
    polygon = [[50, 70, 80, 70, 80, 100, 50, 100]]
    truth = [
        annotation(3, [40, 60, 50, 50], segmentation=polygon),
        annotation(9, [200, 60, 100, 100], iscrowd=1),
    ]
    picture = draw_side_by_side(image, truth, hits, NAMES, IDS)
    left, right = changed(picture, 0), changed(picture, 1)
    assert right[125:135, 325:335].all() and not right[145:155, 345:355].any()
    assert left[75:95, 55:75].all()
    edge = left[160, 202:298]
    assert edge.any() and not edge.all()


def test_small_pictures_are_enlarged_and_names_stay_inside(image):
    small = image[:60, :80]
    picture = draw_side_by_side(small, [annotation(3, [70, 0, 10, 10])], found([]), NAMES, IDS)
    assert picture.shape == (360 + HEADER, 2 * 480 + GAP, 3)
    assert changed(picture, 0).any()


@pytest.mark.parametrize("form", ["polygons", "counts", "compressed"])
def test_every_form_of_segmentation_gives_the_same_mask(form):
    grid = np.zeros((20, 30), np.uint8, order="F")
    grid[5:15, 10:20] = 1
    segmentation = {
        "polygons": [[10, 5, 20, 5, 20, 15, 10, 15]],
        "counts": {"size": [20, 30], "counts": [205] + [10, 10] * 9 + [10, 205]},
        "compressed": rle.encode(grid),
    }[form]
    mask = annotation_mask({"segmentation": segmentation}, 20, 30)
    np.testing.assert_array_equal(mask, grid)
    assert annotation_mask({}, 20, 30) is None


def test_pictures_are_written_for_the_chosen_images_only(image, tmp_path):
    other = found([((1, 1, 9, 9), 0.9, 0)])
    paths = write_pictures(
        tmp_path / "p", {1: image, 2: image}, [annotation(3, [4, 4, 9, 9])], [other], NAMES, IDS
    )
    assert [path.name for path in paths] == ["1.png", "2.png"]
    first, second = (cv2.imread(str(path)) for path in paths)
    assert changed(first, 0).any() and changed(first, 1).any()
    assert not changed(second, 0).any() and not changed(second, 1).any()


def test_curves_are_drawn_and_say_when_there_is_nothing(tmp_path):
    recalls = np.linspace(0, 1, 101)
    curves = {"IoU 0.50": (recalls, 1 - recalls), "IoU 0.75": (recalls, np.empty(0))}
    drawn = cv2.imread(str(write_pr_curve(tmp_path / "a" / "pr.png", curves)))
    empty = cv2.imread(str(write_pr_curve(tmp_path / "none.png", {"x": (recalls, np.empty(0))})))
    assert drawn.shape == empty.shape and (drawn != empty).any()
    nothing = cv2.imread(str(write_loss_curve(tmp_path / "loss.png", tmp_path / "no.jsonl")))
    assert nothing.shape[2] == 3


def test_loss_curves_come_from_the_spool_and_a_repeated_step_counts_once(tmp_path):
    spool = tmp_path / "metrics.jsonl"
    with MetricLog(spool) as log:
        for step in (1, 2, 3, 2):
            log.log(step, {"train/loss_cls": 10.0 * step + (step == 2), "train/lr": 1.0})
        log.log(4, {"train/loss_cls": float("nan")})
    with spool.open("a") as file:
        file.write('{"step": 5, "metr')
    curves = read_curves(spool, "train/loss")
    assert list(curves) == ["train/loss_cls"]
    steps, values = curves["train/loss_cls"]
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [10.0, 21.0, 30.0]
    before = write_loss_curve(tmp_path / "few.png", spool).read_bytes()
    with MetricLog(spool) as log:
        for step in range(5, 200):
            log.log(step, {"train/loss_cls": 1.0})
    assert write_loss_curve(tmp_path / "many.png", spool).read_bytes() != before

"""JSON pairs give the figures published for them, and bad files one line."""

import gzip
import json
from pathlib import Path

import pytest

from yw_ray.evaluation.score import score_files, score_json

FOLDER = Path(__file__).parents[1] / "golden" / "eval"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
ENGINES = {"coco": ("hotcoco", "pycocotools"), "lvis": ("hotcoco", "lvis")}


@pytest.mark.parametrize(
    "case, engine",
    [(case, engine) for case in CASES for engine in ENGINES[case["style"]]],
    ids=lambda value: value["name"] if isinstance(value, dict) else value,
)
def test_published_figures_come_out_to_all_printed_digits(case, engine):
    table = score_files(
        FOLDER / case["ground_truth"],
        FOLDER / case["detections"],
        case["kind"],
        case["style"],
        engine,
    )
    assert {name: round(value, 6) for name, value in table.metrics.items()} == case["expected"]
    written = json.loads(score_json(table))
    assert set(written) == {"metrics", "protocol"}
    assert written["metrics"] == table.metrics
    assert written["protocol"]["engine"] == engine


@pytest.fixture
def pair(tmp_path):
    """A small annotation file and one detection, as plain json files, and how to rewrite them."""
    truth = {
        "images": [{"id": 1, "height": 40, "width": 50}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 4, "bbox": [5, 5, 20, 20], "area": 400}
        ],
        "categories": [{"id": 4, "name": "cat"}],
    }
    found = [{"image_id": 1, "category_id": 4, "bbox": [5, 5, 20, 20], "score": 0.5}]
    paths = tmp_path / "gt.json", tmp_path / "dt.json"
    paths[0].write_text(json.dumps(truth))
    paths[1].write_text(json.dumps(found))
    return *paths, found[0]


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_a_perfect_detection_scores_one_and_none_scores_zero(pair, engine):
    truth, found, _ = pair
    assert score_files(truth, found, engine=engine)["AP"] == pytest.approx(1.0)
    found.write_text("[]")
    assert score_files(truth, found, engine=engine)["AP"] == 0.0


def test_gzipped_files_are_read(pair):
    truth, found, _ = pair
    packed = found.with_suffix(".json.gz")
    packed.write_bytes(gzip.compress(found.read_bytes()))
    assert score_files(truth, packed)["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 7}, "detection 0 is of image 7, which the annotations do not hold"),
        ({"category_id": 1}, "detection 0 has category 1, which the annotations do not hold"),
        ({"image_id": [1]}, r"detection 0 has image_id \[1\], expected an integer"),
        ({"score": None}, "detection 0 has score None, expected a finite number"),
        ({"score": float("nan")}, "detection 0 has score nan"),
        (
            {"bbox": [1, 2, 3]},
            r"detection 0 has bbox \[1, 2, 3\], expected \[x, y, width, height\]",
        ),
        ({"segmentation": [[1, 2, 3]]}, "detection 0 has a segmentation that is no compressed"),
    ],
)
@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_a_bad_row_is_named_in_one_line(pair, change, message, engine):
    truth, found, row = pair
    found.write_text(json.dumps([{**row, **change}]))
    with pytest.raises(ValueError, match=message) as caught:
        score_files(truth, found, engine=engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["image_id", "category_id", "score"])
def test_a_missing_field_is_named(pair, missing):
    truth, found, row = pair
    found.write_text(json.dumps([{k: v for k, v in row.items() if k != missing}]))
    with pytest.raises(ValueError, match=f"detection 0 has no '{missing}'"):
        score_files(truth, found)


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
def test_wrong_files_are_named(pair, tmp_path, engine):
    truth, found, _ = pair
    with pytest.raises(ValueError, match="swapped"):
        score_files(truth, truth, engine=engine)
    with pytest.raises(ValueError, match=r"dt\.json"):
        score_files(found, found, engine=engine)
    with pytest.raises(ValueError, match=r"no\.json does not exist"):
        score_files(tmp_path / "no.json", found, engine=engine)
    with pytest.raises(ValueError, match=r"no\.json does not exist"):
        score_files(truth, tmp_path / "no.json", engine=engine)
    (tmp_path / "torn.json").write_text('[{"image_id": 1,')
    with pytest.raises(ValueError, match=r"torn\.json is not JSON"):
        score_files(truth, tmp_path / "torn.json", engine=engine)
    with pytest.raises(ValueError, match=r"torn\.json"):
        score_files(tmp_path / "torn.json", found, engine=engine)


def test_masks_are_asked_for_when_boxes_are_given(pair):
    truth, found, _ = pair
    with pytest.raises(ValueError, match="has no 'segmentation'; score it with kind bbox"):
        score_files(truth, found, "segm")


@pytest.mark.parametrize("engine", ["hotcoco", "lvis"])
def test_a_coco_file_judged_as_lvis_is_refused(pair, engine):
    truth, found, _ = pair
    with pytest.raises(ValueError, match="has no 'frequency'; is this a COCO file"):
        score_files(truth, found, style="lvis", engine=engine)


def test_an_engine_that_cannot_judge_the_style_is_refused(pair):
    truth, found, _ = pair
    with pytest.raises(ValueError, match="style coco is judged by hotcoco or pycocotools"):
        score_files(truth, found, engine="lvis")
    with pytest.raises(ValueError, match="style must be coco or lvis, got 'voc'"):
        score_files(truth, found, style="voc")
    with pytest.raises(ValueError, match="kind must be bbox or segm, got 'points'"):
        score_files(truth, found, "points")

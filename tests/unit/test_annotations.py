"""Annotation files: LVIS texts and splits, and errors of one line for whatever a file may hold."""

import copy
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yw_ray.data.annotations import image_path, load_json, lvis_texts, parse_annotations

LVIS_CATEGORIES = Path(__file__).parents[1] / "golden" / "lvis_cat_info.json.gz"


def _coco() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 50, "width": 60}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 3,
                "bbox": [1, 2, 10, 20],
                "area": 200,
                "iscrowd": 0,
                "segmentation": [[1, 2, 11, 2, 11, 22], [3.5, 4, 5, 4, 5, 6]],
            }
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }


@pytest.fixture(scope="module")
def lvis() -> dict[str, Any]:
    """The 1203 LVIS v1 categories with one image and an object of the rare category 2... 1203."""
    categories = json.loads(gzip.decompress(LVIS_CATEGORIES.read_bytes()))["categories"]
    annotation = {"bbox": [0, 0, 9, 9], "area": 81, "segmentation": [[0, 0, 9, 0, 9, 9]]}
    rare = next(c["id"] for c in categories if c["frequency"] == "r")
    url = "http://images.cocodataset.org/{}/00{}.jpg"
    return {
        "images": [
            {"id": 1, "coco_url": url.format("train2017", 1), "height": 64, "width": 64},
            {"id": 2, "coco_url": url.format("val2017", 2), "height": 64, "width": 64},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": categories[0]["id"], **annotation},
            {"id": 2, "image_id": 2, "category_id": rare, **annotation},
        ],
        "categories": categories,
    }


def _digest(classes: tuple[tuple[str, ...], ...]) -> str:
    text = json.dumps([list(texts) for texts in classes], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_lvis_texts_are_the_published_list(lvis: dict[str, Any]) -> None:
    full = parse_annotations(lvis, style="lvis")
    assert len(full.classes) == 1203
    assert (
        _digest(full.classes) == "28dd87fd830024f184d7669b4bda4907bf30f9da84e71d49d2ab1aa19a8c2014"
    )


def test_lvis_base_has_866_classes_and_no_rare_object(lvis: dict[str, Any]) -> None:
    base = parse_annotations(lvis, style="lvis", frequencies="cf", filter_empty=True)
    assert len(base.classes) == 866
    assert (
        _digest(base.classes) == "002992fb8c1ab3a0eaf21501ada04e52bc2318490fb72e82cd7ea08f16b2e0d4"
    )
    assert [image.image_id for image in base.images] == [1]
    assert base.dropped == {
        "annotations of other categories": 1,
        "images without objects": 1,
    }
    frequencies = {c["id"]: c["frequency"] for c in lvis["categories"]}
    assert {frequencies[i] for i in base.category_ids} == {"c", "f"}
    assert list(base.category_ids) == sorted(base.category_ids)


def test_brackets_and_underscores_become_texts_in_order() -> None:
    assert lvis_texts(["bow_(weapon)", "long_bow"]) == ["bow", "bow weapon", "long bow"]
    assert lvis_texts(["monitor_(computer_equipment) computer_monitor"]) == [
        "monitor",
        "monitor computer equipment",
    ]


def test_lvis_images_are_found_by_the_end_of_their_url(lvis: dict[str, Any]) -> None:
    parsed = parse_annotations(lvis, style="lvis")
    assert [image.path for image in parsed.images] == ["train2017/001.jpg", "val2017/002.jpg"]


def test_labels_follow_the_categories_of_the_file_not_the_wanted_names() -> None:
    coco = _coco()
    coco["annotations"].append({**coco["annotations"][0], "id": 2, "category_id": 5})
    parsed = parse_annotations(coco, wanted=["dog", "cat"])
    assert parsed.classes == (("cat",), ("dog",))
    assert parsed.category_ids == (3, 5)
    assert parsed.images[0].labels.tolist() == [0, 1]


def test_parts_with_too_few_or_odd_coordinates_are_left_out() -> None:
    coco = _coco()
    coco["annotations"][0]["segmentation"] = [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6, 7],
        [0, 0, 5, 0, 5, 5],
    ]
    polygons = parse_annotations(coco).images[0].polygons
    assert polygons.parts_per_object.tolist() == [1]
    assert polygons.points.tolist() == [[0, 0], [5, 0], [5, 5]]


def test_boxes_thinner_than_a_pixel_are_dropped_and_others_not_clipped() -> None:
    coco = _coco()
    entry = coco["annotations"][0]
    coco["annotations"] = [
        {**entry, "id": 1, "bbox": [1, 1, 0.99, 9]},
        {**entry, "id": 2, "bbox": [-5, -5, 100, 100]},
        {**entry, "id": 3, "bbox": [60, 5, 9, 9]},
        {**entry, "id": 4, "area": 0},
        {**entry, "id": 5, "ignore": 1},
    ]
    parsed = parse_annotations(coco)
    assert parsed.images[0].boxes.tolist() == [[-5, -5, 95, 95]]
    assert parsed.dropped == {
        "annotations flagged ignore": 1,
        "annotations outside their image": 1,
        "annotations without area": 2,
    }


def test_crowds_are_marked_and_have_no_polygon() -> None:
    coco = _coco()
    rle = {"size": [50, 60], "counts": [10, 20, 2970]}
    coco["annotations"][0] |= {"iscrowd": 1, "segmentation": rle}
    image = parse_annotations(coco).images[0]
    assert image.crowd.tolist() == [True]
    assert image.polygons.parts_per_object.tolist() == [0]


def test_images_without_objects_stay_unless_filtered() -> None:
    coco = _coco()
    coco["images"].append({"id": 2, "file_name": "b.jpg", "height": 50, "width": 60})
    assert len(parse_annotations(coco).images) == 2
    assert [i.image_id for i in parse_annotations(coco, filter_empty=True).images] == [1]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "..", "", None, 3, "a\x00b.jpg", "a\nb"]
)
def test_file_names_that_leave_the_root_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="file_name") as caught:
        image_path({"id": 1, "file_name": name}, "coco")
    assert "\n" not in str(caught.value)


def test_url_that_climbs_out_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves the image folder"):
        image_path({"id": 1, "coco_url": "http://host/../secret.jpg"}, "lvis")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("images",), [], "no images"),
        (("images",), None, "'images'"),
        (("annotations",), None, "'annotations'"),
        (("categories",), None, "'categories'"),
        (("images", 0, "height"), 0, "height must be 1 to"),
        (("images", 0, "id"), "7", "whole number"),
        (("categories", 0, "name"), "", "category 3 has no name"),
        (("categories", 1, "id"), 3, "category id 3 occurs twice"),
        (("categories", 1, "name"), "cat", "both named 'cat'"),
        (("annotations", 0, "bbox"), [1, 2, 3], "bbox must be"),
        (("annotations", 0, "bbox"), [1, 2, float("nan"), 3], "finite"),
        (("annotations", 0, "area"), None, "area"),
        (("annotations", 0, "segmentation"), [1, 2, 3, 4, 5, 6], "flat list"),
        (("annotations", 0, "segmentation"), [[1, 2, 3, 4, 5, 1e39]], "flat list"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(path: tuple[Any, ...], value: Any, said: str) -> None:
    coco: Any = _coco()
    node = coco
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ValueError, match=said) as caught:
        parse_annotations(coco)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_duplicate_ids_are_named(key: str) -> None:
    coco = _coco()
    coco[key].append(coco[key][0])
    with pytest.raises(ValueError, match="id 1 occurs twice"):
        parse_annotations(coco)


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "\xff\xfe", "[" * 100_000, "1" * 5000])
def test_files_that_are_no_json_object_are_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"broken\.json") as caught:
        load_json(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read annotations .*none\.json"):
        load_json(tmp_path / "none.json")


def test_a_thousand_damaged_files_end_in_one_line_or_parse(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    junk = [None, True, -1, 2**70, 1e300, float("nan"), "x", "", [], [[]], {}, {"a": 1}, ["x", 1]]
    path = tmp_path / "damaged.json"
    refused = 0
    for _ in range(1000):
        coco = copy.deepcopy(_coco())
        for entry in coco["categories"]:
            entry |= {"frequency": "f", "synonyms": [entry["name"]]}
        node: Any = coco
        while True:
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.integers(len(node))
            if isinstance(node[key], dict | list) and len(node[key]) and rng.random() < 0.8:
                node = node[key]
                continue
            if rng.random() < 0.3:
                del node[key]
            else:
                node[key] = copy.deepcopy(junk[rng.integers(len(junk))])
            break
        raw = bytearray(json.dumps(coco).encode())
        if rng.random() < 0.2:
            raw[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(raw)
        try:
            parse_annotations(load_json(path), style="lvis" if rng.random() < 0.5 else "coco")
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 500

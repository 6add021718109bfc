"""The generated world: same bytes from the same seed, honest boxes, and a split that holds."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from yw_ray.data.annotations import load_json, parse_annotations
from yw_ray.data.synth import World, WorldConfig, load_world, write_world

CONFIG = WorldConfig(crowd_share=0.2, split_share=0.2, empty_share=0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, World]:
    folder = tmp_path_factory.mktemp("synth") / "world"
    return folder, write_world(
        folder, num_train=80, num_val=60, image_size=96, seed=3, config=CONFIG
    )


def _read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    worlds = [
        write_world(tmp_path / name, num_train=6, num_val=4, image_size=64, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    assert worlds[0].digest == worlds[1].digest != worlds[2].digest


def test_a_picture_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    for name, number in (("few", 3), ("many", 6)):
        write_world(tmp_path / name, num_train=number, num_val=1, image_size=64, seed=1)
    for path in (tmp_path / "few" / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "many" / "train" / path.name).read_bytes()


def test_training_knows_no_novel_pair_and_validation_all_pairs(world: tuple[Path, World]) -> None:
    folder, described = world
    train, val = _read(folder, "train"), _read(folder, "val")
    assert {c["name"] for c in train["categories"]} == set(described.base)
    assert {c["name"] for c in val["categories"]} == set(described.base) | set(described.novel)
    novel_ids = {described.category_ids[name] for name in described.novel}
    assert not novel_ids & {a["category_id"] for a in train["annotations"]}
    assert novel_ids & {a["category_id"] for a in val["annotations"]}


def test_novel_pairs_share_no_color_and_no_shape(world: tuple[Path, World]) -> None:
    words = [name.split() for name in world[1].novel]
    assert len(words) == 6
    assert len({color for color, _ in words}) == len({shape for _, shape in words}) == 6
    for color, shape in words:
        assert sum(name.startswith(color) for name in world[1].base) == 5
        assert sum(name.endswith(shape) for name in world[1].base) == 5


def test_boxes_are_the_extremes_of_polygons_and_lie_in_the_picture(
    world: tuple[Path, World],
) -> None:
    parts = []
    for annotation in _read(world[0], "val")["annotations"]:
        x, y, w, h = annotation["bbox"]
        assert 0 <= x <= x + w <= 96 and 0 <= y <= y + h <= 96
        if not annotation["iscrowd"]:
            points = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
            low, high = points.min(0), points.max(0)
            np.testing.assert_allclose([*low, *(high - low)], [x, y, w, h], atol=0.011)
            parts.append(len(annotation["segmentation"]))
    assert {1, 2} == set(parts)


def test_polygons_cover_the_pixels_of_their_color(world: tuple[Path, World]) -> None:
    folder = world[0]
    coco = _read(folder, "val")
    names = {c["id"]: c["name"] for c in coco["categories"]}
    hues = {"red": 0, "yellow": 30, "green": 60, "cyan": 90, "blue": 120, "magenta": 150}
    for annotation in coco["annotations"][:40]:
        path = folder / "val" / f"{annotation['image_id']:012d}.jpg"
        hsv = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2HSV).astype(int)
        rle = annotation["segmentation"]
        if annotation["iscrowd"]:
            rle = coco_mask.frPyObjects(rle, 96, 96)
        else:
            rle = coco_mask.merge(coco_mask.frPyObjects(rle, 96, 96))
        inside = cv2.erode(coco_mask.decode(rle), np.ones((3, 3), np.uint8)).astype(bool)
        color = names[annotation["category_id"]].split()[0]
        distance = np.abs((hsv[..., 0] - hues[color] + 90) % 180 - 90)[inside]
        assert np.median(distance) <= 6
        assert np.median(hsv[..., 1][inside]) > 150


def test_crowds_are_run_lengths_of_their_stated_area(world: tuple[Path, World]) -> None:
    crowds = [a for a in _read(world[0], "train")["annotations"] if a["iscrowd"]]
    assert crowds
    for crowd in crowds:
        rle = coco_mask.frPyObjects(crowd["segmentation"], 96, 96)
        assert int(coco_mask.area(rle)) == crowd["area"]
        assert coco_mask.toBbox(rle).tolist() == crowd["bbox"]


def test_some_pictures_are_empty(world: tuple[Path, World]) -> None:
    coco = _read(world[0], "train")
    assert len({a["image_id"] for a in coco["annotations"]}) < len(coco["images"])


def test_lvis_files_have_rare_novel_classes_and_no_crowd(world: tuple[Path, World]) -> None:
    folder, described = world
    for split in ("train", "val"):
        lvis = _read(folder, f"lvis_{split}")
        assert not any("file_name" in image for image in lvis["images"])
        assert not any("iscrowd" in annotation for annotation in lvis["annotations"])
        rare = {c["name"].replace("_", " ") for c in lvis["categories"] if c["frequency"] == "r"}
        assert rare == set(described.novel)
        assert {c["frequency"] for c in lvis["categories"]} == {"r", "c", "f"}
        present: dict[int, set[int]] = {image["id"]: set() for image in lvis["images"]}
        for annotation in lvis["annotations"]:
            present[annotation["image_id"]].add(annotation["category_id"])
        for image in lvis["images"]:
            assert not present[image["id"]] & set(image["neg_category_ids"])


def test_all_four_files_are_accepted_by_the_annotation_reader(world: tuple[Path, World]) -> None:
    folder, described = world
    for name, style, frequencies, classes in (
        ("train", "coco", "rcf", 30),
        ("val", "coco", "rcf", 36),
        ("lvis_train", "lvis", "cf", 30),
        ("lvis_val", "lvis", "rcf", 36),
    ):
        content = load_json(folder / "annotations" / f"{name}.json")
        parsed = parse_annotations(content, style=style, frequencies=frequencies)  # type: ignore[arg-type]
        assert len(parsed.classes) == classes
        assert {texts[0] for texts in parsed.classes} <= set(described.category_ids)
        root = folder if style == "lvis" else folder / name
        assert all((root / image.path).is_file() for image in parsed.images)


def test_writing_the_same_world_again_does_nothing_and_another_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "world"
    first = write_world(out, num_train=2, num_val=1, image_size=64, seed=1)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert write_world(out, num_train=2, num_val=1, image_size=64, seed=1) == first
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before
    with pytest.raises(ValueError, match="another generated world"):
        write_world(out, num_train=2, num_val=1, image_size=64, seed=2)
    assert load_world(out) == first


def test_a_folder_without_a_world_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no world\.json"):
        load_world(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colors": ("red", "mauve")}, "colors"),
        ({"shapes": ("circle", "circle")}, "shapes"),
        ({"num_novel": 7}, "num_novel"),
        ({"num_objects": (3, 2)}, "num_objects"),
        ({"side": (0.2, 0.9)}, "side"),
        ({"empty_share": 2.0}, "empty_share"),
        ({"common_weight": 0.0}, "common_weight"),
    ],
)
def test_impossible_worlds_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WorldConfig(**change)

"""COCO parsing and filtering against what the original implementation kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from yw_ray.data.annotations import (
    MIN_TRAIN_SIDE,
    ImageAnnotations,
    load_json,
    parse_annotations,
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "dataset_case" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--goldens")) / "pipeline"
        cases = []
        for path in sorted(folder.glob("*.json")):
            golden = json.loads(path.read_text())
            if {"coco", "classes", "cases"} <= set(golden):
                cases += [(path, case) for case in golden["cases"]]
        assert cases, f"no dataset goldens in {folder}"
        metafunc.parametrize("dataset_case", cases, ids=[f"{p.stem}-{c}" for p, c in cases])


def _polygons(image: ImageAnnotations) -> list[list[list[float]]]:
    parts = np.split(image.polygons.points, np.cumsum(image.polygons.part_sizes)[:-1])
    ends = np.cumsum(image.polygons.parts_per_object)
    return [
        [part.ravel().tolist() for part in parts[end - number : end]]
        for end, number in zip(ends, image.polygons.parts_per_object, strict=True)
    ]


def test_images_boxes_labels_and_polygons_equal_the_original(
    dataset_case: tuple[Path, str], tmp_path: Path
) -> None:
    path, case = dataset_case
    golden = json.loads(path.read_text())
    source = tmp_path / "coco.json"
    source.write_text(json.dumps(golden["coco"]))
    parsed = parse_annotations(
        load_json(source),
        wanted=golden["classes"],
        min_side=MIN_TRAIN_SIDE if case.startswith("train") else 0,
        filter_empty="filter_empty" in case,
    )
    expected = golden["cases"][case]
    assert [image.image_id for image in parsed.images] == [e["img_id"] for e in expected]
    for image, e in zip(parsed.images, expected, strict=True):
        assert f"img/{image.path}" == e["path"]
        assert (image.height, image.width) == (e["height"], e["width"])
        objects = e["instances"]
        assert image.crowd.tolist() == [bool(o["ignore_flag"]) for o in objects]
        assert image.labels.tolist() == [o["bbox_label"] for o in objects]
        boxes = np.array([o["bbox"] for o in objects], np.float64).reshape(-1, 4)
        np.testing.assert_allclose(image.boxes, boxes, rtol=0, atol=1e-4)
        for mine, o in zip(_polygons(image), objects, strict=True):
            mask = o.get("mask", [])
            usable = [p for p in mask if len(p) >= 6 and len(p) % 2 == 0]
            # run-length encodings belong to crowds, which are dropped before any mask is made
            usable = [] if isinstance(mask, dict) else usable
            assert [len(part) for part in mine] == [len(part) for part in usable]
            for part, other in zip(mine, usable, strict=True):
                np.testing.assert_allclose(part, other, rtol=0, atol=1e-4)

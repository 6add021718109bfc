"""The data chain against recorded numbers of the original: `pipeline/pipeline.json`.

Every entry of the file is one case; recorded random numbers go into the "apply" halves. Pixels are
exact but after the warp, boxes and polygons to 1e-2 px (tests/golden/README.md, tolerances).
"""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from yw_ray.data import geometry, masks, mixing, pipelines, reference_law
from yw_ray.data.collate import collate as join_samples
from yw_ray.data.color import draw_hsv
from yw_ray.data.color import hsv as apply_hsv
from yw_ray.data.sample import Polygons, Record, Sample
from yw_ray.data.vocabulary import TextDraws, Vocabulary, apply_texts
from yw_ray.data.vocabulary import merge_vocabularies as join_vocabularies

COORDINATE_PX = 1e-2
WARP_MAX_LEVELS, WARP_MEAN_LEVELS = 5, 0.2
FAMILIES = (
    "load_annotations",
    "letterbox",
    "letterbox_meta",
    "random_affine",
    "mosaic",
    "copy_paste",
    "mixup",
    "hsv",
    "flip",
    "polygon_to_bitmap",
    "random_texts",
    "load_text",
    "merge_vocabularies",
    "collate",
)


def _cases(folder: Path, family: str) -> list[Any]:
    content = json.loads((folder / "pipeline" / "pipeline.json").read_text())
    assert set(content) == set(FAMILIES), "pipeline.json holds families without a test"
    found = content[family]
    if family == "letterbox_meta":
        return [dict(zip(found["columns"], row, strict=True)) | found for row in found["rows"]]
    return found if isinstance(found, list) else [found]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for family in FAMILIES:
        if family in metafunc.fixturenames:
            cases = _cases(Path(metafunc.config.getoption("--goldens")), family)
            assert cases, f"no cases of {family}"
            metafunc.parametrize(family, cases, ids=range(len(cases)))


@pytest.fixture(scope="module")
def recipe(goldens: Path) -> ModuleType:
    """The goldens' own `weights_from_names.py`."""
    spec = importlib.util.spec_from_file_location("names", goldens / "weights_from_names.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images(goldens: Path) -> Any:
    return np.load(goldens / "pipeline" / "images.npz")


def _record(source: dict[str, Any], recipe: ModuleType) -> Record:
    height, width = source["height"], source["width"]
    if "instances" in source:
        instances = source["instances"]
        polygons = masks.polygons_from_coco([i.get("mask") for i in instances])
        boxes = np.array([i["bbox"] for i in instances], np.float32)
        labels = [i["bbox_label"] for i in instances]
        crowd = [bool(i["ignore_flag"]) for i in instances]
        image = np.zeros((height, width, 3), np.uint8)
    else:
        polygons = masks.polygons_from_coco(source["polygons"])
        boxes = masks.extremes(polygons)
        labels, crowd = source["labels"], [False] * source["objects"]
        image = recipe.photo(source["tag"], height, width)
    return Record(
        image_id=1,
        jpeg=cv2.imencode(".png", image)[1].tobytes(),
        height=height,
        width=width,
        boxes=boxes,
        refined_boxes=masks.extremes(polygons),
        labels=np.array(labels, np.int64),
        crowd=np.array(crowd, bool),
        polygons=polygons,
    )


def _sample(source: dict[str, Any], recipe: ModuleType, with_masks: bool = True) -> Sample:
    return pipelines.load(_record(source, recipe), mask_refine=with_masks)


def _assert_polygons(polygons: Polygons | None, expected: list[list[list[float]]]) -> None:
    assert polygons is not None
    assert [len(parts) for parts in expected] == polygons.parts_per_object.tolist()
    parts = [np.reshape(part, (-1, 2)) for parts in expected for part in parts]
    assert [len(p) for p in parts] == polygons.part_sizes.tolist()
    if parts:
        np.testing.assert_allclose(polygons.points, np.concatenate(parts), 0, COORDINATE_PX)


def _assert_objects(sample: Sample, case: dict[str, Any]) -> None:
    expected = np.array(case["boxes"], np.float32).reshape(-1, 4)
    np.testing.assert_allclose(sample.boxes, expected, rtol=0, atol=COORDINATE_PX)
    assert sample.labels.tolist() == case["labels"]
    assert not any(case["ignore"]), "ignored objects never pass the loading step"
    if "polygons" in case:
        _assert_polygons(sample.polygons, case["polygons"])


def test_loading_chooses_boxes_and_merges_parts_as_recorded(
    load_annotations: dict[str, Any], recipe: ModuleType
) -> None:
    sample = _sample(load_annotations["source"], recipe, load_annotations["mask2bbox"])
    assert list(sample.image.shape[:2]) == load_annotations["img_shape"]
    _assert_objects(sample, load_annotations)


def test_polygons_rebuilt_from_names_equal_the_stored_ones(
    load_annotations: dict[str, Any], recipe: ModuleType
) -> None:
    source = load_annotations["source"]
    if "tag" in source:
        shape = (source["objects"], source["height"], source["width"])
        assert recipe.polygons(source["tag"], *shape) == source["polygons"]
    else:
        assert source["instances"]


def test_letterbox_draws_the_recorded_picture_and_objects(
    letterbox: dict[str, Any], recipe: ModuleType, images: Any
) -> None:
    case = letterbox
    assert case["mode"] in ("test", "train2") and case["scale"][0] == case["scale"][1]
    fill = geometry.FILL if case["mode"] == "test" else geometry.FILL_QUIRK
    sample = _sample(case["source"], recipe)
    size, scale_up = case["scale"][0], case["allow_scale_up"]
    plan = geometry.plan_letterbox(*sample.image.shape[:2], size, scale_up)
    assert list(plan.kept) == case["after_keep_ratio"]["shape"][:2]
    np.testing.assert_allclose(plan.scale, case["scale_factor"], rtol=1e-6)
    assert list(plan.pad) == case["pad_param"]
    fitted = reference_law.letterbox(sample, size, fill, scale_up)
    np.testing.assert_array_equal(fitted.image, images[case["image"]])
    _assert_objects(fitted, case)
    if case["mode"] == "test":
        evaluation = geometry.letterbox(sample, size)
        np.testing.assert_array_equal(evaluation.image, images[case["image"]])
        np.testing.assert_allclose(evaluation.boxes, case["boxes"], rtol=0, atol=COORDINATE_PX)
        assert evaluation.letterbox is not None
        assert evaluation.letterbox.original_size == sample.image.shape[:2]
        assert list(evaluation.letterbox.pad) == case["pad_param"]


def test_letterbox_geometry_is_exact(letterbox_meta: dict[str, Any]) -> None:
    row = letterbox_meta
    assert row["scale"][0] == row["scale"][1]
    plan = geometry.plan_letterbox(
        row["height"], row["width"], row["scale"][0], bool(row["allow_scale_up"])
    )
    top, bottom, left, right = plan.pad
    assert (row["resized_h"], row["resized_w"]) == plan.kept
    assert [row[f"pad_{side}"] for side in ("top", "bottom", "left", "right")] == list(plan.pad)
    assert plan.fitted[0] + top + bottom == row["out_h"]
    assert plan.fitted[1] + left + right == row["out_w"]
    factors = [row["scale_factor_w"], row["scale_factor_h"]]
    np.testing.assert_allclose(plan.scale, factors, rtol=1e-6)


def _affine_draws(draws: dict[str, float]) -> geometry.AffineDraws:
    return geometry.AffineDraws(
        rotation=draws["rotation_deg"],
        scale=draws["scale"],
        shear_x=draws["shear_x_deg"],
        shear_y=draws["shear_y_deg"],
        translate_x=draws["translate_x_ratio"],
        translate_y=draws["translate_y_ratio"],
    )


def test_affine_moves_objects_and_pixels_as_recorded(
    random_affine: dict[str, Any], recipe: ModuleType, images: Any
) -> None:
    case = random_affine
    assert case["border"][0] == case["border"][1]
    assert case["min_bbox_size"] == geometry.MIN_SIDE_PX
    assert case["max_aspect_ratio"] == geometry.MAX_ASPECT
    sample = _sample(case["source"], recipe, case["masks"])
    draws, border = _affine_draws(case["draws"]), case["border"][0]
    matrix = reference_law.affine_matrix(draws, *sample.image.shape[:2], border)
    np.testing.assert_allclose(matrix, case["matrix"], rtol=1e-5, atol=1e-4)
    warped = reference_law.random_affine(sample, draws, border, case["min_area_ratio"])
    assert list(warped.image.shape) == case["img_shape"]
    _assert_objects(warped, case)
    if case["image"] is not None:
        off = np.abs(warped.image.astype(int) - images[case["image"]])
        assert off.max() <= WARP_MAX_LEVELS and off.mean() <= WARP_MEAN_LEVELS
    if case["masks"]:
        assert warped.polygons is not None
        points = warped.polygons.points.reshape(-1, reference_law.NUM_RESAMPLED, 2)[:, ::37]
        expected = np.reshape(case["polygon_points_every_37th"], points.shape)
        np.testing.assert_allclose(points, expected, rtol=0, atol=COORDINATE_PX)


def test_edge_clip_boxes_equal_a_fine_resampling_of_the_recorded_case(
    random_affine: dict[str, Any], recipe: ModuleType
) -> None:
    case = random_affine
    sample = _sample(case["source"], recipe)
    assert sample.polygons is not None
    draws, border = _affine_draws(case["draws"]), case["border"][0]
    height, width = sample.image.shape[:2]
    matrix = reference_law.affine_matrix(draws, height, width, border)
    size = height + 2 * border
    moved = Polygons(
        reference_law.transform(sample.polygons.points, matrix),
        sample.polygons.part_sizes,
        sample.polygons.parts_per_object,
    )
    fine = reference_law.transform(reference_law.resample(sample.polygons, 60001), matrix)
    expected = reference_law.inside_boxes(fine, np.array((size, size), np.float32))
    np.testing.assert_allclose(geometry.visible_boxes(moved, size), expected, rtol=0, atol=0.05)


def test_mosaic_fills_the_recorded_canvas(
    mosaic: dict[str, Any], recipe: ModuleType, images: Any
) -> None:
    case = mosaic
    (size, other), centre = case["img_scale"], case["center"]
    assert size == other and centre == [int(r * size) for r in case["center_ratio"]]
    samples = [_sample(source, recipe, case["masks"]) for source in case["sources"]]
    canvas = reference_law.mosaic(samples, (centre[0], centre[1]), size)
    np.testing.assert_array_equal(canvas.image, images[case["image"]])
    assert list(canvas.image.shape) == case["img_shape"]
    _assert_objects(canvas, case)


def test_copy_paste_mirrors_the_recorded_objects(
    copy_paste: dict[str, Any], recipe: ModuleType, images: Any
) -> None:
    case = copy_paste
    sample = _sample(case["source"], recipe)
    width = sample.image.shape[1]
    assert case["ioa_threshold"] == 0.3
    overlaps = mixing.mirrored_overlaps(sample.boxes, width)
    np.testing.assert_allclose(overlaps, case["ioa"], rtol=0, atol=1e-4)
    assert mixing.paste_candidates(sample.boxes, width).tolist() == case["candidates"]
    pasted = reference_law.copy_paste(sample, np.array(case["chosen"], np.int64))
    np.testing.assert_array_equal(pasted.image, images[case["image"]])
    _assert_objects(pasted, case)


def test_mixup_blends_and_joins_as_recorded(
    mixup: dict[str, Any], recipe: ModuleType, images: Any
) -> None:
    first, second = (_sample(source, recipe) for source in mixup["sources"])
    blended = reference_law.mixup(first, second, mixup["ratio"])
    np.testing.assert_array_equal(blended.image, images[mixup["image"]])
    _assert_objects(blended, mixup)
    fast = mixing.mixup(first, second, mixup["ratio"])
    _assert_objects(fast, mixup)
    assert np.abs(fast.image.astype(int) - blended.image).max() <= 1


class _Recorded:
    """Stands for a generator that gives recorded numbers."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (-1, 1, len(self.values))
        return np.array(self.values)


def test_hsv_jitter_is_exact(hsv: dict[str, Any], recipe: ModuleType, images: Any) -> None:
    case = hsv
    assert case["channel_order"] == "BGR"
    gains = draw_hsv(_Recorded(case["uniform_draws"]), tuple(case["deltas"]))  # type: ignore[arg-type]
    np.testing.assert_allclose(gains, case["gains"], rtol=1e-7)
    photo = recipe.photo(case["photo"], case["height"], case["width"])
    np.testing.assert_array_equal(apply_hsv(photo, gains), images[case["image"]])


def test_flip_mirrors_as_recorded(flip: dict[str, Any], recipe: ModuleType, images: Any) -> None:
    flipped = geometry.flip(_sample(flip["source"], recipe))
    np.testing.assert_array_equal(flipped.image, images[flip["image"]])
    _assert_objects(flipped, flip)


@pytest.mark.parametrize("law", [masks.rasterize, reference_law.rasterize])
def test_both_laws_rasterise_the_recorded_bitmaps(
    polygon_to_bitmap: dict[str, Any], law: Any, recipe: ModuleType, images: Any
) -> None:
    case = polygon_to_bitmap
    sample = _sample(case["source"], recipe)
    assert sample.polygons is not None
    height, width = sample.image.shape[:2]
    bitmaps = law(sample.polygons, height, width, case["downsample"])
    np.testing.assert_array_equal(bitmaps, images[case["masks"]])
    assert np.unique(bitmaps).tolist() == case["values"]


def _draw_as_the_original(case: dict[str, Any]) -> TextDraws:
    """The recorded order of draws from Python's own generator."""
    rng = random.Random(case["seed"])
    num_classes, limit = len(case["captions"]), case["max_num_samples"]
    positives = list(set(case["labels_in"]))
    if len(positives) > limit:
        positives = list(set(rng.sample(positives, limit)))
    room = min(num_classes, limit) - len(positives)
    num_negatives = min(room, rng.randint(*case["num_neg_samples"]))
    others = [c for c in range(num_classes) if c not in positives]
    classes = positives + rng.sample(others, num_negatives)
    rng.shuffle(classes)
    picks = [rng.randint(0, len(case["captions"][c]) - 1) for c in classes]
    return TextDraws(np.array(classes, np.int64), np.array(picks, np.int64))


def test_sampled_texts_labels_and_kept_boxes_are_as_recorded(random_texts: dict[str, Any]) -> None:
    case = random_texts
    vocabulary = Vocabulary.from_classes(case["captions"])
    count = len(case["labels_in"])
    sample = Sample(
        image_id=1,
        image=np.zeros((8, 8, 3), np.uint8),
        boxes=np.arange(4 * count, dtype=np.float32).reshape(count, 4),
        labels=np.array(case["labels_in"], np.int64),
    )
    drawn = apply_texts(sample, vocabulary, _draw_as_the_original(case), case["max_num_samples"])
    assert drawn.text_ids is not None
    texts = [vocabulary.texts[i] for i in drawn.text_ids]
    assert [case["prompt_format"].format(t) if t else "" for t in texts] == case["texts"]
    assert drawn.labels.tolist() == case["labels_out"]
    np.testing.assert_array_equal(drawn.boxes, case["kept_boxes"])


def test_evaluation_texts_are_first_synonyms_in_file_order(load_text: dict[str, Any]) -> None:
    vocabulary = Vocabulary.from_classes(load_text["captions"])
    assert [vocabulary.texts[i] for i in vocabulary.eval_text_ids()] == load_text["texts"]


def test_merged_vocabularies_keep_the_text_behind_each_label(
    merge_vocabularies: dict[str, Any],
) -> None:
    case = merge_vocabularies
    names, labels = join_vocabularies(
        [i["texts"] for i in case["inputs"]], [np.array(i["labels"]) for i in case["inputs"]]
    )
    assert len(names) == case["number_of_texts"]
    behind = [[list(names[label]) for label in source] for source in labels]
    assert behind == case["texts_behind_labels"]


def test_collate_gives_the_recorded_batch(collate: dict[str, Any], recipe: ModuleType) -> None:
    case = collate
    vocabulary = Vocabulary.from_classes([t for t in case["texts"][0] if t])
    samples = []
    for source, texts in zip(case["sources"], case["texts"], strict=True):
        sample = _sample(source, recipe)
        ids = np.array([vocabulary.texts.index(t) for t in texts], np.int64)
        samples.append(replace(sample, polygons=None, text_ids=ids))
    batch = join_samples(samples)
    assert str(batch.images.dtype) == case["input_dtype"]
    rows = np.concatenate(
        [batch.image_index.numpy()[:, None], batch.labels.numpy()[:, None], batch.boxes.numpy()], 1
    )
    np.testing.assert_allclose(rows, case["bboxes_labels"], rtol=0, atol=COORDINATE_PX)
    rgb = batch.images.numpy()[:, ::-1].astype(np.float32) / np.float32(255)
    found, expected = recipe.summary(rgb), case["preprocessed"]
    assert found["shape"] == expected["shape"]
    for key in ("mean", "min", "max", "samples", "std", "abs_sum"):
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-6, atol=1e-7)
    assert batch.text_ids is not None
    assert [[vocabulary.texts[i] for i in row] for row in batch.text_ids] == case["texts"]

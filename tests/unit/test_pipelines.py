"""The chains: loading, both training stages, evaluation."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from drawn_samples import drawn_sample, record_of

from yw_ray.data import masks, pipelines
from yw_ray.data.collate import collate
from yw_ray.data.sample import Polygons, Sample
from yw_ray.data.vocabulary import Vocabulary
from yw_ray.recipe import AugmentConfig, DataConfig

VOCABULARY = Vocabulary.from_classes([[f"thing {i}", f"alias {i}"] for i in range(10)])
SEG = AugmentConfig(copy_paste=0.5, mixup=0.5)
PLAIN = AugmentConfig(mask_refine=False, copy_paste=0, mixup=0.5)


def _pool(refine: bool, num_objects: int = 4) -> list[Sample]:
    rng = np.random.default_rng(9)
    shapes = ((120, 160), (160, 107), (90, 90), (200, 150))
    return [
        drawn_sample(rng, *shapes[i % 4], num_objects, image_id=i, refine=refine) for i in range(8)
    ]


def _augment(
    seed: int, config: AugmentConfig = SEG, size: int = 128, law: str = "fast", **changes: Any
) -> Sample:
    arguments: dict[str, Any] = {
        "vocabulary": VOCABULARY,
        "close_mosaic": False,
        "segmentation": config.mask_refine,
        "pool": None,
    } | changes
    pool = arguments.pop("pool") or _pool(config.mask_refine)
    data = DataConfig(image_size=size, law=law)  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    draw = lambda generator: pool[generator.integers(len(pool))]  # noqa: E731
    return pipelines.augment(pool[0], draw, rng, config, data, 12, **arguments)


def _same(a: Sample, b: Sample) -> bool:
    for field in fields(Sample):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            if x.dtype != y.dtype or not np.array_equal(x, y):
                return False
        elif isinstance(x, Polygons):
            if not np.array_equal(x.points, y.points):
                return False
        elif x != y:
            return False
    return True


def test_loading_with_mask_refine_takes_boxes_from_polygons_and_drops_objects_without() -> None:
    sample = drawn_sample(np.random.default_rng(0), 60, 80, 5)
    loaded = pipelines.load(record_of(sample, crowd=[1], without=[3]), mask_refine=True)
    np.testing.assert_array_equal(loaded.image, sample.image)
    np.testing.assert_array_equal(loaded.boxes, sample.boxes[[0, 2, 4]])
    assert loaded.labels.tolist() == sample.labels[[0, 2, 4]].tolist()
    assert loaded.polygons is not None and loaded.polygons.parts_per_object.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(masks.extremes(loaded.polygons), loaded.boxes)


def test_plain_loading_takes_the_json_boxes_and_drops_crowd_only() -> None:
    sample = drawn_sample(np.random.default_rng(0), 60, 80, 5)
    loaded = pipelines.load(record_of(sample, crowd=[1], without=[3]), mask_refine=False)
    np.testing.assert_array_equal(loaded.boxes, sample.boxes[[0, 2, 3, 4]] + np.float32(0.25))
    assert loaded.polygons is None


@pytest.mark.parametrize("refine", [True, False])
def test_a_row_without_objects_loads_as_empty_arrays(refine: bool) -> None:
    record = record_of(drawn_sample(np.random.default_rng(0), 60, 80, 0))
    loaded = pipelines.load(record, refine)
    assert loaded.boxes.shape == (0, 4) and loaded.boxes.dtype == np.float32
    assert loaded.labels.shape == (0,) and loaded.labels.dtype == np.int64


def test_a_damaged_picture_is_refused_in_one_line() -> None:
    record = record_of(drawn_sample(np.random.default_rng(0), 60, 80, 1, image_id=42))
    with pytest.raises(ValueError, match=r"^image 42: 20 bytes do not decode[^\n]*$"):
        pipelines.load(replace(record, jpeg=record.jpeg[:20]), True)
    with pytest.raises(ValueError, match=r"^image 42: 0 bytes do not decode[^\n]*$"):
        pipelines.load(replace(record, jpeg=b""), True)
    with pytest.raises(ValueError, match=r"^image 42: decodes to \(60, 80\)[^\n]*$"):
        pipelines.load(replace(record, width=81), True)


@pytest.mark.parametrize("config", [SEG, PLAIN])
@pytest.mark.parametrize("law", ["fast", "reference"])
@pytest.mark.parametrize("close_mosaic", [False, True])
def test_equal_generator_seed_gives_equal_sample_bit_for_bit(
    config: AugmentConfig, law: str, close_mosaic: bool
) -> None:
    samples = [_augment(s, config, law=law, close_mosaic=close_mosaic) for s in (5, 5, 6)]
    assert _same(samples[0], samples[1])
    assert not np.array_equal(samples[0].image, samples[2].image)


def test_augmenting_leaves_global_generators_and_its_inputs_alone() -> None:
    pool = _pool(True)
    before = [replace(s, image=s.image.copy(), boxes=s.boxes.copy()) for s in pool]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    for seed in range(6):
        _augment(seed, pool=pool, close_mosaic=seed % 2 == 0)
    assert random.getstate() == python_state
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert all(_same(a, b) for a, b in zip(pool, before, strict=True))


@pytest.mark.parametrize("size", range(96, 641, 32))
def test_every_image_size_gives_square_samples_with_their_masks(size: int) -> None:
    out = _augment(1, size=size)
    assert out.image.shape == (size, size, 3) and out.image.flags.c_contiguous
    assert out.masks is not None and out.masks.shape == (len(out.boxes), size // 4, size // 4)
    assert out.polygons is None and out.text_ids is not None and out.text_ids.shape == (12,)
    assert collate([out]).images.shape == (1, 3, size, size)


@pytest.mark.parametrize("law", ["fast", "reference"])
def test_masks_lie_inside_their_boxes(law: str) -> None:
    seen = 0
    for seed in range(12):
        out = _augment(seed, law=law, close_mosaic=seed % 3 == 0)
        assert out.masks is not None and set(np.unique(out.masks)) <= {0, 1}
        for box, bitmap in zip(out.boxes / 4, out.masks, strict=True):
            rows, columns = bitmap.any(axis=1).nonzero()[0], bitmap.any(axis=0).nonzero()[0]
            if len(rows):
                seen += 1
                assert columns[0] >= box[0] - 1 and columns[-1] <= box[2] + 1
                assert rows[0] >= box[1] - 1 and rows[-1] <= box[3] + 1
    assert seen > 30


def test_detection_rows_carry_neither_masks_nor_polygons() -> None:
    out = _augment(2, segmentation=False)
    assert out.masks is None and out.polygons is None and len(out.boxes)


def test_fixed_prompts_keep_dataset_labels_and_sample_no_texts() -> None:
    out = _augment(2, vocabulary=None)
    assert out.text_ids is None
    with_texts = _augment(2)
    assert with_texts.text_ids is not None
    names = [
        next(c for c, ids in enumerate(VOCABULARY.text_ids) if with_texts.text_ids[label] in ids)
        for label in with_texts.labels
    ]
    assert names == out.labels.tolist()
    np.testing.assert_array_equal(with_texts.boxes, out.boxes)


def test_mosaic_draws_three_partners_and_mixup_four_more() -> None:
    pool = _pool(True)
    for mixup, expected in ((0.0, 3), (1.0, 7)):
        asked = []

        def draw(rng: np.random.Generator, asked: list[int] = asked) -> Sample:
            asked.append(int(rng.integers(len(pool))))
            return pool[asked[-1]]

        config = AugmentConfig(mixup=mixup)
        rng = np.random.default_rng(0)
        pipelines.augment(
            pool[0], draw, rng, config, DataConfig(image_size=96), 12, VOCABULARY,
            close_mosaic=False, segmentation=False,
        )  # fmt: skip
        assert len(asked) == expected


@pytest.mark.parametrize("close_mosaic", [True, False])
def test_stage_2_and_mosaic_false_need_no_partner(close_mosaic: bool) -> None:
    def draw(rng: np.random.Generator) -> Sample:
        raise AssertionError("asked for a partner")

    config = AugmentConfig(mosaic=close_mosaic, mixup=1)
    out = pipelines.augment(
        _pool(True)[0], draw, np.random.default_rng(0), config, DataConfig(image_size=96), 12,
        VOCABULARY, close_mosaic=close_mosaic, segmentation=True,
    )  # fmt: skip
    assert out.image.shape == (96, 96, 3) and out.image_id == 0


def test_the_laws_share_their_draws() -> None:
    alike = 0
    for seed in range(10):
        fast, slow = (_augment(seed, law=law) for law in ("fast", "reference"))
        if fast.labels.tolist() == slow.labels.tolist():
            alike += 1
            np.testing.assert_array_equal(fast.text_ids, slow.text_ids)
            assert np.abs(fast.boxes - slow.boxes).mean() < 0.5
    assert alike >= 8


@pytest.mark.parametrize("law", ["fast", "reference"])
@pytest.mark.parametrize("config", [SEG, PLAIN])
def test_pictures_without_objects_and_filtered_ones_keep_shapes_and_types(
    law: str, config: AugmentConfig
) -> None:
    empty = _pool(config.mask_refine, num_objects=0)
    tiny = config.model_copy(update={"scale": (0.01, 0.01)})
    for out in (
        _augment(0, config, law=law, pool=empty),
        _augment(0, config, law=law, pool=empty, close_mosaic=True),
        _augment(0, tiny, law=law),
        _augment(0, tiny, law=law, close_mosaic=True),
    ):
        assert out.boxes.shape == (0, 4) and out.boxes.dtype == np.float32
        assert out.labels.shape == (0,) and out.labels.dtype == np.int64
        if config.mask_refine:
            assert out.masks is not None and out.masks.shape == (0, 32, 32)
        assert out.text_ids is not None and (out.text_ids[:10] > 0).all()


def test_segmentation_without_polygons_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augment\.mask_refine is false; set it to true$"):
        _augment(0, PLAIN, segmentation=True)


def test_the_flip_comes_as_often_as_stated() -> None:
    pool = _pool(False)
    config = AugmentConfig(
        mask_refine=False, copy_paste=0, scale=(1, 1), translate=0, hsv=(0, 0, 0), pixel_jitter=0,
        flip=0.25,
    )  # fmt: skip
    flipped = 0
    for seed in range(80):
        out = _augment(seed, config, size=160, close_mosaic=True, pool=pool, vocabulary=None)
        flipped += not np.allclose(out.boxes[0, 0], pool[0].boxes[0, 0], atol=0.5)
    assert 8 <= flipped <= 34


def test_an_evaluation_sample_is_letterboxed_with_json_boxes() -> None:
    sample = drawn_sample(np.random.default_rng(0), 60, 80, 3)
    out = pipelines.eval_sample(record_of(sample, crowd=[0]), 96)
    assert out.image.shape == (96, 96, 3) and out.polygons is None and out.text_ids is None
    assert out.letterbox is not None and out.letterbox.original_size == (60, 80)
    top, _, left, _ = out.letterbox.pad
    expected = (sample.boxes[1:] + 0.25) * 1.2 + np.array([left, top, left, top])
    np.testing.assert_allclose(out.boxes, expected, atol=1e-3)

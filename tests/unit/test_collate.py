"""Samples to batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_samples import drawn_sample

from yw_ray.data.collate import collate
from yw_ray.data.geometry import letterbox
from yw_ray.data.sample import Sample


def _samples(counts: list[int], size: int = 64) -> list[Sample]:
    rng = np.random.default_rng(0)
    made = [drawn_sample(rng, size, size, n, image_id=i + 10) for i, n in enumerate(counts)]
    return [
        replace(
            s,
            polygons=None,
            masks=rng.integers(0, 2, (len(s.labels), 16, 16)).astype(np.uint8),
            text_ids=np.arange(7) + i,
        )
        for i, s in enumerate(made)
    ]


def test_images_become_planes_and_targets_flat_rows() -> None:
    samples = _samples([2, 0, 3])
    batch = collate(samples)
    assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.uint8
    for planes, sample in zip(batch.images, samples, strict=True):
        np.testing.assert_array_equal(planes.numpy().transpose(1, 2, 0), sample.image)
    assert batch.image_index.tolist() == [0, 0, 2, 2, 2] and batch.image_index.dtype == torch.int64
    assert batch.boxes.shape == (5, 4) and batch.boxes.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    np.testing.assert_array_equal(batch.boxes[2:].numpy(), samples[2].boxes)
    assert batch.image_ids.tolist() == [10, 11, 12]
    assert batch.text_ids is not None and batch.text_ids.shape == (3, 7)
    assert batch.masks is not None
    assert batch.masks.shape == (5, 16, 16) and batch.masks.dtype == torch.bool
    assert batch.letterboxes is None


def test_a_batch_without_objects_keeps_shapes_and_types() -> None:
    batch = collate(_samples([0, 0]))
    assert batch.boxes.shape == (0, 4) and batch.boxes.dtype == torch.float32
    assert batch.labels.shape == (0,) and batch.labels.dtype == torch.int64
    assert batch.image_index.shape == (0,) and batch.image_index.dtype == torch.int64
    assert batch.masks is not None and batch.masks.shape == (0, 16, 16)


def test_evaluation_samples_carry_letterboxes_and_no_texts() -> None:
    rng = np.random.default_rng(0)
    samples = [letterbox(drawn_sample(rng, h, 50, 1), 64) for h in (40, 60)]
    batch = collate([replace(s, polygons=None) for s in samples])
    assert batch.letterboxes == tuple(s.letterbox for s in samples)
    assert batch.text_ids is None and batch.masks is None


def test_the_batch_owns_its_memory() -> None:
    samples = _samples([1])
    batch = collate(samples)
    before = batch.images.clone(), batch.boxes.clone()
    samples[0].image[:] = 0
    samples[0].boxes[:] = 0
    assert torch.equal(batch.images, before[0]) and torch.equal(batch.boxes, before[1])


def test_a_picture_that_is_a_view_is_copied_right() -> None:
    sample = _samples([1], size=32)[0]
    flipped = replace(sample, image=sample.image[:, ::-1])
    np.testing.assert_array_equal(
        collate([flipped]).images[0].numpy().transpose(1, 2, 0), sample.image[:, ::-1]
    )


def test_no_samples_and_mixed_sizes_are_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^collate: got no samples[^\n]*$"):
        collate([])
    with pytest.raises(ValueError, match=r"^collate: got image shapes[^\n]*$"):
        collate([_samples([1], 32)[0], _samples([1], 64)[0]])

"""Class texts and the text sampler."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_samples import drawn_sample

from yw_ray.data import masks
from yw_ray.data.sample import Sample
from yw_ray.data.vocabulary import Vocabulary, draw_texts, merge_vocabularies, sample_texts

MANY = Vocabulary.from_classes([[f"thing {i}", f"alias {i}"] for i in range(200)])


def _sample(labels: list[int]) -> Sample:
    """Object j has box (j, j, j + 1, j + 1), one mask pixel and a triangle that name it."""
    count = len(labels)
    bitmaps = np.zeros((count, 1, max(count, 1)), np.uint8)
    bitmaps[np.arange(count), 0, np.arange(count)] = 1
    points = np.repeat(np.arange(count, dtype=np.float32), 3)[:, None] + np.zeros(
        (1, 2), np.float32
    )
    return Sample(
        image_id=5,
        image=np.zeros((8, 8, 3), np.uint8),
        boxes=np.arange(count, dtype=np.float32)[:, None] + np.array([0, 0, 1, 1], np.float32),
        labels=np.array(labels, np.int64),
        masks=bitmaps,
        polygons=masks.contours(points, np.full(count, 3)),
    )


def test_texts_begin_with_the_empty_text_and_are_unique() -> None:
    vocabulary = Vocabulary.from_classes([["cat", "kitty"], ["dog"], ["kitty", "cub"]])
    assert vocabulary.texts == ("", "cat", "kitty", "dog", "cub")
    assert vocabulary.text_ids == ((1, 2), (3,), (2, 4))
    assert vocabulary.eval_text_ids().tolist() == [1, 3, 2]
    assert len(vocabulary) == 3


def test_flat_and_nested_names_give_the_same_vocabulary() -> None:
    flat, nested = Vocabulary.from_classes(["a", "b"]), Vocabulary.from_classes([["a"], ["b"]])
    assert flat == nested and flat.digest == nested.digest


def test_the_digest_knows_order_and_synonyms() -> None:
    digests = {
        Vocabulary.from_classes(c).digest for c in (["a", "b"], ["b", "a"], [["a", "b"]], ["a"])
    }
    assert len(digests) == 4


@pytest.mark.parametrize("classes", [[], [["a"], []], [""], [["a", ""]]])
def test_a_class_without_text_is_refused_in_one_line(classes: list) -> None:
    with pytest.raises(ValueError, match=r"^vocabulary: [^\n]*$"):
        Vocabulary.from_classes(classes)


def test_every_positive_keeps_its_text() -> None:
    labels = [7, 3, 7, 150, 199]
    for seed in range(20):
        out = sample_texts(_sample(labels), MANY, 80, np.random.default_rng(seed))
        assert out.text_ids is not None and out.text_ids.shape == (80,)
        assert out.labels.dtype == np.int64
        for label, position in zip(labels, out.labels, strict=True):
            assert out.text_ids[position] in MANY.text_ids[label]


def test_negatives_are_different_classes_and_never_positives() -> None:
    out = sample_texts(_sample([7, 3]), MANY, 80, np.random.default_rng(0))
    owner = {i: c for c, ids in enumerate(MANY.text_ids) for i in ids}
    assert out.text_ids is not None
    assert len({owner[i] for i in out.text_ids}) == 80


def test_a_small_vocabulary_is_padded_with_the_empty_text() -> None:
    vocabulary = Vocabulary.from_classes(["a", "b", "c"])
    out = sample_texts(_sample([1]), vocabulary, 5, np.random.default_rng(0))
    assert out.text_ids is not None
    assert sorted(out.text_ids[:3]) == [1, 2, 3] and out.text_ids[3:].tolist() == [0, 0]


def test_as_many_texts_as_classes_gives_all_in_another_order_each_time() -> None:
    vocabulary = Vocabulary.from_classes([f"c{i}" for i in range(80)])
    rng = np.random.default_rng(0)
    first, second = (sample_texts(_sample([4]), vocabulary, 80, rng).text_ids for _ in range(2))
    assert first is not None and second is not None
    assert sorted(first) == sorted(second) == list(range(1, 81))
    assert first.tolist() != second.tolist()


def test_too_many_positives_filter_boxes_labels_polygons_and_masks_together() -> None:
    labels = [*range(10), 3, 3]
    dropped = set()
    for seed in range(10):
        out = sample_texts(_sample(labels), MANY, 4, np.random.default_rng(seed))
        assert out.text_ids is not None and out.masks is not None and out.polygons is not None
        kept = out.boxes[:, 0].astype(int)
        np.testing.assert_array_equal(out.masks[:, 0].argmax(axis=1), kept)
        np.testing.assert_array_equal(out.polygons.points[::3, 0].astype(int), kept)
        assert len(out.polygons) == len(out.labels) == len(kept)
        assert {labels[k] for k in kept} == {k for k in labels if k in np.array(labels)[kept]}
        assert len({labels[k] for k in kept}) == 4
        for k, position in zip(kept, out.labels, strict=True):
            assert out.text_ids[position] in MANY.text_ids[labels[k]]
        dropped |= set(range(10)) - {labels[k] for k in kept}
    assert dropped == set(range(10)), "the dropped positives are not random"


def test_synonyms_are_drawn_evenly() -> None:
    rng = np.random.default_rng(0)
    picks = np.concatenate([draw_texts(np.array([0]), MANY, 80, rng).synonyms for _ in range(50)])
    assert abs(picks.mean() - 0.5) < 0.03


def test_an_image_without_objects_gets_negatives_only() -> None:
    out = sample_texts(_sample([]), MANY, 80, np.random.default_rng(0))
    assert out.text_ids is not None and (out.text_ids > 0).all()
    assert out.labels.shape == (0,) and out.labels.dtype == np.int64 and out.boxes.shape == (0, 4)


def test_a_label_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="label 200, but the vocabulary has 200 classes"):
        sample_texts(_sample([200]), MANY, 80, np.random.default_rng(0))


def test_equal_seeds_draw_equal_texts_and_others_do_not() -> None:
    sample = drawn_sample(np.random.default_rng(1), 64, 64, 4)
    sample = replace(sample, polygons=None)
    ids = [sample_texts(sample, MANY, 80, np.random.default_rng(s)).text_ids for s in (1, 1, 2)]
    assert ids[0] is not None and ids[1] is not None and ids[2] is not None
    assert ids[0].tolist() == ids[1].tolist() != ids[2].tolist()


def test_merged_vocabularies_share_equal_classes() -> None:
    names, (a, b) = merge_vocabularies(
        [[["x"], ["y"]], [["y"], ["z"]]], [np.array([0, 1]), np.array([0, 1, 0])]
    )
    assert names == [("x",), ("y",), ("z",)]
    assert a.tolist() == [0, 1] and b.tolist() == [1, 2, 1]

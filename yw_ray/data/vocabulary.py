"""Class texts and the per-image text sampler.

Place in the flow: the manifest names the classes -> Vocabulary -> `augment` gives each training
image its own list of texts -> the model embeds `Vocabulary.texts` once and gathers rows by id.
Source: YOLO-World (arXiv 2401.17270), text sampling of the published fine-tuning recipes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from yw_ray.data.masks import select
from yw_ray.data.sample import Sample

PADDING_TEXT_ID = 0


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The texts of each class.

    classes: synonyms per class, label order; texts: all different texts, "" (padding) first;
    text_ids: per class the positions of its synonyms in `texts`.
    """

    classes: tuple[tuple[str, ...], ...]
    texts: tuple[str, ...]
    text_ids: tuple[tuple[int, ...], ...]

    @classmethod
    def from_classes(cls, classes: Sequence[str] | Sequence[Sequence[str]]) -> Vocabulary:
        """Build from flat names or from lists of synonyms.

        Raises: ValueError for an empty list, a class without text or an empty text.
        """
        if not classes:
            raise ValueError("vocabulary: got no classes, expected at least one")
        nested = tuple((c,) if isinstance(c, str) else tuple(c) for c in classes)
        for label, synonyms in enumerate(nested):
            if not synonyms or not all(isinstance(t, str) and t for t in synonyms):
                raise ValueError(
                    f"vocabulary: class {label} has texts {list(synonyms)!r}, expected one or more "
                    "non-empty strings; name the class"
                )
        texts = tuple(dict.fromkeys(("", *(t for synonyms in nested for t in synonyms))))
        position = {text: i for i, text in enumerate(texts)}
        ids = tuple(tuple(position[t] for t in synonyms) for synonyms in nested)
        return cls(classes=nested, texts=texts, text_ids=ids)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def digest(self) -> str:
        """Hash of classes, synonyms and their order."""
        content = json.dumps(self.classes, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def eval_text_ids(self) -> np.ndarray:
        """(K,) int64 ids of the first synonym of every class, label order."""
        return np.array([ids[0] for ids in self.text_ids], np.int64)


@dataclass(frozen=True, slots=True)
class TextDraws:
    """classes: (k,) int64 labels in the order of the text list; synonyms: (k,) picks in each."""

    classes: np.ndarray
    synonyms: np.ndarray


def draw_texts(
    labels: np.ndarray, vocabulary: Vocabulary, num_texts: int, rng: np.random.Generator
) -> TextDraws:
    """All positives (a random `num_texts` of them if there are more), then random negatives.

    Args:
        labels: (M,) dataset labels of the image.
        num_texts: length of the list before padding, at most.
    """
    present = np.unique(labels)
    if len(present) > num_texts:
        present = rng.choice(present, num_texts, replace=False)
    num_negatives = min(len(vocabulary), num_texts) - len(present)
    absent = np.ones(len(vocabulary), bool)
    absent[present] = False
    negatives = rng.choice(np.flatnonzero(absent), num_negatives, replace=False)
    chosen = rng.permutation(np.concatenate((present, negatives)).astype(np.int64))
    counts = np.array([len(vocabulary.text_ids[c]) for c in chosen], np.int64)
    return TextDraws(classes=chosen, synonyms=rng.integers(0, counts) if len(counts) else counts)


def apply_texts(sample: Sample, vocabulary: Vocabulary, draws: TextDraws, num_texts: int) -> Sample:
    """Relabel to positions in the drawn list, drop objects of other classes, pad with "".

    Boxes, labels, polygons and masks are filtered together.
    """
    position = np.full(len(vocabulary), -1, np.int64)
    position[draws.classes] = np.arange(len(draws.classes))
    text_ids = np.full(num_texts, PADDING_TEXT_ID, np.int64)
    for i, (c, pick) in enumerate(zip(draws.classes, draws.synonyms, strict=True)):
        text_ids[i] = vocabulary.text_ids[c][pick]
    labels = position[sample.labels]
    keep = labels >= 0
    if keep.all():
        return replace(sample, labels=labels, text_ids=text_ids)
    return replace(
        sample,
        boxes=sample.boxes[keep],
        labels=labels[keep],
        polygons=None if sample.polygons is None else select(sample.polygons, keep),
        masks=None if sample.masks is None else sample.masks[keep],
        text_ids=text_ids,
    )


def sample_texts(
    sample: Sample, vocabulary: Vocabulary, num_texts: int, rng: np.random.Generator
) -> Sample:
    """Give the image its own shuffled list of `num_texts` texts.

    Returns: the sample with labels as positions in `text_ids` (num_texts,).
    Raises: ValueError for a label outside the vocabulary.
    """
    if len(sample.labels) and not 0 <= sample.labels.min() <= sample.labels.max() < len(vocabulary):
        raise ValueError(
            f"image {sample.image_id} has label {int(sample.labels.max())}, but the vocabulary has "
            f"{len(vocabulary)} classes; prepare the shards and the texts from the same categories"
        )
    draws = draw_texts(sample.labels, vocabulary, num_texts, rng)
    return apply_texts(sample, vocabulary, draws, num_texts)


def merge_vocabularies(
    classes: Sequence[Sequence[Sequence[str]]], labels: Sequence[np.ndarray]
) -> tuple[list[tuple[str, ...]], list[np.ndarray]]:
    """Union of several class lists, with the labels of each source moved to it.

    Args:
        classes: per source the synonyms of its classes; labels: per source (M,) into them.
    Returns: the classes of the union in order of first appearance, and the new labels.
    """
    union: dict[tuple[str, ...], int] = {}
    moved = []
    for names, source in zip(classes, labels, strict=True):
        to_union = np.array([union.setdefault(tuple(n), len(union)) for n in names], np.int64)
        moved.append(to_union[np.asarray(source, np.int64)])
    return list(union), moved

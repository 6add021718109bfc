"""Post-processing: NMS by prefixes against the full rule, edges of counts, masks by hand."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import nms

from yw_ray.data.sample import Letterbox
from yw_ray.models import postprocess as pp
from yw_ray.models.outputs import RawOutputs
from yw_ray.recipe import EvalConfig

STRIDES = (8, 16, 32)


def make_outputs(
    batch: int, classes: int, side: int = 64, shift: float = -2, masks: bool = False
) -> RawOutputs:
    """Random raw outputs of square inputs."""

    def level(channels: int, stride: int, add: float = 0) -> Tensor:
        return 2 * torch.randn(batch, channels, side // stride, side // stride) + add

    return RawOutputs(
        tuple(level(classes, s, shift) for s in STRIDES),
        tuple(level(64, s) for s in STRIDES),
        tuple(level(32, s) for s in STRIDES) if masks else None,
        level(32, 4) if masks else None,
    )


def plain(side: int = 64) -> Letterbox:
    """An image that filled the input as it was."""
    return Letterbox(original_size=(side, side), scale=(1, 1), pad=(0, 0, 0, 0))


def sharp(places: dict[tuple[int, int], tuple[int, float]], classes: int = 3) -> RawOutputs:
    """64 px input, background but for stride-8 cells (row, col): (class, logit), boxes 24 px."""
    cls = [torch.full((1, classes, 64 // s, 64 // s), -20.0) for s in STRIDES]
    dist = [torch.zeros(1, 4, 16, 64 // s, 64 // s) for s in STRIDES]
    for level in dist:
        level[:, :, 1], level[:, :, 2] = 40.0, 40.0  # expectation 1.5 strides
    for (row, col), (label, logit) in places.items():
        cls[0][0, label, row, col] = logit
    return RawOutputs(tuple(cls), tuple(level.flatten(1, 2) for level in dist))


def full_rule(boxes: Tensor, logits: Tensor, config: EvalConfig) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs above the threshold, sorted, cut, NMS class by class in float64, sorted, cut."""
    anchors, labels = (logits.double().sigmoid() > config.score_threshold).nonzero(as_tuple=True)
    found = logits[anchors, labels]
    order = found.argsort(descending=True, stable=True)[: config.nms_pre]
    anchors, labels, found = anchors[order], labels[order], found[order]
    keep = torch.zeros(len(found), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        keep[rows[nms(boxes[anchors[rows]].double(), found[rows].double(), config.nms_iou)]] = True
    kept = keep.nonzero().squeeze(1)[: config.max_detections]
    return found[kept], labels[kept], anchors[kept]


def crowd(seed: int, n: int, k: int, spots: int) -> tuple[Tensor, Tensor]:
    """N boxes around few spots, so that NMS removes much, and logits (N, K) with equal values."""
    g = torch.Generator().manual_seed(seed)
    centre = (torch.rand(spots, 2, generator=g) * 600)[torch.randint(spots, (n,), generator=g)]
    centre = centre + 4 * torch.randn(n, 2, generator=g)
    half = 20 + 5 * torch.rand(n, 2, generator=g)
    logits = (2 * torch.randn(n, k, generator=g) - 1).mul(50).round() / 50
    return torch.cat((centre - half, centre + half), 1), logits


@pytest.mark.parametrize(
    "n, k, spots, limits",
    [
        (3000, 8, 40, {}),  # far more than one prefix
        (3000, 8, 3, {}),  # hardly anything survives: the prefix grows to the end
        (400, 1203, 200, {}),  # large vocabulary
        (2000, 8, 40, {"nms_pre": 1500}),
        (2000, 8, 40, {"max_detections": 7, "nms_iou": 0.3}),
        (500, 1, 20, {"score_threshold": 0.5}),
        (300, 4, 30, {"score_threshold": 0.0}),
    ],
)
def test_prefix_nms_equals_the_full_rule(
    n: int, k: int, spots: int, limits: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvalConfig(**limits)
    for seed in range(4):
        boxes, logits = crowd(seed, n, k, spots)
        want = full_rule(boxes, logits, config)
        cls = [part.T[:, :, None] for part in logits.split(n // 2 + 1)]  # two levels (K, h, 1)
        candidates = pp.find_candidates(cls, config.score_threshold)
        for first in (50, 1000):
            monkeypatch.setattr(pp, "_FIRST_PREFIX", first)
            got = pp.suppress(candidates, boxes, config)
            for a, b in zip((got.logits, got.labels, got.anchors), want, strict=True):
                assert torch.equal(a, b)


def test_more_than_max_detections_survivors_are_cut_to_the_best() -> None:
    boxes = torch.arange(500.0)[:, None] * 100 + torch.tensor([0.0, 0, 50, 50])
    logits = torch.linspace(-1, 1, 500)[:, None]
    kept = pp.suppress(pp.find_candidates([logits.T[:, :, None]], 0.001), boxes, EvalConfig())
    assert kept.anchors.tolist() == list(range(499, 199, -1))


def test_equal_scores_keep_their_order_whatever_the_prefix() -> None:
    scores = torch.tensor([0.5, 0.9, 0.5, 0.5, 0.9, 0.1])
    whole = pp.best_first(scores, 6).tolist()
    assert whole == [1, 4, 0, 2, 3, 5]
    for k in range(7):
        assert pp.best_first(scores, k).tolist() == whole[:k]


def test_candidates_are_exactly_the_pairs_above_the_threshold() -> None:
    torch.manual_seed(0)
    logits = torch.randn(20, 40, 40) - 6.9
    for given in (logits, logits.bfloat16()):
        candidates = pp.find_candidates([given], 0.001)
        want = (given.double().sigmoid() > 0.001).flatten(1).T.nonzero()
        assert torch.equal(torch.stack((candidates.anchors, candidates.labels), 1), want)
        assert (candidates.scores > 0.001).all()


def test_detections_come_best_first_in_original_pixels() -> None:
    outputs = sharp({(3, 3): (1, 2.0), (6, 6): (2, 3.0)})
    fit = Letterbox(original_size=(20, 32), scale=(2.0, 2.0), pad=(12, 12, 0, 0))
    (got,) = pp.postprocess(outputs, [fit], EvalConfig(), [77])
    assert got.image_id == 77 and got.masks is None
    assert got.labels.tolist() == [2, 1] and got.labels.dtype == np.int64
    np.testing.assert_allclose(got.scores, [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2))], rtol=1e-6)
    # Centres 28 and 52, half a side 12: (16, 16, 40, 40) and (40, 40, 64, 64) before the fit.
    np.testing.assert_allclose(got.boxes, [[20, 14, 32, 20], [8, 2, 20, 14]], atol=1e-4)
    assert got.boxes.dtype == np.float32 and got.scores.dtype == np.float32


def test_nms_acts_within_a_class_only() -> None:
    same = pp.postprocess(
        sharp({(3, 3): (1, 2.0), (3, 4): (1, 1.0)}), [plain()], EvalConfig(nms_iou=0.4), [0]
    )
    other = pp.postprocess(
        sharp({(3, 3): (1, 2.0), (3, 4): (2, 1.0)}), [plain()], EvalConfig(nms_iou=0.4), [0]
    )
    assert same[0].labels.tolist() == [1] and other[0].labels.tolist() == [1, 2]


def test_one_anchor_may_answer_for_several_classes_unless_told_otherwise() -> None:
    outputs = sharp({(3, 3): (1, 2.0)})
    outputs.cls_logits[0][0, 2, 3, 3] = 1.0
    (many,) = pp.postprocess(outputs, [plain()], EvalConfig(), [0])
    (one,) = pp.postprocess(outputs, [plain()], EvalConfig(), [0], multi_label=False)
    assert many.labels.tolist() == [1, 2] and one.labels.tolist() == [1]


def test_an_image_without_detections_gives_empty_arrays() -> None:
    outputs = make_outputs(1, 3, shift=-60, masks=True)
    (got,) = pp.postprocess(outputs, [plain()], EvalConfig(kind="segm"), [5])
    assert got.boxes.shape == (0, 4) and got.scores.shape == (0,) and got.labels.shape == (0,)
    assert got.masks == []


@pytest.mark.parametrize("classes", [1, 1203])
def test_any_vocabulary_works(classes: int) -> None:
    (got,) = pp.postprocess(make_outputs(1, classes), [plain()], EvalConfig(), [0])
    assert 0 < len(got.labels) <= 300 and got.labels.max() < classes


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_every_image_of_a_large_batch_is_returned_as_if_alone(kind: str) -> None:
    torch.manual_seed(1)
    outputs = make_outputs(5, 4, masks=True)
    config = EvalConfig(kind=kind, max_detections=6)
    together = pp.postprocess(outputs, [plain()] * 5, config, range(5))
    assert [d.image_id for d in together] == [0, 1, 2, 3, 4]
    for i, got in enumerate(together):
        alone = RawOutputs(
            tuple(p[i : i + 1] for p in outputs.cls_logits),
            tuple(p[i : i + 1] for p in outputs.box_dist),
            tuple(p[i : i + 1] for p in outputs.mask_coeffs or ()),
            outputs.protos[i : i + 1] if outputs.protos is not None else None,
        )
        (want,) = pp.postprocess(alone, [plain()], config, [i])
        np.testing.assert_array_equal(got.boxes, want.boxes)
        np.testing.assert_array_equal(got.labels, want.labels)
        assert got.masks == want.masks


def test_channels_last_outputs_give_the_same_detections() -> None:
    outputs = make_outputs(2, 6)
    last = RawOutputs(
        tuple(p.contiguous(memory_format=torch.channels_last) for p in outputs.cls_logits),
        tuple(p.contiguous(memory_format=torch.channels_last) for p in outputs.box_dist),
    )
    a = pp.postprocess(outputs, [plain()] * 2, EvalConfig(), [0, 1])
    b = pp.postprocess(last, [plain()] * 2, EvalConfig(), [0, 1])
    for one, two in zip(a, b, strict=True):
        np.testing.assert_array_equal(one.labels, two.labels)
        np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-4)


def test_counts_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="2 images came with 1 letterboxes and 2 image ids"):
        pp.postprocess(make_outputs(2, 3), [plain()], EvalConfig(), [0, 1])


def test_masks_from_a_model_without_mask_head_are_refused() -> None:
    with pytest.raises(ValueError, match="no mask head"):
        pp.postprocess(make_outputs(1, 3), [plain()], EvalConfig(kind="segm"), [0])


def paste(fit: Letterbox, box: list[float], **kw: bool) -> np.ndarray:
    """A mask whose prototype is full everywhere, 64 px input, cropped by `box`."""
    coeffs, protos = torch.ones(1, 1), torch.full((1, 16, 16), 9.0)
    (mask,) = pp.paste_masks(coeffs, protos, torch.tensor([box]), fit, (64, 64), **kw)
    assert tuple(mask["size"]) == fit.original_size and isinstance(mask["counts"], bytes)
    return coco_mask.decode(mask)


@pytest.mark.parametrize("fast", [True, False])
def test_a_mask_is_cropped_by_its_box_and_freed_of_the_padding(fast: bool) -> None:
    fit = Letterbox(original_size=(40, 64), scale=(1, 1), pad=(12, 12, 0, 0))
    mask = paste(fit, [8.0, 20.0, 24.0, 70.0], fast=fast)
    want = np.zeros((40, 64), np.uint8)
    want[8:40, 8:24] = 1
    np.testing.assert_array_equal(mask, want)


def test_a_mask_is_scaled_to_the_original_image() -> None:
    fit = Letterbox(original_size=(128, 128), scale=(0.5, 0.5), pad=(0, 0, 0, 0))
    mask = paste(fit, [16.0, 16.0, 32.0, 48.0])
    want = np.zeros((128, 128), np.uint8)
    want[32:96, 32:64] = 1
    np.testing.assert_array_equal(mask, want)


def test_odd_padding_is_removed_exactly_unless_the_reference_slip_is_asked_for() -> None:
    fit = Letterbox(original_size=(64, 35), scale=(1, 1), pad=(0, 0, 14, 15))
    box = [14.0, 0.0, 49.0, 64.0]  # the whole original image
    assert paste(fit, box).all()
    slipped = paste(fit, box, symmetric_pad=True)
    assert not slipped[:, -1].any() and slipped[:, :-1].all()


def test_masks_in_small_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    coeffs, protos = torch.randn(9, 32), torch.randn(32, 16, 16)
    boxes = torch.tensor([[4.0, 4, 60, 60]]).expand(9, 4)
    whole = pp.paste_masks(coeffs, protos, boxes, plain(), (64, 64))
    monkeypatch.setattr(pp, "_MASK_PIXELS_CPU", 64 * 64 * 2)
    assert pp.paste_masks(coeffs, protos, boxes, plain(), (64, 64)) == whole

"""The criterion: normalisation, groups, empty images and batches, precision."""

import pytest
import torch
from torch import Tensor

from yw_ray.data.sample import Batch
from yw_ray.losses.criterion import Criterion
from yw_ray.models.outputs import RawOutputs

STRIDES = (8, 16, 32)
TERMS = ("loss_cls", "loss_bbox", "loss_dfl", "loss_mask")


def make_outputs(
    batch: int, classes: int, height: int = 64, width: int = 96, masks: bool = False
) -> RawOutputs:
    """Random raw outputs that need gradients."""

    def level(channels: int, stride: int, shift: float = 0) -> Tensor:
        values = torch.randn(batch, channels, height // stride, width // stride) + shift
        return values.requires_grad_()

    return RawOutputs(
        tuple(level(classes, s, -2) for s in STRIDES),
        tuple(level(64, s) for s in STRIDES),
        tuple(level(32, s) for s in STRIDES) if masks else None,
        level(32, 4) if masks else None,
    )


def make_batch(
    counts: list[int], classes: int, height: int = 64, width: int = 96, masks: bool = False
) -> Batch:
    """Random objects, so many in each image."""
    total = sum(counts)
    size = torch.tensor([width, height])
    extent = (0.2 + 0.5 * torch.rand(total, 2)) * size
    corner = torch.rand(total, 2) * (size - extent)
    return Batch(
        images=torch.empty(0),
        text_ids=None,
        boxes=torch.cat((corner, corner + extent), 1),
        labels=torch.randint(0, classes, (total,)),
        image_index=torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        image_ids=torch.arange(len(counts)),
        masks=torch.rand(total, height // 4, width // 4) > 0.5 if masks else None,
    )


def part_of(outputs: RawOutputs, batch: Batch, images: slice) -> tuple[RawOutputs, Batch]:
    """Outputs and objects of consecutive images."""

    def cut(parts: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
        return None if parts is None else tuple(p[images] for p in parts)

    rows = (batch.image_index >= images.start) & (batch.image_index < images.stop)
    some = RawOutputs(
        tuple(p[images] for p in outputs.cls_logits),
        tuple(p[images] for p in outputs.box_dist),
        cut(outputs.mask_coeffs),
        None if outputs.protos is None else outputs.protos[images],
    )
    return some, Batch(
        images=batch.images,
        text_ids=None,
        boxes=batch.boxes[rows],
        labels=batch.labels[rows],
        image_index=batch.image_index[rows] - images.start,
        image_ids=batch.image_ids[images],
        masks=None if batch.masks is None else batch.masks[rows],
    )


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("counts", [[3, 1, 0, 4, 1, 2], [0, 0, 2, 2, 0, 1], [1, 1, 1, 1, 1, 1]])
def test_groups_equal_the_sum_of_separate_calls(counts: list[int], skip: bool) -> None:
    torch.manual_seed(sum(counts))
    outputs, batch = make_outputs(6, 5, masks=True), make_batch(counts, 5, masks=True)
    criterion = Criterion(skip_single_object_image=skip)
    leaves = [*outputs.cls_logits, *outputs.box_dist, *(outputs.mask_coeffs or ()), outputs.protos]
    joined = criterion(outputs, batch, groups=3)
    got = torch.autograd.grad(joined["total"], leaves)

    singles = [criterion(*part_of(outputs, batch, slice(i, i + 2))) for i in (0, 2, 4)]
    for name in (*TERMS, "total"):
        want = torch.stack([single[name] for single in singles]).sum()
        torch.testing.assert_close(joined[name], want, rtol=1e-5, atol=1e-6)
    assert joined["num_positives"] == sum(single["num_positives"] for single in singles)
    want_grads = torch.autograd.grad(sum(single["total"] for single in singles), leaves)
    for a, b in zip(got, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_terms_add_up_to_the_total_and_scale_with_the_batch() -> None:
    torch.manual_seed(1)
    outputs, batch = make_outputs(2, 5), make_batch([2, 2], 5)
    losses = Criterion()(outputs, batch)
    assert set(losses) == {"loss_cls", "loss_bbox", "loss_dfl", "total", "num_positives"}
    total = losses["loss_cls"] + losses["loss_bbox"] + losses["loss_dfl"]
    torch.testing.assert_close(losses["total"], total)
    # The same images twice: twice the sums, twice the normaliser, twice the number of images.
    twice = RawOutputs(
        tuple(torch.cat((p, p)) for p in outputs.cls_logits),
        tuple(torch.cat((p, p)) for p in outputs.box_dist),
    )
    index = torch.cat((batch.image_index, batch.image_index + 2))
    double = Batch(
        images=batch.images,
        text_ids=None,
        boxes=batch.boxes.repeat(2, 1),
        labels=batch.labels.repeat(2),
        image_index=index,
        image_ids=torch.arange(4),
    )
    fg = Criterion().assign(outputs, batch)
    assert float(fg.weight.sum()) > 1, "otherwise the normaliser is the constant 1"
    torch.testing.assert_close(Criterion()(twice, double)["total"], 2 * losses["total"])


def test_an_empty_batch_has_only_the_class_term_and_all_terms_are_attached() -> None:
    outputs, batch = make_outputs(2, 5, masks=True), make_batch([0, 0], 5, masks=True)
    losses = Criterion()(outputs, batch)
    assert losses["loss_cls"].item() > 0 and int(losses["num_positives"]) == 0
    for name in ("loss_bbox", "loss_dfl", "loss_mask"):
        assert losses[name].item() == 0 and losses[name].requires_grad
    losses["total"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in outputs.box_dist)
    assert all(p.grad is not None and p.grad.all() for p in outputs.cls_logits)


def test_an_empty_image_is_all_background() -> None:
    outputs, batch = make_outputs(2, 5), make_batch([0, 3], 5)
    fg = Criterion().assign(outputs, batch)
    assert set(fg.image.tolist()) == {1}
    Criterion()(outputs, batch)["total"].backward()
    assert all(not p.grad[0].any() for p in outputs.box_dist if p.grad is not None)


@pytest.mark.parametrize("classes", [1, 1203])
def test_one_class_and_a_large_vocabulary_work(classes: int) -> None:
    outputs, batch = make_outputs(2, classes), make_batch([2, 3], classes)
    losses = Criterion()(outputs, batch)
    assert losses["total"].isfinite() and int(losses["num_positives"]) > 0


def test_an_object_between_anchor_points_is_ignored() -> None:
    outputs, batch = make_outputs(1, 3), make_batch([1], 3)
    tiny = Batch(
        images=batch.images,
        text_ids=None,
        boxes=torch.tensor([[9.0, 9.0, 11.0, 11.0]]),
        labels=batch.labels,
        image_index=batch.image_index,
        image_ids=batch.image_ids,
    )
    assert int(Criterion()(outputs, tiny)["num_positives"]) == 0


def test_half_precision_outputs_and_autocast_are_computed_in_float32() -> None:
    torch.manual_seed(2)
    outputs, batch = make_outputs(2, 5, masks=True), make_batch([3, 2], 5, masks=True)
    rounded = [
        tuple(p.detach().bfloat16() for p in parts)
        for parts in (outputs.cls_logits, outputs.box_dist, outputs.mask_coeffs or ())
    ]
    assert outputs.protos is not None
    protos = outputs.protos.detach().bfloat16()
    half = RawOutputs(rounded[0], rounded[1], rounded[2], protos)
    full = RawOutputs(
        tuple(p.float() for p in rounded[0]),
        tuple(p.float() for p in rounded[1]),
        tuple(p.float() for p in rounded[2]),
        protos.float(),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = Criterion()(half, batch)
    want = Criterion()(full, batch)
    for name in (*TERMS, "total"):
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_a_diverged_model_gives_a_loss_that_is_not_finite_instead_of_an_error() -> None:
    outputs, batch = make_outputs(2, 5, masks=True), make_batch([3, 2], 5, masks=True)
    for bad in (float("nan"), float("inf")):
        broken = RawOutputs(*(_filled(part, bad) for part in outputs[:3]), outputs.protos)
        assert not Criterion()(broken, batch)["total"].isfinite()


def _filled(parts: tuple[Tensor, ...] | None, value: float) -> tuple[Tensor, ...]:
    return tuple(torch.full_like(p, value) for p in parts or ())


def test_the_mask_term_is_not_multiplied_by_the_number_of_images() -> None:
    torch.manual_seed(3)
    outputs, batch = make_outputs(3, 5, masks=True), make_batch([2, 2, 2], 5, masks=True)
    whole = Criterion()(outputs, batch)["loss_mask"]
    parts = [Criterion()(*part_of(outputs, batch, slice(i, i + 1))) for i in range(3)]
    torch.testing.assert_close(whole, torch.stack([p["loss_mask"] for p in parts]).sum())


def test_the_first_image_with_one_object_counts_unless_the_reference_skip_is_asked_for() -> None:
    torch.manual_seed(4)
    outputs, batch = make_outputs(2, 5, masks=True), make_batch([1, 2], 5, masks=True)
    second = Criterion()(*part_of(outputs, batch, slice(1, 2)))["loss_mask"]
    skipped = Criterion(skip_single_object_image=True)(outputs, batch)["loss_mask"]
    torch.testing.assert_close(skipped, second)
    assert Criterion()(outputs, batch)["loss_mask"].item() > second.item()


def test_the_terms_of_a_given_foreground_compile_as_one_graph() -> None:
    criterion = Criterion()
    compiled = torch.compile(criterion.terms, backend="eager", fullgraph=True)
    outputs, batch = make_outputs(2, 5), make_batch([3, 3], 5)
    fg = criterion.assign(outputs, batch)
    want = criterion.terms(outputs, batch, fg, 1)
    for name, value in compiled(outputs, batch, fg, 1).items():
        torch.testing.assert_close(value, want[name])


def test_mask_outputs_without_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="masks"):
        Criterion()(make_outputs(1, 3, masks=True), make_batch([1], 3))


def test_groups_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="groups 2 must divide the 3 images"):
        Criterion()(make_outputs(3, 3), make_batch([1, 1, 1], 3), groups=2)

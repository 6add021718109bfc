"""Class, box and mask terms against plain, memory-hungry forms."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from yw_ray.losses.box import box_losses, distribution_focal_loss
from yw_ray.losses.classes import class_at, class_loss
from yw_ray.losses.mask import mask_loss

SHAPES = [(4, 6), (2, 3), (1, 2)]


def levels(batch: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Random class logits of three levels."""
    return tuple((3 * torch.randn(batch, classes, h, w)).to(dtype) for h, w in SHAPES)


def foreground(batch: int, classes: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random image, anchor, label and target score of distinct anchors."""
    n = sum(h * w for h, w in SHAPES)
    cell = torch.randperm(batch * n)[:count].sort().values
    return cell // n, cell % n, torch.randint(0, classes, (count,)), torch.rand(count)


def join(cls_logits: tuple[Tensor, ...]) -> Tensor:
    """(B, N, K)."""
    return torch.cat([level.flatten(2) for level in cls_logits], 2).transpose(1, 2)


def test_class_at_reads_the_right_level_and_cell() -> None:
    logits = levels(2, 5)
    image, anchor, label, _ = foreground(2, 5, 40)
    want = join(logits)[image, anchor, label]
    assert torch.equal(class_at(logits, image, anchor, label), want)
    channels_last = tuple(x.contiguous(memory_format=torch.channels_last) for x in logits)
    assert torch.equal(class_at(channels_last, image, anchor, label), want)


@pytest.mark.parametrize("classes", [1, 80, 1203])
@pytest.mark.parametrize("masked", [False, True])
def test_class_loss_equals_dense_cross_entropy_with_gradient(classes: int, masked: bool) -> None:
    torch.manual_seed(classes)
    logits = tuple(level.requires_grad_() for level in levels(3, classes))
    image, anchor, label, score = foreground(3, classes, 20)
    scale = torch.tensor([0.5, 0.25, 2.0])
    text_mask = (torch.rand(3, classes) > 0.3).float() if masked else None

    got = class_loss(logits, scale, image, anchor, label, score * scale[image], text_mask)
    target = torch.zeros_like(join(logits))
    target[image, anchor, label] = score
    bce = F.binary_cross_entropy_with_logits(join(logits), target, reduction="none")
    if text_mask is not None:
        bce = bce * text_mask[:, None]
    want = (bce * scale[:, None, None]).sum()

    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(3 * got, logits), torch.autograd.grad(3 * want, logits), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_class_loss_of_extreme_logits_is_finite() -> None:
    logits = tuple((200 * torch.randn(1, 2, h, w)).requires_grad_() for h, w in SHAPES)
    image, anchor, label, score = foreground(1, 2, 6)
    loss = class_loss(logits, torch.ones(1), image, anchor, label, score)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, logits))


def test_class_loss_without_foreground_is_softplus_of_everything() -> None:
    logits = levels(2, 3)
    nothing = torch.zeros(0, dtype=torch.long)
    got = class_loss(logits, torch.ones(2), nothing, nothing, nothing, torch.zeros(0))
    torch.testing.assert_close(got, F.softplus(join(logits)).sum())


def test_class_loss_in_small_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = levels(5, 4)
    image, anchor, label, score = foreground(5, 4, 9)
    scale, text_mask = torch.arange(5.0), (torch.rand(5, 4) > 0.5).float()
    args = (logits, scale, image, anchor, label, score, text_mask)
    whole = class_loss(*args)
    for chunk in (250, 50, 1):  # two images, some rows, one row at a time
        monkeypatch.setattr("yw_ray.losses.classes._CHUNK_CPU", chunk)
        torch.testing.assert_close(class_loss(*args), whole)


def test_distribution_focal_loss_is_cross_entropy_on_a_whole_bin() -> None:
    logits = torch.randn(3, 16)
    got = distribution_focal_loss(logits, torch.tensor([0.0, 4.0, 14.0]))
    torch.testing.assert_close(
        got, F.cross_entropy(logits, torch.tensor([0, 4, 14]), reduction="none")
    )


def test_distribution_focal_loss_shares_a_fraction_between_two_bins() -> None:
    got = distribution_focal_loss(torch.zeros(1, 16), torch.tensor([2.25]))
    assert float(got) == pytest.approx(math.log(16), abs=1e-6)
    log_probs = torch.randn(1, 16).log_softmax(1)
    got = distribution_focal_loss(log_probs, torch.tensor([2.25]))
    want = -(0.75 * log_probs[0, 2] + 0.25 * log_probs[0, 3])
    torch.testing.assert_close(got[0], want)


def test_a_perfect_box_has_no_iou_loss() -> None:
    logits = torch.full((1, 4, 16), -40.0)
    logits[0, :, 3] = 40.0
    points, target = torch.tensor([[10.0, 10.0]]), torch.tensor([[7.0, 7.0, 13.0, 13.0]])
    iou_loss, dfl = box_losses(logits.flatten(1), points, target)
    assert float(iou_loss) == pytest.approx(0, abs=1e-6) and float(dfl) == pytest.approx(
        0, abs=1e-6
    )


def test_distances_beyond_the_last_bin_are_cut() -> None:
    points, target = torch.tensor([[50.0, 50.0]]), torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    _, dfl = box_losses(torch.zeros(1, 64), points, target)
    assert float(dfl) == pytest.approx(4 * math.log(16), abs=1e-5)


def plain_mask_loss(
    coeffs: Tensor,
    protos: Tensor,
    image: Tensor,
    target: Tensor,
    boxes: Tensor,
    masks: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """One foreground anchor after the other, pixels chosen by slices."""
    terms: dict[int, list[Tensor]] = {}
    h, w = protos.shape[2:]
    for f in range(len(coeffs)):
        i, t = int(image[f]), int(target[f])
        logits = (coeffs[f][:, None, None] * protos[i]).sum(0)
        bce = F.binary_cross_entropy_with_logits(logits, masks[t].float(), reduction="none")
        x1, y1, x2, y2 = (boxes[t] / 4).tolist()
        rows = slice(math.ceil(y1), math.ceil(y2))
        cols = slice(math.ceil(x1), math.ceil(x2))
        area = float((boxes[t, 2] - boxes[t, 0]) * (boxes[t, 3] - boxes[t, 1]))
        share = area / (size[0] * size[1])
        terms.setdefault(i, []).append(bce[rows, cols].sum() / (h * w) / share)
    return torch.stack([torch.stack(t).mean() for t in terms.values()]).sum()


def mask_case() -> tuple[Tensor, ...]:
    """Three images, the second without objects; 64 x 96 px."""
    torch.manual_seed(0)
    boxes = torch.tensor([[3.0, 5, 40, 44], [8.0, 8, 72, 60], [0.0, 0, 96, 64.0], [50.5, 1, 61, 9]])
    masks = torch.rand(4, 16, 24) > 0.5
    image = torch.tensor([0, 0, 0, 2, 2])
    target = torch.tensor([0, 1, 1, 2, 3])
    return torch.randn(5, 32), torch.randn(3, 32, 16, 24), image, target, boxes, masks


def test_mask_loss_and_its_gradient_equal_the_plain_form() -> None:
    coeffs, protos, *rest = mask_case()
    inputs = [coeffs.requires_grad_(), protos.requires_grad_()]
    got = mask_loss(coeffs, protos, *rest, (64, 96))
    want = plain_mask_loss(coeffs, protos, *rest, (64, 96))
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(2 * got, inputs), torch.autograd.grad(2 * want, inputs), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_mask_loss_in_small_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = mask_case()
    whole = mask_loss(*case, (64, 96))
    monkeypatch.setattr("yw_ray.losses.mask._CHUNK_PIXELS", 1)
    torch.testing.assert_close(mask_loss(*case, (64, 96)), whole)


def test_masks_of_another_size_are_resized_by_nearest() -> None:
    coeffs, protos, image, target, boxes, masks = mask_case()
    large = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(
        mask_loss(coeffs, protos, image, target, boxes, large, (64, 96)),
        mask_loss(coeffs, protos, image, target, boxes, masks, (64, 96)),
    )


def test_mask_loss_without_foreground_is_zero_and_attached() -> None:
    _, protos, _, _, boxes, masks = mask_case()
    coeffs = torch.zeros(0, 32, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    protos.requires_grad_()
    loss = mask_loss(coeffs, protos, none, none, boxes, masks, (64, 96))
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, protos)
    assert not gradient.any()

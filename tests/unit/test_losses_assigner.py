"""Assignment: small cases by hand, and the dense textbook form as an oracle."""

import pytest
import torch
from torch import Tensor

from yw_ray.boxes import anchor_points, box_ciou
from yw_ray.losses.assigner import Assignment, assign, pairs_inside

STRIDES = (8, 16, 32)


def shapes_of(side: int) -> list[tuple[int, int]]:
    """Grids of a square input."""
    return [(side // s, side // s) for s in STRIDES]


def run(
    pred: Tensor, scores: Tensor, boxes: Tensor, labels: Tensor, image: Tensor, side: int, **kw: int
) -> Assignment:
    """Assign from dense (B, N, K) scores."""
    return assign(
        pred, lambda i, a, k: scores[i, a, k], boxes, labels, image, shapes_of(side), STRIDES, **kw
    )


def dense(
    pred: Tensor, scores: Tensor, boxes: Tensor, labels: Tensor, image: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """The same rules over all objects x anchors of one image after the other.

    Returns: owner (B, N), -1 for background, and weight (B, N).
    """
    points, _ = anchor_points(shapes_of(side), STRIDES)
    owners, weights = [], []
    for i in range(len(pred)):
        rows = (image == i).nonzero().squeeze(1)
        owner = torch.full((len(points),), -1)
        weight = torch.zeros(len(points))
        if len(rows):
            gt, label = boxes[rows], labels[rows]
            overlap = box_ciou(pred[i][None], gt[:, None]).clamp(min=0)
            metric = scores[i][:, label].T.pow(0.5) * overlap.pow(6)
            sides = torch.cat((points - gt[:, None, :2], gt[:, None, 2:] - points), -1)
            inside = sides.amin(-1) > 1e-9
            claimed = torch.zeros_like(inside)
            for g in range(len(rows)):
                order = (metric[g] * inside[g]).argsort(descending=True, stable=True)[:10]
                claimed[g, order] = (metric[g] * inside[g])[order] > 0
            best = overlap.argmax(0)
            several = claimed.sum(0) > 1
            claimed[:, several] = False
            claimed[best[several], several.nonzero().squeeze(1)] = True
            final = metric * claimed
            top = final.amax(1, keepdim=True)
            share = (final * (overlap * claimed).amax(1, keepdim=True) / (top + 1e-9)).amax(0)
            taken = claimed.any(0)
            owner[taken] = rows[claimed.int().argmax(0)[taken]]
            weight[taken] = share[taken]
        owners.append(owner)
        weights.append(weight)
    return torch.stack(owners), torch.stack(weights)


def random_case(seed: int, images: int, most: int, side: int = 128, classes: int = 7) -> tuple:
    """Predictions scattered around crowded objects."""
    g = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (images,), generator=g)
    image = torch.arange(images).repeat_interleave(counts)
    size = side * (0.05 + 0.7 * torch.rand(len(image), 2, generator=g))
    corner = torch.rand(len(image), 2, generator=g) * (side - size)
    boxes = torch.cat((corner, corner + size), 1)
    labels = torch.randint(0, classes, (len(image),), generator=g)
    points, strides = anchor_points(shapes_of(side), STRIDES)
    reach = strides[:, None] * 6 * torch.rand(images, len(points), 4, generator=g)
    pred = torch.cat((points - reach[..., :2], points + reach[..., 2:]), -1)
    scores = torch.rand(images, len(points), classes, generator=g)
    return pred, scores, boxes, labels, image, side


def test_pairs_inside_are_all_pairs_with_the_centre_inside() -> None:
    _, _, boxes, _, _, side = random_case(3, 4, 9)
    awkward = [
        [4.0, 4.0, 12.0, 12.0],  # sides on centres: not strictly inside
        [-50.0, -50.0, 500.0, 500.0],  # larger than the input
        [200.0, 200.0, 300.0, 300.0],  # outside of it
        [30.0, 30.0, 31.0, 31.0],  # between centres
        [4.0 - 1e-4, 3.9, 4.0 + 1e-4, 4.1],  # just around one centre
    ]
    boxes = torch.cat((boxes, torch.tensor(awkward)))
    points, _ = anchor_points(shapes_of(side), STRIDES)
    sides = torch.cat((points - boxes[:, None, :2], boxes[:, None, 2:] - points), -1)
    want = (sides.amin(-1) > 1e-9).nonzero()
    target, anchor = pairs_inside(boxes, shapes_of(side), STRIDES)
    assert torch.equal(torch.stack((target, anchor), 1), want)


def test_one_object_takes_its_ten_best_anchors_and_the_best_gets_its_overlap() -> None:
    side = 128
    box = torch.tensor([[16.0, 16.0, 112.0, 112.0]])
    points, _ = anchor_points(shapes_of(side), STRIDES)
    n = len(points)
    shrink = torch.arange(n, dtype=torch.float32)[:, None] / n * 10  # later anchors fit worse
    pred = torch.cat((box[:, :2] + shrink, box[:, 2:] - shrink), 1)[None]
    scores = torch.full((1, n, 2), 0.25)
    fg = run(pred, scores, box, torch.tensor([1]), torch.tensor([0]), side)
    inside = pairs_inside(box, shapes_of(side), STRIDES)[1]
    assert fg.anchor.tolist() == inside[:10].tolist()
    assert set(fg.target.tolist()) == {0} and set(fg.image.tolist()) == {0}
    best = box_ciou(pred[0, fg.anchor[0]], box[0])
    assert float(fg.weight[0]) == pytest.approx(float(best), abs=1e-5)
    assert (fg.weight.diff() < 0).all()


def test_an_anchor_wanted_twice_goes_to_the_better_overlap() -> None:
    side = 64
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 44.0, 44.0]])
    n = sum(h * w for h, w in shapes_of(side))
    pred = boxes[1].expand(1, n, 4)  # every anchor predicts the second object
    scores = torch.ones(1, n, 1)
    fg = run(pred, scores, boxes, torch.tensor([0, 0]), torch.tensor([0, 0]), side)
    assert set(fg.target.tolist()) == {1}


def test_equal_overlaps_go_to_the_first_object() -> None:
    side = 64
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [0.0, 0.0, 40.0, 40.0]])
    n = sum(h * w for h, w in shapes_of(side))
    pred = boxes[0].expand(1, n, 4)
    fg = run(pred, torch.ones(1, n, 1), boxes, torch.tensor([0, 0]), torch.tensor([0, 0]), side)
    assert len(fg.anchor) == 10 and set(fg.target.tolist()) == {0}


def test_anchors_that_do_not_overlap_their_object_stay_background() -> None:
    side = 64
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    n = sum(h * w for h, w in shapes_of(side))
    pred = torch.tensor([50.0, 50.0, 60.0, 60.0]).expand(1, n, 4)
    fg = run(pred, torch.ones(1, n, 1), boxes, torch.tensor([0]), torch.tensor([0]), side)
    assert len(fg.anchor) == 0


@pytest.mark.parametrize("images, most", [(1, 1), (3, 0), (4, 12), (2, 40)])
def test_sparse_assignment_equals_the_dense_form(images: int, most: int) -> None:
    for seed in range(5):
        case = random_case(seed, images, most)
        owner, weight = dense(*case)
        fg = run(*case)
        got_owner = torch.full_like(owner, -1)
        got_owner[fg.image, fg.anchor] = fg.target
        assert torch.equal(got_owner, owner)
        torch.testing.assert_close(fg.weight, weight[fg.image, fg.anchor], rtol=1e-5, atol=1e-7)


def test_the_foreground_is_ordered_by_image_then_anchor() -> None:
    fg = run(*random_case(1, 4, 10))
    cell = fg.image * 10_000 + fg.anchor
    assert (cell.diff() > 0).all()


def test_contests_are_settled_alike_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(2, 3, 30)
    whole = run(*case)
    monkeypatch.setattr("yw_ray.losses.assigner._CONTEST_CHUNK", 64)
    for a, b in zip(whole, run(*case), strict=True):
        assert torch.equal(a, b)

"""Boxes: conversions, overlaps and anchor points by hand."""

import math

import pytest
import torch

from yw_ray import boxes as bx


def test_conversions_are_inverse_of_each_other() -> None:
    xyxy = torch.tensor([[1.0, 2.0, 5.0, 10.0], [-3.0, 0.0, 0.5, 0.25]])
    cxcywh = bx.xyxy_to_cxcywh(xyxy)
    assert cxcywh[0].tolist() == [3.0, 6.0, 4.0, 8.0]
    torch.testing.assert_close(bx.cxcywh_to_xyxy(cxcywh), xyxy)


def test_area_counts_no_extra_pixel() -> None:
    assert bx.box_area(torch.tensor([[1.0, 2.0, 5.0, 10.0]])).tolist() == [32.0]


def test_iou_of_half_overlapping_boxes_is_a_third() -> None:
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2])
    assert float(bx.box_iou(a, b)) == pytest.approx(1 / 3, abs=1e-6)


def test_iou_of_touching_boxes_is_zero() -> None:
    assert float(bx.box_iou(torch.tensor([0.0, 0, 2, 2]), torch.tensor([2.0, 0, 3, 2]))) == 0


def test_iou_broadcasts_to_all_pairs() -> None:
    grid = bx.box_iou(torch.rand(3, 1, 4), torch.rand(5, 4))
    assert grid.shape == (3, 5)


def test_ciou_of_equal_boxes_is_one() -> None:
    box = torch.tensor([3.0, 4, 50, 90])
    assert float(bx.box_ciou(box, box)) == pytest.approx(1, abs=1e-6)


def test_ciou_subtracts_centre_distance_and_aspect_ratio() -> None:
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 4])
    iou = 2 / (4 + 8 - 2)
    centre = (1 + 1) / (9 + 16)
    v = 4 / math.pi**2 * (math.atan(2 / 4) - math.atan(2 / 2)) ** 2
    alpha = v / (v - iou + 1)
    assert float(bx.box_ciou(a, b)) == pytest.approx(iou - centre - alpha * v, abs=1e-6)


def test_ciou_never_leaves_its_range_and_its_gradient_stays_finite() -> None:
    torch.manual_seed(0)
    a = (torch.randn(2000, 4) * 100).requires_grad_()
    b = torch.randn(2000, 4) * 100
    values = bx.box_ciou(a, b)
    assert values.detach().abs().max() <= 1
    (gradient,) = torch.autograd.grad(values.sum(), a)
    assert gradient.isfinite().all()


def test_distances_and_boxes_are_inverse_of_each_other() -> None:
    points = torch.tensor([[4.0, 4.0], [12.0, 20.0]])
    boxes = torch.tensor([[0.0, 1, 9, 10], [13.0, 2, 20, 30]])
    distances = bx.boxes_to_distances(points, boxes)
    assert distances[0].tolist() == [4, 3, 5, 6]
    assert distances[1, 0] < 0, "a point left of its box has a negative distance"
    torch.testing.assert_close(bx.distances_to_boxes(points, distances), boxes)


def test_anchor_points_are_cell_centres_row_by_row() -> None:
    points, strides = bx.anchor_points([(2, 3), (1, 1)], [8, 16])
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8]]
    assert strides.tolist() == [8] * 6 + [16]


def test_expected_distance_of_a_sharp_distribution_is_its_bin() -> None:
    logits = torch.full((1, 4, 16), -50.0)
    for side, place in enumerate((0, 3, 7, 15)):
        logits[0, side, place] = 50.0
    expected = bx.expected_distances(logits.flatten(1))
    torch.testing.assert_close(expected, torch.tensor([[0.0, 3.0, 7.0, 15.0]]))


def test_expected_distances_of_maps_and_of_single_points_agree() -> None:
    logits = torch.randn(2, 64, 3, 5)
    maps = bx.expected_distances(logits)
    points = bx.expected_distances(logits.permute(0, 2, 3, 1).reshape(-1, 64))
    torch.testing.assert_close(maps.permute(0, 2, 3, 1).reshape(-1, 4), points)
    assert bx.expected_distances(logits[:0]).shape == (0, 4, 3, 5)


def test_decoding_is_done_in_float32_whatever_comes() -> None:
    levels = [torch.randn(1, 64, 4, 4), torch.randn(1, 64, 2, 2)]
    boxes = bx.decode_boxes(levels, [8, 16])
    half = bx.decode_boxes([level.bfloat16() for level in levels], [8, 16])
    assert boxes.shape == (1, 20, 4) and half.dtype == torch.float32
    torch.testing.assert_close(half, boxes, rtol=0, atol=0.5)

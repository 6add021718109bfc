"""Ragged polygons."""

import numpy as np
import pytest
from drawn_samples import drawn_sample, star

from yw_ray.data import masks, reference_law
from yw_ray.data.sample import Polygons

TRIANGLE = [0.0, 0.0, 4.0, 0.0, 4.0, 3.0]
SQUARE = [10.0, 0.0, 12.0, 0.0, 12.0, 2.0, 10.0, 2.0]


def _random(rng: np.random.Generator, parts: list[int]) -> Polygons:
    return masks.polygons_from_coco(
        [
            [star(rng, (rng.uniform(20, 80), rng.uniform(20, 80)), 15).ravel().tolist()] * n
            for n in parts
        ]
    )


def test_short_odd_encoded_and_missing_parts_are_left_out() -> None:
    fields = [
        [TRIANGLE, [1.0, 2.0, 3.0, 4.0], [0.0] * 7],
        {"counts": "x", "size": [1, 1]},
        None,
        [],
    ]
    polygons = masks.polygons_from_coco(fields)
    assert polygons.parts_per_object.tolist() == [1, 0, 0, 0]
    assert polygons.part_sizes.tolist() == [3]
    assert polygons.points.dtype == np.float32


def test_boxes_are_the_extremes_of_all_parts_and_nan_without() -> None:
    boxes = masks.extremes(masks.polygons_from_coco([[TRIANGLE, SQUARE], [], [SQUARE]]))
    np.testing.assert_array_equal(boxes[0], [0, 0, 12, 3])
    assert np.isnan(boxes[1]).all()
    np.testing.assert_array_equal(boxes[2], [10, 0, 12, 2])


def test_selected_objects_keep_their_own_points() -> None:
    rng = np.random.default_rng(0)
    polygons = _random(rng, [1, 3, 0, 2, 1])
    boxes = masks.extremes(polygons)
    for keep in (np.array([True, False, True, True, False]), np.array([3, 0, 3])):
        chosen = masks.select(polygons, keep)
        np.testing.assert_array_equal(masks.extremes(chosen), boxes[keep])
    nothing = masks.select(polygons, np.zeros(5, bool))
    assert len(nothing) == 0 and nothing.points.shape == (0, 2)


def test_joining_lists_of_objects_keeps_their_order() -> None:
    a, b = masks.polygons_from_coco([[TRIANGLE], []]), masks.polygons_from_coco([[SQUARE]])
    joined = masks.concat([a, b, masks.empty_polygons(2)])
    assert joined.parts_per_object.tolist() == [1, 0, 1, 0, 0]
    np.testing.assert_array_equal(masks.extremes(joined)[2], [10, 0, 12, 2])


def test_points_move_per_object() -> None:
    polygons = masks.polygons_from_coco([[TRIANGLE], [SQUARE, TRIANGLE]])
    moved = masks.map_points(polygons, np.array([[1, 1], [2, 3]]), np.array([[5, 0], [0, 1]]))
    np.testing.assert_array_equal(masks.extremes(moved), [[5, 0, 9, 3], [0, 1, 24, 10]])


def test_two_triangles_merge_into_eight_points() -> None:
    other = [6.0, 0.0, 9.0, 0.0, 9.0, 3.0]
    merged = masks.merge_parts(masks.polygons_from_coco([[TRIANGLE, other]]))
    assert merged.parts_per_object.tolist() == [1]
    assert merged.points.tolist() == [
        [4, 0], [4, 3], [0, 0], [4, 0],
        [6, 0], [9, 0], [9, 3], [6, 0],
    ]  # fmt: skip


def test_merging_keeps_every_vertex_and_the_box() -> None:
    rng = np.random.default_rng(2)
    polygons = masks.concat([_random(rng, [1]), masks.polygons_from_coco(
        [[star(rng, tuple(rng.uniform(10, 90, 2)), 8).ravel().tolist() for _ in range(n)]
         for n in (4, 2, 5)]
    ), masks.empty_polygons(1)])  # fmt: skip
    merged = masks.merge_parts(polygons)
    assert merged.parts_per_object.tolist() == [1, 1, 1, 1, 0]
    np.testing.assert_array_equal(masks.extremes(merged), masks.extremes(polygons))
    assert {tuple(p) for p in merged.points} == {tuple(p) for p in polygons.points}
    assert masks.merge_parts(merged) is merged, "one part is nothing to merge"


def test_four_parts_are_walked_out_and_home_again() -> None:
    corner = np.array([[0, 0], [4, 0], [4, 3], [0, 3]], np.float32)
    parts = [(corner + np.array([10 * i, 0])).ravel().tolist() for i in range(4)]
    merged = masks.merge_parts(masks.polygons_from_coco([parts]))
    owners = merged.points[:, 0].astype(int) // 10
    visits = owners[np.concatenate(([True], np.diff(owners) != 0))]
    assert visits.tolist() == [0, 1, 2, 3, 2, 1]


@pytest.mark.parametrize("stride", [1, 4])
def test_bitmaps_drawn_in_rectangles_equal_full_size_ones(stride: int) -> None:
    rng = np.random.default_rng(3)
    polygons = drawn_sample(rng, 96, 128, 12).polygons
    assert polygons is not None
    ours = masks.rasterize(polygons, 96, 128, stride)
    assert ours.dtype == np.uint8 and ours.shape == (12, 96 // stride, 128 // stride)
    assert ours.any(axis=(1, 2)).all()
    np.testing.assert_array_equal(ours, reference_law.rasterize(polygons, 96, 128, stride))


def test_bitmaps_of_outlines_that_leave_the_picture_are_cut_at_its_border() -> None:
    rng = np.random.default_rng(4)
    contours = [star(rng, tuple(rng.uniform(-10, 138, 2)), 40) for _ in range(40)]
    polygons = masks.contours(np.concatenate(contours), np.array([len(c) for c in contours]))
    ours, full = (law(polygons, 128, 128, 4) for law in (masks.rasterize, reference_law.rasterize))
    assert (ours != full).mean() < 1e-3
    outside = masks.contours(np.array([[-9, -9], [-5, -9], [-5, -5]], np.float32), np.array([3]))
    assert not masks.rasterize(outside, 128, 128, 4).any()


def test_no_objects_keep_shapes_and_types() -> None:
    empty = masks.empty_polygons()
    assert masks.extremes(empty).shape == (0, 4)
    assert masks.rasterize(empty, 64, 96, 4).shape == (0, 16, 24)
    assert masks.merge_parts(empty).points.shape == (0, 2)
    assert masks.polygons_from_coco([]).points.dtype == np.float32
    assert len(masks.concat([empty, empty])) == 0

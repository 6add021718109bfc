"""Letterbox, boxes of clipped outlines, object filter, flip."""

import numpy as np
import pytest
from drawn_samples import drawn_sample, star

from yw_ray.data import geometry, masks, reference_law
from yw_ray.data.geometry import AffineDraws


def _stars(rng: np.random.Generator, count: int, size: int, radius: float) -> masks.Polygons:
    contours = [
        star(rng, tuple(rng.uniform(-0.2, 1.2, 2) * size), rng.uniform(0.1, 1) * radius)
        for _ in range(count)
    ]
    return masks.contours(np.concatenate(contours), np.array([len(c) for c in contours]))


@pytest.mark.parametrize(
    "shape", [(427, 640), (640, 480), (33, 50), (1500, 1100), (2, 900), (1, 1)]
)
@pytest.mark.parametrize("size", [96, 320, 640])
def test_letterbox_maps_boxes_there_and_back(shape: tuple[int, int], size: int) -> None:
    sample = drawn_sample(np.random.default_rng(0), *shape, 5)
    fitted = geometry.letterbox(sample, size)
    assert fitted.image.shape == (size, size, 3) and fitted.boxes.dtype == np.float32
    box = fitted.letterbox
    assert box is not None and box.original_size == shape
    top, bottom, left, right = box.pad
    back = (fitted.boxes - np.array([left, top, left, top])) / np.tile(box.scale, 2)
    np.testing.assert_allclose(back, sample.boxes, atol=1e-3)
    assert (fitted.boxes >= -1e-3).all() and (fitted.boxes <= size + 1e-3).all()
    assert (fitted.image[: int(top)] == 114).all() and (fitted.image[:, : int(left)] == 114).all()
    assert (fitted.image[size - int(bottom) :] == 114).all()
    assert (fitted.image[:, size - int(right) :] == 114).all()


def test_letterbox_moves_polygons_with_boxes() -> None:
    fitted = geometry.letterbox(drawn_sample(np.random.default_rng(0), 100, 160, 4), 128)
    assert fitted.polygons is not None
    np.testing.assert_allclose(masks.extremes(fitted.polygons), fitted.boxes, atol=1e-3)


def test_refined_box_encloses_the_visible_mask_after_affine() -> None:
    rng, size = np.random.default_rng(1), 128
    sample = drawn_sample(rng, 2 * size, 2 * size, 40)
    assert sample.polygons is not None
    seen = 0
    for _ in range(10):
        draws = geometry.draw_affine(rng, (0.3, 1.9), 0.4)
        matrix = reference_law.affine_matrix(draws, 2 * size, 2 * size, -size // 2)
        moved = masks.map_points(sample.polygons, matrix[[0, 1], [0, 1]], matrix[:2, 2])
        sides = np.diff(masks.extremes(moved).reshape(-1, 2, 2), axis=1)[:, 0]
        # An outline may pass round the picture; the law boxes what is seen of the outline itself.
        moved = masks.select(moved, (sides < size).all(axis=1))
        boxes = geometry.visible_boxes(moved, size)
        # Four times as fine, with a margin: drawing smears along a border that cuts.
        fine = masks.map_points(moved, np.full(2, 4.0), np.full(2, 16.0))
        bitmaps = masks.rasterize(fine, 4 * size + 32, 4 * size + 32, 1)[:, 16:-16, 16:-16]
        for box, bitmap in zip(boxes, bitmaps, strict=True):
            rows, columns = (bitmap.any(axis=axis).nonzero()[0] / 4 for axis in (1, 0))
            if not len(rows):
                continue
            seen += 1
            assert box[0] - 1 <= columns[0] and columns[-1] <= box[2] + 0.5
            assert box[1] - 1 <= rows[0] and rows[-1] <= box[3] + 0.5
    assert seen > 100


def test_edge_clip_equals_a_very_fine_resampling() -> None:
    polygons = _stars(np.random.default_rng(2), 200, 128, 100.0)
    boxes = geometry.visible_boxes(polygons, 128)
    fine = reference_law.inside_boxes(
        reference_law.resample(polygons, 60001), np.array((128, 128), np.float32)
    )
    both = (boxes[:, 2] > boxes[:, 0]) & (fine[:, 2] > fine[:, 0])
    assert both.sum() > 100
    np.testing.assert_allclose(boxes[both], fine[both], rtol=0, atol=0.05)
    # What one of the two misses is a corner cut by less than a sample.
    alone = boxes[~both].reshape(-1, 2, 2)
    assert ((alone[:, 1] - alone[:, 0]).max(axis=1) < 0.05).all()


def test_edges_along_and_across_the_border_are_clipped_exactly() -> None:
    square = np.array([[-5, -5], [20, -5], [20, 20], [-5, 20]], np.float32)
    bar = np.array([[40, -50], [44, -50], [44, 150], [40, 150]], np.float32)
    flat = np.array([[10, 0], [30, 0], [30, 100], [10, 100]], np.float32)
    around = np.array([[-9, -9], [200, -9], [200, 200], [-9, 200]], np.float32)
    polygons = masks.contours(np.concatenate((square, bar, flat, around)), np.full(4, 4))
    limit = 100 - 1e-3
    np.testing.assert_allclose(
        geometry.visible_boxes(polygons, 100),
        [[0, 0, 20, 20], [40, 0, 44, limit], [10, 0, 30, limit], [0, 0, 0, 0]],
        atol=1e-5,
    )


def test_the_object_filter_knows_size_area_and_shape() -> None:
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [0, 0, 2, 10],
            [0, 0, 10, 2],
            [0, 0, 3, 301],
            [0, 0, 3, 299],
            [5, 5, 5, 5],
        ],
        np.float32,
    )
    areas = np.array([100, 20, 20, 903, 897, 0], np.float32)
    kept = geometry.keep_boxes(boxes, areas, 0.1)
    assert kept.tolist() == [True, False, False, False, True, False]
    assert geometry.keep_boxes(boxes[:1], np.array([999.0]), 0.1).tolist() == [True]
    assert geometry.keep_boxes(boxes[:1], np.array([1001.0]), 0.1).tolist() == [False]


def test_two_flips_change_nothing_and_one_mirrors_everything() -> None:
    sample = drawn_sample(np.random.default_rng(3), 60, 91, 5)
    once = geometry.flip(sample)
    assert once.polygons is not None and sample.polygons is not None
    np.testing.assert_array_equal(once.image, sample.image[:, ::-1])
    np.testing.assert_allclose(masks.extremes(once.polygons), once.boxes, atol=1e-4)
    np.testing.assert_allclose(once.boxes[:, 0], 91 - sample.boxes[:, 2], atol=1e-4)
    twice = geometry.flip(once)
    np.testing.assert_array_equal(twice.image, sample.image)
    np.testing.assert_allclose(twice.boxes, sample.boxes, atol=1e-4)


def test_affine_draws_follow_the_stated_law() -> None:
    rng = np.random.default_rng(4)
    draws = [geometry.draw_affine(rng, (0.5, 1.5), 0.1) for _ in range(4000)]
    for name, low, high in (
        ("scale", 0.5, 1.5),
        ("translate_x", 0.4, 0.6),
        ("translate_y", 0.4, 0.6),
    ):
        values = np.sort([getattr(d, name) for d in draws])
        assert low <= values[0] and values[-1] <= high
        expected = np.linspace(low, high, len(values))
        assert np.abs(values - expected).max() < 0.04 * (high - low), name
    assert all(d.rotation == d.shear_x == d.shear_y == 0 for d in draws)


def test_affine_offset_is_that_of_the_matrix() -> None:
    draws = AffineDraws(scale=0.7, translate_x=0.45, translate_y=0.58)
    matrix = reference_law.affine_matrix(draws, 256, 256, -64)
    np.testing.assert_allclose(geometry.affine_offset(draws, 256, 128), matrix[:2, 2], atol=1e-4)


def test_no_objects_keep_shapes_and_types() -> None:
    sample = drawn_sample(np.random.default_rng(5), 40, 50, 0)
    for out in (geometry.flip(sample), geometry.letterbox(sample, 64)):
        assert out.boxes.shape == (0, 4) and out.boxes.dtype == np.float32
        assert out.labels.shape == (0,) and out.labels.dtype == np.int64
    assert geometry.visible_boxes(masks.empty_polygons(), 64).shape == (0, 4)
    assert geometry.visible_boxes(masks.empty_polygons(2), 64).shape == (2, 4)

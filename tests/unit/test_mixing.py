"""Mosaic, copy-paste, mixup and stage 2: both laws, and the fast one against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from drawn_samples import BACKGROUND, box_iou, drawn_sample

from yw_ray.data import geometry, masks, mixing, reference_law, tiles
from yw_ray.data.sample import Sample
from yw_ray.recipe import AugmentConfig

SHAPES = ((320, 240), (213, 320), (300, 300), (90, 140))
WIDE = AugmentConfig(scale=(0.1, 1.9), copy_paste=0.3)
LAWS: list[Any] = [mixing, reference_law]


def _four(seed: int, num_objects: int = 6, refine: bool = True) -> list[Sample]:
    rng = np.random.default_rng(seed)
    return [drawn_sample(rng, h, w, num_objects, refine=refine) for h, w in SHAPES]


def _draws(
    seed: int, samples: list[Sample], config: AugmentConfig, size: int
) -> mixing.MosaicDraws:
    count = sum(len(s.labels) for s in samples)
    return mixing.draw_mosaic(np.random.default_rng(seed), count, config, size)


def _smooth(sample: Sample, rng: np.random.Generator) -> Sample:
    """The sample with a photo-like picture: soft at the scale of a pixel."""
    coarse = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    height, width = sample.image.shape[:2]
    return replace(sample, image=cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.mark.parametrize("scale", [(0.1, 1.9), (0.5, 1.5)])
@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("stage", [1, 2])
def test_the_fast_law_gives_the_boxes_of_the_reference_law(
    scale: tuple[float, float], refine: bool, stage: int
) -> None:
    config = AugmentConfig(scale=scale, mask_refine=refine, copy_paste=0.3 if refine else 0.0)
    overlaps, alike, runs = [], 0, 60
    for seed in range(runs):
        four = _four(seed, refine=refine)
        draws = _draws(seed, four, config, 320)
        if stage == 1:
            both = [law.mosaic_affine(four, draws, config, 320) for law in LAWS]
        else:
            both = [law.letterbox_affine(four[1], draws.affine, config, 320) for law in LAWS]
        fast, slow = both
        assert fast.image.shape == slow.image.shape == (320, 320, 3)
        if fast.labels.tolist() == slow.labels.tolist():
            alike += 1
            overlaps.append(box_iou(fast.boxes, slow.boxes))
    # An object at the limit of the filter may fall on either side of it.
    assert alike >= 0.9 * runs
    assert np.concatenate(overlaps).mean() >= 0.99


def test_the_laws_agree_at_any_translation_not_only_with_the_seam_on_whole_pixels() -> None:
    overlaps = []
    for seed in range(30):
        four = _four(seed)
        draws = _draws(seed, four, WIDE, 320)
        moved = replace(draws.affine, translate_x=draws.affine.translate_x + 0.37 / 320)
        draws = replace(draws, affine=moved)
        fast, slow = (law.mosaic_affine(four, draws, WIDE, 320) for law in LAWS)
        if fast.labels.tolist() == slow.labels.tolist():
            overlaps.append(box_iou(fast.boxes, slow.boxes))
    assert len(overlaps) >= 27
    assert np.concatenate(overlaps).mean() >= 0.99


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_the_fast_picture_is_the_warped_canvas_but_for_resampling(fraction: float) -> None:
    size, off, far = 320, [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        four = [_smooth(s, rng) for s in _four(seed, refine=False)]
        config = AugmentConfig(scale=(0.5, 1.5), mask_refine=False, copy_paste=0)
        draws = _draws(seed, four, config, size)
        shifted = draws.affine.translate_x + fraction / size
        draws = replace(draws, affine=replace(draws.affine, translate_x=shifted))
        fast = mixing.mosaic_affine(four, draws, config, size).image
        canvas = reference_law.mosaic(four, draws.centre, size).image
        matrix = reference_law.affine_matrix(draws.affine, 2 * size, 2 * size, -size // 2)
        # The warp takes whole numbers for the middles of pixels, the tiles take halves.
        matrix[:2, 2] += (draws.affine.scale - 1) / 2
        warped = cv2.warpPerspective(canvas, matrix, (size, size), borderValue=geometry.FILL)
        difference = np.abs(fast.astype(int) - warped)
        off.append(difference.mean())
        far.append(np.quantile(difference, 0.95))
    assert np.mean(off) < 1.0 and np.mean(far) <= 3.0


def _with_rectangle(height: int, width: int, label: int, rng: np.random.Generator) -> Sample:
    """A black picture with one rectangle in pure blue, green, red or white, by its label."""
    x0, y0 = (int(rng.integers(0, side // 2)) for side in (width, height))
    x1, y1 = (int(rng.integers(side // 2 + 8, side)) for side in (width, height))
    image = np.zeros((height, width, 3), np.uint8)
    image[y0:y1, x0:x1] = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))[label]
    points = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float32)
    polygons = masks.contours(points, np.array([4]))
    return Sample(
        image_id=label,
        image=image,
        boxes=masks.extremes(polygons),
        labels=np.array([label]),
        polygons=polygons,
    )


@pytest.mark.parametrize("scale", [(0.2, 0.8), (0.8, 1.9)])
@pytest.mark.parametrize("stage", [1, 2])
def test_labels_lie_on_the_pixels_of_their_object(scale: tuple[float, float], stage: int) -> None:
    size, checked = 320, 0
    config = AugmentConfig(scale=scale, copy_paste=0, stage2_pad_quirk=False)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        four = [_with_rectangle(h, w, i, rng) for i, (h, w) in enumerate(SHAPES)]
        draws = _draws(seed, four, config, size)
        if stage == 1:
            out = mixing.mosaic_affine(four, draws, config, size)
        else:
            out = mixing.letterbox_affine(four[seed % 4], draws.affine, config, size)
        bright = out.image > 127
        for box, label in zip(out.boxes, out.labels, strict=True):
            wanted = np.array([label in (0, 3), label in (1, 3), label in (2, 3)])
            mine = (bright == wanted).all(axis=2)
            rows, columns = mine.any(axis=1).nonzero()[0], mine.any(axis=0).nonzero()[0]
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(box, found, rtol=0, atol=0.75)
            checked += 1
    assert checked >= 18


def test_the_seam_of_drawn_mosaics_falls_on_whole_pixels_within_the_law() -> None:
    rng, config = np.random.default_rng(0), AugmentConfig(scale=(0.5, 1.5))
    draws = [mixing.draw_mosaic(rng, 3, config, 640) for _ in range(2000)]
    centres = np.array([d.centre for d in draws])
    assert centres.min() >= 320 and centres.max() < 960
    values = np.sort(centres[:, 0])
    assert np.abs(values - np.linspace(320, 960, len(values))).max() < 25
    for d in draws:
        assert 0.4 - 0.5 / 640 <= d.affine.translate_x <= 0.6 + 0.5 / 640
        offset = geometry.affine_offset(d.affine, 1280, 640)
        for at in (d.affine.scale * c + o for c, o in zip(d.centre, offset, strict=True)):
            assert not 0 < at < 640 or abs(at - round(at)) < 1e-6
    assert draws[0].paste_order.shape == (3,)


def test_candidates_for_pasting_stay_clear_of_every_object() -> None:
    boxes = np.array(
        [[0, 0, 10, 10], [60, 60, 80, 80], [45, 0, 55, 10], [72, 60, 78, 70]], np.float32
    )
    overlaps = mixing.mirrored_overlaps(boxes, 100)
    assert overlaps.shape == (4, 4) and overlaps[2, 2] == pytest.approx(1, abs=1e-5)
    # 0 and 1 mirror into free space, 2 onto itself, 3 next to 1's mirror image, which is free too.
    assert mixing.paste_candidates(boxes, 100).tolist() == [0, 1, 3]


def test_the_pasted_share_is_rounded_half_to_even_in_the_drawn_order() -> None:
    boxes = np.array([[i, 20 * i, i + 5, 20 * i + 5] for i in range(5)], np.float32)
    order = np.array([0.9, 0.1, 0.5, 0.7, 0.2])
    for share, expected in ((0.0, []), (0.3, [1, 4]), (0.5, [1, 4]), (1.0, [1, 4, 2, 3, 0])):
        assert mixing.choose_pasted(boxes, 1000, order, share).tolist() == expected
    none = np.zeros((0, 4), np.float32)
    assert mixing.choose_pasted(none, 1000, np.zeros(0), 0.3).shape == (0,)


@pytest.mark.parametrize("law", LAWS)
def test_a_pasted_object_is_the_mirror_image_of_its_original(law: Any) -> None:
    size = 256
    config = AugmentConfig(scale=(1, 1), translate=0, copy_paste=1)
    points = np.array([[20, 40], [70, 30], [60, 90], [30, 80]], np.float32)
    image = np.full((256, 256, 3), BACKGROUND, np.uint8)
    cv2.fillPoly(image, [points.astype(np.int32)], (250, 200, 120))
    polygons = masks.contours(points, np.array([4]))
    first = Sample(
        image_id=0,
        image=image,
        boxes=masks.extremes(polygons),
        labels=np.array([3]),
        polygons=polygons,
    )
    blank = drawn_sample(np.random.default_rng(0), 256, 256, 0)
    draws = mixing.MosaicDraws(
        centre=(384, 384), paste_order=np.zeros(1), affine=geometry.AffineDraws()
    )
    out = law.mosaic_affine([first, blank, blank, blank], draws, config, size)
    # The picture lies at (128, 128) of the canvas, the output shows the canvas from there.
    assert out.labels.tolist() == [3, 3]
    np.testing.assert_allclose(out.boxes[0], [20, 30, 70, 90], atol=0.05)
    np.testing.assert_allclose(out.boxes[1], [186, 30, 236, 90], atol=0.05)
    blue = out.image[..., 0] > 128
    assert blue[40:80, 200:220].all() and not blue[:, 100:180].any()
    off = blue[:, :128] != blue[:, :127:-1]
    assert off.sum() < 0.1 * blue[:, :128].sum(), "outlines may differ by a pixel"


def test_pasted_objects_raise_the_number_of_labels_and_stay_with_their_pixels() -> None:
    more = 0
    for seed in range(10):
        four = _four(seed)
        draws = _draws(seed, four, WIDE, 320)
        without = mixing.mosaic_affine(
            four, draws, WIDE.model_copy(update={"copy_paste": 0.0}), 320
        )
        with_twins = mixing.mosaic_affine(four, draws, WIDE, 320)
        assert with_twins.labels[: len(without.labels)].tolist() == without.labels.tolist()
        more += len(with_twins.labels) - len(without.labels)
    assert more > 0


def test_mixup_keeps_both_and_rounds_as_the_reference() -> None:
    rng = np.random.default_rng(0)
    first, second = (_smooth(drawn_sample(rng, 64, 64, n), rng) for n in (2, 3))
    fast, slow = (law.mixup(first, second, 0.43) for law in LAWS)
    assert np.abs(fast.image.astype(int) - slow.image).max() <= 1
    assert (fast.image != slow.image).mean() < 0.01
    for out in (fast, slow):
        assert out.labels.tolist() == [*first.labels, *second.labels]
        assert out.polygons is not None and len(out.polygons) == len(out.boxes) == 5
    grey = replace(first, image=np.full((8, 8, 3), 114, np.uint8))
    assert (mixing.mixup(grey, grey, 0.43).image == 114).all(), "equal pictures blend to themselves"


def test_mixup_weights_are_beta_32_32() -> None:
    rng = np.random.default_rng(0)
    ratios = np.array([mixing.draw_mixup(rng) for _ in range(4000)])
    assert abs(ratios.mean() - 0.5) < 0.005
    assert abs(ratios.std() - 0.5 / np.sqrt(65)) < 0.003


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", [96, 160, 640])
def test_any_picture_size_and_emptiness_passes_both_stages(law: Any, size: int) -> None:
    rng = np.random.default_rng(size)
    shapes = [(1, 1), (7, 900), (1300, 40), (900, 1000), (size, size), (33, 20)]
    for refine in (True, False):
        config = AugmentConfig(scale=(0.1, 1.9), mask_refine=refine, copy_paste=0.5 * refine)
        for i in range(6):
            four = [
                drawn_sample(rng, *shapes[j], int(rng.integers(0, 3)), refine=refine)
                for j in rng.integers(0, len(shapes), 4)
            ]
            draws = _draws(i, four, config, size)
            one = law.mosaic_affine(four, draws, config, size)
            two = law.letterbox_affine(four[0], draws.affine, config, size)
            for out in (one, two):
                assert out.image.shape == (size, size, 3) and out.image.dtype == np.uint8
                assert out.boxes.dtype == np.float32 and out.boxes.shape == (len(out.labels), 4)
                assert out.labels.dtype == np.int64
                assert (out.boxes >= 0).all() and (out.boxes <= size).all()
                assert refine == (out.polygons is not None)
                assert not refine or len(out.polygons) == len(out.labels)


@pytest.mark.parametrize("law", LAWS)
def test_objects_filtered_away_leave_empty_arrays(law: Any) -> None:
    config = AugmentConfig(scale=(0.01, 0.01), copy_paste=0.3)
    four = _four(0)
    draws = _draws(0, four, config, 96)
    for out in (
        law.mosaic_affine(four, draws, config, 96),
        law.letterbox_affine(four[0], draws.affine, config, 96),
    ):
        assert out.boxes.shape == (0, 4) and out.boxes.dtype == np.float32
        assert out.labels.shape == (0,) and out.labels.dtype == np.int64
        assert out.polygons is not None and out.polygons.points.shape == (0, 2)


@pytest.mark.parametrize("law", LAWS)
def test_stage_2_pads_in_the_quirk_colour_inside_and_grey_outside(law: Any) -> None:
    white = replace(
        drawn_sample(np.random.default_rng(0), 80, 160, 0),
        image=np.full((80, 160, 3), 255, np.uint8),
    )
    draws = geometry.AffineDraws(scale=0.5)
    for quirk, pad in ((True, (114, 0, 0)), (False, (114, 114, 114))):
        config = AugmentConfig(stage2_pad_quirk=quirk)
        image = law.letterbox_affine(white, draws, config, 160).image
        assert image[80, 80].tolist() == [255, 255, 255]
        assert image[45, 80].tolist() == list(pad) == image[115, 80].tolist()
        assert image[20, 80].tolist() == [114] * 3 == image[80, 20].tolist()


def test_pictures_are_resized_where_whole_pixels_do_and_warped_where_not() -> None:
    assert tiles.fit_span(1.0, 0.0, 100, (0, 100)) == tiles.Span(0, 100, 0, 100)
    assert tiles.fit_span(1.0, 0.3, 100, (0, 100)) is None, "no end on a whole pixel"
    assert tiles.fit_span(0.5, 0.0, 99, (0, 50)) is None, "the picture ends at half a pixel"
    span = tiles.fit_span(1.37, -200.4, 1000, (0, 320))
    assert span is not None and span.out_start <= 0 and span.out_stop >= 320
    for pixel, out in ((span.start, span.out_start), (span.stop, span.out_stop)):
        assert abs(1.37 * pixel - 200.4 - out) <= tiles.TOLERANCE_PX

"""HSV jitter and the rare pixel transforms."""

import cv2
import numpy as np
import pytest

from yw_ray.data.color import JitterDraws, draw_hsv, draw_jitter, hsv, jitter


def _noise(height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_unit_gains_give_the_picture_back_but_for_8_bit_hsv() -> None:
    image = cv2.blur(_noise(), (5, 5))
    off = np.abs(hsv(image, np.ones(3)).astype(int) - image)
    assert off.max() <= 8 and off.mean() < 1


def test_value_gain_darkens_and_clips() -> None:
    image = _noise()
    assert (hsv(image, np.array([1, 1, 0.0])) == 0).all()
    bright = hsv(image, np.array([1, 1, 99.0])).max(axis=2)
    assert (bright[image.max(axis=2) > 2] == 255).all()


def test_zero_saturation_is_grey_and_hue_wraps() -> None:
    grey = hsv(_noise(), np.array([1, 0.0, 1]))
    assert (grey.max(axis=2) == grey.min(axis=2)).all()
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 2] = 255
    red[..., 0] = 20  # hue just under 180
    turned = hsv(red, np.array([1.02, 1, 1]))
    assert (turned[..., 2] == 255).all(), "past the end of the circle red stays red"


@pytest.mark.parametrize("width", [1, 31, 32, 33, 90, 96, 640])
def test_any_width_and_any_layout_of_the_array_gives_the_same_bytes(width: int) -> None:
    image, gains = _noise(16, width), np.array([1.01, 1.3, 0.8])
    out = hsv(image, gains)
    assert out.shape == image.shape and out.dtype == np.uint8
    strided = np.zeros((32, width + 3, 3), np.uint8)[::2, 3:]
    strided[:] = image
    np.testing.assert_array_equal(hsv(strided, gains), out)


def test_hsv_gains_follow_the_stated_law() -> None:
    rng = np.random.default_rng(1)
    gains = np.array([draw_hsv(rng, (0.015, 0.7, 0.4)) for _ in range(3000)])
    spread = np.array([0.015, 0.7, 0.4])
    assert (np.abs(gains - 1) <= spread).all()
    np.testing.assert_allclose(gains.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(gains.std(axis=0), spread / np.sqrt(3), rtol=0.05)


def test_rare_transforms_are_drawn_one_by_one_with_the_given_chance() -> None:
    rng = np.random.default_rng(2)
    draws = [draw_jitter(rng, 0.2) for _ in range(4000)]
    for hits in (
        [d.blur > 0 for d in draws],
        [d.median > 0 for d in draws],
        [d.grey for d in draws],
        [d.clahe > 0 for d in draws],
    ):
        assert abs(np.mean(hits) - 0.2) < 0.03
    assert {d.blur for d in draws} == {d.median for d in draws} == {0, 3, 5, 7}
    limits = [d.clahe for d in draws if d.clahe]
    assert 1 <= min(limits) and max(limits) <= 4
    assert draw_jitter(rng, 0.0) == JitterDraws()


def test_nothing_drawn_changes_nothing() -> None:
    image = _noise()
    assert jitter(image, JitterDraws()) is image


@pytest.mark.parametrize(
    "draws", [JitterDraws(blur=7), JitterDraws(median=5), JitterDraws(clahe=3.0)]
)
def test_each_rare_transform_does_its_work(draws: JitterDraws) -> None:
    image = _noise()
    before = image.copy()
    out = jitter(image, draws)
    assert out.shape == image.shape and out.dtype == np.uint8 and (out != image).any()
    np.testing.assert_array_equal(image, before, "the given picture is not written to")
    if draws.blur or draws.median:
        assert out.astype(float).std() < image.astype(float).std()


def test_grey_weighs_the_channels_as_if_they_were_rgb() -> None:
    blue = np.zeros((4, 4, 3), np.uint8)
    blue[..., 0] = 100
    assert (jitter(blue, JitterDraws(grey=True)) == 30).all(), "0.299 is the weight of red"

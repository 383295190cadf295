"""Metrics of pictures whose sharpness, noise and similarity are known."""

import math

import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.cartoon import draw_frame
from benchmarks.quality_methods import as_clip
from vsfdatrd.compare import metrics
from vsfdatrd.compare.metrics import Metrics, flat_noise, line_steepness, mean_metrics, ssim, ssimulacra2

type Plane = NDArray[np.float64]


@pytest.fixture(scope="module")
def plane() -> Plane:
    return np.asarray(Image.fromarray(draw_frame(3, 320, 240)).convert("L"), np.float64) / 255


def softened(plane: Plane, sigma: float) -> Plane:
    picture = Image.fromarray(np.rint(plane * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(picture, np.float64) / 255


def test_a_step_is_as_steep_as_it_is() -> None:
    """From 0.2 to 0.8 within 2 and 4 pixels."""
    x = np.arange(64.0)
    fast, slow = (np.tile(np.clip((x - 32) / wide + 0.5, 0, 1) * 0.6 + 0.2, (64, 1)) for wide in (2, 4))
    assert line_steepness(slow, fast) == pytest.approx((0.15 * 255, 0.3 * 255))
    assert line_steepness(fast, slow) == pytest.approx((0.3 * 255, 0.15 * 255))


def test_softer_lines_are_less_steep(plane: Plane) -> None:
    before, after = line_steepness(softened(plane, 2), plane)
    assert after > 2 * before
    slight = line_steepness(plane, softened(plane, 0.7))
    assert 0.3 * slight[0] < slight[1] < 0.9 * slight[0]


def test_a_flat_picture_has_no_lines() -> None:
    assert all(map(math.isnan, line_steepness(np.full((32, 32), 0.5), np.zeros((32, 32)))))


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_noise_is_measured_as_it_was_made(plane: Plane, sigma: float) -> None:
    random = np.random.default_rng(4)
    smooth = np.tile(np.linspace(0.2, 0.7, 320), (240, 1))  # a sky
    noisy = smooth + random.normal(0, sigma / 255, smooth.shape)
    before, after = flat_noise(noisy, smooth)
    assert before == pytest.approx(sigma, rel=0.05)
    assert after < 1e-6
    drawn, cleaned = flat_noise(plane + random.normal(0, sigma / 255, plane.shape), plane)
    assert drawn == pytest.approx(math.hypot(sigma, cleaned), rel=0.1)  # lines do not count as noise


def test_borders_are_not_taken_for_clean_areas(plane: Plane) -> None:
    noisy = plane + np.random.default_rng(5).normal(0, 3 / 255, plane.shape)
    framed, inner = (flat_noise(p, p)[0] for p in (np.pad(noisy, ((96, 96), (0, 0))), noisy))
    assert framed == pytest.approx(inner, rel=0.02)
    assert all(map(math.isnan, flat_noise(np.zeros((64, 64)), np.zeros((64, 64)))))


def test_ssim_falls_with_every_change(plane: Plane) -> None:
    assert ssim(plane, plane) == pytest.approx(1)
    little, much = ssim(plane, softened(plane, 0.6)), ssim(plane, softened(plane, 3))
    assert 1 > little > 0.9 > much
    assert ssim(plane, plane[::-1]) < 0.5


def test_ssimulacra2_of_equal_and_softened_frames(plane: Plane) -> None:
    if not hasattr(vs.core, "vszip"):
        pytest.skip("the plugin vszip is not installed")
    sharp, soft = (as_clip([np.stack([one] * 3, -1).astype(np.float32)]) for one in (plane, softened(plane, 2)))
    assert ssimulacra2(sharp, sharp) == pytest.approx(100, abs=0.2)
    assert ssimulacra2(sharp, soft) < 60


def test_what_cannot_be_measured_is_nan_and_left_out_of_the_mean() -> None:
    tiny = np.full((9, 9, 3), 0.5, np.float32)
    result = metrics.measure_pair((tiny, tiny), (tiny, tiny), float("nan"))
    assert all(math.isnan(getattr(result, name)) for name in Metrics.__slots__)
    whole = Metrics(1, 2, 3, 4, 0.5, 60)
    assert mean_metrics([result, whole]) == whole
    assert mean_metrics([whole, Metrics(3, 4, 5, 6, 0.75, 80)]) == Metrics(2, 3, 4, 5, 0.625, 70)
    assert math.isnan(mean_metrics([result]).ssim)

"""An engine is compared with a reference: PSNR, values that are not finite, and bands in a sky."""

import numpy as np
import pytest

from vsfdatrd.backends.accuracy import MIN_PSNR_DB, check_banding, check_psnr, count_levels, draw_line_art, draw_sky
from vsfdatrd.errors import (
    EngineBuildError,
    PrecisionUnfit,
)

# ---- compare -----------------------------------------------------------------------------------------------------


def test_the_same_output_passes() -> None:
    picture = draw_line_art(40, 60)
    assert check_psnr(picture, picture.copy(), "bf16") >= 100


def test_the_bound_is_where_it_is_said_to_be() -> None:
    gray = np.full((3, 40, 60), 0.5, np.float32)
    step = 10 ** (-MIN_PSNR_DB / 20)  # the difference at which PSNR is just the bound
    assert check_psnr(gray, gray + np.float32(step * 0.99), "fp16") == pytest.approx(MIN_PSNR_DB, abs=0.1)
    with pytest.raises(EngineBuildError, match=r"the fp16 engine agrees with fp32 to 49\.\d dB only, 50 are needed"):
        check_psnr(gray, gray + np.float32(step * 1.02), "fp16")


def test_noise_is_refused_with_its_number() -> None:
    picture = draw_line_art(100, 100)
    noise = np.random.default_rng(0).normal(0, 0.01, picture.shape).astype(np.float32)
    with pytest.raises(EngineBuildError, match=r"agrees with fp32 to 40\.\d dB only"):
        check_psnr(np.clip(picture, 0.1, 0.9), np.clip(picture, 0.1, 0.9) + noise, "bf16")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_is_refused(value: float) -> None:
    picture = draw_line_art(40, 60)
    spoilt = picture.copy()
    spoilt[1, 3, 4] = spoilt[2, 5, 6] = value
    with pytest.raises(EngineBuildError, match="the bf16 engine's output has 2 values that are not finite"):
        check_psnr(picture, spoilt, "bf16")


def test_what_is_clipped_away_anyway_does_not_count() -> None:
    picture = np.ones((3, 8, 8), np.float32)
    assert check_psnr(picture * 1.2, picture * 1.4, "bf16") >= 100


# ---- drawing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(30, 30), (60, 90), (540, 720)])
def test_the_drawing_is_a_picture(height: int, width: int) -> None:
    picture = draw_line_art(height, width)
    assert picture.shape == (3, height, width)
    assert picture.dtype == np.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    np.testing.assert_array_equal(picture, draw_line_art(height, width))
    assert (picture.std(axis=(1, 2)) > 0.1).all(), "it has contrast in every channel"
    edges = np.abs(np.diff(picture, axis=2))
    assert edges.max() > 0.3, "it has lines"
    assert np.median(edges) < 0.03, "and flat parts between them"
    assert np.abs(picture[0] - picture[1]).mean() > 0.02, "and colors"


# ---- sky ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "count"), [(60, 60, 30), (30, 540, 160), (16, 1920, 160)])
def test_a_sky_has_steps_that_an_eye_could_count(height: int, width: int, count: int) -> None:
    smooth = draw_sky(height, width)
    assert smooth.shape == (3, height, width)
    assert smooth.dtype == np.float32
    assert (np.diff(smooth, axis=1) == 0).all()
    assert (np.diff(smooth, axis=2) > 0).all()
    assert count_levels(smooth) == pytest.approx(9 * count, abs=9), "three rows of three planes"


def test_eight_bits_have_bands_and_eleven_have_none() -> None:
    import ml_dtypes

    smooth = draw_sky(60, 540)
    whole = count_levels(smooth)
    check_banding(whole, count_levels(smooth.astype(np.float16).astype(np.float32)), "fp16")
    noise = np.random.default_rng(0).normal(0, 0.2 / 1023, smooth.shape).astype(np.float32)
    check_banding(whole, count_levels(smooth + noise), "int16")
    banded = count_levels(smooth.astype(ml_dtypes.bfloat16).astype(np.float32))
    with pytest.raises(PrecisionUnfit, match=rf"the bf16 engine leaves {banded} of a sky's {whole} steps"):
        check_banding(whole, banded, "bf16")

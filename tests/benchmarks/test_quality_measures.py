"""Measures of picture quality: known faults have known values."""

import numpy as np
import pytest

from benchmarks import quality_discs, quality_measures, quality_spread, ssimulacra2
from tests.benchmarks.conftest import Floats, gray_noise


def test_measures_of_equal_pictures(truth: Floats) -> None:
    m = {name: function(truth, truth) for name, function in quality_measures.MEASURES.items()}
    assert m["psnr_y_db"] == m["xpsnr_y_db"] == 100
    assert m["ssim"] == pytest.approx(1)
    assert m["ssimulacra2"] > 99.9
    assert m["sharpness"] == pytest.approx(1)
    assert m["halo_steps"] == 0
    assert m["flat_noise_steps"] < 0.5


def test_measures_of_known_noise(truth: Floats) -> None:
    noisy = 0.25 + truth / 2 + gray_noise(truth.shape, 4)
    clean = 0.25 + truth / 2
    assert quality_measures.psnr_y(clean, noisy) == pytest.approx(20 * np.log10(255 / 4), abs=0.1)
    assert quality_measures.ssim(clean, noisy) < 0.95
    flat = np.full(truth.shape, 0.5)
    measured = quality_measures.flat_noise(flat, flat + gray_noise(truth.shape, 4))
    assert measured == pytest.approx(4 * np.sqrt(1 - 1 / 49), rel=0.02)
    held = [clean + gray_noise(truth.shape, 4, seed) for seed in range(4)]
    assert quality_measures.flicker(held) == pytest.approx(4, rel=0.02)
    assert quality_measures.flicker([clean, clean]) == 0


def test_psnr_is_of_luma_and_leaves_the_border_out(truth: Floats) -> None:
    blue = truth + np.array([0, 0, 0.1])
    assert quality_measures.psnr_y(truth, blue) == pytest.approx(-20 * np.log10(0.00722), abs=1e-6)
    spoilt = truth.copy()
    spoilt[:8], spoilt[:, -8:] = 0, 1
    assert quality_measures.psnr_y(truth, spoilt) == 100


def test_sharpness_and_halo_know_blur_and_overshoot(truth: Floats) -> None:
    soft = sum(np.roll(truth, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)) / 9
    blurred, sharpened = np.asarray(soft), truth + (truth - soft)
    assert quality_measures.sharpness(truth, blurred) < 0.7
    assert quality_measures.halo(truth, blurred) < 0.05
    assert quality_measures.sharpness(truth, sharpened) > 1.2
    assert quality_measures.halo(truth, sharpened) > 2


@pytest.mark.parametrize("move", [(0.0, 0.0), (0.5, -0.25), (-1.0, 1.5)])
def test_displacement_finds_a_known_move(move: tuple[float, float], truth: Floats) -> None:
    result = np.stack([quality_measures.displace(truth[..., i], *move) for i in range(3)], -1)
    assert quality_measures.displacement(truth, result) == pytest.approx(move, abs=0.02)


def test_differences_have_a_spread_and_winners() -> None:
    ours, other = {"a": 3.0, "b": 2.0, "c": 5.0, "d": None}, {"a": 1.0, "b": 2.5, "c": 4.0, "e": 1.0}
    result = quality_spread.difference(ours, other, "psnr_y_db")
    assert result == {"mean": 0.8333, "standard_error": 0.7265, "wins": 2, "pictures": 3}
    lower = quality_spread.difference(ours, other, "chroma_error_steps")
    assert lower is not None
    assert lower["wins"] == 1
    sharp = quality_spread.difference({"a": 1.2, "b": 0.9}, {"a": 0.9, "b": 0.5}, "sharpness")
    assert sharp is not None
    assert sharp["wins"] == 1, "the one that is nearer to 1"
    assert quality_spread.difference({}, other, "ssim") is None
    assert quality_spread.spread(result) == "+0.83 ± 0.73 (2/3)"
    assert set(quality_measures.MEASURES) | set(quality_measures.HELD_MEASURES) == {
        *quality_spread.HIGHER_IS_BETTER,
        "sharpness",
    }


def test_ssimulacra2_is_the_one_of_its_authors(truth: Floats) -> None:
    """Against values of version 2.1 that are known: equal pictures; and vszip, where borders hardly count."""
    assert ssimulacra2.ssimulacra2(truth, truth) == pytest.approx(100)
    kernel = ssimulacra2._KERNEL
    assert kernel.sum() == pytest.approx(1)
    assert len(kernel) == 9
    at = np.arange(-4, 5)
    assert np.abs(kernel - np.exp(-0.5 * (at / 1.5) ** 2) / 3.76).max() < 0.003
    flat = np.full((256, 256, 3), 0.5)
    inside = flat.copy()
    inside[112:144, 112:144] += 0.02  # an error that no border is near to
    ours, other = ssimulacra2.ssimulacra2(flat, inside), quality_measures.ssimulacra2_vszip(flat, inside)
    if not np.isnan(other):
        assert ours == pytest.approx(other, abs=3)


def test_chroma_error_counts_colors_alone(truth: Floats) -> None:
    assert quality_measures.chroma_error(truth, truth + 0.1) == pytest.approx(0, abs=1e-9)
    tinted = truth + np.linalg.inv(quality_discs.TO_YCC) @ [0, 4 / 255, 0]
    assert quality_measures.chroma_error(truth, tinted) == pytest.approx(4 / np.sqrt(2))
    assert quality_measures.chroma_flicker([truth, tinted]) == pytest.approx(2)
    assert quality_measures.flicker([truth, tinted]) < 0.5  # luma is that of Rec. 709

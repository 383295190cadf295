"""Sources of the comparison of picture quality: they are seeded and keep their place."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality_degradations, quality_discs, quality_measures
from benchmarks.cartoon import draw_frame
from benchmarks.errors import BenchmarkError, Missing
from benchmarks.quality_degradations import DEGRADATIONS, halve, through_composite
from benchmarks.quality_methods import Picture


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradations_are_deterministic_and_keep_the_place(kind: str, cel: Picture) -> None:
    first, second = DEGRADATIONS[kind](cel, "cel", 0), DEGRADATIONS[kind](cel, "cel", 0)
    assert first.shape == (200, 240, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    down, right = quality_measures.displacement(halve(cel) / 255, first / 255)
    assert abs(down) < 0.05
    assert abs(right) < 0.05


def test_degradations_are_ordered_by_what_they_take_away(cel: Picture) -> None:
    clean = halve(cel) / 255
    dvd, laserdisc = (
        quality_measures.psnr_y(clean, DEGRADATIONS[k](cel, "cel", 0) / 255) for k in ("dvd", "laserdisc")
    )
    assert 25 < laserdisc < dvd < 40


def test_composite_seed_is_the_name_and_the_frame(cel: Picture) -> None:
    small = halve(cel)
    first = through_composite(small, "a", 0)
    assert (first != through_composite(small, "b", 0)).mean() > 0.5
    assert (first != through_composite(small, "a", 1)).mean() > 0.5


def test_composite_shows_dot_crawl_and_cross_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_degradations, "SIGNAL_NOISE", 0.0)
    gray = np.full((64, 96, 3), 128, np.uint8)
    np.testing.assert_array_equal(through_composite(gray, "gray", 0), gray)
    # Diagonal stripes near the subcarrier, which turn half a cycle from line to line, are taken for color.
    y, x = np.mgrid[0:64, 0:96]
    stripes = 128 + 60 * np.sin(2 * np.pi * quality_degradations.SUBCARRIER * x + np.pi * y)
    fine = np.repeat(np.rint(stripes).astype(np.uint8)[..., None], 3, -1)
    result = through_composite(fine, "fine", 0).astype(int)
    assert np.ptp(result[16:-16, 16:-16], axis=-1).mean() > 30
    # A horizontal border between two colors of the same luma leaves dots in the luma, which crawl.
    border = np.zeros((64, 96, 3), np.uint8)
    border[:32], border[32:] = (180, 60, 90), (20, 140, 90)
    dots = [quality_measures.to_luma(through_composite(border, "border", n) / 255)[31, 16:-16] for n in (0, 1)]
    assert dots[0].std() * 255 > 5
    assert np.corrcoef(dots[0], dots[1])[0, 1] < -0.5


def test_truths_cuts_the_busiest_part_and_refuses_an_empty_folder(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(BenchmarkError, match="holds no picture"):
        quality_degradations.read_truths(tmp_path)
    Image.fromarray(draw_frame(0, 640, 480)).save(tmp_path / "large.png")
    assert {name: part.shape for name, part in quality_degradations.read_truths(tmp_path).items()} == {
        "large": (400, 480, 3)
    }


@pytest.mark.parametrize("disc", ["dvds", "laserdiscs"])
def test_discs_are_seeded_and_stay_in_their_place(disc: str, folder: Path) -> None:
    Image.fromarray(draw_frame(2, 1440, 1080)).save(folder / "whole.png")
    try:
        first, again = (getattr(quality_discs, disc)(folder) for _ in range(2))
    except Missing as missing:
        pytest.skip(str(missing))
    assert list(first) == ["drawn", "whole"]
    for name, sample in first.items():
        assert sample.truth.shape == (480, 640, 3)
        assert len(sample.sources) == (quality_discs.HELD if disc == "laserdiscs" else 1)
        for source, other in zip(sample.sources, again[name].sources, strict=True):
            assert source.shape == (240, 320, 3)
            np.testing.assert_array_equal(source, other)
        small = halve(sample.truth) / 255
        down, right = quality_measures.displacement(small, sample.sources[0] / 255)
        assert max(abs(down), abs(right)) < 0.08
        assert 18 < quality_measures.psnr_y(small, sample.sources[0] / 255) < 40
    if disc == "laserdiscs":
        held = first["whole"].sources
        assert quality_measures.flicker([frame / 255 for frame in held]) > 1


def test_a_field_is_interpolated_as_bwdif_does() -> None:
    rows = np.arange(12.0)[:, None, None].repeat(3, 2)
    np.testing.assert_allclose(quality_discs._upper_field(rows)[3:9], rows[3:9], atol=1e-9)


def test_real_cels(shared: Path) -> None:
    sample = quality_discs.film(shared / "data" / "clips" / "popeye_hd_1440x1074_24p.mkv", 1)["frame_300"]
    assert sample.truth.shape == (536, 720, 3)
    assert [source.shape for source in sample.sources] == [(268, 360, 3)] * 3
    assert quality_measures.flicker([source / 255 for source in sample.sources]) < 4, "one drawing, held"
    assert quality_measures.psnr_y(halve(sample.truth) / 255, sample.sources[0] / 255) > 30

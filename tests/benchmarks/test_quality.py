"""The comparison of picture quality: sources, measures, methods, checks, and a complete run."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks import (
    quality,
    quality_checks,
    quality_degradations,
    quality_discs,
    quality_measures,
    quality_methods,
    quality_sheets,
    quality_spread,
    report,
    ssimulacra2,
)
from benchmarks.cartoon import draw_frame
from benchmarks.errors import BenchmarkError, Missing
from benchmarks.quality_cache import Cache
from benchmarks.quality_degradations import DEGRADATIONS, halve, through_composite
from benchmarks.quality_methods import Method, Picture, Result, lanczos

type Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def cel() -> Picture:
    return draw_frame(0, 480, 400)


@pytest.fixture(scope="module")
def truth(cel: Picture) -> Floats:
    return cel / 255


def gray_noise(shape: tuple[int, ...], steps: float, seed: int = 0) -> Floats:
    """Noise of one standard deviation in 8-bit steps, the same in R, G and B; (H, W, 1)."""
    noise: Floats = np.random.default_rng(seed).standard_normal((*shape[:2], 1)) * steps / 255
    return noise


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


def peer(name: str) -> Method:
    try:
        return quality_methods.PEERS[name]()
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("name", ["bicubic", "Lanczos", "nnedi3", "ArtCNN C4F16", "ArtCNN C4F32"])
def test_no_peer_moves_the_picture_or_its_colors(name: str) -> None:
    method = peer(name)
    assert quality_checks.shift(method)["passed"], quality_checks.shift(method)
    assert quality_checks.color_shift(method)["passed"]


def test_nnedi3_needs_its_half_pixel(cel: Picture) -> None:
    """The correction is the right one: any other place has a lower PSNR."""
    result = next(iter(peer("nnedi3")([halve(cel)]))).astype(np.float64)
    scores = {}
    for move in (-0.5, -0.25, 0, 0.25, 0.5):
        planes = [quality_measures.displace(result[..., i], move, move) for i in range(3)]
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
    small = halve(cel)[:60, :90]
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
                planes = [quality_measures.displace(result[..., i].astype(np.float64), 0.0, 0.2) for i in range(3)]
                result = np.stack(planes, -1).astype(np.float32)
            elif change == "gridded":
                result[:, ::60] += 20 / 255
            elif change == "windowed":
                y, x = np.mgrid[0:height, 0:width]
                result += (0.3 / 255 * np.sin(2 * np.pi * (x / 40 + y / 120)))[..., None]
            elif change == "colored":
                result[..., 2] += 0.6 / 255
            elif change == "boiling":
                result += gray_noise(result.shape, 3, n)
            yield result

    return method


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ("nothing", set()),
        ("shifted", {"shift"}),
        ("gridded", {"grid"}),
        ("windowed", {"grid"}),
        ("colored", {"color shift"}),
        ("boiling", {"held cels"}),
    ],
)
def test_checks_find_the_fault_and_only_that(change: str, failing: set[str]) -> None:
    checks = quality_checks.run_checks(altered(change))
    result = {name for name, check in checks.items() if not check["passed"]}
    # A grid of bright lines also changes the mean color; that is no mistake of the check.
    assert result - ({"color shift"} if change == "gridded" else set()) == failing
    json.dumps(checks, allow_nan=False)


def test_grid_names_the_period() -> None:
    details = quality_checks.grid(altered("windowed"))["details"]
    assert details["period 120"] == pytest.approx(0.3, abs=0.02)
    assert all(height < 0.02 for period, height in details.items() if period != "period 120")


def test_noise_is_no_grid() -> None:
    assert quality_checks.grid(altered("boiling"))["worst"] < 0.125


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one picture to measure; results go to `results` next to it."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(draw_frame(3, 500, 420)).save(pictures / "drawn.png")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return pictures


def test_a_missing_peer_is_a_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    monkeypatch.setattr(quality_methods, "ARTCNN", folder / "nowhere")
    sheets = folder.parent / "sheets"
    peers = ["bicubic", "Lanczos", "Real-CUGAN", "realesr-animevideov3", "ArtCNN C4F32"]
    arguments = [str(folder), "--models", "--peers", *peers, "--sets", "clean", "laserdisc", "--sheets", str(sheets)]
    assert quality.main(arguments) == 0
    text = (folder.parent / "results" / "quality.json").read_text(encoding="utf-8")
    assert str(folder.parent) not in text
    result = json.loads(text)["result"]
    methods = result["methods"]
    for peer in ("Real-CUGAN", "realesr-animevideov3"):
        assert "ncnn" in methods[peer]["missing"]
    assert "weights are missing" in methods["ArtCNN C4F32"]["missing"]
    row = methods["bicubic"]
    assert set(row) == {"clean", "laserdisc"}
    assert set(row["clean"]) == set(quality_measures.MEASURES)
    assert row["clean"]["psnr_y_db"]["pictures"] == {"drawn": row["clean"]["psnr_y_db"]["mean"]}
    assert row["laserdisc"]["flicker_steps"]["mean"] > 1
    assert row["laserdisc"]["chroma_flicker_steps"]["mean"] > 0.5
    results = result["differences"]["from"]["Lanczos"]["clean"]["psnr_y_db"]
    assert (results["pictures"], results["wins"], results["standard_error"]) == (1, 0, None)
    printed = capsys.readouterr().out
    assert "| Real-CUGAN | not installed" in printed
    assert "| Lanczos | -" in printed.split("bicubic minus")[1]
    with Image.open(sheets / "clean.png") as image:
        assert image.width == 4 * (quality_sheets.PART + quality_sheets.GAP)


def test_results_are_the_same_every_time_and_with_a_cache(folder: Path, tmp_path: Path) -> None:
    given = quality.create_samples(folder, ["clean", "dvd"], tmp_path)
    calls: list[int] = []

    def counted(pictures: Sequence[Picture]) -> Iterator[Result]:
        calls.append(len(pictures))
        return lanczos()(pictures)

    named = quality.NamedMethod("lanczos 1", counted)
    kept = Cache(tmp_path / "cache")
    rows = [quality.measure(named, given, cache)[0] for cache in (Cache(None), kept, kept)]
    assert rows[0] == rows[1] == rows[2]
    assert calls == [1, 1, 1, 1], "the third had everything from the cache"
    assert quality.measure(quality.NamedMethod("lanczos 2", counted), given, kept)[0] == rows[0]
    assert len(calls) == 6, "another version is another method"


def test_what_cannot_be_measured_is_a_sentence(folder: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        ([str(tmp_path / "nowhere"), "--models"], "nowhere is not a folder of pictures"),
        ([str(folder), "--models", "medium+blur"], "there is no chroma filter blur"),
        ([str(folder), "--models", "medium", "medium"], "two models are named medium"),
        (
            [str(folder), "--models", "--sets", "film", "--film", str(tmp_path / "none.mkv")],
            "nothing to measure of film",
        ),
    ):
        with pytest.raises(BenchmarkError, match=sentence):
            quality.main([*arguments, "--peers", "bicubic"])


def test_results_of_our_networks_are_those_of_the_present_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = quality.create_methods(["medium"], [])["medium"]
    (tmp_path / "changed.py").write_text("")
    monkeypatch.setattr("vsfdatrd.__file__", str(tmp_path / "__init__.py"))
    after = quality.create_methods(["medium"], [])["medium"]
    assert isinstance(before, quality.NamedMethod)
    assert isinstance(after, quality.NamedMethod)
    assert before.identity != after.identity


def test_a_model_of_another_scale_is_refused(folder: Path, tmp_path: Path) -> None:
    def same_size(given: Sequence[Picture]) -> Iterator[Result]:
        yield from ((picture / np.float32(255)).astype(np.float32) for picture in given)

    with pytest.raises(BenchmarkError, match="not a doubler"):
        quality.measure(
            quality.NamedMethod("same", same_size), quality.create_samples(folder, ["clean"], tmp_path), Cache(None)
        )


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

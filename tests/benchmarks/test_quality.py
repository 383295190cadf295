"""The comparison of picture quality: methods, checks, and a complete run."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality, quality_checks, quality_measures, quality_methods, quality_sheets
from benchmarks.errors import BenchmarkError, Missing
from benchmarks.quality_cache import Cache
from benchmarks.quality_degradations import halve
from benchmarks.quality_methods import Method, Picture, Result, lanczos
from tests.benchmarks.conftest import gray_noise


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

"""`chroma_filter="luma_guided"`: against the same filter in numpy, what it does to LaserDisc, and that luma stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs

from benchmarks.cartoon import draw_frame
from benchmarks.quality_degradations import halve, through_composite
from benchmarks.quality_methods import as_clip
from tests.clips import Array, clip_of, planes, yuv

FLOAT = yuv(32, "444", vs.FLOAT)
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


pytestmark = pytest.mark.usefixtures("shared_cache")


def expected(luma: Array, chroma: list[Array], scale: int) -> list[Array]:
    """The filter as it is defined. luma, chroma: (H, W)."""
    pad = 13 * scale

    def shifted(plane: Array, down: int, right: int) -> Array:
        wide = np.pad(plane, pad, "edge")
        return wide[pad + down : pad + down + plane.shape[0], pad + right : pad + right + plane.shape[1]]

    big = np.pad(luma, pad, "edge")
    across = np.abs(shifted(big, 0, 1) - shifted(big, 0, -1))
    down = np.abs(shifted(big, 1, 0) - shifted(big, -1, 0))
    reach = 3 * scale
    wide = np.mean([shifted(across, y, x) for y in (-1, 0, 1) for x in range(-reach, reach + 1)], axis=0)
    narrow = np.mean([shifted(down, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)
    confidence = 1 / (1 + 200 * (wide + 0.3 * narrow))
    total = np.zeros_like(luma)
    sums = [np.zeros_like(luma) for _ in chroma]
    for y in range(-2, 3):
        for x in range(-9, 10):
            near = max(0.0, 1 - (x * x / 25 + y * y / 4) / 8) ** 4
            alike = np.maximum(0, 1 - ((shifted(luma, y * scale, x * scale) - luma) / 0.04) ** 2) ** 2
            there = slice(pad + y * scale, pad + y * scale + luma.shape[0])
            here = slice(pad + x * scale, pad + x * scale + luma.shape[1])
            weight = near * alike * confidence[there, here]
            total += weight
            for sum_, plane in zip(sums, chroma, strict=True):
                sum_ += weight * shifted(plane, y * scale, x * scale)
    return [sum_ / total for sum_ in sums]


@pytest.mark.parametrize(("width", "height", "scale"), [(61, 47, 2), (16, 16, 1), (9, 8, 2), (40, 33, 4), (8, 50, 3)])
def test_it_computes_what_it_says(width: int, height: int, scale: int) -> None:
    random = np.random.default_rng(width)
    y, x = np.mgrid[0:height, 0:width]
    luma = 0.5 + 0.3 * np.sin(x / 9) * np.cos(y / 5) + 0.01 * random.standard_normal((height, width))
    chroma = [0.2 * random.standard_normal((height, width)) for _ in range(2)]
    result = planes(vs.core.fdatrd.ChromaFilter(clip_of(FLOAT, [[luma, *chroma]]), scale=scale))
    np.testing.assert_array_equal(result[0], luma.astype(np.float32))
    for results, requested in zip(result[1:], expected(luma, chroma, scale), strict=True):
        np.testing.assert_allclose(results, requested, atol=2e-5)


def laserdisc(frame: int = 0) -> tuple[Array, vs.VideoNode]:
    """A drawing (200, 240, 3) in [0, 1], and its half-size version as from a LaserDisc."""
    truth = draw_frame(0, 240, 200)
    return truth / 255, as_clip([through_composite(halve(truth), "cel", frame)])


def chroma_error(truth: Array, clip: vs.VideoNode) -> float:
    """RMSE of Cb and Cr in 8-bit steps."""
    result = np.stack(planes(clip), -1)
    return float(np.sqrt(np.mean(((result - truth) @ TO_YCC.T)[..., 1:] ** 2)) * 255)


def test_colors_of_a_laserdisc_go_back_behind_their_lines(identity_2x: Path) -> None:
    truth, source = laserdisc()
    plain, filtered = (
        vs.core.fdatrd.upscale(source, model=str(identity_2x), chroma_filter=name) for name in ("none", "luma_guided")
    )
    assert chroma_error(truth, filtered) < 0.93 * chroma_error(truth, plain)


@pytest.mark.parametrize("format", [vs.YUV420P16, vs.YUV444P16, vs.YUV422P10, vs.YUV444PS])
def test_luma_stays(identity_2x: Path, format: int) -> None:
    clip = laserdisc()[1].resize.Spline36(format=vs.YUV420P8, matrix=6)
    plain, filtered = (
        vs.core.fdatrd.upscale(clip, model=str(identity_2x), format=str(format), chroma_filter=name)
        for name in ("none", "luma_guided")
    )
    assert filtered.format.id == format
    before, after = planes(plain), planes(filtered)
    steps = np.abs(after[0].astype(np.float64) - before[0])
    # The same floats become these integers, at the most rounded or dithered once to the other side.
    assert steps.max() <= (1e-6 if format == vs.YUV444PS else 1)
    assert steps.mean() < 0.01
    assert np.abs(after[1].astype(np.float64) - before[1]).max() > (0.02 if format == vs.YUV444PS else 10)
    with plain.get_frame(0) as f, filtered.get_frame(0) as g:
        assert dict(f.props) == dict(g.props)


@pytest.mark.parametrize("format", [vs.RGB24, vs.RGBS, vs.GRAY8])
def test_other_families_come_out_as_they_went_in(identity_2x: Path, format: int) -> None:
    clip = laserdisc()[1]
    matrix: dict[str, Any] = {"matrix": 6} if format == vs.GRAY8 else {}
    clip = clip.resize.Spline36(format=format, **matrix)
    plain, filtered = (
        vs.core.fdatrd.upscale(clip, model=str(identity_2x), chroma_filter=name) for name in ("none", "luma_guided")
    )
    assert filtered.format.id == plain.format.id
    same = [np.array_equal(a, b) for a, b in zip(planes(plain), planes(filtered), strict=True)]
    assert same == ([True] if format == vs.GRAY8 else [False] * 3)
    if format == vs.RGBS:
        values = np.stack(planes(filtered))
        assert values.min() >= 0
        assert values.max() <= 1


def test_luma_networks_too(shared: Path) -> None:
    model = shared / "data" / "artcnn" / "artcnn_c4f16.safetensors"
    clip = laserdisc()[1].resize.Spline36(64, 48, format=vs.YUV420P8, matrix=6)
    plain, filtered = (
        planes(vs.core.fdatrd.upscale(clip, model=str(model), chroma_filter=name)) for name in ("none", "luma_guided")
    )
    np.testing.assert_array_equal(plain[0], filtered[0])
    assert not np.array_equal(plain[1], filtered[1])


def test_a_real_laserdisc_clip(shared: Path, identity_2x: Path) -> None:
    """Grain of a real film in the chroma becomes less, and its lines do not move."""
    clip = vs.core.bs.VideoSource(str(shared / "data" / "clips" / "ld_square_720x540.mkv"), cachemode=0)[40]
    clip = clip.std.CropAbs(120, 100, 300, 200)
    plain, filtered = (
        planes(vs.core.fdatrd.upscale(clip, model=str(identity_2x), chroma_filter=name, format="YUV444P16"))
        for name in ("none", "luma_guided")
    )
    assert np.abs(plain[0].astype(int) - filtered[0]).max() <= 1
    for before, after in zip(plain[1:], filtered[1:], strict=True):
        assert np.abs(np.diff(after.astype(float))).mean() < np.abs(np.diff(before.astype(float))).mean()

"""Luma networks: only Y goes through the network, chroma keeps its position, matrix and range are preserved."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs

from tests.clips import SUBSAMPLINGS, Array, blank, clip_of, core, from_codes, planes, props_of, to_codes, yuv
from vsfdatrd.errors import ClipError
from vsfdatrd.video import color, luma


def doubler(gray: vs.VideoNode) -> vs.VideoNode:
    """A network that enlarges as the resizer does, and lies in [0, 1]."""
    assert gray.format.id == vs.GRAYS
    return gray.resize.Spline36(gray.width * 2, gray.height * 2).std.Expr("x 0 max 1 min")


def enlarge(
    clip: vs.VideoNode,
    format: str | None = None,
    matrix: str | None = None,
    network: Callable[[vs.VideoNode], vs.VideoNode] = doubler,
) -> vs.VideoNode:
    source = color.inspect_clip(clip)
    target = color.output_spec(source, 2, format, matrix, "luma")
    return color.convert_output(luma.upscale_luma(source, target, 2, network), target)


def ramp(height: int, width: int, low: float, high: float) -> Array:
    y, x = np.mgrid[0:height, 0:width]
    result: Array = low + (high - low) * (x / width + y / height) / 2
    return result


def drawn(form: vs.VideoFormat, range: int, width: int = 64, height: int = 48, **props: Any) -> vs.VideoNode:
    """Smooth planes that are not proportional to each other."""
    parts = [ramp(height, width, 0.1, 0.9)]
    w, h = width >> form.subsampling_w, height >> form.subsampling_h
    parts += [ramp(h, w, -0.3, 0.2), ramp(h, w, 0.25, -0.2)][: form.num_planes - 1]
    codes = [np.rint(to_codes(part, form.bits_per_sample, range, i > 0)) for i, part in enumerate(parts)]
    return clip_of(form, [codes], _Range=range, **props)


@pytest.mark.parametrize("matrix", [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14])
@pytest.mark.parametrize("limits", [0, 1])
def test_every_matrix_and_range_is_kept(matrix: int, limits: int) -> None:
    """Also those that cannot be converted: nothing is. The planes are those that the resizer makes of each alone."""
    clip = drawn(yuv(8, "420"), limits, _Matrix=matrix, _ChromaLocation=0)
    out = enlarge(clip)
    tags = props_of(out)
    assert (tags["_Matrix"], tags["_Range"], tags["_ChromaLocation"], out.format.id) == (
        matrix,
        limits,
        0,
        vs.YUV420P16,
    )
    y = from_codes(planes(out)[0], 16, limits, chroma=False)
    alone = clip.std.ShufflePlanes(0, vs.GRAY).resize.Spline36(128, 96, format=vs.GRAYS)
    np.testing.assert_allclose(y, planes(alone)[0], atol=1 / 60000)
    whole = planes(clip.resize.Spline36(128, 96, format=vs.YUV420P16))
    for result, expected in zip(planes(out)[1:], whole[1:], strict=True):
        np.testing.assert_allclose(result, expected.astype(float), atol=1)


def test_hd_out_of_sd_keeps_its_matrix() -> None:
    clip = drawn(yuv(8, "420"), 0, 720, 576, _Matrix=5)
    assert props_of(enlarge(clip))["_Matrix"] == 5
    assert props_of(enlarge(clip, matrix="source"))["_Matrix"] == 5


def test_a_matrix_that_is_asked_for_is_converted_to() -> None:
    clip = drawn(yuv(8, "444"), 0, _Matrix=6)
    out = enlarge(clip, matrix="709")
    assert props_of(out)["_Matrix"] == 1
    expected = enlarge(clip).resize.Spline36(format=vs.YUV444P16, matrix=1)
    for result, requested in zip(planes(out), planes(expected), strict=True):
        np.testing.assert_allclose(result, requested.astype(float), atol=2)


def test_what_cannot_be_converted_is_refused_only_if_it_has_to_be() -> None:
    clip = drawn(yuv(8, "420"), 0, _Matrix=14)
    enlarge(clip).get_frame(0).close()
    for format, matrix in ((None, "709"), ("RGB48", None)):
        with pytest.raises(ClipError, match="cannot be converted to RGB"):
            enlarge(clip, format, matrix)


@pytest.mark.parametrize("location", range(6))
@pytest.mark.parametrize("subsampling", ["420", "422", "411"])
def test_chroma_stays_where_it_lies(subsampling: str, location: int) -> None:
    """A plane that rises steadily over the picture does so after, at the middle of each chroma sample.

    Sample i of a row lies over luma pixel `step`·i + `shift`, before and after; pixel x becomes 2x + ½.
    """
    form = yuv(16, subsampling)
    across, down = 1 << form.subsampling_w, 1 << form.subsampling_h
    # H.273, figure 10: left, center, top left, top, bottom left, bottom
    left, vertical = location in (0, 2, 4), {0: 0.5, 1: 0.5, 2: 0.0, 3: 0.0, 4: 1.0, 5: 1.0}[location]
    if down == 1:
        vertical = 0.5

    def middle(count: int, step: int, at: float) -> Array:
        """Where samples lie in luma pixels; at: 0 is on the first of `step` pixels, 1 on the last, ½ between."""
        return np.arange(count) * step + at * (step - 1)

    def plane(height: int, width: int, scale: int) -> Array:
        x = (middle(width, across, 0.0 if left else 0.5) - (scale - 1) / 2) / scale
        y = (middle(height, down, vertical) - (scale - 1) / 2) / scale
        return 0.004 * x[None, :] - 0.003 * y[:, None]

    small = plane(96 // down, 128 // across, 1)
    codes = [np.full((96, 128), 30000), *[np.rint(to_codes(small, 16, 0, chroma=True))] * 2]
    out = enlarge(clip_of(form, [codes], _Matrix=6, _Range=0, _ChromaLocation=location))
    assert props_of(out)["_ChromaLocation"] == location
    result = from_codes(planes(out)[1], 16, 0, chroma=True)
    expected = plane(192 // down, 256 // across, 2)
    inner = (slice(16 // down, -16 // down), slice(16, -16))
    np.testing.assert_allclose(result[inner], expected[inner], atol=2e-4)


@pytest.mark.parametrize("location", [0, 1, 2])
def test_chroma_that_becomes_whole_lies_over_its_luma(location: int) -> None:
    clip = drawn(yuv(8, "420"), 0, _Matrix=6, _ChromaLocation=location)
    out = enlarge(clip, "YUV444P16")
    assert "_ChromaLocation" not in props_of(out)
    expected = planes(clip.resize.Spline36(128, 96, format=vs.YUV444P16))
    np.testing.assert_allclose(planes(out)[2], expected[2].astype(float), atol=1)


@pytest.mark.parametrize(
    "format",
    [
        vs.YUV420P8,
        vs.YUV422P10,
        vs.YUV444P16,
        vs.YUV444PS,
        vs.YUV420PS,
        vs.GRAY8,
        vs.GRAYS,
        vs.GRAYH,
        vs.RGB24,
        vs.RGB48,
        vs.RGBS,
        vs.RGBH,
    ],
)
@pytest.mark.parametrize("to", [None, "YUV420P8", "RGB30", "RGBS"])
def test_neutral_gray_stays_exactly_neutral(format: int, to: str | None) -> None:
    """Gray noise of every level: chroma is the neutral code everywhere, and R, G and B are one plane."""
    form = core.get_video_format(format)
    noise = np.random.default_rng(0).random((48, 64))
    floats = form.sample_type == vs.FLOAT
    limits = int(form.color_family == vs.RGB)
    gray = noise if floats else np.rint(to_codes(noise, form.bits_per_sample, limits, chroma=False))
    neutral = 0 if floats else 1 << (form.bits_per_sample - 1)
    shape = (48 >> form.subsampling_h, 64 >> form.subsampling_w)
    parts = [gray] * 3 if limits else [gray, *[np.full(shape, neutral)] * (form.num_planes - 1)]
    out = enlarge(clip_of(form, [parts], _Range=limits, **({} if limits else {"_Matrix": 6})), to)
    result = planes(out)
    if out.format.color_family == vs.RGB:
        np.testing.assert_array_equal(result[0], result[1])
        np.testing.assert_array_equal(result[0], result[2])
    else:
        middle = 0 if out.format.sample_type == vs.FLOAT else 1 << (out.format.bits_per_sample - 1)
        assert all((plane == middle).all() for plane in result[1:])
    assert np.ptp(result[0]) > 0.8 * (1 if out.format.sample_type == vs.FLOAT else 200)


@pytest.mark.parametrize("limits", [0, 1])
@pytest.mark.parametrize("bits", [8, 10, 16])
def test_luma_codes_come_back(bits: int, limits: int) -> None:
    """A network that repeats pixels gives back every code of luma."""
    top, bottom = 16 << (bits - 8), 235 << (bits - 8)
    codes = (
        np.linspace(top, bottom, 64 * 48).round().reshape(48, 64)
        if limits == 0
        else np.linspace(0, 2**bits - 1, 64 * 48).round().reshape(48, 64)
    )
    chroma = np.full((24, 32), 1 << (bits - 1))
    clip = clip_of(yuv(bits, "420"), [[codes, chroma, chroma]], _Matrix=1, _Range=limits)
    out = enlarge(clip, network=lambda gray: gray.resize.Point(128, 96))
    back = to_codes(from_codes(planes(out)[0], 16, limits, chroma=False), bits, limits, chroma=False)
    np.testing.assert_allclose(back, codes.repeat(2, 0).repeat(2, 1), atol=0.01)


def test_gray_clips_go_straight_through() -> None:
    clip = drawn(core.get_video_format(vs.GRAY8), 0)
    out = enlarge(clip)
    assert (out.format.id, props_of(out)["_Range"]) == (vs.GRAY16, 0)
    expected = planes(clip.resize.Spline36(128, 96, format=vs.GRAY16))
    np.testing.assert_allclose(planes(out)[0], expected[0].astype(float), atol=1)
    assert enlarge(clip, "YUV420P8").format.id == vs.YUV420P8
    assert enlarge(drawn(yuv(8, "420"), 0, _Matrix=6), "GRAY8").format.id == vs.GRAY8


@pytest.mark.parametrize("format", [vs.YUV444P8, vs.GRAY8])
def test_gray_of_another_matrix_is_luma_of_that_matrix(format: int) -> None:
    clip = drawn(core.get_video_format(format), 0, _Matrix=6)
    out = enlarge(clip, "GRAY16", "709")
    assert (out.format.id, props_of(out)["_Matrix"]) == (vs.GRAY16, 1)
    expected = enlarge(clip)
    if format == vs.YUV444P8:
        expected = expected.resize.Point(format=vs.YUV444P16, matrix=1)
        assert np.abs(planes(expected)[0] - planes(enlarge(clip))[0].astype(float)).max() > 500, "nothing is tested"
    np.testing.assert_allclose(planes(out)[0], planes(expected)[0].astype(float), atol=2)


@pytest.mark.parametrize("to", [None, "YUV444P16"])
def test_rgb_goes_through_as_luma(to: str | None, caplog: pytest.LogCaptureFixture) -> None:
    rgb = [np.rint(65535 * ramp(48, 64, low, high)) for low, high in ((0.1, 0.9), (0.8, 0.2), (0.3, 0.6))]
    clip = clip_of(core.get_video_format(vs.RGB48), [rgb], _Range=1, _Matrix=0)
    out = enlarge(clip, to)
    assert [message for message in caplog.messages if "RGB" in message and "luma" in message] == caplog.messages
    assert len(caplog.messages) == 1
    expected = clip.resize.Spline36(128, 96)
    if to:
        expected = expected.resize.Spline36(format=vs.YUV444P16, matrix=6, range=0)
    for result, requested in zip(planes(out), planes(expected), strict=True):
        np.testing.assert_allclose(result, requested.astype(float), atol=2)


@pytest.mark.parametrize(("subsampling", "bits"), list(itertools.product(SUBSAMPLINGS, [8, 16])))
def test_every_subsampling_keeps_its_means(subsampling: str, bits: int) -> None:
    clip = drawn(yuv(bits, subsampling), 0, _Matrix=1, _ChromaLocation=1)
    for before, after in zip(planes(clip), planes(enlarge(clip)), strict=True):
        assert abs(before.mean() / 2**bits - after.mean() / 65536) < 5e-4


def test_every_frame_keeps_its_own_tags() -> None:
    clip = blank(length=1, _Matrix=1, _Range=0, Number=5) + blank(length=1, _Matrix=9, _Range=0, Number=6)
    result = [props_of(enlarge(clip), n) for n in range(2)]
    assert [(tags["_Matrix"], tags["Number"]) for tags in result] == [(1, 5), (9, 6)]


def test_an_interlaced_frame_fails_alone() -> None:
    out = enlarge(blank(length=1, _Matrix=1) + blank(length=1, _Matrix=1, _FieldBased=1) + blank(length=1, _Matrix=1))
    out.get_frame(0).close()
    out.get_frame(2).close()
    with pytest.raises(vs.Error, match=r"^fdatrd\.upscale: frame 1 is interlaced"):
        out.get_frame(1)

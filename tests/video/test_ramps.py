"""Ramps of every matrix, range, depth and subsampling are reproduced to within one code value."""

import numpy as np
import pytest
import vapoursynth as vs

from tests.clips import (
    SUBSAMPLINGS,
    WEIGHTS,
    blank,
    clip_of,
    core,
    decode,
    from_codes,
    planes,
    props_of,
    round_trip,
    yuv,
)
from tests.video.conftest import in_gamut, worst
from vsfdatrd.video import color

RANGES = {"limited": 0, "full": 1}
DEPTHS = (8, 10, 16)


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_ramps_come_back_within_a_code(subsampling: str, matrix: int, range_name: str, bits: int) -> None:
    limits, form = RANGES[range_name], yuv(bits, subsampling)
    tags = {"_Matrix": matrix, "_Range": limits}
    low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
    # Every legal gray, in order, row after row.
    rows = -(-(high - low + 1) // 256)
    gray = np.minimum(np.arange(low, low + 256 * max(8, rows)), high).reshape(-1, 256)
    neutral = np.full((gray.shape[0] >> form.subsampling_h, 256 >> form.subsampling_w), 2 ** (bits - 1))
    # Colors in patches as large as 4x subsampling with Spline36 reaches, of which the middle counts.
    side, across = 48, 8
    colors = in_gamut(across * across, bits, matrix, limits).reshape(3, across, across)
    patches = [
        colors[i].repeat(side >> (form.subsampling_h * (i > 0)), 0).repeat(side >> (form.subsampling_w * (i > 0)), 1)
        for i in range(3)
    ]
    for given_planes, middle in (([gray, neutral, neutral], False), (patches, True)):
        clip = clip_of(form, [given_planes], **tags)
        for scale, format in ((1, None), (2, None), (1, str(form.id))):
            out = round_trip(clip, scale, format)
            assert out.format is not None
            assert (out.format.subsampling_w, out.format.subsampling_h) == (form.subsampling_w, form.subsampling_h)
            for i, (result, expected) in enumerate(zip(planes(out), given_planes, strict=True)):
                if middle:
                    step = [side * scale >> (shift * (i > 0)) for shift in (form.subsampling_h, form.subsampling_w)]
                    result = result[step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
                    expected = colors[i]
                else:
                    expected = expected.repeat(scale, 0).repeat(scale, 1)
                if format is None:  # 16 bit: no dither
                    assert worst(result, expected, bits, limits, i) <= (0.02 if bits < 16 else 1)
                else:
                    assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_colors_are_decoded_by_the_book(matrix: int, range_name: str, bits: int) -> None:
    codes = in_gamut(4096, bits, matrix, RANGES[range_name], seed=1).reshape(3, 64, 64)
    clip = clip_of(yuv(bits, "444"), [list(codes)], _Matrix=matrix, _Range=RANGES[range_name])
    rgb = color.to_rgb(color.inspect_clip(clip))
    assert rgb.format.id == vs.RGBS
    np.testing.assert_allclose(np.stack(planes(rgb)), decode(codes, bits, matrix, RANGES[range_name]), atol=2e-6)
    result = np.stack(planes(round_trip(clip, format=clip.format.name)))
    assert np.abs(result.astype(int) - codes).max() <= 1


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", RANGES)
def test_gray_clips_come_back_within_a_code(range_name: str, bits: int) -> None:
    limits = RANGES[range_name]
    low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
    ramp = np.minimum(np.arange(low, low + 65536), high).reshape(256, 256)
    form = core.query_video_format(vs.GRAY, vs.INTEGER, bits, 0, 0)
    for matrix in (*WEIGHTS, 0, 2, 10, 14, 99):  # none of them means anything for gray
        clip = clip_of(form, [[ramp]], _Matrix=matrix, _Range=limits)
        out = round_trip(clip)
        assert out.format.id == vs.GRAY16
        assert worst(planes(out)[0], ramp, bits, limits, 0) <= (0.02 if bits < 16 else 1)
        assert props_of(out)["_Matrix"] == (matrix if matrix in WEIGHTS else 6)
        result = planes(round_trip(clip, format=form.name))[0]
        assert np.abs(result.astype(int) - ramp).max() <= 1


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", [*RANGES, "untagged"])
def test_rgb_clips_come_back_within_a_code(range_name: str, bits: int) -> None:
    limits = RANGES.get(range_name, 1)
    low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
    codes = np.random.default_rng(3).integers(low, high, (3, 64, 64), endpoint=True)
    codes[:, 0] = np.linspace(low, high, 64).astype(int)
    tags = {} if range_name == "untagged" else {"_Range": limits}
    clip = clip_of(core.query_video_format(vs.RGB, vs.INTEGER, bits, 0, 0), [list(codes)], **tags)
    source = color.inspect_clip(clip)
    np.testing.assert_allclose(
        np.stack(planes(color.to_rgb(source))), from_codes(codes, bits, limits, chroma=False), atol=1e-6
    )
    out = round_trip(clip)
    assert out.format.id == vs.RGB48
    for result, expected in zip(planes(out), codes, strict=True):
        assert worst(result, expected, bits, limits, 0) <= (0.02 if bits < 16 else 1)
    tagged = props_of(out)
    assert (tagged["_Range"], tagged["_Matrix"]) == (limits, 0)


@pytest.mark.parametrize(
    ("matrix", "transfer", "primaries"), [(10, 1, 9), (10, 14, 9), (12, 1, 1), (13, 1, 1), (14, 16, 9), (14, 18, 9)]
)
def test_matrices_that_depend_on_other_tags(matrix: int, transfer: int, primaries: int) -> None:
    codes = np.array([[400, 600, 940, 64], [500, 520, 512, 512], [520, 500, 512, 512]]).reshape(3, 2, 2)
    clip = clip_of(
        yuv(10, "444"),
        [list(codes.repeat(16, 1).repeat(16, 2))],
        _Matrix=matrix,
        _Transfer=transfer,
        _Primaries=primaries,
        _Range=0,
    )
    out = round_trip(clip)
    for i, (result, expected) in enumerate(zip(planes(out), codes, strict=True)):
        assert worst(result[::16, ::16], expected, 10, 0, i) <= 1
    tags = props_of(out)
    assert (tags["_Matrix"], tags["_Transfer"], tags["_Primaries"]) == (matrix, transfer, primaries)


@pytest.mark.parametrize("location", range(6))
@pytest.mark.parametrize("subsampling", ["420", "422", "411", "410"])
def test_a_smooth_ramp_of_chroma_stays_where_it_is(subsampling: str, location: int) -> None:
    form = yuv(8, subsampling)
    height, width = 64, 256
    y = np.full((height, width), 120)
    ramp = np.linspace(96, 160, width >> form.subsampling_w).round()[None].repeat(height >> form.subsampling_h, 0)
    clip = clip_of(form, [[y, ramp, ramp[:, ::-1]]], _Matrix=6, _Range=0, _ChromaLocation=location)
    for format in (None, form.name):
        out = round_trip(clip, format=format)
        assert props_of(out)["_ChromaLocation"] == location
        for i, expected in enumerate([y, ramp, ramp[:, ::-1]]):
            result = planes(out)[i] / (256 if format is None else 1)
            assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize("location", range(6))
def test_the_chroma_location_moves_chroma(location: int) -> None:
    clip = blank(vs.YUV420P8, _Matrix=6, _Range=0)
    edge = np.full((24, 32), 128)
    edge[12:, 16:] = 180
    clip = clip_of(clip.format, [[np.full((48, 64), 128), edge, edge]], _Matrix=6, _Range=0, _ChromaLocation=location)
    plain = clip.resize.Spline36(format=vs.RGBS, chromaloc_in=location)
    for result, expected in zip(planes(color.to_rgb(color.inspect_clip(clip))), planes(plain), strict=True):
        np.testing.assert_array_equal(result, expected)

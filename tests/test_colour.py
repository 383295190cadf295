"""Colour there and back: against formulas written out here, against zimg itself, and on real clips."""

import logging
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clips import (
    SUBSAMPLINGS,
    WEIGHTS,
    YCGCO_SPAN,
    Array,
    blank,
    clip_of,
    core,
    decode,
    from_codes,
    planes,
    props_of,
    there_and_back,
    to_codes,
    yuv,
)
from vsfdatrd import colour
from vsfdatrd.errors import ArgumentError, ClipError
from vsfdatrd.programs import vspipe

RANGES = {"limited": 0, "full": 1}
DEPTHS = (8, 10, 16)


def in_gamut(count: int, bits: int, matrix: int, range: int, seed: int = 0) -> Array:
    """(3, count) codes of colours that RGB holds, from black to white, in the order of their luma: a colour ramp."""
    random = np.random.default_rng(seed)
    rgb = random.random((3, 64 + 4 * count))
    rgb[random.random(rgb.shape) < 0.2] = 0
    rgb[random.random(rgb.shape) < 0.2] = 1
    weights = WEIGHTS[matrix]
    if weights is None:
        r, g, b = rgb
        span = YCGCO_SPAN[range]
        planes = [(r + 2 * g + b) / 4, (2 * g - r - b) / 4 / span, (r - b) / 2 / span]
    else:
        kr, kb = weights
        y = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
        planes = [y, (rgb[2] - y) / (2 - 2 * kb), (rgb[0] - y) / (2 - 2 * kr)]
    codes = np.stack([np.rint(to_codes(plane, bits, range, chroma=i > 0)) for i, plane in enumerate(planes)])
    codes = codes.clip(0, 2**bits - 1)
    back = decode(codes, bits, matrix, range)
    codes = codes[:, ((back >= 0) & (back <= 1)).all(0)][:, :count]
    assert codes.shape[1] == count
    ordered: Array = codes[:, np.argsort(codes[0], kind="stable")]
    return ordered


def worst(found: Array, expected: Array, bits: int, range: int, plane: int) -> float:
    """Largest difference in codes at `bits`, of a found plane at 16 bits."""
    scaled = to_codes(from_codes(found, 16, range, plane > 0), bits, range, plane > 0)
    return float(np.abs(scaled - expected).max())


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "vsfdatrd"):
        yield


# ---- ramps: every matrix, range, depth and subsampling --------------------------------------------------------------


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize("matrix", WEIGHTS)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_ramps_come_back_within_a_code(subsampling: str, matrix: int, range_name: str, bits: int) -> None:
    limits, form = RANGES[range_name], yuv(bits, subsampling)
    tags = {"_Matrix": matrix, "_Range": limits}
    low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
    # Every legal grey, in order, row after row.
    rows = -(-(high - low + 1) // 256)
    grey = np.minimum(np.arange(low, low + 256 * max(8, rows)), high).reshape(-1, 256)
    neutral = np.full((grey.shape[0] >> form.subsampling_h, 256 >> form.subsampling_w), 2 ** (bits - 1))
    # Colours in patches as large as 4x subsampling with Spline36 reaches, of which the middle counts.
    side, across = 48, 8
    colours = in_gamut(across * across, bits, matrix, limits).reshape(3, across, across)
    patches = [
        colours[i].repeat(side >> (form.subsampling_h * (i > 0)), 0).repeat(side >> (form.subsampling_w * (i > 0)), 1)
        for i in range(3)
    ]
    for given_planes, middle in (([grey, neutral, neutral], False), (patches, True)):
        clip = clip_of(form, [given_planes], **tags)
        for scale, format in ((1, None), (2, None), (1, str(form.id))):
            out = there_and_back(clip, scale, format)
            assert out.format is not None
            assert (out.format.subsampling_w, out.format.subsampling_h) == (form.subsampling_w, form.subsampling_h)
            for i, (found, expected) in enumerate(zip(planes(out), given_planes, strict=True)):
                if middle:
                    step = [side * scale >> (shift * (i > 0)) for shift in (form.subsampling_h, form.subsampling_w)]
                    found = found[step[0] // 2 :: step[0], step[1] // 2 :: step[1]]
                    expected = colours[i]
                else:
                    expected = expected.repeat(scale, 0).repeat(scale, 1)
                if format is None:  # 16 bit: no dither
                    assert worst(found, expected, bits, limits, i) <= (0.02 if bits < 16 else 1)
                else:
                    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", RANGES)
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_colours_are_decoded_by_the_book(matrix: int, range_name: str, bits: int) -> None:
    codes = in_gamut(4096, bits, matrix, RANGES[range_name], seed=1).reshape(3, 64, 64)
    clip = clip_of(yuv(bits, "444"), [list(codes)], _Matrix=matrix, _Range=RANGES[range_name])
    rgb = colour.to_rgb(colour.describe(clip))
    assert rgb.format.id == vs.RGBS
    np.testing.assert_allclose(np.stack(planes(rgb)), decode(codes, bits, matrix, RANGES[range_name]), atol=2e-6)
    found = np.stack(planes(there_and_back(clip, format=clip.format.name)))
    assert np.abs(found.astype(int) - codes).max() <= 1


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", RANGES)
def test_grey_clips_come_back_within_a_code(range_name: str, bits: int) -> None:
    limits = RANGES[range_name]
    low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
    ramp = np.minimum(np.arange(low, low + 65536), high).reshape(256, 256)
    form = core.query_video_format(vs.GRAY, vs.INTEGER, bits, 0, 0)
    for matrix in (*WEIGHTS, 0, 2, 10, 14, 99):  # none of them means anything for grey
        clip = clip_of(form, [[ramp]], _Matrix=matrix, _Range=limits)
        out = there_and_back(clip)
        assert out.format.id == vs.GRAY16
        assert worst(planes(out)[0], ramp, bits, limits, 0) <= (0.02 if bits < 16 else 1)
        assert props_of(out)["_Matrix"] == (matrix if matrix in WEIGHTS else 6)
        found = planes(there_and_back(clip, format=form.name))[0]
        assert np.abs(found.astype(int) - ramp).max() <= 1


@pytest.mark.parametrize("bits", DEPTHS)
@pytest.mark.parametrize("range_name", [*RANGES, "untagged"])
def test_rgb_clips_come_back_within_a_code(range_name: str, bits: int) -> None:
    limits = RANGES.get(range_name, 1)
    low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
    codes = np.random.default_rng(3).integers(low, high, (3, 64, 64), endpoint=True)
    codes[:, 0] = np.linspace(low, high, 64).astype(int)
    tags = {} if range_name == "untagged" else {"_Range": limits}
    clip = clip_of(core.query_video_format(vs.RGB, vs.INTEGER, bits, 0, 0), [list(codes)], **tags)
    source = colour.describe(clip)
    np.testing.assert_allclose(
        np.stack(planes(colour.to_rgb(source))), from_codes(codes, bits, limits, chroma=False), atol=1e-6
    )
    out = there_and_back(clip)
    assert out.format.id == vs.RGB48
    for found, expected in zip(planes(out), codes, strict=True):
        assert worst(found, expected, bits, limits, 0) <= (0.02 if bits < 16 else 1)
    tagged = props_of(out)
    assert (tagged["_Range"], tagged["_Matrix"]) == (limits, 0)


@pytest.mark.parametrize(
    ("matrix", "transfer", "primaries"), [(10, 1, 9), (10, 14, 9), (12, 1, 1), (13, 1, 1), (14, 16, 9), (14, 18, 9)]
)
def test_matrices_that_depend_on_other_tags(matrix: int, transfer: int, primaries: int) -> None:
    codes = np.array([[400, 600, 940, 64], [500, 520, 512, 512], [520, 500, 512, 512]]).reshape(3, 2, 2)
    clip = clip_of(
        yuv(10, "444"), [list(codes.repeat(16, 1).repeat(16, 2))],
        _Matrix=matrix, _Transfer=transfer, _Primaries=primaries, _Range=0,
    )  # fmt: skip
    out = there_and_back(clip)
    for i, (found, expected) in enumerate(zip(planes(out), codes, strict=True)):
        assert worst(found[::16, ::16], expected, 10, 0, i) <= 1
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
        out = there_and_back(clip, format=format)
        assert props_of(out)["_ChromaLocation"] == location
        for i, expected in enumerate([y, ramp, ramp[:, ::-1]]):
            found = planes(out)[i] / (256 if format is None else 1)
            assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("location", range(6))
def test_the_chroma_location_moves_chroma(location: int) -> None:
    clip = blank(vs.YUV420P8, _Matrix=6, _Range=0)
    edge = np.full((24, 32), 128)
    edge[12:, 16:] = 180
    clip = clip_of(clip.format, [[np.full((48, 64), 128), edge, edge]], _Matrix=6, _Range=0, _ChromaLocation=location)
    plain = clip.resize.Spline36(format=vs.RGBS, chromaloc_in=location)
    for found, expected in zip(planes(colour.to_rgb(colour.describe(clip))), planes(plain), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- properties, in general -----------------------------------------------------------------------------------------


@st.composite
def clips(draw: st.DrawFn) -> tuple[vs.VideoNode, dict[str, Any]]:
    """A clip of one flat in-gamut colour in any format that is supported, with properties of all kinds."""
    family = draw(st.sampled_from([vs.YUV, vs.YUV, vs.GRAY, vs.RGB]))
    sample_type = draw(st.sampled_from([vs.INTEGER, vs.INTEGER, vs.FLOAT]))
    bits = draw(st.integers(8, 16) if sample_type == vs.INTEGER else st.sampled_from([16, 32]))
    shifts = draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) if family == vs.YUV else (0, 0)
    form = core.query_video_format(family, sample_type, bits, *shifts)
    width = draw(st.integers(8 >> shifts[0], 80 >> shifts[0])) << shifts[0]
    height = draw(st.integers(8 >> shifts[1], 80 >> shifts[1])) << shifts[1]
    limits = draw(st.sampled_from([0, 1]))
    matrix = draw(st.sampled_from([*WEIGHTS])) if family != vs.RGB else 0
    if sample_type == vs.INTEGER and family == vs.YUV:
        values = in_gamut(1, bits, matrix, limits, seed=draw(st.integers(0, 2**32 - 1)))[:, 0]
    elif sample_type == vs.INTEGER:
        low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
        values = np.array(draw(st.lists(st.integers(low, high), min_size=3, max_size=3)))
    else:
        values = np.array(draw(st.lists(st.floats(0.25, 0.75, width=16), min_size=3, max_size=3)))
        if family == vs.YUV:  # values that RGB holds
            values[1:] = (values[1:] - 0.5) / 8
    own: dict[str, Any] = draw(
        st.dictionaries(
            st.from_regex(r"my_[A-Za-z0-9_]{0,15}[a-z]", fullmatch=True),
            st.one_of(
                st.integers(-(2**63), 2**63 - 1),
                st.floats(allow_nan=False),
                st.binary(max_size=20).map(b"\xff".__add__),
                st.lists(st.integers(-9, 9), min_size=2, max_size=4),
            ),
            max_size=4,
        )
    )
    aspect = draw(st.fractions(0, 64, max_denominator=99).filter(bool))
    own |= {"_SARNum": aspect.numerator, "_SARDen": aspect.denominator, "_PictType": "B"}
    frame = [
        np.full((height >> shifts[1] * (i > 0), width >> shifts[0] * (i > 0)), values[i])
        for i in range(form.num_planes)
    ]
    return clip_of(form, [frame], _Matrix=matrix, _Range=limits, **own), own


@settings(max_examples=150, deadline=None)
@given(clips(), st.integers(1, 3))
def test_any_flat_clip_comes_back_with_its_properties(made: tuple[vs.VideoNode, dict[str, Any]], scale: int) -> None:
    clip, own = made
    out = there_and_back(clip, scale)
    given_format, form = clip.format, out.format
    assert (out.width, out.height) == (clip.width * scale, clip.height * scale)
    assert (out.num_frames, out.fps) == (clip.num_frames, clip.fps)
    assert form == (given_format if given_format.sample_type == vs.FLOAT else given_format.replace(bits_per_sample=16))
    before, after = props_of(clip), props_of(out)
    for name in (*own, "_Matrix", "_Range", "_DurationNum", "_DurationDen"):
        assert after[name] == before[name]
    assert after["_FieldBased"] == 0
    subsampled = bool(form.subsampling_w or form.subsampling_h)
    assert after.get("_ChromaLocation") == (0 if subsampled else None)
    for i, (found, expected) in enumerate(zip(planes(out), planes(clip), strict=True)):
        if form.sample_type == vs.FLOAT:
            assert np.abs(found.astype(float) - float(expected[0, 0])).max() <= (
                1e-3 if form.bits_per_sample == 16 else 1e-5
            )
        else:
            chroma = int(given_format.color_family == vs.YUV) * i
            assert worst(found, expected[0, 0], given_format.bits_per_sample, before["_Range"], chroma) <= 1


@pytest.mark.parametrize("name", ["YUV444PS", "YUV420PS", "YUV420PH", "YUV444PH", "GRAYS", "GRAYH", "RGBS", "RGBH"])
def test_floats_stay_what_they_were(name: str) -> None:
    form = core.get_video_format(int(vs.PresetVideoFormat[name]))
    random = np.random.default_rng(5)
    kind = np.float16 if form.bits_per_sample == 16 else np.float32
    if form.color_family == vs.YUV:
        y = random.uniform(0.3, 0.7, (48, 64)).astype(kind)
        chroma = np.full((48 >> form.subsampling_h, 64 >> form.subsampling_w), 0.125, kind)
        frame = [y, chroma, -chroma]
    else:
        frame = [random.uniform(0, 1, (48, 64)).astype(kind) for _ in range(form.num_planes)]
    clip = clip_of(form, [frame], _Range=0, **({} if form.color_family == vs.RGB else {"_Matrix": 6}))
    out = there_and_back(clip)
    assert out.format.id == form.id
    step = 2**-11 if kind is np.float16 else 1e-6
    for found, expected in zip(planes(out), frame, strict=True):
        if form.color_family == vs.YUV or kind is np.float32:
            assert np.abs(found.astype(float) - expected.astype(float)).max() <= step
        else:
            np.testing.assert_array_equal(found, expected)


def test_half_floats_are_read_as_they_are() -> None:
    values = np.linspace(0, 1, 64 * 48).reshape(48, 64).astype(np.float16)
    rgb = colour.to_rgb(colour.describe(clip_of(core.get_video_format(vs.RGBH), [[values] * 3])))
    for plane in planes(rgb):
        np.testing.assert_array_equal(plane, values.astype(np.float32))


def test_rgb_floats_are_not_touched() -> None:
    values = np.array([-0.5, 0, 0.25, 1, 2, 7e-4, 1e6, 0.1], np.float32).repeat(8).reshape(8, 8)
    rgb = colour.to_rgb(colour.describe(clip_of(core.get_video_format(vs.RGBS), [[values] * 3])))
    for plane in planes(rgb):
        np.testing.assert_array_equal(plane, values)


# ---- the output's format, matrix and range --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "size", "tags", "asked", "scale", "expected"),
    [
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, None, 2, 1),  # SD grows to HD
        (vs.YUV420P8, (720, 480), {}, None, 2, 1),
        (vs.YUV420P8, (720, 576), {}, "auto", 2, 1),
        (vs.GRAY8, (720, 576), {}, "auto", 2, 1),
        (vs.YUV420P8, (720, 480), {"_Matrix": 4}, None, 2, 1),
        (vs.YUV420P8, (720, 480), {"_Matrix": 7}, None, 2, 1),
        (vs.YUV420P8, (720, 480), {"_Matrix": 9}, None, 2, 9),
        (vs.YUV420P8, (720, 480), {"_Matrix": 8}, None, 2, 8),
        (vs.YUV420P8, (720, 480), {"_Matrix": 1}, None, 2, 1),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "source", 2, 6),
        (vs.YUV420P8, (720, 576), {}, "source", 2, 5),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, None, 1, 6),  # SD stays SD
        (vs.YUV420P8, (320, 240), {"_Matrix": 6}, None, 2, 6),
        (vs.YUV420P8, (1280, 720), {"_Matrix": 6}, None, 2, 6),  # HD that is 170m means it
        (vs.RGB24, (720, 480), {}, None, 2, 0),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "240M", 2, 7),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "601", 2, 6),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "170m", 2, 6),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "2020", 2, 9),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "2020ncl", 2, 9),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "ycgco", 2, 8),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "fcc", 2, 4),
        (vs.YUV420P8, (720, 480), {"_Matrix": 6}, "470BG", 2, 5),
        (vs.YUV420P8, (720, 480), {"_Matrix": 1}, "5", 2, 5),
        (vs.GRAY8, (720, 480), {}, "9", 2, 9),
    ],
)
def test_the_output_matrix(
    format: int, size: tuple[int, int], tags: dict[str, int], asked: str | None, scale: int, expected: int
) -> None:
    clip = blank(format, *size, _Range=0, **tags)
    target = colour.target(colour.describe(clip), scale, None, asked)
    assert target.matrix == expected
    assert props_of(there_and_back(clip, scale, matrix=asked))["_Matrix"] == expected


@pytest.mark.parametrize(("size", "expected"), [((640, 360), 1), ((300, 200), 6)])
@pytest.mark.parametrize("asked", [None, "source"])
def test_rgb_to_yuv_takes_the_usual_matrix(size: tuple[int, int], expected: int, asked: str | None) -> None:
    target = colour.target(colour.describe(blank(vs.RGB24, *size)), 2, "YUV420P10", asked)
    assert (target.matrix, target.range, target.chroma) == (expected, 0, 0)


@pytest.mark.parametrize(
    ("given_format", "tags", "asked", "expected", "matrix", "limits", "location"),
    [
        (vs.YUV420P8, {}, "YUV420P10", vs.YUV420P10, 6, 0, 0),
        (vs.YUV420P8, {"_Range": 1}, "yuv420p10", vs.YUV420P10, 6, 1, 0),
        (vs.YUV420P8, {"_ChromaLocation": 2}, " YUV422P16 ", vs.YUV422P16, 6, 0, 2),
        (vs.YUV420P8, {}, str(int(vs.YUV444P12)), vs.YUV444P12, 6, 0, None),
        (vs.YUV420P8, {}, "RGB24", vs.RGB24, 0, 1, None),
        (vs.YUV420P8, {"_Range": 1}, "RGBS", vs.RGBS, 0, 1, None),
        (vs.YUV420P8, {}, "GRAY8", vs.GRAY8, 6, 0, None),
        (vs.GRAY8, {"_Range": 1}, "YUV420P10", vs.YUV420P10, 6, 1, 0),
        (vs.GRAY16, {}, "RGBH", vs.RGBH, 0, 1, None),
        (vs.RGB24, {}, "YUV420P10", vs.YUV420P10, 6, 0, 0),
        (vs.RGB24, {"_Range": 0}, "RGB30", vs.RGB30, 0, 0, None),
        (vs.RGBS, {}, "RGB24", vs.RGB24, 0, 1, None),
        (vs.RGBS, {"_Range": 0}, "RGB24", vs.RGB24, 0, 0, None),
        (vs.RGB24, {"_Range": 0}, "RGBS", vs.RGBS, 0, 0, None),
    ],
)
def test_the_output_format(
    given_format: int, tags: dict[str, int], asked: str, expected: int, matrix: int, limits: int, location: int | None
) -> None:
    clip = blank(given_format, **tags)
    family, bits = clip.format.color_family, clip.format.bits_per_sample
    values = np.array([0.5, 0.25, 0.75] if family == vs.RGB else [0.5, 0.0, 0.0])[: clip.format.num_planes]
    if clip.format.sample_type == vs.INTEGER:
        limits_in = tags.get("_Range", int(family == vs.RGB))
        codes = [to_codes(v, bits, limits_in, family == vs.YUV and i > 0) for i, v in enumerate(values)]
        clip = core.std.BlankClip(clip, color=[round(float(code)) for code in codes])
    else:
        clip = core.std.BlankClip(clip, color=values.tolist())
    clip = clip.std.SetFrameProps(**tags) if tags else clip
    out = there_and_back(clip, format=asked)
    assert out.format.id == expected
    after = props_of(out)
    assert (after["_Matrix"], after["_Range"], after.get("_ChromaLocation")) == (matrix, limits, location)
    # and it holds the colour that it was, read with its own tags
    rgb = [plane[0, 0] for plane in planes(out.resize.Bicubic(format=vs.RGBS))]
    np.testing.assert_allclose(rgb, values if family == vs.RGB else [0.5] * 3, atol=0.006)


@pytest.mark.parametrize("bits", [8, 10, 14])
def test_few_bits_are_dithered(bits: int) -> None:
    # A slope of three codes over the width: rounding would make bands; dither keeps the mean of every part.
    slope = (0.5 + np.linspace(0, 3, 256) / (2**bits - 1))[None].repeat(64, 0)
    clip = clip_of(core.get_video_format(vs.RGBS), [[slope] * 3])
    out = there_and_back(clip, format=str(core.query_video_format(vs.RGB, vs.INTEGER, bits, 0, 0).id))
    for plane in planes(out):
        error = plane - slope * (2**bits - 1)
        assert np.abs(error).max() <= 1
        assert np.abs(error[8:].reshape(-1, 32, 8).mean((0, 2))).max() <= 0.1


def test_what_the_network_gets_says_what_it_is() -> None:
    for clip in (blank(vs.YUV420P8, _Matrix=6, _Range=0), blank(vs.RGB24, _Range=0), blank(vs.GRAY8)):
        given = props_of(colour.to_rgb(colour.describe(clip)))
        assert (given["_Matrix"], given["_Range"]) == (0, 1)


@pytest.mark.parametrize(
    "asked",
    ["", "YUV420P99", "mp4", "0", "999999", "99999999999999999999", "-1", "GRAY32", "YUV420P17", "NONE", "²", "1.5"],
)
def test_formats_that_cannot_be_made(asked: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        colour.target(colour.describe(blank()), 2, asked, None)
    text = str(caught.value)
    assert text.startswith(f"format={asked!r} is not a format that can be made")
    assert "YUV420P10" in text
    assert str(int(vs.YUV420P10)) in text


def test_a_format_that_cannot_be_made_is_corrected() -> None:
    with pytest.raises(ArgumentError, match=r"did you mean YUV420P16\?"):
        colour.target(colour.describe(blank()), 2, "YUV420_P16", None)


@pytest.mark.parametrize("number", [int(core.query_video_format(vs.YUV, vs.INTEGER, 8, 3, 0).id), int(vs.GRAY32)])
def test_format_numbers_that_zimg_cannot_make(number: int) -> None:
    with pytest.raises(ArgumentError, match=f"^format='{number}' is not a format"):
        colour.target(colour.describe(blank()), 2, str(number), None)


@pytest.mark.parametrize("asked", ["", "bt709", "0", "2", "3", "10", "14", "99", "-1", "rgb", "2020cl"])
def test_matrices_that_are_unknown(asked: str) -> None:
    if not asked:
        assert colour.target(colour.describe(blank(_Matrix=6)), 1, None, asked).matrix == 6
        return
    with pytest.raises(ArgumentError) as caught:
        colour.target(colour.describe(blank()), 2, None, asked)
    assert str(caught.value).startswith(f"matrix={asked!r} is unknown; give auto, source, 709")


@pytest.mark.parametrize(("given_format", "asked"), [(vs.RGB24, None), (vs.YUV420P8, "RGBS")])
def test_a_matrix_for_rgb_makes_no_sense(given_format: int, asked: str | None) -> None:
    with pytest.raises(ArgumentError, match=r"^matrix='709' makes no sense for the RGB output .*leave it out"):
        colour.target(colour.describe(blank(given_format)), 2, asked, "709")


def test_a_format_that_does_not_go_with_the_size() -> None:
    source = colour.describe(blank(vs.RGB24, 853, 480))
    with pytest.raises(ArgumentError) as caught:
        colour.target(source, 1, "YUV420P8", None)
    text = str(caught.value)
    assert text.startswith("format='YUV420P8' is not possible at 853×480 pixels: YUV420P8 needs a width")
    assert "core.std.Crop" in text
    assert colour.target(source, 2, "YUV420P8", None).format.id == vs.YUV420P8


# ---- clips and frames that are refused ------------------------------------------------------------------------------


def refused_clip(name: str) -> vs.VideoNode:
    match name:
        case "variable size":
            return core.std.Splice([blank(width=64), blank(width=80)], mismatch=True)
        case "variable format":
            return core.std.Splice([blank(vs.YUV420P8), blank(vs.YUV444P8)], mismatch=True)
        case "32 bit":
            return blank(vs.GRAY32)
        case "17 bit":
            return blank(core.query_video_format(vs.YUV, vs.INTEGER, 17, 1, 1).id)
        case "an eighth":
            return blank(core.query_video_format(vs.YUV, vs.INTEGER, 8, 3, 0).id)
        case "4×4":
            return blank(vs.RGB24, 4, 4)
        case "flat":
            return blank(vs.GRAY8, 1000, 7)
    raise ValueError(name)


@pytest.mark.parametrize(
    ("name", "start", "cure"),
    [
        ("variable size", "the clip has a variable size", "core.resize."),
        ("variable format", "the clip has a variable format", "core.resize."),
        ("32 bit", "the format Gray32 is not supported", "format=vs.YUV444P16"),
        ("17 bit", "the format YUV420P17 is not supported", "format=vs.YUV444P16"),
        ("an eighth", "the format YUVssw3ssh0P8 is not supported", "format=vs.YUV444P16"),
        ("4×4", "the clip is 4×4 pixels", "core.std.AddBorders"),
        ("flat", "the clip is 1000×7 pixels", "core.std.AddBorders"),
    ],
)
def test_clips_that_are_refused(name: str, start: str, cure: str) -> None:
    with pytest.raises(ClipError) as caught:
        colour.describe(refused_clip(name))
    assert str(caught.value).startswith(start)
    assert cure in str(caught.value)


def test_a_first_frame_that_cannot_be_read_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    clip = blank(length=3, _Matrix=1, _Range=1)

    def fail(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n == 0:
            raise RuntimeError("sector 0 is scratched")
        return f

    out = there_and_back(core.std.ModifyFrame(clip, clip, fail))
    with pytest.raises(vs.Error, match="sector 0 is scratched"):
        out.get_frame(0)
    # What is not known of the first frame is guessed for the output; the others are still read by their own tags.
    after = props_of(out, 1)
    assert (after["_Matrix"], after["_Range"]) == (6, 0)
    np.testing.assert_allclose([p[0, 0] / 256 for p in planes(out, 1)], [16, 128, 128], atol=20)
    assert caplog.messages == []


def test_it_works_inside_a_frame_callback() -> None:
    clip = blank(length=2, _Matrix=6, _Range=0)
    nested = core.std.FrameEval(blank(vs.YUV420P16, length=2), lambda n: there_and_back(clip))
    assert props_of(nested)["_Matrix"] == 6


def test_vspipe_shows_the_sentence(tmp_path: Path) -> None:
    script = tmp_path / "mixed.vpy"
    script.write_text(
        "import vapoursynth as vs\nfrom vapoursynth import core\nfrom vsfdatrd import colour\n"
        "clip = core.std.BlankClip(width=64, height=48, format=vs.YUV420P8, length=2)\n"
        "clip = clip + core.std.SetFieldBased(clip, 2)\n"
        "source = colour.describe(clip)\n"
        "colour.deliver(colour.to_rgb(source), colour.target(source, 1, None, None)).set_output()\n",
        encoding="utf-8",
    )
    done = subprocess.run([vspipe(), "-c", "y4m", str(script), "-"], capture_output=True, check=False)
    words = done.stderr.decode()
    assert done.returncode != 0
    assert done.stdout.startswith(b"YUV4MPEG2 C420p16 W64 H48 ")
    assert "fdatrd.upscale: frame 2 is interlaced (_FieldBased is 2, top field first). Undo the telecine" in words
    assert "Traceback" not in words
    assert words.count("the clip does not say its matrix and range; taken as 170m and limited") == 1


# ---- real clips -----------------------------------------------------------------------------------------------------


def means(clip: vs.VideoNode, frames: Sequence[int]) -> Array:
    """Mean of each plane of some frames, as a share of the sample range."""
    peak = 2**clip.format.bits_per_sample - 1
    return np.array([[plane.mean() / peak for plane in planes(clip, n)] for n in frames])


@pytest.mark.parametrize("limits", [0, 1])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_drawn_clip_keeps_its_means(subsampling: str, limits: int) -> None:
    y, x = np.mgrid[0:96, 0:128] / 16
    rgb = [0.5 + 0.3 * np.sin(x + i) * np.cos(y - i) + 0.1 * (np.floor(x + y) % 2) for i in range(3)]
    drawn = clip_of(core.get_video_format(vs.RGBS), [rgb])
    clip = drawn.resize.Bicubic(format=yuv(8, subsampling).id, matrix=5, range=limits)
    source = colour.describe(clip)
    doubled = colour.to_rgb(source).resize.Bicubic(256, 192).std.Expr("x 0 max 1 min")
    for matrix in (5, 1, 8):
        out = colour.deliver(doubled, colour.target(source, 2, None, str(matrix)))
        expected = clip.resize.Lanczos(256, 192, format=out.format.id, matrix=matrix)
        assert np.abs(means(out, [0]) - means(expected, [0])).max() <= 1 / 255


@pytest.mark.parametrize(
    ("name", "matrix", "sar"),
    [
        ("ntsc_film_480p.mpg", 6, (8, 9)),
        ("ntsc_telecined_480i.mpg", 6, (8, 9)),
        ("pal_576p.mpg", 5, (16, 15)),
        ("ld_square_720x540.mkv", 6, (1, 1)),
        ("popeye_dvd_720x478_2997p.mkv", 6, (8, 9)),
    ],
)
def test_real_clips_keep_their_colours(shared: Path, name: str, matrix: int, sar: tuple[int, int]) -> None:
    clip = core.bs.VideoSource(str(shared / "data" / "clips" / name), cachemode=0)
    if "telecined" in name:
        with pytest.raises(ClipError, match=r"^frame 0 is interlaced \(_FieldBased is 2, top field first\)"):
            colour.describe(clip)
        clip = core.vivtc.VDecimate(core.vivtc.VFM(clip, order=1))
    source = colour.describe(clip)
    assert (source.matrix, source.range, source.chroma) == (matrix, 0, 0)
    doubled = colour.to_rgb(source).resize.Bicubic(2 * clip.width, 2 * clip.height).std.Expr("x 0 max 1 min")
    frames = (0, 7, min(60, clip.num_frames - 1))
    for asked, expected_matrix in ((None, 1), ("source", matrix)):
        out = colour.deliver(doubled, colour.target(source, 2, None, asked))
        assert (out.num_frames, out.fps, out.format.id) == (clip.num_frames, clip.fps, vs.YUV420P16)
        expected = clip.resize.Lanczos(2 * clip.width, 2 * clip.height, format=vs.YUV420P16, matrix=expected_matrix)
        assert np.abs(means(out, frames) - means(expected, frames)).max() <= 1 / 255
        before, after = props_of(clip), props_of(out)
        assert (after["_SARNum"], after["_SARDen"]) == sar
        assert (after["_Matrix"], after["_Range"], after["_ChromaLocation"]) == (expected_matrix, 0, 0)
        assert {k: v for k, v in after.items() if k != "_Matrix"} == {k: v for k, v in before.items() if k != "_Matrix"}

"""The output's format, matrix and range."""

import numpy as np
import pytest
import vapoursynth as vs

from tests.clips import blank, clip_of, core, planes, props_of, round_trip, to_codes
from vsfdatrd.errors import ArgumentError
from vsfdatrd.video import color as color


@pytest.mark.parametrize(
    ("format", "size", "tags", "arguments", "scale", "expected"),
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
    format: int, size: tuple[int, int], tags: dict[str, int], arguments: str | None, scale: int, expected: int
) -> None:
    clip = blank(format, *size, _Range=0, **tags)
    target = color.output_spec(color.inspect_clip(clip), scale, None, arguments)
    assert target.matrix == expected
    assert props_of(round_trip(clip, scale, matrix=arguments))["_Matrix"] == expected


@pytest.mark.parametrize(("size", "expected"), [((640, 360), 1), ((300, 200), 6)])
@pytest.mark.parametrize("arguments", [None, "source"])
def test_rgb_to_yuv_takes_the_usual_matrix(size: tuple[int, int], expected: int, arguments: str | None) -> None:
    target = color.output_spec(color.inspect_clip(blank(vs.RGB24, *size)), 2, "YUV420P10", arguments)
    assert (target.matrix, target.range, target.chroma) == (expected, 0, 0)


@pytest.mark.parametrize(
    ("given_format", "tags", "arguments", "expected", "matrix", "limits", "location"),
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
    given_format: int,
    tags: dict[str, int],
    arguments: str,
    expected: int,
    matrix: int,
    limits: int,
    location: int | None,
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
    out = round_trip(clip, format=arguments)
    assert out.format.id == expected
    after = props_of(out)
    assert (after["_Matrix"], after["_Range"], after.get("_ChromaLocation")) == (matrix, limits, location)
    # and it holds the color that it was, read with its own tags
    rgb = [plane[0, 0] for plane in planes(out.resize.Bicubic(format=vs.RGBS))]
    np.testing.assert_allclose(rgb, values if family == vs.RGB else [0.5] * 3, atol=0.006)


@pytest.mark.parametrize("bits", [8, 10, 14])
def test_few_bits_are_dithered(bits: int) -> None:
    # A slope of three codes over the width: rounding would make bands; dither keeps the mean of every part.
    slope = (0.5 + np.linspace(0, 3, 256) / (2**bits - 1))[None].repeat(64, 0)
    clip = clip_of(core.get_video_format(vs.RGBS), [[slope] * 3])
    out = round_trip(clip, format=str(core.query_video_format(vs.RGB, vs.INTEGER, bits, 0, 0).id))
    for plane in planes(out):
        error = plane - slope * (2**bits - 1)
        assert np.abs(error).max() <= 1
        assert np.abs(error[8:].reshape(-1, 32, 8).mean((0, 2))).max() <= 0.1


def test_what_the_network_gets_says_what_it_is() -> None:
    for clip in (blank(vs.YUV420P8, _Matrix=6, _Range=0), blank(vs.RGB24, _Range=0), blank(vs.GRAY8)):
        given = props_of(color.to_rgb(color.inspect_clip(clip)))
        assert (given["_Matrix"], given["_Range"]) == (0, 1)


@pytest.mark.parametrize(
    "arguments",
    ["", "YUV420P99", "mp4", "0", "999999", "99999999999999999999", "-1", "GRAY32", "YUV420P17", "NONE", "²", "1.5"],
)
def test_formats_that_cannot_be_made(arguments: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        color.output_spec(color.inspect_clip(blank()), 2, arguments, None)
    text = str(caught.value)
    assert text.startswith(f"format={arguments!r} is not a supported output format")
    assert "YUV420P10" in text
    assert str(int(vs.YUV420P10)) in text


def test_a_format_that_cannot_be_made_is_corrected() -> None:
    with pytest.raises(ArgumentError, match=r"did you mean 'YUV420P16'\?"):
        color.output_spec(color.inspect_clip(blank()), 2, "YUV420_P16", None)


@pytest.mark.parametrize("number", [int(core.query_video_format(vs.YUV, vs.INTEGER, 8, 3, 0).id), int(vs.GRAY32)])
def test_format_numbers_that_zimg_cannot_make(number: int) -> None:
    with pytest.raises(ArgumentError, match=f"^format='{number}' is not a supported output format"):
        color.output_spec(color.inspect_clip(blank()), 2, str(number), None)


@pytest.mark.parametrize("arguments", ["", "bt709", "0", "2", "3", "10", "14", "99", "-1", "rgb", "2020cl"])
def test_matrices_that_are_unknown(arguments: str) -> None:
    if not arguments:
        assert color.output_spec(color.inspect_clip(blank(_Matrix=6)), 1, None, arguments).matrix == 6
        return
    with pytest.raises(ArgumentError) as caught:
        color.output_spec(color.inspect_clip(blank()), 2, None, arguments)
    assert str(caught.value).startswith(f"matrix={arguments!r} is unknown; give auto, source, 709")


@pytest.mark.parametrize(("given_format", "arguments"), [(vs.RGB24, None), (vs.YUV420P8, "RGBS")])
def test_a_matrix_for_rgb_makes_no_sense(given_format: int, arguments: str | None) -> None:
    with pytest.raises(ArgumentError, match=r"^matrix='709' makes no sense for the RGB output .*leave it out"):
        color.output_spec(color.inspect_clip(blank(given_format)), 2, arguments, "709")


def test_a_format_that_does_not_go_with_the_size() -> None:
    source = color.inspect_clip(blank(vs.RGB24, 853, 480))
    with pytest.raises(ArgumentError) as caught:
        color.output_spec(source, 1, "YUV420P8", None)
    text = str(caught.value)
    assert text.startswith("format='YUV420P8' is not possible at 853×480 pixels: YUV420P8 needs a width")
    assert "core.std.Crop" in text
    assert color.output_spec(source, 2, "YUV420P8", None).format.id == vs.YUV420P8

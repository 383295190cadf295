"""Color properties of frames: defaults, log messages, and refused frames."""

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import pytest
import vapoursynth as vs

from tests.clips import blank, core, decode, planes, props_of, round_trip
from vsfdatrd.errors import ClipError
from vsfdatrd.video import color as color


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "vsfdatrd"):
        yield


# ---- what frames say of themselves ----------------------------------------------------------------------------------


def test_every_frame_is_read_by_its_own_tags() -> None:
    codes = np.array([90, 110, 150])
    tags: list[dict[str, int]] = [
        {"_Matrix": 1, "_Range": 0},
        {"_Matrix": 6, "_Range": 1},
        {},
        {"_Matrix": 9},
        {"_Range": 1},
        {"_Matrix": 2},
        {"_Matrix": 8, "_Range": 9},
        {"_Matrix": 1, "_Range": 0, "_Transfer": 0, "_Primaries": 3},
        {"_Matrix": 1, "_Range": 0, "_ChromaLocation": 6},
    ]
    part = core.std.BlankClip(width=64, height=48, format=vs.YUV420P8, length=1, color=codes.tolist())
    clip = core.std.Splice([part.std.SetFrameProps(**tag) if tag else part for tag in tags])
    source = color.inspect_clip(clip)
    rgb = color.to_rgb(source)
    out = color.convert_output(rgb, color.output_spec(source, 1, None, None))
    for n, tag in enumerate(tags):
        matrix = tag.get("_Matrix", 2) if tag.get("_Matrix", 2) != 2 else 6
        limits = tag["_Range"] if tag.get("_Range") in (0, 1) else 0
        expected = decode(codes[:, None], 8, matrix, limits)[:, 0]
        np.testing.assert_allclose([plane[0, 0] for plane in planes(rgb, n)], expected, atol=2e-6)
        # Whatever they were, all come out as the first frame was, and say so.
        after = props_of(out, n)
        assert (after["_Matrix"], after["_Range"], after["_ChromaLocation"]) == (1, 0, 0)
        back = [plane[0, 0] for plane in planes(out, n)]
        np.testing.assert_allclose(decode(np.array(back)[:, None], 16, 1, 0)[:, 0], expected, atol=2e-4)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (720, 480, 6),
        (720, 540, 6),
        (640, 360, 6),
        (720, 542, 5),
        (720, 576, 5),
        (768, 576, 5),
        (720, 578, 1),
        (1278, 540, 6),
        (1280, 536, 1),
        (1280, 720, 1),
        (1920, 1080, 1),
        (8, 8, 6),
    ],
)
def test_a_missing_matrix_follows_from_the_size(width: int, height: int, expected: int) -> None:
    for tags in ({}, {"_Matrix": 2}):
        clip = core.std.BlankClip(width=width, height=height, format=vs.YUV420P8, length=1, color=[90, 110, 150])
        source = color.inspect_clip(clip.std.SetFrameProps(**tags) if tags else clip)
        assert (source.matrix, source.range, source.chroma) == (expected, 0, 0)
        result = [plane[0, 0] for plane in planes(color.to_rgb(source))]
        np.testing.assert_allclose(result, decode(np.array([[90], [110], [150]]), 8, expected, 0)[:, 0], atol=2e-6)


@pytest.mark.parametrize("old", [0, 1])
def test_the_older_color_range_counts(old: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(DeprecationWarning, match="_ColorRange"):
        clip = core.std.SetFrameProps(blank(vs.YUV420P8, _Matrix=6), _ColorRange=old)
    source = color.inspect_clip(clip)
    assert source.range == 1 - old
    expected = planes(blank(vs.YUV420P8, _Matrix=6, _Range=1 - old).resize.Spline36(format=vs.RGBS))
    np.testing.assert_array_equal(planes(color.to_rgb(source)), expected)
    assert caplog.messages == []


@pytest.mark.parametrize("matrix", [1, 2, 6, 9, 14, 77])
@pytest.mark.parametrize("format", [vs.RGB24, vs.RGB48, vs.RGBS, vs.RGBH])
def test_a_yuv_matrix_left_on_rgb_does_no_harm(format: int, matrix: int) -> None:
    out = round_trip(blank(format, _Matrix=matrix, _ChromaLocation=1))
    after = props_of(out)
    assert after["_Matrix"] == 0
    assert "_ChromaLocation" not in after


@pytest.mark.parametrize("transfer", [None, *range(-1, 21)])
def test_transfer_and_primaries_are_passed_on(transfer: int | None) -> None:
    tags = {} if transfer is None else {"_Transfer": transfer, "_Primaries": transfer}
    clip = blank(vs.YUV420P8, _Matrix=6, _Range=0, **tags)
    out = props_of(round_trip(clip))
    known_transfer = {1, 2, *range(4, 19)}
    known_primaries = {1, 2, *range(4, 13), 22}
    assert out.get("_Transfer", 2) == (transfer if transfer in known_transfer else 2)
    assert out.get("_Primaries", 2) == (transfer if transfer in known_primaries else 2)
    plain = blank(vs.YUV420P8, _Matrix=6, _Range=0).resize.Spline36(format=vs.RGBS)
    np.testing.assert_array_equal(planes(color.to_rgb(color.inspect_clip(clip))), planes(plain))


def test_properties_that_are_no_numbers_say_nothing() -> None:
    clip = blank(vs.YUV420P8, _Matrix="bt601", _Range=[0, 1], _FieldBased="no", _Transfer=1.5, _ChromaLocation=b"\xff")
    source = color.inspect_clip(clip)
    assert (source.matrix, source.range, source.chroma) == (6, 0, 0)
    after = props_of(round_trip(clip))
    assert (after["_Matrix"], after["_Range"], after["_Transfer"], after["_FieldBased"]) == (6, 0, 2, 0)


def test_what_converts_is_what_zimg_converts() -> None:
    clip = core.std.BlankClip(width=16, height=16, format=vs.YUV444P8, length=1)
    pairs = list(itertools.product(range(20), range(24)))
    few = [(1, 1), (2, 2), (16, 9), (18, 9), (2, 9), (13, 2)]
    for matrix in range(-1, 21):
        for transfer, primaries in pairs if matrix in (10, 12, 13, 14) else few:
            tagged = clip.std.SetFrameProps(_Matrix=matrix, _Transfer=transfer, _Primaries=primaries, _Range=0)
            # Reserved numbers mean nothing, and what is not converted need not be known.
            known = {1, 2, *range(4, 19)}
            plain = tagged if transfer in known else tagged.std.SetFrameProps(_Transfer=2)
            if primaries not in {1, 2, *range(4, 13), 22}:
                plain = plain.std.SetFrameProps(_Primaries=2)
            if matrix == 2:
                plain = plain.std.SetFrameProps(_Matrix=6)
            try:
                expected = planes(plain.resize.Bicubic(format=vs.RGBS))
            except vs.Error:
                source = color.inspect_clip(tagged)
                with pytest.raises(ClipError):
                    color.output_spec(source, 1, None, None)
            else:
                np.testing.assert_array_equal(planes(color.to_rgb(color.inspect_clip(tagged))), expected)


# ---- the log --------------------------------------------------------------------------------------------------------


def test_a_guess_is_logged_once_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    out = round_trip(blank(vs.YUV420P8, 720, 576, length=5))
    for n in range(5):
        out.get_frame(n).close()
    assert len(caplog.messages) == 1
    for words in (
        "the clip does not say its matrix and range",
        "470bg and limited",
        "720×576",
        "core.std.SetFrameProps(clip, _Matrix=5, _Range=0)",
    ):
        assert words in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize(
    ("format", "tags", "missing"),
    [
        (vs.YUV420P8, {"_Range": 0}, "matrix"),
        (vs.YUV420P8, {"_Matrix": 6}, "range"),
        (vs.YUV420P8, {"_Matrix": 6, "_Range": 0}, None),
        (vs.YUV444PS, {"_Matrix": 6}, None),
        (vs.YUV444PS, {}, "matrix"),
        (vs.GRAY8, {}, "range"),
        (vs.GRAYS, {}, None),
        (vs.RGB24, {}, None),
        (vs.RGB24, {"_Matrix": 1}, None),
    ],
)
def test_only_what_was_guessed_is_logged(
    format: int, tags: dict[str, int], missing: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    round_trip(blank(format, **tags)).get_frame(0).close()
    assert len(caplog.messages) == (missing is not None)
    if missing:
        assert f"does not say its {missing};" in caplog.messages[0]


def test_a_later_guess_is_logged_with_its_frame(caplog: pytest.LogCaptureFixture) -> None:
    clip = blank(length=2, _Matrix=1, _Range=0) + blank(length=3)
    out = round_trip(clip)
    assert caplog.messages == []
    for n in range(5):
        out.get_frame(n).close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("frame 2 does not say its matrix and range;")


# ---- frames that are refused ----------------------------------------------------------------------------------------


INTERLACED = " is interlaced (_FieldBased is "
NO_RGB = " cannot be converted to RGB: it is YUV, and its _Matrix is "
REFUSED_FRAMES = [
    (vs.YUV420P8, {"_FieldBased": 1}, INTERLACED + "1, bottom field first).", "core.vivtc.VFM(clip, order=0)"),
    (vs.YUV420P8, {"_FieldBased": 2}, INTERLACED + "2, top field first).", "core.std.SetFieldBased(clip, 0)"),
    (vs.RGB24, {"_FieldBased": 2}, INTERLACED + "2", "core.bwdif.Bwdif(clip, field=1)"),
    (vs.GRAYS, {"_FieldBased": 2}, INTERLACED + "2", "core.vivtc.VFM(clip, order=1)"),
    (vs.YUV444P8, {"_Matrix": 0}, NO_RGB + "0 (rgb;", "SetFrameProps(clip, _Matrix=6)"),
    (vs.YUV420P8, {"_Matrix": 10}, NO_RGB + "10 (2020cl;", "_Matrix=6)"),
    (vs.YUV420P8, {"_Matrix": 12}, NO_RGB + "12 (chromancl;", "_Matrix=6)"),
    (vs.YUV420P8, {"_Matrix": 14, "_Transfer": 1}, NO_RGB + "14 (ictcp; with _Transfer 1", "_Matrix=6)"),
    (vs.YUV420P8, {"_Matrix": 99}, NO_RGB + "99 (unknown;", "170m, as is usual for 64×48"),
]


@pytest.mark.parametrize(("format", "tags", "text", "cure"), REFUSED_FRAMES)
def test_frames_that_are_refused(format: int, tags: dict[str, int], text: str, cure: str) -> None:
    bad = blank(format, **tags)
    with pytest.raises(ClipError) as caught:
        color.output_spec(color.inspect_clip(bad), 1, None, None)
    assert str(caught.value).startswith(f"frame 0{text}")
    assert cure in str(caught.value)

    out = round_trip(blank(format, length=3) + bad + blank(format))
    for n in (3, 0, 4):
        if n == 3:
            with pytest.raises(vs.Error) as failed:
                out.get_frame(n)
            assert str(failed.value).startswith(f"fdatrd.upscale: frame 3{text}")
            assert cure in str(failed.value)
            assert "Traceback" not in str(failed.value)
        else:
            out.get_frame(n).close()

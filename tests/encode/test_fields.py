"""Fields of every size and format: matched, deinterlaced, or left alone where lines are drawn."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from numpy.typing import NDArray

from tests.clips import clip_of
from vsfdatrd.encode import field_detection, script
from vsfdatrd.encode.crop import Borders
from vsfdatrd.encode.drawn_lines import are_drawn
from vsfdatrd.encode.field_detection import matched_format, to_eight_bits
from vsfdatrd.errors import ArgumentError

type Luma = NDArray[np.uint8]

NTSC = Fraction(30000, 1001)
FORMS = {
    "4:2:0": vs.YUV420P8,
    "4:2:2": vs.YUV422P8,
    "4:1:1": vs.YUV411P8,
    "4:4:0": vs.YUV440P8,
    "4:4:4": vs.YUV444P8,
    "4:1:0": vs.YUV410P8,
    "gray": vs.GRAY8,
    "4:2:2, 10 bit": vs.YUV422P10,
    "4:2:0, 10 bit": vs.YUV420P10,
    "gray, 16 bit": vs.GRAY16,
    "4:4:4, float": vs.YUV444PS,
}


def pictures(count: int, height: int, width: int = 96) -> list[Luma]:
    """Bars that move sideways steadily, with adjacent lines that differ almost everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    return [(60 + ((x + 7 * n) // 12 % 2) * 90 + y // 9 % 2 * 40).astype(np.uint8) for n in range(count)]


def telecined(film: Sequence[Luma]) -> list[Luma]:
    """Five frames of each four, top field first: A A, B B, B C, C D, D D."""
    out = []
    for a, b, c, d in zip(*(film[i::4] for i in range(4)), strict=True):
        for top, bottom in ((a, a), (b, b), (b, c), (c, d), (d, d)):
            frame = top.copy()
            frame[1::2] = bottom[1::2]
            out.append(frame)
    return out


def interlaced(film: Sequence[Luma]) -> list[Luma]:
    """One frame of each two, the lines of the second picture between those of the first."""
    out = []
    for top, bottom in zip(film[::2], film[1::2], strict=True):
        frame = top.copy()
        frame[1::2] = bottom[1::2]
        out.append(frame)
    return out


def clip(frames: Sequence[Luma], form: int = vs.GRAY8, field: int = 2) -> vs.VideoNode:
    """A clip of some format, whose chroma is gray, with frames marked as interlaced."""
    gray = clip_of(vs.core.get_video_format(vs.GRAY8), [[frame] for frame in frames])
    full = gray.resize.Point(format=form, matrix=6) if form != vs.GRAY8 else gray
    return full.std.SetFrameProps(_FieldBased=field, _Matrix=6)


def prepared(source: vs.VideoNode, found: field_detection.Fields) -> Any:
    """Run the field processing of the script on a clip instead of a file."""
    from pathlib import Path

    text = script.preparation_script(Path("/film.mkv"), 0, None, found, Borders(), "0")
    lines = [line if "bs.VideoSource" not in line else "clip = source" for line in text.splitlines()]
    names: dict[str, Any] = {"source": source}
    exec("\n".join(lines), names)
    return names["clip"]


def luma(node: Any, number: int) -> NDArray[np.float64]:
    gray = node.std.ShufflePlanes(0, vs.GRAY).resize.Point(format=vs.GRAY8)
    with gray.get_frame(number) as frame:
        return np.array(frame[0]).astype(float)


def assert_gray(node: Any, number: int) -> None:
    """Chroma is written to its last line."""
    with node.get_frame(number) as frame:
        for plane in range(1, node.format.num_planes):
            values = np.asarray(frame[plane]).astype(float)
            assert np.ptp(values) == 0, plane


@pytest.mark.parametrize("height", [64, 66, 62])
@pytest.mark.parametrize("form", FORMS)
def test_telecined_film_is_restored_in_every_format(form: str, height: int) -> None:
    """Heights of 2 modulo 4 cannot be resized by fields: 486 and 478 lines are common in captures."""
    if form == "4:1:0":
        height &= ~3  # chroma has a line of four
    film = pictures(20, height)
    source = clip(telecined(film), FORMS[form])
    found = field_detection.choose_fields(source, NTSC, "auto")
    assert found.kind == "ivtc", found.why
    restored = prepared(source, found)
    assert restored.num_frames == 20
    assert restored.format.id == FORMS[form]
    for n in range(2, 18):
        assert np.abs(luma(restored, n) - film[n]).mean() < 1, n
        assert_gray(restored, n)


@pytest.mark.parametrize("form", FORMS)
def test_video_is_deinterlaced_in_every_format(form: str) -> None:
    height = 64 if form == "4:1:0" else 66
    source = clip(interlaced(pictures(60, height)), FORMS[form])
    found = field_detection.choose_fields(source, NTSC, "auto")
    assert found.kind == "deint", found.why
    result = prepared(source, found)
    assert (result.height, result.format.id) == (height, FORMS[form])
    assert_gray(result, 8)
    shown = luma(result, 8)
    rows = np.abs(shown[1:-1] - (shown[:-2] + shown[2:]) / 2).mean(), 20
    assert rows[0] < rows[1]


@pytest.mark.parametrize(("frames", "height", "width"), [(10, 65, 96), (1, 64, 96), (10, 2, 2), (10, 64, 8)])
def test_frames_without_two_fields_are_refused(frames: int, height: int, width: int) -> None:
    """VFM writes beyond its memory where a frame is smaller than a block."""
    source = clip(pictures(frames, height, width), field=0)
    for arguments in ("ivtc", "deint"):
        with pytest.raises(ArgumentError, match=f"none in {frames} frames? of {width}×{height} pixels"):
            field_detection.choose_fields(source, NTSC, arguments)
    assert field_detection.choose_fields(source, NTSC, "auto").kind == "progressive"


def test_chroma_is_looked_at_where_it_can_be() -> None:
    kept = {name: matched_format(vs.core.get_video_format(form)).name for name, form in FORMS.items()}
    assert kept["4:2:2, 10 bit"] == "YUV422P8"
    assert kept["4:2:0"] == "YUV420P8"
    assert {kept[name] for name in ("4:1:1", "4:1:0", "gray", "gray, 16 bit")} == {"Gray8"}
    same = clip(pictures(2, 64), vs.YUV420P8)
    assert to_eight_bits(same) is same


# ---- lines that are drawn -----------------------------------------------------------------------------------------


def scan_lines(count: int, height: int = 64, dark: float = 0.6, part: float = 1.0) -> list[Luma]:
    """A moving picture behind every second line darkened, as on a television; over `part` of its width."""
    y, x = np.mgrid[0:height, 0:96]
    frames = []
    for n in range(count):
        picture = 140 + 60 * np.sin(x / 11 + n / 2)
        frames.append(np.where((y % 2 == 1) & (x < part * 96), picture * dark, picture).astype(np.uint8))
    return frames


def stripes(count: int, step: int) -> list[Luma]:
    """A title of fine stripes that scrolls over a picture that moves sideways."""
    y, x = np.mgrid[0:64, 0:96]
    frames = []
    for n in range(count):
        picture = 100 + 40 * np.sin(x / 13 + n / 3)
        inside = (x > 20) & (x < 76)
        frames.append(np.where(inside & ((y + step * n) % 2 == 1), 220, picture).astype(np.uint8))
    return frames


def pulsing(count: int) -> list[Luma]:
    y, _ = np.mgrid[0:64, 0:96]
    return [(60 + (y % 2) * (80 + 40 * np.sin(n / 3))).astype(np.uint8) for n in range(count)]


DRAWN = {
    "scan lines": scan_lines(48),
    "scan lines of a small television": scan_lines(48, part=0.4),
    "black scan lines": scan_lines(48, dark=0.05),
    "a still striped title": stripes(48, 0),
    "a title that scrolls by one line": stripes(48, 1),
    "a title that scrolls by two lines": stripes(48, 2),
    "lines that pulse": pulsing(48),
}


@pytest.mark.parametrize("flag", [0, 2])
@pytest.mark.parametrize("name", DRAWN)
def test_drawn_lines_are_no_combs(name: str, flag: int) -> None:
    found = field_detection.choose_fields(clip(DRAWN[name], field=flag), Fraction(24), "auto")
    assert found.kind == "progressive", found.why
    assert "drawn lines" in found.why


@pytest.mark.parametrize("film", [pictures(40, 64), [f // 2 + 60 for f in pictures(40, 64)]])
def test_fields_are_still_seen(film: list[Luma]) -> None:
    assert field_detection.choose_fields(clip(telecined(film)), NTSC, "auto").kind == "ivtc"
    assert field_detection.choose_fields(clip(interlaced(film)), NTSC, "auto").kind == "deint"
    for combed in (interlaced(film), telecined(film)[2:4] * 8):
        assert not are_drawn(combed[4], combed[5], combed[6])


def test_fields_are_seen_beside_drawn_lines() -> None:
    """A television in a film that was telecined, or shot as video."""
    film = pictures(40, 64)
    y, x = np.mgrid[0:64, 0:96]
    screen = (x < 30) & (y < 40)
    drawn = np.where(y % 2, 40, 180).astype(np.uint8)
    for fielded, kind in ((telecined(film), "ivtc"), (interlaced(film), "deint")):
        frames = [np.where(screen, drawn, frame) for frame in fielded]
        assert field_detection.choose_fields(clip(frames), NTSC, "auto").kind == kind


def test_slow_soft_motion_in_fields_is_no_drawing() -> None:
    """A soft edge that moves slowly looks combed alike in several frames; its fields tell what it is."""
    x = np.mgrid[0:64, 0:192][1].astype(float)
    film = [np.clip(30 + 10 * (x - 60 - 2.5 * n), 20, 230).astype(np.uint8) for n in range(40)]
    video = interlaced(film)
    assert not are_drawn(video[8], video[9], video[10])

"""The timestamps of a source's frames, and the shape of their pixels."""

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

from tests.encode.media import lavfi, make
from vsfdatrd.encode.field_detection import Fields
from vsfdatrd.encode.pixel_shape import choose_sar, pixel_shapes, plausible_sar
from vsfdatrd.encode.source import open_source
from vsfdatrd.encode.timestamps import NO_TIMESTAMP, fill_gaps
from vsfdatrd.encode.timing import compute_timing, constant_rate

# ---- timestamps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([10, 20, 30], [10, 20, 30]),
        ([NO_TIMESTAMP] * 4, [0, 10, 20, 30]),  # a raw stream
        ([NO_TIMESTAMP, 20, 30, NO_TIMESTAMP], [10, 20, 30, 40]),  # B-frames of a raw stream
        ([5, NO_TIMESTAMP, NO_TIMESTAMP, 65], [5, 25, 45, 65]),  # several frames a packet; the neighbors decide
        ([NO_TIMESTAMP, NO_TIMESTAMP, 7], [-13, -3, 7]),
        ([10, 20, 20, 40], [10, 20, 30, 40]),  # one twice
        ([10, 20, 15, 40], [10, 20, 30, 40]),
        ([1000, 1010, 0, 10], [1000, 1010, 0, 10]),  # a clock that begins anew is not hidden
    ],
)
def test_missing_timestamps_are_filled_in(stamps: list[int], expected: list[int]) -> None:
    assert fill_gaps(stamps, Fraction(10)) == expected


@pytest.mark.parametrize(
    ("name", "rate", "options"),
    [
        ("a.m2v", "30000/1001", ["-c:v", "mpeg2video", "-bf", "2", "-f", "mpeg2video"]),
        ("b.avi", "25", ["-c:v", "mpeg4", "-bf", "2"]),
        ("c.264", "24000/1001", ["-c:v", "libx264", "-f", "h264"]),
        ("d.265", "50", ["-c:v", "libx265", "-x265-params", "log-level=error", "-f", "hevc"]),
        ("e.m4v", "24000/1001", ["-c:v", "mpeg4", "-f", "m4v"]),
        ("f.vob", "30000/1001", ["-target", "ntsc-dvd", "-bf", "0"]),  # several small frames a packet
    ],
)
def test_frames_without_timestamps_have_their_rate(tmp_path: Path, name: str, rate: str, options: list[str]) -> None:
    size = "720x480" if name.endswith("vob") else "96x64"
    held = f"color=c=0x406080:size={size}:rate={rate},drawbox=20:15:20:12:c=orange:t=fill"
    make(*lavfi(held), "-frames:v", "24", "-pix_fmt", "yuv420p", *options, tmp_path / name)
    source = open_source(tmp_path / name, tmp_path / "index")
    seconds = [(stamp - source.timestamps[0]) * source.time_base for stamp in source.timestamps]
    assert len(seconds) == 24
    assert constant_rate(seconds, source.rate) == Fraction(rate)
    assert abs(source.rate / Fraction(rate) - 1) < Fraction(1, 1000)


def test_a_frame_that_lasts_twice_as_long_makes_no_other_rate() -> None:
    """As in AVI, where a picture that is left out takes its time all the same."""
    assert constant_rate([Fraction(n, 25) for n in (0, *range(2, 11))], Fraction(25)) == 25
    assert constant_rate([Fraction(n * 1001, 24000) for n in range(10)], Fraction(24)) == Fraction(24000, 1001)


def test_slides_that_last_an_hour_have_a_rate(tmp_path: Path) -> None:
    slides = "setpts=N*(N+1)*1800/TB"  # seconds: 0, 3600, 10800, 21600
    make(*lavfi("testsrc=size=64x48:rate=1"), "-vf", slides, "-frames:v", "4", "-c:v", "ffv1", tmp_path / "slides.mkv")
    source = open_source(tmp_path / "slides.mkv", tmp_path / "index")
    timing = compute_timing(source, Fields("progressive", True, ""), 4)
    assert timing.rate > 0
    assert list(timing.times or ()) == [0, 3600, 10800, 21600]


def test_one_frame_has_a_rate_that_can_be(tmp_path: Path) -> None:
    make(*lavfi("testsrc=size=64x48"), "-frames:v", "1", "-c:v", "ffv1", tmp_path / "one.mkv")
    source = open_source(tmp_path / "one.mkv", tmp_path / "index")
    assert len(source.timestamps) == 1
    assert 1 <= source.rate <= 60


# ---- the shape of pixels --------------------------------------------------------------------------------------------


def joined(folder: Path, shapes: list[tuple[str, int]], suffix: str = "ts") -> Path:
    """Parts of MPEG-2, each with a shape of the picture and a number of frames, one after the other."""
    film, at = folder / f"film.{suffix}", 1.0
    with film.open("wb") as out:
        for shape, frames in shapes:
            coder = ["-pix_fmt", "yuv420p", "-aspect", shape, "-c:v", "mpeg2video", "-g", "5"]
            make(
                *lavfi("testsrc=size=96x64:rate=25"),
                "-frames:v",
                str(frames),
                *coder,
                "-output_ts_offset",
                str(at),
                "-f",
                "mpegts",
                folder / "part.ts",
            )
            out.write((folder / "part.ts").read_bytes())
            at += frames / 25
    if suffix != "ts":
        make("-i", film, "-c", "copy", folder / f"again.{suffix}")
        return folder / f"again.{suffix}"
    return film


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("4:3", 5), ("16:9", 40)], Fraction(16, 9)),
        ([("4:3", 40), ("16:9", 5)], Fraction(4, 3)),
        ([("16:9", 10), ("4:3", 20), ("16:9", 15)], Fraction(16, 9)),
        ([("16:9", 10)], Fraction(16, 9)),
    ],
)
def test_the_shape_of_most_of_the_film_is_taken(
    tmp_path: Path, shapes: list[tuple[str, int]], expected: Fraction
) -> None:
    source = open_source(joined(tmp_path, shapes), tmp_path / "index")
    assert source.sar * Fraction(96, 64) == expected
    assert any("changes" in remark for remark in source.remarks) == (len(shapes) > 1)


def test_a_remuxed_disc_has_the_shape_of_its_frames_where_that_changes(tmp_path: Path) -> None:
    source = open_source(joined(tmp_path, [("4:3", 10), ("16:9", 60)], "mkv"), tmp_path / "index")
    assert source.sar * Fraction(96, 64) == Fraction(16, 9)  # not that of its first frame, which the container has


def test_a_container_that_was_corrected_is_believed(tmp_path: Path) -> None:
    make("-i", joined(tmp_path, [("4:3", 10)]), "-c", "copy", "-aspect", "16:9", tmp_path / "again.mkv")
    source = open_source(tmp_path / "again.mkv", tmp_path / "index")
    assert abs(source.sar * Fraction(96, 64) / Fraction(16, 9) - 1) < Fraction(1, 100)
    assert any("container" in remark for remark in source.remarks)


def test_shapes_that_nobody_means_are_not_believed() -> None:
    assert plausible_sar(Fraction(1, 100)) == 1
    assert choose_sar(Counter(), None)[0] == 1
    assert choose_sar(Counter(), Fraction(64, 45))[0] == Fraction(64, 45)
    assert choose_sar(Counter({Fraction(8, 9): 3}), Fraction(90, 101))[0] == Fraction(8, 9)  # rounded, that is all


def test_pixels_of_a_picture_that_is_turned_are_turned(tmp_path: Path) -> None:
    source = "testsrc=size=96x64:rate=25:duration=0.2,setsar=4/3"
    make(*lavfi(source), "-pix_fmt", "yuv420p", "-c:v", "libx264", tmp_path / "flat.mp4")
    make("-display_rotation", "90", "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "tall.mp4")
    result = open_source(tmp_path / "tall.mp4", tmp_path / "index")
    assert (result.clip.width, result.clip.height, result.sar) == (64, 96, Fraction(3, 4))


def test_shapes_are_found_in_streams_without_times(tmp_path: Path) -> None:
    film = joined(tmp_path, [("4:3", 10), ("16:9", 30)])
    make("-i", film, "-c", "copy", "-f", "mpeg2video", tmp_path / "a.m2v")
    assert pixel_shapes(tmp_path / "a.m2v", 0, 40) == {Fraction(32, 27): 30, Fraction(8, 9): 10}

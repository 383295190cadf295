"""Subtitles in other containers: text is converted, pictures are copied if the container allows it."""

from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.encode.conftest import moving, write
from tests.encode.joining import LENGTH, mux_with_source
from tests.encode.test_frame_metadata import insert
from vsfdatrd.encode.bitstream import FrameMessages
from vsfdatrd.encode.presets import CONTAINERS
from vsfdatrd.system.programs import ffmpeg, run

TEXT = """1
00:00:00,200 --> 00:00:00,900
<i>hällo</i>
wörld

2
00:00:01,000 --> 00:00:01,500
魔女 & <b>"more"</b>
"""
LINES = ["hällo\nwörld", '魔女 & "more"']
TIMES = [(0.2, 0.9), (1.0, 1.5)]


def add_subtitles(plain_film: Path, path: Path, codec: str, *more: str) -> Path:
    """The film with subtitles in a format."""
    text = path.with_suffix(".srt")
    text.write_text(TEXT, encoding="utf-8")
    run(
        [
            ffmpeg(),
            "-v",
            "error",
            "-i",
            str(plain_film),
            "-i",
            str(text),
            "-map",
            "0",
            "-map",
            "1",
            "-c",
            "copy",
            "-c:s",
            codec,
            "-metadata:s:s:0",
            "language=jpn",
            "-disposition:s:0",
            "forced",
            *more,
            str(path),
        ]
    )
    return path


def read_subtitles(path: Path) -> list[tuple[float, float, str]]:
    """Return begin and end of each subtitle in seconds, and its text without styles, as FFmpeg reads them."""
    text = run([ffmpeg(), "-v", "error", "-i", str(path), "-map", "0:s:0", "-c:s", "text", "-f", "srt", "-"]).decode()
    result = []
    for block in text.replace("\r", "").strip().split("\n\n"):
        _, times, *lines = block.splitlines()
        begin, end = (
            sum(float(part) * 60**n for n, part in enumerate(reversed(time.replace(",", ".").split(":"))))
            for time in times.split(" --> ")
        )
        result.append((begin, end, "\n".join(lines)))
    return result


@pytest.mark.parametrize(
    ("codec", "before", "after", "becomes"),
    [
        ("mov_text", ".mp4", ".mkv", "subrip"),
        ("mov_text", ".mov", ".mkv", "subrip"),
        ("srt", ".mkv", ".mp4", "mov_text"),
        ("srt", ".mkv", ".mov", "mov_text"),
        ("ass", ".mkv", ".mp4", "mov_text"),
        ("webvtt", ".mkv", ".mp4", "mov_text"),
        ("text", ".mkv", ".mp4", "mov_text"),
        ("ass", ".mkv", ".mkv", "ass"),
        ("srt", ".mkv", ".mkv", "subrip"),
        ("webvtt", ".mkv", ".mkv", "webvtt"),
        ("mov_text", ".mp4", ".mp4", "mov_text"),
        ("mov_text", ".mp4", ".mov", "mov_text"),
    ],
)
def test_text_stays(plain_film: Path, codec: str, before: str, after: str, becomes: str, tmp_path: Path) -> None:
    source = add_subtitles(plain_film, tmp_path / f"in{before}", codec)
    target = tmp_path / f"out{after}"
    kept = mux_with_source(plain_film, source, target)
    assert kept.dropped == []
    assert kept.kept[0].endswith(f", as {becomes}") == (kept.converted == [1])
    with av.open(str(target)) as container:
        (stream,) = container.streams.subtitles
        assert stream.codec_context.codec.canonical_name == becomes
        assert stream.language == "jpn"
        if before == after == ".mkv":  # the others do not say it
            assert stream.disposition & av.stream.Disposition.forced
    messages = read_subtitles(target)
    assert [text for _, _, text in messages] == LINES
    assert all(
        abs(a - b) < 0.011
        for one, times in zip(messages, TIMES, strict=True)
        for a, b in zip(one[:2], times, strict=True)
    )


def test_italics_stay(plain_film: Path, tmp_path: Path) -> None:
    source = add_subtitles(plain_film, tmp_path / "in.mp4", "mov_text")
    mux_with_source(plain_film, source, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert b"<i>" in bytes(next(iter(container.demux(subtitles=0))))


def test_text_of_a_file_that_does_not_begin_at_0(plain_film: Path, tmp_path: Path) -> None:
    source = add_subtitles(plain_film, tmp_path / "in.mkv", "srt", "-output_ts_offset", "100")
    mux_with_source(plain_film, source, tmp_path / "out.mp4")
    assert [round(begin, 2) for begin, _, _ in read_subtitles(tmp_path / "out.mp4")] == [0.2, 1.0]


def test_several_subtitles_and_sound(plain_film: Path, tmp_path: Path) -> None:
    first = add_subtitles(plain_film, tmp_path / "first.mkv", "ass")
    source = tmp_path / "in.mkv"
    run(
        [
            ffmpeg(),
            "-v",
            "error",
            "-i",
            str(first),
            "-i",
            str(first.with_suffix(".srt")),
            "-f",
            "lavfi",
            "-i",
            "sine=d=2",
            "-map",
            "0",
            "-map",
            "1",
            "-map",
            "2",
            "-c",
            "copy",
            "-c:s:1",
            "srt",
            "-c:a",
            "aac",
            str(source),
        ]
    )
    kept = mux_with_source(plain_film, source, tmp_path / "out.mp4")
    assert (kept.converted, len(kept.copied)) == ([1, 2], 1)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "subtitle", "subtitle", "audio"]


# Of EIA-608: pop-on captions, the first row, "Hello", shown; and gone after a second.
WORDS = [(0x94, 0x20), (0x94, 0xAE), (0x94, 0x70), (0xC8, 0xE5), (0xEC, 0xEC), (0xEF, 0x80), (0x94, 0x2F)]
WORDS += [(0x80, 0x80)] * 30 + [(0x94, 0x2C)]


@pytest.mark.parametrize("after", [".mkv", ".mp4", ".mov"])
def test_tracks_of_captions(plain_film: Path, after: str, tmp_path: Path) -> None:
    plain = write(moving(LENGTH), tmp_path / "plain.mkv", "30000/1001", "-c:v", "libx264", "-preset", "ultrafast")
    insert(plain, tmp_path / "said.mkv", lambda n: FrameMessages(captions=bytes([0xFC, *WORDS[n % len(WORDS)]])))
    source = tmp_path / "in.mov"
    run(
        [
            ffmpeg(),
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            f"movie={tmp_path / 'said.mkv'}[out0+subcc]",
            "-map",
            "0",
            "-c:v",
            "libx264",
            "-c:s",
            "copy",
            str(source),
        ]
    )
    kept = mux_with_source(plain_film, source, tmp_path / f"out{after}")
    assert kept.dropped == []
    messages = read_subtitles(tmp_path / f"out{after}")
    assert [text for _, _, text in messages] == ["Hello"] * 2  # the second one stays to the end, and nothing erases it
    assert [round(begin * 30000 / 1001) for begin, _, _ in messages] == [6, 44]


@pytest.mark.parametrize(
    ("codec", "after", "stays"),
    [
        ("dvdsub", ".mkv", True),
        ("dvbsub", ".mkv", True),
        ("dvbsub", ".mp4", False),
        ("dvbsub", ".mov", False),
    ],
)
def test_pictures_stay_or_are_told(plain_film: Path, codec: str, after: str, stays: bool, tmp_path: Path) -> None:
    pictures, source = tmp_path / "pictures.mkv", tmp_path / "in.mkv"
    with av.open(str(pictures), "w") as out:
        stream = out.add_stream(codec)
        packet = av.Packet(b"\0\4\0\2")
        packet.pts = packet.dts = 0
        packet.duration, packet.time_base, packet.stream = 500, Fraction(1, 1000), stream
        out.mux(packet)
    run(
        [
            ffmpeg(),
            "-v",
            "error",
            "-i",
            str(plain_film),
            "-i",
            str(pictures),
            "-map",
            "0:v",
            "-map",
            "1:s",
            "-c",
            "copy",
            str(source),
        ]
    )
    kept = mux_with_source(plain_film, source, tmp_path / f"out{after}")
    if stays:
        assert (kept.copied, kept.dropped) == ([1], [])
    else:
        assert kept.dropped == [f"subtitle 1: {codec} (pictures, which a {CONTAINERS[after]} file cannot hold)"]

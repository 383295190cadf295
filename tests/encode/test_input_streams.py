"""The streams of a source, and the choice of the video that is encoded."""

from collections import Counter
from pathlib import Path

import av
import pytest

from tests.encode.conftest import Encode, times
from tests.encode.media import lavfi, make
from vsfdatrd.encode import streams
from vsfdatrd.encode.input_file import open_input, video_track
from vsfdatrd.encode.source import open_source
from vsfdatrd.errors import ArgumentError

NOISE = "testsrc2=size=160x128:rate=25:duration={},noise=alls=100:allf=t"
"""Hardly to be compressed: 5 MB, where ffmpeg stops looking for streams, are some seconds."""


# ---- streams --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seconds of MPEG-2 that fill 7 MB."""
    path = tmp_path_factory.mktemp("late") / "big.mkv"
    make(*lavfi(NOISE.format(9)), "-c:v", "mpeg2video", "-q:v", "1", "-g", "1", path)
    assert path.stat().st_size > 7_000_000
    return path


@pytest.mark.parametrize(
    ("name", "form", "sounds"),
    [
        ("a.vob", "vob", ("ac3", "mp2", "ac3")),
        ("b.mpg", "mpeg", ("mp2", "mp2")),
        ("c.ts", "mpegts", ("ac3", "mp2")),
    ],
)
def test_streams_that_begin_late_are_there(big: Path, tmp_path: Path, name: str, form: str, sounds: tuple[str]) -> None:
    """The first sound begins at once, the others after 8 seconds and 7 MB."""
    inputs, options = ["-i", str(big)], []
    for n, coder in enumerate(sounds):
        inputs += ["-itsoffset", "8" if n else "0", *lavfi(f"sine=duration={0.5 if n else 8}")]
        options += ["-map", f"{n + 1}:a", f"-c:a:{n}", coder]
    make(*inputs, "-map", "0:v", *options, "-c:v", "copy", "-f", form, tmp_path / name)
    with av.open(str(tmp_path / name)) as container:  # else there is nothing to test
        assert len([s for s in container.streams.audio if s.codec_context.sample_rate]) < len(sounds)
    with open_input(tmp_path / name) as container:
        assert sorted(s.codec_context.name for s in container.streams.audio) == sorted(sounds)
        counts = Counter(p.stream.index for p in container.demux() if p.size)
        assert counts[container.streams.video[0].index] == 225  # from the first packet
        assert min(counts[s.index] for s in container.streams.audio) > 10
    track = video_track(tmp_path / name)
    assert track is not None
    kept = streams.choose_streams(tmp_path / name, track.index, "matroska")
    assert len(kept.copied) == len(sounds)
    assert not kept.dropped


def test_a_subtitle_that_begins_late_is_there(big: Path, tmp_path: Path) -> None:
    make("-i", big, "-c:v", "copy", "-f", "vob", tmp_path / "a.vob")
    stamp = 90000 * 8
    pts = bytes(
        [0x21 | stamp >> 29 & 14, stamp >> 22 & 255, stamp >> 14 & 255 | 1, stamp >> 7 & 255, stamp << 1 & 255 | 1]
    )
    picture = b"\x20" + bytes.fromhex("000a 0004 0000 0004 01ff")  # of a DVD's first subtitle: nothing, shown at once
    content = (tmp_path / "a.vob").read_bytes()
    at = content.index(b"\0\0\1\xba", 6_000_000)  # a pack; ffmpeg looks at the end of a file as well
    packet = b"\0\0\1\xbd" + (8 + len(picture)).to_bytes(2) + b"\x81\x80\x05" + pts + picture
    (tmp_path / "a.vob").write_bytes(content[:at] + packet + content[at:])
    with av.open(str(tmp_path / "a.vob")) as container:
        assert len(container.streams) == 1
    with open_input(tmp_path / "a.vob") as container:
        assert [s.type for s in container.streams] == ["video", "subtitle"]
        result = [p.pts for p in container.demux(subtitles=0) if p.size]
        assert result == [stamp]


def test_flash_video_whose_sound_begins_late(tmp_path: Path) -> None:
    make(
        *lavfi(NOISE.format(9)),
        "-itsoffset",
        "8",
        *lavfi("sine=duration=0.5:sample_rate=44100"),
        "-c:v",
        "flv",
        "-q:v",
        "1",
        "-g",
        "1",
        "-c:a",
        "mp3",
        tmp_path / "a.flv",
    )
    with av.open(str(tmp_path / "a.flv")) as container:
        assert not container.streams.audio
    with open_input(tmp_path / "a.flv") as container:
        assert len(container.streams.audio) == 1
        assert sum(p.size > 0 for p in container.demux(video=0)) == 225


def test_what_an_edit_list_cuts_away_is_not_heard(encode: Encode, tmp_path: Path) -> None:
    """A clip cut without encoding: its file begins with the key frame before, and says what is not to be shown."""
    make(
        *lavfi("testsrc=size=96x64:rate=25:duration=1", "sine=duration=1"),
        "-c:v",
        "mpeg4",
        "-g",
        "25",
        "-c:a",
        "aac",
        tmp_path / "full.mp4",
    )
    make("-ss", "0.6", "-i", tmp_path / "full.mp4", "-c", "copy", tmp_path / "cut.mp4")
    assert times(tmp_path / "cut.mp4", "audio")[0] < -0.5
    result = encode(tmp_path / "cut.mp4", tmp_path / "out.mkv")
    assert result.returncode == 0, result.stderr
    assert len(times(tmp_path / "out.mkv")) == 10
    shown, heard = times(tmp_path / "out.mkv")[0], times(tmp_path / "out.mkv", "audio")
    assert abs(shown - heard[0]) < 0.13
    assert abs(heard[-1] - shown - times(tmp_path / "cut.mp4", "audio")[-1]) < 0.005


# ---- which video ----------------------------------------------------------------------------------------------------

SMALL, STILL, FILM = (
    "testsrc=size=32x32:rate=25:duration=0.4",
    "testsrc=size=320x240:rate=1:duration=1",
    "testsrc=size=96x64:rate=25:duration=0.4",
)


@pytest.mark.parametrize(
    ("sources", "dispositions", "taken"),
    [
        ((STILL, FILM), ("0", "default"), 1),  # a cover not marked as one
        ((STILL, FILM), ("0", "0"), 1),
        ((SMALL, FILM), ("0", "0"), 1),  # a preview
        ((FILM, SMALL), ("0", "default"), 1),
        ((FILM, FILM), ("0", "default"), 1),  # two angles
        ((FILM, FILM), ("0", "0"), 0),
        ((FILM, FILM, FILM), ("default", "default", "0"), 0),
        ((STILL,), ("0",), 0),
    ],
)
def test_which_video_is_taken(tmp_path: Path, sources: tuple[str], dispositions: tuple[str], taken: int) -> None:
    maps = [word for n in range(len(sources)) for word in ("-map", str(n))]
    flags = [word for n, which in enumerate(dispositions) for word in (f"-disposition:v:{n}", which)]
    make(*lavfi(*sources), *maps, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", *flags, tmp_path / "a.nut")
    result = video_track(tmp_path / "a.nut")
    assert result is not None
    assert result.index == taken
    assert bool(result.why) == (len(sources) > 1)


def test_a_cover_is_no_film(tmp_path: Path) -> None:
    make(
        *lavfi(STILL, FILM),
        "-map",
        "0",
        "-map",
        "1",
        "-c:v:0",
        "mjpeg",
        "-c:v:1",
        "mpeg4",
        "-disposition:v:0",
        "attached_pic",
        "-disposition:v:1",
        "0",
        tmp_path / "a.mp4",
    )
    result = video_track(tmp_path / "a.mp4")
    assert result is not None
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(container.streams.video) == 2
        assert container.streams[result.index].codec_context.name == "mpeg4"
    assert result.why == ""


def test_a_cover_alone_is_no_video(tmp_path: Path) -> None:
    options = ["-c:v", "mjpeg", "-disposition:v", "attached_pic"]
    make(*lavfi(STILL, "sine=duration=0.2"), "-map", "0", "-map", "1", *options, tmp_path / "song.m4a")
    with pytest.raises(ArgumentError, match="has no readable video"):
        open_source(tmp_path / "song.m4a", tmp_path / "index")

"""What a source is taken for: its streams, its video, its timestamps, its names, the shape and size of its frames."""

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
import vapoursynth as vs

from tests.encode.conftest import Encode, decoded, moving, times, write
from vsfdatrd import cli
from vsfdatrd.compare.video import open_video
from vsfdatrd.encode import streams
from vsfdatrd.encode.input_file import open_input, video_track
from vsfdatrd.encode.pixel_shape import pixel_shapes, plausible_sar, prevailing
from vsfdatrd.encode.source import file_name, open_source
from vsfdatrd.encode.timestamps import UNKNOWN, fill_gaps
from vsfdatrd.encode.timing import constant_rate
from vsfdatrd.errors import ArgumentError, ClipError, FdatrdError, sentence
from vsfdatrd.system.programs import ffmpeg, run, utf8_environment

NOISE = "testsrc2=size=160x128:rate=25:duration={},noise=alls=100:allf=t"
"""Hardly to be compressed: 5 MB, where ffmpeg stops looking for streams, are some seconds."""


def make(*arguments: str | Path) -> None:
    run([ffmpeg(), "-v", "error", "-y", *map(str, arguments)])


def lavfi(*sources: str) -> list[str]:
    return [word for source in sources for word in ("-f", "lavfi", "-i", source)]


# ---- streams ------------------------------------------------------------------------------------------------------


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
    kept = streams.choose(tmp_path / name, track.index, "matroska")
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


# ---- which video --------------------------------------------------------------------------------------------------

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


# ---- timestamps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([10, 20, 30], [10, 20, 30]),
        ([UNKNOWN] * 4, [0, 10, 20, 30]),  # a raw stream
        ([UNKNOWN, 20, 30, UNKNOWN], [10, 20, 30, 40]),  # B-frames of a raw stream
        ([5, UNKNOWN, UNKNOWN, 65], [5, 25, 45, 65]),  # several frames a packet; the neighbors decide
        ([UNKNOWN, UNKNOWN, 7], [-13, -3, 7]),
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


def test_one_frame_has_a_rate_that_can_be(tmp_path: Path) -> None:
    make(*lavfi("testsrc=size=64x48"), "-frames:v", "1", "-c:v", "ffv1", tmp_path / "one.mkv")
    source = open_source(tmp_path / "one.mkv", tmp_path / "index")
    assert len(source.timestamps) == 1
    assert 1 <= source.rate <= 60


# ---- the shape of pixels ------------------------------------------------------------------------------------------


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
    assert prevailing(Counter(), None)[0] == 1
    assert prevailing(Counter(), Fraction(64, 45))[0] == Fraction(64, 45)
    assert prevailing(Counter({Fraction(8, 9): 3}), Fraction(90, 101))[0] == Fraction(8, 9)  # rounded, that is all


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


# ---- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forms", [("96x64,yuv420p", "128x64,yuv420p"), ("96x64,yuv420p", "96x64,yuv422p")])
def test_frames_that_change_are_refused_in_a_sentence(encode: Encode, tmp_path: Path, forms: tuple[str, str]) -> None:
    with (tmp_path / "film.ts").open("wb") as out:
        for n, form in enumerate(forms):
            size, pixels = form.split(",")
            make(
                *lavfi(f"testsrc=size={size}:rate=25:duration=0.4"),
                "-pix_fmt",
                pixels,
                "-c:v",
                "mpeg2video",
                "-output_ts_offset",
                str(1 + 0.4 * n),
                "-f",
                "mpegts",
                tmp_path / "part.ts",
            )
            out.write((tmp_path / "part.ts").read_bytes())
    with pytest.raises(ClipError, match=r"change size or format.*96×64 YUV420P8.*scale="):
        open_source(tmp_path / "film.ts", tmp_path / "index")
    with pytest.raises(ClipError, match="change size or format"):
        open_video(tmp_path / "film.ts")


@pytest.fixture
def quiet() -> Iterator[logging.Logger]:
    """The package's logger, whose level is put back."""
    logger = logging.getLogger("vsfdatrd")
    level = logger.level
    yield logger
    logger.setLevel(level)


@pytest.mark.parametrize(
    "error",
    [
        vs.Error("Resize error 1027"),
        ValueError("operands could not be broadcast"),
        av.InvalidDataError(1, "bad data"),
        MemoryError(),
        FdatrdError("a sentence"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_what_fails_is_told_in_a_sentence(
    error: Exception,
    several: bool,
    film: Path,
    tmp_path: Path,
    identity_2x: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    quiet: logging.Logger,
) -> None:
    """Whatever goes wrong where nobody thought of it; tracebacks are for --verbose."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vsfdatrd.encode.encode.analyze", fail)
    inputs = [str(film), str(film.with_name("twin.mkv"))] if several else [str(film)]
    target = ["--out", str(tmp_path)] if several else [str(tmp_path / "o.mkv")]
    if several:
        Path(inputs[1]).write_bytes(film.read_bytes())
    for verbose in ([], ["--verbose"]):
        quiet.setLevel(logging.WARNING)
        caplog.clear()
        assert cli.main(["encode", *inputs, *target, "--model", str(identity_2x), "--preset", "ffv1", *verbose]) == 1
        output = capsys.readouterr().err
        assert "Traceback" not in output
        assert any(record.exc_info for record in caplog.records) == bool(verbose)
        assert output.splitlines()[-1].startswith("vsfdatrd: ")
        assert sentence(error) in output
        assert output.count("This should not happen") == (1 + several) * isinstance(error, (ValueError, av.FFmpegError))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("turned.mp4", ("-display_rotation", "45"), "by 315 degrees, and only multiples of 90"),
        ("mono.nut", (), "convert it first: ffmpeg"),
    ],
)
def test_what_cannot_be_read_says_what_helps(tmp_path: Path, name: str, options: tuple[str, ...], words: str) -> None:
    picture = "testsrc=size=96x64:rate=25:duration=0.2"
    if options:
        make(*lavfi(picture), "-pix_fmt", "yuv420p", "-c:v", "libx264", tmp_path / "flat.mp4")
        make(*options, "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / name)
    else:
        make(*lavfi(picture), "-c:v", "rawvideo", "-pix_fmt", "monob", tmp_path / name)
    with pytest.raises(ArgumentError, match=words):
        open_source(tmp_path / name, tmp_path / "index")


@pytest.mark.parametrize("name", ["text.mkv", "empty.mkv", "folder.mkv", "nothing.mkv", "sound.mka", "cut.mp4"])
def test_what_is_no_video_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "text.mkv":
        path.write_text("to do: everything")
    elif name == "empty.mkv":
        path.write_bytes(b"")
    elif name == "folder.mkv":
        path.mkdir()
    elif name == "sound.mka":
        make(*lavfi("sine=duration=0.2"), path)
    elif name == "cut.mp4":
        make(*lavfi("testsrc=size=96x64:rate=25:duration=0.2"), "-c:v", "mpeg4", tmp_path / "whole.mp4")
        path.write_bytes((tmp_path / "whole.mp4").read_bytes()[:2000])
    with pytest.raises(ArgumentError, match=name):
        open_source(path, tmp_path / "index")


# ---- names --------------------------------------------------------------------------------------------------------

NAMES = (
    b"Batman: The Series.mkv",
    b"file:other.mkv",
    b"concat:a|b.mkv",
    b"caf\xe9.mkv",
    "ü 日本.mkv".encode(),
    b"50%d.mkv",
)
UNIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")


@UNIX
@pytest.mark.parametrize("name", NAMES)
def test_names_are_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    write(moving(3), tmp_path / "plain.mkv", "25")
    path = Path(os.fsdecode(name))
    monkeypatch.chdir(tmp_path)
    os.rename(tmp_path / "plain.mkv", path)
    (tmp_path / path.stem).mkdir()
    source = open_source(path, tmp_path / path.stem / "index")
    assert source.clip.num_frames == 3
    assert streams.choose(path, source.video, "matroska").dropped == []
    assert os.fsencode(file_name(path)) == os.fsencode(tmp_path / path)


@UNIX
@pytest.mark.parametrize(("name", "locale"), [(b"Stra\xdfe: 1.mkv", "C.UTF-8"), ("Straße.mkv".encode(), "C")])
def test_odd_names_go_through_a_whole_encode(
    tmp_path: Path, identity_2x: Path, engines: Path, name: bytes, locale: str
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9" if locale != "C" else "café".encode())
    folder.mkdir()
    path = write(moving(3), folder / os.fsdecode(name), "25")
    model = folder / os.fsdecode(b"m\xe9.safetensors" if locale != "C" else "mé.safetensors".encode())
    model.write_bytes(identity_2x.read_bytes())
    output = folder / os.fsdecode(b"out " + name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"LC_ALL": locale, "FDATRD_CACHE": str(engines), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "vsfdatrd.cli", "encode", path.name, output.name, "--model", str(model)]
    command += ["--preset", "ffv1"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    assert len(decoded(output)) == 3
    assert times(output)[0] == 0


def test_vspipe_gets_a_locale_that_knows_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    environment = utf8_environment()
    assert os.name == "nt" or (environment is not None and environment["LC_ALL"] == "C.UTF-8")

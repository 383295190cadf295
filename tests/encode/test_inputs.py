"""Error messages for unusable sources, and file names of sources."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import pytest
import vapoursynth as vs

from tests.encode.conftest import Encode, decoded, moving, times, write
from tests.encode.media import lavfi, make
from vsfdatrd import cli
from vsfdatrd.compare.video import open_video
from vsfdatrd.encode import script, streams
from vsfdatrd.encode.chunk import EncodeParams, Pipeline
from vsfdatrd.encode.crop import Borders
from vsfdatrd.encode.field_detection import Fields
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.source import explain_damage, find_track, open_source, read_frames, vapoursynth_path
from vsfdatrd.errors import ArgumentError, ClipError, EncodeError, FdatrdError, error_sentence
from vsfdatrd.system.programs import utf8_environment

# ---- what is refused ------------------------------------------------------------------------------------------------


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
        PermissionError(13, "Permission denied", "film.mkv"),
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
        assert error_sentence(error) in output
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


# ---- what is damaged ------------------------------------------------------------------------------------------------


def damage(path: Path, *options: str) -> Path:
    """Three seconds of a film with 60 wrong bytes."""
    make(*lavfi("testsrc2=size=96x64:rate=25:duration=3"), "-g", "15", *options, path)
    content = bytearray(path.read_bytes())
    random = Random(0)
    for _ in range(60):
        content[random.randrange(len(content) // 3, len(content))] = random.randrange(256)
    path.write_bytes(content)
    return path


def plain_script(path: Path, index: Path, threads: int) -> str:
    return script.preparation_script(path, 0, index, Fields("progressive", True, ""), Borders(), "0", threads)


def test_damaged_frames_are_decoded_alike_each_time(tmp_path: Path) -> None:
    """BestSource refuses those that are not, and with several threads ffmpeg does not."""
    path = damage(tmp_path / "damaged.avi", "-c:v", "mpeg4", "-b:v", "1M")
    source = open_source(path, tmp_path / "index")
    for clip in (source.clip, script.run_script(plain_script(path, tmp_path / "index", source.threads))):
        assert len(list(clip.frames())) == len(source.timestamps)


def test_damage_is_a_sentence_wherever_it_is_found(tmp_path: Path) -> None:
    """With an index that one thread made, several threads fail in the same places."""
    path = damage(tmp_path / "damaged.mkv", "-c:v", "libx264", "-preset", "ultrafast", "-bf", "2")
    track = find_track(path)
    read_frames(path, replace(track, threads=1), tmp_path / "index")
    clip, *_ = read_frames(path, replace(track, threads=4), tmp_path / "index")
    words = r"frame number \d+; the file may be damaged: .*ffmpeg repair it"
    with pytest.raises(ClipError, match=words), explain_damage(path):
        list(clip.frames(close=True))
    (tmp_path / "script.vpy").write_text(plain_script(path, tmp_path / "index", 4) + "clip.set_output()\n")
    params = EncodeParams(tmp_path / "script.vpy", ("-c:v", "ffv1"), Fraction(25), tmp_path)
    pipeline = Pipeline(Chunk(0, 0, clip.num_frames), params, "0")
    pipeline.feed(lambda frames: None)
    with pytest.raises(EncodeError, match=f"chunk 1 .*{words}"):
        pipeline.finish()


# ---- names ----------------------------------------------------------------------------------------------------------

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
    assert streams.choose_streams(path, source.video, "matroska").dropped == []
    assert os.fsencode(vapoursynth_path(path)) == os.fsencode(tmp_path / path)


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

"""Choice among several ffmpegs, and error messages of programs that failed."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vsfdatrd.errors import EncodeError
from vsfdatrd.system import programs

FREE = """case "$*" in *-encoders*) echo ' V....D ffv1                 FFmpeg video codec #1'
echo ' V..... libsvtav1            SVT-AV1';; *-version*) echo 'ffmpeg version free';; *) exit 1;; esac"""
BROKEN = "echo 'error while loading shared libraries: libx265.so.99' >&2; exit 127"


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Put programs called ffmpeg, given as shell scripts, into folders that alone are on PATH."""

    def forget() -> None:
        for one in (programs.find_ffmpegs, programs.ffmpeg, programs.ffmpeg_version, programs._encoders):
            one.cache_clear()

    def put(*scripts: str) -> list[str]:
        folders = [tmp_path / str(n) for n in range(len(scripts))]
        for folder, script in zip(folders, scripts, strict=True):
            folder.mkdir()
            (folder / "ffmpeg").write_text(script if script == "garbage" else f"#!/bin/sh\n{script}\n")
            (folder / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
        return [str(folder / "ffmpeg") for folder in folders]

    forget()
    yield put
    forget()


def test_the_first_with_the_encoder_is_taken(on_path: Callable[..., list[str]]) -> None:
    free, other = on_path(FREE, FREE.replace("libsvtav1", "libx265").replace("free", "nonfree"))
    assert programs.find_ffmpegs()[:2] == (free, other)
    assert programs.ffmpeg() == programs.ffmpeg("ffv1") == programs.ffmpeg("libsvtav1") == free
    assert programs.ffmpeg("libx265") == other
    assert programs.ffmpeg_version(other) == "ffmpeg version nonfree"
    wheel = programs.find_ffmpegs()[-1]
    assert "imageio_ffmpeg" in wheel
    assert programs.ffmpeg("libx264") == wheel


@pytest.mark.parametrize("script", [BROKEN, "garbage", "exit 1", "kill -9 $$"])
def test_one_that_does_not_run_hides_no_other(on_path: Callable[..., list[str]], script: str) -> None:
    broken, free = on_path(script, FREE)
    assert programs.ffmpeg() == programs.ffmpeg("ffv1") == free
    with pytest.raises(EncodeError) as raised:
        programs.ffmpeg("libnosuch")
    messages = str(raised.value)
    assert messages.startswith(f"{broken} ")
    assert f"{free} has no encoder libnosuch; " in messages
    assert messages.count("has no encoder libnosuch") == 2  # imageio's lacks it as well
    assert "choose another --preset" in messages


def test_two_names_of_one_program_are_one(on_path: Callable[..., list[str]]) -> None:
    (only, other) = on_path(FREE, FREE)
    Path(other).unlink()
    Path(other).symlink_to(only)
    assert [path for path in programs.find_ffmpegs() if path in (only, other)] == [only]


def test_without_any_it_is_a_sentence(
    on_path: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_path()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(EncodeError, match="there is no ffmpeg on PATH; install it, or pip install imageio-ffmpeg"):
        programs.ffmpeg("libx265")


X265 = """[libx265 @ 0x5586c0389e40] Error setting preset/tune nosuch/animation.
[libx265 @ 0x5586c0389e40] Possible presets: ultrafast superfast veryfast
[vost#0:0/libx265 @ 0x5586c0389e40] [enc:libx265 @ 0x55d] Error while opening encoder - maybe incorrect parameters such
[vf#0:0 @ 0x7f] Error sending frames to consumers: Invalid argument
[vf#0:0 @ 0x7f] Task finished with error code: -22 (Invalid argument)
[vf#0:0 @ 0x7f] Terminating thread with return code -22 (Invalid argument)
[out#0/matroska @ 0x5586c0389040] Nothing was written into output file, because at least one of its streams received no
"""


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            X265,
            "libx265: Error setting preset/tune nosuch/animation.; "
            "libx265: Possible presets: ultrafast superfast veryfast",
        ),
        ("\n\nno such option\n", "no such option"),
        ("", "it printed no message"),
        ("a\nb\nc\nd", "a; b; c"),
        ("same\nsame\nother", "same; other"),
        ("[vf#0:0 @ 0x7f] Task finished with error code: -22", "vf#0:0: Task finished with error code: -22"),
    ],
)
def test_the_reason_is_what_was_said_first(message: str, reason: str) -> None:
    assert programs.main_reason(message.splitlines()) == reason


def test_a_program_that_fails_is_a_sentence() -> None:
    with pytest.raises(EncodeError, match=r"^sh ended with status 3: it broke$"):
        programs.run(["/bin/sh", "-c", "echo it broke >&2; exit 3"])

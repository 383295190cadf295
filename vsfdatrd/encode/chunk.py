"""One chunk: vspipe into ffmpeg, into a file that takes its place only when it is whole and has been looked through.

00003.<random>.tmp.mkv   being written; worthless if its process dies
00003.whole.mkv          both programs ended well and it is on the disk; not yet looked through
00003.mkv                every frame decodes and none is missing
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO

import psutil

from vsfdatrd.encode.input_file import require_av
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.presets import encoder_of
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import PREFIX, EncodeError
from vsfdatrd.system.files import commit, sha256_file
from vsfdatrd.system.programs import ffmpeg, main_reason, utf8_environment, vspipe
from vsfdatrd.workers.spawn import ending, no_window

_PROGRESS = re.compile(r"Frame: (\d+)/\d+")
_UNHEARD = "fwrite() call failed"
_SMALL_TALK = re.compile(r"^(Script evaluation done|Output \d+ frames|Information: )")  # of vspipe
_WORDS = 40  # lines kept of what a program says at first, and as many of the last ones
_TRIAL = 120.0  # seconds for one black frame
_PATIENCE = 10.0  # seconds a program may take to end after it was told to


@dataclass(frozen=True, slots=True)
class EncodeParams:
    """How chunks are made: the same for all of them."""

    script: Path
    options: tuple[str, ...]
    """Of ffmpeg, for its output."""
    rate: Fraction
    """Frames a second in a chunk's file."""
    folder: Path
    """Where the files go."""


class Stopped(Exception):
    """Work was stopped on purpose."""


class _Words:
    """What a program has written: its first lines, which say why it failed, and its last ones."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._last: deque[str] = deque(maxlen=_WORDS)

    def add(self, line: str) -> None:
        if len(self._first) < _WORDS:
            self._first.append(line)
        else:
            self._last.append(line)

    @property
    def lines(self) -> list[str]:
        return [*self._first, *self._last]


class Pipeline:
    """The two programs at work on one chunk."""

    def __init__(self, chunk: Chunk, recipe: EncodeParams, device: str, cpus: frozenset[int] | None = None) -> None:
        """Start them. cpus: those that upscaling keeps to. Raises EncodeError if that is not possible."""
        self.chunk, self._recipe = chunk, recipe
        self._begun = time.monotonic()
        self._stopped = False
        self._file = recipe.folder / f"{chunk.number + 1:05}.{secrets.token_hex(4)}.tmp.mkv"
        frames = ["-s", str(chunk.start), "-e", str(chunk.stop - 1)]
        source = [vspipe(), "-c", "y4m", "-p", "-a", f"device={device}", *frames, recipe.script.name, "-"]
        coder = [ffmpeg(encoder_of(recipe.options)), "-v", "error", "-nostats", "-y", "-f", "yuv4mpegpipe"]
        coder += ["-i", "-", "-an"]
        coder += [*recipe.options, "-fps_mode", "passthrough", "-f", "matroska", str(self._file)]
        try:
            self._source = subprocess.Popen(
                source, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                creationflags=no_window(), cwd=recipe.script.parent, env=utf8_environment(),  # see trial.first_frame
            )  # fmt: skip
            if cpus:  # not ffmpeg: it counts CPUs to choose its threads, and x264 writes other bits with fewer
                with contextlib.suppress(psutil.Error):  # it has ended already, and is about to be heard of
                    psutil.Process(self._source.pid).cpu_affinity(sorted(cpus))
            try:
                self._coder = subprocess.Popen(
                    coder, stdin=self._source.stdout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    creationflags=no_window(),
                )  # fmt: skip
            except OSError:
                self._source.kill()
                self._source.wait()
                raise
        except OSError as error:
            raise EncodeError(f"vspipe and ffmpeg cannot be started ({error})") from error
        if self._source.stdout is not None:
            self._source.stdout.close()  # ffmpeg has it; vspipe notices if ffmpeg goes
        self._said = {"vspipe": _Words(), "ffmpeg": _Words()}
        self._listener = threading.Thread(target=self._listen, name="encode-ffmpeg", daemon=True)
        self._listener.start()

    def feed(self, progress: Callable[[int], None]) -> None:
        """Wait until vspipe has made all frames. progress: told how many there are, each time that changes."""
        for line in _lines(self._source.stderr):
            if match := _PROGRESS.match(line):
                progress(int(match[1]))
            elif line.strip():
                self._said["vspipe"].add(line.strip())
        self._source.wait()

    @property
    def failed(self) -> bool:
        """Whether vspipe, once it has ended, did so badly."""
        return bool(self._source.returncode)

    def finish(self) -> DoneChunk:
        """Wait for ffmpeg, look the file through and put it in its place. Raises as `end` does."""
        whole, seconds = self.end()
        return accept(whole, self.chunk, self._recipe, seconds)

    def end(self) -> tuple[Path, float]:
        """Wait for ffmpeg -> its file, complete but not yet looked through, and the seconds that it took.

        Raises EncodeError with the program that failed and what it said, Stopped if `stop` was called.
        """
        self._source.wait()
        self._coder.wait()
        self._listener.join(_PATIENCE)
        try:
            if self._stopped:
                raise Stopped
            self._check()
            whole = self._recipe.folder / f"{self.chunk.number + 1:05}.whole.mkv"
            commit(self._file, whole)
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
            raise
        return whole, time.monotonic() - self._begun

    def stop(self) -> None:
        """End both programs, at first kindly."""
        self._stopped = True
        for process in (self._source, self._coder):
            if process.poll() is None:
                process.terminate()
        for process in (self._source, self._coder):
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()

    def _listen(self) -> None:
        for line in _lines(self._coder.stderr):
            if line.strip():
                self._said["ffmpeg"].add(line.strip())

    def _check(self) -> None:
        """Raises EncodeError unless both programs ended well."""
        source, coder = self._source.returncode, self._coder.returncode
        spoken = [line for line in self._said["vspipe"].lines if not _SMALL_TALK.match(line)]
        which = f"chunk {self.chunk.number + 1} (frames {self.chunk.start} to {self.chunk.stop - 1})"
        # Where ffmpeg ends first, vspipe has nobody left to write to.
        unheard = any(_UNHEARD in line for line in self._said["vspipe"].lines)
        if sys.platform != "win32":
            unheard = unheard or source == -signal.SIGPIPE
        if source and not (coder and unheard):
            raise EncodeError(f"{which} failed: {_ending('vspipe', source)}: {_last(spoken)}")
        if coder:
            raise EncodeError(f"{which} failed: {_ending('ffmpeg', coder)}: {_last(self._said['ffmpeg'].lines)}")


def try_encoder(options: Sequence[str], pixel_format: str, size: tuple[int, int]) -> None:
    """Encode one black frame, so that options that the encoder refuses are found before hours of work.

    Args:
        options: Of ffmpeg, for its output.
        pixel_format: Of the frame, as ffmpeg names it.
        size: Width and height.

    Raises:
        EncodeError: ffmpeg failed; with the reason that it gave.
    """
    width, height = size
    samples = width * height * (4 if "422" in pixel_format else 3) // 2
    encoder = encoder_of(options)
    command = [ffmpeg(encoder), "-v", "error", "-nostats", "-f", "rawvideo", "-pix_fmt", pixel_format]
    command += ["-s", f"{width}x{height}", "-r", "25", "-i", "-", "-an", *options, "-f", "null", "-"]
    try:
        done = subprocess.run(
            command, input=bytes(samples * (2 if pixel_format.endswith("le") else 1)), capture_output=True, check=False,
            timeout=_TRIAL, creationflags=no_window(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return  # slow, which is no reason to refuse it
    except OSError as error:
        raise EncodeError(f"ffmpeg cannot be started ({error})") from error
    if done.returncode:
        words = main_reason(done.stderr.decode(errors="replace").splitlines())
        raise EncodeError(
            f"ffmpeg cannot encode {width}×{height} with {encoder} and these options ({words}); "
            "change what follows --, or choose another --preset"
        )


def accept(whole: Path, chunk: Chunk, recipe: EncodeParams, seconds: float) -> DoneChunk:
    """Look a whole file through and put it in its place. Raises EncodeError, and removes it, if it does not do."""
    final = recipe.folder / chunk.name
    try:
        reorder = look_through(whole, chunk.frames, recipe.rate)
        made = DoneChunk(chunk, whole.stat().st_size, sha256_file(whole), reorder, seconds)
        commit(whole, final)
    except EncodeError:
        whole.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise EncodeError(f"{final} cannot be written ({error.strerror})") from error
    return made


def look_through(path: Path, frames: int, rate: Fraction) -> int:
    """Decode all of a chunk's file; by how many places its packets are stored ahead of their turn.

    Raises EncodeError unless it begins with a key frame and holds exactly so many frames, one after the other.
    """
    av = require_av()
    count = 0
    order: list[int] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None:
                    if not order and not packet.is_keyframe:
                        raise EncodeError(f"{path.name} does not begin with a key frame; leave -force_key_frames out")
                    order.append(packet.pts)
                for frame in packet.decode():
                    count += 1
                    if frame.is_corrupt:
                        raise EncodeError(f"frame {count} of {path.name} does not decode")
            places = [round((pts - order[0]) * Fraction(stream.time_base) * rate) for pts in order]
    except (av.FFmpegError, IndexError) as error:
        raise EncodeError(f"{path.name} cannot be read back ({error}); is the disk sound?") from error
    if count != frames or sorted(places) != list(range(frames)):
        raise EncodeError(
            f"{path.name} holds {count} frames, and {frames} were sent; leave out options that drop or add frames"
        )
    return max(number - place for number, place in enumerate(places))


def _lines(stream: IO[bytes] | None) -> Iterator[str]:
    """What a program writes, split where a line ends or is written anew."""
    if stream is None:
        return
    rest = b""
    with stream:
        while piece := os.read(stream.fileno(), 1 << 16):
            *lines, rest = re.split(rb"[\r\n]", rest + piece)
            yield from (line.decode(errors="replace") for line in lines)
    yield rest.decode(errors="replace")


def _ending(program: str, code: int) -> str:
    return f"{program} {'was ended by' if code < 0 else 'ended with'} {ending(code)}"


def _last(lines: list[str]) -> str:
    """The line that says most: of upscale if there is one, of a full disk, else the first ones that give a reason."""
    for line in lines:
        if PREFIX in line:
            return line[line.index(PREFIX) :].removeprefix(PREFIX)
    for line in lines:
        if "No space left" in line:
            return "no space is left on the disk; free some, then run the same command again: what is done is kept"
    return main_reason(lines)

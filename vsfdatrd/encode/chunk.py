"""Encode one chunk: vspipe piped into ffmpeg, writing a file that gets its final name only after verification.

00003.<random>.tmp.mkv   being written; discarded if its process dies
00003.whole.mkv          both programs succeeded and the file is fsynced; not yet verified
00003.mkv                verified: every frame decodes and none is missing
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO

import psutil

from vsfdatrd.encode.input_file import require_av, with_repair_advice
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.presets import selected_encoder
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import PREFIX, EncodeError
from vsfdatrd.system.files import commit_file, sha256_file
from vsfdatrd.system.programs import ffmpeg, main_reason, run_unchecked, stderr_lines, utf8_environment, vspipe
from vsfdatrd.workers.spawn import creation_flags, describe_exit

_PROGRESS_LINE = re.compile(r"Frame: (\d+)/\d+")
_BROKEN_PIPE_TEXT = "fwrite() call failed"  # vspipe's message if ffmpeg has exited
_ROUTINE_LINE = re.compile(r"^(Script evaluation done|Output \d+ frames|Information: |Warning: )")  # of vspipe
_MAX_LINES = 40  # first lines kept of a program's output, which usually state the reason of a failure; last ones, too
_TRIAL_TIMEOUT = 120.0  # seconds for encoding one black frame
_EXIT_TIMEOUT = 10.0  # seconds for a program to exit after terminate()


@dataclass(frozen=True, slots=True)
class EncodeParams:
    """Parameters common to all chunks of an encode."""

    script: Path
    options: tuple[str, ...]
    """ffmpeg output options."""
    rate: Fraction
    """Frames per second in the chunk files."""
    folder: Path
    """Folder of the chunk files."""


class PipelineStopped(Exception):
    """The pipeline was stopped on request."""


class Pipeline:
    """The vspipe and ffmpeg processes that encode one chunk."""

    def __init__(self, chunk: Chunk, params: EncodeParams, device: str, cpus: frozenset[int] | None = None) -> None:
        """Start both programs.

        Args:
            chunk: The frames to encode.
            params: Parameters common to all chunks.
            device: The script's ``device`` argument: GPU numbers separated by commas.
            cpus: CPU affinity of vspipe; None for all CPUs.

        Raises:
            EncodeError: A program cannot be started.
        """
        self.chunk, self._params = chunk, params
        self._started = time.monotonic()
        self._stopped = False
        self._file = params.folder / f"{chunk.number + 1:05}.{secrets.token_hex(4)}.tmp.mkv"
        frames = ["-s", str(chunk.start), "-e", str(chunk.stop - 1)]
        source = [vspipe(), "-c", "y4m", "-p", "-a", f"device={device}", *frames, params.script.name, "-"]
        coder = [ffmpeg(selected_encoder(params.options)), "-v", "error", "-nostats", "-y", "-f", "yuv4mpegpipe"]
        coder += ["-i", "-", "-an"]
        coder += [*params.options, "-fps_mode", "passthrough", "-f", "matroska", str(self._file)]
        try:
            self._source = subprocess.Popen(
                source,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                creationflags=creation_flags(),
                cwd=params.script.parent,
                env=utf8_environment(),  # see trial.first_frame
            )
            # Not for ffmpeg: it chooses its thread count by the CPUs it sees, and x264's output depends on that count.
            if cpus:
                with contextlib.suppress(psutil.Error):  # vspipe has exited already, which is reported later
                    psutil.Process(self._source.pid).cpu_affinity(sorted(cpus))
            try:
                self._coder = subprocess.Popen(
                    coder,
                    stdin=self._source.stdout,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    creationflags=creation_flags(),
                )
            except OSError:
                self._source.kill()
                self._source.wait()
                raise
        except OSError as error:
            raise EncodeError(f"vspipe and ffmpeg cannot be started ({error})") from error
        if self._source.stdout is not None:
            self._source.stdout.close()  # only ffmpeg holds the pipe now, so vspipe notices if ffmpeg exits
        self._source_lines: list[str] = []
        self._coder_lines: list[str] = []
        listen = partial(_collect, _read_lines(self._coder.stderr), self._coder_lines)
        self._listener = threading.Thread(target=listen, name="encode-ffmpeg", daemon=True)
        self._listener.start()

    def feed(self, progress: Callable[[int], None]) -> None:
        """Report the progress of vspipe, and collect its messages, until it exits.

        Args:
            progress: Called with the number of frames rendered so far, whenever it changes.
        """

        def messages() -> Iterator[str]:
            for line in _read_lines(self._source.stderr):
                if match := _PROGRESS_LINE.match(line):
                    progress(int(match[1]))
                else:
                    yield line

        _collect(messages(), self._source_lines)
        self._source.wait()

    @property
    def failed(self) -> bool:
        """True if vspipe has exited with an error."""
        return bool(self._source.returncode)

    def finish(self) -> DoneChunk:
        """Wait for ffmpeg, verify the file and give it its final name.

        Raises:
            EncodeError: A program failed, or the file is not valid.
            PipelineStopped: `stop` was called.
        """
        path, seconds = self.end()
        return accept_file(path, self.chunk, self._params, seconds)

    def end(self) -> tuple[Path, float]:
        """Wait for ffmpeg; return the complete but unverified file, and the seconds since the programs were started.

        Raises:
            EncodeError: A program failed; the message has its output.
            PipelineStopped: `stop` was called.
        """
        self._source.wait()
        self._coder.wait()
        self._listener.join(_EXIT_TIMEOUT)
        try:
            if self._stopped:
                raise PipelineStopped
            self._check()
            path = self._params.folder / f"{self.chunk.number + 1:05}.whole.mkv"
            commit_file(self._file, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)
            raise
        return path, time.monotonic() - self._started

    def stop(self) -> None:
        """Terminate both programs; kill them if they do not exit within 10 seconds."""
        self._stopped = True
        for process in (self._source, self._coder):
            if process.poll() is None:
                process.terminate()
        for process in (self._source, self._coder):
            try:
                process.wait(_EXIT_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()

    def _check(self) -> None:
        """Raise EncodeError if a program failed."""
        source, coder = self._source.returncode, self._coder.returncode
        chunk_name = f"chunk {self.chunk.number + 1} (frames {self.chunk.start} to {self.chunk.stop - 1})"
        # If ffmpeg exits first, vspipe fails to write to the pipe; ffmpeg's error is then the cause.
        broken_pipe = any(_BROKEN_PIPE_TEXT in line for line in self._source_lines)
        if sys.platform != "win32":
            broken_pipe = broken_pipe or source == -signal.SIGPIPE
        if source and not (coder and broken_pipe):
            program, code, lines = "vspipe", source, [x for x in self._source_lines if not _ROUTINE_LINE.match(x)]
        elif coder:
            program, code, lines = "ffmpeg", coder, self._coder_lines
        else:
            return
        ending = f"{'was ended by' if code < 0 else 'ended with'} {describe_exit(code)}"
        raise EncodeError(f"{chunk_name} failed: {program} {ending}: {_informative_lines(lines)}")


def try_encoder(options: Sequence[str], pixel_format: str, size: tuple[int, int]) -> None:
    """Encode one black frame of this format and size, so that invalid encoder options are found before hours of work.

    Args:
        options: ffmpeg output options.
        pixel_format: ffmpeg's name of the frame's pixel format.
        size: Width and height in pixels.

    Raises:
        EncodeError: ffmpeg failed; the message has its reason.
    """
    width, height = size
    samples = width * height * (4 if "422" in pixel_format else 3) // 2
    encoder = selected_encoder(options)
    command = [ffmpeg(encoder), "-v", "error", "-nostats", "-f", "rawvideo", "-pix_fmt", pixel_format]
    command += ["-s", f"{width}x{height}", "-r", "25", "-i", "-", "-an", *options, "-f", "null", "-"]
    frame = bytes(samples * (2 if pixel_format.endswith("le") else 1))
    try:
        done = run_unchecked(command, frame, _TRIAL_TIMEOUT)
    except subprocess.TimeoutExpired:
        return  # slow options are allowed
    except OSError as error:
        raise EncodeError(f"ffmpeg cannot be started ({error})") from error
    if done.returncode:
        reason = main_reason(stderr_lines(done))
        raise EncodeError(
            f"ffmpeg cannot encode {width}×{height} with {encoder} and these options ({reason}); "
            "change what follows --, or choose another --preset"
        )


def accept_file(path: Path, chunk: Chunk, params: EncodeParams, seconds: float) -> DoneChunk:
    """Verify a complete chunk file and give it its final name.

    Args:
        path: The file; it is removed if it is not valid.
        chunk: The frames it must contain.
        params: Parameters common to all chunks.
        seconds: How long encoding took.

    Raises:
        EncodeError: The file is not valid, or cannot be renamed.
    """
    final = params.folder / chunk.name
    try:
        reorder = verify_decodable(path, chunk.frames, params.rate)
        record = DoneChunk(chunk, path.stat().st_size, sha256_file(path), reorder, seconds)
        commit_file(path, final)
    except EncodeError:
        path.unlink(missing_ok=True)
        raise
    except OSError as error:
        raise EncodeError(f"{final} cannot be written ({error.strerror})") from error
    return record


def verify_decodable(path: Path, frames: int, rate: Fraction) -> int:
    """Verify a chunk file by decoding all of it.

    Args:
        path: The file.
        frames: Number of frames it must contain.
        rate: Frames per second.

    Returns:
        Reorder depth: the largest number of places by which a packet is stored before its display position.

    Raises:
        EncodeError: The file does not start with a key frame, a frame does not decode, or frames are missing or extra.
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
            positions = [round((pts - order[0]) * Fraction(stream.time_base) * rate) for pts in order]
    except (av.FFmpegError, IndexError) as error:
        raise EncodeError(f"{path.name} cannot be read back ({error}); check the disk") from error
    if count != frames:
        raise EncodeError(
            f"{path.name} holds {count} frames, and {frames} were sent; leave out options that drop or add frames"
        )
    if sorted(positions) != list(range(frames)):
        raise EncodeError(
            f"the frames of {path.name} are not evenly spaced in time, as they were sent; "
            "leave out options that change their times"
        )
    return max(number - position for number, position in enumerate(positions))


def _read_lines(stream: IO[bytes] | None) -> Iterator[str]:
    """Yield the lines that a program writes, split at line feeds and carriage returns; close the stream at its end."""
    if stream is None:
        return
    incomplete = b""
    with stream:
        while block := os.read(stream.fileno(), 1 << 16):
            *lines, incomplete = re.split(rb"[\r\n]", incomplete + block)
            yield from (line.decode(errors="replace") for line in lines)
    yield incomplete.decode(errors="replace")


def _collect(messages: Iterable[str], lines: list[str]) -> None:
    """Append messages to the lines of a program, of which the first and the last `_MAX_LINES` are kept."""
    for message in filter(None, map(str.strip, messages)):
        lines.append(message)
        del lines[_MAX_LINES:-_MAX_LINES]


def _informative_lines(lines: list[str]) -> str:
    """Return the lines that explain a failure: an error of `upscale`, damage, a full disk; else `main_reason`."""
    for line in lines:
        if PREFIX in line:
            return line.partition(PREFIX)[2]
    for line in lines:
        if "No frame returned" in line:
            return with_repair_advice(line)
        if "No space left" in line:
            return "no space is left on the disk; free some, then run the same command again: what is done is kept"
    return main_reason(lines)

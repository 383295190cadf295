"""The file that is to be encoded: what is in it, and its frames as a clip."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.errors import ArgumentError, EncodeError

PIP = "pip install 'vsfdatrd[encode]'"
_EDGE = 1 << 20
_ODDEST = Fraction(4)


@dataclass(frozen=True, slots=True)
class Source:
    """A video file as BestSource reads it: its frames as they are stored, pulldown flags not followed."""

    path: Path
    clip: Any
    """The frames, a vapoursynth.VideoNode of constant format."""
    timestamps: Sequence[int]
    """When each frame is shown, in units of `time_base`."""
    time_base: Fraction
    """Seconds."""
    sar: Fraction
    """Width of a pixel, its height being 1."""
    origin: Fraction
    """When the file begins, in seconds on the clock of its timestamps: what comes first of all its streams."""
    video: int
    """Number of the video stream in the file."""

    @property
    def rate(self) -> Fraction:
        """Frames a second, as the file declares."""
        return Fraction(self.clip.fps_num, self.clip.fps_den)

    def start(self) -> Fraction:
        """When the first frame is shown, in seconds after the beginning of the file."""
        return self.timestamps[0] * self.time_base - self.origin


def open_source(path: Path, index: Path | None) -> Source:
    """Open a video file and index it, which decodes all of it once.

    index: where the index is kept, to find it again in the next process; None for BestSource's own place.
    Raises ArgumentError for what is no video file, EncodeError where a plugin or library is missing.
    """
    import vapoursynth as vs

    av = require_av()
    check_plugins(vs.core)
    if not path.is_file():
        raise ArgumentError(f"the input {str(path)!r} is not a file; give the path of a video file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ArgumentError(f"{str(path)!r} holds no video; give a video file")
            number = container.streams.video[0].index
            begin = container.start_time
    except av.FFmpegError as error:
        raise ArgumentError(f"{str(path)!r} cannot be read as video ({error.strerror}); give a video file") from error
    place: dict[str, Any] = {"cachemode": 4, "cachepath": str(index)} if index else {}
    logger = logging.getLogger("vapoursynth")
    level = logger.level
    logger.setLevel(logging.ERROR)  # VapourSynth warns that the timestamps are not among what the function declares
    try:
        opened: Any = vs.core.bs.VideoSource(str(path), track=number, exporttimestamps=1, showprogress=0, **place)
        clip = opened["clip"]
        props = clip.get_frame(0).props
    except vs.Error as error:
        raise ArgumentError(f"{str(path)!r} cannot be read as video ({error}); give a video file") from error
    finally:
        logger.setLevel(level)
    stamps, base = opened["timestamps"], Fraction(opened["timebasenum"], opened["timebaseden"])
    stamps = [stamps] if isinstance(stamps, int) else list(stamps)
    first = stamps[0] * base
    sar = Fraction(int(props.get("_SARNum", 1)) or 1, int(props.get("_SARDen", 1)) or 1)
    if not 1 / _ODDEST <= sar <= _ODDEST:
        sar = Fraction(1)  # damaged: no picture is four times as wide as it is stored
    origin = min(first, Fraction(begin, av.time_base)) if begin is not None else first
    return Source(path, clip, stamps, base, sar, origin, number)


def require_av() -> Any:
    """PyAV. Raises EncodeError with the command that installs it."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise EncodeError(f"encode needs PyAV, which is not installed; {PIP}") from error
    av.logging.set_level(None)
    return av


def check_plugins(core: Any) -> None:
    """Raises EncodeError unless VapourSynth has what scripts need."""
    names = {"bs": "bestsource", "vivtc": "vivtc", "bwdif": "bwdif", "fdatrd": None}
    if missing := [name for name in names if not hasattr(core, name)]:
        raise EncodeError(f"VapourSynth lacks the plugins {', '.join(missing)}; {PIP}")


def identity(path: Path) -> dict[str, str | int]:
    """What tells whether a file is still the same: size, time of change, and SHA-256 of its first and last MiB."""
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, status.st_size - _EDGE))
        digest.update(file.read(_EDGE))
    return {"size": status.st_size, "changed": status.st_mtime_ns, "edges": digest.hexdigest()}

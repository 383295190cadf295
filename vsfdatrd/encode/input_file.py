"""Open a source with PyAV, with all of its streams, and choose the video among them."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.errors import EncodeError

PIP = "pip install 'vsfdatrd[encode]'"

_LATE = frozenset({"mpeg", "mpegts", "flv", "live_flv", "wtv"})
"""Formats of ffmpeg's that list no streams, or not how they are coded, at the start of a file."""
_EVERYTHING = 10**12  # microseconds: longer than any file
_STILLS = 200  # video packets after which a stream with a single one is a still picture


@dataclass(frozen=True, slots=True)
class VideoTrack:
    """The video of a file, as its container describes it."""

    index: int
    """Number of the stream in the file."""
    why: str
    """Why this one of several was chosen; empty where there is only one."""
    size: tuple[int, int]
    """Width and height as they are stored, whatever rotation is asked for."""
    rate: Fraction | None
    """Frames a second, where the container tells or ffmpeg can guess."""
    sar: Fraction | None
    """Width of a pixel, its height being 1; None where nothing is said."""
    start: Fraction | None
    """When the first of all streams begins, in seconds on the clock of the file's timestamps."""


def require_av() -> Any:
    """Import PyAV. Raises EncodeError with the command that installs it."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise EncodeError(f"encode needs PyAV, which is not installed; {PIP}") from error
    av.logging.set_level(None)
    return av


def open_input(path: Path) -> Any:
    """Open a media file with PyAV -> a container that knows every stream of it, at its first packet.

    By default ffmpeg looks at 5 MB and 7 seconds for streams; the second sound and the subtitles of a disc often begin
    later. Formats that need it are therefore looked through to their end.

    Raises av.FFmpegError.
    """
    av = require_av()
    name = str(path.absolute())  # ffmpeg takes what stands before a colon in a relative name for a protocol
    container = av.open(name)
    if container.format.name not in _LATE:
        return container
    container.close()
    # nobuffer: else ffmpeg keeps all that it has looked at in memory, which for a disc is 8 GB.
    options = {"probesize": str(max(path.stat().st_size, 1 << 20)), "analyzeduration": str(_EVERYTHING)}
    container = av.open(name, options=options | {"fflags": "nobuffer"})
    try:
        container.seek(0, unsupported_byte_offset=True)  # what was looked at is gone: begin again
    except BaseException:
        container.close()
        raise
    return container


def video_track(path: Path) -> VideoTrack | None:
    """Choose the video of a file: the default one, else the largest; no cover, and no still picture beside a film.

    Returns:
        None if the file holds no video.

    Raises:
        av.FFmpegError: The file cannot be read.
    """
    av = require_av()
    with open_input(path) as container:
        stream, why = choose_video(container)
        if stream is None:
            return None
        rate = stream.average_rate or stream.guessed_rate
        begin = container.start_time
        return VideoTrack(
            stream.index,
            why,
            (stream.codec_context.width, stream.codec_context.height),
            Fraction(rate) if rate else None,
            Fraction(stream.sample_aspect_ratio) if stream.sample_aspect_ratio else None,
            Fraction(begin, av.time_base) if begin is not None else None,
        )


def choose_video(container: Any) -> tuple[Any, str]:
    """Return the video stream of an open container, None if it has none, and why it was chosen among several."""
    av = require_av()
    flags = av.stream.Disposition
    films = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & (flags.attached_pic | flags.timed_thumbnails)
    ]
    if len(films) < 2:
        return (films[0] if films else None), ""
    default = [stream for stream in films if stream.disposition & flags.default]
    if len(default) == 1:
        return default[0], "the default one"
    candidates = default or films
    counts: Counter[int] = Counter()
    for packet in container.demux(candidates):
        counts[packet.stream.index] += bool(packet.size)
        if counts.total() >= _STILLS:
            break
    moving = [stream for stream in candidates if counts[stream.index] > 1] or candidates
    largest = max(moving, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
    return largest, "the first of the largest"

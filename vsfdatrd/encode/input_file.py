"""Open a source with PyAV, find all of its streams, and choose the video stream."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.errors import EncodeError

INSTALL_COMMAND = "pip install 'vsfdatrd[encode]'"

_NO_STREAM_LIST = frozenset({"mpeg", "mpegts", "flv", "live_flv", "wtv"})
"""ffmpeg formats whose files do not list their streams, or the codecs of them, at the start."""
_ONE_THREAD_CODECS = ("mpeg1video", "mpeg2video", "mpeg4")
"""Codecs of discs. With several threads, ffmpeg decodes damaged frames differently each time, which BestSource
detects and refuses to return. One thread is far faster than any upscaling."""
_ANY_DURATION = 10**12  # microseconds: longer than any file
_STILL_CHECK_PACKETS = 200  # after this many video packets, a stream with only one of them is a still picture


@dataclass(frozen=True, slots=True)
class VideoTrack:
    """The video stream of a file, as the container describes it."""

    index: int
    """Index of the stream in the file."""
    why: str
    """Why this one of several streams was chosen; empty if it is the only one."""
    size: tuple[int, int]
    """Width and height as stored, before any rotation tag is applied."""
    rate: Fraction | None
    """Frames per second; None if the container does not declare it and ffmpeg cannot guess it."""
    sar: Fraction | None
    """Sample aspect ratio (pixel width / pixel height); None if not declared."""
    threads: int
    """Threads in which BestSource decodes; 0 for one for each CPU."""
    start: Fraction | None
    """Earliest start of all streams in the file, in seconds on the clock of its timestamps; None if not known."""


def with_repair_advice(text: str) -> str:
    """In a message of BestSource about frames it cannot decode, replace its advice for scripts with repair advice."""
    return (
        f"{text.partition('. This may be due to')[0]}; the file may be damaged: copy it again, or let ffmpeg repair it "
        "(ffmpeg -err_detect ignore_err -i IN -c:v ffv1 -c:a copy OUT.mkv)"
    )


def require_av() -> Any:
    """Import and return PyAV, with logging turned off.

    Raises:
        EncodeError: PyAV is not installed; the message has the command that installs it.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise EncodeError(f"encode needs PyAV, which is not installed; {INSTALL_COMMAND}") from error
    av.logging.set_level(None)
    return av


def open_input(path: Path) -> Any:
    """Open a media file with PyAV and find all of its streams; the container is positioned at its first packet.

    By default ffmpeg probes 5 MB and 7 seconds for streams, but the second audio track and the subtitles of a disc
    often start later. Formats without a stream list are therefore probed to the end of the file.

    Args:
        path: The file.

    Raises:
        av.FFmpegError: The file cannot be opened.
    """
    av = require_av()
    name = str(path.absolute())  # in a relative name, ffmpeg takes the text before a colon for a protocol
    container = av.open(name)
    if container.format.name not in _NO_STREAM_LIST:
        return container
    container.close()
    # nobuffer: otherwise ffmpeg keeps everything it has probed in memory, which is 8 GB for a disc.
    options = {"probesize": str(max(path.stat().st_size, 1 << 20)), "analyzeduration": str(_ANY_DURATION)}
    container = av.open(name, options=options | {"fflags": "nobuffer"})
    try:
        container.seek(0, unsupported_byte_offset=True)  # probed packets were discarded: start over
    except BaseException:
        container.close()
        raise
    return container


def video_track(path: Path) -> VideoTrack | None:
    """Find the video stream of a file: the default one, otherwise the largest; None if the file has none.

    Cover art is never chosen, nor a still picture if there is a moving one.

    Args:
        path: The file.

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
            int(stream.codec_context.name in _ONE_THREAD_CODECS),
            Fraction(begin, av.time_base) if begin is not None else None,
        )


def choose_video(container: Any) -> tuple[Any, str]:
    """Choose the video stream of an open container, as `video_track` does.

    Args:
        container: A PyAV input container. Packets may be read from it.

    Returns:
        The stream, None if there is no video; and why it was chosen, empty if it is the only one.
    """
    av = require_av()
    flags = av.stream.Disposition
    videos = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & (flags.attached_pic | flags.timed_thumbnails)
    ]
    if len(videos) < 2:
        return (videos[0] if videos else None), ""
    default = [stream for stream in videos if stream.disposition & flags.default]
    if len(default) == 1:
        return default[0], "the default one"
    candidates = default or videos
    counts: Counter[int] = Counter()
    for packet in container.demux(candidates):
        counts[packet.stream.index] += bool(packet.size)
        if counts.total() >= _STILL_CHECK_PACKETS:
            break
    moving = [stream for stream in candidates if counts[stream.index] > 1] or candidates
    largest = max(moving, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
    return largest, "the first of the largest"

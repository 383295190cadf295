"""The source file: its video track, timing, pixel shape and frames."""

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import INSTALL_COMMAND, VideoTrack, require_av, video_track, with_repair_advice
from vsfdatrd.encode.pixel_shape import choose_sar, pixel_shapes
from vsfdatrd.encode.survey import Survey, survey_clip
from vsfdatrd.encode.timestamps import NO_TIMESTAMP, fill_gaps
from vsfdatrd.errors import ArgumentError, ClipError, EncodeError

_EDGE_BYTES = 1 << 20  # bytes hashed at each end of the file, see `file_identity`
_DEFAULT_RATE = Fraction(25)  # frames per second if neither the timestamps nor the container give a rate


@dataclass(frozen=True, slots=True)
class Source:
    """A video file as BestSource reads it: frames as stored, without applying pulldown flags."""

    path: Path
    clip: Any
    """The frames, a vapoursynth.VideoNode of constant format."""
    timestamps: Sequence[int]
    """Presentation time of each frame, in units of `time_base`."""
    time_base: Fraction
    """Duration of one timestamp tick in seconds."""
    sar: Fraction
    """Sample aspect ratio (pixel width / pixel height); that of most frames if it changes."""
    origin: Fraction
    """Timestamp of the start of the file in seconds: the earliest start of all its streams."""
    video: int
    """Index of the video stream in the file."""
    threads: int
    """Threads in which BestSource decodes; 0 for one for each CPU."""
    rate: Fraction
    """Declared frame rate, frames per second."""
    survey: Survey
    """Frame properties of a sample of the frames."""
    remarks: Sequence[str] = field(default=())
    """Warnings for the user: choice among several videos, contradictory pixel shapes, missing timestamps."""

    def start(self) -> Fraction:
        """Return when the first frame is shown, in seconds after the start of the file."""
        return self.timestamps[0] * self.time_base - self.origin


def open_source(path: Path, index: Path | None) -> Source:
    """Open and index a video file. Indexing decodes the complete file once.

    Args:
        path: The file.
        index: Path prefix of BestSource's index, so that later processes can reuse it; None for BestSource's default.

    Raises:
        ArgumentError: The file is not a readable video.
        ClipError: Frame size or format changes, or frames cannot be decoded.
        EncodeError: A plugin or library is missing.
    """
    import vapoursynth as vs

    check_plugins(vs.core)
    track = find_track(path)
    clip, stamps, base = read_frames(path, track, index)
    with explain_damage(path):
        check_constant_format(path, clip)
        sample = survey_clip(clip)
        shapes = pixel_shapes(path, track.index, len(stamps))
    remarks = [f"the video is stream {track.index}, {track.why} of several"] if track.why else []
    if missing := stamps.count(NO_TIMESTAMP):
        remarks.append(f"{missing} of {len(stamps)} frames have no timestamps; they are spread evenly")
    rate = frame_rate(clip, stamps, base, track)
    stamps = fill_gaps(stamps, 1 / (rate * base))
    first = stamps[0] * base
    origin = first if track.start is None else min(first, track.start)
    sar, sar_remarks = choose_sar(shapes, track.sar)
    remarks += sar_remarks
    if (clip.width, clip.height) == track.size[::-1] != track.size:  # BestSource applied the file's rotation tag
        sar = 1 / sar
    return Source(path, clip, stamps, base, sar, origin, track.index, track.threads, rate, sample, remarks)


@contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Raise errors with advice in place of those of BestSource and ffmpeg, while a source is read.

    Raises:
        ClipError: A frame cannot be decoded.
        ArgumentError: The file cannot be read.
    """
    import vapoursynth as vs

    try:
        yield
    except vs.Error as error:
        raise ClipError(with_repair_advice(f"frames of {str(path)!r} cannot be decoded: {error}")) from error
    except require_av().FFmpegError as error:
        raise ArgumentError(f"{str(path)!r} cannot be read to its end ({error.strerror}); copy it again") from error


def find_track(path: Path) -> VideoTrack:
    """Find the video stream that is encoded; see `input_file.video_track`.

    Args:
        path: The file.

    Raises:
        ArgumentError: The file is not a readable video.
    """
    av = require_av()
    check_is_file(path)
    try:
        track = video_track(path)
    except av.FFmpegError as error:
        raise ArgumentError(f"{str(path)!r} cannot be read as video ({error.strerror}); give a video file") from error
    if track is None:
        raise ArgumentError(f"{str(path)!r} has no readable video; give a video file")
    return track


def read_frames(path: Path, track: VideoTrack, index: Path | None) -> tuple[Any, list[int], Fraction]:
    """Open a video stream with BestSource, which decodes the complete file once if it has no index of it yet.

    Args:
        path: The file.
        track: The stream.
        index: Where the index is stored, as in `open_source`.

    Returns:
        The clip, the timestamp of each frame (`NO_TIMESTAMP` where missing), and the duration of a tick in seconds.

    Raises:
        ArgumentError: BestSource cannot open the file.
    """
    import vapoursynth as vs

    cache: dict[str, Any] = {"cachemode": 4, "cachepath": vapoursynth_path(index)} if index else {}
    logger = logging.getLogger("vapoursynth")
    level = logger.level
    logger.setLevel(logging.ERROR)  # VapourSynth warns that the function does not declare its timestamps output
    try:
        opened: Any = vs.core.bs.VideoSource(
            vapoursynth_path(path),
            track=track.index,
            threads=track.threads,
            exporttimestamps=1,
            showprogress=0,
            **cache,
        )
    except vs.Error as error:
        raise ArgumentError(_refusal_message(path, str(error).removeprefix("VideoSource: "))) from error
    finally:
        logger.setLevel(level)
    stamps, base = opened["timestamps"], Fraction(opened["timebasenum"], opened["timebaseden"])
    return opened["clip"], [stamps] if isinstance(stamps, int) else list(stamps), base


def _refusal_message(path: Path, reason: str) -> str:
    """Return an error message for a file that BestSource cannot open."""
    if "rotation" in reason:
        degrees = re.sub(r"\D+", " ", reason).split()[0]
        return (
            f"{str(path)!r} is marked to be rotated by {degrees} degrees, and only multiples of 90 are supported; "
            "remove the rotation first: ffmpeg -display_rotation 0 -i IN -c copy OUT"
        )
    if "format" in reason:
        return (
            f"{str(path)!r} cannot be read ({reason}); convert it first: "
            "ffmpeg -i IN -pix_fmt yuv444p -c:v ffv1 -c:a copy OUT.mkv"
        )
    return f"{str(path)!r} cannot be read as video ({reason}); give a video file"


def check_is_file(path: Path) -> None:
    """Check that the input exists and is a file.

    Args:
        path: The input.

    Raises:
        ArgumentError: `path` does not exist or is not a file.
    """
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "is not there" if not path.exists() else "is not a file"
        raise ArgumentError(f"the input {str(path)!r} {problem}; give the path of a video file")


def vapoursynth_path(path: Path) -> str | bytes:
    """Return the absolute path in the form VapourSynth functions expect, independent of the locale.

    Args:
        path: Any path.

    Returns:
        A string if the name is valid UTF-8 (always on Windows), otherwise the raw bytes of the name.
    """
    if os.name == "nt":
        return str(path.absolute())
    name = os.fsencode(path.absolute())  # VapourSynth passes strings to the system as UTF-8
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name


def check_constant_format(path: Path, clip: Any) -> None:
    """Check that all frames of a clip have one size and format.

    Args:
        path: The file, for the message.
        clip: A vapoursynth.VideoNode.

    Raises:
        ClipError: Size or format changes within the clip.
        vs.Error: A frame cannot be decoded.
    """
    if clip.width and clip.format.id:  # 0 if variable
        return
    forms = survey_clip(clip).forms.most_common()
    width, _, height = forms[0][0].split()[0].partition("×")
    counts = ", ".join(f"{form} in {count}" for form, count in forms)
    raise ClipError(
        f"the frames of {str(path)!r} change size or format within the film (of the sampled frames: "
        f"{counts}); make them uniform first, for example with ffmpeg -i IN -vf scale={width}:{height} -c:v ffv1 -c:a "
        "copy OUT.mkv, or cut the file where they change"
    )


def frame_rate(clip: Any, stamps: Sequence[int], base: Fraction, track: VideoTrack) -> Fraction:
    """Return the frame rate: BestSource's, unless it was derived from missing timestamps.

    Args:
        clip: The clip of `read_frames`.
        stamps: Its timestamps; `NO_TIMESTAMP` where missing.
        base: Duration of a timestamp tick in seconds.
        track: The stream.
    """
    declared = Fraction(clip.fps_num, clip.fps_den) if clip.fps_num > 0 and clip.fps_den > 0 else None
    if len(stamps) < 2:  # for a single frame, BestSource reports the container's time base as the rate
        return track.rate if track.rate and 1 <= track.rate <= 240 else _DEFAULT_RATE
    steps = sorted(b - a for a, b in itertools.pairwise(stamps) if a != NO_TIMESTAMP and b > a)
    usual = 1 / (steps[len(steps) // 2] * base) if steps else None  # from the median step
    if declared is None or (
        usual is not None and NO_TIMESTAMP in stamps and abs(usual / declared - 1) > Fraction(1, 10)
    ):
        return usual or track.rate or _DEFAULT_RATE
    return declared


def check_plugins(core: Any) -> None:
    """Check that a vapoursynth.Core has the plugins that scripts use.

    Args:
        core: The vapoursynth.Core.

    Raises:
        EncodeError: A plugin is missing.
    """
    names = ("bs", "vivtc", "bwdif", "fdatrd")
    if missing := [name for name in names if not hasattr(core, name)]:
        raise EncodeError(f"VapourSynth lacks the plugins {', '.join(missing)}; {INSTALL_COMMAND}")


def file_identity(path: Path) -> dict[str, str | int]:
    """Return a cheap fingerprint of a file, to detect whether it has changed.

    Args:
        path: The file.

    Returns:
        ``size`` in bytes, modification time ``changed`` in ns, and the SHA-256 of the first and last MiB as ``edges``.
    """
    status = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(0, status.st_size - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
    return {"size": status.st_size, "changed": status.st_mtime_ns, "edges": digest.hexdigest()}

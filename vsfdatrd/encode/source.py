"""The file that is to be encoded: what is in it, and its frames as a clip."""

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import PIP, VideoTrack, require_av, video_track
from vsfdatrd.encode.pixel_shape import pixel_shapes, prevailing
from vsfdatrd.encode.survey import Survey, survey
from vsfdatrd.encode.timestamps import UNKNOWN, filled
from vsfdatrd.errors import ArgumentError, ClipError, EncodeError

_EDGE = 1 << 20
_USUAL = Fraction(25)  # frames a second where nothing tells


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
    """Width of a pixel, its height being 1; where it changes, of most frames."""
    origin: Fraction
    """When the file begins, in seconds on the clock of its timestamps: what comes first of all its streams."""
    video: int
    """Number of the video stream in the file."""
    rate: Fraction
    """Frames a second, as the file declares."""
    survey: Survey
    """What a sample of the frames say of themselves."""
    remarks: Sequence[str] = field(default=())
    """What a user should know: a choice among several videos, shapes of pixels that disagree, missing timestamps."""

    def start(self) -> Fraction:
        """When the first frame is shown, in seconds after the beginning of the file."""
        return self.timestamps[0] * self.time_base - self.origin


def open_source(path: Path, index: Path | None) -> Source:
    """Open a video file and index it, which decodes all of it once.

    Args:
        path: The file.
        index: Where the index is kept, to find it again in the next process; None for BestSource's own place.

    Raises:
        ArgumentError: It is no video file.
        ClipError: Its frames change their size or format, or cannot be decoded.
        EncodeError: A plugin or library is missing.
    """
    import vapoursynth as vs

    av = require_av()
    check_plugins(vs.core)
    check_file(path)
    try:
        track = video_track(path)
    except av.FFmpegError as error:
        raise ArgumentError(f"{str(path)!r} cannot be read as video ({error.strerror}); give a video file") from error
    if track is None:
        raise ArgumentError(f"{str(path)!r} holds no video that can be read; give a video file")
    place: dict[str, Any] = {"cachemode": 4, "cachepath": file_name(index)} if index else {}
    logger = logging.getLogger("vapoursynth")
    level = logger.level
    logger.setLevel(logging.ERROR)  # VapourSynth warns that the timestamps are not among what the function declares
    try:
        opened: Any = vs.core.bs.VideoSource(
            file_name(path), track=track.index, exporttimestamps=1, showprogress=0, **place
        )
    except vs.Error as error:
        raise ArgumentError(_refusal(path, str(error).removeprefix("VideoSource: "))) from error
    finally:
        logger.setLevel(level)
    clip = opened["clip"]
    try:
        check_constant(path, clip)
        seen = survey(clip)
    except vs.Error as error:
        raise ClipError(
            f"frames of {str(path)!r} cannot be decoded ({error}); the file may be damaged: copy it again, "
            "or let ffmpeg repair it (ffmpeg -err_detect ignore_err -i IN -c:v ffv1 -c:a copy OUT.mkv)"
        ) from error
    stamps, base = opened["timestamps"], Fraction(opened["timebasenum"], opened["timebaseden"])
    stamps = [stamps] if isinstance(stamps, int) else list(stamps)
    remarks = [f"the video is stream {track.index}, {track.why} of several"] if track.why else []
    if missing := stamps.count(UNKNOWN):
        remarks.append(f"{missing} of {len(stamps)} frames have no timestamps; they are spread evenly")
    rate = _rate(clip, stamps, base, track)
    stamps = filled(stamps, 1 / (rate * base))
    first = stamps[0] * base
    origin = first if track.start is None else min(first, track.start)
    try:
        sar, told = prevailing(pixel_shapes(path, track.index, len(stamps)), track.sar)
    except av.FFmpegError as error:
        raise ArgumentError(f"{str(path)!r} cannot be read to its end ({error.strerror}); copy it again") from error
    remarks += told
    if (clip.width, clip.height) == track.size[::-1] != track.size:  # turned by BestSource, as the file asks for
        sar = 1 / sar
    return Source(path, clip, stamps, base, sar, origin, track.index, rate, seen, remarks)


def _refusal(path: Path, reason: str) -> str:
    """A sentence on a file that BestSource does not open."""
    if "rotation" in reason:
        degrees = re.sub(r"\D+", " ", reason).split()[0]
        return (
            f"{str(path)!r} is to be turned by {degrees} degrees, and only multiples of 90 are possible; "
            "take the rotation out of it first: ffmpeg -display_rotation 0 -i IN -c copy OUT"
        )
    if "format" in reason:
        return (
            f"{str(path)!r} cannot be read ({reason}); convert it first: "
            "ffmpeg -i IN -pix_fmt yuv444p -c:v ffv1 -c:a copy OUT.mkv"
        )
    return f"{str(path)!r} cannot be read as video ({reason}); give a video file"


def check_file(path: Path) -> None:
    """Raises ArgumentError for a path that is no file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there" if not path.exists() else "is not a file"
        raise ArgumentError(f"the input {str(path)!r} {what}; give the path of a video file")


def file_name(path: Path) -> str | bytes:
    """Return a path as VapourSynth's functions take it, whatever the locale.

    They hand UTF-8 to the system, which is the file's name where that is UTF-8; else the bytes themselves are given.
    """
    if os.name == "nt":
        return str(path.absolute())
    name = os.fsencode(path.absolute())
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name


def check_constant(path: Path, clip: Any) -> None:
    """Raises ClipError unless all frames of a clip have one size and format, vs.Error if they cannot be decoded."""
    if clip.width and clip.height and clip.format and clip.format.id:  # 0, or none, if it changes
        return
    forms = survey(clip).forms.most_common()
    width, _, height = forms[0][0].split()[0].partition("×")
    found = ", ".join(f"{form} in {count}" for form, count in forms)
    raise ClipError(
        f"the frames of {str(path)!r} change their size or format in the course of the film (of those looked at: "
        f"{found}); make them equal first, for example with ffmpeg -i IN -vf scale={width}:{height} -c:v ffv1 -c:a "
        "copy OUT.mkv, or cut the file where they change"
    )


def _rate(clip: Any, stamps: Sequence[int], base: Fraction, track: VideoTrack) -> Fraction:
    """Frames a second: what BestSource says unless it had to guess from frames without timestamps."""
    said = Fraction(clip.fps_num, clip.fps_den) if clip.fps_num > 0 and clip.fps_den > 0 else None
    if len(stamps) < 2:  # it takes the clock of the container for the rate
        return track.rate if track.rate and 1 <= track.rate <= 240 else _USUAL
    steps = sorted(b - a for a, b in itertools.pairwise(stamps) if a != UNKNOWN and b > a)
    usual = 1 / (steps[len(steps) // 2] * base) if steps else None
    if said is None or (usual is not None and UNKNOWN in stamps and abs(usual / said - 1) > Fraction(1, 10)):
        return usual or track.rate or _USUAL
    return said


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

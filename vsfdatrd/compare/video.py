"""Read a video file as progressive RGB frames with timestamps. The only place in this package that reads files.

BestSource decodes. Telecined and interlaced files are made progressive without dropping or adding frames, which is
enough for viewing: fields are matched (VFM), and frames that stay combed show one interpolated field. Nothing is
decimated.
"""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from vsfdatrd.encode.field_detection import eight_bits, padding_of
from vsfdatrd.encode.input_file import video_track
from vsfdatrd.encode.source import check_constant, file_name
from vsfdatrd.errors import ArgumentError, ClipError, FdatrdError, FrameError
from vsfdatrd.system.progress import working
from vsfdatrd.video import color

log = logging.getLogger(__name__)

type Picture = NDArray[np.float32]
"""(H, W, 3) R'G'B', gamma-encoded, nominally 0 to 1."""
type Plane = NDArray[np.float32]
"""(H, W), nominally 0 to 1."""

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""Rec. 709 luma coefficients, used for both files regardless of their own matrix."""


@dataclass(frozen=True, slots=True)
class Video:
    """An open video file with random access to its frames."""

    path: Path
    clip: vs.VideoNode
    """RGBS of constant size, progressive."""
    stored: vs.VideoNode
    """The same frames in the file's own format."""
    times: NDArray[np.float64]
    """Seconds since the first frame, one value per frame, increasing."""
    pixel_aspect: float
    """Width of a pixel divided by its height."""
    treatment: str
    """What was done to interlaced frames, as a sentence; empty for progressive files."""


def check_file(path: Path) -> None:
    """Raise ArgumentError if the path is not a file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ArgumentError(f"{path} {what}; give a video file, such as episode.mkv")


def open_video(path: Path) -> Video:
    """Open a file. Takes as long as decoding it once if BestSource has no index of it yet.

    Args:
        path: The video file.

    Returns:
        The open file.

    Raises:
        ArgumentError: The file is missing, damaged or not a video.
        ClipError: The colors of the clip cannot be converted.
        FdatrdError: BestSource is not installed.
    """
    check_file(path)
    if not hasattr(vs.core, "bs"):
        raise FdatrdError(
            "video files are read with BestSource, which is not installed; install it with: "
            "pip install vapoursynth-bestsource"
        )
    try:
        with working(f"reading {path.name}", delay=2):
            clip, times = _decoded(path)
    except vs.Error as error:
        raise ArgumentError(
            f"{path} cannot be read as video ({error}); give a file that players show, such as episode.mkv"
        ) from error
    check_constant(path, clip)
    try:
        with clip.get_frame(0) as first:
            props: dict[str, Any] = dict(first.props)
        progressive, treatment = _progressive(clip)
        rgb = color.to_rgb(color.describe(progressive))
    except vs.Error as error:
        raise ArgumentError(
            f"the first frames of {path} cannot be decoded ({error}); the file may be damaged"
        ) from error
    except FdatrdError as error:
        raise ClipError(f"{path}: {error}") from error
    wide, high = int(props.get("_SARNum", 1)), int(props.get("_SARDen", 1))
    aspect = wide / high if wide > 0 and high > 0 else 1.0
    return Video(path, rgb, progressive, times, aspect, treatment)


def frame(video: Video, clip: vs.VideoNode, number: int) -> Picture:
    """Return one frame of a clip derived from a video.

    Args:
        video: The file, for the error message.
        clip: The clip.
        number: The frame number.

    Returns:
        (H, W, 3), or (H, W, 1) for a gray clip.

    Raises:
        FrameError: The frame cannot be read; the message names the file.
    """
    try:
        with clip.get_frame(number) as got:
            return np.stack([np.asarray(got[plane], np.float32) for plane in range(clip.format.num_planes)], -1)
    except vs.Error as error:
        raise FrameError(
            f"frame {number} of {video.path} cannot be read ({error}); choose others with --frames, "
            "or make the file anew"
        ) from error


def luma(picture: Picture) -> Plane:
    """Convert (H, W, 3) to luma (H, W), clipped to [0, 1]."""
    plane: Plane = np.clip(picture @ LUMA, 0, 1)
    return plane


def _decoded(path: Path) -> tuple[vs.VideoNode, NDArray[np.float64]]:
    """Return the decoded clip and the times of its frames in seconds."""
    name, track = file_name(path), _track(path)
    with TemporaryDirectory() as folder:
        stamps = Path(folder) / "timecodes.txt"
        try:
            clip = vs.core.bs.VideoSource(name, track=track, timecodes=file_name(stamps), showprogress=0)
        except vs.Error as error:  # raw streams and joined discs lack timestamps for some frames
            log.debug("%s: %s", path, error)
            clip = vs.core.bs.VideoSource(name, track=track, showprogress=0)
        return clip, _times(clip, stamps)


def _track(path: Path) -> int:
    """Return the index of the stream that `encode` would choose; -1, the first video stream, without PyAV."""
    try:
        import av
    except ImportError:
        return -1
    try:
        track = video_track(path)
    except av.FFmpegError as error:
        raise ArgumentError(
            f"{path} cannot be read as video ({error.strerror}); give a file that players show, such as episode.mkv"
        ) from error
    if track is None:
        raise ArgumentError(f"{path} holds no video; give a file that players show, such as episode.mkv")
    return track.index


def _times(clip: vs.VideoNode, file: Path) -> NDArray[np.float64]:
    """Return times from a timecodes file (version 2: milliseconds, one per line) if valid, else from the frame rate.

    Assumes 25 frames per second if there is neither.
    """
    try:
        stamps = np.loadtxt(file, comments="#", ndmin=1) / 1000
    except (OSError, ValueError):
        stamps = np.empty(0)
    if len(stamps) == clip.num_frames and np.isfinite(stamps).all() and (np.diff(stamps) > 0).all():
        return np.asarray(stamps - stamps[0], np.float64)
    return np.arange(clip.num_frames) / (float(clip.fps) or 25.0)


def _progressive(clip: vs.VideoNode) -> tuple[vs.VideoNode, str]:
    """Make the clip progressive; return it with a description. Three sampled frames decide whether it is interlaced."""
    field = 0
    for number in sorted({0, clip.num_frames // 3, clip.num_frames * 2 // 3}):
        with contextlib.suppress(vs.Error), clip.get_frame(number) as got:  # a frame may be damaged
            field = field or int(got.props.get("_FieldBased", 0))
    if not field:
        return clip, ""
    top = int(field == vs.FIELD_TOP)
    fits = clip.height % 2 == 0 and min(clip.width, clip.height) >= 16  # required by VIVTC and Bwdif
    single = _one_field(clip, top) if fits else None
    shown, done = single, "is interlaced: its frames show one field, interpolated"
    if hasattr(vs.core, "vivtc") and clip.format.color_family in (vs.YUV, vs.GRAY) and fits:
        padded = _padded(clip)
        matched = eight_bits(padded).vivtc.VFM(order=top, clip2=padded).std.Crop(bottom=padded.height - clip.height)
        done = "is interlaced: fields were matched as for telecined film, none dropped"
        shown = matched
        if single is not None:
            shown = matched.std.FrameEval(
                lambda n, f: single if f.props.get("_Combed") else matched, prop_src=matched, clip_src=[single, matched]
            )
    if shown is None:
        return clip.std.SetFrameProps(_FieldBased=0), "says that it is interlaced, and is shown as it is"
    # Some frames may still be flagged as interlaced; all of them are progressive now.
    return shown.std.SetFrameProps(_FieldBased=0), done


def _one_field(clip: vs.VideoNode, top: int) -> vs.VideoNode | None:
    """Return one field of each frame with the other lines interpolated; None if no installed filter supports it."""
    try:
        return clip.resize.Bob(tff=top)[::2]
    except vs.Error as error:  # such as 478 lines of 4:2:0: the fields' chroma would differ in height
        log.debug("Bob: %s", error)
    try:
        padded = _padded(clip)
        return vs.core.bwdif.Bwdif(padded, field=top).std.Crop(bottom=padded.height - clip.height)
    except (AttributeError, vs.Error) as error:
        log.debug("bwdif: %s", error)
        return None


def _padded(clip: vs.VideoNode) -> vs.VideoNode:
    """Pad the clip to the number of lines that VFM and Bwdif require."""
    lines = padding_of(clip)
    return vs.core.std.StackVertical([clip, clip.std.Crop(top=clip.height - lines)]) if lines else clip

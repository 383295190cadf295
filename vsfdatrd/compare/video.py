"""Read a video file as progressive RGB frames with timestamps.

BestSource decodes. Telecined and interlaced files are made progressive without dropping or adding frames, which is
enough for viewing: fields are matched (VFM), and frames that stay combed show one interpolated field. Nothing is
decimated.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from vsfdatrd.encode.field_detection import MIN_SIDE, padding_lines, to_eight_bits
from vsfdatrd.encode.source import check_constant_format, check_plugins, find_track, frame_rate, read_frames
from vsfdatrd.encode.timestamps import fill_gaps
from vsfdatrd.errors import ArgumentError, ClipError, FdatrdError, FrameError
from vsfdatrd.system.progress import report_progress
from vsfdatrd.video import color

type Picture = NDArray[np.float32]
"""(H, W, 3) R'G'B', gamma-encoded, nominally 0 to 1."""
type Plane = NDArray[np.float32]
"""(H, W), nominally 0 to 1."""

LUMA_COEFFICIENTS = np.array([0.2126, 0.7152, 0.0722], np.float32)
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
    """What was done to interlaced frames, as a phrase that follows the file's name; empty for progressive files."""


def open_video(path: Path) -> Video:
    """Open a file. If BestSource has no index of the file yet, this takes as long as decoding it once.

    Args:
        path: The video file.

    Returns:
        The open file.

    Raises:
        ArgumentError: The file is missing, damaged or not a video.
        ClipError: The colors of the clip cannot be converted.
        EncodeError: A plugin or library is missing.
    """
    check_plugins(vs.core)
    track = find_track(path)
    with report_progress(f"reading {path.name}", delay=2):
        clip, stamps, base = read_frames(path, track, None)
    check_constant_format(path, clip)
    try:
        with clip.get_frame(0) as first:
            props: dict[str, Any] = dict(first.props)
        progressive, treatment = _make_progressive(clip)
        stored, rgb = convert_to_rgb(path, progressive)
    except vs.Error as error:
        raise ArgumentError(
            f"the first frames of {path} cannot be decoded ({error}); the file may be damaged"
        ) from error
    numerator, denominator = int(props.get("_SARNum", 1)), int(props.get("_SARDen", 1))
    aspect = numerator / denominator if numerator > 0 and denominator > 0 else 1.0
    rate = frame_rate(clip, stamps, base, track)
    return Video(path, rgb, stored, _frame_times(stamps, base, rate), aspect, treatment)


def convert_to_rgb(path: Path, clip: vs.VideoNode) -> tuple[vs.VideoNode, vs.VideoNode]:
    """Return the frames of a file with complete color properties, and converted to RGBS.

    Raises:
        ClipError: Their colors cannot be converted; the message names the file.
    """
    try:
        source = color.inspect_clip(clip, path.name)
        if source.unconvertible:
            raise ClipError(source.unconvertible)
        complete = color.add_missing_props(source)  # logs the assumptions; later conversions find none to log
        return complete, color.to_rgb(color.inspect_clip(complete))
    except FdatrdError as error:
        raise ClipError(f"{path}: {error}") from error


def read_frame(video: Video, clip: vs.VideoNode, number: int) -> Picture:
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
            "or create the file again"
        ) from error


def to_luma(picture: Picture) -> Plane:
    """Convert (H, W, 3) to luma (H, W), clipped to [0, 1]."""
    plane: Plane = np.clip(picture @ LUMA_COEFFICIENTS, 0, 1)
    return plane


def _frame_times(stamps: Sequence[int], base: Fraction, rate: Fraction) -> NDArray[np.float64]:
    """Return the times of frames in seconds: from their timestamps if these increase, else from the frame rate."""
    filled = fill_gaps(stamps, 1 / (rate * base))
    times: NDArray[np.float64] = np.array([float((stamp - filled[0]) * base) for stamp in filled])
    if (np.diff(times) > 0).all():
        return times
    return np.arange(len(stamps)) / float(rate)


def _make_progressive(clip: vs.VideoNode) -> tuple[vs.VideoNode, str]:
    """Make a clip progressive; three sampled frames decide whether it is interlaced.

    Returns:
        The clip, and what was done as for `Video.treatment`.
    """
    field = 0
    for number in sorted({0, clip.num_frames // 3, clip.num_frames * 2 // 3}):
        with contextlib.suppress(vs.Error), clip.get_frame(number) as got:  # a frame may be damaged
            field = field or int(got.props.get("_FieldBased", 0))
    if not field:
        return clip, ""
    result, treatment = clip, "is marked as interlaced, and is shown as it is"
    if clip.height % 2 == 0 and min(clip.width, clip.height) >= MIN_SIDE:
        lines, top = padding_lines(clip), int(field == vs.FIELD_TOP)
        padded = vs.core.std.StackVertical([clip, clip.std.Crop(top=clip.height - lines)]) if lines else clip
        matched = to_eight_bits(padded).vivtc.VFM(order=top, clip2=padded)
        interpolated = padded.bwdif.Bwdif(field=top)
        result = matched.std.FrameEval(
            lambda n, f: interpolated if f.props["_Combed"] else matched,
            prop_src=matched,
            clip_src=[interpolated, matched],
        ).std.Crop(bottom=lines)
        treatment = "is interlaced: fields were matched as for telecined film, and no frame was dropped"
    # Some frames may still be flagged as interlaced; all of them are progressive now.
    return result.std.SetFrameProps(_FieldBased=0), treatment

"""Detect progressive, telecined or interlaced video from the picture, independent of field flags.

VFM (VIVTC) measures the combing of each frame with its own fields and with those of the adjacent frames. In moving
frames, progressive video has none; telecined film has combing in two of five frames until fields are matched;
interlaced video has combing with any match.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from vsfdatrd.encode.drawn_lines import MAX_COMBED_PIXELS, Luma, are_drawn
from vsfdatrd.encode.survey import Survey, sample_windows, survey_clip
from vsfdatrd.errors import ArgumentError

type Kind = Literal["progressive", "ivtc", "match", "deint"]

FIELD_CHOICES = ("auto", "progressive", "ivtc", "deint")
MIN_SIDE = 16
"""Minimum width and height in pixels of interlaced video: VFM and Bwdif overrun their buffers in smaller frames."""
_TESTED_FRAMES = 8  # approximate number of combed frames per window that are tested for drawn lines
_MIN_MEAN_DIFFERENCE = 0.0004  # mean difference from the previous frame, for values from 0 to 1; smaller ones are grain
_MIN_COMBED = 0.08  # share of combed frames among moving ones; fewer are isolated bad frames of progressive video
# Share of combed frames that may still be combed after matching, such as interlaced credits over telecined film.
_MAX_STILL_COMBED = 0.3
_MATCH_C = 1  # index of match c (the frame's own two fields) in VFM's matches p, c, n, b, u


@dataclass(frozen=True, slots=True)
class Fields:
    """How to process the fields of a clip, and why."""

    kind: Kind
    """``match`` is for shifted fields, as on some PAL discs: fields are matched, but no frame is dropped."""
    top_first: bool
    """Whether the top field of a frame is shown before the bottom field."""
    why: str
    """The reason for the decision, as a phrase for the user."""
    vivtc_format: str = "clip"
    """VapourSynth's name of the 8-bit format in which VIVTC analyzes the frames; ``clip`` for the clip's own format."""
    padding: int = 0
    """Lines to add at the bottom during field processing, see `padding_lines`."""

    def rate(self, rate: Fraction) -> Fraction:
        """Return the frame rate after field processing.

        Args:
            rate: Frames per second of the source.
        """
        return rate * 4 / 5 if self.kind == "ivtc" else rate


@dataclass(frozen=True, slots=True)
class _CombingCounts:
    """Counts from the sampled frames."""

    moving: int
    combed: int
    """Moving frames that are combed as stored."""
    still_combed: int
    """Combed frames that are still combed with the best match."""
    repaired: tuple[int, ...]
    """Combed frames by the match that VFM chose: p, c, n, b, u."""
    drawn: int
    """Moving frames that look combed because of drawn lines; not included in `combed`."""


def choose_fields(clip: Any, rate: Fraction, requested: str, sample: Survey | None = None) -> Fields:
    """Choose the field processing for a clip.

    Args:
        clip: The frames as stored, a vapoursynth.VideoNode.
        rate: Frames per second.
        requested: The user's choice, one of `FIELD_CHOICES`.
        sample: Result of `survey_clip` for the clip; None to compute it here.

    Raises:
        ArgumentError: Field processing was requested for a clip that cannot have fields: RGB, an odd number of lines,
            fewer than two frames, or fewer than 16 pixels a side.
        vs.Error: A frame cannot be decoded.
    """
    form = matched_format(clip.format)
    vivtc_format = "clip" if form.id == clip.format.id else form.name.upper()
    return Fields(*_choose_fields(clip, rate, requested, sample), vivtc_format, padding_lines(clip))


def _choose_fields(clip: Any, rate: Fraction, requested: str, sample: Survey | None) -> tuple[Kind, bool, str]:
    """Return the first three fields of `Fields`."""
    import vapoursynth as vs

    if clip.format.color_family == vs.RGB:
        if requested not in ("auto", "progressive"):
            raise ArgumentError(f"--field {requested} is for YUV, and this is {clip.format.name}; leave it out")
        return "progressive", True, f"{clip.format.name} is taken as it is"
    sample = sample or survey_clip(clip)
    flags, repeats = sample.flags, sample.repeats
    marked = max(flags) if flags and sum(map(bool, flags)) * 2 > len(flags) else 0
    top = marked != 1
    label = {0: "progressive", 1: "interlaced, bottom field first", 2: "interlaced, top field first"}[marked]
    if requested == "progressive":
        return "progressive", top, "as requested"
    fieldless = clip.height % 2 or clip.num_frames < 2 or min(clip.width, clip.height) < MIN_SIDE
    count = f"{clip.num_frames} frame{'s'[: clip.num_frames - 1]} of {clip.width}×{clip.height} pixels"
    if requested in ("deint", "ivtc") and fieldless:
        raise ArgumentError(
            f"--field {requested} is for frames of two fields, and there are none in {count}; leave it out"
        )
    matched: Kind = "ivtc" if _is_ntsc_video(rate) else "match"
    if requested in ("deint", "ivtc"):
        kind: Kind = "deint" if requested == "deint" else matched
        return kind, top, f"as requested, {'top' if top else 'bottom'} field first"
    if fieldless:
        return "progressive", top, f"no fields in {count}"
    result = _measure_combing(clip, top)
    if result.combed < max(2, _MIN_COMBED * result.moving):
        lines = f", {result.drawn} have drawn lines that look like combing" if result.drawn else ""
        soft = "; its repeat-field flags are ignored" if repeats else ""
        why = f"{result.combed} of {result.moving} moving frames are combed{lines}, and the file says {label}{soft}"
        return "progressive", top, why
    if not marked:
        other = _measure_combing(clip, not top)
        if other.still_combed < result.still_combed:
            result, top = other, not top
    order = "top field first" if top else "bottom field first"
    evidence = (
        f"{result.combed} of {result.moving} moving frames are combed, {result.still_combed} after field matching"
    )
    if result.still_combed > _MAX_STILL_COMBED * result.combed:
        return "deint", top, f"{evidence}; {order}"
    if matched == "ivtc" and result.combed > 0.8 * result.moving and max(result.repaired) > 0.9 * sum(result.repaired):
        return "match", top, f"{evidence}, always the same way; {order}"
    return matched, top, f"{evidence}; {order}"


def matched_format(form: Any) -> Any:
    """Return the 8-bit format in which VIVTC analyzes clips of a format (both vapoursynth.VideoFormat).

    It has the same subsampling; where VIVTC does not support that, it is GRAY8 (luma only).

    Args:
        form: A vapoursynth.VideoFormat.
    """
    import vapoursynth as vs

    if form.color_family == vs.YUV and max(form.subsampling_w, form.subsampling_h) <= 1:
        return form.replace(sample_type=vs.INTEGER, bits_per_sample=8)
    return vs.core.get_video_format(vs.GRAY8)


def padding_lines(clip: Any) -> int:
    """Return the number of lines to add at the bottom of a clip for VFM and Bwdif.

    They leave the last chroma line unwritten if the number of chroma lines is odd: 486 lines in 4:2:0 have 243.

    Args:
        clip: A vapoursynth.VideoNode.
    """
    return int(-clip.height % (2 << clip.format.subsampling_h))


def to_eight_bits(clip: Any) -> Any:
    """Convert a clip to the format in which VIVTC analyzes it, see `matched_format`.

    Args:
        clip: A vapoursynth.VideoNode.
    """
    import vapoursynth as vs
    import vsutil

    form = matched_format(clip.format)
    if clip.format.id == form.id:
        return clip
    # The resizer would process frames marked as interlaced field by field, for which chroma may lack a line; only the
    # bit depth changes here.
    clip = clip.std.SetFieldBased(0)
    luma = vsutil.plane(clip, 0) if form.color_family == vs.GRAY else clip
    return luma if luma.format.id == form.id else luma.resize.Point(format=form.id)


def _is_ntsc_video(rate: Fraction) -> bool:
    return abs(rate - Fraction(30000, 1001)) < Fraction(1, 5)


def _measure_combing(clip: Any, top: bool) -> _CombingCounts:
    """Count combed frames in the sampled windows of a clip, whose top field is first if `top`."""
    plain = to_eight_bits(clip)
    matched = plain.vivtc.VFM(order=int(top), micout=1)
    moving = combed = still_combed = drawn = 0
    repaired = [0] * 5
    for window in sample_windows(clip.num_frames):
        tested = 0
        lines = lines_left = False  # result for the last tested frame; numpy is slow, and adjacent frames are similar
        test_interval = max(1, len(window) // _TESTED_FRAMES)
        for n in window[1:]:
            with matched.get_frame(n) as frame:
                props = frame.props
                if props["VFMPlaneStatsDiff"] < _MIN_MEAN_DIFFERENCE:
                    continue
                moving += 1
                mics, match = props["VFMMics"], props["VFMMatch"]
            if mics[_MATCH_C] <= MAX_COMBED_PIXELS:
                continue
            if tested % test_interval == 0:
                lines = _has_drawn_lines(plain, n)
                lines_left = not lines and mics[match] > MAX_COMBED_PIXELS and _has_drawn_lines(matched, n)
            tested += 1
            if lines:
                drawn += 1
                continue
            combed += 1
            still_combed += mics[match] > MAX_COMBED_PIXELS and not lines_left
            repaired[match] += 1
    return _CombingCounts(moving, combed, still_combed, tuple(repaired), drawn)


def _has_drawn_lines(clip: Any, number: int) -> bool:
    """Return True if the combing of a frame is drawn lines, see `are_drawn`."""

    def luma(n: int) -> Luma:
        with clip.get_frame(n) as frame:
            return np.array(frame[0])

    before = luma(number - 1) if number > 0 else None
    after = luma(number + 1) if number + 1 < clip.num_frames else None
    return are_drawn(before, luma(number), after)

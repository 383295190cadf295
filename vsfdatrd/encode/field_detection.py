"""Progressive, telecined or interlaced: what frames show, whatever their flags say.

VFM (VIVTC) tells how much combing each frame has with its own fields and with those of its neighbours. Where things
move, a progressive frame has none; telecined film has some until fields are matched (two frames in five); video that
was shot in fields keeps it however they are matched.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from vsfdatrd.encode.drawn_lines import MOST, Luma, are_drawn
from vsfdatrd.encode.survey import Survey, survey, windows
from vsfdatrd.errors import ArgumentError

type Kind = Literal["progressive", "ivtc", "match", "deint"]

CHOICES = ("auto", "progressive", "ivtc", "deint")
_TESTS = 8  # combed frames of a part, or so, that are tested for drawn lines
_SMALLEST = 16  # pixels a side of what can have fields
_MOVES = 0.0004  # mean difference from the frame before, of 1: less is grain
_SOME = 0.08  # share of moving frames that is no longer a few bad ones
_LEFT = 0.3  # share of those combed that may stay so, as credits in video over film do
_OWN = 1  # among the matches p, c, n, b, u: the frame's own two fields


@dataclass(frozen=True, slots=True)
class Fields:
    """What is to be done with fields, and why."""

    kind: Kind
    """``match``: frames whose fields are shifted, as on some PAL discs; put together again, none is dropped."""
    top_first: bool
    why: str
    seen_as: str = "clip"
    """The 8-bit format in which VIVTC looks at the frames, as VapourSynth names it; ``clip``: in their own."""
    padding: int = 0
    """Lines to add below while fields are put right, see `padding_of`."""

    def rate(self, rate: Fraction) -> Fraction:
        """Frames a second that come of so many."""
        return rate * 4 / 5 if self.kind == "ivtc" else rate


@dataclass(frozen=True, slots=True)
class _Evidence:
    moving: int
    combed: int
    """Of these: combed as they are stored."""
    left: int
    """Of these: combed with the best fields of the neighbours as well."""
    repaired: tuple[int, ...]
    """Of these: the matches that took the combing away, how often each."""
    drawn: int
    """Moving frames that look combed for lines that are drawn; not among the combed ones."""


def decide(clip: Any, rate: Fraction, asked: str, seen: Survey | None = None) -> Fields:
    """Decide what to do with the fields of a clip.

    Args:
        clip: Frames as they are stored.
        rate: Frames a second.
        asked: One of CHOICES.
        seen: What `survey` says of the clip, if it is known already.

    Raises:
        ArgumentError: Fields are asked for that the clip cannot have: those of RGB, or of an odd number of lines.
        vs.Error: A frame cannot be decoded.
    """
    form = matched_format(clip.format)
    seen_as = "clip" if form.id == clip.format.id else form.name.upper()
    return replace(_decide(clip, rate, asked, seen), seen_as=seen_as, padding=padding_of(clip))


def _decide(clip: Any, rate: Fraction, asked: str, seen: Survey | None) -> Fields:
    import vapoursynth as vs

    if clip.format.color_family == vs.RGB:
        if asked not in ("auto", "progressive"):
            raise ArgumentError(f"--field {asked} is for YUV, and this is {clip.format.name}; leave it out")
        return Fields("progressive", True, f"{clip.format.name} is taken as it is")
    seen = seen or survey(clip)
    flags, repeats = seen.flags, seen.repeats
    marked = max(flags) if flags and sum(map(bool, flags)) * 2 > len(flags) else 0
    top = marked != 1
    says = {0: "progressive", 1: "interlaced, bottom field first", 2: "interlaced, top field first"}[marked]
    if asked == "progressive":
        return Fields("progressive", top, "as asked")
    # VFM and Bwdif overrun their buffers where there are fewer pixels than a block has.
    fieldless = clip.height % 2 or clip.num_frames < 2 or min(clip.width, clip.height) < _SMALLEST
    count = f"{clip.num_frames} frame{'s'[: clip.num_frames - 1]} of {clip.width}×{clip.height} pixels"
    if asked in ("deint", "ivtc") and fieldless:
        raise ArgumentError(f"--field {asked} is for frames of two fields, and there are none in {count}; leave it out")
    if asked == "deint":
        return Fields("deint", top, f"as asked, {'top' if top else 'bottom'} field first")
    if asked == "ivtc":
        kind: Kind = "ivtc" if _is_ntsc_video(rate) else "match"
        return Fields(kind, top, f"as asked, {'top' if top else 'bottom'} field first")
    if fieldless:
        return Fields("progressive", top, f"no fields in {count}")
    found = _look(clip, top)
    if found.combed < max(2, _SOME * found.moving):
        lines = f", {found.drawn} have drawn lines that look like them" if found.drawn else ""
        soft = "; its flags for repeating fields are not followed" if repeats else ""
        return Fields(
            "progressive",
            top,
            f"{found.combed} of {found.moving} moving frames show combs{lines}, and the file says {says}{soft}",
        )
    if not marked:
        other = _look(clip, not top)
        if other.left < found.left:
            found, top = other, not top
    order = "top field first" if top else "bottom field first"
    told = f"{found.combed} of {found.moving} moving frames show combs, {found.left} once fields are matched"
    if found.left > _LEFT * found.combed:
        return Fields("deint", top, f"{told}; {order}")
    if not _is_ntsc_video(rate):
        return Fields("match", top, f"{told}; {order}")
    if found.combed > 0.8 * found.moving and max(found.repaired) > 0.9 * sum(found.repaired):
        return Fields("match", top, f"{told}, always the same way; {order}")
    return Fields("ivtc", top, f"{told}; {order}")


def matched_format(form: Any) -> Any:
    """Return the 8-bit format in which VIVTC looks at clips of a format: luma alone where it lacks the subsampling."""
    import vapoursynth as vs

    taken = (vs.YUV420P8, vs.YUV422P8, vs.YUV440P8, vs.YUV444P8)
    for preset in taken:
        known = vs.core.get_video_format(preset)
        if form.color_family == vs.YUV and (form.subsampling_w, form.subsampling_h) == (
            known.subsampling_w, known.subsampling_h,
        ):  # fmt: skip
            return known
    return vs.core.get_video_format(vs.GRAY8)


def padding_of(clip: Any) -> int:
    """Return how many lines a clip lacks for VFM and Bwdif.

    They leave the last line of chroma unwritten if the number of its lines is odd: 486 lines of 4:2:0 have 243.
    """
    return int(-clip.height % (2 << clip.format.subsampling_h))


def eight_bits(clip: Any) -> Any:
    """Return a clip as VIVTC takes it, see `matched_format`."""
    import vapoursynth as vs

    form = matched_format(clip.format)
    if clip.format.id == form.id:
        return clip
    # Only bits are dropped. Frames marked as interlaced would be resized by fields, for which chroma may lack a line.
    clip = clip.std.SetFieldBased(0)
    luma = clip.std.ShufflePlanes(0, vs.GRAY) if form.color_family == vs.GRAY else clip
    return luma if luma.format.id == form.id else luma.resize.Point(format=form.id)


def _is_ntsc_video(rate: Fraction) -> bool:
    return abs(rate - Fraction(30000, 1001)) < Fraction(1, 5)


def _look(clip: Any, top: bool) -> _Evidence:
    plain = eight_bits(clip)
    matched = plain.vivtc.VFM(order=int(top), micout=1)
    moving = combed = left = drawn = 0
    repaired = [0] * 5
    for window in windows(clip.num_frames):
        tested = 0
        lines = lines_left = False  # what the frame tested last was: numpy is slow, and neighbours are alike
        every = max(1, len(window) // _TESTS)
        for n in window[1:]:
            with matched.get_frame(n) as frame:
                props = frame.props
                if props["VFMPlaneStatsDiff"] < _MOVES:
                    continue
                moving += 1
                mics, match = props["VFMMics"], props["VFMMatch"]
            if mics[_OWN] <= MOST:
                continue
            if tested % every == 0:
                lines = _drawn(plain, n)
                lines_left = not lines and mics[match] > MOST and _drawn(matched, n)
            tested += 1
            if lines:
                drawn += 1
                continue
            combed += 1
            left += mics[match] > MOST and not lines_left
            repaired[match] += 1
    return _Evidence(moving, combed, left, tuple(repaired), drawn)


def _drawn(clip: Any, number: int) -> bool:
    """Whether what looks like combing in a frame is drawn, see `are_drawn`."""
    before, frame, after = (_luma(clip, n) for n in (number - 1, number, number + 1))
    return frame is not None and are_drawn(before, frame, after)


def _luma(clip: Any, number: int) -> Luma | None:
    if not 0 <= number < clip.num_frames:
        return None
    with clip.get_frame(number) as frame:
        return np.array(frame[0])

"""Progressive, telecined or interlaced: what frames show, whatever their flags say.

VFM (VIVTC) tells how much combing each frame has with its own fields and with those of its neighbours. Where things
move, a progressive frame has none; telecined film has some until fields are matched (two frames in five); video that
was shot in fields keeps it however they are matched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from vsfdatrd.errors import ArgumentError

type Kind = Literal["progressive", "ivtc", "match", "deint"]

CHOICES = ("auto", "progressive", "ivtc", "deint")
WINDOWS, LENGTH = 16, 25
"""Parts of a film that are looked at, and frames of each (five cycles of telecine)."""

_COMBED = 80  # of 256: VFM's own threshold, `mi`
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


def decide(clip: Any, rate: Fraction, asked: str) -> Fields:
    """What to do with a clip (frames as stored). rate: frames a second. asked: one of CHOICES.

    Raises ArgumentError where fields of RGB are asked for.
    """
    import vapoursynth as vs

    if clip.format.color_family == vs.RGB:
        if asked not in ("auto", "progressive"):
            raise ArgumentError(f"--field {asked} is for YUV, and this is {clip.format.name}; leave it out")
        return Fields("progressive", True, f"{clip.format.name} is taken as it is")
    flags, repeats = _flags(clip)
    marked = max(flags) if flags and sum(map(bool, flags)) * 2 > len(flags) else 0
    top = marked != 1
    says = {0: "progressive", 1: "interlaced, bottom field first", 2: "interlaced, top field first"}[marked]
    if asked == "progressive":
        return Fields("progressive", top, "as asked")
    if asked == "deint":
        return Fields("deint", top, f"as asked, {'top' if top else 'bottom'} field first")
    if asked == "ivtc":
        kind: Kind = "ivtc" if _is_ntsc_video(rate) else "match"
        return Fields(kind, top, f"as asked, {'top' if top else 'bottom'} field first")
    if clip.height % 2 or clip.num_frames < 2:
        return Fields("progressive", top, f"{clip.num_frames} frames of {clip.height} lines hold no fields")
    seen = _look(clip, top)
    if seen.combed < max(2, _SOME * seen.moving):
        soft = "; its flags for repeating fields are not followed" if repeats else ""
        return Fields(
            "progressive",
            top,
            f"{seen.combed} of {seen.moving} moving frames show combs, and the file says {says}{soft}",
        )
    if not marked:
        other = _look(clip, not top)
        if other.left < seen.left:
            seen, top = other, not top
    order = "top field first" if top else "bottom field first"
    told = f"{seen.combed} of {seen.moving} moving frames show combs, {seen.left} once fields are matched"
    if seen.left > _LEFT * seen.combed:
        return Fields("deint", top, f"{told}; {order}")
    if not _is_ntsc_video(rate):
        return Fields("match", top, f"{told}; {order}")
    if seen.combed > 0.8 * seen.moving and max(seen.repaired) > 0.9 * sum(seen.repaired):
        return Fields("match", top, f"{told}, always the same way; {order}")
    return Fields("ivtc", top, f"{told}; {order}")


def _is_ntsc_video(rate: Fraction) -> bool:
    return abs(rate - Fraction(30000, 1001)) < Fraction(1, 5)


def _windows(frames: int) -> Sequence[range]:
    """Where to look: evenly over the film, all of a short one."""
    if frames <= WINDOWS * LENGTH:
        return (range(frames),)
    return [range(at, at + LENGTH) for at in (i * (frames - LENGTH) // (WINDOWS - 1) for i in range(WINDOWS))]


def _flags(clip: Any) -> tuple[list[int], bool]:
    """_FieldBased of some frames, and whether the disc asks for fields to be repeated (soft telecine)."""
    flags, repeats = [], 0
    for window in _windows(clip.num_frames):
        for n in window[:10]:
            with clip.get_frame(n) as frame:
                flags.append(int(frame.props.get("_FieldBased", 0)))
                repeats += bool(frame.props.get("RepeatField", 0))
    return flags, repeats * 4 > len(flags)


def _look(clip: Any, top: bool) -> _Evidence:
    import vapoursynth as vs

    plain = clip if clip.format.id == vs.YUV420P8 else clip.resize.Point(format=vs.YUV420P8)
    matched = plain.vivtc.VFM(order=int(top), micout=1)
    moving = combed = left = 0
    repaired = [0] * 5
    for window in _windows(clip.num_frames):
        for n in window[1:]:
            with matched.get_frame(n) as frame:
                props = frame.props
                if props["VFMPlaneStatsDiff"] < _MOVES:
                    continue
                moving += 1
                mics, match = props["VFMMics"], props["VFMMatch"]
                if mics[_OWN] > _COMBED:
                    combed += 1
                    left += mics[match] > _COMBED
                    repaired[match] += 1
    return _Evidence(moving, combed, left, tuple(repaired))

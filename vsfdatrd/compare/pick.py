"""Which frames of a video tell most about how it was upscaled, and why.

Half of them have the sharpest lines of their part of the film, where there is most to gain; half start a scene, where
an encoder has nothing to lean on and a wrong match would show. Frames that show nothing are left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsfdatrd.compare.match import DIFFERENT, Thumbnails, likeness
from vsfdatrd.compare.video import Plane, Video, frame, luma
from vsfdatrd.errors import ArgumentError, FrameError

log = logging.getLogger(__name__)

MOST = 50
"""Frames that one comparison may have: a page of more is too large to open."""
CANDIDATES = 4
"""Frames looked at for each that is wanted."""
SCAN = 120
"""Frames through which the next cut is looked for."""

_EMPTY = 0.03  # standard deviation of luma below which a frame shows nothing: black, white, the middle of a fade
_ALIKE = 0.97  # likeness of thumbnails above which two frames show the same drawing


@dataclass(frozen=True, slots=True)
class Pick:
    """A frame that was chosen."""

    frame: int
    why: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    frame: int
    small: Plane
    lines: float
    """Mean square of luma's steepness: thin strong lines count, noise hardly does."""

    @property
    def empty(self) -> bool:
        return float(self.small.std()) < _EMPTY


def check(frames: Sequence[int], count: int) -> None:
    """Whether so many frames can be shown, before any file is opened.

    Raises ArgumentError for more than 50, and for a count of none.
    """
    if len(set(frames)) > MOST:
        raise ArgumentError(f"--frames names {len(set(frames))} frames, and one page holds {MOST} at most; name fewer")
    if not 1 <= count <= MOST:
        raise ArgumentError(f"--count {count} is not possible; give 1 to {MOST}")


def asked(video: Video, frames: Sequence[int]) -> list[Pick]:
    """The frames a user asked for, each once, in order.

    Raises ArgumentError if the video does not have one of them.
    """
    count = video.clip.num_frames
    if outside := [n for n in frames if not 0 <= n < count]:
        raise ArgumentError(
            f"--frames {' '.join(map(str, outside))} is not in {video.path}, which has the frames 0 to {count - 1}; "
            "frames are counted in the second file, from 0"
        )
    return [Pick(n, "asked for") for n in sorted(set(frames))]


def telling(video: Thumbnails, count: int, among: range) -> list[Pick]:
    """At most `count` of these frames that are worth looking at, in order; fewer if fewer differ.

    Frames that cannot be read are passed over. They are read in order, since there are files in which seeking means
    decoding from the start. Raises FrameError if none of those that are tried can be read.
    """
    wanted = count // 2
    total = len(among)
    places = min(total, max(12, CANDIDATES * count))
    searched = max(1, places // (2 * wanted)) if wanted else places + 1  # every so manyth place a cut is looked for
    candidates: list[_Candidate] = []
    starts: list[_Candidate] = []
    for i in range(places):
        number, after = (among[0] + int((j + 0.5) * total / places) for j in (i, i + searched))
        candidates += _seen(video, number)
        if wanted and i % searched == 0:
            starts += _next_cut(video, range(number, min(number + SCAN, after, among[-1]) + 1))
    if not candidates:
        raise FrameError(
            f"no frame of {video.video.path} can be read that was tried; the file is damaged, make it anew"
        )
    chosen = [(start, "a scene starts") for start in sorted(starts, key=lambda c: -c.lines)[:wanted]]
    shown = [c for c in candidates if not c.empty] or candidates[:1]
    for apart in (total / (2 * count), 1):  # first spread over the film, then wherever something else is shown
        for candidate in sorted(shown, key=lambda c: -c.lines):
            taken = [c for c, _ in chosen]
            if len(chosen) < count and all(_new(candidate, other, apart) for other in taken):
                chosen.append((candidate, "sharp lines"))
    return [Pick(c.frame, why) for c, why in sorted(chosen, key=lambda c: c[0].frame)]


def _new(candidate: _Candidate, other: _Candidate, apart: float) -> bool:
    return abs(candidate.frame - other.frame) >= apart and likeness(candidate.small, other.small) < _ALIKE


def _seen(video: Thumbnails, number: int) -> list[_Candidate]:
    """A frame as a candidate; none if it cannot be read."""
    try:
        small = video.keep(number)
        plane = luma(frame(video.video, video.video.clip, number))
    except FrameError as error:
        log.debug("%s", error)
        return []
    steep = float(np.mean(np.diff(plane, axis=0) ** 2) + np.mean(np.diff(plane, axis=1) ** 2))
    return [_Candidate(number, small, steep)]


def _next_cut(video: Thumbnails, numbers: range) -> list[_Candidate]:
    """The first of these frames that starts a scene: it shows something, and not what the frame before it shows.

    In a fade or a pan neighbours are alike.
    """
    last: Plane | None = None
    for number in numbers:
        try:
            small = video.at(number)
        except FrameError as error:
            log.debug("%s", error)
            last = None
            continue
        if last is not None and float(small.std()) >= _EMPTY and likeness(last, small) < DIFFERENT:
            return _seen(video, number)
        last = small
    return []

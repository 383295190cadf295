"""Which frames of a video tell most about how it was upscaled, and why.

Half of them have the sharpest lines of their part of the film, where there is most to gain; half start a scene, where
an encoder has nothing to lean on and a wrong match would show. Frames that show nothing are left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from vsfdatrd.compare.match import DIFFERENT, likeness, thumbnail, thumbnails
from vsfdatrd.compare.video import Plane, Video, frame, luma
from vsfdatrd.errors import ArgumentError, FrameError

log = logging.getLogger(__name__)

MOST = 50
"""Frames that one comparison may have: a page of more is too large to open."""
CANDIDATES = 5
"""Frames looked at for each that is wanted."""

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


def asked(video: Video, frames: Sequence[int]) -> list[Pick]:
    """The frames a user asked for, each once, in order.

    Raises ArgumentError if there are too many, or if the video does not have one of them.
    """
    count = video.clip.num_frames
    if outside := [n for n in frames if not 0 <= n < count]:
        raise ArgumentError(
            f"--frames {' '.join(map(str, outside))} is not in {video.path}, which has the frames 0 to {count - 1}; "
            "frames are counted in the second file, from 0"
        )
    chosen = sorted(set(frames))
    if len(chosen) > MOST:
        raise ArgumentError(f"--frames names {len(chosen)} frames, and one page holds {MOST} at most; name fewer")
    return [Pick(n, "asked for") for n in chosen]


def telling(video: Video, count: int, among: range) -> list[Pick]:
    """At most `count` of these frames that are worth looking at, in order; fewer if fewer differ.

    Frames that cannot be read are passed over. Raises ArgumentError for a count that is not 1 to 50, and FrameError if
    no frame can be read.
    """
    if not 1 <= count <= MOST:
        raise ArgumentError(f"--count {count} is not possible; give 1 to {MOST}")
    look = _Look(video)
    total = len(among)
    places = min(total, max(12, CANDIDATES * count))
    seen = (look.at(among[int((i + 0.5) * total / places)]) for i in range(places))
    candidates = [candidate for candidate in seen if candidate]
    if not candidates:
        raise FrameError(f"no frame of {video.path} can be read that was tried; the file is damaged, make it anew")
    starts = _scene_starts(look, candidates, count // 2)
    chosen = [(start, "a scene starts") for start in starts]
    shown = [c for c in candidates if not c.empty] or candidates[:1]
    for apart in (total / (2 * count), 1):  # first spread over the film, then wherever something else is shown
        for candidate in sorted(shown, key=lambda c: -c.lines):
            taken = [c for c, _ in chosen]
            if len(chosen) < count and all(_new(candidate, other, apart) for other in taken):
                chosen.append((candidate, "sharp lines"))
    return [Pick(c.frame, why) for c, why in sorted(chosen, key=lambda c: c[0].frame)]


def _new(candidate: _Candidate, other: _Candidate, apart: float) -> bool:
    return abs(candidate.frame - other.frame) >= apart and likeness(candidate.small, other.small) < _ALIKE


def _scene_starts(look: "_Look", candidates: list[_Candidate], wanted: int) -> list[_Candidate]:
    """First frames of scenes, those with the most lines first: between unlike candidates, found by halving."""
    gaps = [(a, b) for a, b in pairwise(candidates) if not b.empty and likeness(a.small, b.small) < DIFFERENT]
    found = (_cut(look, a, b) for a, b in sorted(gaps, key=lambda gap: -gap[1].lines)[: 2 * wanted])
    return list(islice((start for start in found if start), wanted))


def _cut(look: "_Look", low: _Candidate, high: _Candidate) -> _Candidate | None:
    """The first frame of a scene that begins after one frame and not after another; None for a fade or a fast pan.

    Those also end unlike they began, but their neighbours are alike.
    """
    while high.frame - low.frame > 1:
        middle = look.at((low.frame + high.frame) // 2)
        if middle is None:
            return None
        if likeness(middle.small, low.small) < likeness(middle.small, high.small):
            high = middle
        else:
            low = middle
    return None if high.empty or likeness(low.small, high.small) >= DIFFERENT else high


class _Look:
    """Frames of a video, looked at once each; None for those that cannot be read."""

    def __init__(self, video: Video) -> None:
        self._video = video
        self._small = thumbnails(video.clip)
        self._known: dict[int, _Candidate | None] = {}

    def at(self, number: int) -> _Candidate | None:
        if number not in self._known:
            try:
                self._known[number] = self._read(number)
            except FrameError as error:
                log.debug("%s", error)
                self._known[number] = None
        return self._known[number]

    def _read(self, number: int) -> _Candidate:
        small = thumbnail(self._video, self._small, number)
        plane = luma(frame(self._video, self._video.clip, number))
        steep = float(np.mean(np.diff(plane, axis=0) ** 2) + np.mean(np.diff(plane, axis=1) ** 2))
        return _Candidate(number, small, steep)

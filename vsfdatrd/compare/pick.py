"""Choose the frames of a video that are most informative about its upscaling.

Half of them have the sharpest lines of their part of the film, where there is most to gain; half start a scene, where
an encoder has no reference frame and a wrong match would be visible. Empty frames are skipped.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vsfdatrd.compare.match import MAX_DIFFERENT, Thumbnails, correlation
from vsfdatrd.compare.video import Plane, Video, read_frame, to_luma
from vsfdatrd.errors import ArgumentError, FrameError

log = logging.getLogger(__name__)

MAX_FRAMES = 50
"""Maximum number of frames in a comparison: a page with more is too large to open."""
CANDIDATES_PER_FRAME = 4
"""Number of frames examined for each frame that is chosen."""
MAX_SCAN = 120
"""Largest number of frames in which the next scene cut is searched."""

_MAX_EMPTY = 0.03  # standard deviation of luma below which a frame shows nothing: black, white, the middle of a fade
_MIN_ALIKE = 0.97  # likeness of thumbnails above which two frames show the same drawing


@dataclass(frozen=True, slots=True)
class ChosenFrame:
    """The number of a chosen frame."""

    frame: int
    why: str
    """Why it was chosen, as a phrase."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    frame: int
    thumbnail: Plane
    lines: float
    """Mean squared luma gradient: dominated by thin strong lines, hardly affected by noise."""

    @property
    def empty(self) -> bool:
        return float(self.thumbnail.std()) < _MAX_EMPTY


def check_frames(frames: Sequence[int], count: int) -> None:
    """Check the number of frames before any file is opened.

    Args:
        frames: Requested frame numbers.
        count: Number of frames to choose.

    Raises:
        ArgumentError: There are more than `MAX_FRAMES`, or `count` is less than 1.
    """
    if len(set(frames)) > MAX_FRAMES:
        raise ArgumentError(
            f"--frames names {len(set(frames))} frames, and one page holds {MAX_FRAMES} at most; name fewer"
        )
    if not 1 <= count <= MAX_FRAMES:
        raise ArgumentError(f"--count {count} is not possible; give 1 to {MAX_FRAMES}")


def requested_frames(video: Video, frames: Sequence[int]) -> list[ChosenFrame]:
    """Return the requested frames, sorted and without duplicates.

    Raises:
        ArgumentError: The video does not have one of them.
    """
    count = video.clip.num_frames
    if outside := [n for n in frames if not 0 <= n < count]:
        raise ArgumentError(
            f"--frames {' '.join(map(str, outside))} is not in {video.path}, which has the frames 0 to {count - 1}; "
            "frames are counted in the second file, from 0"
        )
    return [ChosenFrame(n, "requested") for n in sorted(set(frames))]


def choose_frames(video: Thumbnails, count: int, frames: range) -> list[ChosenFrame]:
    """Choose informative frames.

    Frames that cannot be read are skipped. Frames are read in order, since in some files seeking means decoding from
    the start.

    Args:
        video: Thumbnails of the video.
        count: Number of frames to choose.
        frames: The frames to choose from.

    Returns:
        At most `count` frames in order; fewer if fewer differ.

    Raises:
        FrameError: None of the examined frames can be read.
    """
    cuts = count // 2
    total = len(frames)
    positions = min(total, max(12, CANDIDATES_PER_FRAME * count))
    # Number of positions between searches for a cut. There are twice as many searches as cuts to choose.
    interval = max(1, positions // (2 * cuts)) if cuts else positions + 1
    candidates: list[_Candidate] = []
    starts: list[_Candidate] = []
    for i in range(positions):
        number, after = (frames[0] + int((j + 0.5) * total / positions) for j in (i, i + interval))
        candidates += _examine(video, number)
        if cuts and i % interval == 0:
            starts += _next_cut(video, range(number, min(number + MAX_SCAN, after, frames[-1]) + 1))
    if not candidates:
        raise FrameError(
            f"none of the frames of {video.video.path} that were tried can be read; the file is damaged, create it "
            "again"
        )
    chosen = [(start, "a scene starts") for start in sorted(starts, key=lambda c: -c.lines)[:cuts]]
    visible = [c for c in candidates if not c.empty] or candidates[:1]
    for min_distance in (total / (2 * count), 1):  # first spread over the film, then any that differ
        for candidate in sorted(visible, key=lambda c: -c.lines):
            others = [c for c, _ in chosen]
            if len(chosen) < count and all(_is_new(candidate, other, min_distance) for other in others):
                chosen.append((candidate, "sharp lines"))
    return [ChosenFrame(c.frame, why) for c, why in sorted(chosen, key=lambda c: c[0].frame)]


def _is_new(candidate: _Candidate, other: _Candidate, min_distance: float) -> bool:
    return (
        abs(candidate.frame - other.frame) >= min_distance
        and correlation(candidate.thumbnail, other.thumbnail) < _MIN_ALIKE
    )


def _examine(video: Thumbnails, number: int) -> list[_Candidate]:
    """Return a frame as a list of one candidate; empty if it cannot be read."""
    try:
        small = video.get_cached(number)
        plane = to_luma(read_frame(video.video, video.video.clip, number))
    except FrameError as error:
        log.debug("%s", error)
        return []
    lines = float(np.mean(np.diff(plane, axis=0) ** 2) + np.mean(np.diff(plane, axis=1) ** 2))
    return [_Candidate(number, small, lines)]


def _next_cut(video: Thumbnails, numbers: range) -> list[_Candidate]:
    """Return the first frame that starts a scene, as a list of one candidate; empty if there is none.

    Such a frame is not empty and differs from the frame before it. In fades and pans, neighboring frames are similar.
    """
    last: Plane | None = None
    for number in numbers:
        try:
            small = video.at(number)
        except FrameError as error:
            log.debug("%s", error)
            last = None
            continue
        if last is not None and float(small.std()) >= _MAX_EMPTY and correlation(last, small) < MAX_DIFFERENT:
            return _examine(video, number)
        last = small
    return []

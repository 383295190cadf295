"""Match frames of AFTER to frames of BEFORE: the nearest in time, then the most similar of its neighbors.

Time alone is off by a frame after inverse telecine, or if a player, muxer or editor shifted one of the files. Times are
relative to the first frame of each file.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from vsfdatrd.compare.video import Plane, Video, read_frame
from vsfdatrd.encode.crop import Borders, find_borders
from vsfdatrd.errors import ArgumentError, FrameError

log = logging.getLogger(__name__)

NEIGHBORS = 3
"""Frames of BEFORE examined on either side of the nearest in time."""
SEARCH_SECONDS = 1.0
"""Seconds searched on either side if no neighbor matches."""
MIN_MATCH = 0.9
"""Likeness above which two frames are accepted as a match without further search."""
MAX_DIFFERENT = 0.7
"""Likeness below which two frames do not show the same moment."""
THUMBNAIL_SIZE = (192, 144)
"""Width and height at which frames are compared: hides noise and coding artifacts, but not a moved mouth."""

_DISTANCE_COST = 2e-4  # required gain in likeness per frame of distance: repeated drawings differ only by noise


@dataclass(frozen=True, slots=True)
class MatchedPair:
    """The numbers of a frame of AFTER and of the frame of BEFORE that shows the same moment."""

    after: int
    before: int
    likeness: float
    """Correlation of the two pictures: 1 if equal, about 0 if unrelated."""


class Thumbnails:
    """The frames of a video as small luma planes, (144, 192), 0 to 1. Frames that cannot be read raise FrameError."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self._clip = video.clip.resize.Bilinear(*THUMBNAIL_SIZE, format=vs.GRAYS, matrix=1)
        self._cached: dict[int, Plane] = {}

    def at(self, number: int) -> Plane:
        """Return the thumbnail of a frame without caching it."""
        return self._cached[number] if number in self._cached else read_frame(self.video, self._clip, number)[..., 0]

    def get_cached(self, number: int) -> Plane:
        """Return the thumbnail of a frame and cache it, so that a file without seeking is not decoded again."""
        self._cached[number] = self.at(number)
        return self._cached[number]


def correlation(a: Plane, b: Plane) -> float:
    """Return the correlation of two luma planes of one size.

    It is independent of contrast and brightness. If a plane is flat, the result is 1 if both are flat and of similar
    brightness, else 0.
    """
    x, y = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((x * x).mean() * (y * y).mean()))
    if norm < 1e-5:  # at least one plane is flat
        return 1.0 if abs(float(a.mean() - b.mean())) < 0.05 and float(x.std() + y.std()) < 0.02 else 0.0
    return float((x * y).mean()) / norm


def times_in_before(before: Video, after: Video, offset: float) -> NDArray[np.float64]:
    """Return the time in BEFORE, in seconds, for each frame of AFTER.

    Files with the same number of frames (within 1 %) but a different speed, such as PAL speedup, are matched frame by
    frame.

    Args:
        before: The original.
        after: The upscaled video.
        offset: Seconds at the start of BEFORE that are missing in AFTER.
    """
    frames, others = before.clip.num_frames, after.clip.num_frames
    speed = (float(before.times[-1]) + 1e-9) / (float(after.times[-1]) + 1e-9)
    if not offset and abs(frames - others) <= 0.01 * frames and abs(speed - 1) > 0.02:
        return before.times[np.minimum(np.arange(others), frames - 1)]
    return after.times + offset


def overlap(before: Video, after: Video, offset: float) -> range:
    """Return the range of frames of AFTER that overlaps BEFORE in time.

    Args:
        before: The original.
        after: The upscaled video.
        offset: Seconds at the start of BEFORE that are missing in AFTER.

    Raises:
        ArgumentError: There is no overlap, which only an offset can cause.
    """
    length = float(before.times[-1])
    slack = 0.99 * length / max(1, len(before.times) - 1)  # less than a frame, so that rounded times do not add one
    times = times_in_before(before, after, offset)
    inside = np.flatnonzero((times >= -slack) & (times <= length + slack))
    if not len(inside):
        raise ArgumentError(
            f"--offset {offset:g} leaves nothing to compare: {before.path.name} is {length:.1f} s long and "
            f"{after.path.name} {after.times[-1]:.1f} s; give how many seconds of the first the second leaves out"
        )
    return range(int(inside[0]), int(inside[-1]) + 1)


def match_frames(before: Video, after: Thumbnails, numbers: list[int], offset: float = 0.0) -> list[MatchedPair]:
    """Match frames of AFTER to frames of BEFORE, or to its first or last frame outside of its duration.

    Args:
        before: The original.
        after: Thumbnails of the upscaled video.
        numbers: Frame numbers of AFTER.
        offset: Seconds at the start of BEFORE that are missing in AFTER.

    Returns:
        One pair per frame.

    Raises:
        FrameError: A frame of AFTER, or every candidate frame of BEFORE, cannot be read.
    """
    times = times_in_before(before, after.video, offset)
    thumbnails = Thumbnails(before)
    return [_best_match(thumbnails, number, float(times[number]), after.get_cached(number)) for number in numbers]


def _best_match(before: Thumbnails, number: int, time: float, target: Plane) -> MatchedPair:
    """Match frame `number` of AFTER, whose thumbnail is `target`, to a frame of BEFORE near a time in seconds."""
    times = before.video.times
    nearest = int(np.abs(times - time).argmin())
    last = len(times) - 1
    near = range(max(0, nearest - NEIGHBORS), min(last, nearest + NEIGHBORS) + 1)

    def best(candidates: range) -> MatchedPair:
        likenesses: dict[int, float] = {}
        for n in candidates:
            try:
                likenesses[n] = correlation(before.at(n), target)
            except FrameError:  # damaged, as on some discs; try the other candidates
                if n == candidates[-1] and not likenesses:
                    raise
        best_number = max(likenesses, key=lambda n: likenesses[n] - _DISTANCE_COST * abs(n - nearest))
        return MatchedPair(number, best_number, likenesses[best_number])

    pair = best(near)
    if pair.likeness >= MIN_MATCH:
        return pair
    inside = np.flatnonzero(np.abs(times - time) <= SEARCH_SECONDS)
    return best(range(int(inside[0]), int(inside[-1]) + 1)) if len(inside) > len(near) else pair


def crop_borders(
    before: Video, after: Thumbnails, matches: list[MatchedPair], offset: float = 0.0
) -> tuple[Video, list[MatchedPair]]:
    """Crop the black borders of BEFORE, if AFTER was made without them, and match again.

    The borders are those that `vsfdatrd encode` crops. They are cropped only if that makes the pairs more similar.

    Args:
        before: The original.
        after: Thumbnails of the upscaled video.
        matches: The result of `match_frames`.
        offset: The offset passed to `match_frames`.

    Returns:
        BEFORE, cropped or unchanged, and its pairs.
    """
    try:
        borders = find_borders(before.stored)
    except vs.Error as error:  # one of the examined frames is damaged
        log.debug("borders: %s", error)
        borders = Borders()
    if not borders:
        return before, matches
    clip = before.clip.std.Crop(borders.left, borders.right, borders.top, borders.bottom)
    cropped = replace(before, clip=clip)
    again = match_frames(cropped, after, [pair.after for pair in matches], offset)
    gain = sum(pair.likeness for pair in again) - sum(pair.likeness for pair in matches)
    return (cropped, again) if gain > 0.005 * len(matches) else (before, matches)

"""Which frame of BEFORE shows what a frame of AFTER shows: the nearest in time, then the most alike of its neighbours.

Time alone is a frame off after inverse telecine, and where a player, a muxer or an editor shifted one of the files.
Times count from the first frame of each file.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from vsfdatrd.compare.video import Plane, Video, frame
from vsfdatrd.encode.crop import find_borders
from vsfdatrd.errors import ArgumentError, FrameError

log = logging.getLogger(__name__)

NEIGHBOURS = 3
"""Frames of BEFORE looked at to either side of the nearest in time."""
SEARCH = 1.0
"""Seconds to either side that are searched where none of the neighbours fits."""
FITS = 0.9
"""Likeness above which two frames are taken for the same moment without searching further."""
DIFFERENT = 0.7
"""Likeness below which two frames do not show the same moment."""
THUMBNAIL = (192, 144)
"""Width and height at which frames are compared: noise and lines of the encoder are gone, a moved mouth is not."""

_HELD = 2e-4  # likeness by which a frame further away must be better: held drawings differ by noise alone


@dataclass(frozen=True, slots=True)
class Pair:
    """Frames of the two files that belong together."""

    after: int
    before: int
    likeness: float
    """Correlation of the two pictures: 1 is the same, about 0 unrelated."""


class Thumbnails:
    """The frames of a video as small luma pictures, (144, 192), 0 to 1."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self._clip = video.clip.resize.Bilinear(*THUMBNAIL, format=vs.GRAYS, matrix=1)
        self._kept: dict[int, Plane] = {}

    def at(self, number: int) -> Plane:
        """One of them, not kept. Raises FrameError for a frame that cannot be read."""
        return self._kept[number] if number in self._kept else frame(self.video, self._clip, number)[..., 0]

    def keep(self, number: int) -> Plane:
        """One of them; a file that cannot be sought in is not decoded again for it."""
        self._kept[number] = self.at(number)
        return self._kept[number]


def likeness(a: Plane, b: Plane) -> float:
    """Correlation of two luma pictures of one size, whatever their contrast and brightness; flat ones by brightness."""
    x, y = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((x * x).mean() * (y * y).mean()))
    if norm < 1e-5:  # one of them, or both, is one colour
        return 1.0 if abs(float(a.mean() - b.mean())) < 0.05 and float(x.std() + y.std()) < 0.02 else 0.0
    return float((x * y).mean()) / norm


def moments(before: Video, after: Video, offset: float) -> NDArray[np.float64]:
    """Seconds into BEFORE for each frame of AFTER.

    offset: seconds of BEFORE that AFTER leaves out at its start.
    Files of as many frames (but for a hundredth) and of another speed, as PAL's, go frame by frame.
    """
    frames, others = before.clip.num_frames, after.clip.num_frames
    speed = (float(before.times[-1]) + 1e-9) / (float(after.times[-1]) + 1e-9)
    if not offset and abs(frames - others) <= 0.01 * frames and abs(speed - 1) > 0.02:
        return before.times[np.minimum(np.arange(others), frames - 1)]
    return after.times + offset


def common(before: Video, after: Video, offset: float) -> range:
    """The frames of AFTER at whose time BEFORE also has one.

    Raises ArgumentError if there is none, which only an offset can cause.
    """
    length, frame_lasts = float(before.times[-1]), float(before.times[-1]) / max(1, len(before.times) - 1)
    when = moments(before, after, offset)
    inside = np.flatnonzero((when >= -frame_lasts) & (when <= length + frame_lasts))
    if not len(inside):
        raise ArgumentError(
            f"--offset {offset:g} leaves nothing to compare: {before.path.name} is {length:.1f} s long and "
            f"{after.path.name} {after.times[-1]:.1f} s; give how many seconds of the first the second leaves out"
        )
    return range(int(inside[0]), int(inside[-1]) + 1)


def pairs(before: Video, after: Thumbnails, numbers: list[int], offset: float = 0.0) -> list[Pair]:
    """The frame of BEFORE for each of these frames of AFTER; its first or last where BEFORE has none at that time.

    Raises FrameError where one of AFTER, or all there are of BEFORE, cannot be read.
    """
    when = moments(before, after.video, offset)
    small = Thumbnails(before)
    return [_partner(small, number, float(when[number]), after.keep(number)) for number in numbers]


def _partner(small: Thumbnails, number: int, when: float, wanted: Plane) -> Pair:
    times = small.video.times
    nearest = int(np.abs(times - when).argmin())
    last = len(times) - 1
    near = range(max(0, nearest - NEIGHBOURS), min(last, nearest + NEIGHBOURS) + 1)

    def best(candidates: range) -> Pair:
        found: dict[int, float] = {}
        for n in candidates:
            try:
                found[n] = likeness(small.at(n), wanted)
            except FrameError:  # damaged, as discs are; another of them will do
                if n == candidates[-1] and not found:
                    raise
        chosen = max(found, key=lambda n: found[n] - _HELD * abs(n - nearest))
        return Pair(number, chosen, found[chosen])

    pair = best(near)
    if pair.likeness >= FITS:
        return pair
    inside = np.flatnonzero(np.abs(times - when) <= SEARCH)
    return best(range(int(inside[0]), int(inside[-1]) + 1)) if len(inside) > len(near) else pair


# ---- borders ------------------------------------------------------------------------------------------------------


def without_borders(
    before: Video, after: Thumbnails, found: list[Pair], offset: float = 0.0
) -> tuple[Video, list[Pair]]:
    """BEFORE without its black borders, if AFTER was made without them, and the pairs that there are then.

    found, offset: what `pairs` returned, and was given. Borders are those that `vsfdatrd encode` cuts off. They go only
    if that makes the pairs more alike.
    """
    try:
        borders = find_borders(before.stored)
    except vs.Error as error:  # one of the frames it looks at is damaged
        log.debug("borders: %s", error)
        return before, found
    if not borders:
        return before, found
    clip = before.clip.std.Crop(borders.left, borders.right, borders.top, borders.bottom)
    cropped = replace(before, clip=clip)
    again = pairs(cropped, after, [pair.after for pair in found], offset)
    gain = sum(pair.likeness for pair in again) - sum(pair.likeness for pair in found)
    return (cropped, again) if gain > 0.005 * len(found) else (before, found)

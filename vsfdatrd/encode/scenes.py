"""Split a film into chunks at scene changes, a few minutes apart."""

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_SEARCH_SECONDS = 5  # seconds before and after a planned cut in which a scene change is searched
_THUMBNAIL_SIDE = 64  # width and height in pixels of the downscaled frames that are compared


@dataclass(frozen=True, slots=True)
class Chunk:
    """A range of frames that is encoded as one file."""

    number: int
    """From 0."""
    start: int
    """First frame."""
    stop: int
    """Frame after the last one."""

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Name of the chunk's file."""
        return f"{self.number + 1:05}.mkv"


def plan_chunks(clip: Any, rate: Fraction, minutes: float) -> list[Chunk]:
    """Split a clip into chunks of about this many minutes, at least one; every frame is in exactly one chunk.

    A chunk starts where the picture changes most within 5 seconds (at most a quarter of a chunk) of its planned start.
    The last chunk is between 0.5 and 1.5 times as long as the others.

    Args:
        clip: A vapoursynth.VideoNode.
        rate: Frames per second.
        minutes: Length of a chunk in minutes.
    """
    length = max(1, round(minutes * 60 * rate))
    count = max(1, round(clip.num_frames / length))
    reach = int(min(_SEARCH_SECONDS * rate, clip.num_frames / count / 4))
    cuts = [_scene_start(clip, number * clip.num_frames // count, reach) for number in range(1, count)]
    pairs = itertools.pairwise([0, *cuts, clip.num_frames])
    return [Chunk(number, start, stop) for number, (start, stop) in enumerate(pairs)]


def _scene_start(clip: Any, middle: int, reach: int) -> int:
    """Return the frame that differs most from the previous one, at most `reach` frames from `middle`."""
    import vapoursynth as vs

    first = middle - reach
    color = {"matrix": 6} if clip.format.color_family == vs.RGB else {}
    small = clip[first - 1 : middle + reach + 1].resize.Bilinear(
        _THUMBNAIL_SIDE, _THUMBNAIL_SIDE, format=vs.GRAY8, **color
    )
    compared = small[1:].std.PlaneStats(small[:-1])
    changes = {n: frame.props["PlaneStatsDiff"] for n, frame in enumerate(compared.frames(close=True), first)}
    # among equal changes, the one nearest to the middle: in a still picture the cut stays where it was planned
    return max(changes, key=lambda n: (round(changes[n], 3), -abs(n - middle)))

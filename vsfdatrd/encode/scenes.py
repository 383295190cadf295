"""Where a film is cut into parts: at scene cuts, some minutes apart."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

_REACH = 5  # seconds around the middle of a cut in which a scene change is looked for
_SMALL = 64  # pixels a side of the pictures that are compared


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of the film."""

    number: int
    """From 0."""
    start: int
    """Its first frame."""
    stop: int
    """The frame after its last one."""

    @property
    def frames(self) -> int:
        """How many it has."""
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.number + 1:05}.mkv"


def plan(
    clip: Any, rate: Fraction, minutes: float, seen: Callable[[int, int], None] = lambda n, of: None
) -> list[Chunk]:
    """Chunks of about so many minutes, all of them together every frame of the clip once.

    A chunk begins where the picture changes most within five seconds (a quarter of a chunk at most) of where it should.
    The last one is between a half and one and a half as long as the others. seen: told of each cut found.
    """
    length = max(1, round(minutes * 60 * rate))
    count = max(1, round(clip.num_frames / length))
    reach = int(min(_REACH * rate, clip.num_frames / count / 4))
    bounds = [0]
    for number in range(1, count):
        bounds.append(_scene_start(clip, number * clip.num_frames // count, reach))
        seen(number, count - 1)
    bounds.append(clip.num_frames)
    pairs = itertools.pairwise(bounds)
    return [Chunk(number, start, stop) for number, (start, stop) in enumerate(pairs)]


def _scene_start(clip: Any, middle: int, reach: int) -> int:
    """The frame that differs most from the one before it, at most `reach` frames from the middle."""
    import vapoursynth as vs

    first = middle - reach
    near = clip[first - 1 : middle + reach + 1] if first > 0 else clip[: middle + reach + 1]
    offset = max(0, first - 1)
    family = vs.RGB if clip.format.color_family == vs.RGB else vs.GRAY
    colour = {"matrix": 6} if family == vs.RGB else {}
    small = near.resize.Bilinear(_SMALL, _SMALL, format=vs.GRAY8, **colour)
    if small.num_frames < 2:
        return middle
    compared = small[1:].std.PlaneStats(small[:-1])
    changes = [float(frame.props["PlaneStatsDiff"]) for frame in compared.frames(close=True)]
    # of equal changes the one nearest to the middle: in a still the cut is where it should be
    return max(
        (offset + 1 + n for n in range(len(changes))),
        key=lambda n: (round(changes[n - offset - 1], 3), -abs(n - middle)),
    )

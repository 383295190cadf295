"""When each frame is shown: at a constant rate where the file means one, else as the file says."""

import itertools
import statistics
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from vsfdatrd.encode.field_detection import Fields
from vsfdatrd.encode.source import Source
from vsfdatrd.errors import ClipError

RATES = tuple(
    Fraction(*rate)
    for rate in ((24000, 1001), (24, 1), (25, 1), (30000, 1001), (30, 1), (50, 1), (60000, 1001), (60, 1), (15, 1),
                 (12, 1), (18, 1), (16, 1), (20, 1))
)  # fmt: skip
"""Frames a second that films have."""
_JITTER = Fraction(1, 50)  # seconds: pulldown flags move frames by up to half a field, containers round to milliseconds


@dataclass(frozen=True, slots=True)
class Timing:
    """When the frames of a clip are shown."""

    rate: Fraction
    """Frames a second; of a variable rate the mean."""
    start: Fraction
    """Of the first frame: seconds after the beginning of the file."""
    times: tuple[Fraction, ...] | None = None
    """Of each frame, seconds after the first one; None at a constant rate."""

    def at(self, number: int) -> Fraction:
        """When a frame is shown, in seconds after the beginning of the file; frames before the first one too."""
        if self.times is None or number < 0:
            return self.start + number / self.rate
        return self.start + self.times[number]

    def __str__(self) -> str:
        fps = rate_of(self.rate)
        return f"{fps} a second" if self.times is None else f"at a variable rate, {fps} a second on average"


def rate_of(rate: Fraction) -> str:
    """Frames a second as people write them: 25, 23.976."""
    return f"{float(rate):.3f}".rstrip("0").rstrip(".")


def timing(source: Source, fields: Fields, frames: int) -> Timing:
    """When the frames of the prepared clip are shown.

    frames: how many there are after `fields` was done. Telecined film has four for each five of the source; they are
    spread evenly over the time of those five. Raises ClipError for timestamps that go back.
    """
    times = [(stamp - source.timestamps[0]) * source.time_base for stamp in source.timestamps]
    for n, (before, after) in enumerate(itertools.pairwise(times), 1):
        if after <= before:
            raise ClipError(
                f"the timestamps of {str(source.path)!r} go back at frame {n}, as in discs copied file by file, and "
                "sound could not be kept in sync; remux it first, for example with MakeMKV or ffmpeg -fflags +genpts"
            )
    if fields.kind == "ivtc":
        times = _four_of_five(times, frames, source.rate)
    times = times[:frames]
    start = source.start()
    rate = constant_rate(times, fields.rate(source.rate))
    if rate is not None:
        return Timing(rate, start)
    mean = Fraction((len(times) - 1) / (times[-1] - times[0])).limit_denominator(1001)
    return Timing(mean, start, tuple(times))


def constant_rate(times: Sequence[Fraction], declared: Fraction) -> Fraction | None:
    """The rate that puts every frame within 20 ms, and half a frame, of its time; None if there is none."""
    if len(times) < 2:
        return declared
    # The rate of films that is nearest, then what the file declares.
    mean = (len(times) - 1) / (times[-1] - times[0])
    ordered = sorted(RATES)
    at = bisect(ordered, mean)
    near = sorted(ordered[max(0, at - 2) : at + 2], key=lambda rate: abs(rate - mean))
    fitting: list[tuple[float, Fraction]] = []
    for rate in (*near, declared):
        tolerance = min(_JITTER, 1 / rate / 2)
        errors = [time - n / rate for n, time in enumerate(times)]
        if max(errors) - min(errors) <= 2 * tolerance and max(map(abs, errors)) <= 2 * tolerance:
            # Of a short film several rates do; most of its frames lie where the right one puts them.
            middle = statistics.median(errors)
            fitting.append((float(sum(abs(error - middle) for error in errors)), rate))
    return min(fitting, key=lambda found: found[0])[1] if fitting else None


def _four_of_five(times: Sequence[Fraction], frames: int, rate: Fraction) -> list[Fraction]:
    """Times of what VDecimate leaves of frames with these times."""
    found = []
    for n in range(frames):
        cycle, place = divmod(n, 4)
        first = min(5 * cycle, len(times) - 1)
        begin = times[first]
        end = times[first + 5] if first + 5 < len(times) else begin + 5 / rate
        found.append(begin + place * (end - begin) / 4)
    return found

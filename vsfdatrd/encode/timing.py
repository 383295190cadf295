"""Presentation times of frames: a constant rate if the timestamps fit one, otherwise the file's timestamps."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from vsfdatrd.encode.field_detection import Fields
from vsfdatrd.encode.source import Source
from vsfdatrd.errors import ClipError

COMMON_RATES = (
    *(Fraction(n, 1001) for n in (24000, 30000, 60000)),
    *map(Fraction, (12, 15, 16, 18, 20, 24, 25, 30, 50, 60)),
)
"""Common frame rates, frames per second."""
_JITTER = Fraction(1, 50)  # seconds: pulldown flags move frames by up to half a field, containers round to milliseconds
_ROUNDING = 1e-6  # seconds: exceeds the rounding of float64 in a film, so that times exactly at the tolerance pass


@dataclass(frozen=True, slots=True)
class Timing:
    """Presentation times of the frames of a clip."""

    rate: Fraction
    """Frames per second; the mean if the rate is variable."""
    start: Fraction
    """Time of the first frame, in seconds after the start of the file."""
    times: tuple[Fraction, ...] | None = None
    """Time of each frame in seconds after the first one; None if the rate is constant."""

    def at(self, number: int) -> Fraction:
        """Return when a frame is shown, in seconds after the start of the file.

        Args:
            number: Frame number; negative numbers extrapolate before the first frame.
        """
        if self.times is None or number < 0:
            return self.start + number / self.rate
        return self.start + self.times[number]

    def __str__(self) -> str:
        fps = format_rate(self.rate)
        return f"{fps} a second" if self.times is None else f"at a variable rate, {fps} a second on average"


def format_rate(rate: Fraction) -> str:
    """Format a frame rate with at most three decimals, such as 25 or 23.976.

    Args:
        rate: Frames per second.
    """
    return f"{float(rate):.3f}".rstrip("0").rstrip(".")


def compute_timing(source: Source, fields: Fields, frames: int) -> Timing:
    """Compute the presentation times of all frames that remain after field processing.

    Args:
        source: The source, with the timestamps of its frames.
        fields: The field processing that was applied.
        frames: Number of frames after field processing.

    Raises:
        ClipError: Timestamps repeat or go backward.
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
    start = source.start()
    rate = constant_rate(times, fields.rate(source.rate))
    if rate is not None:
        return Timing(rate, start)
    mean = ((len(times) - 1) / (times[-1] - times[0])).limit_denominator(1001)
    return Timing(mean or Fraction(1, 1001), start, tuple(times))


def constant_rate(times: Sequence[Fraction], declared: Fraction) -> Fraction | None:
    """Find a constant rate that fits the timestamps.

    Every frame must be within 20 ms, and within half a frame, of its timestamp, up to a common offset of the same size.

    Args:
        times: Time of each frame in seconds after the first.
        declared: The rate that the file declares, frames per second.

    Returns:
        The best-fitting rate among the declared one and the nearest of `COMMON_RATES`; None if none fits.
    """
    if len(times) < 2:
        return declared
    mean = (len(times) - 1) / (times[-1] - times[0])
    near = sorted(COMMON_RATES, key=lambda rate: abs(rate - mean))[:4]
    seconds, numbers = np.array(times, float), np.arange(len(times))
    fitting: list[tuple[float, Fraction]] = []
    for rate in (*near, declared):
        tolerance = 2 * min(_JITTER, 1 / rate / 2) + _ROUNDING
        errors = seconds - numbers / float(rate)
        if np.ptp(errors) <= tolerance:
            # In a short clip several rates fit; take the one with the smallest total deviation from the median error.
            fitting.append((float(np.abs(errors - np.median(errors)).sum()), rate))
    return min(fitting, key=lambda fit: fit[0])[1] if fitting else None


def _four_of_five(times: Sequence[Fraction], frames: int, rate: Fraction) -> list[Fraction]:
    """Return the times of the frames that VDecimate keeps: four, spread evenly over the time of five source frames."""
    result = []
    for n in range(frames):
        cycle, step = divmod(n, 4)
        first = min(5 * cycle, len(times) - 1)
        begin = times[first]
        end = times[first + 5] if first + 5 < len(times) else begin + 5 / rate
        result.append(begin + step * (end - begin) / 4)
    return result

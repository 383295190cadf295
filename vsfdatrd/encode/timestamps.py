"""Fill in missing timestamps, and report timestamps that go back."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

from vsfdatrd.errors import EncodeError

CLOCK_RESET_SECONDS = Fraction(1, 2)
"""Seconds: timestamps of audio or subtitles that go back by more are a clock reset."""
NO_TIMESTAMP = -(2**63)
"""BestSource's value for a frame without a timestamp (ffmpeg's AV_NOPTS_VALUE)."""

_MAX_BACKWARD = 2  # frames by which a timestamp may go backward before it counts as a clock reset


def fill_gaps(stamps: Sequence[int], duration: Fraction) -> list[int]:
    """Return timestamps with missing ones filled in.

    Raw streams have no timestamps; AVI files with B-frames and discs with several frames per packet have only some.
    A missing timestamp is interpolated between its known neighbors, or extrapolated from the nearest by whole frame
    durations. A timestamp that repeats the previous one, or is up to two frames before it, counts as missing.

    Args:
        stamps: Timestamps in frame order; `NO_TIMESTAMP` where missing.
        duration: Duration of a frame, in the same unit.

    Returns:
        A timestamp for every frame.
    """
    stamped: list[tuple[int, int]] = []
    for n, stamp in enumerate(stamps):
        if stamp == NO_TIMESTAMP:
            continue
        if stamped and stamp <= stamped[-1][1] and stamp > stamped[-1][1] - _MAX_BACKWARD * duration:
            continue
        stamped.append((n, stamp))
    if not stamped:
        return [round(n * duration) for n in range(len(stamps))]
    first, begin = stamped[0]
    result = [begin - round((first - n) * duration) for n in range(first)]
    for (before, start), (after, stop) in itertools.pairwise(stamped):
        result += (start + (stop - start) * (n - before) // (after - before) for n in range(before, after))
    last, end = stamped[-1]
    result += (end + round((n - last) * duration) for n in range(last, len(stamps)))
    return result


def clock_reset_error(stream: str, seconds: Fraction) -> EncodeError:
    """Return the error for a stream whose timestamps go back.

    Args:
        stream: A short description of the stream.
        seconds: The time after which they go back, in seconds after the start of the file.
    """
    return EncodeError(
        f"the timestamps of {stream} go back after {float(seconds):.1f} s; remux the source first, for example with "
        "MakeMKV or ffmpeg -fflags +genpts"
    )

"""Timestamps of frames, with those that a file leaves out."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

UNKNOWN = -(2**63)
"""What BestSource gives for a frame without a timestamp (ffmpeg's AV_NOPTS_VALUE)."""

_GLITCH = 2  # frames by which a timestamp may fall behind without being a clock that begins anew


def filled(stamps: Sequence[int], lasts: Fraction) -> list[int]:
    """Return timestamps in which none is missing.

    Raw streams have none, AVI files with B-frames and discs with several frames a packet have some. A missing one lies
    evenly between its known neighbours, or a frame's length from the nearest. One that repeats or falls behind the one
    before it by a frame or two counts as missing.

    Args:
        stamps: In the order of the frames; UNKNOWN where there is none.
        lasts: How long a frame lasts, in the same unit.
    """
    known: list[tuple[int, int]] = []
    for n, stamp in enumerate(stamps):
        if stamp == UNKNOWN:
            continue
        if known and stamp <= known[-1][1] and stamp > known[-1][1] - _GLITCH * lasts:
            continue
        known.append((n, stamp))
    if not known:
        return [round(n * lasts) for n in range(len(stamps))]
    found: list[int] = []
    first, begin = known[0]
    found += (begin - round((first - n) * lasts) for n in range(first))
    for (before, start), (after, stop) in itertools.pairwise(known):
        found += (start + (stop - start) * (n - before) // (after - before) for n in range(before, after))
    last, end = known[-1]
    found += (end + round((n - last) * lasts) for n in range(last, len(stamps)))
    return found

"""Presentation times of frames, computed from the timestamps of a source."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest

from vsfdatrd.encode.field_detection import Fields, Kind
from vsfdatrd.encode.source import Source
from vsfdatrd.encode.survey import Survey
from vsfdatrd.encode.timing import Timing, compute_timing, constant_rate
from vsfdatrd.errors import ClipError

RATE = Fraction(30)


def timing_of(stamps: Sequence[int], kind: Kind, frames: int) -> Timing:
    """The times of a film with these timestamps, in frames of `RATE`; its sound begins two frames earlier."""
    sound = Fraction(stamps[0] - 2) / RATE
    source = Source(Path("film.mkv"), None, stamps, 1 / RATE, Fraction(1), sound, 0, 0, RATE, Survey([], False))
    return compute_timing(source, Fields(kind, True, ""), frames)


def test_four_frames_fill_the_time_of_five() -> None:
    assert timing_of(range(7, 37), "ivtc", 24) == Timing(Fraction(24), Fraction(1, 15))
    pause = [*range(20), *range(50, 60)]
    timing = timing_of(pause, "ivtc", 24)
    assert timing.times is not None
    expected = [*(n * 1.25 for n in range(12)), 15, 23.75, 32.5, 41.25, *(50 + n * 1.25 for n in range(8))]
    assert [float(time * RATE) for time in timing.times] == expected
    assert timing.rate == pytest.approx(23 / (58.75 / 30), rel=1e-3)


def test_frames_before_the_first_have_times_too() -> None:
    """Packets of B-frames are decoded before they are shown."""
    variable = (Fraction(0), Fraction(1, 2), Fraction(5))
    assert [Timing(Fraction(2), Fraction(3), times).at(-1) for times in (None, variable)] == [Fraction(5, 2)] * 2
    assert Timing(Fraction(2), Fraction(3), (Fraction(0), Fraction(5))).at(1) == 8


def test_frames_that_come_early_and_late_have_no_constant_rate() -> None:
    def shaken(seconds: Fraction) -> list[Fraction]:
        return [Fraction(n, 25) + (0, seconds, -seconds)[n % 3] for n in range(99)]

    assert constant_rate(shaken(Fraction(1, 50)), Fraction(25)) == 25
    assert constant_rate(shaken(Fraction(1, 40)), Fraction(25)) is None


@pytest.mark.parametrize("stamps", [[0, 1, 1, 2], [0, 5, 4, 6]])
def test_timestamps_that_do_not_advance_are_an_error(stamps: list[int]) -> None:
    with pytest.raises(ClipError, match=r"the timestamps of 'film\.mkv' go back at frame 2, "):
        timing_of(stamps, "progressive", 4)

"""VapourSynth keeps a GPU busy: TensorRT's engine on a simulated GPU that takes an exact time per frame."""

from collections.abc import Iterator

import pytest
import vapoursynth as vs

from benchmarks.host_path import Race, Turn, scripted_engine

SHARE = 0.97
"""Least part of its own rate that an engine keeps."""
HOST_MS = 4.0
"""Most milliseconds of processor time per frame of 1440×1080."""
BUSY_SHARE, BUSY_HOST = 0.65, 3.0
"""The same on a machine that is too busy for any host, relative to a loop that only copies frames."""
ATTEMPTS = 12
WARMING = 12
"""Frames after which all memory has been used once."""


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = vs.core.num_threads
    yield
    vs.core.num_threads = before


def keeps(turn: Turn, milliseconds: float) -> bool:
    """Return whether VapourSynth reached the rate of the engine."""
    own = max(turn.own, 980 / milliseconds)  # a disturbance of the engine alone must not help
    if turn.through >= SHARE * own:
        return True
    return turn.bare is not None and turn.bare < 0.985 * own and turn.through >= BUSY_SHARE * turn.bare


def cheap(turn: Turn) -> bool:
    """Return whether the CPU time per frame was low."""
    return turn.host_ms <= HOST_MS or (turn.bare_ms is not None and turn.host_ms <= BUSY_HOST * turn.bare_ms)


@pytest.mark.parametrize(
    ("milliseconds", "frames", "staging"), [(5, 36, False), (10, 20, False), (20, 12, False), (10, 20, True)]
)
def test_an_engine_keeps_its_rate_with_two_threads(milliseconds: float, frames: int, staging: bool) -> None:
    turns: list[Turn] = []
    with scripted_engine(milliseconds, staging=staging) as pool:
        race = Race(pool, threads=2)
        race.turn(WARMING, bare=False)
        while len(turns) < ATTEMPTS and not any(keeps(turn, milliseconds) for turn in turns):
            turns.append(race.turn(frames, bare=bool(turns)))
        del race
    assert any(keeps(turn, milliseconds) for turn in turns), turns


def test_one_thread_cannot_copy_and_wait_at_once() -> None:
    """So the test above can fail."""
    with scripted_engine(5) as pool:
        race = Race(pool, threads=1)
        shares: list[float] = []
        while len(shares) < ATTEMPTS and not any(share < 0.8 for share in shares):  # the engine alone may be disturbed
            shares.append(race.turn(12, bare=False).share)
        del race
    assert min(shares) < 0.8


def test_the_host_takes_at_most_four_milliseconds() -> None:
    """Of processor time, for everything that the script's process does for a frame of 1440×1080."""
    turns: list[Turn] = []
    with scripted_engine(5) as pool:
        race = Race(pool, threads=2)
        race.turn(WARMING, bare=False)
        while len(turns) < ATTEMPTS and not any(map(cheap, turns)):
            turns.append(race.turn(36, bare=bool(turns)))
        del race
    assert any(map(cheap, turns)), turns

"""Two execution contexts are compared with one on a clock of their own."""

import pytest

from vsfdatrd.backends.tensorrt.concurrency import GAIN, measure


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Network:
    """Takes `seconds` a run. Of networks with the same `lanes`, as many are computed at once as there are lanes."""

    def __init__(self, clock: Clock, lanes: list[float], seconds: list[float]) -> None:
        self.clock, self.lanes, self.seconds, self.free = clock, lanes, seconds, 0.0
        self.runs = 0

    def run(self) -> None:
        lane = self.lanes.index(min(self.lanes))
        spent = self.seconds[self.runs % len(self.seconds)]
        self.free = self.lanes[lane] = max(self.clock.now, self.free, self.lanes[lane]) + spent
        self.runs += 1

    def synchronize(self) -> None:
        self.clock.now = max(self.clock.now, self.free)


def networks(lanes: int, *seconds: float) -> tuple[list[Network], Clock]:
    clock, shared = Clock(), [0.0] * lanes
    return [Network(clock, shared, list(seconds)) for _ in range(2)], clock


@pytest.mark.parametrize("seconds", [0.001, 0.007, 0.04, 0.7])
def test_networks_side_by_side_are_twice_as_fast_and_in_turn_as_fast(seconds: float) -> None:
    assert measure(*networks(2, seconds)) == pytest.approx((1 / seconds, 2 / seconds))
    assert measure(*networks(1, seconds)) == pytest.approx((1 / seconds, 1 / seconds))


def test_a_run_that_is_held_up_does_not_decide() -> None:
    """One run in 150 takes a second: in two turns of ten."""
    alone, together = measure(*networks(1, *[0.005] * 149, 1.0))
    assert together < GAIN * alone
    assert alone < GAIN * together


def test_measuring_takes_about_a_second() -> None:
    for seconds in (0.0005, 0.003, 0.02, 0.05):
        both, clock = networks(1, seconds)
        measure(both, clock)
        assert 0.5 < clock.now < 1.6, f"{clock.now} s for networks of {seconds} s"
    both, clock = networks(1, 0.5)
    measure(both, clock)
    assert clock.now <= 5, "a slow network was measured for long"

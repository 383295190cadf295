"""The numbers of execution contexts and frames in flight are chosen from measurements, here with a simulated clock."""

import time

import pytest

from vsfdatrd.backends.gpu.concurrency import MAX_SLOTS, MIN_GAIN, measure_gain, measure_rate, needed_slots


class Clock:
    """Simulated clock that advances only while a thread waits."""

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def networks(clock: Clock, lanes: int, *seconds: float) -> list[Network]:
    clock.now, shared = 0.0, [0.0] * lanes
    return [Network(clock, shared, list(seconds)) for _ in range(2)]


@pytest.mark.parametrize("seconds", [0.001, 0.007, 0.04, 0.7])
def test_networks_side_by_side_are_twice_as_fast_and_in_turn_as_fast(clock: Clock, seconds: float) -> None:
    assert measure_gain(networks(clock, 2, seconds)) == pytest.approx((1 / seconds, 2 / seconds))
    assert measure_gain(networks(clock, 1, seconds)) == pytest.approx((1 / seconds, 1 / seconds))


def test_a_run_that_is_held_up_does_not_decide(clock: Clock) -> None:
    """One run in 150 takes a second: in two turns of ten."""
    alone, together = measure_gain(networks(clock, 1, *[0.005] * 149, 1.0))
    assert together < MIN_GAIN * alone
    assert alone < MIN_GAIN * together


def test_measuring_takes_about_a_second(clock: Clock) -> None:
    for seconds in (0.0005, 0.003, 0.02, 0.05):
        measure_gain(networks(clock, 1, seconds))
        assert 0.5 < clock.now < 1.6, f"{clock.now} s for networks of {seconds} s"
    measure_gain(networks(clock, 1, 0.5))
    assert clock.now <= 5, "a slow network was measured for long"


@pytest.mark.parametrize("seconds", [0.001, 0.007, 0.04, 0.7])
def test_a_brief_measurement(clock: Clock, seconds: float) -> None:
    assert measure_rate(networks(clock, 2, seconds)) == pytest.approx(2 / seconds)
    assert clock.now <= max(seconds, 0.1)


@pytest.mark.parametrize(
    ("contexts", "milliseconds", "slots"),
    [(1, 50, 3), (1, 20, 3), (1, 10, 3), (1, 5, 4), (1, 2.5, 5), (1, 0.5, MAX_SLOTS), (2, 20, 4), (2, 5, 5)],
)
def test_cheap_frames_have_more_in_flight(contexts: int, milliseconds: float, slots: int) -> None:
    """At 720×540: the host has a frame for about 6 ms."""
    assert needed_slots(contexts, 1000 / milliseconds, 4 * 3 * 5 * 720 * 540) == slots


def test_small_frames_take_the_host_less_time() -> None:
    assert needed_slots(1, 200, 4 * 3 * 5 * 720 * 540) > needed_slots(1, 200, 4 * 3 * 5 * 90 * 60)

"""Double buffering keeps the order of frames on slow streams, and keeps the streams busy."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from vsfdatrd.backends.gpu.copy_pipeline import Slot, TransferPipeline

type Places = dict[str, float]


class Point(threading.Event):
    """Barrier of two threads at a point in a stream, with the simulated time of the stream there."""

    time = 0.0


class Event:
    """A point in a stream."""

    def __init__(self) -> None:
        self.point = Point()

    def wait(self) -> None:
        assert self.point.wait(100), "no thread ever reached this event"


class Stream:
    """Simulated stream: executes tasks in order on its own thread. Memory is a dictionary.

    Its own time passes by what tasks take, and stands still while other programs hold up the thread.
    """

    def __init__(self, host: "SimulatedDevice", seconds: Callable[[], float]) -> None:
        self.host, self.places, self.seconds = host, host.places, seconds
        self.tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.now = 0.0
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        while task := self.tasks.get():
            task()

    def work(self, task: Callable[[], object]) -> None:
        """Do something that takes a while."""
        submitted = self.host.now

        def slow() -> None:
            seconds = self.seconds()
            time.sleep(seconds)
            task()
            self.now = max(self.now, submitted) + seconds

        self.tasks.put(slow)

    def copy(self, target: str, source: str) -> None:
        self.work(lambda: self.places.__setitem__(target, self.places[source]))

    def upload(self, memory: str, address: str) -> None:
        self.copy(memory, address)

    def download(self, address: str, memory: str) -> None:
        self.copy(address, memory)

    def record(self, event: Event) -> None:
        point = event.point = Point()

        def come_past() -> None:
            point.time = self.now
            point.set()

        self.tasks.put(come_past)

    def wait_for(self, event: Event) -> None:
        point = event.point

        def wait() -> None:
            point.wait()
            self.now = max(self.now, point.time)

        self.tasks.put(wait)


class IgnoringStream(Stream):
    """A stream that ignores events, to show that the tests detect it."""

    def wait_for(self, event: Event) -> None:
        pass


class SimulatedDevice:
    """A device of three streams whose network squares a number."""

    def __init__(self, count: int, seconds: Callable[[], float], kind: type[Stream] = Stream) -> None:
        self.places: Places = {f"{name}{i}": 0.0 for i in range(count) for name in ("in", "out", "there", "back")}
        self.now = 0.0
        self.streams = [kind(self, seconds) for _ in range(3)]
        events: list[list[Any]] = [[Event(), Event(), Event()] for _ in range(count)]
        slots = [Slot(f"in{i}", f"out{i}", f"there{i}", f"back{i}", *events[i]) for i in range(count)]
        streams: list[Any] = self.streams
        up, compute, down = streams

        def launch(number: int) -> None:
            compute.work(lambda: self.places.__setitem__(f"back{number}", self.places[f"there{number}"] ** 2))

        self.pipeline = TransferPipeline(up, compute, down, slots, launch)
        self.count, self.events = count, events

    def run(self, frames: int) -> list[float]:
        """The squares of 1, 2, 3, ... with as many in flight as there are slots."""
        result = []
        for n in range(frames + self.count):
            slot = n % self.count
            if n >= self.count:
                self.pipeline.wait(slot)
                self.now = max(self.now, self.events[slot][2].point.time)
                result.append(self.places[f"out{slot}"])
            if n < frames:
                self.places[f"in{slot}"] = n + 1.0
                self.pipeline.submit(slot)
        return result

    def close(self) -> None:
        for stream in self.streams:
            stream.tasks.put(None)
            stream.thread.join()


type MakeRig = Callable[..., SimulatedDevice]


@pytest.fixture
def rig() -> Iterator[MakeRig]:
    rigs: list[SimulatedDevice] = []

    def make(count: int, seconds: Callable[[], float] = lambda: 0.0, kind: type[Stream] = Stream) -> SimulatedDevice:
        rigs.append(SimulatedDevice(count, seconds, kind))
        return rigs[-1]

    yield make
    for made in rigs:
        made.close()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_frame_is_computed_from_its_own_source(rig: MakeRig, count: int) -> None:
    chance = random.Random(count)
    assert rig(count, lambda: chance.choice((0.0, 0.0005, 0.003))).run(60) == [n**2 for n in range(1, 61)]


def test_streams_that_do_not_wait_spoil_frames(rig: MakeRig) -> None:
    """So the test above would notice a missing event."""
    chance = random.Random(3)
    assert rig(3, lambda: chance.choice((0.0, 0.0005, 0.003)), IgnoringStream).run(60) != [n**2 for n in range(1, 61)]


def test_copies_hide_behind_computing(rig: MakeRig) -> None:
    """Three streams of 5 ms a frame: in turn 15 ms a frame, together little more than 5."""
    step, frames = 0.005, 40
    together, alone = rig(3, lambda: step), rig(1, lambda: step)
    together.run(frames)
    assert together.now < 1.1 * step * frames
    alone.run(frames)
    assert alone.now == pytest.approx(3 * step * frames)


def test_frames_may_be_waited_for_in_any_order(rig: MakeRig) -> None:
    made = rig(4, lambda: 0.002)
    for slot in range(4):
        made.places[f"in{slot}"] = slot + 2.0
        made.pipeline.submit(slot)
    for slot in (2, 0, 3, 1):
        made.pipeline.wait(slot)
        assert made.places[f"out{slot}"] == (slot + 2) ** 2

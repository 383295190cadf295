"""Measure the share of its own rate that a GPU engine keeps through VapourSynth, without a GPU.

    python -m benchmarks.host_path [--milliseconds 5 10 20] [--threads 2 4] [--rounds 5] [--size 720x540] [--staging]

The engine is the real one for TensorRT with its process, shared memory and double buffering, on a simulated GPU
(`tests/backends/fake_gpu`) that takes an exact time per network and 20 GB/s for copies and uses no processor meanwhile.
Frames are RGBS, 720×540 to 1440×1080, each different from the one before, with `reuse="exact"`, the default. With a
very small `--size`, the processor time is that of everything but copies.
"""

import argparse
import itertools
import json
import os
import queue
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import vapoursynth as vs

from benchmarks.command_line import frame_size, positive_float, positive_int, run
from vsfdatrd import inference
from vsfdatrd.backends.base import FramePlanes, SlotPool
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.backends.tensorrt.builder import ENGINE_FILE
from vsfdatrd.video import tiling
from vsfdatrd.video.clamp import clamp_copy
from vsfdatrd.workers.client import Worker

FAKE_GPU = Path(__file__).resolve().parents[1] / "tests" / "backends" / "fake_gpu"
SIZE, SCALE = (720, 540), 2
PICTURES = 16
"""Different frames in a row, more than a picture is remembered for."""
WARM = 6
"""First frames of a turn, which do not count."""
TARGETS = 8
"""Results that the bare loop writes in rotation, as VapourSynth's frames do not stay in a cache either."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of each of three ways to use an engine, directly after each other."""

    own: float
    """Frames per second of the engine alone: all slots busy, nothing copied by the host."""
    bare: float | None
    """Frames per second of a loop in as many threads that copies frames in and, clamped, out, and does nothing else;
    None if it was not measured.
    """
    through: float
    """Frames per second through VapourSynth."""
    host_ms: float
    """Milliseconds of processor time of the script's process per frame through VapourSynth."""
    bare_ms: float | None
    """Milliseconds of processor time of the bare loop per frame."""

    @property
    def share(self) -> float:
        """The share of its own rate that the engine keeps through VapourSynth."""
        return self.through / self.own


@contextmanager
def scripted_engine(
    milliseconds: float, streams: int | None = None, staging: bool = False, size: tuple[int, int] = SIZE
) -> Iterator[SlotPool]:
    """Open an engine on the simulated GPU.

    Args:
        milliseconds: Time of the network per frame.
        streams: Frames in flight; None for the default.
        staging: Whether the GPU refuses to pin shared memory, so that frames go through buffers of the driver.
        size: Width and height of a frame.
    """
    width, height = size
    faults = "capture register" if staging else "capture"  # no graph: it would be compared, but nothing is computed
    given = {"PYTHONPATH": str(FAKE_GPU), "FAKE_MS": str(milliseconds), "FAKE_GPU": faults}
    shapes = {"input": [1, 3, height, width], "output": [1, 3, SCALE * height, SCALE * width]}
    content = {"shapes": shapes, "precision": "fp16", "targets": [], "static": True}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, ENGINE_FILE).write_text(json.dumps(content))
        with patch.dict(os.environ, given):
            worker = Worker("vsfdatrd.backends.tensorrt.worker")
        loaded = worker.ask(
            "load", library="tensorrt_rtx", directory=folder, devices=[0], streams=streams, state=None, contexts=1
        )
    engine = RemoteEngine(worker, loaded["slots"], loaded["input"], loaded["output"])
    try:
        yield SlotPool(engine)
    finally:
        engine.close()


class Race:
    """Turns of an engine alone, of a bare loop, and of VapourSynth."""

    def __init__(self, pool: SlotPool, threads: int) -> None:
        """Prepare clips and buffers.

        Args:
            pool: The engine.
            threads: Threads of VapourSynth and of the bare loop.
        """
        self._pool, self._threads, self._next = pool, threads, 0
        vs.core.num_threads = threads
        _, height, width = pool.engine.input(0).shape
        colors = [[n / PICTURES, 0.5, 0.2] for n in range(PICTURES)]
        pictures = [
            vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=1000, color=color, keep=True)
            for color in colors
        ]
        whole = tiling.single_tile(height, width, SCALE)
        self._clip = inference.upscale_frames(vs.core.std.Interleave(pictures), pool, whole, SCALE, reuse=0.0)
        # VapourSynth keeps 20 results of a clip that is asked directly: a second of page faults at the start.
        self._clip.std.SetVideoCache(mode=0)
        self._source = np.stack([np.full((3, height, width), color[0], np.float32) for color in colors])
        self._targets: queue.SimpleQueue[FramePlanes] = queue.SimpleQueue()
        for _ in range(TARGETS):
            self._targets.put(np.zeros((3, SCALE * height, SCALE * width), np.float32))

    def turn(self, frames: int, bare: bool = True) -> Turn:
        """Take one turn of each.

        Args:
            frames: Frames of each, besides the first ones, which do not count.
            bare: Whether the bare loop takes part.
        """
        frames += WARM
        own, _ = self._timed(self._own, frames)
        least = self._timed(self._bare, frames) if bare else (None, None)
        through = self._timed(self._through, frames)
        return Turn(own, least[0], *through, least[1])

    def _timed(self, use: Callable[[int], list[float]], frames: int) -> tuple[float, float]:
        """Return frames per second, and milliseconds of processor time per frame."""
        start = time.process_time()
        times = use(frames)
        return _rate(times), 1000 * (time.process_time() - start) / frames

    def _own(self, frames: int) -> list[float]:
        engine, times = self._pool.engine, []
        running = deque(range(engine.slots))
        for slot in running:
            engine.submit(slot)
        for _ in range(frames):
            engine.collect(running[0])
            times.append(time.perf_counter())
            engine.submit(running[0])
            running.rotate(-1)
        for slot in running:
            engine.collect(slot)
        return times

    def _bare(self, frames: int) -> list[float]:
        engine, numbers, times = self._pool.engine, itertools.count(), deque[float]()
        free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(engine.slots):
            free.put(slot)

        def work() -> None:
            while (number := next(numbers)) < frames:
                slot, source = free.get(), self._source[number % PICTURES]
                np.bitwise_xor.reduce(source.view(np.uint64), axis=None)  # as a hash reads it
                np.copyto(engine.input(slot), source)
                engine.submit(slot)
                target = self._targets.get()
                for plane, result in zip(target, engine.collect(slot), strict=True):
                    clamp_copy(result, plane)
                self._targets.put(target)
                free.put(slot)
                times.append(time.perf_counter())

        workers = [threading.Thread(target=work) for _ in range(self._threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sorted(times)

    def _through(self, frames: int) -> list[float]:
        part = self._clip[self._next : self._next + frames]
        self._next += frames
        part.std.SetVideoCache(mode=0)
        return [time.perf_counter() for _ in part.frames(prefetch=self._threads, close=True)]


def _rate(times: list[float]) -> float:
    """Return the frames per second from the times at which frames were done, without the first ones."""
    counted = times[WARM - 1 :]
    return (len(counted) - 1) / (counted[-1] - counted[0])


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host_path", description=__doc__.splitlines()[0])
    parser.add_argument("--milliseconds", type=positive_float, nargs="+", default=[5, 10, 20])
    parser.add_argument("--threads", type=positive_int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--seconds", type=positive_float, default=0.4, help="length of a turn")
    parser.add_argument("--size", type=frame_size, default=SIZE, help="of a frame (720x540)")
    parser.add_argument("--streams", type=positive_int)
    parser.add_argument("--staging", action="store_true", help="through pinned buffers, as where pinning fails")
    a = parser.parse_args()
    print("network  threads  slots  own fps  share: best  median  bare loop  host ms: least  median")
    for milliseconds, threads in itertools.product(a.milliseconds, a.threads):
        with scripted_engine(milliseconds, a.streams, a.staging, a.size) as pool:
            race = Race(pool, threads)
            frames = max(1, round(1000 * a.seconds / milliseconds))
            race.turn(frames)  # first use of all memory
            turns = [race.turn(frames) for _ in range(a.rounds)]
            del race
            own, host = statistics.median(turn.own for turn in turns), [turn.host_ms for turn in turns]
            shares, bare = [turn.share for turn in turns], [turn.bare / turn.own for turn in turns if turn.bare]
            figures = (max(shares), 11), (statistics.median(shares), 6), (statistics.median(bare), 9)
            line = f"{milliseconds:4g} ms  {threads:7}  {pool.engine.slots:5}  {own:7.1f}  "
            line += "  ".join(f"{share:{width}.3f}" for share, width in figures)
            print(f"{line}  {min(host):14.1f}  {statistics.median(host):6.1f}", flush=True)
    return 0


if __name__ == "__main__":
    run(main)

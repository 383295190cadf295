"""Freed memory is returned to the system regularly, by one thread, so that long clips need no more than short ones."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vsfdatrd.video import malloc_trim

LONG_CLIP = """
import sys
import psutil
import vapoursynth as vs
from vsfdatrd.video import malloc_trim

# On a fast machine a second is most of these frames.
malloc_trim.trimmer._interval = 0.1

def used():
    own = psutil.Process()
    return [p.memory_info().rss for p in (own, *own.children(recursive=True))]

clip = vs.core.std.BlankClip(width=120, height=120, format=vs.YUV420P8, length=600, color=[120, 90, 160])
clip = vs.core.fdatrd.upscale(clip, model=sys.argv[1], cache=sys.argv[2], reuse="off")
for n, _ in enumerate(clip.frames(close=True)):
    if n == 150:
        settled = used()
print(*(now - then for now, then in zip(used(), settled, strict=True)))
"""


class Trims:
    """Counts, and takes its time."""

    def __init__(self) -> None:
        self.count = self.inside = self.most = 0
        self.release = threading.Event()
        self.release.set()

    def __call__(self, pad: int) -> int:
        assert pad == 0
        self.count += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.release.wait(120)
        self.inside -= 1
        return 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` says."""
    now = [100.0]
    monkeypatch.setattr("vsfdatrd.video.malloc_trim.time.monotonic", lambda: now[0])
    return now


def test_a_trim_is_made_once_in_an_interval(clock: list[float]) -> None:
    trims = Trims()
    trimmer = malloc_trim.Trimmer(trims, 2.0)
    counts = []
    for seconds in (0.5, 1.0, 1.0, 0.5, 5.0, 0.0):
        clock[0] += seconds
        trimmer.tick()
        counts.append(trims.count)
    assert counts == [0, 0, 1, 1, 2, 2]


def test_threads_do_not_wait_for_the_one_that_trims(clock: list[float]) -> None:
    trims = Trims()
    trims.release.clear()
    trimmer = malloc_trim.Trimmer(trims, 1.0)
    clock[0] += 2
    slow = threading.Thread(target=trimmer.tick)
    slow.start()
    while not trims.inside:
        pass
    for _ in range(100):
        trimmer.tick()  # would hang here
    trims.release.set()
    slow.join()
    assert (trims.count, trims.most) == (1, 1)


def test_without_an_allocator_to_ask_nothing_happens(clock: list[float]) -> None:
    trimmer = malloc_trim.Trimmer(None, 1.0)
    clock[0] += 100
    trimmer.tick()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own")
def test_the_systems_trim_is_found() -> None:
    trim = malloc_trim._find_malloc_trim()
    assert trim is not None
    assert trim(0) in (0, 1)


@pytest.mark.slow
def test_a_long_clip_needs_no_more_memory_than_a_short_one(identity_2x: Path, tmp_path: Path) -> None:
    """Untrimmed, these 450 frames cost the script's process about 50 MB with glibc 2.36."""
    command = [sys.executable, "-c", LONG_CLIP, str(identity_2x), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert run.returncode == 0, run.stderr
    script, engine = (int(grown) / 2**20 for grown in run.stdout.split())
    assert script < 15
    assert engine < 4

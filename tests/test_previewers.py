"""A script in vsview: opened in a window, reloaded with the keyboard, closed."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vsview") is None, reason="needs vsview"),
    pytest.mark.skipif(not all(map(shutil.which, ("Xvfb", "xdotool"))), reason="needs Xvfb and xdotool"),
]

SCRIPT = """
import vapoursynth as vs
from vapoursynth import core

clip = core.std.BlankClip(None, 96, 64, vs.YUV420P8, length=24, color=[120, 90, 170])
clip = core.std.SetFrameProps(clip, _Matrix=6, _Transfer=6, _Primaries=6, _Range=0)
core.fdatrd.upscale(clip, model="small", backend="native").set_output()
"""
KEPT_MIB = 40
"""By how much vsview and its workers may grow over two reloads: 4 MiB were measured, and a worker left takes 65."""


@pytest.fixture
def display() -> Iterator[str]:
    """Start an in-memory X server and return its `$DISPLAY`."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with open(read) as numbers:
            yield f":{int(numbers.readline())}"
    finally:
        server.terminate()
        server.wait(120)


def test_reloading_in_vsview_leaves_no_worker_and_no_memory_behind(display: str, tmp_path: Path) -> None:
    script, log = tmp_path / "script.vpy", tmp_path / "log"
    script.write_text(SCRIPT)
    # Lines of the log are as wide as COLUMNS says; settings and engines of the user are not touched.
    home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment = os.environ | home | {"DISPLAY": display, "COLUMNS": "400"}

    def press(*keys: str) -> None:
        subprocess.run(["xdotool", *keys], env=environment, check=True, timeout=250, stdout=subprocess.DEVNULL)

    def said(words: str) -> int:
        return log.read_text(errors="replace").count(words)

    command = [sys.executable, "-m", "vsview", str(script), "--no-settings"]
    with log.open("wb") as stream, subprocess.Popen(command, env=environment, stderr=stream, stdout=stream) as vsview:
        try:
            wait(lambda: said("Content loaded successfully") == 1, vsview, log)
            press("search", "--onlyvisible", "--name", "VS View", "windowfocus")
            process = psutil.Process(vsview.pid)
            workers, sizes = [settled(process)], []
            for _ in range(3):
                press("key", "ctrl+r")
                wait(lambda: said("Content reloaded successfully") == len(workers), vsview, log)
                workers.append(settled(process))
                sizes.append(resident({process} | workers[-1]))
            assert "ERROR" not in log.read_text(errors="replace"), log.read_text(errors="replace")
            assert [len(result) for result in workers] == [1] * 4, workers
            assert sizes[-1] - sizes[0] < KEPT_MIB, sizes
        finally:
            vsview.terminate()
    wait(lambda: not any(worker.is_running() for result in workers for worker in result))


def wait(until: Callable[[], bool], process: "subprocess.Popen[bytes] | None" = None, log: Path | None = None) -> None:
    """Wait until something holds. Raises AssertionError after two minutes, and once vsview ends or logs an error."""
    end = time.monotonic() + 120
    while not until():
        messages = log.read_text(errors="replace") if log else ""
        assert "ERROR" not in messages, messages
        assert process is None or process.poll() is None, f"vsview ended:\n{messages}"
        assert time.monotonic() < end, f"not within two minutes:\n{messages}"
        time.sleep(0.1)


def settled(parent: psutil.Process) -> set[psutil.Process]:
    """The child processes that a process still has after ten seconds; earlier, once it has only one."""
    end = time.monotonic() + 10
    while len(result := set(parent.children(recursive=True))) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    return result


def resident(processes: Iterable[psutil.Process]) -> float:
    """Memory of processes, in MiB."""
    return float(sum(process.memory_info().rss for process in processes)) / 2**20

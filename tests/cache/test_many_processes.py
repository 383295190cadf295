"""Several processes request the same engine: one builds, and each of them may die."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cache.conftest import BODY, FILES, KEY, Builder, read, temporary
from vsfdatrd.cache import directory as cache_folder
from vsfdatrd.cache.engine_cache import EngineCache

PRELUDE = """
import os, sys, time
from pathlib import Path
from vsfdatrd.cache.manifest import Key
from vsfdatrd.cache.engine_cache import EngineCache
key = Key("ab" * 32, "1", "720x540", "fp32", "openvino 2026.4", "CPU", "x")
cache, log, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def build(directory):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    (directory / "model.bin").write_bytes(bytes(range(256)) * 64)
    if mode == "hang":
        print("building", flush=True)
        time.sleep(600)
    time.sleep(float(mode))
print("ready", flush=True)
sys.stdin.readline()
print(len(EngineCache(cache).open(key, build, lambda path: (path / "model.bin").read_bytes())), flush=True)
"""


def process(store: EngineCache, log: Path, mode: str) -> "subprocess.Popen[str]":
    """A Python that opens KEY once a line arrives on its stdin."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE, str(store.directory), str(log), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def quiet(err: str) -> str:
    """What a process said besides that it waits, which it does on a busy machine."""
    return "".join(line for line in err.splitlines() if not line.startswith("fdatrd: waiting for another process"))


def test_eight_processes_build_once(store: EngineCache, tmp_path: Path) -> None:
    log = tmp_path / "builds"
    processes = [process(store, log, "0.5") for _ in range(8)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in processes:
        out, err = each.communicate(timeout=120)
        assert (each.returncode, out, quiet(err)) == (0, f"{len(BODY)}\n", "")
    assert len(log.read_text().split()) == 1
    assert temporary(store) == []


def test_kill_during_build(store: EngineCache, tmp_path: Path) -> None:
    """The waiting process builds in its place; nothing of the dead one remains."""
    log = tmp_path / "builds"
    victim = process(store, log, "hang")
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write("\n")
    victim.stdin.flush()
    assert [victim.stdout.readline() for _ in range(2)] == ["ready\n", "building\n"]
    [left] = temporary(store)
    assert (left / "model.bin").exists()
    # A live builder's files are not swept by others, and its key does not hold up other keys.
    store.open(replace(KEY, shape="64x64"), Builder(), read)
    assert temporary(store) == [left]
    heir = process(store, log, "0")
    assert heir.stdin is not None
    heir.stdin.write("\n")
    heir.stdin.flush()
    time.sleep(0.5)
    assert heir.poll() is None
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=120)
    out, err = heir.communicate(timeout=120)
    assert (heir.returncode, out.split()[-1], quiet(err)) == (0, str(len(BODY)), "")
    assert len(log.read_text().split()) == 2
    store.open(KEY, Builder(), lambda path: None)
    assert temporary(store) == []


def test_waiting_is_announced(
    store: EngineCache, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache_folder, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    building, go_on = threading.Event(), threading.Event()

    def build(directory: Path) -> None:
        building.set()
        go_on.wait(120)
        Builder()(directory)

    first = threading.Thread(target=lambda: store.open(KEY, build, read))
    first.start()
    building.wait(120)
    results = []
    second = threading.Thread(target=lambda: results.append(store.open(KEY, build, read)))
    second.start()
    end = time.monotonic() + 100
    while "waiting for another process" not in screen.getvalue() and time.monotonic() < end:
        time.sleep(0.05)
    assert results == []
    go_on.set()
    first.join(120)
    second.join(120)
    assert results == [FILES]
    assert capfd.readouterr().out == ""
    assert "waiting for another process" in screen.getvalue()
    assert "720x540" in screen.getvalue()


def test_waiting_for_a_measurement_is_announced_as_such(store: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_folder, "_SILENT_SECONDS", 0.1)
    monkeypatch.setattr(sys, "stderr", screen := io.StringIO())
    timing, go_on = threading.Event(), threading.Event()

    def measure() -> dict[str, int]:
        timing.set()
        go_on.wait(120)
        return {"rate": 5}

    arguments = ("speed", "a" * 64, "timing engines on x.pth", measure)
    first = threading.Thread(target=store.get_or_compute, args=arguments)
    first.start()
    timing.wait(120)
    second = threading.Thread(target=store.get_or_compute, args=arguments)
    second.start()
    end = time.monotonic() + 100
    while "waiting" not in screen.getvalue() and time.monotonic() < end:
        time.sleep(0.05)
    go_on.set()
    first.join(120)
    second.join(120)
    assert screen.getvalue().startswith("fdatrd: waiting for another process that is timing engines on x.pth")


def test_different_keys_build_at_once(store: EngineCache) -> None:
    """Each builder waits until the other one has started too."""
    meeting = threading.Barrier(2, timeout=120)

    def build(directory: Path) -> None:
        meeting.wait()
        Builder()(directory)

    keys = [replace(KEY, shape=shape) for shape in ("64x64", "96x96")]
    threads = [threading.Thread(target=lambda k=k: store.open(k, build, read)) for k in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {entry.digest for entry in store.entries()} == {key.digest for key in keys}


def test_old_leftovers_are_swept(store: EngineCache) -> None:
    store.open(KEY, Builder(), read)
    tmp = store.directory / "store-1" / "tmp"
    old, new = tmp / "note.1.aa", tmp / "note.2.bb"
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (1000, 1000))
    dead = tmp / f"{'0' * 64}.99.cc"
    dead.mkdir()
    (dead / "half").write_bytes(BODY)
    store.open(KEY, Builder(), read)
    assert temporary(store) == [new]

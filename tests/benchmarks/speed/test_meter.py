"""What contestants use: time, memory, the GPU."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from benchmarks.speed import meter as meter_module
from benchmarks.speed.meter import GpuMeter, cpu_seconds, peak_memory


def test_cpu_time_and_memory_are_those_of_the_whole_family() -> None:
    """A child that is busy for a while and holds 200 MiB counts as its parent's."""
    child = (
        "import time; held = bytearray(200 << 20); end = time.process_time() + 1\nwhile time.process_time() < end: pass"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); input()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE)
    largest = 0
    try:
        deadline = time.monotonic() + 2000
        while cpu_seconds(process.pid) < 1 and time.monotonic() < deadline:
            largest = max(largest, peak_memory(process.pid))
            time.sleep(0.05)
        assert 1 <= cpu_seconds(process.pid) < 5
        assert largest > 200 << 20
    finally:
        process.communicate(b"\n")
    assert cpu_seconds(process.pid) == 0


def test_the_gpu_is_read_while_frames_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "1000, 0, 300, 60.5, 40"\necho "[N/A], 0, 300, 60.5, 40"\n'
        f'while [ ! -e "{tmp_path}/marked" ]; do /bin/sleep 0.05; done\n'
        'echo "3000, 90, 1980, 300.5, 60"\necho "2000, 70, 1900, 200.5, 61"\nexec sleep 60\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def wait(meter: GpuMeter, count: int) -> None:
        deadline = time.monotonic() + 200
        while len(meter.readings) < count and time.monotonic() < deadline:
            time.sleep(0.02)

    with GpuMeter() as meter:
        wait(meter, 1)
        mark = meter.mark()
        (tmp_path / "marked").touch()
        wait(meter, 3)
        result = meter.since(mark)
    assert result == {
        "busy": pytest.approx(0.8),
        "clock_mhz": 1940,
        "power_w": 250.5,
        "temperature_c": 61,
    }
    assert meter.since(meter.mark()) == {}


def test_memory_of_the_gpu_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings from before, when an ended process still held memory, do not count."""
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "9000, 0, 300, 60, 40"\nexec tail -f "$(dirname "$0")/more"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "more").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with GpuMeter() as meter:
        deadline = time.monotonic() + 200
        while not meter.readings and time.monotonic() < deadline:
            time.sleep(0.02)
        monkeypatch.setattr(meter_module, "PATIENCE", 200)
        late = threading.Timer(0.5, (tmp_path / "more").write_text, ["8000, 0, 1, 1, 1\n1000, 0, 1, 1, 1\n"])
        late.start()
        assert meter.memory_now() == 1000
        late.join()


def test_without_a_gpu_nothing_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuMeter() as meter:
        assert meter.since(0) == {}
        assert meter.memory_now() == 0

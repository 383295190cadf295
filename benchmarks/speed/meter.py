"""Resource usage of a contestant: CPU seconds and memory of its processes, and GPU readings from the driver."""

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

import psutil

QUERY = ("memory.used", "utilization.gpu", "clocks.sm", "power.draw", "temperature.gpu")
"""Fields of nvidia-smi: MiB, %, MHz, W, °C."""
INTERVAL = 0.1
"""Seconds between two readings of the GPU."""
PATIENCE = 2.0
"""Seconds after which `GpuMeter.memory_now` no longer waits for a new reading."""


def family(pid: int) -> Iterator[psutil.Process]:
    """A process and all of its descendants that still run."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        yield process
        yield from process.children(recursive=True)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants, including those that have ended."""
    total = 0.0
    for process in family(pid):
        with contextlib.suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])  # user, system, and both of children that were waited for
    return total


def peak_memory(pid: int) -> int:
    """Sum of the peak memory of a process and its children, in bytes."""
    return sum(peak_of_process(process.pid) for process in family(pid))


def peak_of_process(pid: int) -> int:
    """Peak memory of one process in bytes; 0 where the system does not tell it (only Linux does)."""
    with contextlib.suppress(OSError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    return 0


@dataclass(frozen=True, slots=True)
class Reading:
    """The GPU at one moment."""

    memory: float
    """MiB in use, by all processes."""
    busy: float
    """Share of the time since the last reading in which it computed, 0 to 1."""
    clock: float
    """MHz of its cores."""
    power: float
    """W."""
    temperature: float
    """°C."""


@dataclass
class GpuMeter:
    """Reads the first GPU ten times a second through nvidia-smi; without a GPU it returns no data."""

    readings: list[Reading] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None

    def __enter__(self) -> "GpuMeter":
        if program := shutil.which("nvidia-smi"):
            command = [
                program,
                "-i",
                "0",
                f"--query-gpu={','.join(QUERY)}",
                "--format=csv,noheader,nounits",
                f"--loop-ms={round(INTERVAL * 1000)}",
            ]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process and self._reader:
            self._process.terminate()
            self._process.wait()
            self._reader.join(timeout=1)  # a child of its own may hold the pipe
            if self._process.stdout and not self._reader.is_alive():
                self._process.stdout.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            try:
                memory, busy, clock, power, temperature = (float(value) for value in line.split(","))
            except ValueError:  # "[N/A]": this GPU does not report the value
                continue
            self.readings.append(Reading(memory, busy / 100, clock, power, temperature))

    def memory_now(self) -> float:
        """MiB in use at this moment, after the memory of ended processes has been given back; 0 without a GPU."""
        before = len(self.readings)
        deadline = time.monotonic() + PATIENCE
        while self._process and len(self.readings) < before + 2 and time.monotonic() < deadline:
            time.sleep(INTERVAL / 2)
        return self.readings[-1].memory if self.readings else 0

    def mark(self) -> int:
        """The current position, for `since`."""
        return len(self.readings)

    def since(self, mark: int) -> dict[str, Any]:
        """Summary of the readings since a mark; empty if there are none."""
        result = self.readings[mark:]
        if not result:
            return {}
        return {
            "busy": mean(r.busy for r in result),
            "clock_mhz": median(r.clock for r in result),
            "power_w": mean(r.power for r in result),
            "temperature_c": max(r.temperature for r in result),
        }

"""Identity of the CPU, as text that differs wherever engines would compute differently."""

import hashlib
import platform
from functools import cache
from pathlib import Path

import psutil


def usable_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may use; all of them on systems without affinity (macOS)."""
    if hasattr(psutil.Process, "cpu_affinity"):
        return sorted(psutil.Process().cpu_affinity())
    return list(range(psutil.cpu_count() or 1))


@cache
def identity() -> str:
    """Return the CPU's name, a digest of its feature flags, and the number of cores this process may use."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for line in reversed(lines):  # so that the first line of each key wins
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = value.strip()
    return f"{name} ({hashlib.sha256(flags.encode()).hexdigest()[:8]}), {len(usable_cpus())} cores"

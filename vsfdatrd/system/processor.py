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


def cpu_name() -> str:
    """Return the CPU's name as the system gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Return the CPU's feature flags as Linux names them; empty on other systems."""
    return _cpuinfo().get("flags", "").split()


@cache
def cpu_identity() -> str:
    """Return the CPU's name, a digest of its feature flags, and the number of cores this process may use."""
    flags = hashlib.sha256(_cpuinfo().get("flags", "").encode()).hexdigest()[:8]
    return f"{cpu_name()} ({flags}), {len(usable_cpus())} cores"


def _cpuinfo() -> dict[str, str]:
    """Return the first value of each key in /proc/cpuinfo; empty on systems other than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))
    return {key.strip(): value.strip() for key, _, value in pairs}

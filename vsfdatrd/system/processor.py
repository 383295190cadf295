"""What processor this is, as text that differs where engines would compute differently."""

import hashlib
import platform
from functools import cache
from pathlib import Path

import psutil


@cache
def identity() -> str:
    """The processor's name, a digest of what it can do, and the cores that this process may use."""
    able = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no Linux
        lines = []
    for line in reversed(lines):  # the first of each counts
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = value.strip()
    return f"{name} ({hashlib.sha256(flags.encode()).hexdigest()[:8]}), {able} cores"

"""What every process that is started here has in common, on every system: a Python, no window, a stderr, an end."""

import os
import subprocess
import sys
from pathlib import Path

from vsfdatrd.errors import EngineError


def python() -> str:
    """The Python to start; in vspipe and other hosts `sys.executable` may be empty or the host itself."""
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    # Scripts: environments on Windows. Installations and embedded Pythons have it in no folder there.
    for place in ("bin/python3", "bin/python", "Scripts/python.exe", "python.exe"):
        if (found := Path(sys.prefix, place)).exists():
            return str(found)
    raise EngineError(f"there is no Python in {sys.prefix!r} to run the engine in; is the environment damaged?")


def no_window() -> int:
    """`creationflags` for subprocess under which a program opens no window.

    Windows opens a console for every console program that a program without one starts: an editor, a player.
    """
    if sys.platform == "win32":
        import ctypes

        if not ctypes.windll.kernel32.GetConsoleCP():  # 0: this process has no console that a child could share
            return subprocess.CREATE_NO_WINDOW
    return 0


def stderr() -> int | None:
    """`stderr` for subprocess: ours, as None says; nowhere if we have none, as programs with a window on Windows."""
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return None


def ending(code: int) -> str:
    """How a process ended, by its return code: ``signal 9``, ``status 1``.

    Windows has no signals: a crash is a status such as 0xC0000005, which is found by that spelling only.
    """
    if code < 0:
        return f"signal {-code}"
    return f"status {code:#010X}".replace("X", "x") if code >= 1 << 31 else f"status {code}"

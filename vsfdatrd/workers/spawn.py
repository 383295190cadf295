"""What every process that is started here has in common, on every system: a Python, no window, a stderr, an end."""

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vsfdatrd.errors import EngineError
from vsfdatrd.system.home import private_temporary_directory, user_directory
from vsfdatrd.system.standard_streams import has_stderr


def python() -> str:
    """The Python to start; in vspipe and other hosts `sys.executable` may be empty or the host itself."""
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    # Scripts: environments on Windows. Installations and embedded Pythons have it in no folder there.
    for place in ("bin/python3", "bin/python", "Scripts/python.exe", "python.exe"):
        if (found := Path(sys.prefix, place)).exists():
            return str(found)
    raise EngineError(f"there is no Python in {sys.prefix!r} to run the engine in; is the environment damaged?")


def environment() -> dict[str, str]:
    """The environment of a Python process of ours: this package comes first, and there is a home directory.

    OpenVINO looks for one when it is imported, and does not bear it that a user has none.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if user_directory("cache") is None:
        try:
            found["HOME"] = str(private_temporary_directory("vsfdatrd-home"))
        except OSError:
            found["HOME"] = tempfile.gettempdir()
    return found


def no_window() -> int:
    """`creationflags` for subprocess under which a program opens no window.

    Windows opens a console for every console program that a program without one starts: an editor, a player.
    """
    if sys.platform == "win32":
        if not ctypes.windll.kernel32.GetConsoleCP():  # 0: this process has no console that a child could share
            return subprocess.CREATE_NO_WINDOW
    return 0


def stderr() -> int | None:
    """`stderr` for subprocess: ours, as None says; nowhere if we have none, as programs with a window on Windows."""
    return None if has_stderr() else subprocess.DEVNULL


class _Starter:
    """A thread that starts child processes for all others and lives as long as this process.

    A child that asked the kernel to end with its parent (`end_with`) ends with the thread that started it, and threads
    on which a script is evaluated or frames are computed come and go.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._orders: queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], list[str], dict[str, Any]]]
        self._orders = queue.SimpleQueue()
        threading.Thread(target=self._work, name="fdatrd-starter", daemon=True).start()

    def start(self, command: list[str], **how: Any) -> subprocess.Popen[bytes]:
        started: Future[subprocess.Popen[bytes]] = Future()
        self._orders.put((started, command, how))
        return started.result()

    def _work(self) -> None:
        while True:
            started, command, how = self._orders.get()
            try:
                started.set_result(subprocess.Popen(command, **how))
            except BaseException as error:
                started.set_exception(error)
            del started, command, how  # not kept while waiting for the next


_starter: _Starter | None = None
_starting = threading.Lock()


def start(command: list[str], **how: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen` from a thread that does not end before this process does. Raises what Popen raises."""
    global _starter
    with _starting:
        if _starter is None or _starter.pid != os.getpid():  # a fork has no threads but one
            _starter = _Starter()
        starter = _starter
    return starter.start(command, **how)


if sys.platform != "win32":

    def _unlocked() -> None:
        global _starting
        _starting = threading.Lock()  # whoever held it is not there after a fork

    os.register_at_fork(after_in_child=_unlocked)

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Let this process end when its parent ends, even one that was stopped or whose pipes others hold open.

    parent: the process number of who started this one. On Linux the kernel sees to it, elsewhere a thread, which a
    stopped process does not run; on Windows a parent's end is seen by its pipe alone.
    """
    if os.name != "posix":
        return
    watched = False
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            watched = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if not watched:
        threading.Thread(target=_watch, args=(parent,), name="fdatrd-parent", daemon=True).start()
    if os.getppid() != parent:  # it was gone before
        os._exit(0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def ending(code: int) -> str:
    """How a process ended, by its return code: ``signal 9``, ``status 1``.

    Windows has no signals: a crash is a status such as 0xC0000005, which is found by that spelling only.
    """
    if code < 0:
        return f"signal {-code}"
    return f"status {code:#010X}".replace("X", "x") if code >= 1 << 31 else f"status {code}"

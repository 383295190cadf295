"""Start child processes on every platform.

This module finds the Python to run, opens no console window, gives children a stderr where their parent has none, and
ends children with their parent.
"""

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


def find_python() -> str:
    """Find the Python interpreter to start.

    Raises:
        EngineError: No interpreter exists under `sys.prefix`.
    """
    # In vspipe and other hosts `sys.executable` may be empty or the host itself.
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    # Scripts/ exists in virtual environments on Windows; installed and embedded Pythons have python.exe in the root.
    for path in ("bin/python3", "bin/python", "Scripts/python.exe", "python.exe"):
        if (result := Path(sys.prefix, path)).exists():
            return str(result)
    raise EngineError(f"there is no Python in {sys.prefix!r} to run the engine in; is the environment damaged?")


def child_environment(*, huge_pages: bool = False) -> dict[str, str]:
    """Return the environment for one of our Python processes: this package first in PYTHONPATH, and HOME set.

    Args:
        huge_pages: Let glibc request huge pages for what ``malloc`` allocates, unless the user has decided that. Many
            Linux systems give them only on request (/sys/kernel/mm/transparent_hugepage/enabled). Other C libraries
            ignore the variable.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    result = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if huge_pages and "glibc.malloc.hugetlb" not in tunables:
        result["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    if user_directory("cache") is None:  # OpenVINO looks for a home directory on import and fails without one
        try:
            result["HOME"] = str(private_temporary_directory("vsfdatrd-home"))
        except OSError:
            result["HOME"] = tempfile.gettempdir()
    return result


def creation_flags() -> int:
    """Return the ``creationflags`` for subprocess with which a program opens no window.

    Windows opens a console window for a console program started by a program without a console, such as an editor or
    a player.
    """
    if sys.platform == "win32":
        if not ctypes.windll.kernel32.GetConsoleCP():  # 0: this process has no console for a child to share
            return subprocess.CREATE_NO_WINDOW
    return 0


def child_stderr() -> int | None:
    """Return the argument ``stderr`` for a child process.

    None to inherit ours; DEVNULL if we have none, as in GUI programs on Windows.
    """
    return None if has_stderr() else subprocess.DEVNULL


type _Orders = queue.SimpleQueue[tuple[Future[subprocess.Popen[Any]], list[str], dict[str, Any]]]
_orders: _Orders | None = None
_orders_lock = threading.Lock()


def start_process(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Run `subprocess.Popen` on a thread that lives as long as this process.

    A child that asked the kernel to end it with its parent (`end_with_parent`) ends when the thread that started it
    does, and the threads on which a script is evaluated or frames are computed come and go.

    Args:
        command: Program and arguments.
        **options: Keyword arguments of `subprocess.Popen`.

    Raises:
        OSError: As `subprocess.Popen` does.
    """
    global _orders
    started: Future[subprocess.Popen[Any]] = Future()
    with _orders_lock:
        if _orders is None:
            _orders = queue.SimpleQueue()
            threading.Thread(target=_start_processes, args=(_orders,), name="fdatrd-starter", daemon=True).start()
        _orders.put((started, command, options))
    return started.result()


def _start_processes(orders: _Orders) -> None:
    if sys.platform != "win32":  # children inherit it: Ctrl-C is for the script, even before `serve_forever` runs
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    while True:
        started, command, options = orders.get()
        try:
            started.set_result(subprocess.Popen(command, **options))
        except BaseException as error:
            started.set_exception(error)
        del started, command, options  # do not keep references while waiting for the next order


if sys.platform != "win32":

    def _forget_thread() -> None:
        global _orders, _orders_lock
        _orders, _orders_lock = None, threading.Lock()  # after a fork only the forking thread exists

    os.register_at_fork(after_in_child=_forget_thread)

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, even if this process is suspended or others hold its pipes open.

    On Linux the kernel does it. Other POSIX systems use a thread, which does not run in a suspended process. On Windows
    only the closed pipe shows that the parent has ended.

    Args:
        parent: Process id of the parent.
    """
    if os.name != "posix":
        return
    watched = False
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            watched = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if not watched:
        threading.Thread(target=_watch_parent, args=(parent,), name="fdatrd-parent", daemon=True).start()
    if os.getppid() != parent:  # the parent had ended before the calls above
        os._exit(0)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def describe_exit(code: int) -> str:
    """Describe how a process ended, by its return code: ``signal 9``, ``status 1``.

    Windows has no signals. A crash there is a status such as 0xC0000005, which users can look up only in that
    spelling.

    Args:
        code: ``returncode`` of `subprocess.Popen`.
    """
    if code < 0:
        return f"signal {-code}"
    return f"status {code:#010X}".replace("X", "x") if code >= 1 << 31 else f"status {code}"

"""Progress messages on stderr, and a guard that keeps everything but video off stdout.

Progress does not use `logging`, which shows nothing below WARNING unless a script configures it, and cannot update a
line in place. To silence it, set the logger ``vsfdatrd`` to ERROR.
"""

import contextlib
import ctypes
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import TextIO

from vsfdatrd.system.standard_streams import has_stderr
from vsfdatrd.system.terminal import column_count, escape_control, raw_stream

STDOUT, STDERR = 1, 2

_write_lock = threading.Lock()


@contextlib.contextmanager
def report_progress(operation: str, delay: float = 0.5, every: float | None = None) -> Iterator[None]:
    """Report on stderr that an operation is running, for how long, and how it ended.

    Thread-safe. Silent if there is no stderr or the logger ``vsfdatrd`` is set above WARNING. Errors of stderr are
    ignored.

    Args:
        operation: The operation, a phrase such as ``building the engine``, without a period.
        delay: Seconds before the first message; shorter operations print nothing.
        every: Seconds between messages; by default 1 on a terminal, where one line is updated in place, else 10.
    """
    if sys.stderr is None or not logging.getLogger("vsfdatrd").isEnabledFor(logging.WARNING):
        yield
        return
    line = _Line(raw_stream(sys.stderr), f"fdatrd: {escape_control(operation)}")
    start = time.monotonic()
    finished = threading.Event()

    def report() -> None:
        if finished.wait(delay):
            return
        line.show("...")
        while not finished.wait(every or (1 if line.on_terminal else 10)):
            line.show(f"... {time.monotonic() - start:.0f} s")

    # A daemon thread, so that a process that exits meanwhile does not wait for it.
    reporter = threading.Thread(target=report, name="fdatrd-progress", daemon=True)
    reporter.start()
    outcome = "failed after"
    try:
        yield
        outcome = "done in"
    except (KeyboardInterrupt, SystemExit):
        outcome = "stopped after"
        raise
    finally:
        finished.set()
        reporter.join()
        if line.shown:
            line.end(f"{outcome} {time.monotonic() - start:.1f} s")


class _Line:
    """One status line on a stream: rewritten in place on a terminal, printed again elsewhere. Ignores write errors."""

    def __init__(self, stream: TextIO, start: str) -> None:
        self._stream = stream
        self._start = start
        self._length = 0
        self.shown = False
        self.on_terminal = False
        with contextlib.suppress(AttributeError, ValueError, OSError):
            self.on_terminal = stream.isatty()

    def show(self, state: str) -> None:
        self.shown = True
        text = f"{self._start} {state}"
        if self.on_terminal:
            # Truncated so that it never wraps and can be overwritten. The cursor is left at the start, so that a log
            # line from elsewhere begins at the left edge.
            while column_count(text) >= self._columns():
                text = text[:-1]
            self._write(f"\r{self._padded(text)}\r")
            self._length = column_count(text)
        else:
            self._write(f"{text}\n")

    def end(self, state: str) -> None:
        text = f"{self._start}: {state}"
        self._write(f"\r{self._padded(text)}\n" if self.on_terminal else f"{text}\n")

    def _padded(self, text: str) -> str:
        """Pad the text with spaces to cover the previous line; unlike escape codes, they work on every console."""
        return text + " " * (self._length - column_count(text))

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (AttributeError, ValueError, OSError):
            return 80

    def _write(self, text: str) -> None:
        # ValueError: closed stream, or characters its encoding lacks. OSError: the reader closed the pipe.
        with contextlib.suppress(AttributeError, ValueError, OSError), _write_lock:
            self._stream.write(text)
            self._stream.flush()


_guard_lock = threading.Lock()
_guard_depth = 0
_saved_stdout: tuple[int, bool] | None = None


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr while the block runs, including output of C libraries.

    vspipe and scripts write video to file descriptor 1, and a single line of library output in between corrupts it. The
    descriptor belongs to the complete process, so use this only while a script is evaluated, before frames are
    requested: later it would send the video itself to stderr. For the same reason it does nothing on threads that
    Python did not start, such as those on which VapourSynth calls FrameEval functions while vspipe writes frames.

    May be nested and used by several threads at once: the first to enter redirects, the last to leave restores. Does
    nothing if stdout is closed; if stderr is closed, the output is discarded.
    """
    if isinstance(threading.current_thread(), threading._DummyThread):
        yield
        return
    _enter_guard()
    try:
        yield
    finally:
        _leave_guard()


def _enter_guard() -> None:
    global _guard_depth, _saved_stdout
    with _guard_lock:
        if _guard_depth == 0:
            _flush_stdout()  # output printed before still belongs to stdout
            _saved_stdout = _redirect()
        _guard_depth += 1


def _redirect() -> tuple[int, bool] | None:
    """Point stdout at stderr. Return a duplicate of the old descriptor and its inheritable flag; None if closed."""
    try:
        inheritable = os.get_inheritable(STDOUT)
    except OSError:
        return None
    target = os.dup(STDERR) if has_stderr() else os.open(os.devnull, os.O_WRONLY)
    try:
        saved = os.dup(STDOUT)
        os.dup2(target, STDOUT)
    finally:
        os.close(target)
    return saved, inheritable


def _leave_guard() -> None:
    global _guard_depth, _saved_stdout
    with _guard_lock:
        _guard_depth -= 1
        if _guard_depth > 0 or _saved_stdout is None:
            return
        _flush_stdout()
        saved, inheritable = _saved_stdout
        _saved_stdout = None
        try:
            os.dup2(saved, STDOUT, inheritable=inheritable)
        finally:
            os.close(saved)


def _flush_stdout() -> None:
    """Flush Python's and the C library's stdout buffers."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # None, closed, or a broken pipe
        sys.stdout.flush()
    if result := _c_stdout():
        library, stream = result
        library.fflush(stream)


@cache
def _c_stdout() -> tuple[ctypes.CDLL, ctypes.c_void_p | None] | None:
    """Return (C library, its ``stdout``), or None without the library. A ``stdout`` of None stands for all streams."""
    try:
        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    except OSError:
        return None
    for name in ("stdout", "__stdoutp"):  # glibc and musl; macOS
        # Flushing all streams would wait for any thread that is reading from one, so avoid it where possible.
        with contextlib.suppress(ValueError):
            return library, ctypes.c_void_p.in_dll(library, name)
    return library, None

"""Signs of life on stderr, and a stdout that carries nothing but video.

Progress does not go through `logging`, which shows nothing below WARNING unless a script sets it up, and cannot update
a line in place. Who wants silence sets the logger ``vsfdatrd`` to ERROR.
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
from vsfdatrd.system.terminal import printable, raw_stream

STDOUT, STDERR = 1, 2

_writing = threading.Lock()


@contextlib.contextmanager
def working(what: str, delay: float = 0.5, every: float | None = None) -> Iterator[None]:
    """Say on stderr that `what` is being done, for how long, and how it ended.

    what: a phrase such as ``building the engine``, without a full stop.
    delay: seconds before anything is said; what is done sooner stays silent.
    every: seconds between signs of life; by default 1 on a terminal, where one line is kept up to date, else 10.

    Any number of threads may be at work at once. Silent if there is no stderr, or the logger ``vsfdatrd`` is set above
    WARNING. Never raises because of what stderr is.
    """
    if sys.stderr is None or not logging.getLogger("vsfdatrd").isEnabledFor(logging.WARNING):
        yield
        return
    line = _Line(raw_stream(sys.stderr), f"fdatrd: {printable(what)}")
    start = time.monotonic()
    finished = threading.Event()

    def report() -> None:
        if finished.wait(delay):
            return
        line.show("...")
        while not finished.wait(every or (1 if line.on_terminal else 10)):
            line.show(f"... {time.monotonic() - start:.0f} s")

    # A daemon: a process that ends in the middle must not wait for it.
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
    """One line on a stream: rewritten in place on a terminal, written again elsewhere. Stops at the first failure."""

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
            # Never wraps, so that it can be overwritten, and leaves the cursor in front, so that a log line from
            # elsewhere starts at the left edge. Spaces, not escape codes: every console understands them.
            text = text[: self._columns() - 1]
            padding = " " * (self._length - len(text))
            self._length = len(text)
            self._write(f"\r{text}{padding}\r")
        else:
            self._write(f"{text}\n")

    def end(self, state: str) -> None:
        text = f"{self._start}: {state}"
        self._write(f"\r{text:<{self._length}}\n" if self.on_terminal else f"{text}\n")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (AttributeError, ValueError, OSError):
            return 80

    def _write(self, text: str) -> None:
        # ValueError: closed, or characters its encoding lacks. OSError: the reader is gone.
        with contextlib.suppress(AttributeError, ValueError, OSError), _writing:
            self._stream.write(text)
            self._stream.flush()


_guarding = threading.Lock()
_depth = 0
_saved: tuple[int, bool] | None = None


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Let everything that is printed to stdout go to stderr for the duration, also what libraries print from C.

    vspipe and scripts write video to file descriptor 1, and one line of a library's chatter in between makes it
    unreadable. The descriptor belongs to the whole process, so this is for the time while a script is evaluated, before
    any frame is asked for: later it would send the video itself to stderr. For the same reason it does nothing on
    threads that Python did not start, such as those on which VapourSynth calls FrameEval functions while vspipe writes
    frames.

    May be nested, and used by several threads at once: the first to enter redirects, the last to leave restores.
    Does nothing if stdout is closed; if stderr is closed, what is printed is dropped.
    """
    if isinstance(threading.current_thread(), threading._DummyThread):
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def _enter() -> None:
    global _depth, _saved
    with _guarding:
        if _depth == 0:
            _flush()  # what was printed before still belongs to stdout
            _saved = _redirect()
        _depth += 1


def _redirect() -> tuple[int, bool] | None:
    """Point stdout at stderr -> a copy of what it was and whether children inherit it; None if it is closed."""
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


def _leave() -> None:
    global _depth, _saved
    with _guarding:
        _depth -= 1
        if _depth > 0 or _saved is None:
            return
        _flush()
        saved, inheritable = _saved
        _saved = None
        try:
            os.dup2(saved, STDOUT, inheritable=inheritable)
        finally:
            os.close(saved)


def _flush() -> None:
    """Empty the buffers in front of the descriptor: Python's and the C library's."""
    with contextlib.suppress(AttributeError, ValueError, OSError):  # None, closed, or the reader is gone
        sys.stdout.flush()
    if found := _c_stdout():
        library, stream = found
        library.fflush(stream)


@cache
def _c_stdout() -> tuple[ctypes.CDLL, ctypes.c_void_p | None] | None:
    """The C library and its stdout (None: all its streams); None if there is no such library."""
    try:
        library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    except OSError:
        return None
    for name in ("stdout", "__stdoutp"):  # glibc and musl; macOS
        # Not all streams where it can be helped: that waits for any thread that is reading from one.
        with contextlib.suppress(ValueError):
            return library, ctypes.c_void_p.in_dll(library, name)
    return library, None

"""A pseudo-terminal: programs behave as for a user, and tests read the screen."""

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence

import pyte

_ROWS = 40
# Makes the terminal on stdin its own, as a shell's is, so that Ctrl-C reaches it.
_OWN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A program in a terminal of a certain width."""

    def __init__(self, command: Sequence[str], columns: int, pass_fds: tuple[int, ...] = ()) -> None:
        self._screen = pyte.Screen(columns, _ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._here, there = os.openpty()
        self._wide(columns)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN, *command],
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"},
            pass_fds=pass_fds,
        )
        os.close(there)

    def lines(self) -> list[str]:
        """Return the lines on the screen, without empty ones at the bottom."""
        text = "\n".join(line.rstrip() for line in self._screen.display).rstrip()
        return text.splitlines()

    @property
    def cursor_is_hidden(self) -> bool:
        """Whether the cursor was hidden, and not shown again."""
        return bool(self._screen.cursor.hidden)

    def until(self, seen: Callable[[list[str]], object], seconds: float = 200) -> list[str]:
        """Wait until a text is on the screen."""
        end = time.monotonic() + seconds
        while not seen(self.lines()):
            assert time.monotonic() < end, self.lines()
            assert self._read(), self.lines()
        return self.lines()

    def end(self, seconds: float = 200) -> int:
        """Wait until the program has ended, and return its exit status."""
        end = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < end, self.lines()
        return self.process.wait()

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._here, keys)

    def resize(self, columns: int) -> None:
        """Change the width of the terminal."""
        self._screen.resize(_ROWS, columns)
        self._wide(columns)
        self.process.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        """End the program, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._here)

    def _wide(self, columns: int) -> None:
        fcntl.ioctl(self._here, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))

    def _read(self) -> bool:
        """Process the output of the next moment; return False at the end of the output."""
        if select.select([self._here], [], [], 0.1)[0]:
            try:
                text = os.read(self._here, 1 << 16)
            except OSError:  # nobody has the other end
                return False
            self._stream.feed(text)
        return True

"""Messages on stderr while an operation takes long."""

import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from unicodedata import east_asian_width

import pytest

from vsfdatrd.system.progress import report_progress

type Captured = pytest.CaptureFixture[str]


def lines(capsys: Captured) -> list[str]:
    """Return the lines on sys.stderr, which is not a terminal here; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_fast_things_are_silent(capsys: Captured) -> None:
    with report_progress("building"):
        pass
    with pytest.raises(ValueError, match="no"), report_progress("building"):
        raise ValueError("no")
    assert lines(capsys) == []


class Screen(io.StringIO):
    """Stream that records its lines and lets tests wait for them."""

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()

    def until(self, seen: Callable[[list[str]], bool]) -> None:
        """Wait for lines."""
        end = time.monotonic() + 100
        while not seen(self.lines()):
            assert time.monotonic() < end, self.lines()
            time.sleep(0.01)


def watched(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Standard error, from now on; in a fixture pytest would replace it again before the test."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_slow_things_show_life(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = watched(monkeypatch)
    with report_progress("building the engine", delay=0.05, every=0.1):
        screen.until(lambda lines: len(lines) > 2)
    first, *middle, last = screen.lines()
    assert first == "fdatrd: building the engine ..."
    assert all(re.fullmatch(r"fdatrd: building the engine \.\.\. \d+ s", line) for line in middle)
    assert last.startswith("fdatrd: building the engine: done in ")
    assert 0.2 <= float(last.split()[-2]) < 100
    assert last.endswith(" s")


@pytest.mark.parametrize(("error", "says"), [(ValueError, "failed after"), (KeyboardInterrupt, "stopped after")])
def test_failure_is_told(monkeypatch: pytest.MonkeyPatch, error: type[BaseException], says: str) -> None:
    screen = watched(monkeypatch)

    def work() -> None:
        with report_progress("building", delay=0):
            screen.until(lambda lines: lines[:1] == ["fdatrd: building ..."])
            raise error

    with pytest.raises(error):
        work()
    assert re.fullmatch(rf"fdatrd: building: {says} \d+\.\d s", screen.lines()[-1])


def test_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of different threads never mix."""
    screen, done = watched(monkeypatch), threading.Event()

    def work(number: int) -> None:
        with report_progress(f"building {number}", delay=0, every=0.01):
            done.wait()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        screen.until(lambda lines: all(sum(f"building {n} ..." in line for line in lines) > 3 for n in range(8)))
    finally:
        done.set()
    for thread in threads:
        thread.join()
    output = screen.lines()
    for number in range(8):
        mine = [line.removeprefix(f"fdatrd: building {number}") for line in output if f"building {number}" in line]
        assert mine[0] == " ..."
        assert mine[-1].startswith(": done in ")
        assert all(line == " ... 0 s" or line.startswith(" ... ") for line in mine[1:-1])
    assert all(line.count("fdatrd") == 1 for line in output)
    assert not any(thread.name == "fdatrd-progress" for thread in threading.enumerate())


def test_logging_level_silences(capsys: Captured) -> None:
    logger = logging.getLogger("vsfdatrd")
    logger.setLevel(logging.ERROR)
    try:
        with report_progress("building", delay=0):
            time.sleep(0.1)
    finally:
        logger.setLevel(logging.NOTSET)
    assert lines(capsys) == []


class Broken(io.StringIO):
    """A stream whose reader is gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def _closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    "make",
    [lambda: None, _closed, Broken, object, lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii")],
    ids=["none", "closed", "broken", "no stream", "ascii"],
)
def test_any_stderr_will_do(monkeypatch: pytest.MonkeyPatch, make: Callable[[], object]) -> None:
    monkeypatch.setattr(sys, "stderr", make())
    with report_progress("building 720×540", delay=0, every=0.02):
        time.sleep(0.1)


@pytest.mark.parametrize(
    "name", ["building the engine of a model with a long name", "reading 魔法少女リリカル 第01話の名前"]
)
def test_terminal_line_is_rewritten(name: str) -> None:
    """On a terminal 40 columns wide: one line, never wrapped, and one last line that says it all."""
    if sys.platform == "win32":
        pytest.skip("there are no pseudo-terminals")
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    code = """
import sys
import threading
from vsfdatrd.system import progress
from vsfdatrd.system.progress import report_progress
shown = threading.Semaphore(0)
show = progress._Line.show
def counted(line, state):
    show(line, state)
    shown.release()
progress._Line.show = counted
def wait(count):
    for _ in range(count):
        assert shown.acquire(timeout=100)
with report_progress(sys.argv[1], delay=0, every=0.05):
    wait(4)
shown = threading.Semaphore(0)
with report_progress("short", delay=0, every=0.05):
    wait(2)
"""
    child = subprocess.Popen([sys.executable, "-W", "error", "-c", code, name], stderr=slave, stdout=subprocess.PIPE)
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert child.communicate(timeout=250)[0] == b""
    assert child.returncode == 0
    long, short, rest = shown.decode().split("\r\n")
    assert rest == ""
    updates = [text for text in long.split("\r") if text]
    assert all(sum(2 if east_asian_width(c) == "W" else 1 for c in text) < 40 for text in updates[:-1])
    assert len(updates) > 2
    assert re.fullmatch(rf"fdatrd: {name}: done in \d+\.\d s", updates[-1])
    updates = [text.rstrip() for text in short.split("\r") if text]
    assert updates[0] == "fdatrd: short ..."
    assert re.fullmatch(r"fdatrd: short \.\.\. \d+ s", updates[1])
    assert re.fullmatch(r"fdatrd: short: done in \d+\.\d s", updates[-1])

"""Signs of life on stderr, and stdout kept for video."""

import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vsfdatrd.system import progress
from vsfdatrd.system.progress import stdout_to_stderr, working

type Captured = pytest.CaptureFixture[str]


def lines(capsys: Captured) -> list[str]:
    """What was written to sys.stderr, which is no terminal here; nothing may be on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


# working


def test_fast_things_are_silent(capsys: Captured) -> None:
    with working("building"):
        pass
    with pytest.raises(ValueError, match="no"), working("building"):
        raise ValueError("no")
    assert lines(capsys) == []


class Screen(io.StringIO):
    """What was written to it, while it is written to."""

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
    with working("building the engine", delay=0.05, every=0.1):
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
        with working("building", delay=0):
            screen.until(lambda lines: lines[:1] == ["fdatrd: building ..."])
            raise error

    with pytest.raises(error):
        work()
    assert re.fullmatch(rf"fdatrd: building: {says} \d+\.\d s", screen.lines()[-1])


def test_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of different threads never mix."""
    screen, done = watched(monkeypatch), threading.Event()

    def work(number: int) -> None:
        with working(f"building {number}", delay=0, every=0.01):
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
        with working("building", delay=0):
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
    with working("building 720×540", delay=0, every=0.02):
        time.sleep(0.1)


def test_terminal_line_is_rewritten(tmp_path: Path) -> None:
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
import threading
from vsfdatrd.system import progress
from vsfdatrd.system.progress import working
shown = threading.Semaphore(0)
show = progress._Line.show
def counted(line, state):
    show(line, state)
    shown.release()
progress._Line.show = counted
def wait(count):
    for _ in range(count):
        assert shown.acquire(timeout=100)
with working("building the engine of a model with a long name", delay=0, every=0.05):
    wait(4)
shown = threading.Semaphore(0)
with working("short", delay=0, every=0.05):
    wait(2)
"""
    child = subprocess.Popen([sys.executable, "-W", "error", "-c", code], stderr=slave, stdout=subprocess.PIPE)
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
    assert all(len(text) < 40 for text in updates[:-1])
    assert len(updates) > 2
    assert re.fullmatch(r"fdatrd: building the engine of a model with a long name: done in \d+\.\d s", updates[-1])
    updates = [text.rstrip() for text in short.split("\r") if text]
    assert updates[0] == "fdatrd: short ..."
    assert re.fullmatch(r"fdatrd: short \.\.\. \d+ s", updates[1])
    assert re.fullmatch(r"fdatrd: short: done in \d+\.\d s", updates[-1])


# stdout_to_stderr


def run(code: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a script that has `libc`, `guard`, `chatter` and `video`, which writes to file descriptor 1."""
    prelude = """
import ctypes, os, sys, threading, time
from vsfdatrd.system.progress import stdout_to_stderr as guard
libc = ctypes.CDLL(None)
def video(data): os.write(1, data)
def chatter():
    libc.puts(b"puts")
    libc.printf(b"printf, no newline")
    os.write(1, b"write")
    print("print")
"""
    # Unbuffered, Python switches off the C library's buffers too, and there would be little to guard against.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-W", "error", "-c", prelude + code]
    return subprocess.run(command, capture_output=True, timeout=250, env=environment)


posix = pytest.mark.skipif(sys.platform == "win32", reason="the C library is loaded another way")


@posix
def test_nothing_but_video_on_stdout() -> None:
    """Buffered C output, raw writes and Python's print, before, inside and after."""
    done = run("""
video(b"Y4M ")
print("before ", end="")
libc.printf(b"buffered ")
with guard():
    chatter()
video(b"FRAME")
""")
    assert (done.returncode, done.stdout) == (0, b"Y4M before buffered FRAME")
    assert sorted(done.stderr.replace(b"newline", b"newline\n").replace(b"write", b"write\n").split(b"\n")) == [
        b"",
        b"print",
        b"printf, no newline",
        b"puts",
        b"write",
    ]


@posix
def test_without_guard_video_is_spoilt() -> None:
    """The test above can fail."""
    assert run('chatter()\nvideo(b"FRAME")\n').stdout != b"FRAME"


@posix
def test_child_processes_are_guarded() -> None:
    done = run("""
import subprocess
with guard():
    subprocess.run(["echo", "inside"], check=True)
subprocess.run(["echo", "outside"], check=True)
""")
    assert (done.stdout, done.stderr) == (b"outside\n", b"inside\n")


@posix
def test_nested_and_after_an_error() -> None:
    done = run("""
with guard():
    try:
        with guard():
            libc.puts(b"a")
            raise ValueError
    except ValueError:
        libc.puts(b"b")
libc.puts(b"out")
with guard():
    libc.puts(b"c")
print("out", flush=True)
""")
    assert (done.stdout.split(), done.stderr.split()) == ([b"out", b"out"], [b"a", b"b", b"c"])


@posix
def test_threads_overlap() -> None:
    """The first to enter leaves first; stdout comes back when the last one leaves, and no descriptor leaks."""
    done = run("""
inside, go = threading.Event(), threading.Event()
def second():
    with guard():
        inside.set()
        go.wait()
        libc.puts(b"second")
before = len(os.listdir("/dev/fd"))
thread = threading.Thread(target=second)
with guard():
    thread.start()
    inside.wait()
libc.puts(b"still guarded")
go.set()
thread.join()
libc.puts(b"out")
sys.setswitchinterval(1e-6)
def often():
    for _ in range(200):
        with guard():
            os.write(1, b"x")
threads = [threading.Thread(target=often) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert len(os.listdir("/dev/fd")) == before
video(b"end")
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"out\nend"
    assert done.stderr.count(b"x") == 1600


@posix
def test_restored_exactly() -> None:
    """The same open file, inherited or not as before."""
    done = run("""
for inheritable in (True, False):
    os.set_inheritable(1, inheritable)
    before = os.fstat(1)
    with guard():
        assert not os.path.samestat(os.fstat(1), before)
        assert os.path.samestat(os.fstat(1), os.fstat(2))
    assert os.path.samestat(os.fstat(1), before)
    assert os.get_inheritable(1) == inheritable
""")
    assert done.returncode == 0, done.stderr


@posix
@pytest.mark.parametrize("closed", ["os.close(1)", "os.close(2)", "os.close(1); os.close(2)", "sys.stdout = None"])
def test_closed_descriptors(closed: str) -> None:
    done = run(f"""
{closed}
with guard():
    libc.puts(b"chatter")
    libc.fflush(None)
with guard(), guard():
    pass
try:
    video(b"FRAME")
except OSError:
    pass
os._exit(0)
""")
    assert done.returncode == 0
    assert done.stdout == (b"" if "close(1)" in closed else b"FRAME")


@posix
def test_foreign_threads_are_left_alone() -> None:
    """A thread that C started, as VapourSynth's are: by then stdout carries frames of the other threads."""
    done = run("""
import _thread
done = threading.Event()
def callback():
    with guard():
        video(b"FRAME")
    done.set()
_thread.start_new_thread(callback, ())
done.wait()
""")
    assert (done.stdout, done.stderr) == (b"FRAME", b"")


def test_guard_in_this_process(capfd: pytest.CaptureFixture[str]) -> None:
    with stdout_to_stderr():
        os.write(1, b"inside\n")
    os.write(1, b"outside\n")
    assert capfd.readouterr() == ("outside\n", "inside\n")
    assert progress._depth == 0


@posix
def test_vspipe_output_is_untouched(tmp_path: Path) -> None:
    """Real vspipe: chatter while the script is evaluated, and the guard entered again while frames are written."""
    vspipe = Path(sys.executable).with_name("vspipe")
    if not vspipe.exists():
        pytest.skip("vspipe is not installed")
    plain = """
import vapoursynth as vs
clip = vs.core.std.BlankClip(format=vs.YUV420P8, width=64, height=48, length=40, color=[1, 2, 3])
"""
    noisy = """
import ctypes, os, threading
from vsfdatrd.system.progress import stdout_to_stderr
libc = ctypes.CDLL(None)
assert threading.current_thread() is threading.main_thread()
with stdout_to_stderr():
    libc.puts(b"chatter")
    os.write(1, b"chatter\\n")
def later(n):
    with stdout_to_stderr():
        threading.Event().wait(0.002)
    return clip
"""
    outputs = []
    for name, script in {
        "plain.vpy": f"{plain}clip.set_output()\n",
        "noisy.vpy": f"{plain}{noisy}clip.std.FrameEval(later).set_output()\n",
    }.items():
        (tmp_path / name).write_text(script)
        done = subprocess.run([vspipe, "-c", "y4m", tmp_path / name, "-"], capture_output=True, timeout=250)
        assert done.returncode == 0, done.stderr
        outputs.append(done)
    assert outputs[0].stdout.startswith(b"YUV4MPEG2")
    assert outputs[0].stdout == outputs[1].stdout
    assert outputs[1].stderr.count(b"chatter") == 2

"""While a script is evaluated, stdout receives nothing but video."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vsfdatrd.system import progress
from vsfdatrd.system.progress import stdout_to_stderr


def run(code: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a script that has ``libc``, ``guard``, ``chatter`` and ``video``, which writes to file descriptor 1."""
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
    assert progress._guard_depth == 0


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

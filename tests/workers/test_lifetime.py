"""The worker ends with its program however that ends, and never writes to stdout."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from vsfdatrd.errors import EngineError
from vsfdatrd.system.programs import vspipe
from vsfdatrd.workers.client import Worker

UNEXPECTED = r"the engine's process ended unexpectedly \(signal 9\)"

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.accuracy import draw_line_art

def main():
    spec = EngineSpec(open_checkpoint(sys.argv[1]), 60, 60, "fp32")
    openvino.build(spec, Path(sys.argv[2]))
    engine = openvino.load(spec, Path(sys.argv[2]))
    np.copyto(engine.input(0), draw_line_art(60, 60))
{body}
main()
"""


def ended(pid: int, seconds: float = 120) -> bool:
    """Whether a process is gone, or at least a zombie, before the time is over."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def program(body: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(body=textwrap.indent(textwrap.dedent(body), "    "))]


def test_a_worker_ends_with_its_parent(tiny_model: Path, tmp_path: Path) -> None:
    body = """
    print(engine._worker.pid, flush=True)
    while True:
        engine.submit(0)
        engine.collect(0)
    """
    with subprocess.Popen([*program(body), str(tiny_model), str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        assert psutil.pid_exists(pid)
        parent.kill()
    assert ended(pid)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("stopped", [False, True])
def test_no_worker_stays_behind(tiny_model: Path, tmp_path: Path, end: signal.Signals, stopped: bool) -> None:
    """Not even one that cannot see that its parent has ended: stopped, or with a pipe that a fork holds open."""
    body = f"""
    if {stopped}:
        os.kill(engine._worker.pid, signal.SIGSTOP)
    fork = 0 if {stopped} else os.fork()
    if not fork and not {stopped}:
        time.sleep(600)
    print(engine._worker.pid, fork, flush=True)
    time.sleep(600)
    """
    with subprocess.Popen([*program(body), str(tiny_model), str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid, fork = map(int, parent.stdout.readline().split())
        parent.send_signal(end)
    gone = ended(pid)
    for left in [fork] if gone else [fork, pid]:
        if left:
            os.kill(left, signal.SIGKILL)
    assert gone


def test_a_worker_outlives_the_thread_that_asked_for_it() -> None:
    workers: list[Worker] = []
    for _ in range(2):  # a second one, from the same starter
        thread = threading.Thread(target=lambda: workers.append(Worker("vsfdatrd.backends.native.worker")))
        thread.start()
        thread.join()
    time.sleep(0.2)
    for worker in workers:
        assert worker.ask("describe") == {}
        worker.close()


def test_a_worker_of_a_forked_process_works() -> None:
    """Whose parent had a thread that starts processes, which a fork does not have."""
    script = """
    import os
    from vsfdatrd.workers.client import Worker
    def once():
        worker = Worker("vsfdatrd.backends.native.worker")
        assert worker.ask("describe") == {}
        worker.close()
    once()
    if child := os.fork():
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    once()
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_where_the_kernel_does_not_watch_a_thread_does() -> None:
    """As on macOS."""
    child = (
        "import os, time; from vsfdatrd.workers import spawn as c; c.sys.platform = 'darwin'; c.end_with_parent({}); "
    )
    child += "print(os.getpid(), flush=True); time.sleep(600)"
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}.format(os.getpid())])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(0.2)
        assert psutil.pid_exists(pid)
        process.kill()
    assert ended(pid)


KILLED = """
import contextlib, os, signal
import vapoursynth as vs
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.workers.client import Worker
left = 0
send = Worker.send
def killing(worker, **message):
    global left
    if left == 0:
        os.kill(worker.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # already seen by the thread that waits for it
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        said.append(message["do"])
    left -= 1
    send(worker, **message)
Worker.send = killing
clip = vs.core.std.BlankClip(width=60, height=60, format=vs.RGB24, length=2)
said = []
for n in range(20):
    left = n
    openvino._standby._about = None  # so that it is asked again
    try:
        up = vs.core.fdatrd.upscale(clip, model=MODEL, backend="openvino", precision="fp32", cache=f"{FOLDER}/{n}")
        up.get_frame(0)
        break
    except vs.Error as error:
        said.append(str(error))
open(f"{FOLDER}/said", "w").write("\\n".join(said))
up.set_output()
"""


def test_a_worker_killed_before_any_message_is_a_sentence_in_vspipe(tiny_model: Path, tmp_path: Path) -> None:
    """In vspipe SIGPIPE ends the process, unlike in Python."""
    script = tmp_path / "script.vpy"
    script.write_text(f"MODEL, FOLDER = {str(tiny_model)!r}, {str(tmp_path)!r}\n{KILLED}")
    done = subprocess.run([vspipe(), str(script), "."], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = (tmp_path / "said").read_text().splitlines()
    arguments, message = lines[::2], lines[1::2]
    assert arguments == ["describe", "build", "load", "map", "run"], "\n".join(lines)
    for sentence in message:
        assert sentence.startswith("fdatrd.upscale: ")
        assert re.search(UNEXPECTED, sentence)


def test_an_answer_cut_off_by_death_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dying.py").write_text("import os; os.write(1, b'{\"resu'); os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker("dying")
    with pytest.raises(EngineError, match=UNEXPECTED):
        worker.ask("describe")
    worker.close()


def test_ctrl_c_is_for_the_script_only(tiny_model: Path, tmp_path: Path) -> None:
    """The terminal sends it to both processes; the frame in flight still arrives."""
    body = """
    from vsfdatrd.workers import client
    client._EXIT_TIMEOUT = 100  # a busy machine may take longer than a user would wait
    os.kill(engine._worker.pid, signal.SIGSTOP)
    engine.submit(0)
    try:
        os.killpg(0, signal.SIGINT)
        time.sleep(100)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    os.kill(engine._worker.pid, signal.SIGCONT)
    result = engine.collect(0)
    print(np.isfinite(result).all() and result.std() > 0.01)
    engine.submit(0)
    engine.collect(0)
    engine.close()
    print(engine._worker._process.returncode)
    """
    done = subprocess.run(
        [*program(body), str(tiny_model), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        start_new_session=True,
    )
    assert done.stdout.split() == ["interrupted", "True", "0"], done.stderr


def test_a_program_ends_by_itself_with_an_engine_open(tiny_model: Path, tmp_path: Path) -> None:
    body = """
    engine.submit(0)
    print(engine._worker.pid, flush=True)
    global kept
    kept = engine
    """
    done = subprocess.run([*program(body), str(tiny_model), str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0
    assert not done.stderr
    assert ended(int(done.stdout))


def test_what_a_library_prints_while_it_is_imported_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greeting.py").write_text(
        "import os\n"
        "os.write(1, b'Hello\\n\\n')\n"
        "from vsfdatrd.workers.server import WorkerServer, serve_forever\n"
        "WorkerServer.do_describe = lambda self: {}\n"
        "serve_forever(WorkerServer)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker("greeting")
    assert worker.ask("describe") == {}
    worker.close()


def test_a_stderr_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    """Such as that of a pipeline that ends with ``head``."""
    (tmp_path / "telling.py").write_text(
        "from vsfdatrd.workers.server import WorkerServer, log_line, serve_forever\n"
        "WorkerServer.do_describe = lambda self: log_line('something')\n"
        "serve_forever(WorkerServer)\n"
    )
    script = (
        "import sys\n"
        "from vsfdatrd.workers.client import Worker\n"
        "worker = Worker('telling')\n"
        "assert worker.ask('describe') is None\n"
        "worker.close()\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stderr=writer,
        timeout=200,
    )
    os.close(writer)
    assert done.returncode == 0


def test_what_a_library_prints_never_reaches_stdout(tmp_path: Path) -> None:
    """Standard output may be the video."""
    (tmp_path / "noisy.py").write_text(
        "import os\n"
        "from vsfdatrd.backends.openvino import worker as it\n"
        "quiet = it.OpenVinoServer.do_describe\n"
        "def noisy(self):\n"
        "    print('from Python', flush=True)\n"
        "    os.write(1, b'from a library\\n')\n"
        "    return quiet(self)\n"
        "it.OpenVinoServer.do_describe = noisy\n"
        "it.serve_forever(it.OpenVinoServer)\n"
    )
    script = (
        "from vsfdatrd.workers.client import Worker\n"
        "worker = Worker('noisy')\n"
        "assert worker.ask('describe')['version']\n"
        "assert worker.ask('describe')['name']\n"
        "worker.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("from Python") == done.stderr.count("from a library") == 2

"""An engine in a process of its own: what happens when either process dies, talks too much, or is told to stop."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from vsfdatrd.backends.accuracy import drawing
from vsfdatrd.backends.base import EngineSpec, FramePlanes
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.system.programs import vspipe
from vsfdatrd.workers import client as process_module
from vsfdatrd.workers import spawn
from vsfdatrd.workers.client import Worker
from vsfdatrd.workers.shared_memory import SharedMemory, buffers
from vsfdatrd.workers.spawn import python

type Open = Callable[..., RemoteEngine]

UNEXPECTED = r"the engine's process ended unexpectedly \(signal 9\)"


@pytest.fixture
def open_engine(tiny_model: Path, tmp_path: Path) -> Iterator[Open]:
    """Builds (once for each test and size) and loads the OpenVINO engine of the tiny network."""
    opened: list[RemoteEngine] = []

    def opener(height: int = 60, width: int = 60, streams: int = 1) -> RemoteEngine:
        job = EngineSpec(open_checkpoint(tiny_model), height, width, "fp32", streams=streams)
        directory = tmp_path / f"{height}x{width}x{streams}"
        if not directory.is_dir():
            directory.mkdir()
            openvino.build(job, directory)
        engine = openvino.load(job, directory)
        assert isinstance(engine, RemoteEngine)
        opened.append(engine)
        return engine

    yield opener
    for engine in opened:
        engine.close()


def once(engine: RemoteEngine, picture: FramePlanes, slot: int = 0) -> FramePlanes:
    """One frame, sent and collected."""
    np.copyto(engine.input(slot), picture)
    engine.submit(slot)
    return engine.collect(slot).copy()


def ended(pid: int, seconds: float = 10) -> bool:
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


def test_a_killed_worker_fails_its_frames_and_nothing_else(open_engine: Open) -> None:
    engine = open_engine(streams=2)
    expected = once(engine, drawing(60, 60))
    os.kill(engine._worker.pid, signal.SIGSTOP)  # so that the frames are surely in flight
    engine.submit(0)
    engine.submit(1)
    threading.Timer(0.2, os.kill, (engine._worker.pid, signal.SIGKILL)).start()
    start = time.monotonic()
    for slot in (0, 1):
        with pytest.raises(EngineError, match=UNEXPECTED):
            engine.collect(slot)
    with pytest.raises(EngineError, match=UNEXPECTED):
        engine.submit(0)
    with pytest.raises(EngineError, match=UNEXPECTED):  # again, and not what an earlier frame left in the buffer
        engine.collect(0)
    assert time.monotonic() - start < 5
    engine.close()
    np.testing.assert_array_equal(once(open_engine(streams=2), drawing(60, 60)), expected)


def waited_for(engine: RemoteEngine) -> tuple[threading.Thread, list[BaseException]]:
    """A thread that waits for slot 0, and what it caught."""
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            engine.collect(0)
        except BaseException as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.1)
    return waiting, caught


def test_a_frame_waited_for_by_another_thread_fails_too(open_engine: Open) -> None:
    engine = open_engine()
    os.kill(engine._worker.pid, signal.SIGSTOP)
    engine.submit(0)
    waiting, caught = waited_for(engine)
    os.kill(engine._worker.pid, signal.SIGKILL)
    waiting.join(5)
    assert not waiting.is_alive()
    assert "ended unexpectedly (signal 9)" in str(caught[0])


def test_closing_while_a_frame_is_waited_for_is_an_error_not_a_frame(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_PATIENCE", 0.3)
    engine = open_engine()
    os.kill(engine._worker.pid, signal.SIGSTOP)
    engine.submit(0)
    waiting, caught = waited_for(engine)
    engine.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert isinstance(caught[0], EngineError)
    assert "closed" in str(caught[0])


def test_a_worker_that_dies_between_questions_is_replaced(tiny_model: Path, tmp_path: Path) -> None:
    job = EngineSpec(open_checkpoint(tiny_model), 60, 60, "fp32")
    openvino.warm_up()
    worker = openvino._standby.start()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=UNEXPECTED):
        openvino.build(job, tmp_path)
    openvino.build(job, tmp_path)
    openvino.load(job, tmp_path).close()


def test_an_engine_whose_worker_dies_before_it_is_mapped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("vsfdatrd.backends.openvino.worker")
    worker.ask("describe")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=UNEXPECTED):
        RemoteEngine(worker, 1, [3, 30, 30], [3, 60, 60])
    assert worker.memory.fd == -1, "the frames' memory is still open"
    assert not psutil.pid_exists(worker.pid), "nobody waited for the process"


def test_closing_ends_the_worker_and_twice_is_harmless(open_engine: Open) -> None:
    engine = open_engine()
    once(engine, drawing(60, 60))
    pid = engine._worker.pid
    engine.close()
    assert not psutil.pid_exists(pid)
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed; no frame can be sent to it"):
        engine.submit(0)


def test_closing_ends_a_worker_that_does_not_listen(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_PATIENCE", 0.3)
    engine = open_engine()
    os.kill(engine._worker.pid, signal.SIGSTOP)
    engine.close()
    assert not psutil.pid_exists(engine._worker.pid)


def test_memory_returns_when_an_engine_is_closed(open_engine: Open) -> None:
    def used() -> int:
        return int(psutil.Process().memory_info().shared) >> 20  # frames; what else is freed meanwhile does not count

    def descriptors() -> int:
        return int(psutil.Process().num_fds())

    frame = 4 * 3 * 900 * 900 * 5 >> 20
    once(open_engine(), drawing(60, 60))  # what is imported at the first time stays
    before, files = used(), descriptors()
    for _ in range(2):
        engine = open_engine(900, 900)
        engine.input(0).fill(0.5)
        engine._buffers[0][1].fill(1)
        assert used() - before > frame * 0.8, "the frames are not where this test looks"
        engine.close()
        del engine
        assert used() - before < frame * 0.4
        assert descriptors() <= files


def test_slots_keep_their_frames_apart(open_engine: Open) -> None:
    alone, engine = open_engine(), open_engine(streams=3)
    assert (alone.slots, engine.slots) == (1, 3)
    pictures = [np.roll(drawing(60, 60), 7 * i, 2) for i in range(9)]
    expected = [once(alone, picture) for picture in pictures]
    found: list[FramePlanes | None] = [None] * 9

    def work(slot: int) -> None:
        for n in range(slot, 9, 3):
            found[n] = once(engine, pictures[n], slot)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for n in range(9):
        result = found[n]
        assert result is not None
        np.testing.assert_allclose(result, expected[n], atol=1e-5)
        assert n == 0 or np.abs(expected[n] - expected[0]).max() > 0.1  # so a swap would show


# ---- whole programs ----------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.accuracy import drawing

def main():
    job = EngineSpec(open_checkpoint(sys.argv[1]), 60, 60, "fp32")
    openvino.build(job, Path(sys.argv[2]))
    engine = openvino.load(job, Path(sys.argv[2]))
    np.copyto(engine.input(0), drawing(60, 60))
{body}
main()
"""


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
        time.sleep(60)
    print(engine._worker.pid, fork, flush=True)
    time.sleep(60)
    """
    with subprocess.Popen([*program(body), str(tiny_model), str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid, fork = map(int, parent.stdout.readline().split())
        parent.send_signal(end)
    gone = ended(pid, 5)
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_where_the_kernel_does_not_watch_a_thread_does() -> None:
    """As on macOS."""
    child = "import os, time; from vsfdatrd.workers import spawn as c; c.sys.platform = 'darwin'; c.end_with({}); "
    child += "print(os.getpid(), flush=True); time.sleep(60)"
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}.format(os.getpid())])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(0.2)
        assert psutil.pid_exists(pid)
        process.kill()
    assert ended(pid, 5)


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
    done = subprocess.run([vspipe(), str(script), "."], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (done.returncode, done.stderr)
    lines = (tmp_path / "said").read_text().splitlines()
    asked, said = lines[::2], lines[1::2]
    assert asked == ["describe", "build", "load", "map", "run"], "\n".join(lines)
    for sentence in said:
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
    os.kill(engine._worker.pid, signal.SIGSTOP)
    engine.submit(0)
    try:
        os.killpg(0, signal.SIGINT)
        time.sleep(5)
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
        timeout=120,
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
    start = time.monotonic()
    done = subprocess.run([*program(body), str(tiny_model), str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0
    assert not done.stderr
    assert ended(int(done.stdout))
    assert time.monotonic() - start < 30


def test_what_a_library_prints_never_reaches_stdout(tmp_path: Path) -> None:
    """Standard output may be the video."""
    (tmp_path / "noisy.py").write_text(
        "import os\n"
        "from vsfdatrd.backends.openvino import worker as it\n"
        "quiet = it.OpenVino.do_describe\n"
        "def noisy(self):\n"
        "    print('from Python', flush=True)\n"
        "    os.write(1, b'from a library\\n')\n"
        "    return quiet(self)\n"
        "it.OpenVino.do_describe = noisy\n"
        "it.serve_forever(it.OpenVino)\n"
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
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("from Python") == done.stderr.count("from a library") == 2


# ---- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "/usr/bin/vspipe", "/opt/mpv/mpv"])
def test_python_is_found_whatever_the_host_is(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(sys, "executable", host)
    found = python()
    assert Path(found).parent == Path(sys.prefix, "bin")
    done = subprocess.run([found, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == sys.prefix


@pytest.mark.parametrize("place", ["Scripts/python.exe", "python.exe"], ids=["environment", "installation"])
def test_python_is_found_where_windows_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    (tmp_path / "Scripts").mkdir()
    (tmp_path / place).touch()
    monkeypatch.setattr(sys, "executable", "vsedit.exe")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert Path(python()) == tmp_path / place


def test_the_running_python_is_taken_where_there_is_one() -> None:
    assert python() == sys.executable


def test_no_python_is_an_error_that_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    files = psutil.Process().num_fds()
    with pytest.raises(EngineError, match=f"there is no Python in '{tmp_path}"):
        Worker("vsfdatrd.backends.openvino.worker")
    assert psutil.Process().num_fds() <= files, "the frames' memory is still open"


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "python", lambda: "/nowhere/python")
    with pytest.raises(EngineError, match=r"the engine's process cannot be started: .*/nowhere/python"):
        Worker("vsfdatrd.backends.openvino.worker")


def test_a_module_that_does_not_start_is_an_error() -> None:
    worker = Worker("vsfdatrd.backends.missing")
    with pytest.raises(EngineError, match=r"ended unexpectedly \(status 1\)"):
        worker.ask("describe")
    worker.close()


def test_a_question_nobody_knows_is_an_answer() -> None:
    worker = Worker("vsfdatrd.backends.openvino.worker")
    with pytest.raises(EngineError, match="do_dance"):
        worker.ask("dance")
    with pytest.raises(EngineError, match="no engine is loaded"):
        worker.ask("map", address=worker.memory.address, size=4096)
    assert worker.ask("describe")["abilities"], "the process lives on"
    worker.close()


def test_buffers_lie_apart_in_one_memory() -> None:
    memory = SharedMemory()
    size = 4 * 2 * (3 * 4 * 5 + 3 * 8 * 10)
    found = buffers(memory.resize(size), 2, [3, 4, 5], [3, 8, 10])
    for i, array in enumerate(array for pair in found for array in pair):
        array.fill(i + 1)
    assert memory.map is not None
    values = np.frombuffer(memory.map, np.float32).copy()
    np.testing.assert_array_equal(values, np.repeat([1, 2, 3, 4], [60, 240, 60, 240]).astype(np.float32))
    del found, array
    memory.close()
    assert memory.fd == -1


def test_shared_memory_without_memfd_is_a_file_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    memory = SharedMemory()
    assert isinstance(memory.address, str)
    memory.resize(4096)
    assert Path(memory.address).stat().st_size == 4096
    path = Path(memory.address)
    memory.close()
    assert not path.exists()

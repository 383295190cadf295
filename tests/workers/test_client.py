"""An engine in a worker process: death of either process, unexpected output, shutdown."""

import errno
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.engines import run
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import EngineSpec, FramePlanes
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import CheckpointError, EngineBuildError, EngineError, EngineUnavailable, PrecisionUnfit
from vsfdatrd.workers import client as process_module
from vsfdatrd.workers import spawn
from vsfdatrd.workers.client import StandbyWorker, Worker

type Open = Callable[..., RemoteEngine]

UNEXPECTED = r"the engine's process ended unexpectedly \(signal 9\)"


@pytest.fixture
def open_engine(tiny_model: Path, tmp_path: Path) -> Iterator[Open]:
    """Builds (once for each test and size) and loads the OpenVINO engine of the tiny network."""
    opened: list[RemoteEngine] = []

    def opener(height: int = 60, width: int = 60, streams: int = 1) -> RemoteEngine:
        spec = EngineSpec(open_checkpoint(tiny_model), height, width, "fp32", streams=streams)
        directory = tmp_path / f"{height}x{width}x{streams}"
        if not directory.is_dir():
            directory.mkdir()
            openvino.build(spec, directory)
        engine = openvino.load(spec, directory)
        assert isinstance(engine, RemoteEngine)
        opened.append(engine)
        return engine

    yield opener
    for engine in opened:
        engine.close()


def test_a_killed_worker_fails_its_frames_and_nothing_else(open_engine: Open) -> None:
    engine = open_engine(streams=2)
    expected = run(engine, draw_line_art(60, 60))
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
    assert time.monotonic() - start < 100
    engine.close()
    np.testing.assert_array_equal(run(open_engine(streams=2), draw_line_art(60, 60)), expected)


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
    waiting.join(100)
    assert not waiting.is_alive()
    assert "ended unexpectedly (signal 9)" in str(caught[0])


def test_closing_while_a_frame_is_waited_for_is_an_error_not_a_frame(
    open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_EXIT_TIMEOUT", 0.3)
    engine = open_engine()
    os.kill(engine._worker.pid, signal.SIGSTOP)
    engine.submit(0)
    waiting, caught = waited_for(engine)
    engine.close()
    waiting.join(100)
    assert not waiting.is_alive()
    assert isinstance(caught[0], EngineError)
    assert "closed" in str(caught[0])


def test_a_worker_that_dies_between_questions_is_replaced(tiny_model: Path, tmp_path: Path) -> None:
    spec = EngineSpec(open_checkpoint(tiny_model), 60, 60, "fp32")
    openvino.warm_up()
    worker = openvino._standby.start()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=UNEXPECTED):
        openvino.build(spec, tmp_path)
    openvino.build(spec, tmp_path)
    openvino.load(spec, tmp_path).close()


def test_an_engine_whose_worker_dies_before_it_is_mapped_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker("vsfdatrd.backends.openvino.worker")
    worker.ask("describe")
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=UNEXPECTED):
        RemoteEngine(worker, 1, [3, 30, 30], [3, 60, 60])
    assert worker.memory.fd == -1, "the frames' memory is still open"
    assert not psutil.pid_exists(worker.pid), "the process has not been waited for"


def test_an_engine_without_memory_for_frames_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    worker = Worker("vsfdatrd.backends.native.worker")
    monkeypatch.setattr(mmap, "mmap", full)
    message = r"there is no memory for the engine's frames \(52\.7 KiB\): .*allocate"
    with pytest.raises(EngineUnavailable, match=message):
        RemoteEngine(worker, 1, [3, 30, 30], [3, 60, 60])
    assert worker.memory.fd == -1, "the frames' memory is still open"
    assert not psutil.pid_exists(worker.pid), "the process has not been waited for"


def test_closing_ends_the_worker_and_twice_is_harmless(open_engine: Open) -> None:
    engine = open_engine()
    run(engine, draw_line_art(60, 60))
    pid = engine._worker.pid
    engine.close()
    assert not psutil.pid_exists(pid)
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed; no frame can be sent to it"):
        engine.submit(0)


def test_closing_ends_a_worker_that_does_not_listen(open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_EXIT_TIMEOUT", 0.3)
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
    run(open_engine(), draw_line_art(60, 60))  # what is imported at the first time stays
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
    pictures = [np.roll(draw_line_art(60, 60), 7 * i, 2) for i in range(9)]
    expected = [run(alone, picture) for picture in pictures]
    found: list[FramePlanes | None] = [None] * 9

    def work(slot: int) -> None:
        for n in range(slot, 9, 3):
            found[n] = run(engine, pictures[n], slot)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    for n in range(9):
        result = found[n]
        assert result is not None
        np.testing.assert_allclose(result, expected[n], atol=1e-5)
        assert n == 0 or np.abs(expected[n] - expected[0]).max() > 0.1  # so a swap would show


def test_no_python_is_an_error_that_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    files = psutil.Process().num_fds()
    with pytest.raises(EngineError, match=f"there is no Python in '{tmp_path}"):
        Worker("vsfdatrd.backends.openvino.worker")
    assert psutil.Process().num_fds() <= files, "the frames' memory is still open"


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "find_python", lambda: "/nowhere/python")
    with pytest.raises(EngineError, match=r"the engine's process cannot be started: .*/nowhere/python"):
        Worker("vsfdatrd.backends.openvino.worker")


@pytest.mark.parametrize("call", ["memfd_create", "socketpair"])
def test_too_many_open_files_are_an_error(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    files = psutil.Process().num_fds()
    monkeypatch.setattr(os if call == "memfd_create" else socket, call, full)
    with pytest.raises(EngineError, match=r"the engine's process cannot be started: .*Too many open files"):
        Worker("vsfdatrd.backends.native.worker")
    assert psutil.Process().num_fds() <= files, "the frames' memory is still open"


def test_files_in_the_current_directory_are_not_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('a script of the user')")
    monkeypatch.chdir(tmp_path)
    worker = Worker("vsfdatrd.backends.native.worker")
    assert worker.ask("describe") == {}
    worker.close()


SLOW = """
import time
time.sleep(0.5)  # as libraries take to load
from vsfdatrd.workers.server import WorkerServer, serve_forever
class Slow(WorkerServer):
    def do_build(self):
        time.sleep(1)
        return "built"
    def do_free(self):
        return [5]
serve_forever(Slow)
"""


def test_an_interrupted_request_does_not_answer_the_next_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    standby = StandbyWorker("slow")
    assert standby.ask("free") == [5]
    interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        standby.ask("build")
    interrupt.join()
    assert standby.ask("free") == [5]
    standby.shutdown()


def test_ctrl_c_does_not_end_a_worker_that_is_starting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = Worker("slow")
    time.sleep(0.3)
    os.kill(worker.pid, signal.SIGINT)
    assert worker.ask("free") == [5]
    worker.close()


FAULTY = """
from vsfdatrd import errors
from vsfdatrd.workers.server import WorkerServer, serve_forever
print("loading a library", flush=True)
class Faulty(WorkerServer):
    shapes = ([1, 2, 2], [1, 2, 2])
    asked = 0
    def do_describe(self):
        self.asked += 1
        return {"asked": self.asked}
    def do_fail(self, kind):
        raise getattr(errors, kind)("no") if kind else ValueError
    def create_slots(self, memory, frames):
        self.frames = frames
    def submit(self, slot):
        pass
    def collect(self, slot):
        if self.frames[slot][0].max() > 1:
            raise ValueError
        self.frames[slot][1][:] = self.frames[slot][0]
serve_forever(Faulty)
"""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Name of a worker's module that answers after other output, and whose requests and frames may fail."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "faulty"


def test_errors_of_a_worker_keep_their_kind(faulty: str) -> None:
    worker = Worker(faulty)
    for kind in (EngineError, EngineBuildError, PrecisionUnfit, EngineUnavailable, CheckpointError):
        with pytest.raises(kind, match="no") as caught:
            worker.ask("fail", kind=kind.__name__)
        assert type(caught.value) is kind
    with pytest.raises(EngineError, match="ValueError"):
        worker.ask("fail", kind=None)
    worker.close()


def test_a_frame_that_fails_does_not_spoil_the_next_one(faulty: str) -> None:
    engine = RemoteEngine(Worker(faulty), 1, [1, 2, 2], [1, 2, 2])
    for value in (0.25, 2, 0.5):
        engine.input(0).fill(value)
        engine.submit(0)
        if value > 1:
            with pytest.raises(EngineError, match="ValueError"):
                engine.collect(0)
        else:
            assert (engine.collect(0) == value).all()
    engine.close()


def test_a_standby_worker_is_asked_once_and_replaced_after_an_error(faulty: str) -> None:
    standby = StandbyWorker(faulty)
    assert standby.describe() == standby.describe() == {"asked": 1}
    pid = standby.start().pid
    with pytest.raises(EngineBuildError):
        standby.ask("fail", kind="EngineBuildError")
    assert not psutil.pid_exists(pid)
    assert standby.ask("describe") == {"asked": 1}
    pid = standby.start().pid
    standby.shutdown()
    assert not psutil.pid_exists(pid)


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

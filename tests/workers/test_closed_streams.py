"""Programs that were started without some of standard input, output and error output, as launchers do."""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.onnx_files import write_doubler
from vsfdatrd.system.programs import vspipe

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not closed by a shell there")

COMBINATIONS = [closed for count in range(4) for closed in itertools.combinations((0, 1, 2), count)]

SERVING = """
from vsfdatrd.workers.server import WorkerServer, serve_forever
class Negative(WorkerServer):
    shapes = ([1, 4, 4], [1, 4, 4])
    def create_slots(self, shared_memory, frames): self.frames = frames
    def submit(self, slot): print("chatter", flush=True)
    def collect(self, slot): self.frames[slot][1][:] = 1 - self.frames[slot][0]
    def do_streams(self):
        import os
        return [os.path.samestat(os.fstat(n), os.stat(os.devnull)) for n in (0, 1, 2)]
serve_forever(Negative)
"""

PROGRAM = """
import os, sys
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.workers.client import Worker
from vsfdatrd.system.progress import stdout_to_stderr
video = open(sys.argv[1], "xb") if sys.argv[2] == "first" else None  # gets the number of what is closed
worker = Worker("negative")
assert worker.ask("streams")[1:] == [sys.__stderr__ is None] * 2, "the child's output goes elsewhere"
engine = RemoteEngine(worker, 2, [1, 4, 4], [1, 4, 4])
with stdout_to_stderr():
    os.write(1, b"chatter")
for i in range(4):
    engine.input(i % 2)[:] = i / 8
    engine.submit(i % 2)
    assert (engine.collect(i % 2) == 1 - i / 8).all()
if video:
    video.write(b"video")
    video.close()
    assert open(sys.argv[1], "rb").read() == b"video", "something was printed into the video"
engine.close()
open(sys.argv[1] + ".done", "x").close()
"""


def start(command: Sequence[str | Path], closed: Sequence[int], **environment: str) -> "subprocess.Popen[bytes]":
    """A program with some streams closed, and pipes for the others."""
    redirections = " ".join(f"{number}>&-" for number in closed)
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )


def test_frames_arrive_whatever_is_closed(tmp_path: Path) -> None:
    """Also where a file of the program's own already has such a number."""
    (tmp_path / "negative.py").write_text(SERVING)
    cases = [(closed, "first") for closed in COMBINATIONS] + [(closed, "none") for closed in [(0,), (1,), (0, 1, 2)]]
    running = [
        start([sys.executable, "-c", PROGRAM, tmp_path / f"{i}", video], closed, PYTHONPATH=str(tmp_path))
        for i, (closed, video) in enumerate(cases)
    ]
    for i, (program, (closed, video)) in enumerate(zip(running, cases, strict=True)):
        printed, complained = program.communicate(timeout=250)
        assert (program.returncode, printed) == (0, b""), (closed, video, complained)
        assert (tmp_path / f"{i}.done").exists()
        assert (2 in closed) == (b"chatter" not in complained)


def test_an_onnx_file_is_tried_and_upscales_in_vspipe(tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(
        "import vapoursynth as vs\n"
        "clip = vs.core.std.BlankClip(width=32, height=32, format=vs.GRAY8, length=2)\n"
        f"vs.core.fdatrd.upscale(clip, model={str(write_doubler(tmp_path / 'x.onnx', channels=1))!r}, format='GRAY8',\n"
        "    backend='openvino', precision='fp32', cache=cache).set_output()\n"
    )
    running = [
        start([vspipe(), "-a", f"cache={tmp_path}/cache{i}", script, tmp_path / f"{i}"], closed)
        for i, closed in enumerate([(0, 1), (0, 1, 2)])
    ]
    for i, program in enumerate(running):
        _, complained = program.communicate(timeout=250)
        assert program.returncode == 0, complained
        assert (tmp_path / f"{i}").stat().st_size == 2 * 64 * 64


def test_commands_know_no_difference(tmp_path: Path) -> None:
    """A status of 0 for what works and of 1 for what does not, and no file that was printed into."""
    command = [sys.executable, "-m", "vsfdatrd.cli"]
    working, failing = ["cache", "list", "--cache", str(tmp_path)], ["info", str(tmp_path / "missing.safetensors")]
    running = [(0, closed, start([*command, *working], closed)) for closed in [(), (1,), (0, 1, 2)]]
    running += [(1, closed, start([*command, *failing], closed)) for closed in COMBINATIONS]
    for status, closed, program in running:
        printed, complained = program.communicate(timeout=250)
        assert program.returncode == status, (closed, complained)
        assert b"Traceback" not in complained
        assert bool(printed) == (status == 0 and 1 not in closed)
        assert bool(complained) == (status == 1 and 2 not in closed)

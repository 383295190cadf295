"""The parts of a visit, the most valuable first. Each runs in its own process with its own deadline."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu_visit.record import ROOT, Skipped, Visit, write
from benchmarks.gpu_visit.sizes import FULL, TINY

FAKE_GPU = ROOT / "tests" / "backends" / "fake_gpu"
"""Stands in for the GPU of `cuda.py` in a rehearsal."""
_OUTPUT_CHARACTERS = 2000
"""Characters of a part's output that are kept if it fails."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part."""

    name: str
    """Also the module in this package whose `run(sizes, record)` it is."""
    seconds: float
    """After which it is ended; what it has recorded until then is kept."""
    fake: bool = False
    """Whether a rehearsal has the GPU that is made of Python stand in: for what goes through `cuda.py`."""


FACTS = (
    Part("machine", 30),
    Part("ceilings", 40, fake=True),
    Part("gpu_tests", 75),
    Part("engines", 60),
    Part("slots", 45, fake=True),
    Part("graphs", 45),
    Part("profile", 30),
    Part("kernels", 60, fake=True),
    Part("training_step", 75),
)
SLOWER = 10
"""How many times longer a part may take in a rehearsal, whose processor is no GPU and may have other work."""
TRAIN = Part("training", 0)
"""Whose deadline is the call's own."""


def run_all(
    visit: Visit, parts: Sequence[Part], limit: float, environment: Mapping[str, str], *, tiny: bool = False
) -> None:
    """Run parts, and record each when it ends; parts without time left are skipped.

    Args:
        visit: The document.
        parts: The most valuable first.
        limit: Seconds for all of them.
        environment: Variables for the parts' processes.
        tiny: Whether this is a rehearsal.
    """
    begun = time.monotonic()
    for part in parts:
        left = limit - (time.monotonic() - begun)
        if left < 3:
            about = {"name": part.name, "status": "skipped", "seconds": 0, "error": "no time was left for it"}
            visit.add(about, {})
            continue
        seconds = part.seconds * (SLOWER if tiny else 1)
        about, found = run_one(part, min(seconds, left), environment, tiny=tiny)
        visit.add(about, found)
        print(f"{part.name}: {about['status']}, {about['seconds']} s {about.get('error', '')}", flush=True)


def run_one(
    part: Part, seconds: float, environment: Mapping[str, str], *, tiny: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a part in another process.

    Args:
        part: The part.
        seconds: After which it is ended.
        environment: Variables for its process.
        tiny: Whether this is a rehearsal.

    Returns:
        Its name, status, seconds and error; and what it has recorded.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-visit-") as folder:
        fragment, output = Path(folder, "fragment.json"), Path(folder, "output")
        command = [sys.executable, "-m", "benchmarks.gpu_visit.parts", part.name, str(fragment)]
        paths = [os.environ.get("PYTHONPATH", ""), *([str(FAKE_GPU)] if tiny and part.fake else [])]
        given = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with output.open("wb") as opened:
            process = subprocess.Popen(
                [*command, *(["--tiny"] if tiny else [])],
                cwd=ROOT,
                env=os.environ | environment | given,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what it has started ends with it
            )
            try:
                status = "ok" if process.wait(seconds) == 0 else "failed"
            except subprocess.TimeoutExpired:
                status = "timeout"
            finally:
                _end_processes(process)
        found = json.loads(fragment.read_text(encoding="utf-8")) if fragment.exists() else {}
        messages = output.read_text(encoding="utf-8", errors="replace")[-_OUTPUT_CHARACTERS:]
    about: dict[str, Any] = {"name": part.name, "status": status, "seconds": round(time.monotonic() - begun, 1)}
    if why := found.pop("skipped", None):
        return about | {"status": "skipped", "error": why}, found
    if status == "timeout":
        about |= {"error": f"it was ended after {seconds:.0f} s", "output": messages}
    elif status == "failed":
        lines = messages.strip().splitlines()
        about |= {"error": lines[-1][:300] if lines else f"status {process.returncode}", "output": messages}
    return about, found


def _end_processes(process: "subprocess.Popen[bytes]") -> None:
    """End a part and everything that it has started."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def main(arguments: Sequence[str]) -> int:
    """A part's own process: run it, and write what it records into a file, again whenever there is more."""
    name, fragment, *more = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody would read what it finds
    module = import_module(f"benchmarks.gpu_visit.{name}")
    run: Callable[[Any, Callable[[dict[str, Any]], None]], None] = module.run
    document: dict[str, Any] = {}

    def record(found: dict[str, Any]) -> None:
        document.update(found)
        write(Path(fragment), document)

    try:
        run(TINY if "--tiny" in more else FULL, record)
    except Skipped as error:
        record({"skipped": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Measure in turns: every contestant of a group runs once per round, each in its own process.

Other load on the machine therefore affects all contestants equally. A rate is the median of the rounds, and ratios are
of medians from one run. A contestant that cannot run is a row with the reason.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from benchmarks.errors import Missing
from benchmarks.speed.cases import OURS, Case, Group
from benchmarks.speed.material import drawings
from benchmarks.speed.meter import GpuMeter, cpu_seconds, family, peak_memory
from benchmarks.speed.peers import PEERS
from benchmarks.weights import weights_file

MEMORY_MARGIN = 1.2
"""Free memory required for another contestant, as a multiple of the largest usage so far."""
GARBAGE_DB = 12.0
"""A PSNR below this against the source, enlarged without a network, means that the output is garbage."""

type Row = dict[str, Any]
"""The results of one case; see `benchmarks/README.md` for its fields."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Duration and environment of a measurement."""

    seconds: float
    """Length of a contestant's turn, if a frame takes less."""
    folder: Path
    """Folder for exports, random weights and engines during the run."""
    pythons: tuple[Path, ...] = ()
    """Interpreters for the cases of a group, in order, instead of this one; used by `guard` to compare commits."""
    path: Path | None = None
    """Folder from which those interpreters import `benchmarks`."""


class Remote:
    """Client of a contestant's process."""

    def __init__(self, python: Path | None = None, path: Path | None = None) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "FDATRD_CACHE"}
        if path:
            environment["PYTHONPATH"] = str(path)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process; a pipe could fill up
        self._process = subprocess.Popen(
            [str(python or sys.executable), "-m", "benchmarks.speed.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
            cwd=path,
        )

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    def ask(self, do: str, **request: Any) -> Any:
        """Send a request and wait for its answer.

        Args:
            do: Name of a request of `benchmarks.speed.process`.
            request: Its arguments.

        Raises:
            Missing: The contestant cannot run here.
            RuntimeError: It failed, or its process has ended.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the process was started without pipes")
        try:
            self._process.stdin.write(json.dumps(request | {"do": do}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # the pipe is closed
            line = ""
        if not line:
            raise RuntimeError(f"its process ended with code {self._process.wait()}: {self._last_line()}")
        answer = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process and its children."""
        for process in reversed(list(family(self.pid))):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.communicate()
        self._stderr.close()

    def _last_line(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it does not say why"


@dataclass
class Runner:
    """One running case of a group."""

    case: Case
    row: Row
    remote: Remote
    frames: int = 1
    position: int = 1
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    gpu: list[dict[str, Any]] = field(default_factory=list)

    def turn(self, meter: GpuMeter, *, counts: bool) -> float:
        """Upscale this turn's frames.

        Args:
            meter: Reads the GPU.
            counts: False for the warm-up turn, which is not recorded.

        Returns:
            The seconds.
        """
        before, mark = cpu_seconds(self.remote.pid), meter.mark()
        seconds = float(self.remote.ask("run", first=self.position, count=self.frames))
        self.position += self.frames
        if counts:
            self.rates.append(self.frames / seconds)
            self.cpu.append((cpu_seconds(self.remote.pid) - before) / self.frames)
            self.gpu.append(meter.since(mark) | {"seconds": seconds})
        return seconds

    def finish(self) -> None:
        """Write what was measured into the row."""
        ordered = sorted(self.rates)
        self.row |= {
            "fps": {"median": median(ordered), "min": ordered[0], "max": ordered[-1], "rounds": self.rates},
            "frames_per_round": self.frames,
        }
        if self.case.measure == "encode":  # its programs start and end with every round
            return
        self.row["cpu_seconds_per_frame"] = median(self.cpu)
        if peak := peak_memory(self.remote.pid):
            self.row["peak_memory_mib"] = round(peak / 2**20)
        known = [reading for reading in self.gpu if "busy" in reading]
        if known:
            self.row["gpu"] = {
                "busy_seconds_per_frame": median(r["busy"] * r["seconds"] / self.frames for r in known),
                "joules_per_frame": median(r["power_w"] * r["seconds"] / self.frames for r in known),
                "memory_mib": self.row["gpu_memory_mib"],
                "clock_mhz": median(r["clock_mhz"] for r in known),
                "temperature_c": max(r["temperature_c"] for r in known),
            }


def race(group: Group, settings: Settings, describe: Callable[[str], None], tick: Callable[[int], None]) -> list[Row]:
    """Measure a group.

    Args:
        group: The cases.
        settings: Duration and environment.
        describe: Called with a description of the current step.
        tick: Called with the number of steps done since the last call, of `steps(group)`.

    Returns:
        One row for each case, in the order of the group.
    """
    rows: list[Row] = [_row(case) for case in group.cases]
    runners: list[Runner] = []
    with GpuMeter() as meter:
        try:
            for number, (case, row) in enumerate(zip(group.cases, rows, strict=True)):
                describe(f"{group.title}: {case.label}, opening")
                try:
                    _require_memory(runners)
                    runners.append(_opened(number, case, row, settings, meter))
                except (Missing, RuntimeError) as error:
                    _excuse(row, error, settings)
                tick(1)
            _take_turns(runners, group, settings, meter, describe, tick)
            _compare_pictures(runners, settings.folder)
        finally:
            for runner in runners:
                runner.remote.close()
    return rows


def turn_length(depth: int, wanted: float) -> int:
    """Number of frames in a turn.

    Frames in flight together end together; a remaining single frame would have the machine to itself.

    Args:
        depth: Frames in flight.
        wanted: Frames that take as long as a turn should.

    Returns:
        About `wanted`, but a multiple of `depth`, and at least twice `depth`.
    """
    return depth * max(2, min(math.ceil(wanted / depth), 4096 // depth))


def steps(group: Group) -> int:
    """How many steps `race` reports."""
    return len(group.cases) + group.rounds + 1


def _row(case: Case) -> Row:
    """An empty row for a case; files are given by name, without their folder."""
    row = case.to_dict()
    row["same_network"] = case.contestant == OURS or PEERS[case.contestant].same_network
    return row | {"model": Path(case.model).name, "clip": Path(case.clip).name if case.clip else None}


def _excuse(row: Row, error: Missing | RuntimeError, settings: Settings) -> None:
    kind = "missing" if isinstance(error, Missing) else "error"
    row[kind] = str(error).replace(f"{settings.folder}{os.sep}", "")


def _take_turns(
    runners: list[Runner],
    group: Group,
    settings: Settings,
    meter: GpuMeter,
    describe: Callable[[str], None],
    tick: Callable[[int], None],
) -> None:
    for turn in range(group.rounds + 1):  # the first one warms up
        for runner in list(runners):
            describe(f"{group.title}: round {turn} of {group.rounds}, {runner.case.label}")
            try:
                seconds = runner.turn(meter, counts=turn > 0)
            except (Missing, RuntimeError) as error:
                _excuse(runner.row, error, settings)
                runner.remote.close()
                runners.remove(runner)
                continue
            if turn == 0:
                runner.frames = turn_length(runner.frames, settings.seconds * runner.frames / seconds)
        tick(1)
    for runner in runners:
        runner.finish()


def _require_memory(runners: Sequence[Runner]) -> None:
    """Raise Missing if free memory does not suffice for another contestant as large as the largest one so far."""
    largest = max((peak_memory(runner.remote.pid) for runner in runners), default=0)
    free = psutil.virtual_memory().available
    if free < MEMORY_MARGIN * largest:
        raise Missing(f"{free / 2**30:.1f} GiB of memory are free beside the others, too little; try a smaller --size")


def _opened(number: int, case: Case, row: Row, settings: Settings, meter: GpuMeter) -> Runner:
    """Open a case; its start-up time is stored in its row. Missing and RuntimeError pass."""
    weights, row["trained"] = weights_file(case.model, settings.folder)
    weights = weights.absolute()  # programs that run elsewhere read it too
    # versions must not use each other's engines
    cache = settings.folder / (f"engines_{number}" if settings.pythons else "engines")
    if case.contestant == OURS and case.measure == "vapoursynth":
        with tempfile.TemporaryDirectory(dir=settings.folder) as empty:
            remote, result = _start(number, case, weights, Path(empty), settings)
            remote.close()
            shutil.copytree(empty, cache, dirs_exist_ok=True)
        row["first_frame_cold_s"] = result["ready"]
    before = meter.memory_now()
    remote, result = _start(number, case, weights, cache, settings)
    row["first_frame_s"] = result["ready"]
    # Only this contestant's, as those that are open already have their memory, and the next ones have none yet.
    row["gpu_memory_mib"] = max(0, meter.memory_now() - before)
    return Runner(case, row, remote, frames=result["depth"])


def _start(number: int, case: Case, weights: Path, cache: Path, settings: Settings) -> tuple[Remote, dict[str, Any]]:
    remote = Remote(settings.pythons[number] if settings.pythons else None, settings.path)
    try:
        result: dict[str, Any] = remote.ask(
            "open", case=case.to_dict(), weights=str(weights), folder=str(settings.folder), cache=str(cache)
        )
    except (Missing, RuntimeError):
        remote.close()
        raise
    return remote, result


def _compare_pictures(runners: list[Runner], folder: Path) -> None:
    """Compare the outputs of the same network with each other, and check all outputs against the source."""
    pictures: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}
    for index, runner in enumerate(runners):
        file = folder / f"picture_{index}.npy"
        try:
            available = runner.remote.ask("picture", file=str(file))
        except (Missing, RuntimeError) as error:  # its rate counts, but nothing tells whether the picture is right
            runner.row["picture_error"] = str(error).replace(f"{folder}{os.sep}", "")
            continue
        if available:
            pictures[index] = np.load(file)
            file.unlink()
    exact = next((i for i in pictures if runners[i].case.contestant == "PyTorch"), None)
    for index, picture in pictures.items():
        case, row = runners[index].case, runners[index].row
        if not case.clip and row.get("trained"):
            source = drawings(*case.size, 1)[0]
            scale = max(1, picture.shape[1] // source.shape[1])
            source = source.repeat(scale, axis=1).repeat(scale, axis=2)
            if picture.shape != source.shape or _psnr(picture, source) < GARBAGE_DB:
                row["error"] = "what it makes is no picture of the source"
                row.pop("fps", None)
        if exact is not None and index != exact and row["same_network"]:
            row["psnr_to_pytorch_db"] = _psnr(picture, pictures[exact])


def _psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * math.log10(1 / max(error, 1e-20))

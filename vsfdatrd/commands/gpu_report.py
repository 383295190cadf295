"""`vsfdatrd doctor --gpu`: benchmark the backends on this machine's NVIDIA GPU and write a JSON report to share."""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vsfdatrd import __version__
from vsfdatrd.backends import selection
from vsfdatrd.backends.accuracy import compute_psnr, draw_line_art
from vsfdatrd.backends.base import Engine, FramePlanes, SlotPool
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.backends.graphs import serialize
from vsfdatrd.backends.network_graphs import create_graph
from vsfdatrd.backends.reference import compute_reference
from vsfdatrd.backends.speed import run_turn
from vsfdatrd.backends.tensorrt.builder import REFERENCE_FILE
from vsfdatrd.backends.tensorrt.library import choose_library
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import ArgumentError, EngineError, FdatrdError
from vsfdatrd.options import Options
from vsfdatrd.system import processor
from vsfdatrd.system.packages import installed_versions
from vsfdatrd.system.programs import run_unchecked
from vsfdatrd.weights.catalog import resolve_model
from vsfdatrd.workers.client import Worker

SCHEMA = 1
"""Version of the report's format."""
BACKENDS = ("tensorrt", "torch", "cuda")
"""The backends that are measured."""
REPORTED_PACKAGES = ("tensorrt_rtx", "tensorrt", "torch", "cuda-bindings", "openvino", "onnx", "numpy", "vapoursynth")
"""Packages whose versions are part of the report."""
REPORTS_FOLDER = "benchmarks/results/community/"
"""Folder in the project's repository where reports are collected."""


@dataclass(frozen=True, slots=True)
class _Case:
    """The model, frame size and cache of a measurement."""

    checkpoint: Checkpoint
    height: int
    width: int
    cache: Path


def run(model: str, size: tuple[int, int], target: Path | None, seconds: float) -> int:
    """Measure every GPU backend, print a table, and write the report.

    Args:
        model: Name from the catalog, or path of a weights file.
        size: Width and height of the clip in pixels.
        target: The file to write; by default one in the current directory that is named after the GPU.
        seconds: Approximate duration of each frame-rate measurement.

    Returns:
        The exit status: 0 if a backend works, 1 if none does or there is no GPU.

    Raises:
        FdatrdError: The model cannot be read, or the report cannot be written to `target`.
    """
    if not list_gpus():
        print("there is no NVIDIA GPU here, or no driver for it, so there is nothing to report")
        return 1
    file = target or Path(f"vsfdatrd_gpu_{_file_name_part(list_gpus()[0].name)}.json")
    if not file.absolute().parent.is_dir():  # fail now, not after minutes of measuring
        raise ArgumentError(f"{file} cannot be written, since there is no such folder; give another path with --json")
    if file.is_dir():
        raise ArgumentError(f"{file} is a folder; give the path of a file with --json")
    checkpoint = open_checkpoint(resolve_model(model))
    width, height = size
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "vsfdatrd": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": describe_machine(),
        "libraries": installed_versions(REPORTED_PACKAGES),
        "model": checkpoint.path.stem,
        "weights": checkpoint.descriptor.sha256[:16],
        "size": [width, height],
        "engines": [],
    }
    print(f"{report['machine']['gpu']}, {checkpoint.path.name} at {width}×{height}")
    with tempfile.TemporaryDirectory(prefix="vsfdatrd-", ignore_cleanup_errors=True) as folder:
        case = _Case(checkpoint, height, width, Path(folder))
        for name in BACKENDS:
            try:
                row = measure_backend(case, name, seconds)
            except FdatrdError as error:
                row = {"backend": name, "error": str(error)}
            report["engines"].append(row)
            print(f"  {format_row(row)}", flush=True)
    try:
        # errors: the name of a model file may not be valid Unicode
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
    except OSError as error:
        print(f"{file} cannot be written ({error.strerror}); give another path with --json", file=sys.stderr)
        return 1
    print(f"written to {file}; please post it, as an issue or a pull request that adds it to {REPORTS_FOLDER}")
    return 0 if any("error" not in row for row in report["engines"]) else 1


def format_row(row: Mapping[str, Any]) -> str:
    """Format a row of the report as a line of text."""
    if "error" in row:
        return f"{row['backend']}: {row['error']}"
    through = row["fps_vapoursynth"]
    return (
        f"{row['backend']} ({row['library']}), {row['precision']}: {row['fps_alone']} fps alone, "
        + (f"{through} through VapourSynth ({row['share']:.0%})" if through else "VapourSynth is not installed")
        + f", {row['psnr_db']} dB to fp32, {row['memory_mib']} MiB, {row['slots']} frames in flight, "
        f"{row['contexts']} computed at a time, first start {row['opening_s']} s, "
        f"second {row['reopening_s']} s"
    )


def measure_backend(case: _Case, name: str, seconds: float) -> dict[str, Any]:
    """Measure one backend: open it twice, compare it with fp32, time it alone and through VapourSynth.

    Args:
        case: The model, frame size and cache.
        name: Name of the backend.
        seconds: Duration of each frame-rate measurement.

    Returns:
        A row of the report.

    Raises:
        FdatrdError: The backend cannot be used.
    """
    module = selection.import_backend(name)
    if reason := module.unavailable() or (None if name != "torch" else _why_torch_has_no_gpu()):
        raise EngineError(reason)
    options = Options(model=str(case.checkpoint.path), backend=name, cache=case.cache)
    store = EngineCache(case.cache)
    before = free_gpu_memory()

    def opened() -> tuple[SlotPool, float]:
        start = time.perf_counter()
        pool = selection.open_engine(case.checkpoint, case.height, case.width, options, store)
        return pool, time.perf_counter() - start

    pool, opening = opened()
    pool.engine.close()
    pool.failed = True  # so that the second start loads it from the cache instead of sharing it
    del pool
    pool, reopening = opened()
    engine = pool.engine
    entry = store.entries()[-1]
    try:
        picture = draw_line_art(*engine.input(0).shape[1:])[: engine.input(0).shape[0]]
        result = _run_frame(engine, picture)
        if not np.isfinite(result).all():
            raise EngineError("its output has values that are not finite")
        decibels = compute_psnr(reference_output(case, entry.path), result)
        memory = before - free_gpu_memory()
        frames, spent = run_turn(engine, range(engine.slots), seconds)
        alone = frames / spent
    finally:
        engine.close()
    pool.failed = True
    if name == "tensorrt":
        alone = tensorrt_rate(entry.path, alone, seconds)
    through = vapoursynth_rate(case, name, alone, seconds)
    return {
        "backend": name,
        "library": module.version(),
        "precision": entry.fields["precision"],
        "opening_s": round(opening, 2),
        "reopening_s": round(reopening, 2),
        "psnr_db": round(decibels, 2),
        "fps_alone": round(alone, 2),
        "fps_vapoursynth": through and round(through, 2),
        "share": through and round(through / alone, 3),
        "memory_mib": memory >> 20,
        "slots": engine.slots,
        "contexts": getattr(engine, "contexts", 1),  # engines of this process compute one frame at a time
    }


def _why_torch_has_no_gpu() -> str | None:
    """Return why PyTorch cannot use the GPU, as a sentence; None if it can."""
    import torch

    return None if torch.cuda.is_available() else "this PyTorch is built without CUDA, or does not see the GPU"


def _run_frame(engine: Engine, picture: FramePlanes) -> FramePlanes:
    np.copyto(engine.input(0), picture)
    engine.submit(0)
    return engine.collect(0).copy()


def reference_output(case: _Case, engine_folder: Path) -> FramePlanes:
    """Return the network's fp32 output for `accuracy.draw_line_art`.

    It is read from the engine's folder or from that of an earlier backend; if neither has it, the CPU computes it.
    """
    paths = [engine_folder / REFERENCE_FILE, case.cache / REFERENCE_FILE]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        path = case.cache / REFERENCE_FILE
        graph = case.cache / "exact.onnx"
        size = selection.padded_size(case.checkpoint.descriptor, case.height, case.width)
        graph.write_bytes(serialize(create_graph(case.checkpoint, *size)))
        compute_reference(graph, path)
    result: FramePlanes = np.load(path, allow_pickle=False).astype(np.float32)
    if path.parent != case.cache:
        np.save(case.cache / REFERENCE_FILE, result.astype(np.float16), allow_pickle=False)
    return result


def tensorrt_rate(directory: Path, expected_rate: float, seconds: float) -> float:
    """Measure the frames per second of a TensorRT engine without copies.

    Args:
        directory: The cached engine.
        expected_rate: Approximate frame rate, which determines the number of runs; returned if the library is missing.
        seconds: Approximate duration of the measurement.
    """
    library = choose_library(list_gpus()[0].capability)
    if library is None:
        return expected_rate
    with contextlib.closing(Worker("vsfdatrd.backends.tensorrt.worker")) as worker:
        worker.ask("load", library=library.module, directory=str(directory), devices=[0], streams=1, state=None)
        return float(worker.ask("rate", runs=max(10, round(expected_rate * seconds))))


def vapoursynth_rate(case: _Case, name: str, expected_rate: float, seconds: float) -> float | None:
    """Measure the frames per second of ``core.fdatrd.upscale`` for a YUV clip, without frame reuse.

    Args:
        case: The model, frame size and cache.
        name: Name of the backend.
        expected_rate: Approximate frame rate, which determines the number of frames.
        seconds: Approximate duration of the measurement.

    Returns:
        The frame rate; None if VapourSynth is not installed.

    Raises:
        EngineError: The plugin is not loaded, or a frame failed.
    """
    try:
        import vapoursynth as vs
    except ImportError:
        return None
    if not hasattr(vs.core, "fdatrd"):
        raise EngineError("VapourSynth does not load the plugin (core.fdatrd is missing); install vsfdatrd again")
    warm, count = 10, max(20, round(expected_rate * seconds))
    clip = vs.core.std.BlankClip(
        width=case.width, height=case.height, format=vs.YUV420P8, length=warm + count, color=[120, 90, 160]
    )
    clip = clip.std.SetFrameProps(_Matrix=6, _Range=0)
    try:
        out = vs.core.fdatrd.upscale(
            clip, model=str(case.checkpoint.path), backend=name, reuse="off", cache=str(case.cache)
        )
        start = time.perf_counter()
        for n, _ in enumerate(out.frames(close=True)):
            if n + 1 == warm:
                start = time.perf_counter()
        return count / (time.perf_counter() - start)
    except vs.Error as error:
        raise EngineError(str(error)) from error


def free_gpu_memory() -> int:
    """Return the free memory of the first GPU in bytes, queried in a separate process that exits afterwards."""
    with contextlib.closing(Worker("vsfdatrd.backends.tensorrt.worker")) as worker:
        return int(worker.ask("free", devices=[0])[0])


def describe_machine() -> dict[str, Any]:
    """Return the GPU, driver, operating system and CPU; nothing that identifies the user."""
    from vsfdatrd.backends.gpu import cuda  # needs cuda-bindings, which macOS does not have

    first = list_gpus()[0]
    driver, memory = _query_nvidia_smi()
    return {
        "gpu": first.name,
        "capability": f"{first.capability[0]}.{first.capability[1]}",
        "gpus": len(list_gpus()),
        "driver": driver,
        "cuda": cuda.driver_version(),
        "memory_mib": memory,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": processor.cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _query_nvidia_smi() -> tuple[str | None, int | None]:
    """Return the driver version and the first GPU's memory in MiB from nvidia-smi; None if it is not available."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None, None
    command = [program, "-i", "0", "--query-gpu=driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        driver, _, memory = run_unchecked(command, timeout=20).stdout.decode().partition("\n")[0].partition(",")
        return driver.strip(), int(memory)  # an error message has no number
    except (OSError, subprocess.SubprocessError, ValueError):
        return None, None


def _file_name_part(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")

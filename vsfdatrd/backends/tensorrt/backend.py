"""The TensorRT engine, the fastest on NVIDIA GPUs. It runs in a process of its own (`tensorrt_process.py`).

Its artefact is the built engine and what an exact network makes of one picture: every engine is held against that
before its first frame, on each GPU and with each driver anew. Which of the two TensorRTs runs it, and how they differ,
is in `tensorrt_library.py`.
"""

import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsfdatrd.archs.fdat import Config, FdatConfig
from vsfdatrd.backends import reference
from vsfdatrd.backends.base import Engine, EngineSpec
from vsfdatrd.backends.gpus import first, gpus
from vsfdatrd.backends.graphs import serialized
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.backends.tensorrt.builder import REFERENCE, SKY
from vsfdatrd.backends.tensorrt.library import OLDEST, Library, choose
from vsfdatrd.backends.traced_graphs import graph_for, sky_size
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import ArgumentError, EngineBuildError, EngineError, EngineUnavailable, PrecisionUnfit
from vsfdatrd.graph import GRAPH_VERSION as WRITTEN
from vsfdatrd.graph.target import tensorrt as dialect
from vsfdatrd.options import Precision
from vsfdatrd.system.files import keep_if_possible, read_or_none
from vsfdatrd.workers.client import StandbyWorker

log = logging.getLogger(__name__)

GRAPH_VERSION = f"{WRITTEN}.1"
"""Of the graph, and of how it is built."""
ANY_SIZE = False

# Activations per token of the map: bytes for each channel of the feed-forward network, and for each of a token's scores
# in the dictionary's reading. As the builder of TensorRT-RTX 1.7 reports them (`python -m benchmarks.builds`) for all
# variants and sizes, rounded up.
BYTES_PER_CHANNEL: dict[Precision, float] = {"fp16": 6.8, "bf16": 6.8, "mixed": 11.2, "fp32": 52}
BYTES_PER_SCORE = 4.4
# Of an FDAT, per token and channel of a token: 21.1 to 23.0 in fp16 (sm75: 24.3 to 26.7) and bf16, 28.1 to 30.0 in
# mixed and 40.4 to 51.4 in fp32 were reported for tiny to xl at 720×540.
BYTES_PER_FDAT_CHANNEL: dict[Precision, float] = {"fp16": 27, "bf16": 23.5, "mixed": 30.5, "fp32": 52}
# Where a tail takes more than that, it is so many float32 tensors of its largest one's size, in half precisions and in
# fp32: 2.2 to 2.9 of lda, which is fp32 in all of them; of others 1.2 to 1.6, and 2.4 to 3.5 (`benchmarks.tails`).
LDA_AT_ONCE = (3.0, 3.0)
TAIL_AT_ONCE = (1.6, 3.6)
# Of an ArtCNN, bytes for each value that `ArtCnnConfig.held` counts: 2.1 to 2.4, 3.6 to 3.8 and 4.1 to 4.4 were
# reported for R8F64, C4F32 and C4F16 at 720×540; the smaller a network is, the more do its ends weigh.
BYTES_PER_HELD: dict[Precision, float] = {"fp16": 2.5, "bf16": 2.5, "mixed": 3.8, "fp32": 4.5}
# Of other networks, activations as so many float32 tensors of their largest one's size, in half precisions and in fp32:
# the builder reported 1.0 to 4.2 and 1.8 to 5.4 for eleven small networks at 240×240.
LARGEST_AT_ONCE = (4.4, 5.6)
BYTES_OF_PROCESS = 600 << 20
"""GPU memory of a CUDA context, the library's kernels and small change."""

STREAMS = 3
"""Frames in flight on a GPU: one on its way there, one computed, one on its way back."""

LEVEL = "FDATRD_TENSORRT_LEVEL"
"""Environment variable: how hard `tensorrt` tries when it builds, 0 to 5. `tensorrt_rtx` has no such choice."""

CONTEXTS = "FDATRD_TENSORRT_CONTEXTS"
"""Environment variable: networks computed at the same time on a GPU, 1 to 4, where its memory suffices; 1 by default.
Where one network leaves a GPU's processors idle, another one fills them; how much that gains has not been measured."""


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Why it cannot be used here; None if it can. device: numbers of the GPUs, which are of one kind; also below."""
    gpu = first(device)
    if gpu is None:
        return "there is no NVIDIA GPU here, or no driver for it"
    if gpu.capability < OLDEST:
        return f"{gpu.name} is older than TensorRT supports (RTX 20 and GTX 16 are the oldest)"
    if choose(gpu.capability) is None:
        return "TensorRT is not installed; pip install 'vsfdatrd[rtx]'"
    return None


def warm_up() -> None:
    """Start the process that will run the engine."""
    _spare.start()


def version(device: Sequence[int] = (0,)) -> str:
    """Which TensorRT it is, and its version."""
    library = _library(device)
    return f"{library.module} {library.version}"


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """fp16 first, fp32 last; Turing (RTX 20) has neither fp32 products in TensorRT-RTX nor bf16."""
    gpu = first(device)
    modern = gpu is not None and gpu.capability >= (8, 0)
    return ("fp16", "mixed", "bf16", "fp32") if modern else ("fp16", "mixed")


def device_name(job: EngineSpec) -> str:
    """What kind of GPU an engine is for. Raises ArgumentError if those asked for are of different kinds."""
    found = [gpus()[index] for index in job.device]
    targets = {_library(job.device).target(gpu.capability, gpu.name) for gpu in found}
    if len(targets) > 1:
        raise ArgumentError(
            f"device={list(job.device)} are GPUs of different kinds ({', '.join(gpu.name for gpu in found)}), "
            "which need an engine each; give equal ones, or one upscale() for each kind"
        )
    return targets.pop()


def identity(job: EngineSpec) -> str:
    """The level, for the library that has one."""
    level = None if _library(job.device).portable else _level()
    return "" if level is None else f"level={level}"


def memory_estimate(job: EngineSpec) -> tuple[int, int]:
    """(bytes the engine will need on its GPU, bytes free there)."""
    return needed(job), min(_spare.ask("free", devices=list(job.device)))


def needed(job: EngineSpec) -> int:
    """Bytes of GPU memory for an engine and its frames."""
    description = job.checkpoint.description
    pixels = job.height * job.width
    if config := description.written:
        at_once = (LDA_AT_ONCE if config.upsampler == "lda" else TAIL_AT_ONCE)[job.precision == "fp32"]
        per_token = max(_body(config, job.precision), 4 * config.largest_in_tail * at_once)
        activations = pixels / config.unshuffle**2 * per_token
    elif description.artcnn:
        activations = pixels * description.artcnn.held * BYTES_PER_HELD[job.precision]
    else:
        activations = 4 * pixels * description.largest * LARGEST_AT_ONCE[job.precision == "fp32"]
    # One frame more than are in flight: the places between which the network computes.
    frames = 12 * pixels * (1 + description.scale**2) * ((job.streams or STREAMS) + 1)
    return int(activations + frames + 4 * description.parameters + BYTES_OF_PROCESS)


def _body(config: Config, precision: Precision) -> float:
    """Bytes of activations per token before the tail."""
    if isinstance(config, FdatConfig):
        return config.embed_dim * BYTES_PER_FDAT_CHANNEL[precision]
    scores = config.heads * config.dict_tokens if precision != "fp32" else 0  # in fp32 they are not the peak
    return config.ffn_dim * BYTES_PER_CHANNEL[precision] + scores * BYTES_PER_SCORE


def rest() -> None:
    """End the process that waits to build or run the next engine, and forget what it would be held against."""
    _spare.rest()
    _references.clear()


def build(job: EngineSpec, directory: Path) -> None:
    """Build an engine for the job's GPU.

    Raises EngineUnavailable if TensorRT does not run on it, EngineBuildError, saying where TensorRT's full log is.
    """
    library = _library(job.device)
    targets = [f"sm{major}{minor}" for major, minor in sorted({gpus()[index].capability for index in job.device})]
    if why := _spare.ask("refuse", library=library.module, devices=list(job.device), targets=targets):
        raise EngineUnavailable(why)
    build_for(job, directory, library, targets)


def build_for(job: EngineSpec, directory: Path, library: Library, targets: Sequence[str]) -> dict[str, Any]:
    """Build an engine for kinds of GPU, such as ``sm89``. -> what the builder tells of it."""
    graph = directory / "graph.onnx"
    try:
        written = dialect(job.precision, turing="sm75" in targets)
        graph.write_bytes(serialized(graph_for(job.checkpoint, job.height, job.width, written)))
    except OverflowError as error:
        raise PrecisionUnfit(f"{job.checkpoint.path.name} cannot be computed in {job.precision}: {error}.") from error
    number, full_log = tempfile.mkstemp(".log", "vsfdatrd-tensorrt-")
    os.close(number)
    # Timings serve every engine of this library.
    timings = job.state.parent / f"{library.module} {library.version}.timings" if job.state else None
    how = {"level": _level(), "timings": timings and str(timings), "exact": job.precision == "fp32"}
    try:
        facts: dict[str, Any] = _spare.ask(
            "build", library=library.module, graph=str(graph), directory=str(directory), targets=list(targets), how=how,
            log=full_log,
        )  # fmt: skip
        drawn, count = _reference(job, directory)
        (directory / REFERENCE).write_bytes(drawn)
        (directory / SKY).write_text(json.dumps(count))
    except (EngineBuildError, EngineUnavailable):
        raise
    except EngineError as error:
        raise EngineBuildError(f"{error}; TensorRT's full log is {full_log}") from error
    finally:
        graph.unlink(missing_ok=True)
    os.unlink(full_log)
    return facts


def _reference(job: EngineSpec, directory: Path) -> tuple[bytes, int]:
    """The contents of `REFERENCE` and `SKY`: they take a processor as long as the size asks for, and are the same for
    every kind of GPU and every precision, so they are computed once. directory: where there is room for a graph."""
    key = job.checkpoint, job.height, job.width
    if key not in _references:
        result = directory / REFERENCE
        with tempfile.TemporaryDirectory(prefix="graphs-", dir=directory) as folder:
            exact = sky = Path(folder, "exact.onnx")
            exact.write_bytes(serialized(graph_for(*key)))
            if (size := sky_size(job.checkpoint.description, job.height, job.width)) != (job.height, job.width):
                sky = Path(folder, "sky.onnx")
                sky.write_bytes(serialized(graph_for(job.checkpoint, *size)))
            count = reference.compute(exact, result, sky)
        _references.clear()
        _references[key] = result.read_bytes(), count
    return _references[key]


def load(job: EngineSpec, directory: Path) -> Engine:
    """The engine on its GPUs, held against the reference if this GPU and driver have not run it before.

    Raises EngineError if the engine does not load, EngineBuildError if it strays too far from the reference.
    """
    loaded = _spare.ask(
        "load", library=_library(job.device).module, directory=str(directory), devices=list(job.device),
        streams=job.streams or STREAMS, state=job.state and str(job.state), contexts=_contexts(),
    )  # fmt: skip
    names = ", ".join(gpus()[index].name for index in job.device)
    who = f"{names}, driver {_spare.describe()['driver']}, {version()}"
    note = job.state and job.state / "verified.json"
    verified = _json(read_or_none(note))
    if who not in verified:
        psnr = _spare.ask("verify", directory=str(directory), precision=job.precision)
        log.info("%s agrees with fp32 to %.1f dB on %s", job.precision, psnr, who)
        if note:
            keep_if_possible(note, json.dumps(verified | {who: round(psnr, 2)}).encode())
    _references.clear()
    return RemoteEngine(_spare.take(), loaded["slots"], loaded["input"], loaded["output"])


def _json(content: bytes | None) -> dict[str, float]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _library(device: Sequence[int]) -> Library:
    gpu = first(device)
    library = choose(gpu.capability if gpu else None)
    if library is None:
        raise EngineUnavailable("TensorRT is not installed; pip install 'vsfdatrd[rtx]'")
    return library


def _contexts() -> int:
    given = os.environ.get(CONTEXTS, "1")
    if given not in tuple("1234"):
        raise ArgumentError(f"{CONTEXTS}={given!r} is no number of networks; set it to 1 to 4, or unset it")
    return int(given)


def _level() -> int | None:
    given = os.environ.get(LEVEL)
    if given is not None and given not in tuple("012345"):
        raise ArgumentError(
            f"{LEVEL}={given!r} is no level; set it to 0 (quick build) to 5 (quick engine), or unset it"
        )
    return None if given is None else int(given)


_spare = StandbyWorker("vsfdatrd.backends.tensorrt.worker")
_references: dict[tuple[Checkpoint, int, int], tuple[bytes, int]] = {}
"""The latest one, until an engine has passed."""

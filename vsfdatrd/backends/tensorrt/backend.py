"""TensorRT backend, the fastest on NVIDIA GPUs. It runs in a worker process (`worker.py`).

An engine's files are the serialized engine and the fp32 output for one image. Every engine is compared with that
reference before its first frame, again for each GPU and each driver. `library.py` selects one of the two TensorRT
libraries and contains all their differences.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.backends import memory, reference
from vsfdatrd.backends.base import Engine, EngineSpec
from vsfdatrd.backends.gpu.contexts import DEFAULT_STREAMS, ContextChoice
from vsfdatrd.backends.gpu.devices import first_selected, list_gpus
from vsfdatrd.backends.gpu.verification import verify_once
from vsfdatrd.backends.graphs import serialize
from vsfdatrd.backends.network_graphs import create_graph, sky_size
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.backends.tensorrt.builder import REFERENCE_FILE, SKY_LEVELS_FILE
from vsfdatrd.backends.tensorrt.library import MIN_CAPABILITY, Library, choose_library
from vsfdatrd.errors import ArgumentError, EngineBuildError, EngineError, EngineUnavailable, PrecisionUnfit
from vsfdatrd.graph import GRAPH_VERSION as WRITTEN
from vsfdatrd.graph.target import tensorrt_target as tensorrt_target
from vsfdatrd.options import Precision
from vsfdatrd.workers.client import StandbyWorker

GRAPH_VERSION = f"{WRITTEN}.5"
"""Version of the graph and of the way it is built."""
ANY_FRAME_SIZE = False

# Activations in bytes for each value of a kind of tensor, as reported by the builder of TensorRT-RTX 1.7
# (`python -m benchmarks.builds`), rounded up.
ACTIVATION_BYTES: dict[str, dict[Precision, float]] = {
    # Channels of the feed-forward network, and scores of the dictionary's attention to the frame, for all variants and
    # sizes. In fp32 the scores are not the peak.
    "fdat_rd.ffn": {"fp16": 7.3, "bf16": 7.3, "mixed": 11.2, "fp32": 52},
    "fdat_rd.scores": {"fp16": 4.4, "bf16": 4.4, "mixed": 4.4, "fp32": 0},
    # 23.1 to 25.0 in fp16 (sm75: up to 27.0), 28.8 in mixed and 41.5 to 51.4 in fp32 for tiny to xl at 720×540.
    "fdat.channels": {"fp16": 27.5, "bf16": 25.5, "mixed": 30.5, "fp32": 52},
    # In float32 values, 2.2 to 2.9 for lda, which is fp32 in every precision; 1.2 to 1.7 (in fp32 2.4 to 3.5) for the
    # others (`benchmarks.tails`).
    "tail.lda": {"fp16": 12, "bf16": 12, "mixed": 12, "fp32": 12},
    "tail": {"fp16": 6.7, "bf16": 6.7, "mixed": 6.7, "fp32": 14.4},
    # 2.6, 3.6 and 3.8 for R8F64, C4F32 and C4F16 at 720×540 in fp16, 3.1 to 3.8 in mixed. The smaller a network, the
    # larger the share of its first and last layers, which are fp32 in every precision.
    "artcnn": {"fp16": 3.9, "bf16": 3.9, "mixed": 3.9, "fp32": 4.5},
    # In float32 values, 1.0 to 4.2 and in fp32 1.8 to 5.4 for eleven small networks at 240×240.
    "largest": {"fp16": 17.6, "bf16": 17.6, "mixed": 17.6, "fp32": 22.4},
}
MAP_ACTIVATION_BYTES: dict[str, dict[Precision, float]] = {
    # fp16 12.0, bf16 and mixed 13.1 to 13.3, fp32 51.6 for small, medium and large at 720×540. Scores are not the peak.
    "fdat_rd.ffn": {"fp16": 12.2, "bf16": 13.5, "mixed": 13.5, "fp32": 52},
    "fdat_rd.scores": {"fp16": 0, "bf16": 0, "mixed": 0, "fp32": 0},
    # 720×540: fp16 19.3 to 20.7 (240×240: 23.3), bf16 20.7, mixed 25.1 to 26.6, fp32 44.3 to 51.4 (`benchmarks.tails`)
    "fdat.channels": {"fp16": 23.4, "bf16": 23.4, "mixed": 27, "fp32": 52},
    # C4F16, C4F32 and R8F64: fp16 3.0, 2.2 and 1.6; mixed 2.6; fp32 4.4, 3.1 and 3.1
    "artcnn": {"fp16": 3.1, "bf16": 3.1, "mixed": 3.1, "fp32": 4.5},
    # 1.2 to 1.8 in float32 values (`benchmarks.tails`)
    "tail": {"fp16": 7, "bf16": 7, "mixed": 7, "fp32": 14.4},
}
"""The same for graphs that move less memory (`GraphTarget.maps`), where they differ."""
PROCESS_BYTES = 600 << 20
"""GPU memory of a CUDA context, the library's kernels and small allocations."""

_standby = StandbyWorker("vsfdatrd.backends.tensorrt.worker")
warm_up = _standby.warm_up

LEVEL_VARIABLE = "FDATRD_TENSORRT_LEVEL"
"""Environment variable: builder optimization level of `tensorrt`, 0 to 5. `tensorrt_rtx` has no such setting."""


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Explain why TensorRT cannot be used on these GPUs; see `Backend.unavailable`.

    Args:
        device: Numbers of the GPUs. Here and in the functions below they must be of one kind.
    """
    gpu = first_selected(device)
    if gpu is None:
        return "there is no NVIDIA GPU here, or no driver for it"
    if gpu.capability < MIN_CAPABILITY:
        return f"{gpu.name} is older than TensorRT supports (RTX 20 and GTX 16 are the oldest)"
    if choose_library(gpu.capability) is None:
        return "TensorRT is not installed; pip install 'vsfdatrd[rtx]'"
    return None


def unsupported_reason(model: ModelDescriptor) -> None:
    """Return None: every network has a graph; see `Backend.unsupported_reason`."""


def version(device: Sequence[int] = (0,)) -> str:
    """Return the name and version of the TensorRT library used for these GPUs; see `Backend.version`."""
    library = _required_library(device)
    return f"{library.module} {library.version}"


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """List fp16 first and the safest precision last; see `Backend.precisions`.

    Turing (RTX 20) has neither bf16 nor, in TensorRT-RTX, fp32 matrix products.
    """
    gpu = first_selected(device)
    has_bf16 = gpu is not None and gpu.capability >= (8, 0)
    return ("fp16", "mixed", "bf16", "fp32") if has_bf16 else ("fp16", "mixed")


def device_name(spec: EngineSpec) -> str:
    """Return the compute capability, or the model of GPU, for which an engine is built; see `Library.target_name`.

    Args:
        spec: Parameters of the engine.

    Raises:
        ArgumentError: The requested GPUs are of different kinds.
    """
    selected_gpus = [list_gpus()[index] for index in spec.device]
    targets = {_required_library(spec.device).target_name(gpu.capability, gpu.name) for gpu in selected_gpus}
    if len(targets) > 1:
        raise ArgumentError(
            f"device={list(spec.device)} are GPUs of different kinds ({', '.join(gpu.name for gpu in selected_gpus)}), "
            "which need an engine each; give equal ones, or one upscale() for each kind"
        )
    return targets.pop()


def identity(spec: EngineSpec) -> str:
    """Return the builder optimization level, for the library that has one; see `Backend.identity`."""
    level = None if _required_library(spec.device).portable else _builder_level()
    return "" if level is None else f"level={level}"


def memory_estimate(spec: EngineSpec) -> tuple[int, int]:
    """Estimate the GPU memory of an engine; see `Backend.memory_estimate`.

    Args:
        spec: Parameters of the engine.

    Returns:
        (bytes needed, bytes free on the GPU with the least free memory).
    """
    return needed_bytes(spec), min(_standby.ask("free", devices=list(spec.device)))


def needed_bytes(spec: EngineSpec) -> int:
    """Estimate the GPU memory of an engine with one execution context, and of its frames, in bytes.

    A second context is created only if its activations, which are measured then, leave the GPU enough free memory
    (`ExecutionContext.has_room_for_another`).

    Args:
        spec: Parameters of the engine.
    """
    network = spec.checkpoint.descriptor
    gpu = first_selected(spec.device)
    library = choose_library(gpu.capability if gpu else None)
    sm75 = gpu is not None and gpu.capability == (7, 5)
    graph_target = tensorrt_target(spec.precision, sm75=sm75, portable=library is None or library.portable)
    kinds = ACTIVATION_BYTES | MAP_ACTIVATION_BYTES if graph_target.maps else ACTIVATION_BYTES
    measured = {kind: rates[spec.precision] for kind, rates in kinds.items()}
    activations = memory.activation_bytes(network.config, measured)
    # One frame more than are in flight: the buffers that the network reads and writes.
    frames = memory.frame_bytes(network) * ((spec.streams or DEFAULT_STREAMS) + 1)
    return int(spec.height * spec.width * (activations + frames) + 4 * network.parameters + PROCESS_BYTES)


def shutdown() -> None:
    """End the standby worker and discard the reference output for the next engine."""
    _standby.shutdown()
    _references.clear()


def build(spec: EngineSpec, directory: Path) -> None:
    """Build an engine for the requested GPUs.

    Args:
        spec: Parameters of the engine.
        directory: The directory to write to.

    Raises:
        EngineUnavailable: TensorRT does not run on them.
        EngineBuildError: The build failed; the message names the file with TensorRT's full log.
    """
    library = _required_library(spec.device)
    targets = [f"sm{major}{minor}" for major, minor in sorted({list_gpus()[index].capability for index in spec.device})]
    if reason := _standby.ask("refusal_reason", library=library.module, devices=list(spec.device), targets=targets):
        raise EngineUnavailable(reason)
    build_for(spec, directory, library, targets)


def build_for(spec: EngineSpec, directory: Path, library: Library, targets: Sequence[str]) -> dict[str, Any]:
    """Build an engine for kinds of GPU, such as ``sm89``.

    Args:
        spec: Parameters of the engine.
        directory: The directory to write to.
        library: The TensorRT to use.
        targets: Kinds of GPU, such as ``sm89``.

    Returns:
        The facts that `builder.build_engine` reports.

    Raises:
        PrecisionUnfit: A weight exceeds the range of the precision.
        EngineUnavailable: The library does not load.
        EngineBuildError: The build failed; the message names the file with TensorRT's full log.
    """
    graph = directory / "graph.onnx"
    try:
        graph_target = tensorrt_target(spec.precision, sm75="sm75" in targets, portable=library.portable)
        graph.write_bytes(serialize(create_graph(spec.checkpoint, spec.height, spec.width, graph_target)))
    except OverflowError as error:
        raise PrecisionUnfit(f"{spec.checkpoint.path.name} cannot be computed in {spec.precision}: {error}.") from error
    number, full_log = tempfile.mkstemp(".log", "vsfdatrd-tensorrt-")
    os.close(number)
    # The timing cache is shared by all engines of this library.
    timings = spec.state.parent / f"{library.module} {library.version}.timings" if spec.state else None
    how = {"level": _builder_level(), "timings": timings and str(timings), "exact": spec.precision == "fp32"}
    keep_log = False
    try:
        facts: dict[str, Any] = _standby.ask(
            "build",
            library=library.module,
            graph=str(graph),
            directory=str(directory),
            targets=list(targets),
            how=how,
            log=full_log,
        )
        reference_output, count = _compute_reference(spec, directory)
        (directory / REFERENCE_FILE).write_bytes(reference_output)
        (directory / SKY_LEVELS_FILE).write_text(json.dumps(count))
        return facts
    except EngineUnavailable:
        raise
    except EngineError as error:
        keep_log = True
        if isinstance(error, EngineBuildError):  # names the log
            raise
        raise EngineBuildError(f"{error}; TensorRT's full log is {full_log}") from error
    finally:
        graph.unlink(missing_ok=True)
        if not keep_log:
            os.unlink(full_log)


def _compute_reference(spec: EngineSpec, directory: Path) -> tuple[bytes, int]:
    """Compute the contents of `REFERENCE_FILE` and `SKY_LEVELS_FILE`.

    They take long on a CPU for large frames and do not depend on the GPU or the precision, so they are computed once.
    Temporary graphs are written into `directory`.
    """
    key = spec.checkpoint, spec.height, spec.width
    if key not in _references:
        result = directory / REFERENCE_FILE
        with tempfile.TemporaryDirectory(prefix="graphs-", dir=directory) as folder:
            graph_file = sky = Path(folder, "exact.onnx")
            graph_file.write_bytes(serialize(create_graph(*key)))
            if (size := sky_size(spec.checkpoint.descriptor, spec.height, spec.width)) != (spec.height, spec.width):
                sky = Path(folder, "sky.onnx")
                sky.write_bytes(serialize(create_graph(spec.checkpoint, *size)))
            count = reference.compute_reference(graph_file, result, sky)
        _references.clear()
        _references[key] = result.read_bytes(), count
    return _references[key]


def load(spec: EngineSpec, directory: Path) -> Engine:
    """Load an engine on its GPUs, and verify it if this GPU and driver have not done so before.

    Args:
        spec: Parameters of the engine.
        directory: The files that `build` wrote.

    Raises:
        EngineError: The engine does not load.
        EngineBuildError: The output differs too much from the reference.
    """
    names = ", ".join(list_gpus()[index].name for index in spec.device)
    machine = f"{names}, driver {_standby.describe()['driver']}, {version(spec.device)}"
    choice = ContextChoice(spec.state, machine)
    loaded = _standby.ask(
        "load",
        library=_required_library(spec.device).module,
        directory=str(directory),
        devices=list(spec.device),
        streams=spec.streams,
        state=spec.state and str(spec.state),
        **choice.request_arguments(spec.streams),
    )
    choice.store(loaded)
    verify = partial(_standby.ask, "verify", directory=str(directory), precision=spec.precision)
    verify_once(spec.state, machine, spec.precision, verify)
    _references.clear()
    return RemoteEngine(_standby.detach(), loaded["slots"], loaded["input"], loaded["output"], loaded["contexts"])


def _required_library(device: Sequence[int]) -> Library:
    gpu = first_selected(device)
    library = choose_library(gpu.capability if gpu else None)
    if library is None:
        raise EngineUnavailable("TensorRT is not installed; pip install 'vsfdatrd[rtx]'")
    return library


def _builder_level() -> int | None:
    value = os.environ.get(LEVEL_VARIABLE)
    if value is not None and value not in tuple("012345"):
        raise ArgumentError(
            f"{LEVEL_VARIABLE}={value!r} is no level; set it to 0 (quick build) to 5 (quick engine), or unset it"
        )
    return None if value is None else int(value)


_references: dict[tuple[Checkpoint, int, int], tuple[bytes, int]] = {}
"""The latest reference, until an engine has passed verification."""

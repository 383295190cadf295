"""CUDA backend: FDAT-RD with kernels of this package on NVIDIA GPUs from compute capability 8.0 on.

It needs no library other than the driver, and no engine is built: an engine's files are the weights and fp32 outputs
for small test images. The outputs of every GPU are compared with these before its first frame, once for each driver
version and frame size. The kernels run in a worker process (`worker.py`). They have not run on a GPU yet, so
``backend="auto"`` does not use them.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.backends import memory, reference, weights_file
from vsfdatrd.backends.base import Engine, EngineSpec, as_build_errors
from vsfdatrd.backends.cuda.packing import TYPES
from vsfdatrd.backends.cuda.plan import assume_all_active, offsets_fit, unsupported_config_reason
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.backends.gpu.contexts import DEFAULT_STREAMS, ContextChoice
from vsfdatrd.backends.gpu.devices import first_selected, list_gpus
from vsfdatrd.backends.gpu.verification import verify_once
from vsfdatrd.backends.graphs import serialize
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.errors import InsufficientMemory
from vsfdatrd.kernels import manifest
from vsfdatrd.kernels.manifest import Manifest
from vsfdatrd.options import Precision
from vsfdatrd.workers.client import StandbyWorker

log = logging.getLogger(__name__)

GRAPH_VERSION = "2"
"""Version of the plan and of the way weights are packed."""
ANY_FRAME_SIZE = True
MIN_CAPABILITY = (8, 0)
"""Lowest compute capability that the kernels are compiled for."""
PROCESS_BYTES = 600 << 20
"""GPU memory of a CUDA context, kernels and small allocations: TensorRT's value, not measured for these kernels."""

_standby = StandbyWorker("vsfdatrd.backends.cuda.worker")
warm_up = _standby.warm_up
shutdown = _standby.shutdown


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Explain why the kernels cannot run on this machine; see `Backend.unavailable`."""
    for index in device:
        gpu = first_selected([index])
        if gpu is None:
            return "there is no NVIDIA GPU here, or no driver for it"
        if gpu.capability < MIN_CAPABILITY:
            major, minor = gpu.capability
            return f"{gpu.name} has compute capability {major}.{minor}, and the CUDA kernels need 8.0 or later"
    if _load_manifest() is None:
        return "this installation lacks the compiled CUDA kernels; install vsfdatrd again"
    return None


def unsupported_reason(model: ModelDescriptor) -> str | None:
    """Explain why the kernels, which are for FDAT-RD, cannot run a network; see `Backend.unsupported_reason`."""
    config = model.config
    if not isinstance(config, FdatRdConfig):
        return "it is not an FDAT-RD"
    if reason := unsupported_config_reason(config):
        return reason
    compiled = _load_manifest()
    widths = sorted({channels for _, channels, _ in compiled.kernels}) if compiled else [config.embed_dim]
    if config.embed_dim not in widths:
        return f"it has {config.embed_dim} channels, and there are kernels for {', '.join(map(str, widths))}"
    return None


def version(device: Sequence[int] = (0,)) -> str:
    """Return a digest of all kernels; see `Backend.version`."""
    compiled = _load_manifest()
    parts = sorted(kernel.sha256 for kernel in compiled.kernels.values()) if compiled else []
    return f"kernels {hashlib.sha256(''.join(parts).encode()).hexdigest()[:12]}"


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """List the precisions for which there are kernels; see `Backend.precisions`."""
    compiled, config = _load_manifest(), checkpoint.descriptor.config
    channels = config.embed_dim if isinstance(config, FdatRdConfig) else 0
    return tuple(precision for precision in TYPES if compiled and compiled.of_network(channels, precision))


def device_name(spec: EngineSpec) -> str:
    """Return a constant: the files are the same for every GPU. See `Backend.device_name`."""
    return "CUDA"


def identity(spec: EngineSpec) -> str:
    """Return an empty string: nothing else changes the files. See `Backend.identity`."""
    return ""


def memory_estimate(spec: EngineSpec) -> tuple[int, int]:
    """Estimate the GPU memory of an engine; see `Backend.memory_estimate`.

    Args:
        spec: Parameters of the engine.

    Returns:
        (bytes needed, bytes free on the GPU with the least free memory).

    Raises:
        InsufficientMemory: The frame has more values than the kernels can number.
    """
    if not offsets_fit(_fdat_rd_config(spec), spec.height, spec.width):
        error = InsufficientMemory(
            f"a frame of {spec.width}×{spec.height} pixels (padded) has more values than the CUDA kernels can number; "
            "upscale it in parts, for example tile=[1920, 1080]"
        )
        error.divide = True
        raise error
    return _needed_bytes(spec), min(_standby.ask("free", devices=list(spec.device)))


def build(spec: EngineSpec, directory: Path) -> None:
    """Write the weights, and fp32 outputs for verification.

    Args:
        spec: Parameters of the engine.
        directory: The directory to write to.

    Raises:
        EngineBuildError: The outputs cannot be computed.
    """
    weights_file.write_weights(directory, spec.checkpoint.tensors())
    with as_build_errors(), tempfile.TemporaryDirectory(prefix="graph-", dir=directory) as folder:
        graph = Path(folder, "graph.onnx")
        graph.write_bytes(serialize(spec.checkpoint.graph(*weights_file.verification_size(spec))))
        count = reference.compute_reference(graph, directory / weights_file.REFERENCE, graph)
    (directory / weights_file.SKY_LEVELS).write_text(json.dumps(count))


def load(spec: EngineSpec, directory: Path) -> Engine:
    """Load the network on its GPUs, and verify it if these GPUs and their driver have not done so at this size before.

    Args:
        spec: Parameters of the engine.
        directory: The files that `build` wrote.

    Raises:
        EngineError: The engine cannot be loaded.
        EngineBuildError: The output differs too much from the reference.
    """
    names = ", ".join(list_gpus()[index].name for index in spec.device)
    machine = f"{names}, driver {_standby.describe()['driver']}, {spec.width}×{spec.height}"
    choice = ContextChoice(spec.state, machine)
    loaded = _standby.ask(
        "load",
        directory=str(directory),
        height=spec.height,
        width=spec.width,
        precision=spec.precision,
        devices=list(spec.device),
        streams=spec.streams,
        **choice.request_arguments(spec.streams),
    )
    weights_file.check_scale(spec, loaded["output"], "cuda")
    choice.store(loaded)
    height, width = weights_file.verification_size(spec)
    verify = partial(_standby.ask, "verify", directory=str(directory), height=height, width=width)
    verify_once(spec.state, machine, spec.precision, partial(verify, precision=spec.precision))
    return RemoteEngine(_standby.detach(), loaded["slots"], loaded["input"], loaded["output"], loaded["contexts"])


def _load_manifest() -> Manifest | None:
    """Return the compiled kernels in the package; None if they are missing or damaged."""
    try:
        return manifest.load()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("the compiled CUDA kernels cannot be read: %s", error)
        return None


def _fdat_rd_config(spec: EngineSpec) -> FdatRdConfig:
    return cast(FdatRdConfig, spec.checkpoint.descriptor.config)


def _needed_bytes(spec: EngineSpec) -> int:
    """Return the bytes of GPU memory for a network with all branches active, its weights, and its frames."""
    config, network = _fdat_rd_config(spec), spec.checkpoint.descriptor
    compiled = manifest.load().of_network(config.embed_dim, spec.precision)
    tiles = {name: kernel.constants for name, kernel in compiled.items()}
    plan = make_plan(config, assume_all_active(config), tiles, spec.height, spec.width, TYPES[spec.precision])
    # One frame more than are in flight, for the fixed buffers that the network reads and writes.
    frames = spec.height * spec.width * memory.frame_bytes(network) * ((spec.streams or DEFAULT_STREAMS) + 1)
    return plan.arena + frames + 4 * network.parameters + PROCESS_BYTES

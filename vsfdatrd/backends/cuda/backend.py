"""CUDA backend: FDAT-RD with kernels of this package on NVIDIA GPUs from compute capability 8.0 on.

It needs no library but the driver, and nothing is built: an engine's files are the weights and fp32 outputs of one
small image. Every GPU is compared with those before its first frame, for each driver and each size of frame. It runs in
a worker process (`worker.py`). These kernels have not run on a GPU yet, so that ``backend="auto"`` leaves them out.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.backends import memory, reference, weights_file
from vsfdatrd.backends.base import Engine, EngineSpec
from vsfdatrd.backends.cuda.packing import TYPES
from vsfdatrd.backends.cuda.plan import assume_active, is_numerable, unsuitable
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.backends.gpu.contexts import STREAMS, ContextChoice
from vsfdatrd.backends.gpu.devices import first_selected, gpus
from vsfdatrd.backends.graphs import serialized
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.errors import EngineBuildError, EngineError, InsufficientMemory
from vsfdatrd.kernels import manifest
from vsfdatrd.kernels.manifest import Manifest
from vsfdatrd.options import Precision
from vsfdatrd.system.files import keep_if_possible, read_json_object
from vsfdatrd.workers.client import StandbyWorker

log = logging.getLogger(__name__)

GRAPH_VERSION = "1"
"""Version of the plan and of the way weights are packed."""
ANY_SIZE = True
REFERENCE = "verification.npy"
"""File with the fp32 output for `accuracy.drawing`."""
LEVELS = "verification.json"
"""File with `accuracy.count_levels` of the sky in fp32."""
VERIFIED = (120, 180)
"""Approximate height and width of the images used for verification; rounded to a multiple that the network takes."""
OLDEST = (8, 0)
"""Lowest compute capability that the kernels are compiled for."""
BYTES_OF_PROCESS = 600 << 20
"""GPU memory of a CUDA context, kernels and small allocations. As for TensorRT; not measured for these kernels."""

_standby = StandbyWorker("vsfdatrd.backends.cuda.worker")
shutdown = _standby.shutdown


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Explain why the kernels cannot run on this machine; see `Backend.unavailable`."""
    for index in device:
        gpu = first_selected([index])
        if gpu is None:
            return "there is no NVIDIA GPU here, or no driver for it"
        if gpu.capability < OLDEST:
            major, minor = gpu.capability
            return f"{gpu.name} has compute capability {major}.{minor}, and the CUDA kernels need 8.0 or later"
    if _kernels() is None:
        return "this installation lacks the compiled CUDA kernels; install vsfdatrd again"
    return None


def unsupported_reason(model: ModelDescriptor) -> str | None:
    """Explain why the kernels, which are those of FDAT-RD, cannot run a network; see `Backend.unsupported_reason`."""
    config = model.config
    if not isinstance(config, FdatRdConfig):
        return "it is not an FDAT-RD"
    if reason := unsuitable(config):
        return reason
    found = _kernels()
    widths = sorted({channels for _, channels, _ in found.kernels}) if found else [config.embed_dim]
    if config.embed_dim not in widths:
        return f"it has {config.embed_dim} channels, and there are kernels for {', '.join(map(str, widths))}"
    return None


def warm_up() -> None:
    """Start the worker that will run the engine."""
    _standby.start()


def version(device: Sequence[int] = (0,)) -> str:
    """Return a digest of all kernels; see `Backend.version`."""
    found = _kernels()
    parts = sorted(kernel.sha256 for kernel in found.kernels.values()) if found else []
    return f"kernels {hashlib.sha256(''.join(parts).encode()).hexdigest()[:12]}"


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """List the precisions that there are kernels for; see `Backend.precisions`."""
    found, config = _kernels(), checkpoint.description.config
    channels = config.embed_dim if isinstance(config, FdatRdConfig) else 0
    return tuple(precision for precision in TYPES if found and found.supports(channels, precision))


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
    if not is_numerable(_config(spec), spec.height, spec.width):
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
    weights_file.write(directory, spec.checkpoint.tensors())
    try:
        with tempfile.TemporaryDirectory(prefix="graph-", dir=directory) as folder:
            graph = Path(folder, "graph.onnx")
            graph.write_bytes(serialized(spec.checkpoint.graph(*_verified(spec))))
            count = reference.compute(graph, directory / REFERENCE, graph)
    except EngineBuildError:
        raise
    except EngineError as error:
        raise EngineBuildError(str(error)) from error
    (directory / LEVELS).write_text(json.dumps(count))


def load(spec: EngineSpec, directory: Path) -> Engine:
    """Load the network on its GPUs, and verify it if these GPUs and their driver have not done so at this size before.

    Args:
        spec: Parameters of the engine.
        directory: The files that `build` wrote.

    Raises:
        EngineError: The engine cannot be loaded.
        EngineBuildError: The output differs too much from the reference.
    """
    names = ", ".join(gpus()[index].name for index in spec.device)
    who = f"{names}, driver {_standby.describe()['driver']}, {spec.width}×{spec.height}"
    choice = ContextChoice(spec.state, who)
    loaded = _standby.ask(
        "load",
        directory=str(directory),
        height=spec.height,
        width=spec.width,
        precision=spec.precision,
        devices=list(spec.device),
        streams=spec.streams,
        **choice.arguments(spec.streams),
    )
    scale = spec.checkpoint.description.scale
    if loaded["output"] != [3, spec.height * scale, spec.width * scale]:
        raise EngineError("the cuda engine belongs to another network, of a different scale")
    choice.keep(loaded)
    note = spec.state and spec.state / "verified.json"
    verified = read_json_object(note)
    if who not in verified:
        height, width = _verified(spec)
        psnr = _standby.ask("verify", directory=str(directory), height=height, width=width, precision=spec.precision)
        log.info("%s agrees with fp32 to %.1f dB on %s", spec.precision, psnr, who)
        if note:
            keep_if_possible(note, json.dumps(verified | {who: round(psnr, 2)}).encode())
    return RemoteEngine(_standby.detach(), loaded["slots"], loaded["input"], loaded["output"], loaded["contexts"])


def _kernels() -> Manifest | None:
    """Return the compiled kernels in the package; None if they are missing or damaged."""
    try:
        return manifest.load()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("the compiled CUDA kernels cannot be read: %s", error)
        return None


def _config(spec: EngineSpec) -> FdatRdConfig:
    return cast(FdatRdConfig, spec.checkpoint.description.config)


def _verified(spec: EngineSpec) -> tuple[int, int]:
    multiple = spec.checkpoint.description.size.multiple_of
    height, width = (max(multiple, side // multiple * multiple) for side in VERIFIED)
    return height, width


def _needed_bytes(spec: EngineSpec) -> int:
    """Return the bytes of GPU memory for a network with every part at work, its weights, and its frames."""
    config, network = _config(spec), spec.checkpoint.description
    found = manifest.load()
    tiles = {
        name: kernel.constants
        for (name, channels, precision), kernel in found.kernels.items()
        if (channels, precision) == (config.embed_dim, spec.precision)
    }
    plan = make_plan(config, assume_active(config), tiles, spec.height, spec.width, TYPES[spec.precision])
    # One frame more than are in flight: the buffers that the network reads and writes.
    frames = spec.height * spec.width * memory.frame_bytes(network) * ((spec.streams or STREAMS) + 1)
    return plan.arena + frames + 4 * network.parameters + BYTES_OF_PROCESS

"""OpenVINO backend, for all networks on CPUs.

The library runs in a worker process (`worker.py`). An engine's file is the compiled model as exported by OpenVINO,
which loads in half the time of compiling it again. It depends on the library's version and on the CPU, and both are
part of its identity in the cache.
"""

import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path

import psutil

from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.backends import memory
from vsfdatrd.backends.base import Engine, EngineSpec, as_build_errors
from vsfdatrd.backends.graphs import serialize
from vsfdatrd.backends.network_graphs import create_graph, sky_size
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.errors import PrecisionUnfit
from vsfdatrd.graph import GRAPH_VERSION as GRAPH_VERSION
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.options import Precision
from vsfdatrd.workers.client import StandbyWorker

log = logging.getLogger(__name__)

ANY_FRAME_SIZE = False

# Memory of one frame in flight including its buffers, in bytes for each float32 value of a kind of tensor.
ACTIVATION_BYTES = {
    # 23.0 to 23.4 for medium from 240×240 to 720×540 (`python -m benchmarks.memory --sizes`)
    "fdat_rd.ffn": 24,
    # 32.6 to 37.5 for tiny, medium and large from 240×240 to 480×480
    "fdat.channels": 38,
    # 3.5 values of 4 bytes for pa_up and 2.2 to 2.6 for the others (`python -m benchmarks.tails`)
    "tail.pa_up": 4 * 3.6,
    "tail": 4 * 2.7,
    "artcnn": 4,
    # 2.4 to 8.3 values of 4 bytes for small networks (DAT, HAT, ESRGAN, FDAT, RealCUGAN, SwinIR) at 240×240, including
    # about 60 MB of code
    "largest": 4 * 7,
}
PROCESS_BYTES = 200 << 20

# Default number of frames computed at once. On 2 cores, two streams of one core each gave 2 to 4 % more frames per
# second than both cores on one frame by the best times, 6 to 14 % by the medians of a busy machine (120×120 to
# 720×540): no core waits for the other at every layer, and copying and color conversion of one frame overlap with the
# network of the other. A single frame takes nearly twice as long.
STREAMS = 2

# Huge pages gave 1.59 times the frames a second on a virtual machine with slow memory (docs/cpu.md#openvino).
_standby = StandbyWorker("vsfdatrd.backends.openvino.worker", huge_pages=True)
warm_up = _standby.warm_up
shutdown = _standby.shutdown


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Return None if OpenVINO is installed; see `Backend.unavailable`."""
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed; pip install openvino"
    return None


def unsupported_reason(model: ModelDescriptor) -> None:
    """Return None: every network has a graph; see `Backend.unsupported_reason`."""


def version(device: Sequence[int] = (0,)) -> str:
    """Return OpenVINO's version; see `Backend.version`."""
    return installed_version("openvino")


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """List bf16 or fp16 first if the CPU supports it, and fp32 last; see `Backend.precisions`.

    Half precisions are verified when an engine is built.
    """
    abilities = _standby.describe()["abilities"]
    half: tuple[tuple[str, Precision], ...] = (("BF16", "bf16"), ("FP16", "fp16"))
    return (*(name for ability, name in half if ability in abilities), "fp32")


def device_name(spec: EngineSpec) -> str:
    """Return the CPU's name and the precisions it supports; see `Backend.device_name`."""
    description = _standby.describe()
    return f"{description['name']} ({' '.join(description['abilities'])})"


def identity(spec: EngineSpec) -> str:
    """Return the number of streams, for which OpenVINO compiles the model; see `Backend.identity`."""
    return f"streams={spec.streams or 'auto'}"


def memory_estimate(spec: EngineSpec) -> tuple[int, int]:
    """Estimate buffers and frames in main memory; see `Backend.memory_estimate`."""
    return _needed_bytes(spec, _stream_count(spec)), memory.free_bytes()


def build(spec: EngineSpec, directory: Path) -> None:
    """Compile the graph, verify a half precision against fp32, and export the compiled model.

    Args:
        spec: Parameters of the engine.
        directory: The directory to write to.

    Raises:
        PrecisionUnfit: The half precision differs too much from fp32.
        EngineBuildError: OpenVINO cannot compile the network.
    """
    sizes = [(spec.height, spec.width)]
    if spec.precision != "fp32":  # add the sky's size, if that is different
        sizes = list(dict.fromkeys((*sizes, sky_size(spec.checkpoint.descriptor, *sizes[0]))))
    with tempfile.TemporaryDirectory(prefix="graphs-", dir=directory) as folder:
        graphs = [_write_graph(spec, Path(folder), *size, spec.precision) for size in sizes]
        exact = [_write_graph(spec, Path(folder), *size, "fp32") for size in sizes] if spec.precision != "fp32" else []
        with as_build_errors():
            psnr = _standby.ask(
                "build",
                graph=graphs[0],
                directory=str(directory),
                precision=spec.precision,
                streams=_stream_count(spec),
                exact=exact[0] if exact else None,
                skies=[graphs[1], exact[1]] if len(exact) > 1 else None,
            )
    if psnr is not None:
        log.info("%s agrees with fp32 to %.1f dB", spec.precision, psnr)


def _write_graph(spec: EngineSpec, folder: Path, height: int, width: int, precision: Precision) -> str:
    """Write the graph for a size and precision, and return its path.

    Raises:
        PrecisionUnfit: A weight exceeds the range of the precision.
    """
    path = folder / f"{width}x{height}-{precision}.onnx"
    try:
        path.write_bytes(serialize(create_graph(spec.checkpoint, height, width, GraphTarget(precision))))
    except OverflowError as error:
        raise PrecisionUnfit(f"{spec.checkpoint.path.name} cannot be computed in {precision}: {error}.") from error
    return str(path)


def load(spec: EngineSpec, directory: Path) -> Engine:
    """Load an engine from its exported model.

    Args:
        spec: Parameters of the engine.
        directory: The files that `build` wrote.

    Raises:
        EngineError: OpenVINO does not load the model.
    """
    streams = _stream_count(spec)
    loaded = _standby.ask("load", directory=str(directory), precision=spec.precision, streams=streams)
    return RemoteEngine(_standby.detach(), loaded["slots"], loaded["input"], loaded["output"])


def _needed_bytes(spec: EngineSpec, streams: int) -> int:
    """Bytes needed for `streams` frames at once, including the process."""
    network = spec.checkpoint.descriptor
    activations = memory.activation_bytes(network.config, ACTIVATION_BYTES)
    frame = spec.height * spec.width * (activations + memory.frame_bytes(network))
    return int(streams * frame + 12 * network.parameters + PROCESS_BYTES)


def _stream_count(spec: EngineSpec) -> int:
    """Return the number of frames computed at once: as requested, else `STREAMS`, or 1 if memory is scarce."""
    if spec.streams:
        return spec.streams
    # The total memory and not the free memory, so that the result is the same every time.
    return STREAMS if 2 * _needed_bytes(spec, STREAMS) <= psutil.virtual_memory().total else 1

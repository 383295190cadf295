"""The OpenVINO engine: the default on CPUs. It runs in a process of its own (`openvino_process.py`); see `process.py`.

Its artefact is the compiled model as OpenVINO exports it, which loads in half the time of compiling it again. It is
bound to the library's version and to the processor, and both are part of its identity in the store.
"""

import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import psutil

from vsfdatrd.archs.fdat import Config, FdatConfig
from vsfdatrd.backends.base import Engine, EngineSpec
from vsfdatrd.backends.graphs import serialized
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.backends.traced_graphs import graph_for, sky_size
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineBuildError, EngineError, PrecisionUnfit
from vsfdatrd.graph import GRAPH_VERSION as GRAPH_VERSION
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.options import Precision
from vsfdatrd.workers.client import StandbyWorker

log = logging.getLogger(__name__)

ANY_SIZE = False

# What one frame in flight takes, its buffers included, per token of the map and channel of the feed-forward network, in
# float32: 23.0 to 23.4 bytes for medium from 240×240 to 720×540 (`python -m benchmarks.memory --sizes`).
BYTES_PER_TOKEN_CHANNEL = 24
# Of an FDAT, per token and channel of a token: 32.6 to 37.5 bytes for tiny, medium and large from 240×240 to 480×480.
BYTES_PER_FDAT_CHANNEL = 38
# Where a tail takes more than that, it is so many float32 tensors of its largest one's size: 3.5 of pa_up, 2.2 to 2.6
# of the others were measured (`python -m benchmarks.tails`).
TAIL_AT_ONCE = {"pa_up": 3.6}
OTHER_TAILS_AT_ONCE = 2.7
# Of other networks, what one frame takes, as so many float32 tensors of their largest one's size: 2.4 to 8.3 were
# measured for small ones (DAT, HAT, ESRGAN, FDAT, RealCUGAN, SwinIR) at 240×240, some 60 MB of code and all.
LARGEST_AT_ONCE = 7
BYTES_OF_PROCESS = 200 << 20

# Frames computed at once unless the script says otherwise. On 2 cores two streams of one core each gave 2 to 4 % more
# frames a second than both cores on one frame by the best times, 6 to 14 % by the medians of a busy machine (120×120 to
# 720×540): no core waits for the other at every layer, and one frame's copying and colour conversion hides behind the
# other's network. A single frame takes nearly twice as long.
STREAMS = 2


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """None if OpenVINO is installed."""
    if importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed; pip install openvino"
    return None


def warm_up() -> None:
    """Start the process that will run the engine; it imports OpenVINO meanwhile."""
    _spare.start()


def rest() -> None:
    """End the process that `warm_up` started, if it did not become an engine's."""
    _spare.rest()


def version(device: Sequence[int] = (0,)) -> str:
    """OpenVINO's version."""
    return installed_version("openvino")


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """bf16 or fp16 first where the processor computes in it, fp32 last; half precisions are verified when built."""
    able = _spare.describe()["abilities"]
    half: tuple[tuple[str, Precision], ...] = (("BF16", "bf16"), ("FP16", "fp16"))
    return (*(name for ability, name in half if ability in able), "fp32")


def device_name(job: EngineSpec) -> str:
    """The processor and what it can compute in."""
    about = _spare.describe()
    return f"{about['name']} ({' '.join(about['abilities'])})"


def identity(job: EngineSpec) -> str:
    """The streams, which OpenVINO compiles for."""
    return f"streams={job.streams or 'auto'}"


def memory_estimate(job: EngineSpec) -> tuple[int, int]:
    """(bytes the engine's buffers and frames will need, bytes free in the machine)."""
    return _needed(job, _streams(job)), int(psutil.virtual_memory().available)


def build(job: EngineSpec, directory: Path) -> None:
    """Compile the graph for the job's size, verify it, and export it.

    Raises EngineBuildError if OpenVINO cannot compile it, or if a half precision strays too far from fp32.
    """
    sizes = [(job.height, job.width)]
    if job.precision != "fp32":  # and then the sky's, where that is another
        sizes = list(dict.fromkeys((*sizes, sky_size(job.checkpoint.description, *sizes[0]))))
    with tempfile.TemporaryDirectory(prefix="graphs-", dir=directory) as folder:
        graphs = [_write(job, Path(folder), *size, job.precision) for size in sizes]
        exact = [_write(job, Path(folder), *size, "fp32") for size in sizes] if job.precision != "fp32" else []
        try:
            psnr = _spare.ask(
                "build", graph=graphs[0], directory=str(directory), exact=exact[0] if exact else None,
                skies=[graphs[1], exact[1]] if len(exact) > 1 else None, **_how(job),
            )  # fmt: skip
        except EngineBuildError:
            raise
        except EngineError as error:
            raise EngineBuildError(str(error)) from error
    if psnr is not None:
        log.info("%s agrees with fp32 to %.1f dB", job.precision, psnr)


def _write(job: EngineSpec, folder: Path, height: int, width: int, precision: Precision) -> str:
    """Write the job's graph for a size and precision. -> its path. Raises PrecisionUnfit."""
    path = folder / f"{width}x{height}-{precision}.onnx"
    try:
        path.write_bytes(serialized(graph_for(job.checkpoint, height, width, GraphTarget(precision))))
    except OverflowError as error:
        raise PrecisionUnfit(f"{job.checkpoint.path.name} cannot be computed in {precision}: {error}.") from error
    return str(path)


def load(job: EngineSpec, directory: Path) -> Engine:
    """The engine from its exported model. Raises EngineError if OpenVINO does not take it."""
    loaded = _spare.ask("load", directory=str(directory), **_how(job))
    return RemoteEngine(_spare.take(), loaded["slots"], loaded["input"], loaded["output"])


def _needed(job: EngineSpec, streams: int) -> int:
    """Bytes for so many frames at once, the process included."""
    description = job.checkpoint.description
    pixels = job.height * job.width
    if config := description.written:
        tail = 4 * config.largest_in_tail * TAIL_AT_ONCE.get(config.upsampler, OTHER_TAILS_AT_ONCE)
        activations = max(_body(config), tail) / config.unshuffle**2
    elif description.artcnn:
        activations = 4 * description.artcnn.held
    else:
        activations = 4 * description.largest * LARGEST_AT_ONCE
    frame = pixels * activations + 12 * pixels * (1 + description.scale**2)
    return int(streams * frame + 12 * description.parameters + BYTES_OF_PROCESS)


def _body(config: Config) -> int:
    """Bytes per token before the tail."""
    if isinstance(config, FdatConfig):
        return config.embed_dim * BYTES_PER_FDAT_CHANNEL
    return config.ffn_dim * BYTES_PER_TOKEN_CHANNEL


def _streams(job: EngineSpec) -> int:
    """How many frames are computed at once: what was asked for, else `STREAMS` if they take half the memory at most.

    It goes by the machine's memory and not by what is free now, so that it is the same every time.
    """
    if job.streams:
        return job.streams
    return STREAMS if 2 * _needed(job, STREAMS) <= psutil.virtual_memory().total else 1


def _how(job: EngineSpec) -> dict[str, Any]:
    return {"precision": job.precision, "streams": _streams(job)}


_spare = StandbyWorker("vsfdatrd.backends.openvino.worker")

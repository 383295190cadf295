"""The native engine: FDAT-RD by kernels of our own, for processors with AVX2; the default where nothing wider is there.

It computes in integers of 16 bits with sums of 32 (see `_native/cpu.h`), 1.7 times as fast as OpenVINO in fp32 where
both were measured (docs/cpu.md). It runs in a process of its own (`native_process.py`), so that a crash is an error and
not the end of the encode. Its artefact is the weights, written once they were verified against fp32.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from vsfdatrd.backends import reference
from vsfdatrd.backends.base import Engine, EngineSpec
from vsfdatrd.backends.graphs import graph_of, serialized
from vsfdatrd.backends.native import kernels as native_kernels
from vsfdatrd.backends.native.network import unsuitable
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineBuildError, EngineError
from vsfdatrd.options import Precision
from vsfdatrd.workers.client import StandbyWorker

log = logging.getLogger(__name__)

GRAPH_VERSION = "3"
"""Raised when the kernels would give other pictures: then they are verified again."""
ANY_SIZE = True
WEIGHTS = "weights.npz"
REFERENCE = "reference.npy"
VERIFIED = (120, 180)
"""Height and width of the picture that is verified, about: a multiple of what the network needs."""

THREADS = 4
"""Cores that share a frame unless the script says otherwise: the more they are, the more rows at the edges of their
stretches are computed twice."""
STREAMS = (2, 8)
"""Fewest and most frames computed at once unless the script says otherwise. One frame's copying and colour conversion
hides behind the other's network."""
BYTES_OF_PROCESS = 100 << 20


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """None if the processor has AVX2."""
    if reason := native_kernels.unsupported():
        return f'{reason}; leave backend out, or give backend="openvino"'
    return None


def unsuited(checkpoint: Checkpoint) -> str | None:
    """Why the kernels cannot run this network; None if they can."""
    config = checkpoint.description.config
    if config is None:
        return "it is no FDAT-RD"
    return unsuitable(config)


def preferred() -> bool:
    """Whether `auto` tries it before OpenVINO, which has kernels twice as wide where there is AVX-512."""
    return native_kernels.unsupported() is None and not native_kernels.wider()


def warm_up() -> None:
    """Start the process that will run the engine."""
    _spare.start()


def rest() -> None:
    """End the process that `warm_up` started, if it did not become an engine's."""
    _spare.rest()


def version(device: Sequence[int] = (0,)) -> str:
    """The engine changes with `GRAPH_VERSION` alone."""
    return "AVX2"


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """Integers of 16 bits, and nothing else."""
    return ("int16",)


def device_name(job: EngineSpec) -> str:
    """Any processor with AVX2 runs the same artefact and gives the same picture."""
    return "AVX2"


def identity(job: EngineSpec) -> str:
    """Nothing else."""
    return ""


def memory_estimate(job: EngineSpec) -> tuple[int, int]:
    """(bytes the engine's buffers and frames will need, bytes free in the machine)."""
    return _needed(job, _streams(job)), int(psutil.virtual_memory().available)


def build(job: EngineSpec, directory: Path) -> None:
    """Write the weights, and hold what the kernels make of two pictures against OpenVINO's fp32.

    Raises EngineBuildError if they stray too far, EngineUnavailable or EngineError as OpenVINO does.
    """
    np.savez(directory / WEIGHTS, allow_pickle=False, **job.checkpoint.tensors())
    height, width = _verified(job)
    graph = directory / "graph.onnx"
    graph.write_bytes(serialized(graph_of(job.checkpoint, height, width)))
    try:
        count = reference.compute(graph, directory / REFERENCE, graph)
        psnr = _spare.ask(
            "verify", directory=str(directory), height=height, width=width, threads=_cores(), expected=count
        )
    except EngineBuildError:
        raise
    except EngineError as error:
        raise EngineBuildError(str(error)) from error
    finally:
        graph.unlink()
        (directory / REFERENCE).unlink(missing_ok=True)
    log.info("the native engine agrees with fp32 to %.1f dB", psnr)


def load(job: EngineSpec, directory: Path) -> Engine:
    """The engine from its weights. Raises EngineError if they cannot be read."""
    streams = _streams(job)
    threads = max(1, math.ceil(_cores() / streams))
    loaded = _spare.ask(
        "load", directory=str(directory), height=job.height, width=job.width, streams=streams, threads=threads
    )
    scale = job.checkpoint.description.scale
    if loaded["output"] != [3, job.height * scale, job.width * scale]:
        raise EngineError("the native engine is of another network, which enlarges otherwise")
    return RemoteEngine(_spare.take(), streams, loaded["input"], loaded["output"])


def _cores() -> int:
    """Cores this process may use; what shares a core would only wait for it."""
    able = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return max(1, min(able or 1, psutil.cpu_count(logical=False) or 1))


def _verified(job: EngineSpec) -> tuple[int, int]:
    config = job.checkpoint.description.config
    multiple = config.multiple if config else 1
    height, width = (max(multiple, side // multiple * multiple) for side in VERIFIED)
    return height, width


def _streams(job: EngineSpec) -> int:
    """Frames computed at once: what was asked for, else as many as take half the machine's memory at most."""
    if job.streams:
        return job.streams
    fewest, most = STREAMS
    streams = min(max(fewest, _cores() // THREADS), most)
    while streams > 1 and 2 * _needed(job, streams) > psutil.virtual_memory().total:
        streams -= 1
    return streams


def _needed(job: EngineSpec, streams: int) -> int:
    """Bytes for so many frames at once, the process included."""
    description = job.checkpoint.description
    config = description.config
    if config is None:
        return 0
    pixels = job.height * job.width
    # four maps of tokens, the planes before the last convolution, the frame as it comes and goes
    frame = pixels * (16 * config.embed_dim / config.unshuffle**2 + 24 * config.scale**2 + 12)
    scratch = native_kernels.scratch_bytes(
        job.width // config.unshuffle, config.embed_dim, config.ffn_dim, config.dict_tokens
    )
    return int(streams * frame + max(_cores(), streams) * scratch + 8 * description.parameters + BYTES_OF_PROCESS)


_spare = StandbyWorker("vsfdatrd.backends.native.worker")

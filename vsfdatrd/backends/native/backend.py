"""Native backend: FDAT-RD with kernels of this package for CPUs with AVX2; see `is_preferred_to_openvino`.

It computes in 16-bit integers with 32-bit sums (see `_native/cpu.h`), 1.7 times as fast as OpenVINO in fp32 on the
processor on which both were measured (docs/cpu.md). It runs in a worker process (`worker.py`), so a crash becomes an
error message and does not end the encode. An engine's file contains the weights and is written after they have been
verified against fp32.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import psutil

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.backends import memory, reference, weights_file
from vsfdatrd.backends.base import Engine, EngineSpec, as_build_errors
from vsfdatrd.backends.graphs import serialize
from vsfdatrd.backends.native import kernels as native_kernels
from vsfdatrd.backends.native.network import unsupported_config_reason
from vsfdatrd.backends.remote_engine import RemoteEngine
from vsfdatrd.options import Precision
from vsfdatrd.system.processor import usable_cpus
from vsfdatrd.workers.client import StandbyWorker

log = logging.getLogger(__name__)

GRAPH_VERSION = "5"
"""Incremented when the kernels would give different images; engines are then verified again."""
KERNELS_VERSION = "2"
"""Incremented when the kernels become faster; ``auto`` then measures again."""
ANY_FRAME_SIZE = True

THREADS = 4
"""Default number of cores that share a frame.

With more cores, more rows at the edges of the threads' ranges are computed twice.
"""
STREAMS = (2, 8)
"""Smallest and largest default number of frames computed at once.

Copying and color conversion of one frame overlap with the network of another.
"""
PROCESS_BYTES = 100 << 20

_standby = StandbyWorker("vsfdatrd.backends.native.worker")
warm_up = _standby.warm_up
shutdown = _standby.shutdown


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Return None if the CPU has AVX2; see `Backend.unavailable`."""
    if reason := native_kernels.unsupported_reason():
        return f'{reason}; leave backend out, or give backend="openvino"'
    return None


def unsupported_reason(model: ModelDescriptor) -> str | None:
    """Explain why the kernels, which are for FDAT-RD, cannot run a network; see `Backend.unsupported_reason`."""
    return unsupported_config_reason(model.config) if isinstance(model.config, FdatRdConfig) else "it is not an FDAT-RD"


def is_preferred_to_openvino() -> bool:
    """Return whether ``auto`` prefers this backend if the backends' speed has not been measured.

    OpenVINO is expected to be faster if it can use instructions that the kernels do not use: AVX-512 without VNNI.
    """
    if native_kernels.unsupported_reason() is not None:
        return False
    return native_kernels.has_vnni() or not native_kernels.has_avx512()


def version(device: Sequence[int] = (0,)) -> str:
    """Return the version and the instructions of the kernels, on which their speed depends; see `Backend.version`."""
    with_amx = " AMX" if native_kernels.has_amx_int8() else ""
    return f"{KERNELS_VERSION} {native_kernels.instruction_set()}{with_amx}"


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """List the only precision, 16-bit integers. See `Backend.precisions`."""
    return ("int16",)


def device_name(spec: EngineSpec) -> str:
    """Return the instructions: all CPUs with the same instructions give the same image. See `Backend.device_name`."""
    return native_kernels.instruction_set()


def identity(spec: EngineSpec) -> str:
    """Return an empty string: nothing else changes the files. See `Backend.identity`."""
    return ""


def memory_estimate(spec: EngineSpec) -> tuple[int, int]:
    """Estimate buffers and frames in main memory; see `Backend.memory_estimate`."""
    return _needed_bytes(spec, _stream_count(spec)), memory.free_bytes()


def build(spec: EngineSpec, directory: Path) -> None:
    """Write the weights, and compare the output of the kernels for two images with an fp32 reference.

    Args:
        spec: Parameters of the engine.
        directory: The directory to write to.

    Raises:
        PrecisionUnfit: The output differs too much.
        EngineBuildError: The comparison failed with an error.
    """
    weights_file.write_weights(directory, spec.checkpoint.tensors())
    height, width = weights_file.verification_size(spec)
    graph, result = directory / "graph.onnx", directory / weights_file.REFERENCE
    graph.write_bytes(serialize(spec.checkpoint.graph(height, width)))
    with as_build_errors():
        count, threads = reference.compute_reference(graph, result, graph), _physical_cores()
        psnr = _standby.ask(
            "verify", directory=str(directory), height=height, width=width, threads=threads, expected=count
        )
    graph.unlink()
    result.unlink()
    log.info("the native engine agrees with fp32 to %.1f dB", psnr)


def load(spec: EngineSpec, directory: Path) -> Engine:
    """Load an engine from its weights.

    Args:
        spec: Parameters of the engine.
        directory: The files that `build` wrote.

    Raises:
        EngineError: They cannot be read, or are of another network.
    """
    streams = _stream_count(spec)
    threads = max(1, math.ceil(_physical_cores() / streams))
    loaded = _standby.ask(
        "load", directory=str(directory), height=spec.height, width=spec.width, streams=streams, threads=threads
    )
    log.debug("the native engine uses %s", loaded["instructions"])
    weights_file.check_scale(spec, loaded["output"], "native")
    return RemoteEngine(_standby.detach(), streams, loaded["input"], loaded["output"])


def _physical_cores() -> int:
    """Return the number of physical cores this process may use; a second thread on a core gains nothing."""
    usable = len(usable_cpus())
    return min(usable, psutil.cpu_count(logical=False) or usable)  # unknown on some systems, such as sandboxes


def _stream_count(spec: EngineSpec) -> int:
    """Return the requested number of frames computed at once; by default, only as many as fit into half the memory."""
    if spec.streams:
        return spec.streams
    streams = max(min(_physical_cores() // THREADS, STREAMS[1]), STREAMS[0])
    while streams > 1 and 2 * _needed_bytes(spec, streams) > psutil.virtual_memory().total:
        streams -= 1
    return streams


def _needed_bytes(spec: EngineSpec, streams: int) -> int:
    """Return the bytes needed for `streams` frames at once, including the process."""
    descriptor = spec.checkpoint.descriptor
    config = cast(FdatRdConfig, descriptor.config)
    pixels = spec.height * spec.width
    # four feature maps, and the planes before the last convolution
    maps = 16 * config.embed_dim / config.unshuffle**2 + 12 * config.scale**2
    frame = pixels * (maps + memory.frame_bytes(descriptor))
    scratch = native_kernels.scratch_bytes(
        spec.width // config.unshuffle, config.embed_dim, config.ffn_dim, config.dict_tokens
    )
    return int(streams * frame + max(_physical_cores(), streams) * scratch + 8 * descriptor.parameters + PROCESS_BYTES)

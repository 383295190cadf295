"""Build engines ahead of time, for this machine or for GPUs of other machines."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsfdatrd.backends import network_graphs, selection
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.backends.tensorrt.library import RTX, parse_target
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Key
from vsfdatrd.checkpoint import open_requested
from vsfdatrd.errors import ArgumentError, EngineUnavailable
from vsfdatrd.options import Options, Precision
from vsfdatrd.system.progress import report_progress


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine in the cache."""

    description: str
    """Backend and precision; for other GPUs also the library and the architecture."""
    path: Path
    size: int
    """Bytes."""
    seconds: float
    """Build time; almost 0 if it was cached."""


def build(options: Options, width: int, height: int) -> BuiltEngine:
    """Build, verify and cache the engine that `upscale` uses on this machine.

    Args:
        options: The options of `upscale`.
        width: Frame width in pixels.
        height: Frame height in pixels.

    Returns:
        The cached engine.

    Raises:
        FdatrdError: As for `upscale`.
    """
    store = EngineCache(options.cache)
    checkpoint = open_requested(options, store.metadata("checkpoint"))
    start = time.monotonic()
    pool = selection.open_engine(checkpoint, height, width, options, store)
    seconds = time.monotonic() - start
    entry = next(entry for entry in store.entries() if entry.digest == pool.digest)
    del pool
    return BuiltEngine(", ".join((entry.fields["engine"], entry.fields["precision"])), entry.path, entry.size, seconds)


def build_for(options: Options, width: int, height: int, targets: Sequence[str]) -> list[BuiltEngine]:
    """Build and cache TensorRT-RTX engines for GPU architectures; no GPU is needed.

    An engine is verified when it is first used. Precision ``auto`` means fp16 here, since the accuracy check needs a
    GPU.

    Args:
        options: The options of `upscale`.
        width: Frame width in pixels.
        height: Frame height in pixels.
        targets: GPU architectures such as ``sm89``.

    Returns:
        One cached engine per architecture.

    Raises:
        ArgumentError: The options or an architecture cannot be used.
        EngineUnavailable: `tensorrt_rtx` is not installed.
        EngineBuildError: A build failed.
        StoreError: The cache directory cannot be used.
    """
    if options.backend not in ("auto", "tensorrt"):
        raise ArgumentError(f"backend={options.backend!r} has no engines for other GPUs; leave it out with --for")
    if not RTX.installed:
        raise EngineUnavailable("engines for other GPUs need tensorrt_rtx; pip install 'vsfdatrd[rtx]'")
    store = EngineCache(options.cache)
    checkpoint = open_requested(options, store.metadata("checkpoint"))
    frame = selection.padded_size(checkpoint.descriptor, height, width)
    precision: Precision = "fp16" if options.precision == "auto" else options.precision  # type: ignore[assignment]
    spec = EngineSpec(checkpoint, *frame, precision)
    try:
        return [_build_for(store, spec, target) for target in dict.fromkeys(map(parse_target, targets))]
    finally:
        tensorrt.shutdown()


def _build_for(store: EngineCache, spec: EngineSpec, target: str) -> BuiltEngine:
    """Build and cache the engine for one GPU architecture, such as ``sm89``."""
    checkpoint, precision = spec.checkpoint, spec.precision
    model = checkpoint.descriptor
    if target == "sm75" and precision not in ("fp16", "mixed"):
        raise ArgumentError(f"sm75 (RTX 20) has no engines in {precision}; build fp16 or mixed for it")
    key = Key(  # must equal the key that `selection` computes on a machine with such a GPU
        weights=model.sha256,
        graph=tensorrt.GRAPH_VERSION,
        shape=f"{spec.width}x{spec.height}",
        precision=precision,
        engine=f"tensorrt {RTX.module} {RTX.version}",
        device=target,
        options=model.architecture.graph_identity(model.config),
    )
    start = time.monotonic()

    def build_engine(directory: Path) -> None:
        with report_progress(f"building the tensorrt engine of {checkpoint.path.name} for {target}, {precision}"):
            network_graphs.check_trace(checkpoint)
            tensorrt.build_for(spec, directory, RTX, [target])

    path = store.open(key, build_engine, lambda directory: directory)
    size = sum(file.stat().st_size for file in path.iterdir())
    return BuiltEngine(f"{RTX.module} {RTX.version}, {precision}, {target}", path, size, time.monotonic() - start)

"""Engines built before they are needed: on this machine for itself, or for GPUs of other machines."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsfdatrd.backends import graphs, selection, traced_graphs
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.backends.tensorrt.library import RTX, parse_target
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Key
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import ArgumentError, EngineUnavailable
from vsfdatrd.options import Options, Precision
from vsfdatrd.system.progress import working
from vsfdatrd.weights.catalog import resolve


@dataclass(frozen=True, slots=True)
class Built:
    """An engine that is in the cache now."""

    what: str
    path: Path
    size: int
    """Bytes."""
    seconds: float
    """How long it took; next to nothing if it was there before."""


def build(options: Options, width: int, height: int) -> Built:
    """Build, verify and keep the engine that `upscale` with these options takes for frames of this size, here.

    Raises what `upscale` raises.
    """
    store = EngineCache(options.cache)
    checkpoint = _opened(options, store)
    start = time.monotonic()
    lanes = selection.open_engine(checkpoint, height, width, options, store)
    seconds = time.monotonic() - start
    entry = next(entry for entry in store.entries() if entry.digest == lanes.digest)
    del lanes
    return Built(", ".join((entry.fields["engine"], entry.fields["precision"])), entry.path, entry.size, seconds)


def build_for(options: Options, width: int, height: int, targets: Sequence[str]) -> list[Built]:
    """Build and keep TensorRT-RTX engines for kinds of GPU, such as ``sm89``; no GPU is needed.

    An engine is verified where it is first used. precision ``auto`` is fp16 here: what passes, only a GPU can tell.
    Raises ArgumentError, EngineUnavailable if `tensorrt_rtx` is not installed, EngineBuildError, StoreError.
    """
    if options.backend not in ("auto", "tensorrt"):
        raise ArgumentError(f"backend={options.backend!r} is not built for GPUs; leave it out with --for")
    if not RTX.installed:
        raise EngineUnavailable("engines for other GPUs need tensorrt_rtx; pip install 'vsfdatrd[rtx]'")
    store = EngineCache(options.cache)
    checkpoint = _opened(options, store)
    frame = selection.frame_of(checkpoint.description, height, width)
    precision: Precision = "fp16" if options.precision == "auto" else options.precision  # type: ignore[assignment]
    job = EngineSpec(checkpoint, *frame, precision)
    built = []
    try:
        for target in dict.fromkeys(map(parse_target, targets)):
            built.append(_build_for(store, job, target))
    finally:
        tensorrt.rest()
    return built


def _opened(options: Options, store: EngineCache) -> Checkpoint:
    return open_checkpoint(
        resolve(options.model),
        memory=store.notes("checkpoint"),
        multiple=options.multiple,
        input_range=options.input_range,
    )


def _build_for(store: EngineCache, job: EngineSpec, target: str) -> Built:
    checkpoint, precision = job.checkpoint, job.precision
    if target == "sm75" and precision not in ("fp16", "mixed"):
        raise ArgumentError(f"sm75 (RTX 20) has no engines in {precision}; build fp16 or mixed for it")
    key = Key(  # as `choice` finds it on a machine with such a GPU
        weights=checkpoint.description.sha256,
        graph=tensorrt.GRAPH_VERSION,
        shape=f"{job.width}x{job.height}",
        precision=precision,
        engine=f"tensorrt {RTX.module} {RTX.version}",
        device=target,
        options=graphs.identity(checkpoint.description),
    )
    start = time.monotonic()

    def make(directory: Path) -> None:
        with working(f"building the tensorrt engine of {checkpoint.path.name} for {target}, {precision}"):
            traced_graphs.check(checkpoint)
            tensorrt.build_for(job, directory, RTX, [target])

    path = store.open(key, make, lambda directory: directory)
    size = sum(file.stat().st_size for file in path.iterdir())
    return Built(f"{RTX.module} {RTX.version}, {precision}, {target}", path, size, time.monotonic() - start)

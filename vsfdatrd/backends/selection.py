"""Select, build, verify and share engines."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from vsfdatrd.archs.registry.base import ModelDescriptor
from vsfdatrd.backends import network_graphs, speed
from vsfdatrd.backends.base import Backend, EngineSpec, SlotPool
from vsfdatrd.backends.gpu.devices import gpu_count
from vsfdatrd.backends.native import backend as native
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Key, digest_of
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import (
    ArgumentError,
    EngineBuildError,
    EngineError,
    EngineUnavailable,
    FdatrdError,
    InsufficientMemory,
    PrecisionUnfit,
)
from vsfdatrd.options import BACKENDS, Options, Precision
from vsfdatrd.system import instructions, processor
from vsfdatrd.system.progress import report_progress

log = logging.getLogger(__name__)

_shared_pools: weakref.WeakValueDictionary[tuple[object, ...], SlotPool] = weakref.WeakValueDictionary()
_open_lock = threading.Lock()

GPU_BACKENDS = ("tensorrt", "torch", "cuda")
"""Backends that can use several GPUs."""
TIMED_BACKENDS = ("native", "openvino")
"""Backends whose engines are timed against each other."""
MAX_TIMED_SIZE = (240, 320)
"""Height and width of a frame above which engines are timed on a frame of this size instead.

Which one is fastest does not depend on the size, and a large frame takes seconds.
"""
RATE_NOISE = 0.02
"""Relative variation of a rate from one turn to the next."""
SPEED_KIND = "speed"
"""Kind of the cached metadata with the measured speeds of engines."""
REFUSED_KIND = "refused"
"""Kind of the cached metadata, by key digest, about engines that were built but differed too much from fp32."""


def import_backend(name: str) -> Backend:
    """Import a backend's module. This imports no engine library yet.

    Args:
        name: Name of the backend.
    """
    return cast(Backend, import_module(f"vsfdatrd.backends.{name}.backend"))


def unavailable_reasons() -> dict[str, str | None]:
    """Map every backend's name to the reason why it cannot be used on this machine; None if it can."""
    return {name: import_backend(name).unavailable() for name in BACKENDS}


def warm_up(model: ModelDescriptor, requested: str, device: Sequence[int] = (0,)) -> None:
    """Start the worker of the backend that will probably be selected, while the arguments are checked.

    If it has an open engine, the new filter will probably share that, and nothing is started. Errors are ignored;
    `usable_backends` reports them.

    Args:
        model: The network.
        requested: The requested backend, or ``auto``.
        device: Numbers of the GPUs to use.
    """
    likely = (requested,) if requested != "auto" else ("tensorrt", "torch") if gpu_count() else _cpu_backends()
    for name in likely:
        module = import_backend(name)
        if module.unsupported_reason(model) is None and module.unavailable(device) is None:
            # a list, because another thread may add a pool meanwhile
            pools = filter(None, (reference() for reference in _shared_pools.valuerefs()))
            if not any(pool.backend == name and not pool.failed for pool in pools):
                with contextlib.suppress(EngineError):
                    module.warm_up()
            return


def _cpu_backends() -> tuple[str, ...]:
    """Return the names of the CPU backends; the one expected to be faster comes first."""
    return ("native", "openvino") if native.is_preferred_to_openvino() else ("openvino", "native")


def usable_backends(requested: str, checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> list[tuple[str, Backend]]:
    """List the backends that can run a network.

    Args:
        requested: The requested backend; ``auto`` for all that can be used with these GPUs.
        checkpoint: The network.
        device: Numbers of the GPUs to use.

    Returns:
        Names and modules, preferred first.

    Raises:
        EngineUnavailable: There is none; the message lists every reason.
        ArgumentError: The environment variable that limits the instruction set has an invalid value.
    """
    instructions.instruction_cap()
    model = checkpoint.descriptor
    if requested != "auto":
        result = import_backend(requested)
        if reason := result.unavailable(device):
            raise EngineUnavailable(f"backend={requested!r} cannot be used here: {reason}")
        if reason := result.unsupported_reason(model):
            other = "tensorrt" if requested == "cuda" else "openvino"  # run every network
            raise EngineUnavailable(
                f"backend={requested!r} cannot run {checkpoint.path.name!r}: {reason}; leave it out, or give {other}"
            )
        return [(requested, result)]
    # PyTorch on a GPU is faster than any backend on a CPU.
    order = ["tensorrt", "torch", *_cpu_backends()] if gpu_count() else ["tensorrt", *_cpu_backends(), "torch"]
    suitable = [(name, module) for name in order if (module := import_backend(name)).unsupported_reason(model) is None]
    reasons = {name: module.unavailable(device) for name, module in suitable}
    usable = [pair for pair in suitable if reasons[pair[0]] is None]
    if not usable:
        listing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EngineUnavailable(f"no engine can be used here ({listing})")
    return usable


def open_engine(checkpoint: Checkpoint, height: int, width: int, options: Options, store: EngineCache) -> SlotPool:
    """Open an engine from the cache, after building it if necessary.

    Frames are padded to the network's multiple, so sizes with the same padded size share an engine, as do all filters
    that need the same engine at the same time. With ``backend="auto"``, a backend that fails, or on a CPU needs more
    memory than there is, is logged as a warning and the next one is tried.

    Args:
        checkpoint: The network.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        options: Backend, precision, devices and streams.
        store: The engine cache.

    Returns:
        The engine and its free slots.

    Raises:
        ArgumentError: Precision or device is not available on this machine.
        InsufficientMemory: Not even one frame fits into memory.
        EngineUnavailable: No backend can be used.
        EngineBuildError: The engine cannot be built, or fails verification.
        StoreError: The cache directory cannot be used.
    """
    result = usable_backends(options.backend, checkpoint, options.device)
    if options.precision != "auto":  # int16 belongs to the native backend, which has no other precision
        result = [pair for pair in result if (pair[0] == "native") == (options.precision == "int16")] or result
    with _open_lock:
        timed: list[SlotPool] = []  # keeps the timed engines open, so that the fastest need not be opened again
        try:
            result = _fastest_first(result, checkpoint, height, width, options, store, timed)
            failures: list[EngineError | InsufficientMemory] = []
            for name, module in result:
                try:
                    return _open_backend(name, module, checkpoint, height, width, options, store)
                except (EngineError, InsufficientMemory) as error:
                    if isinstance(error, InsufficientMemory) and error.divide:
                        raise  # tiles on a GPU are faster than whole frames on the CPU
                    failures.append(error)
                    if len(failures) < len(result):
                        reason = str(error).rstrip(".")
                        log.warning("The %s engine cannot be used: %s. Trying the next one.", name, reason)
            # With the remedy for too little memory, tiles, the fastest engine can be used.
            raise next((error for error in failures if isinstance(error, InsufficientMemory)), failures[-1])
        finally:
            for module in (native, openvino):
                module.shutdown()  # end workers that were started before the model was known and are not needed


def _fastest_first(
    backends: list[tuple[str, Backend]],
    checkpoint: Checkpoint,
    height: int,
    width: int,
    options: Options,
    store: EngineCache,
    kept_open: list[SlotPool],
) -> list[tuple[str, Backend]]:
    """Sort the candidates by their measured speed on this machine; measure the speed now if there is no measurement.

    Only CPU engines are timed, and only if there are several and no GPU, since any GPU is faster. PyTorch is not
    timed: it was slower than OpenVINO in every comparison (docs/cpu.md), and importing it would take longer than
    everything else.
    """
    rivals = [pair for pair in backends if pair[0] in TIMED_BACKENDS]
    if options.backend != "auto" or len(rivals) < 2 or gpu_count():
        return backends
    timed_height, timed_width = height, width
    if height * width > MAX_TIMED_SIZE[0] * MAX_TIMED_SIZE[1]:
        timed_height, timed_width = min(height, MAX_TIMED_SIZE[0]), min(width, MAX_TIMED_SIZE[1])
    padded = padded_size(checkpoint.descriptor, timed_height, timed_width)
    identity = {
        "weights": checkpoint.descriptor.sha256,
        "size": list(padded),
        "streams": options.streams,
        "precision": options.precision,
        "cap": instructions.instruction_cap(),
        "processor": processor.cpu_identity(),
        "engines": {name: [module.version(), module.GRAPH_VERSION] for name, module in rivals},
    }
    size = f"{padded[1]}×{padded[0]}"
    subject = f"{checkpoint.path.name} at {size}"

    def time_them() -> dict[str, Any]:
        opened: dict[str, SlotPool] = {}
        failed: dict[str, str] = {}
        for name, module in rivals:
            try:
                opened[name] = _open_backend(name, module, checkpoint, timed_height, timed_width, options, store)
                kept_open.append(opened[name])
            except EngineError as error:
                log.warning("The %s engine cannot be used: %s.", name, str(error).rstrip("."))
                failed[name] = str(error)
        if not opened:
            raise EngineError("no engine could be timed")
        with report_progress(f"timing engines on {subject}"):
            measured = speed.measure_rates(opened)
        text = ", ".join(f"{name} {rate:.3g}" for name, rate in measured.items())
        log.info("Frames a second of %s: %s", subject, text)
        return {"model": checkpoint.path.name, "size": size, "rates": measured, "failed": failed}

    try:
        speeds = store.get_or_compute(SPEED_KIND, digest_of(identity), f"timing engines on {subject}", time_them)
        measured = {name: float(speeds["rates"].get(name, 0)) for name, _ in rivals}
    except (FdatrdError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.debug("engines are not chosen by their speed: %s", error)
        return backends
    # Between engines that differ by less than the noise, the default order decides.
    best = max(measured.values()) * (1 - RATE_NOISE)
    first = next((pair for pair in rivals if measured[pair[0]] >= best), rivals[0])
    return [first, *(pair for pair in backends if pair != first)]


def measured_speeds(store: EngineCache) -> Iterator[str]:
    """Report measured speeds of engines on this machine, oldest first.

    Args:
        store: The engine cache.

    Yields:
        A line of text for each network and size.
    """
    for speeds in store.metadata(SPEED_KIND).objects():
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            result = {str(name): float(rate) for name, rate in speeds["rates"].items()}
            text = [f"{name} {result[name]:.3g}" for name in sorted(result, key=lambda name: -result[name])]
            text += [f"{name} cannot be used" for name in speeds["failed"]]
            yield f"{speeds['model']} at {speeds['size']}: {', '.join(text)} frames a second"


def padded_size(model: ModelDescriptor, height: int, width: int) -> tuple[int, int]:
    """Compute the size of the padded frame for which an engine is built.

    Args:
        model: The network.
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.

    Returns:
        Height and width in pixels.

    Raises:
        ArgumentError: The network takes frames of one size only, and this frame is larger.
    """
    if model.fixed_size is None:
        return model.size.padded(height, width)
    fixed_height, fixed_width = model.fixed_size
    if height > fixed_height or width > fixed_width:
        raise ArgumentError(
            f"the network takes frames of {fixed_width}×{fixed_height} pixels only, and {width}×{height} are more; "
            f'give tile=[{fixed_width}, {fixed_height}], or fit="resize" to send whole frames through it at its size'
        )
    return model.fixed_size


def _open_backend(
    name: str, module: Backend, checkpoint: Checkpoint, height: int, width: int, options: Options, store: EngineCache
) -> SlotPool:
    possible = module.precisions(checkpoint, options.device)
    if options.precision != "auto" and options.precision not in possible:
        raise ArgumentError(
            f"precision={options.precision!r} is not possible with the {name} engine on this machine; "
            f"choose one of auto, {', '.join(possible)}"
        )
    count = max(1, gpu_count()) if name in GPU_BACKENDS else 1
    if max(options.device) >= count:
        devices = f"the {count} GPUs of this machine" if count > 1 else "device 0, the only one here"
        raise ArgumentError(f"device={list(options.device)} does not exist; the {name} engine can use {devices}")
    requested = possible if options.precision == "auto" else (cast(Precision, options.precision),)
    padded = padded_size(checkpoint.descriptor, height, width)
    for precision in requested:
        spec = EngineSpec(checkpoint, *padded, precision, options.device, options.streams)
        if precision == requested[-1]:
            return _open_cached(name, module, spec, store)
        if before := store.metadata(REFUSED_KIND).get(_cache_key(name, module, spec).digest):
            log.info("%s with %s did not pass when it was tried: %s", name, precision, before.get("why"))
            continue
        try:
            return _open_cached(name, module, spec, store)
        except EngineBuildError as error:
            reason = str(error).rstrip(".")
            log.warning("%s with %s did not pass: %s. Trying the next safer precision.", name, precision, reason)
    raise EngineBuildError(f"the {name} engine offers no precision for this model")


def _cache_key(name: str, module: Backend, spec: EngineSpec) -> Key:
    model = spec.checkpoint.descriptor
    return Key(
        weights=model.sha256,
        graph=module.GRAPH_VERSION,
        shape="any" if module.ANY_FRAME_SIZE else f"{spec.width}x{spec.height}",
        precision=spec.precision,
        engine=f"{name} {module.version(spec.device)}",
        device=module.device_name(spec),
        options=" ".join(filter(None, (module.identity(spec), model.architecture.graph_identity(model.config)))),
    )


def _open_cached(name: str, module: Backend, spec: EngineSpec, store: EngineCache) -> SlotPool:
    key = _cache_key(name, module, spec)
    identity = (key, spec.height, spec.width, spec.device, spec.streams)
    if (pool := _shared_pools.get(identity)) and not pool.failed:
        return pool
    spec = replace(_fit_memory(name, module, spec), state=store.state(key))
    engine_name = f"{name} engine of {spec.checkpoint.path.name} for {spec.width}×{spec.height}, {spec.precision}"

    def build(directory: Path) -> None:
        with report_progress(f"building the {engine_name}"):
            if name != "torch":
                network_graphs.check_trace(spec.checkpoint)
            try:
                module.build(spec, directory)
            except PrecisionUnfit as error:  # remember it, since finding out takes as long as a build
                store.metadata(REFUSED_KIND).put(key.digest, {"why": str(error)})
                raise

    pool = SlotPool(store.open(key, build, lambda directory: module.load(spec, directory)), key.digest, name)
    _shared_pools[identity] = pool
    return pool


def _fit_memory(name: str, module: Backend, spec: EngineSpec) -> EngineSpec:
    """Reduce the engine to one frame in flight if more would not fit into memory.

    Raises:
        InsufficientMemory: Not even one frame fits.
    """
    needed, free = module.memory_estimate(spec)
    if needed <= free:
        return spec
    one_stream = replace(spec, streams=1)
    least_needed, free = module.memory_estimate(one_stream)
    if least_needed <= free and spec.streams is None:
        log.warning(
            "There is memory for one frame in flight only, which is slower (the %s engine, %d MiB free).",
            name,
            free >> 20,
        )
        return one_stream
    if least_needed <= free:
        subject, remedy = f"streams={spec.streams} with frames", "give fewer streams, or upscale them"
    else:
        subject, remedy, needed = "a frame", "upscale it", least_needed
    error = InsufficientMemory(
        f"{subject} of {spec.width}×{spec.height} pixels (padded) needs about {needed / 2**30:.1f} GiB in this network "
        f"and {free / 2**30:.1f} GiB are free; {remedy} in parts, for example tile=[720, 540], or a smaller clip"
    )
    error.divide = name in GPU_BACKENDS and (name != "torch" or gpu_count() > 0)
    raise error

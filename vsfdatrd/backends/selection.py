"""Choosing, building, verifying and sharing engines."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from vsfdatrd.archs.descriptor import ModelDescriptor
from vsfdatrd.backends import graphs, speed, traced_graphs
from vsfdatrd.backends.base import Backend, EngineSpec, SlotPool
from vsfdatrd.backends.gpus import gpu_count
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
from vsfdatrd.system.progress import working

log = logging.getLogger(__name__)

_MODULES = {
    "tensorrt": "vsfdatrd.backends.tensorrt.backend",
    "native": "vsfdatrd.backends.native.backend",
    "openvino": "vsfdatrd.backends.openvino.backend",
    "torch": "vsfdatrd.backends.torch",
}

_shared: weakref.WeakValueDictionary[tuple[object, ...], SlotPool] = weakref.WeakValueDictionary()
_opening = threading.Lock()

TIMED = ("native", "openvino")
"""Engines that are timed against each other."""
LARGEST_TIMED = (240, 320)
"""Height and width of a frame above which engines are timed on one of this size instead: which is the fastest does not
change with the size, and a large frame takes seconds."""
NOISE = 0.02
"""Share of a rate by which it differs from one turn to the next."""
SPEED = "speed"
"""Kind of the notes on what engines were timed at."""
REFUSED = "refused"
"""Kind of the notes on engines that were built and were too far from fp32, by their keys' digests."""


def backend(name: str) -> Backend:
    """The backend's module; imports no engine library yet."""
    return cast(Backend, import_module(_MODULES[name]))


def usable() -> dict[str, str | None]:
    """Every backend's name, and why it cannot be used here (None if it can)."""
    return {name: backend(name).unavailable() for name in BACKENDS}


def warm_up(wanted: str, device: Sequence[int] = (0,)) -> None:
    """Begin to start the engine that a wish most likely means. Never fails; `choose` says what is wrong."""
    likely = (wanted,) if wanted != "auto" else ("tensorrt", "torch") if gpu_count() else _on_processors()
    for name in likely:
        module = backend(name)
        if module.unavailable(device) is None:
            with contextlib.suppress(EngineError):
                module.warm_up()
            return


def _on_processors() -> tuple[str, ...]:
    """The engines for processors, the fastest first."""
    return ("native", "openvino") if native.preferred() else ("openvino", "native")


def candidates(wanted: str, checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> list[tuple[str, Backend]]:
    """The backends for a wish, the best first; for ``auto`` every one that can be used with these GPUs.

    Raises EngineUnavailable with every reason if there is none, ArgumentError for a cap on instructions that is none.
    """
    instructions.cap()
    about = checkpoint.description
    if wanted != "auto":
        found = backend(wanted)
        if wanted == "torch" and about.onnx:
            raise EngineUnavailable(
                f"backend='torch' cannot run {checkpoint.path.name!r}, an ONNX file; leave it out, or give tensorrt or "
                "openvino"
            )
        if reason := found.unavailable(device):
            raise EngineUnavailable(f"backend={wanted!r} cannot be used here: {reason}")
        if wanted == "native" and (reason := native.unsuited(checkpoint)):
            raise EngineUnavailable(
                f"backend='native' cannot run {checkpoint.path.name!r}: {reason}; leave it out, or give openvino"
            )
        return [(wanted, found)]
    # A GPU is faster under torch than a processor under anything.
    order = ["tensorrt", "torch", *_on_processors()] if gpu_count() else ["tensorrt", *_on_processors(), "torch"]
    if about.onnx:
        order.remove("torch")  # there is no module
    if native.unsuited(checkpoint):
        order.remove("native")
    reasons = {name: backend(name).unavailable(device) for name in order}
    usable = [(name, backend(name)) for name, reason in reasons.items() if reason is None]
    if not usable:
        listing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise EngineUnavailable(f"no engine can be used here ({listing})")
    return usable


def open_engine(checkpoint: Checkpoint, height: int, width: int, options: Options, store: EngineCache) -> SlotPool:
    """An engine for frames of `height` × `width` pixels, from the cache or built now, and its free slots.

    The frame is padded to the network's multiple first, so sizes that pad alike share an engine. Filters that need
    the same engine at the same time share it as well. With ``backend="auto"``, the next backend is taken, with a
    warning, if one fails for a reason of its own.

    Raises ArgumentError (precision or device the machine does not have), InsufficientMemory, EngineUnavailable,
    EngineBuildError, StoreError.
    """
    found = candidates(options.backend, checkpoint, options.device)
    if options.precision != "auto":  # integers are the native engine's, and it has nothing else
        found = [pair for pair in found if (pair[0] == "native") == (options.precision == "int16")] or found
    with _opening:
        held: list[SlotPool] = []  # what was opened to be timed, so that the fastest need not be opened again
        try:
            found = _fastest_first(found, checkpoint, height, width, options, store, held)
            for name, module in found[:-1]:
                try:
                    return _open_with(name, module, checkpoint, height, width, options, store)
                except EngineError as error:
                    log.warning("The %s engine cannot be used: %s. Trying the next one.", name, str(error).rstrip("."))
            return _open_with(*found[-1], checkpoint, height, width, options, store)
        finally:
            for module in (native, openvino):
                module.rest()  # which was started on the chance, before the model was known


def _fastest_first(
    found: list[tuple[str, Backend]],
    checkpoint: Checkpoint,
    height: int,
    width: int,
    options: Options,
    store: EngineCache,
    held: list[SlotPool],
) -> list[tuple[str, Backend]]:
    """The candidates in the order in which they were fastest here, timed now if they never were.

    Only engines for processors are timed, where there are several and no GPU: any GPU is faster. PyTorch is not, being
    slower than OpenVINO in every comparison (docs/cpu.md), and its import would take longer than all else.
    """
    rivals = [pair for pair in found if pair[0] in TIMED]
    if options.backend != "auto" or len(rivals) < 2 or gpu_count():
        return found
    tall, wide = height, width
    if height * width > LARGEST_TIMED[0] * LARGEST_TIMED[1]:
        tall, wide = min(height, LARGEST_TIMED[0]), min(width, LARGEST_TIMED[1])
    padded = frame_of(checkpoint.description, tall, wide)
    identity = {
        "weights": checkpoint.description.sha256, "size": list(padded), "streams": options.streams,
        "precision": options.precision, "cap": instructions.cap(), "processor": processor.identity(),
        "engines": {name: [module.version(), module.GRAPH_VERSION] for name, module in rivals},
    }  # fmt: skip
    what = f"{checkpoint.path.name} at {padded[1]}×{padded[0]}"

    def time_them() -> dict[str, Any]:
        opened: dict[str, SlotPool] = {}
        failed: dict[str, str] = {}
        for name, module in rivals:
            try:
                opened[name] = _open_with(name, module, checkpoint, tall, wide, options, store)
                held.append(opened[name])
            except EngineError as error:
                log.warning("The %s engine cannot be used: %s.", name, str(error).rstrip("."))
                failed[name] = str(error)
        if not opened:
            raise EngineError("no engine could be timed")
        with working(f"timing engines on {what}"):
            measured = speed.rates(opened)
        said = ", ".join(f"{name} {rate:.3g}" for name, rate in measured.items())
        log.info("Frames a second of %s: %s", what, said)
        return {"model": checkpoint.path.name, "size": f"{padded[1]}×{padded[0]}", "rates": measured, "failed": failed}

    try:
        known = store.once(SPEED, digest_of(identity), f"timing engines on {what}", time_them)
        measured = {name: float(known["rates"].get(name, 0)) for name, _ in rivals}
    except (FdatrdError, KeyError, TypeError, ValueError, AttributeError) as error:
        log.debug("engines are not chosen by their speed: %s", error)
        return found
    # Within the noise, the order is as it always was.
    best = max(measured.values()) * (1 - NOISE)
    first = next((pair for pair in rivals if measured[pair[0]] >= best), rivals[0])
    return [first, *(pair for pair in found if pair != first)]


def timed(store: EngineCache) -> Iterator[str]:
    """What engines were timed at on this machine, a line for every network and size, the oldest first."""
    for known in store.notes(SPEED).every():
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            found = {str(name): float(rate) for name, rate in known["rates"].items()}
            said = [f"{name} {found[name]:.3g}" for name in sorted(found, key=lambda name: -found[name])]
            said += [f"{name} cannot be used" for name in known["failed"]]
            yield f"{known['model']} at {known['size']}: {', '.join(said)} frames a second"


def frame_of(about: ModelDescriptor, height: int, width: int) -> tuple[int, int]:
    """Height and width of the padded frame that an engine for frames of `height` × `width` is for.

    Raises ArgumentError if the network takes no frame so large.
    """
    if about.fixed is None:
        return about.size.padded(height, width)
    if height > about.fixed[0] or width > about.fixed[1]:
        tall, wide = about.fixed
        raise ArgumentError(
            f"the network takes frames of {wide}×{tall} pixels and no others, and {width}×{height} are more; "
            f'give tile=[{wide}, {tall}], or fit="resize" to send whole frames through it at its size'
        )
    return about.fixed


def _open_with(
    name: str, module: Backend, checkpoint: Checkpoint, height: int, width: int, options: Options, store: EngineCache
) -> SlotPool:
    possible = module.precisions(checkpoint, options.device)
    if options.precision != "auto" and options.precision not in possible:
        raise ArgumentError(
            f"precision={options.precision!r} is not possible with the {name} engine on this machine; "
            f"choose one of auto, {', '.join(possible)}"
        )
    known = max(1, gpu_count()) if name in ("tensorrt", "torch") else 1
    if max(options.device) >= known:
        what = f"the {known} GPUs of this machine" if known > 1 else "device 0, the only one here"
        raise ArgumentError(f"device={list(options.device)} is not there; the {name} engine can use {what}")
    wanted = possible if options.precision == "auto" else (cast(Precision, options.precision),)
    padded = frame_of(checkpoint.description, height, width)
    for precision in wanted:
        job = EngineSpec(checkpoint, *padded, precision, options.device, options.streams)
        if precision != wanted[-1] and (before := store.notes(REFUSED).recall(_key(name, module, job).digest)):
            log.info("%s with %s did not pass when it was tried: %s", name, precision, before.get("why"))
            continue
        try:
            return _open(name, module, job, store)
        except EngineBuildError as error:
            if precision == wanted[-1]:
                raise
            log.warning("%s with %s did not pass: %s Trying the next safer precision.", name, precision, error)
    raise EngineBuildError(f"the {name} engine offers no precision for this model")


def _key(name: str, module: Backend, job: EngineSpec) -> Key:
    return Key(
        weights=job.checkpoint.description.sha256,
        graph=module.GRAPH_VERSION,
        shape="any" if module.ANY_SIZE else f"{job.width}x{job.height}",
        precision=job.precision,
        engine=f"{name} {module.version(job.device)}",
        device=module.device_name(job),
        options=" ".join(filter(None, (module.identity(job), graphs.identity(job.checkpoint.description)))),
    )


def _open(name: str, module: Backend, job: EngineSpec, store: EngineCache) -> SlotPool:
    key = _key(name, module, job)
    identity = (key, job.height, job.width, job.device, job.streams)
    if (lanes := _shared.get(identity)) and not lanes.failed:
        return lanes
    job = replace(_fitting(name, module, job), state=store.state(key))
    what = f"{name} engine of {job.checkpoint.path.name} for {job.width}×{job.height}, {job.precision}"

    def build(directory: Path) -> None:
        with working(f"building the {what}"):
            if name != "torch":
                traced_graphs.check(job.checkpoint)
            try:
                module.build(job, directory)
            except PrecisionUnfit as error:  # it would be so the next time, too, and takes as long as a build
                store.notes(REFUSED).remember(key.digest, {"why": str(error)})
                raise

    lanes = SlotPool(store.open(key, build, lambda directory: module.load(job, directory)), key.digest)
    _shared[identity] = lanes
    return lanes


def _fitting(name: str, module: Backend, job: EngineSpec) -> EngineSpec:
    """The job, with one frame in flight if more would not fit. Raises InsufficientMemory if not even one fits."""
    needed, free = module.memory_estimate(job)
    if needed <= free:
        return job
    alone = replace(job, streams=1)
    least, free = module.memory_estimate(alone)
    if least <= free and job.streams is None:
        log.warning("There is memory for one frame in flight only, which is slower (the %s engine, %d MiB free).",
                    name, free >> 20)  # fmt: skip
        return alone
    if job.streams is None:
        needed = least
    short = InsufficientMemory(
        f"a frame of {job.width}×{job.height} pixels (padded) needs about {needed / 2**30:.1f} GiB in this network "
        f"and {free / 2**30:.1f} GiB are free; upscale it in parts, for example tile=[720, 540], or a smaller clip"
    )
    short.divide = name == "tensorrt" or (name == "torch" and gpu_count() > 0)
    raise short

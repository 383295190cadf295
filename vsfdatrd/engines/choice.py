"""Choosing, building, verifying and sharing engines."""

import contextlib
import logging
import threading
import weakref
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.engines.base import Backend, Job, Lanes
from vsfdatrd.engines.devices import gpu_count
from vsfdatrd.errors import ArgumentError, ClipError, EngineBuildError, EngineError, EngineUnavailable
from vsfdatrd.geometry import padded
from vsfdatrd.manifest import Key
from vsfdatrd.options import BACKENDS, Options, Precision
from vsfdatrd.progress import working
from vsfdatrd.store import Store

log = logging.getLogger(__name__)

_shared: weakref.WeakValueDictionary[tuple[object, ...], Lanes] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def backend(name: str) -> Backend:
    """The backend's module; imports no engine library yet."""
    return cast(Backend, import_module(f"vsfdatrd.engines.{name}"))


def usable() -> dict[str, str | None]:
    """Every backend's name, and why it cannot be used here (None if it can)."""
    return {name: backend(name).unavailable() for name in BACKENDS}


def warm_up(wanted: str) -> None:
    """Begin to start the engine that a wish most likely means. Never fails; `choose` says what is wrong."""
    name = wanted if wanted != "auto" else "torch" if gpu_count() else "openvino"
    module = backend(name)
    if module.unavailable() is None:
        with contextlib.suppress(EngineError):
            module.warm_up()


def choose(wanted: str, checkpoint: Checkpoint) -> tuple[str, Backend]:
    """The backend for a wish, ``auto`` included. Raises EngineUnavailable with every reason if there is none."""
    if wanted != "auto":
        found = backend(wanted)
        if reason := found.unavailable():
            raise EngineUnavailable(f"backend={wanted!r} cannot be used here: {reason}")
        return wanted, found
    order: Sequence[str] = BACKENDS
    if gpu_count() or checkpoint.description.config is None:
        # A GPU is faster under torch than the CPU under OpenVINO; other architectures have no graph of ours.
        order = ("torch", *(name for name in BACKENDS if name != "torch"))
    reasons = {}
    for name in order:
        found = backend(name)
        reasons[name] = found.unavailable()
        if reasons[name] is None:
            return name, found
    listing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise EngineUnavailable(f"no engine can be used here ({listing})")


def open_engine(checkpoint: Checkpoint, height: int, width: int, options: Options, store: Store) -> Lanes:
    """An engine for frames of `height` × `width` pixels, from the cache or built now, and its free slots.

    The frame is padded to the network's multiple first, so sizes that pad alike share an engine. Filters that need
    the same engine at the same time share it as well.

    Raises ArgumentError (precision or device the machine does not have), ClipError (not enough memory),
    EngineUnavailable, EngineBuildError, StoreError.
    """
    name, module = choose(options.backend, checkpoint)
    possible = module.precisions(checkpoint)
    if options.precision != "auto" and options.precision not in possible:
        raise ArgumentError(
            f"precision={options.precision!r} is not possible with the {name} engine on this machine; "
            f"choose one of auto, {', '.join(possible)}"
        )
    known = max(1, gpu_count()) if name == "torch" else 1
    if max(options.device) >= known:
        what = f"the {known} GPUs of this machine" if known > 1 else "device 0, the only one here"
        raise ArgumentError(f"device={list(options.device)} is not there; the {name} engine can use {what}")
    wanted = possible if options.precision == "auto" else (cast(Precision, options.precision),)
    multiple = checkpoint.description.multiple
    with _opening:
        for precision in wanted:
            job = Job(
                checkpoint,
                padded(height, multiple),
                padded(width, multiple),
                precision,
                options.device,
                options.streams,
            )
            try:
                return _open(name, module, job, store)
            except EngineBuildError as error:
                if precision == wanted[-1]:
                    raise
                log.warning("%s with %s did not pass: %s Trying the next safer precision.", name, precision, error)
    raise EngineBuildError(f"the {name} engine offers no precision for this model")


def _open(name: str, module: Backend, job: Job, store: Store) -> Lanes:
    checkpoint = job.checkpoint
    key = Key(
        weights=checkpoint.description.sha256,
        graph=module.GRAPH_VERSION,
        shape=f"{job.width}x{job.height}",
        precision=job.precision,
        engine=f"{name} {module.version()}",
        device=module.device_name(job),
        options=f"streams={job.streams or 'auto'}",
    )
    identity = (key, job.device)
    if lanes := _shared.get(identity):
        return lanes
    _check_memory(module, job)
    what = f"{name} engine of {checkpoint.path.name} for {job.width}×{job.height}, {job.precision}"

    def build(directory: Path) -> None:
        with working(f"building the {what}"):
            module.build(job, directory)

    lanes = Lanes(store.open(key, build, lambda directory: module.load(job, directory)))
    _shared[identity] = lanes
    return lanes


def _check_memory(module: Backend, job: Job) -> None:
    needed, free = module.memory_estimate(job)
    if needed > free:
        raise ClipError(
            f"a frame of {job.width}×{job.height} pixels (padded) needs about {needed / 2**30:.0f} GiB in this network "
            f"and {free / 2**30:.0f} GiB are free; upscale it in parts, for example tile=[720, 540], or a smaller clip"
        )

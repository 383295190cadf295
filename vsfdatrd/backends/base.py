"""Interfaces of backends and engines.

A *backend* (a module in this package) builds and loads engines. An *engine* runs a network on frames of one size on
one device. Neither depends on VapourSynth. To add a backend, write a module with the functions of `Backend` and list
it in `selection.py`.
"""

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vsfdatrd.errors import EngineBuildError, EngineError
from vsfdatrd.options import Precision
from vsfdatrd.workers.shared_memory import FramePlanes as FramePlanes

if TYPE_CHECKING:  # a worker process does without architectures, and starts sooner
    from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Parameters of an engine."""

    checkpoint: "Checkpoint"
    """The weights and the description of their network."""
    height: int
    """Height of the padded frame in pixels."""
    width: int
    """Width of the padded frame in pixels."""
    precision: Precision
    """Arithmetic inside the network. Input and output frames are float32 in any case."""
    device: tuple[int, ...] = (0,)
    """Numbers of the GPUs to use."""
    streams: int | None = None
    """Frames in flight; None to let the backend choose."""
    state: Path | None = None
    """Folder for data that can be recreated: compiled kernels, timings, verification results of this machine."""


class Engine(Protocol):
    """Runs frames of one size. A slot holds one frame in flight and is used by one thread at a time."""

    slots: int
    """Maximum number of frames in flight."""

    def input(self, slot: int) -> FramePlanes:
        """Return a slot's input buffer, to be filled before `submit`.

        Args:
            slot: Number of the slot.

        Returns:
            (C, H, W) float32 in [0, 1], with the input channels of `ModelDescriptor.frame_channels`.
        """

    def submit(self, slot: int) -> None:
        """Start processing a slot's input and return at once.

        Args:
            slot: Number of the slot.

        Raises:
            EngineError: The engine is closed.
        """

    def collect(self, slot: int) -> FramePlanes:
        """Wait for a slot's output.

        Args:
            slot: Number of the slot.

        Returns:
            (C, H·scale, W·scale) float32, valid until the slot is submitted again.

        Raises:
            EngineError: Processing failed.
        """

    def close(self) -> None:
        """Free memory and device. May be called more than once.

        Frames in flight are abandoned and their `collect` raises.
        """


class Backend(Protocol):
    """Functions and constants of a backend's module.

    `device` holds the numbers of the GPUs to use; CPU backends ignore it. `directory` holds the files of one engine.
    """

    @property
    def GRAPH_VERSION(self) -> str:  # noqa: N802 - a constant of the module
        """Version of the code behind the built files; changes whenever the same weights would give different files."""

    @property
    def ANY_FRAME_SIZE(self) -> bool:  # noqa: N802 - a constant of the module
        """Whether one set of built files serves frames of every size."""

    def unavailable(self, device: Sequence[int] = (0,)) -> str | None:
        """Explain why this backend cannot be used on this machine.

        Args:
            device: Numbers of the GPUs to use.

        Returns:
            A sentence with the remedy; None if the backend can be used.
        """

    def unsupported_reason(self, model: "ModelDescriptor") -> str | None:
        """Explain why this backend cannot run a network on any machine.

        Args:
            model: The network.

        Returns:
            The reason, beginning with "it" or "its"; None if it can.
        """

    def warm_up(self) -> None:
        """Start slow initialization in the background and return at once. Called while arguments are checked."""

    def version(self, device: Sequence[int] = (0,)) -> str:
        """Return name and version of the library that runs the engine.

        Args:
            device: Numbers of the GPUs to use.
        """

    def precisions(self, checkpoint: "Checkpoint", device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
        """List the precisions that the device supports for a network.

        Args:
            checkpoint: The network.
            device: Numbers of the GPUs to use.

        Returns:
            The preferred precision first, the safest last.
        """

    def device_name(self, spec: EngineSpec) -> str:
        """Return the device's name for the engine's cache key, so that an engine is never loaded on another device.

        Args:
            spec: Parameters of the engine.
        """

    def identity(self, spec: EngineSpec) -> str:
        """Return any other parameters that change the built files, as text.

        Args:
            spec: Parameters of the engine.
        """

    def memory_estimate(self, spec: EngineSpec) -> tuple[int, int]:
        """Estimate the memory of an engine.

        Args:
            spec: Parameters of the engine.

        Returns:
            (bytes the engine will need, bytes free on its device).
        """

    def build(self, spec: EngineSpec, directory: Path) -> None:
        """Write the engine's files into an empty directory.

        Args:
            spec: Parameters of the engine.
            directory: The directory.

        Raises:
            EngineBuildError: The build failed.
        """

    def load(self, spec: EngineSpec, directory: Path) -> Engine:
        """Load an engine from its files.

        Args:
            spec: Parameters of the engine.
            directory: The files that `build` wrote.

        Raises:
            EngineError: The engine cannot be loaded.
        """


@contextmanager
def as_build_errors() -> Iterator[None]:
    """Turn the errors of an engine's worker into errors of its build, after which other precisions are tried."""
    try:
        yield
    except EngineBuildError:
        raise
    except EngineError as error:
        raise EngineBuildError(str(error)) from error


class SlotPool:
    """An engine and its free slots; also the digest of its key in the cache, and the name of its backend.

    Filters with the same engine share the pool and wait here for a free slot.
    """

    def __init__(self, engine: Engine, digest: str = "", backend: str = "") -> None:
        """Take over an engine, which is closed with this object.

        Args:
            engine: The engine.
            digest: Digest of its key in the cache.
            backend: Name of its backend.
        """
        self.engine, self.digest, self.backend = engine, digest, backend
        self.failed = False
        """True once a frame has failed with an EngineError (GPU context lost, worker dead).

        A failed engine is not shared with new filters.
        """
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(engine.slots):
            self._free.put(slot)

    @contextmanager
    def slot(self) -> Iterator[int]:
        """Reserve a slot for the duration of one frame, waiting until one is free."""
        slot = self._free.get()
        try:
            yield slot
        except EngineError:
            self.failed = True
            raise
        finally:
            self._free.put(slot)

    def __del__(self) -> None:
        self.engine.close()

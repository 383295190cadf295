"""What an engine is: a network for one size of frame, made ready for one device.

A *backend* (a module beside this one) builds and loads engines; an *engine* runs frames. Neither knows of clips.
To add a backend: write a module with the functions of `Backend`, list it in `backends/__init__.py`.
"""

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.options import Precision
from vsfdatrd.workers.shared_memory import FramePlanes as FramePlanes


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is to be made for."""

    checkpoint: Checkpoint
    """The weights, and what is known of their network."""
    height: int
    """Height of the padded frame in pixels."""
    width: int
    """Width of the padded frame in pixels."""
    precision: Precision
    """Arithmetic inside the network; frames go in and come out as float32."""
    device: tuple[int, ...] = (0,)
    """Numbers of the GPUs to use."""
    streams: int | None = None
    """Frames in flight; None is the backend's own choice."""
    state: Path | None = None
    """A folder for what saves time and may be lost: what was compiled, measured or verified on this machine."""


class Engine(Protocol):
    """Runs frames of one size. A slot holds one frame in flight and is used by one thread at a time."""

    slots: int
    """How many frames may be in flight."""

    def input(self, slot: int) -> FramePlanes:
        """The slot's input, (C, H, W) float32 in [0, 1], to be filled before `submit`.

        C is what `ModelDescriptor.frame_channels` says goes in.
        """
        ...

    def submit(self, slot: int) -> None:
        """Start work on the slot's input and return at once. Raises EngineError if the engine is closed."""
        ...

    def collect(self, slot: int) -> FramePlanes:
        """Wait for the slot's output, (C, H·scale, W·scale) float32, valid until the slot is submitted again.

        Raises EngineError if the work failed.
        """
        ...

    def close(self) -> None:
        """Free memory and device. A frame in flight is given up: its `collect` raises. Closing twice is harmless."""
        ...


class Backend(Protocol):
    """What a backend's module offers."""

    @property
    def GRAPH_VERSION(self) -> str:  # noqa: N802 - a constant of the module
        """Changes when the same weights would give another artefact."""
        ...

    @property
    def ANY_SIZE(self) -> bool:  # noqa: N802 - a constant of the module
        """Whether one artefact serves frames of every size."""
        ...

    def unavailable(self, device: Sequence[int] = (0,)) -> str | None:
        """Why this backend cannot be used here, as a sentence with the cure; None if it can.

        device: numbers of the GPUs that are meant, here and below; a backend for processors does not look.
        """
        ...

    def warm_up(self) -> None:
        """Begin what takes a while to start, and return at once; called while the clip is still being looked at."""
        ...

    def version(self, device: Sequence[int] = (0,)) -> str:
        """Name and version of the library that runs the engine."""
        ...

    def precisions(self, checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
        """What the device computes in, the best choice first, the safest last."""
        ...

    def device_name(self, job: EngineSpec) -> str:
        """The device as part of an engine's identity: an artefact is never used on another."""
        ...

    def identity(self, job: EngineSpec) -> str:
        """Whatever else of a job changes its artefact, as text."""
        ...

    def memory_estimate(self, job: EngineSpec) -> tuple[int, int]:
        """(bytes the engine will need, bytes its device has free)."""
        ...

    def build(self, job: EngineSpec, directory: Path) -> None:
        """Write the artefact into an empty directory. Raises EngineBuildError."""
        ...

    def load(self, job: EngineSpec, directory: Path) -> Engine:
        """An engine from an artefact. Raises EngineError."""
        ...


class SlotPool:
    """An engine and its free slots. Filters with the same engine share it, and wait here for a slot in turn."""

    def __init__(self, engine: Engine, digest: str = "") -> None:
        self.engine = engine
        self.digest = digest
        """Digest of the engine's key in the cache."""
        self.failed = False
        """Whether a frame was lost in it, as all are once a GPU's context or its process is: nobody new shares it."""
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(engine.slots):
            self._free.put(slot)

    @property
    def count(self) -> int:
        """Frames that may be in flight."""
        return self.engine.slots

    @contextmanager
    def slot(self) -> Iterator[int]:
        """A slot for the duration of one frame."""
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

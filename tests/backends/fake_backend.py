"""A backend without a library, for tests of the selection and sharing of engines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vsfdatrd.backends.base import EngineSpec, FramePlanes
from vsfdatrd.checkpoint import Checkpoint, ModelDescriptor
from vsfdatrd.errors import (
    EngineBuildError,
    EngineError,
    PrecisionUnfit,
)
from vsfdatrd.options import Precision


class FakeEngine:
    """Engine that repeats every pixel of its input."""

    slots = 1

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.closed = 0

    def input(self, slot: int) -> FramePlanes:
        return np.zeros((3, self.spec.height, self.spec.width), np.float32)

    def submit(self, slot: int) -> None:
        pass

    def collect(self, slot: int) -> FramePlanes:
        return np.zeros((3, 2 * self.spec.height, 2 * self.spec.width), np.float32)

    def close(self) -> None:
        self.closed += 1


class FakeBackend:
    """A backend whose engines fail in the given precisions."""

    GRAPH_VERSION = "1"
    ANY_FRAME_SIZE = False

    def __init__(self, failing: tuple[Precision, ...] = ()) -> None:
        self.failing = failing
        self.breaking: tuple[Precision, ...] = ()
        self.built: list[Precision] = []
        self.needs, self.has = 1 << 20, 1 << 30
        self.reason: str | None = None
        self.warm = 0
        self.loading: EngineError | None = None

    def unavailable(self, device: Sequence[int] = (0,)) -> str | None:
        return self.reason

    def unsupported_reason(self, model: ModelDescriptor) -> None:
        return None

    def warm_up(self) -> None:
        self.warm += 1
        if self.loading:
            raise self.loading

    def version(self, device: Sequence[int] = (0,)) -> str:
        return "1.0"

    def precisions(self, checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
        return ("fp16", "bf16", "fp32")

    def device_name(self, spec: EngineSpec) -> str:
        return "a device"

    def identity(self, spec: EngineSpec) -> str:
        return ""

    def memory_estimate(self, spec: EngineSpec) -> tuple[int, int]:
        return self.needs * (spec.streams or 2), self.has

    def build(self, spec: EngineSpec, directory: Path) -> None:
        self.built.append(spec.precision)
        if spec.precision in self.breaking:
            raise EngineBuildError("the compiler ran out of memory")
        if spec.precision in self.failing:
            raise PrecisionUnfit(f"the {spec.precision} engine agrees with fp32 to 31.4 dB only, 50 are needed.")
        (directory / "note").write_text(spec.precision)

    def load(self, spec: EngineSpec, directory: Path) -> FakeEngine:
        if self.loading:
            raise self.loading
        return FakeEngine(spec)

"""What is measured: cases, and the groups of them that are measured in turns."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

type Measure = Literal["engine", "vapoursynth", "encode"]
"""``engine``: frames through the engine alone; ``vapoursynth``: through the filter, RGBS in and out; ``encode``: a
script of YUV420P8 through vspipe into ffmpeg (x264, its fastest preset)."""
type Extent = Literal["quick", "standard", "full"]
type Size = tuple[int, int]

OURS = "vsfdatrd"
HEADLINE: Size = (720, 540)
SMALL: Size = (240, 240)
SIZES: tuple[Size, ...] = ((720, 480), (720, 576), (640, 480))
SWEEP: tuple[Size, ...] = ((160, 120), (320, 240), (480, 360), (640, 480), (720, 540), (960, 720), (1440, 1080))
SLOW = (
    "torch.compile",
    "vapoursynth-mlrt-ov, fp32",
    "vapoursynth-mlrt-ov, our graph",
    "spandrel",
    "waifu2x",
    "Real-CUGAN",
)
"""Peers that ``quick`` leaves out, since two minutes are too short for them."""
GROUPS = ("headline", "models", "engines", "streams", "sizes", "sweep", "held")
"""Names of all groups."""
MODELS = ("small", "medium", "large")
"""The same architecture in three sizes."""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is measured."""

    contestant: str
    """`OURS`, or a name of `peers.PEERS`."""
    model: str
    """A name from the catalog, or a weights file."""
    size: Size
    """Width and height of the source in pixels."""
    measure: Measure = "vapoursynth"
    backend: str = "auto"
    precision: str = "auto"
    streams: int | None = None
    reuse: str = "off"
    clip: str | None = None
    """A video file to take frames from, resized to `size`; None is the drawn animation."""

    @property
    def label(self) -> str:
        """What distinguishes it from the others of its group."""
        given = [self.contestant]
        if self.contestant == OURS:
            given += [value for value in (self.backend, self.precision) if value != "auto"]
            given += [f"streams={self.streams}"] if self.streams else []
            given += {"engine": ["engine alone"], "vapoursynth": [], "encode": ["vspipe into ffmpeg"]}[self.measure]
            given += [f"reuse={self.reuse}"] if self.reuse != "off" else []
        return ", ".join(given)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values that JSON can represent."""
        return asdict(self) | {"label": self.label}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Case":
        """Restore the case from the result of `to_dict`."""
        values = {name: plain[name] for name in cls.__slots__}
        return cls(**values | {"size": (plain["size"][0], plain["size"][1])})


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that are measured in turns, so that other load on the machine affects all of them."""

    name: str
    title: str
    cases: tuple[Case, ...]
    rounds: int


def groups(
    extent: Extent,
    *,
    gpu: bool,
    backends: Sequence[tuple[str, Sequence[str]]],
    peers: Sequence[str],
    model: str = "medium",
    size: Size | None = None,
    rounds: int | None = None,
    clip: str | None = None,
) -> Iterator[Group]:
    """Yield the groups of a run.

    Args:
        extent: How much is measured.
        gpu: Whether there is one; without, ``quick`` takes a smaller frame, and streams are compared on one.
        backends: The usable ones and their precisions, both the best first.
        peers: Names of `peers.PEERS`.
        model: A name from the catalog, or a weights file.
        size: Width and height of the headline's frames; None for the usual one.
        rounds: Turns of every contestant that count; None for the usual number.
        clip: A video file, to see what `reuse` gains on it.
    """
    small = size or (HEADLINE if gpu else SMALL)
    head = size or (small if extent == "quick" else HEADLINE)
    ours = Case(OURS, model, head)
    left_out = SLOW if extent == "quick" else ()
    others = tuple(replace(ours, contestant=name) for name in peers if name not in left_out)
    parts: tuple[Measure, ...] = ("engine",) if extent == "quick" else ("engine", "encode")
    alone = tuple(replace(ours, measure=part) for part in parts)
    title = f"{Path(model).stem}, {head[0]}×{head[1]}"
    yield Group("headline", title, (ours, *alone, *others), rounds or (3 if extent == "quick" else 5))
    if extent == "quick":
        return
    yield Group("models", "shipped models", tuple(replace(ours, model=m) for m in MODELS), rounds or 5)
    if extent == "standard":
        return
    many = rounds or 5
    kinds = [(name, precision) for name, precisions in backends for precision in precisions]
    if len(kinds) > 1:
        at = replace(ours, size=small)
        cases = (at, *(replace(at, backend=name, precision=precision) for name, precision in kinds))
        yield Group("engines", f"engines and precisions, {small[0]}×{small[1]}", cases, many)
    cases = tuple(replace(ours, size=small, streams=n) for n in (1, 2, 3, 4))
    yield Group("streams", f"frames in flight, {small[0]}×{small[1]}", cases, many)
    yield Group("sizes", "sizes of discs", tuple(replace(ours, size=s) for s in SIZES), many)
    yield Group("sweep", "from 120 to 1080 lines", tuple(replace(ours, size=s) for s in SWEEP), rounds or 3)
    if clip:
        cases = tuple(replace(ours, size=small, clip=clip, reuse=r) for r in ("off", "exact", "0.01", "0.03"))
        yield Group("held", "frames that repeat, on a real clip", cases, rounds or 3)

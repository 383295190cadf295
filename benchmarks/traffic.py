"""Kernels of an engine, and the memory that each reads and writes per frame, as reported by TensorRT-RTX's builder.

No GPU is needed: with detailed profiling the builder logs every kernel with its tensors. A tensor counts once for every
kernel that reads or writes it, except that a kernel that only cuts out and joins tensors reads no more than it writes.
What stays in a GPU's cache between two kernels is not considered. Signals between two streams are no kernels.
"""

import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.workers.client import Worker

if TYPE_CHECKING:
    import onnx

BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int32": 4, "Int64": 8, "Bool": 1, "Int8": 1, "UInt8": 1, "FP8": 1}
KERNEL = re.compile(
    r"Name: (?P<name>\S+), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>\S*),.*?Metadata: (?P<layers>.*)"
)
TENSOR = re.compile(r"\{ Name: [^,]+, Dimensions: \[(?P<shape>[\d,]*)\].*?Datatype: (?P<type>\w+)")
LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
MOVES = re.compile(r"(Conc|Move|Resh|Slic|Tran)+")
"""Tactics that only move values."""
SIGNALS = ("signal", "wait")

CARDS = {
    "RTX 2060": 336,
    "RTX 3060": 360,
    "RTX 3090": 936,
    "RTX 4060": 272,
    "RTX 4070": 504,
    "RTX 4080": 717,
    "RTX 4090": 1008,
    "RTX 5070": 672,
    "RTX 5080": 960,
    "RTX 5090": 1792,
}
"""Memory bandwidth of cards in GB/s, as their vendor states it."""
SHARE_OF_BANDWIDTH = 0.82
"""Share of its bandwidth that a card is assumed to reach."""
LAUNCH = 1.5e-6
"""Seconds assumed from the end of one kernel to the start of the next in a CUDA graph."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of an engine."""

    name: str
    kind: str
    """How the library made it: ``kgen`` (generated), ``gemm``, ``correlation`` (convolution) and so on."""
    tactic: str
    """What it computes, if it is generated."""
    read: int
    """Bytes that it reads, weights included."""
    written: int
    """Bytes that it writes."""
    layers: tuple[str, ...]
    """Names of the graph's nodes in it."""

    @property
    def moved(self) -> int:
        """Bytes that it reads and writes."""
        return self.read + self.written

    @property
    def part(self) -> str:
        """Part of the network that its last node is in (`Writer.name_scope`); ``-`` for kernels without nodes."""
        return max(self.layers, key=_number).rpartition("/")[0] if self.layers else "-"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the builder reports of an engine."""

    kernels: tuple[Kernel, ...]
    """In the order in which they run."""
    activation_bytes: int
    engine_bytes: int
    build_seconds: float

    @property
    def moved(self) -> int:
        """Bytes that all kernels read and write per frame."""
        return sum(kernel.moved for kernel in self.kernels)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Return numbers of kernels and of bytes by the way the library made them, the most bytes first."""
        return _totals(self.kernels, lambda kernel: kernel.kind)

    def by_part(self) -> dict[str, tuple[int, int]]:
        """Return numbers of kernels and of bytes by part of the network, the most bytes first."""
        return _totals(self.kernels, lambda kernel: kernel.part)

    def estimated_ms(self) -> dict[str, float]:
        """Milliseconds per frame on cards, ESTIMATED from memory traffic and launches alone; none was measured."""
        return {
            card: round(1e3 * (self.moved / (1e9 * rate * SHARE_OF_BANDWIDTH) + LAUNCH * len(self.kernels)), 1)
            for card, rate in CARDS.items()
        }


def _number(layer: str) -> int:
    """Number of a node in the order of the graph."""
    result = re.search(r"_(\d+)$", layer)
    return int(result[1]) if result else -1


def _totals(kernels: Iterable[Kernel], key: Callable[[Kernel], str]) -> dict[str, tuple[int, int]]:
    count: Counter[str] = Counter()
    moved: defaultdict[str, int] = defaultdict(int)
    for kernel in kernels:
        count[key(kernel)] += 1
        moved[key(kernel)] += kernel.moved
    return {name: (count[name], moved[name]) for name in sorted(moved, key=lambda name: -moved[name])}


def kernels(log: str) -> tuple[Kernel, ...]:
    """Read the kernels from the log of a build with detailed profiling.

    Args:
        log: Text of the log.

    Raises:
        ValueError: A line about a kernel is not understood, or there is none.
    """
    result = []
    for line in log.splitlines():
        _, begins, rest = line.partition("Name: ")
        if not begins or ", LayerType: " not in rest:
            continue
        match = KERNEL.match(begins + rest)
        if match is None:
            raise ValueError(f"this line about a kernel is not understood: {line[:200]}")
        if match["kind"] in SIGNALS:
            continue
        tactic = re.sub(r"_0x[0-9a-f]+", "", match["tactic"]).removeprefix("__myl_")
        read, written = _bytes(match["inputs"]) + _bytes(match["constants"]), _bytes(match["outputs"])
        if MOVES.fullmatch(tactic):
            read = min(read, written)
        result.append(
            Kernel(match["name"], match["kind"], tactic, read, written, tuple(LAYER.findall(match["layers"])))
        )
    if not result:
        raise ValueError("the log lists no kernels; was it written with detailed profiling?")
    return tuple(result)


def _bytes(tensors: str) -> int:
    total = 0
    for tensor in TENSOR.finditer(tensors):
        if tensor["type"] not in BYTES:
            raise ValueError(f"this type of a tensor is not known: {tensor['type']}")
        size = BYTES[tensor["type"]]
        for side in filter(None, tensor["shape"].split(",")):
            size *= int(side)
        total += size
    return total


def build(graph: "onnx.ModelProto", target: str) -> Traffic:
    """Build an engine with TensorRT-RTX and read what it reports.

    Args:
        graph: The graph.
        target: Kind of GPU, such as ``sm89``.

    Raises:
        EngineError: The library is missing or cannot build the graph.
    """
    worker = Worker("vsfdatrd.backends.tensorrt.worker")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "graph.onnx").write_bytes(graph.SerializeToString())
        try:
            facts: dict[str, Any] = worker.ask(
                "build",
                library=RTX.module,
                graph=str(folder / "graph.onnx"),
                directory=text,
                targets=[target],
                how={"detailed": True},
                log=str(folder / "log"),
            )
        finally:
            worker.close()
        return Traffic(
            kernels((folder / "log").read_text(encoding="utf-8")),
            facts["activation_bytes"],
            (folder / "engine.trt").stat().st_size,
            facts["seconds"],
        )

"""How much every part does: on a GPU, and in a rehearsal on a processor."""

from dataclasses import dataclass

from vsfdatrd.options import Precision


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes and repetitions of a visit's measurements."""

    small: bool = False
    """Whether a network of one block of each kind stands in for medium."""
    height: int = 540
    width: int = 720
    """Of a frame in pixels."""
    turns: int = 5
    """Turns whose median counts."""
    frames: int = 20
    """Frames a turn."""
    copy_bytes: int = 1 << 30
    """Copied within the GPU's memory."""
    transfer_bytes: int = 256 << 20
    """Copied between host and GPU."""
    matrix: int = 8192
    """Side of the matrices that are multiplied."""
    precisions: tuple[Precision, ...] = ("fp16", "bf16")
    slots: tuple[int, ...] = (1, 2, 3, 4)
    """Frames in flight."""
    batches: tuple[int, ...] = (32, 64)
    """Crops in a training step that is profiled."""
    steps: int = 20
    """Training steps that are profiled."""


FULL = Sizes()
TINY = Sizes(
    small=True,
    precisions=("bf16",),
    height=60,
    width=60,
    turns=1,
    frames=1,
    copy_bytes=1 << 20,
    transfer_bytes=1 << 20,
    matrix=128,
    slots=(1, 2),
    batches=(1,),
    steps=1,
)

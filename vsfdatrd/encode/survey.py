"""Look at some frames of a film, spread evenly over it: what they say of their fields and size."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOWS, LENGTH = 16, 25
"""Parts of a film that are looked at, and frames of each (five cycles of telecine)."""

_EACH = 10  # frames of a part that are asked for their properties


@dataclass(frozen=True, slots=True)
class Survey:
    """What a sample of the frames say, each frame counting the same."""

    flags: Sequence[int]
    """_FieldBased of each: 0 progressive, 1 bottom field first, 2 top field first."""
    repeats: bool
    """Whether fields are to be repeated (soft telecine)."""
    forms: Counter[str] = field(default_factory=Counter)
    """Sizes and formats, such as ``720×480 YUV420P8``."""


def windows(frames: int) -> Sequence[range]:
    """Return the parts of a film to look at: spread evenly over it, all of a short one."""
    if frames <= WINDOWS * LENGTH:
        return (range(frames),)
    return [range(at, at + LENGTH) for at in (i * (frames - LENGTH) // (WINDOWS - 1) for i in range(WINDOWS))]


def survey(clip: Any) -> Survey:
    """Ask some frames of a clip for their properties.

    Raises:
        vs.Error: A frame cannot be decoded.
    """
    flags: list[int] = []
    repeats = 0
    forms: Counter[str] = Counter()
    for part in windows(clip.num_frames):
        # Of a short film frames from all of it; else neighbours, which are decoded together anyway.
        step = max(1, len(part) // (WINDOWS * _EACH))
        for n in part[::step] if len(part) > LENGTH else part[:_EACH]:
            with clip.get_frame(n) as frame:
                flags.append(int(frame.props.get("_FieldBased", 0)))
                repeats += bool(frame.props.get("RepeatField", 0))
                forms[f"{frame.width}×{frame.height} {frame.format.name}"] += 1
    return Survey(flags, repeats * 4 > len(flags), forms)

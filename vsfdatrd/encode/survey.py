"""Sample frames evenly across a clip and collect their field flags, sizes and formats."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOW_COUNT, WINDOW_FRAMES = 16, 25
"""Number of sampled windows, and frames per window (five telecine cycles)."""

_FRAMES_PER_WINDOW = 10  # frames per window whose properties are read


@dataclass(frozen=True, slots=True)
class Survey:
    """Frame properties of the sampled frames, all weighted equally."""

    flags: Sequence[int]
    """_FieldBased of each frame: 0 progressive, 1 bottom field first, 2 top field first."""
    repeats: bool
    """True if more than a quarter of the frames have RepeatField set (soft telecine)."""
    forms: Counter[str] = field(default_factory=Counter)
    """Frame count by size and format, such as ``720×480 YUV420P8``."""


def sample_windows(frames: int) -> Sequence[range]:
    """Return the frame ranges to sample, spread evenly over a clip; a short clip is one range with all frames.

    Args:
        frames: Number of frames of the clip.
    """
    if frames <= WINDOW_COUNT * WINDOW_FRAMES:
        return (range(frames),)
    return [
        range(at, at + WINDOW_FRAMES)
        for at in (i * (frames - WINDOW_FRAMES) // (WINDOW_COUNT - 1) for i in range(WINDOW_COUNT))
    ]


def survey_clip(clip: Any) -> Survey:
    """Read the properties of sampled frames.

    Args:
        clip: A vapoursynth.VideoNode.

    Raises:
        vs.Error: A frame cannot be decoded.
    """
    flags: list[int] = []
    repeats = 0
    forms: Counter[str] = Counter()
    for part in sample_windows(clip.num_frames):
        # In a short clip, frames from all of it; otherwise consecutive ones, which are decoded together anyway.
        step = max(1, len(part) // (WINDOW_COUNT * _FRAMES_PER_WINDOW))
        for n in part[::step] if len(part) > WINDOW_FRAMES else part[:_FRAMES_PER_WINDOW]:
            with clip.get_frame(n) as frame:
                flags.append(int(frame.props.get("_FieldBased", 0)))
                repeats += bool(frame.props.get("RepeatField", 0))
                forms[f"{frame.width}×{frame.height} {frame.format.name}"] += 1
    return Survey(flags, repeats * 4 > len(flags), forms)

"""Interface of contestants, which upscale the same frames in any number at a time."""

from abc import ABC, abstractmethod

import numpy as np
import vapoursynth as vs

from benchmarks.speed.material import Frame


class Contestant(ABC):
    """Opened once, then asked for frames repeatedly."""

    depth: int = 1
    """Number of frames in flight; a round needs at least as many."""
    seconds: float | None = None
    """Duration of the last `run`, if the contestant measures it better than the caller."""

    @abstractmethod
    def run(self, first: int, count: int) -> None:
        """Upscale `count` frames of the endless animation, the first of which is `first`, and wait for all of them."""

    @abstractmethod
    def picture(self) -> Frame | None:
        """Return the result of frame 0, (3, H, W) in [0, 1]; None if it is not available."""


class Filter(Contestant):
    """The clip of a VapourSynth filter, with as many requests in flight as VapourSynth has threads."""

    def __init__(self, clip: vs.VideoNode, depth: int = 2) -> None:
        vs.core.std.SetVideoCache(clip, mode=0)
        self._clip = clip
        self.depth = depth

    def run(self, first: int, count: int) -> None:
        """Request frames and discard them."""
        start = first % max(1, self._clip.num_frames - count)
        for frame in self._clip[start : start + count].frames(close=True):
            del frame

    def picture(self) -> Frame:
        """Return frame 0, clamped to [0, 1]."""
        with self._clip.get_frame(0) as frame:
            return np.clip(np.stack([np.asarray(frame[i], np.float32) for i in range(3)]), 0, 1)


class Loop(Contestant):
    """A function from a frame (3, H, W) to a frame, called for one frame after the other."""

    @abstractmethod
    def upscale(self, frame: Frame) -> Frame:
        """Upscale a frame (3, H, W) of 0 to 1 to (3, H·scale, W·scale)."""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames

    def run(self, first: int, count: int) -> None:
        """Process one frame after the other."""
        for n in range(first, first + count):
            self.upscale(self._frames[n % len(self._frames)])

    def picture(self) -> Frame:
        """Return frame 0, clamped to [0, 1]."""
        return np.clip(self.upscale(self._frames[0]), 0, 1)

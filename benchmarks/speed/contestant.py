"""What a contestant is: something that upscales the same frames as the others, any number at a time."""

from abc import ABC, abstractmethod

import numpy as np
import vapoursynth as vs

from benchmarks.speed.material import Frame


class Missing(Exception):
    """A contestant cannot take part; the message says why, and what to install."""


class Contestant(ABC):
    """Opened once, then asked for frames again and again."""

    depth: int = 1
    """Frames in flight at once: fewer in a round would not fill it."""
    seconds: float | None = None
    """How long the last `run` took, if the contestant knows better than who called it."""

    @abstractmethod
    def run(self, first: int, count: int) -> None:
        """Upscale frames `first` to `first + count` of the endless animation to their end."""

    @abstractmethod
    def picture(self) -> Frame | None:
        """What it makes of frame 0, (3, H, W) in [0, 1]; None if that cannot be had."""


class Filter(Contestant):
    """A VapourSynth filter's clip, as many frames being asked for at once as VapourSynth has threads."""

    def __init__(self, clip: vs.VideoNode, depth: int = 2) -> None:
        vs.core.std.SetVideoCache(clip, mode=0)
        self._clip = clip
        self.depth = depth

    def run(self, first: int, count: int) -> None:
        """Ask for frames and let them go."""
        start = first % max(1, self._clip.num_frames - count)
        for frame in self._clip[start : start + count].frames(close=True):
            del frame

    def picture(self) -> Frame:
        """Frame 0, cut to [0, 1]."""
        with self._clip.get_frame(0) as frame:
            return np.clip(np.stack([np.asarray(frame[i], np.float32) for i in range(3)]), 0, 1)


class Loop(Contestant):
    """A function from a frame (3, H, W) to a frame, called for one after the other."""

    @abstractmethod
    def upscale(self, frame: Frame) -> Frame:
        """(3, H, W) in [0, 1] -> (3, H·scale, W·scale)."""

    def __init__(self, frames: list[Frame]) -> None:
        self._frames = frames

    def run(self, first: int, count: int) -> None:
        """One frame after the other."""
        for n in range(first, first + count):
            self.upscale(self._frames[n % len(self._frames)])

    def picture(self) -> Frame:
        """Frame 0, cut to [0, 1]."""
        return np.clip(self.upscale(self._frames[0]), 0, 1)

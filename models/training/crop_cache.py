"""Crops composed in advance, for CPUs, on which composing a crop takes longer than learning from it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.training.data import CropSampler
from models.training.state import write

AT_ONCE = 16
"""Number of crops composed at a time."""

_MIRRORED, _TURNED, _SWAPPED = 0.5, 0.3, 0.3
"""Shares of crops that are mirrored along an axis, have their axes exchanged, and have their colors exchanged."""


class CropCache:
    """Stored crops, viewed through smaller windows, mirrored and recolored, so that the same view rarely occurs twice.

    Random numbers come from torch's global generator.

    Args:
        crops: (K, 3, T, T) uint8 on the CPU; may be memory-mapped from a file.
    """

    def __init__(self, crops: Tensor) -> None:
        self.crops = crops

    @classmethod
    def open(cls, file: Path, pool: Callable[[], CropSampler], count: int, size: int) -> "CropCache":
        """Open the crops stored in a file, or create it from the crops of a sampler if it does not exist.

        Args:
            file: File of the crops.
            pool: Creates the sampler.
            count: Number of crops to draw.
            size: Side of a crop in pixels.

        Raises:
            ValueError: The file has fewer or smaller crops, as of another recipe.
        """
        if not file.exists():
            source = pool()
            crops = np.empty((count, 3, size, size), np.uint8)
            for first in tqdm(range(0, count, AT_ONCE), desc="composing crops", unit="batch"):
                some = source.sample(min(AT_ONCE, count - first), size)
                crops[first : first + AT_ONCE] = (some * 255).round().byte().cpu().numpy()
            write(file, lambda opened: np.save(opened, crops))
        # Copy on write: nothing is written, and torch asks for memory that could be.
        crops = np.load(file, mmap_mode="c")
        if len(crops) < count or crops.shape[-1] < size:
            raise ValueError(
                f"{file} has {len(crops)} crops of {crops.shape[-1]} pixels, and the recipe needs {count} of {size}; "
                "delete it, or choose another file (--bank)"
            )
        return cls(torch.from_numpy(crops))

    def sample(self, batch: int, size: int) -> Tensor:
        """Draw a batch: (batch, 3, size, size) RGB in [0, 1]."""
        count, _, side, _ = self.crops.shape
        views = []
        for _ in range(batch):
            picked = int(torch.randint(count, ()))
            y, x = torch.randint(side - size + 1, (2,)).tolist()
            view = self.crops[picked, :, y : y + size, x : x + size]
            down, across, turn, swap = torch.rand(4).tolist()
            view = view.flip(1) if down < _MIRRORED else view
            view = view.flip(2) if across < _MIRRORED else view
            view = view.mT if turn < _TURNED else view
            views.append(view[torch.randperm(3)] if swap < _SWAPPED else view)
        return torch.stack(views).float() / 255

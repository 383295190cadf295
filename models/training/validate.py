"""Measuring on held-back pictures: always the same crops with the same degradation, on any device."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.training.data import Pool
from models.training.degrade import degrade
from models.training.network import bicubic
from models.training.recipe import Recipe
from models.training.state import write
from models.training.strengths import draw

type Enlarge = Callable[[Tensor], Tensor]

KINDS = {"clean": (1.0, 0.0), "dvd": (0.0, 0.0), "laserdisc": (0.0, 1.0)}
"""Kind: shares of clean and LaserDisc in it."""

_LUMA = (0.2126, 0.7152, 0.0722)
_BORDER = 8


def psnr(output: Tensor, truth: Tensor) -> Tensor:
    """PSNR of luma in dB without a border of 8 pixels, at most 50: (B, 3, H, W) twice -> (B,)."""
    error = ((output.clamp(0, 1) - truth) * truth.new_tensor(_LUMA).view(3, 1, 1)).sum(1)
    error = error[:, _BORDER:-_BORDER, _BORDER:-_BORDER]
    return -10 * torch.log10((error * error).mean((1, 2)).clamp_min(1e-5))


class Validation:
    """Fixed pairs of every kind."""

    def __init__(self, tiles: Path, recipe: Recipe, device: torch.device) -> None:
        random = torch.Generator().manual_seed(20_000)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20_000)
            pool = Pool.open(tiles, replace(recipe, sprites=0), random, held_back=True)
            truth = pool.sample(recipe.validate_crops, 2 * recipe.size)
        self.truth = truth.to(device)
        self.inputs = {
            kind: degrade(truth, draw(len(truth), random, clean=clean, laserdisc=laserdisc), random).to(device)
            for kind, (clean, laserdisc) in KINDS.items()
        }
        self.baseline = self.measure(bicubic)
        """Cubic interpolation's PSNR, in dB by kind."""

    @torch.no_grad()
    def measure(self, enlarge: Enlarge) -> dict[str, float]:
        """Mean PSNR in dB by kind. enlarge: (B, 3, H, W) -> (B, 3, 2H, 2W)."""
        result = {}
        for kind, inputs in self.inputs.items():
            scores = [psnr(enlarge(x).float(), y) for x, y in self._parts(inputs)]
            result[kind] = round(float(torch.cat(scores).mean()), 3)
        return result

    def _parts(self, inputs: Tensor, most: int = 8) -> list[tuple[Tensor, Tensor]]:
        return list(zip(torch.split(inputs, most), torch.split(self.truth, most), strict=True))

    @torch.no_grad()
    def picture(self, enlarge: Enlarge, file: Path, crops: int = 2) -> None:
        """Write a PNG: rows of crops by kind; input, cubic interpolation, output, truth beside each other."""
        rows = []
        for inputs in self.inputs.values():
            x, y = inputs[:crops], self.truth[:crops]
            nearest = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            columns = torch.cat([nearest, bicubic(x), enlarge(x).float().clamp(0, 1), y], 3)
            rows.append(torch.cat(list(columns), 1))
        pixels = (torch.cat(rows, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        write(file, lambda opened: Image.fromarray(np.ascontiguousarray(pixels)).save(opened, "PNG"))

"""Validation on held-back pictures: always the same crops with the same degradation, on any device.

python -m models.training.validate --recipe medium_visit.toml --data tiles.zip --out validation.npz
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.training.data import CropSampler
from models.training.degrade import degrade
from models.training.loss import ycc
from models.training.network import upscale_bicubic
from models.training.recipe import Recipe
from models.training.state import write
from models.training.strengths import draw_strengths

type Enlarge = Callable[[Tensor], Tensor]

KINDS = {
    "clean": {"clean": 1.0, "laserdisc": 0.0},
    "dvd": {"clean": 0.0, "laserdisc": 0.0},
    "laserdisc": {"clean": 0.0, "laserdisc": 1.0},
    "digital dvd": {"clean": 0.0, "laserdisc": 0.0, "digital": 1.0},
    "digital laserdisc": {"clean": 0.0, "laserdisc": 1.0, "digital": 1.0},
}
"""Kind -> its shares, as arguments of `draw_strengths`."""

_LUMA = (0.2126, 0.7152, 0.0722)
_BORDER = 8


class Scores(NamedTuple):
    """Mean scores by kind."""

    psnr: dict[str, float]
    """PSNR of luma in dB."""
    chroma: dict[str, float]
    """Root mean square error of Cb and Cr, in levels of 255."""


def _remove_border(x: Tensor) -> Tensor:
    return x[..., _BORDER:-_BORDER, _BORDER:-_BORDER]


def luma_psnr(output: Tensor, truth: Tensor) -> Tensor:
    """Return the PSNR of luma in dB without a border of 8 pixels, at most 50: (B, 3, H, W) twice -> (B,)."""
    error = _remove_border(((output.clamp(0, 1) - truth) * truth.new_tensor(_LUMA).view(3, 1, 1)).sum(1))
    return -10 * torch.log10((error * error).mean((1, 2)).clamp_min(1e-5))


def chroma_error(output: Tensor, truth: Tensor) -> Tensor:
    """Return the RMS error of Cb and Cr in levels of 255, without the border: (B, 3, H, W) twice -> (B,)."""
    return 255 * _remove_border(ycc(output.clamp(0, 1) - truth)[:, 1:]).square().mean((1, 2, 3)).sqrt()


class Validation:
    """Fixed pairs of every kind, all with 8 bits."""

    def __init__(self, truth: Tensor, inputs: dict[str, Tensor]) -> None:
        """Store the pairs, and compute the scores of cubic interpolation.

        Args:
            truth: (N, 3, 2H, 2W).
            inputs: (N, 3, H, W) by kind.
        """
        self.truth, self.inputs = truth, inputs
        self.baseline = self.measure(upscale_bicubic)
        """Scores of cubic interpolation."""

    @classmethod
    def compose(cls, tiles: Path, recipe: Recipe, device: torch.device) -> Self:
        """Compose pairs from the tiles that no training uses."""
        random = torch.Generator().manual_seed(20_000)
        pool = CropSampler.open(tiles, replace(recipe, sprites=0), random, held_back=True)
        truth = torch.round(255 * pool.sample(recipe.validate_crops, 2 * recipe.size)) / 255
        inputs = {
            kind: degrade(truth, draw_strengths(len(truth), random, **shares), random).to(device)
            for kind, shares in KINDS.items()
        }
        return cls(truth.to(device), inputs)

    @classmethod
    def open(cls, file: Path, tiles: Path, recipe: Recipe, device: torch.device) -> Self:
        """Open what `write` wrote; compose and write it first if it does not exist."""
        if not file.exists():
            composed = cls.compose(tiles, recipe, device)
            composed.write(file)
            return composed
        with np.load(file) as arrays:
            pictures = {name: torch.from_numpy(arrays[name]).to(device).float() / 255 for name in arrays.files}
        return cls(pictures.pop("truth"), pictures)

    def write(self, file: Path) -> None:
        """Write compressed .npz of uint8."""
        pictures = {"truth": self.truth, **self.inputs}
        arrays = {name: (255 * x).round().byte().cpu().numpy() for name, x in pictures.items()}
        write(file, lambda opened: np.savez_compressed(opened, allow_pickle=False, **arrays))

    @torch.no_grad()
    def measure(self, enlarge: Enlarge) -> Scores:
        """Measure a network's outputs; `enlarge` maps (B, 3, H, W) to (B, 3, 2H, 2W)."""
        scores = Scores({}, {})
        for kind, inputs in self.inputs.items():
            pairs = [(enlarge(x).float(), y) for x, y in self._parts(inputs)]
            for results, measure in ((scores.psnr, luma_psnr), (scores.chroma, chroma_error)):
                results[kind] = round(float(torch.cat([measure(x, y) for x, y in pairs]).mean()), 3)
        return scores

    def _parts(self, inputs: Tensor, most: int = 8) -> list[tuple[Tensor, Tensor]]:
        return list(zip(torch.split(inputs, most), torch.split(self.truth, most), strict=True))

    @torch.no_grad()
    def picture(self, enlarge: Enlarge, file: Path, crops: int = 2) -> None:
        """Write a PNG with rows of crops by kind: input, cubic interpolation, output, truth."""
        rows = []
        for inputs in self.inputs.values():
            x, y = inputs[:crops], self.truth[:crops]
            nearest = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            columns = torch.cat([nearest, upscale_bicubic(x), enlarge(x).float().clamp(0, 1), y], 3)
            rows.append(torch.cat(list(columns), 1))
        pixels = (torch.cat(rows, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        write(file, lambda opened: Image.fromarray(np.ascontiguousarray(pixels)).save(opened, "PNG"))


def main(arguments: list[str] | None = None) -> int:
    """Write the pairs of a recipe to a file, for use on another machine."""
    parser = argparse.ArgumentParser(prog="python -m models.training.validate", description=main.__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="of the training")
    parser.add_argument("--data", type=Path, required=True, help="what models.training.pack wrote")
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args(arguments)
    Validation.compose(a.data, Recipe.read(a.recipe), torch.device("cpu")).write(a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

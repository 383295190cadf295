"""Pictures with which to judge the training data.

python -m models.training.preview tiles.zip steps.webp                   # every step alone, weak and strong, enlarged
python -m models.training.preview tiles.zip mixes.webp --mixes           # complete degradations as they are drawn
python -m models.training.preview tiles.zip crops.webp --crops           # the ground truth
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from models.training.data import CropSampler
from models.training.degrade import degrade
from models.training.recipe import Recipe
from models.training.strengths import STEPS, Strengths, draw_strengths

_TOGETHER = {
    "halo": {"halo_width": 1.0},
    "halo_down": {"halo_width": 1.0},
    "grain_size": {"grain": 5.0},
    "siting": {"half": 1.0},
    "predicted": {"quantizer": 12.0, "grain": 3.0, "half": 1.0},
    "quantizer": {"half": 1.0},
    "comb": {"chroma": 0.8},
}
"""Other steps that a step needs to be visible."""

_NOT_ALONE = {"halo_width"}
_TITLE = 14


def arrange_labeled(pictures: list[tuple[str, Tensor]], columns: int) -> Image.Image:
    """Arrange pictures (3, H, W) of one size in rows, with a line of text above each."""
    _, height, width = pictures[0][1].shape
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + 4), rows * (height + _TITLE + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for n, (text, picture) in enumerate(pictures):
        left, top = n % columns * (width + 4), n // columns * (height + _TITLE + 4)
        pen.text((left + 2, top + 1), text, fill="black")
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (left, top + _TITLE))
    return sheet


def repeat_pixels(x: Tensor) -> Tensor:
    """Enlarge by pixel repetition: (…, H, W) -> (…, 2H, 2W)."""
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def show_steps(truth: Tensor, generator: torch.Generator) -> list[tuple[str, Tensor]]:
    """Show a truth (3, 2H, 2W), its clean half, and every step alone at its weakest and strongest, enlarged again."""

    def alone(**strengths: float) -> Tensor:
        return repeat_pixels(degrade(truth[None], Strengths.only(1, strengths), generator)[0])

    pictures = [("truth", truth), ("halved", alone())]
    for name, step in STEPS.items():
        if name in _NOT_ALONE:
            continue
        strengths = [strength for _, *ends in step for strength in ends]
        for strength in sorted({min(strengths), max(strengths)}, reverse=step.dvd.weak > step.dvd.strong):
            pictures.append((f"{name} {strength:g}", alone(**(_TOGETHER.get(name, {}) | {name: strength}))))
    return pictures


def show_pairs(pool: CropSampler, count: int, size: int, recipe: Recipe) -> list[tuple[str, Tensor]]:
    """Show pairs as training draws them: each degraded crop, enlarged, next to its truth."""
    truth = pool.sample(count, size)
    pictures = []
    shares = [draw_strengths(count, pool.generator, clean=0, laserdisc=kind) for kind in (0.0, 1.0)]
    for kind, strengths in zip(("dvd", "laserdisc"), shares, strict=True):
        degraded = repeat_pixels(degrade(truth, strengths, pool.generator))
        pictures.append([(kind, picture) for picture in degraded])
    return [entry for n in range(count) for entry in (pictures[0][n], ("truth", truth[n]), pictures[1][n])]


def main() -> int:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m models.training.preview", description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mixes", action="store_true", help="whole degradations beside the truth")
    parser.add_argument("--crops", action="store_true", help="only what is to be restored")
    parser.add_argument("--size", type=int, default=0, help="side of a picture in pixels, a multiple of 8")
    parser.add_argument("--seed", type=int, default=3)
    a = parser.parse_args()
    torch.manual_seed(a.seed)
    generator = torch.Generator().manual_seed(a.seed)
    recipe = replace(Recipe(), sprites=400)
    pool = CropSampler.open(a.tiles, recipe, generator)
    if a.crops:
        sheet = arrange_labeled([("", picture) for picture in pool.sample(30, a.size or 240)], 6)
    elif a.mixes:
        sheet = arrange_labeled(show_pairs(pool, 8, a.size or 240, recipe), 6)
    else:
        sheet = arrange_labeled(show_steps(pool.sample(1, a.size or 160)[0], generator), 7)
    sheet.save(a.out, quality=80)
    return 0


if __name__ == "__main__":
    sys.exit(main())

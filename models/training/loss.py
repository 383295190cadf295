"""The loss: distances between a picture and the truth.

All terms are means over pixels, so that crops of any size and batches of any number have the same weight.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.recipe import Recipe

YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""R'G'B' to Y'CbCr of ITU-R BT.601."""


def charbonnier(difference: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Return the mean Charbonnier distance (Charbonnier et al. 1994), rounded below epsilon. Any shape -> scalar."""
    return torch.sqrt(difference * difference + epsilon * epsilon).mean()


def gradient(difference: Tensor) -> Tensor:
    """Return the mean difference between the errors of neighboring pixels. (B, C, H, W) -> scalar.

    It is small if edges are as sharp as in the truth.
    """
    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def frequency(output: Tensor, truth: Tensor) -> Tensor:
    """Return the mean error of the spectrum of luma, in magnitude and phase. (B, 3, H, W) twice -> scalar."""
    difference = _luma(output - truth)
    spectrum: Tensor = torch.fft.rfft2(difference, norm="ortho")
    return spectrum.abs().mean()


def structure(output: Tensor, truth: Tensor, scales: int = 3) -> Tensor:
    """Return one minus SSIM of luma (Wang et al. 2004). (B, 3, H, W) twice -> scalar.

    It is averaged over `scales` sizes, each half of the one before. Unlike a distance, it weights an error more where
    the truth is calm, and less next to strong lines.
    """
    return _unlike(_luma(output), _luma(truth), scales, 9e-4)


def color_structure(output: Tensor, truth: Tensor, scales: int = 3) -> Tensor:
    """Return the same for Cb and Cr, whose contrasts are smaller. (B, 3, H, W) twice -> scalar.

    The halved sizes detect color that has bled over a line, which hardly changes the distance of any pixel.
    """
    mine, theirs = (ycc(x)[:, 1:].flatten(0, 1)[:, None] + 0.5 for x in (output, truth))
    return _unlike(mine, theirs, scales, 2e-4)


def _unlike(mine: Tensor, theirs: Tensor, scales: int, calm: float) -> Tensor:
    """Return one minus SSIM, averaged over `scales` sizes, each half of the one before.

    Differences count little where the contrast is below `calm`.
    """
    total = mine.new_zeros(())
    for scale in range(scales):
        if scale:
            mine, theirs = F.avg_pool2d(mine, 2), F.avg_pool2d(theirs, 2)
        maps = torch.cat([mine, theirs, mine * mine, theirs * theirs, mine * theirs])
        down, across = (_window(side, maps.device) for side in maps.shape[2:])
        a, b, aa, bb, ab = (down @ maps @ across.mT).chunk(5)
        light = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
        contrast = (2 * (ab - a * b) + calm) / (aa - a * a + bb - b * b + calm)
        total = total + (1 - light * contrast).mean()
    return total / scales


def color(difference: Tensor) -> Tensor:
    """Return the Charbonnier distance of Cb and Cr. (B, 3, H, W) -> scalar."""
    return charbonnier(ycc(difference)[:, 1:])


def flat(output: Tensor, colors: Tensor) -> Tensor:
    """Return the error of flat colors far from the border. (B, 3, H, W), (B, 3, 1, 1) -> scalar."""
    side = output.shape[-1]
    middle = slice(side // 2 - 2, side // 2 + 2)  # every place in a token of 2×2 pixels, twice enlarged
    return charbonnier(output[..., middle, middle] - colors, 1e-4)


def total(output: Tensor, truth: Tensor, recipe: Recipe) -> Tensor:
    """Return the sum of the recipe's terms with its weights. (B, 3, H, W) float32 twice -> scalar."""
    difference = output - truth
    result = recipe.pixel * charbonnier(difference)
    if recipe.gradient:
        result = result + recipe.gradient * gradient(difference)
    if recipe.frequency:
        result = result + recipe.frequency * frequency(output, truth)
    if recipe.structure:
        result = result + recipe.structure * structure(output, truth)
    if recipe.color:
        result = result + recipe.color * color(difference)
    if recipe.color_structure:
        result = result + recipe.color_structure * color_structure(output, truth)
    return result


def _luma(x: Tensor) -> Tensor:
    return F.conv2d(x, _matrix(x.device)[:1])


def ycc(x: Tensor) -> Tensor:
    """Convert R'G'B' to Y'CbCr, chroma from -0.5 to 0.5. (B, 3, H, W) -> the same shape."""
    return F.conv2d(x, _matrix(x.device))


# Constants are kept for each device, or every step would wait for them.


@cache
def _matrix(device: torch.device) -> Tensor:
    return torch.tensor(YCC, device=device)[..., None, None]


@cache
def _window(side: int, device: torch.device, sigma: float = 1.5, reach: int = 4) -> Tensor:
    """Return a matrix (side - 2·reach, side): each row is a Gaussian window of sum one at one position where it fits.

    A matrix, because CPUs are slow at convolutions of a single channel.
    """
    x = torch.arange(side) - torch.arange(reach, side - reach)[:, None]
    window = torch.exp(-(x * x) / (2 * sigma * sigma)) * (x.abs() <= reach)
    return (window / window.sum(1, keepdim=True)).to(device)

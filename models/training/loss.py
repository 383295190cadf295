"""How far a picture is from the truth, as training counts it.

All terms are means over pixels, so that crops of any size and batches of any number weigh the same.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.recipe import Recipe

_LUMA = (0.299, 0.587, 0.114)


def charbonnier(difference: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean distance, rounded off below epsilon (Charbonnier et al. 1994). Any shape -> scalar."""
    return torch.sqrt(difference * difference + epsilon * epsilon).mean()


def gradient(difference: Tensor) -> Tensor:
    """Mean difference of neighbouring pixels' errors: edges as sharp as the truth's. (B, C, H, W) -> scalar."""
    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    return across.abs().mean() + down.abs().mean()


def frequency(output: Tensor, truth: Tensor) -> Tensor:
    """Mean error of the spectrum of luma, where and how strong alike. (B, 3, H, W) twice -> scalar."""
    difference = _luma(output - truth)
    spectrum: Tensor = torch.fft.rfft2(difference, norm="ortho")
    return spectrum.abs().mean()


def texture(output: Tensor, truth: Tensor, scales: int = 2) -> Tensor:
    """Difference in the strength of lines and edges by direction. (B, 3, H, W) twice -> scalar.

    Strength is the length of a pair of Gabor filters' answers, a quarter of a wave apart: it says that there is a line
    and how it runs, and hardly where in its few pixels. A blurred line answers weakly, a displaced one does not.
    """
    kernels = _gabor().to(output)
    total = output.new_zeros(())
    both = torch.cat([_luma(output), _luma(truth)])
    for scale in range(scales):
        if scale:
            both = F.avg_pool2d(both, 2)
        answers = F.conv2d(both, kernels)  # (2B, 2·directions, H', W')
        even, odd = answers.chunk(2, 1)
        mine, theirs = torch.sqrt(even * even + odd * odd + 1e-6).chunk(2)
        total = total + (mine - theirs).abs().mean()
    return total / scales


def structure(output: Tensor, truth: Tensor, scales: int = 3) -> Tensor:
    """One minus SSIM of luma (Wang et al. 2004), the mean of `scales` halved sizes. (B, 3, H, W) twice -> scalar.

    Unlike a distance it counts an error for more where the truth is calm, and for less beside strong lines.
    """
    row = _gauss().to(output)
    mine, theirs = _luma(output), _luma(truth)
    total = output.new_zeros(())
    for scale in range(scales):
        if scale:
            mine, theirs = F.avg_pool2d(mine, 2), F.avg_pool2d(theirs, 2)
        maps = torch.cat([mine, theirs, mine * mine, theirs * theirs, mine * theirs])
        a, b, aa, bb, ab = F.conv2d(F.conv2d(maps, row), row.mT).chunk(5)
        light = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
        contrast = (2 * (ab - a * b) + 9e-4) / (aa - a * a + bb - b * b + 9e-4)
        total = total + (1 - light * contrast).mean()
    return total / scales


def flat(output: Tensor, colours: Tensor) -> Tensor:
    """What became of flat colours, far from the border. (B, 3, H, W), (B, 3, 1, 1) -> scalar."""
    side = output.shape[-1]
    middle = slice(side // 2 - 2, side // 2 + 2)  # every place in a token of 2×2 pixels, twice enlarged
    return charbonnier(output[..., middle, middle] - colours, 1e-4)


def total(output: Tensor, truth: Tensor, recipe: Recipe) -> Tensor:
    """The recipe's terms by its weights. (B, 3, H, W) float32 twice -> scalar."""
    difference = output - truth
    result = recipe.pixel * charbonnier(difference)
    if recipe.gradient:
        result = result + recipe.gradient * gradient(difference)
    if recipe.frequency:
        result = result + recipe.frequency * frequency(output, truth)
    if recipe.texture:
        result = result + recipe.texture * texture(output, truth)
    if recipe.structure:
        result = result + recipe.structure * structure(output, truth)
    return result


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)


@cache
def _gauss(sigma: float = 1.5, reach: int = 4) -> Tensor:
    """(1, 1, 1, 2·reach + 1): a window of sum one."""
    x = torch.arange(-reach, reach + 1.0)
    window = torch.exp(-(x * x) / (2 * sigma * sigma))
    return (window / window.sum())[None, None, None]


@cache
def _gabor(directions: int = 6, wavelength: float = 4.0, sigma: float = 1.6) -> Tensor:
    """(2·directions, 1, 9, 9): even filters, then odd ones, each of mean zero and length one."""
    y, x = torch.meshgrid(torch.arange(-4.0, 5.0), torch.arange(-4.0, 5.0), indexing="ij")
    envelope = torch.exp(-(x * x + y * y) / (2 * sigma * sigma))
    filters = []
    for wave in (torch.cos, torch.sin):
        for k in range(directions):
            angle = math.pi * k / directions
            kernel = envelope * wave(math.tau / wavelength * (x * math.cos(angle) + y * math.sin(angle)))
            kernel = kernel - envelope * kernel.sum() / envelope.sum()
            filters.append(kernel / kernel.norm())
    return torch.stack(filters)[:, None]

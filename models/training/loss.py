"""The loss: distances between a picture and the truth.

All terms are means over pixels, so that crops of any size and batches of any number have the same weight.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.training.recipe import Recipe

_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
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


def edges(output: Tensor, truth: Tensor) -> Tensor:
    """Return the Charbonnier distance of luma near lines and edges. (B, 3, H, W) twice -> scalar.

    Only pixels on or next to a line or an edge of the truth count.
    """
    theirs = _luma(truth)
    step = F.max_pool2d(theirs, 3, 1, 1) + F.max_pool2d(-theirs, 3, 1, 1)  # between brightest and darkest of 3×3
    weight = F.avg_pool2d((4 * step).clamp(0, 1), 3, 1, 1)
    difference = _luma(output) - theirs
    distance = weight * torch.sqrt(difference * difference + 1e-6)
    return distance.sum() / weight.sum().clamp_min(1.0)


def crisper(truth: Tensor, amount: float) -> Tensor:
    """Steepen the lines of the truth without halos: (B, 3, H, W) -> the same shape.

    Luma is sharpened and clamped to the range of the surrounding 3×3 pixels; color is unchanged.
    """
    luma = _luma(truth)
    row = _window(9, truth.device)  # (1, 9)
    soft = F.conv2d(F.conv2d(F.pad(luma, (4, 4, 4, 4), "replicate"), row[None, None]), row.mT[None, None])
    sharp = (luma + amount * (luma - soft)).minimum(F.max_pool2d(luma, 3, 1, 1)).maximum(-F.max_pool2d(-luma, 3, 1, 1))
    return (truth + sharp - luma).clamp(0, 1)


def frequency(output: Tensor, truth: Tensor) -> Tensor:
    """Return the mean error of the spectrum of luma, in magnitude and phase. (B, 3, H, W) twice -> scalar."""
    difference = _luma(output - truth)
    spectrum: Tensor = torch.fft.rfft2(difference, norm="ortho")
    return spectrum.abs().mean()


def texture(output: Tensor, truth: Tensor, scales: int = 2) -> Tensor:
    """Return the difference in the strength of lines and edges by direction. (B, 3, H, W) twice -> scalar.

    Strength is the magnitude of the responses of a pair of Gabor filters a quarter of a wavelength apart: it measures
    that there is a line and its direction, but hardly its exact position within a few pixels. A blurred line has a weak
    response, a displaced one does not.
    """
    kernels = _gabor(output.device)
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
    if recipe.crisp:
        truth = crisper(truth, recipe.crisp)
    difference = output - truth
    result = recipe.pixel * charbonnier(difference)
    if recipe.gradient:
        result = result + recipe.gradient * gradient(difference)
    if recipe.edges:
        result = result + recipe.edges * edges(output, truth)
    if recipe.frequency:
        result = result + recipe.frequency * frequency(output, truth)
    if recipe.texture:
        result = result + recipe.texture * texture(output, truth)
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
    return torch.tensor(_YCC, device=device)[..., None, None]


@cache
def _window(side: int, device: torch.device, sigma: float = 1.5, reach: int = 4) -> Tensor:
    """Return a matrix (side - 2·reach, side): each row is a Gaussian window of sum one at one position where it fits.

    A matrix, because CPUs are slow at convolutions of a single channel.
    """
    x = torch.arange(side) - torch.arange(reach, side - reach)[:, None]
    window = torch.exp(-(x * x) / (2 * sigma * sigma)) * (x.abs() <= reach)
    return (window / window.sum(1, keepdim=True)).to(device)


@cache
def _gabor(device: torch.device, directions: int = 6, wavelength: float = 4.0, sigma: float = 1.6) -> Tensor:
    """Return the Gabor filters, each of mean zero and norm one: (2·directions, 1, 9, 9).

    The even ones come first, then the odd ones.
    """
    y, x = torch.meshgrid(torch.arange(-4.0, 5.0), torch.arange(-4.0, 5.0), indexing="ij")
    envelope = torch.exp(-(x * x + y * y) / (2 * sigma * sigma))
    filters = []
    for wave in (torch.cos, torch.sin):
        for k in range(directions):
            angle = math.pi * k / directions
            kernel = envelope * wave(math.tau / wavelength * (x * math.cos(angle) + y * math.sin(angle)))
            kernel = kernel - envelope * kernel.sum() / envelope.sum()
            filters.append(kernel / kernel.norm())
    return torch.stack(filters)[:, None].to(device)

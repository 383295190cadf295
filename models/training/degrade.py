"""What DVD and LaserDisc do to a picture, as batched tensor operations.

(B, 3, 2H, 2W) RGB in [0, 1]  ->  (B, 3, H, W) RGB in [0, 1] of 8 bit, on the tensors' own device.

Every sample draws its own strengths (`strengths.py`), which `degrade` then applies in the order in which the real thing
happens: film and telecine, the master's processing, composite video, grain, MPEG-2. Whatever is linear and separable
is a matrix per sample and axis, and the matrices are multiplied before a pixel is touched: one product across and one
down take luma from the film to the line.

Nothing here moves or tints the picture, but for rare errors of chroma siting: kernels are symmetric and sum to one,
noise has mean zero. The network learns to restore, not to shift. Drifts of color belong to the truth (`data.py`).
"""

import math
from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from models.training.lines import (
    SAMPLING,
    around_carrier,
    band,
    displaced,
    film,
    gaussian,
    halo,
    one_field,
    quarter,
    ringing,
    soft_band,
    spline36,
    subsample,
    supersample,
    through,
    twitter,
)
from models.training.loss import YCC
from models.training.mpeg2 import mpeg2
from models.training.strengths import Strengths, to_maps

SUBCARRIER = 3.579545 / SAMPLING
"""Frequency of the NTSC color carrier in cycles per luma sample."""

_COMPOSITE = (0.872, 1.230)
"""U and V on a composite line, as factors of Cb and Cr (SMPTE 170M)."""


@cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the matrices to Y'CbCr and back. They are cached, or every batch would wait for them."""
    to_ycc = torch.tensor(YCC)
    return to_ycc.to(device), torch.linalg.inv(to_ycc).to(device)


@torch.no_grad()
def degrade(hr: Tensor, strengths: Strengths, generator: Generator) -> Tensor:
    """Degrade a batch; see the docstring of the module.

    Args:
        hr: (B, 3, 2H, 2W) RGB in [0, 1]; H and W are multiples of 4.
        strengths: The degradation of each sample.
        generator: Source of random numbers, on the device of `hr`.

    Returns:
        (B, 3, H, W) RGB in [0, 1], in steps of 1/255.
    """
    b, _, h2, w2 = hr.shape
    h, w = h2 // 2, w2 // 2
    s = strengths.steps
    to_ycc, to_rgb = _matrices(hr.device)
    ycc = _colored(hr, to_ycc)

    # Film, telecine, master.
    across, down = film(w2, strengths), film(h2, strengths)
    smeared = twitter(h, s["twitter"])
    luma_across = ringing(w, s["ringing"]) @ halo(w, s["halo"], s["halo_width"]) @ band(w, s["luma"]) @ across
    luma_down = smeared @ halo(h, s["halo_down"], s["halo_width"]) @ down
    sides, odd = torch.randint(2, (2, b), generator=generator, device=hr.device)
    late = displaced(w, s["delay"] * (2 * sides - 1))
    chroma_across = late @ quarter(w, s["quarter"]) @ soft_band(w, s["chroma"]) @ across
    luma = through(ycc[:, :1], luma_down, luma_across)
    chroma = through(ycc[:, 1:], smeared @ down, chroma_across)

    luma, chroma = _composite(luma, chroma, s, generator)
    luma, chroma = _level(luma, chroma, s["level"], generator)
    luma = luma + _dust(luma, s["dust"], generator)
    still = _combed(torch.cat([luma, chroma], 1), s["combing"] * (2 * sides - 1))
    now = still + _grain(still, s, generator)
    before = still + _grain(still, s, generator)  # the same drawing a frame earlier

    # 4:2:0 and MPEG-2.
    offset = 2 * torch.randint(8, (2, b), generator=generator, device=hr.device)  # of macroblocks
    to_half = (subsample(h, 2, 1.0, hr.device), subsample(w, 2, 0.5, hr.device))
    half = mpeg2(through(now[:, 1:], *to_half), through(before[:, 1:], *to_half), s, 224, offset // 2)
    luma = mpeg2(now[:, :1], before[:, :1], s, 219, offset % 8)
    middle, left = torch.ones_like(s["siting"]), 0.5 + s["siting"]
    sampled = through(half, supersample(h, 2, middle, spline36), supersample(w, 2, left, spline36))
    chroma = torch.lerp(now[:, 1:], sampled, to_maps(s["half"]))

    odd = torch.where(s["combing"] > 0, 0, odd)  # odd lines alone are displaced, and would move the entire picture
    field = torch.where(to_maps(s["one_field"])[:, 0] > 0, one_field(h, odd), torch.eye(h, device=hr.device))
    lr = _colored(field[:, None] @ torch.cat([luma, chroma], 1), to_rgb)
    lr = torch.where(to_maps(strengths.clean), F.avg_pool2d(hr, 2), lr)
    return torch.round(lr.clamp(0, 1) * 255) / 255


def add_noise(lr: Tensor, clean: Tensor, most: float, generator: Generator) -> Tensor:
    """Add white noise to half of the clean samples, or the network would learn that sharp pictures have no noise.

    Args:
        lr: (B, 3, H, W) RGB in [0, 1].
        clean: (B,) bool: the clean samples.
        most: Largest standard deviation of the noise, in 8-bit steps.
        generator: Source of random numbers.

    Returns:
        (B, 3, H, W) RGB in [0, 1], in steps of 1/255.
    """
    often, place = torch.rand(2, len(clean), generator=generator, device=lr.device)
    sigma = to_maps(clean & (often < 0.5)) * to_maps(place) * most / 255
    noise = torch.randn(lr.shape, generator=generator, device=lr.device)
    return torch.round((lr + sigma * noise).clamp(0, 1) * 255) / 255


def _colored(x: Tensor, matrix: Tensor) -> Tensor:
    """Apply a 3×3 matrix to the colors of (B, 3, H, W)."""
    return torch.einsum("ij,bjhw->bihw", matrix.to(x), x)


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


# What is not a matrix. luma: (B, 1, H, W) in [0, 1]; chroma: (B, 2, H, W) in [-0.5, 0.5].


def _blurred(x: Tensor, across: float, down: float) -> Tensor:
    h, w = x.shape[-2:]
    return through(x, gaussian(h, x.new_full((1,), down)), gaussian(w, x.new_full((1,), across)))


def _composite(luma: Tensor, chroma: Tensor, s: Mapping[str, Tensor], generator: Generator) -> tuple[Tensor, Tensor]:
    """Apply composite video after imperfect separation of luma and chroma: dot crawl at color edges, and cross-color.

    Either some of each remains in the other, or a 1H comb filter has removed what changes phase from line to line.
    """
    b, _, h, w = luma.shape
    phase, woven, width = torch.rand(3, b, 1, 1, 1, generator=generator, device=luma.device)
    # The carrier turns by half a cycle from line to line; where two fields are woven, by half in every second line.
    turn = torch.where(woven < 0.5, 0.5, 0.25) * torch.arange(h, device=luma.device).view(h, 1)
    cycles = phase + turn + SUBCARRIER * torch.arange(w, device=luma.device)
    carrier = torch.cat([torch.sin(math.tau * cycles), torch.cos(math.tau * cycles)], 1)  # (B, 2, H, W)
    combed = to_maps(s["comb"]) > 0
    edges = chroma - _blurred(chroma, 2.5, 1.0)
    fine = luma - _blurred(luma, 1.0, 0.01)
    left_luma = luma + to_maps(s["dots"]) * (edges * carrier).sum(1, keepdim=True)
    left_chroma = chroma + to_maps(s["rainbow"]) * _blurred(2 * fine * carrier, 1.4, 0.6)

    strength = torch.cat([torch.full_like(luma[:, :, :1, :1], share) for share in _COMPOSITE], 1)
    signal = luma + (chroma * strength * carrier).sum(1, keepdim=True)
    near, far = (F.pad(signal, (0, 0, k, k), "reflect") for k in (1, 2))
    beside = torch.where(woven < 0.5, near[:, :, :-2] + near[:, :, 2:], far[:, :, :-4] + far[:, :, 4:])
    turning = ((2 * signal - beside) / 4) @ around_carrier(w, SUBCARRIER, 1.6 + width.view(b))[:, None].mT
    low = soft_band(w, s["chroma"])[:, None].mT
    return (
        torch.where(combed, signal - turning, left_luma),
        torch.where(combed, (2 * turning * carrier) @ low / strength, left_chroma),
    )


def _combed(x: Tensor, by: Tensor) -> Tensor:
    """Displace odd lines by (B,) pixels, like a field from another moment. (B, C, H, W) -> the same shape."""
    odd = (torch.arange(x.shape[-2], device=x.device) % 2 == 1)[:, None]
    return torch.where(odd, x @ displaced(x.shape[-1], by)[:, None].mT, x)


def _level(luma: Tensor, chroma: Tensor, level: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    error = torch.rand(4, len(level), generator=generator, device=level.device) * 2 - 1  # mean zero
    black, contrast, blue, red = (to_maps(part) for part in error * level / 255)
    return luma * (1 + contrast) + black, chroma * (1 + contrast) + torch.cat([blue, red], 1)


def _dust(luma: Tensor, specks: Tensor, generator: Generator) -> Tensor:
    """Add specks of about a pixel, two thirds of them dark."""
    here, dark, how = torch.rand(3, *luma.shape, generator=generator, device=luma.device)
    value = torch.where(dark < 0.67, -1.0, 1.0) * (0.5 + how)
    return _blurred(value * (here < to_maps(specks) / 10_000), 0.6, 0.6)


def _grain(still: Tensor, s: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """Return random grain in luma, strongest in the midtones, and blurred color noise: (B, 3, H, W)."""
    noise = _normal(still, generator)
    h, w = still.shape[-2:]

    def soft(x: Tensor, sigma: Tensor) -> Tensor:
        down, across = gaussian(h, sigma), gaussian(w, sigma)
        # A blur takes as much from white noise's deviation as its rows' norms say; that is given back.
        loss: Tensor = down.square().sum(-1)[:, None, :, None] * across.square().sum(-1)[:, None, None, :]
        return through(x, down, across) / loss.sqrt()

    y = still[:, :1].clamp(0, 1)
    luma = to_maps(s["grain"]) / 255 * (0.6 + 1.6 * y * (1 - y)) * soft(noise[:, :1], s["grain_size"])
    chroma = to_maps(s["speckle"]) / 255 * soft(noise[:, 1:], torch.full_like(s["speckle"], 1.5))
    return torch.cat([luma, chroma], 1)

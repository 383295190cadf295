"""MPEG-2 as a picture feels it: transform and quantizer of ISO/IEC 13818-2, no motion, no bits."""

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from models.training.strengths import maps

# MPEG-2's default intra quantizer matrix (ISO/IEC 13818-2, 6.3.11); that of other blocks is 16 throughout.
_INTRA = torch.tensor(
    [
        [8, 16, 19, 22, 26, 27, 29, 34],
        [16, 16, 22, 24, 27, 29, 34, 37],
        [19, 22, 26, 27, 29, 34, 34, 38],
        [22, 22, 26, 27, 29, 34, 37, 40],
        [22, 26, 27, 29, 32, 35, 40, 48],
        [26, 27, 29, 32, 35, 40, 48, 58],
        [26, 27, 29, 34, 38, 46, 56, 69],
        [27, 29, 35, 38, 46, 56, 69, 83],
    ],
    dtype=torch.float32,
)
_OTHER = torch.full((8, 8), 16.0)

# Orthonormal DCT-II of 8 samples: row k holds the k-th cosine.
_DCT = torch.tensor(
    [[math.sqrt((2 if k else 1) / 8) * math.cos(math.pi * (2 * n + 1) * k / 16) for n in range(8)] for k in range(8)]
)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transform, intra and other matrix, and rounding of intra coefficients. Kept, or every batch would wait for them.

    Encoders round down a little, but for the DC coefficient.
    """
    bias = torch.full((8, 8), 0.42)
    bias[0, 0] = 0.5
    return _DCT.to(device), _INTRA.to(device), _OTHER.to(device), bias.to(device)


def mpeg2(x: Tensor, before: Tensor, s: Mapping[str, Tensor], levels: int, offset: Tensor) -> Tensor:
    """x through an intra frame, or through a P frame predicted from `before`'s intra frame.

    x, before: (B, C, H, W), one step of 8 bit being 1 / levels. offset: (2, B) rows and columns of the first block
    that lie outside the picture, 0 to 7.
    """
    b, _, h, w = x.shape
    coded = s["quantizer"] > 0
    q = torch.where(coded, s["quantizer"], 1)
    each = torch.arange(b, device=x.device)[:, None, None]

    def indices(n: int, padded: int, by: Tensor) -> Tensor:
        return (torch.arange(padded, device=x.device) - by[:, None]).clamp(0, n - 1)

    def blocks(picture: Tensor) -> Tensor:
        """-> coefficients (B, C, H / 8, W / 8, 8, 8) of the picture on the block grid, borders repeated."""
        ph, pw = (h + 14) // 8 * 8, (w + 14) // 8 * 8
        rows, columns = indices(h, ph, offset[0])[:, :, None], indices(w, pw, offset[1])[:, None, :]
        grid = torch.round(picture * levels)[each, :, rows, columns]  # (B, H, W, C)
        return dct @ grid.view(b, ph // 8, 8, pw // 8, 8, -1).permute(0, 5, 1, 3, 2, 4) @ dct.mT

    def picture(coefficients: Tensor) -> Tensor:
        grid = (dct.mT @ coefficients @ dct).permute(0, 2, 4, 3, 5, 1)  # (B, H / 8, 8, W / 8, 8, C)
        grid = grid.flatten(3, 4).flatten(1, 2)
        rows = torch.arange(h, device=x.device) + offset[0][:, None]
        columns = torch.arange(w, device=x.device) + offset[1][:, None]
        return grid[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2) / levels

    dct = _constants(x.device)[0]
    intra = quantized(blocks(torch.where(maps(s["predicted"]) > 0, before, x)), q)
    predicted = intra + quantized_difference(blocks(x) - intra, q)
    result = picture(torch.where(s["predicted"].view(b, 1, 1, 1, 1, 1) > 0, predicted, intra))
    return torch.where(maps(coded), result, x)


def quantized(coefficients: Tensor, q: Tensor) -> Tensor:
    """Intra blocks (B, C, …, 8, 8) of levels through MPEG-2's quantizer at scales q (B,), and back.

    ISO/IEC 13818-2, 7.4.2; the DC coefficient has its own step, 2 at 10 bit.
    """
    _, intra, _, bias = _constants(coefficients.device)
    step = intra * q.view(-1, 1, 1, 1, 1, 1) / 16
    step[..., 0, 0] = 2
    return coefficients.sign() * torch.floor(coefficients.abs() / step + bias) * step


def quantized_difference(coefficients: Tensor, q: Tensor) -> Tensor:
    """Predicted blocks' differences likewise: a dead zone around 0, and values put back mid-step."""
    step = _constants(coefficients.device)[2] * q.view(-1, 1, 1, 1, 1, 1) / 16
    whole = torch.floor(coefficients.abs() / step)
    return torch.where(whole > 0, coefficients.sign() * (whole + 0.5) * step, 0)

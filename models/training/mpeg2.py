"""The effect of MPEG-2 on a picture: transform and quantizer of ISO/IEC 13818-2, without motion and bitstream."""

import math
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from models.training.strengths import to_maps

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
    """Return the transform, the intra and the non-intra matrix, and the rounding of intra coefficients.

    They are cached, or every batch would wait for them. Encoders round down a little, except for the DC coefficient.
    """
    bias = torch.full((8, 8), 0.42)
    bias[0, 0] = 0.5
    return _DCT.to(device), _INTRA.to(device), _OTHER.to(device), bias.to(device)


def mpeg2(x: Tensor, before: Tensor, s: Mapping[str, Tensor], levels: int, offset: Tensor) -> Tensor:
    """Code a picture as an intra frame, or as a P frame predicted from the intra frame of `before`.

    Args:
        x: (B, C, H, W); one 8-bit step is 1 / levels.
        before: The previous picture, likewise.
        s: Strengths by the name of the step.
        levels: Number of levels between 0 and 1.
        offset: (2, B), rows and columns of the first block that are outside the picture, 0 to 7.
    """
    b, _, h, w = x.shape
    coded = s["quantizer"] > 0
    q = torch.where(coded, s["quantizer"], 1)
    each = torch.arange(b, device=x.device)[:, None, None]

    def indices(n: int, padded: int, by: Tensor) -> Tensor:
        return (torch.arange(padded, device=x.device) - by[:, None]).clamp(0, n - 1)

    def blocks(picture: Tensor) -> Tensor:
        """Transform a picture: -> coefficients (B, C, H / 8, W / 8, 8, 8) on the block grid, with borders repeated."""
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
    intra = quantize(blocks(torch.where(to_maps(s["predicted"]) > 0, before, x)), q)
    predicted = intra + quantize_difference(blocks(x) - intra, q)
    result = picture(torch.where(s["predicted"].view(b, 1, 1, 1, 1, 1) > 0, predicted, intra))
    return torch.where(to_maps(coded), result, x)


def quantize(coefficients: Tensor, q: Tensor) -> Tensor:
    """Quantize intra blocks (B, C, …, 8, 8) of levels at scales q (B,), and dequantize them.

    ISO/IEC 13818-2, 7.4.2; the DC coefficient has its own step, 2 at 10 bits.
    """
    _, intra, _, bias = _constants(coefficients.device)
    step = intra * q.view(-1, 1, 1, 1, 1, 1) / 16
    step[..., 0, 0] = 2
    return coefficients.sign() * torch.floor(coefficients.abs() / step + bias) * step


def quantize_difference(coefficients: Tensor, q: Tensor) -> Tensor:
    """Quantize the differences of predicted blocks, and dequantize them again.

    There is a dead zone around 0; values become the middle of their step.
    """
    step = _constants(coefficients.device)[2] * q.view(-1, 1, 1, 1, 1, 1) / 16
    whole = torch.floor(coefficients.abs() / step)
    return torch.where(whole > 0, coefficients.sign() * (whole + 0.5) * step, 0)

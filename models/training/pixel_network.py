"""FDAT-RD on single pixels instead of folded ones, for the first stage of a training.

A 2x network folds 2×2 pixels into a token, so it has to learn the same small kernel four times, once for each position
in the token. Here a token is one pixel of C/4 channels, and one kernel serves all positions. `folding.py` converts it
into an FDAT-RD that computes the same, borders included, because a convolution over pixels is a special case of one
over tokens.

Attention and most blocks are omitted. In the folded network they have output projections of zero, from which they can
learn.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training.network import cubic_taps
from vsfdatrd.archs.fdat_rd import FdatRdConfig

FOLD = 2
"""Pixels along each side of a token."""

_TAPS = 12
"""Channels with which a pixel interpolates: 2×2 new pixels of three colors."""


def random_matrix(out: int, into: int, kernel: int = 1) -> nn.Parameter:
    """Return random convolution weights as a matrix (out, into·kernel²), the form that Muon requires."""
    return nn.Parameter(torch.empty(out, into * kernel * kernel).uniform_(-1, 1) * (into * kernel * kernel) ** -0.5)


def as_kernel(weights: Tensor, kernel: int) -> Tensor:
    """Convert a matrix to a kernel: (O, I·k²) -> (O, I, k, k)."""
    return weights.view(len(weights), -1, kernel, kernel)


def convolve(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with a 3×3 kernel: (B, I, H, W), (O, 9·I) -> (B, O, H, W)."""
    return F.conv2d(x, as_kernel(weights, 3), bias, padding=1)


def to_tokens(x: Tensor) -> Tensor:
    """Arrange pixels by the tokens they belong to: (B, C, H, W) -> (B, H/2, W/2, 4, C)."""
    b, c, h, w = x.shape
    places = x.view(b, c, h // FOLD, FOLD, w // FOLD, FOLD).permute(0, 2, 4, 3, 5, 1)
    return places.reshape(b, h // FOLD, w // FOLD, FOLD**2, c)


def to_pixels(tokens: Tensor) -> Tensor:
    """Reverse `to_tokens`: (B, H/2, W/2, 4, C) -> (B, C, H, W), channels last."""
    b, h, w, _, c = tokens.shape
    rows = tokens.view(b, h, w, FOLD, FOLD, c).permute(0, 1, 3, 2, 4, 5)  # (B, H/2, 2, W/2, 2, C)
    return rows.reshape(b, h * FOLD, w * FOLD, c).permute(0, 3, 1, 2)


# A token's pixels are neighbors in memory while a group's blocks run: nothing is moved between them, and the norm and
# the depthwise convolution are the ordinary ones.


class TokenNorm(nn.Module):
    """LayerNorm over all channels of the 2×2 pixels that become a token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H/2, W/2, 4, C/4) -> the same."""
        return F.layer_norm(tokens, tokens.shape[-2:]) * self.weight + self.bias


class PixelFeedForward(nn.Module):
    """`FeedForward` with the same weights for every position in a token."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = random_matrix(hidden, dim), random_matrix(dim, hidden)
        nn.init.trunc_normal_(self.fc2, std=0.02)
        self.smix = nn.Parameter(torch.zeros(hidden, 1, 3, 3))
        with torch.no_grad():
            self.smix[:, :, 1, 1] = 1

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H/2, W/2, 4, C/4) -> the same."""
        hidden = F.gelu(F.linear(tokens, self.fc1))  # (B, H/2, W/2, 4, F)
        maps = hidden.flatten(3).permute(0, 3, 1, 2)  # (B, 4F, H/2, W/2), channels last
        kernels = self.smix.repeat(FOLD**2, 1, 1, 1)
        mixed = F.conv2d(maps, kernels, padding=1, groups=len(kernels)).permute(0, 2, 3, 1)
        return F.linear(mixed.reshape(hidden.shape), self.fc2)


class PixelBlock(nn.Module):
    """`Block` with its feed-forward network only."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.n2, self.ffn = TokenNorm(dim), PixelFeedForward(dim, hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H/2, W/2, 4, C/4) -> the same."""
        return tokens + cast(Tensor, self.ffn(self.n2(tokens)))


class PixelGroup(nn.Module):
    """`ResidualGroup` with its first blocks only."""

    def __init__(self, dim: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(PixelBlock(dim, hidden) for _ in range(blocks)))
        self.conv = random_matrix(dim, dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C/4, H, W) -> the same."""
        return x + convolve(to_pixels(self.blocks(to_tokens(x))), self.conv)


class PixelNetwork(nn.Module):
    """The network on pixels, initialized to cubic interpolation.

    Args:
        config: A 2x network with unshuffle 2, the tail transpose+conv, and a number of channels that is a multiple of 8
            and at least 48.
        blocks: Number of blocks per group, counted from the first.

    Raises:
        ValueError: `config` cannot be unfolded.
    """

    def __init__(self, config: FdatRdConfig, blocks: int = 1) -> None:
        super().__init__()
        form = (config.unshuffle, config.tail_scale, config.upsampler)
        if form != (FOLD, 4, "transpose+conv") or config.embed_dim < 48 or config.embed_dim % 8:
            raise ValueError("only a network of 2x with unshuffle 2, transpose+conv and 48, 56, … channels unfolds")
        dim, hidden = config.embed_dim // FOLD**2, config.ffn_dim // FOLD**2
        middle = config.embed_dim // 2  # of the tail's channels, half: on pixels they are dear
        self.first = nn.Conv2d(3, dim, 5, padding=2)
        self.groups = nn.ModuleList(PixelGroup(dim, hidden, min(blocks, len(kinds))) for kinds in config.groups)
        self.after = nn.Parameter(torch.zeros(dim, 9 * dim))
        self.spread, self.spread_bias = random_matrix(middle, dim, 3), nn.Parameter(torch.zeros(middle))
        self.gather = nn.ConvTranspose2d(middle, 3, 4, 2, 1)
        self.last = nn.Conv2d(3, 3, 3, padding=1)
        self._interpolate()

    @torch.no_grad()
    def _interpolate(self) -> None:
        """Initialize to cubic interpolation like `network.interpolate`.

        Twelve channels hold the upscaled pixel and pass GELU with either sign.
        """
        near = cubic_taps()[:, :5]  # (h, pixel): outputs 0 and 1 of a pixel, from five pixels around it
        bias = cast(Tensor, self.first.bias)
        bias[:_TAPS] = 0
        # Norms divide by what the other channels hold, so that they are nearly linear where the picture is flat.
        bias[_TAPS:] = torch.linspace(-1, 1, len(bias) - _TAPS)
        self.first.weight[:_TAPS] = 0
        spread = as_kernel(self.spread, 3)
        spread[: 2 * _TAPS] = 0
        self.gather.weight[: 2 * _TAPS] = 0
        self.gather.weight[2 * _TAPS :] *= 0.1
        cast(Tensor, self.gather.bias).zero_()
        for value in range(_TAPS):
            h, k, color = value // 6, value // 3 % 2, value % 3
            self.first.weight[value, color] = torch.outer(near[h], near[k])
            for sign, channel in ((1, value), (-1, _TAPS + value)):
                spread[channel, value, 1, 1] = sign
                self.gather.weight[channel, color, 1 + h, 1 + k] = sign
        nn.init.dirac_(self.last.weight)
        cast(Tensor, self.last.bias).zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Run the network: (B, 3, H, W) with even sides -> (B, 3, 2H, 2W)."""
        first: Tensor = self.first(x)
        return self.tail(self.inner(first) + first)

    def inner(self, x: Tensor) -> Tensor:
        """Run the layers between the first convolution and the tail: (B, C/4, H, W) -> the same shape."""
        for group in self.groups:
            x = group(x)
        return convolve(x, self.after)

    def tail(self, x: Tensor) -> Tensor:
        """Run the tail: (B, C/4, H, W) -> (B, 3, 2H, 2W)."""
        middle = convolve(x, self.spread, self.spread_bias)
        return cast(Tensor, self.last(self.gather(F.gelu(middle))))

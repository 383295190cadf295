"""The eight tails (upsamplers), which turn a map of tokens into a larger image.

Each is a `torch.nn.Sequential` with the indices and names of the published checkpoints, and has the ``MetaUpsample``
buffer, by which the tail of a checkpoint is identified. Shapes: (B, C, H, W) -> (B, O, H·s, W·s).

Sources: PixelShuffle (Shi et al. 2016), DySample (Liu et al. 2023, arXiv:2308.15085), LDA-AQU (Du et al. 2024,
arXiv:2411.19585), pixel attention (Zhao et al. 2020, arXiv:2010.01073).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsfdatrd.archs.upsamplers import GROUPS, UPSAMPLERS, Upsampler, upscaling_steps


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _leaky(slope: float = 0.2) -> nn.LeakyReLU:
    return nn.LeakyReLU(slope)


class PixelAttention(nn.Module):
    """Multiplies every value by the sigmoid of a 1×1 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C, H, W)."""
        return x * cast(Tensor, self.conv(x))


class DySample(nn.Module):
    """Bilinear resampling at learned offsets."""

    init_pos: Tensor

    def __init__(self, dim: int, out_channels: int, scale: int) -> None:
        super().__init__()
        if dim <= GROUPS or dim % GROUPS:
            raise ValueError(f"the dysample tail needs a multiple of {GROUPS} channels above {GROUPS}, not {dim}")
        self.scale = scale
        self.end_conv = nn.Conv2d(dim, out_channels, 1)
        self.offset = nn.Conv2d(dim, 2 * GROUPS * scale**2, 1)
        self.scope = nn.Conv2d(dim, 2 * GROUPS * scale**2, 1, bias=False)
        nn.init.trunc_normal_(self.offset.weight, std=0.02)
        nn.init.zeros_(self.scope.weight)
        # Positions of the s × s output pixels relative to the center of an input pixel, x first, equal for all groups.
        offsets = (torch.arange(scale) - (scale - 1) / 2) / scale
        grid = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij")).transpose(1, 2)  # (2, s, s)
        self.register_buffer("init_pos", grid.repeat(1, GROUPS, 1).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Upscale x (B, C, H, W) to (B, O, H·s, W·s)."""
        b, c, height, width = x.shape
        s = self.scale
        offset = self.offset(x) * self.scope(x).sigmoid() * 0.5 + self.init_pos
        offset = offset.view(b, 2, -1, height, width)  # (B, 2·g·s², H, W) -> (B, 2, g·s², H, W), x then y
        xs = torch.arange(width, device=x.device, dtype=x.dtype).view(1, 1, 1, width) + 0.5
        ys = torch.arange(height, device=x.device, dtype=x.dtype).view(1, 1, height, 1) + 0.5
        grid = torch.stack(
            [2 * (xs + offset[:, 0]) / width - 1, 2 * (ys + offset[:, 1]) / height - 1], 1
        )  # (B, 2, g·s², H, W) in [-1, 1]
        # -> (B, 2·g, H·s, W·s) -> (B, 2, g, H·s, W·s) -> (B·g, H·s, W·s, 2)
        grid = F.pixel_shuffle(grid.view(b, -1, height, width), s).view(b, 2, -1, s * height, s * width)
        grid = grid.permute(0, 2, 3, 4, 1).flatten(0, 1)
        maps = x.reshape(b * GROUPS, c // GROUPS, height, width)  # (B, C, H, W) -> (B·g, C/g, H, W)
        out = F.grid_sample(maps, grid, mode="bilinear", align_corners=False, padding_mode="border")
        return cast(Tensor, self.end_conv(out.view(b, c, s * height, s * width)))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W) over C. Returns (B, C, H, W)."""
        x = x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class LdaAqu(nn.Module):
    """Each output pixel attends to nine input positions at learned offsets (local deformable attention)."""

    base: Tensor

    def __init__(self, dim: int, scale: int, reduction: int = 4, groups: int = 2, reach: float = 11) -> None:
        super().__init__()
        self.scale, self.groups, self.reach = scale, groups, reach
        hidden, part = dim // reduction, dim // (reduction * groups)
        if part == 0 or dim % (reduction * groups):
            raise ValueError(f"the lda tail needs a multiple of {reduction * groups} channels, not {dim}")
        self.proj_q = nn.Conv2d(dim, hidden, 1, bias=False)
        self.proj_k = nn.Conv2d(dim, hidden, 1, bias=False)
        self.conv_offset = nn.Sequential(
            nn.Conv2d(part, part, 3, padding=1, groups=part, bias=False),
            ChannelNorm(part),
            nn.SiLU(),
            nn.Conv2d(part, 2 * 9, 3, padding=1),
        )
        self.layer_norm = ChannelNorm(dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(1, 1, 1, 9, hidden))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        offsets = torch.tensor([-1.0, 0.0, 1.0])
        base = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), -1)  # (3, 3, 2), y then x
        self.register_buffer("base", base.reshape(1, 18, 1, 1), persistent=False)

    def _sample(self, x: Tensor, grid: Tensor) -> Tensor:
        """Sample a 3×3 neighborhood for every output pixel.

        Args:
            x: (B·g, K, H, W), with K channels in each of g groups.
            grid: (B·g, 3·Ho, 3·Wo, 2), as in `torch.nn.functional.grid_sample`.

        Returns:
            (B, Ho·Wo, 9, g·K).
        """
        y = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        bg, k, h3, w3 = y.shape
        # (B·g, K, 3·Ho, 3·Wo) -> (B, g, K, 3, Ho, 3, Wo) -> (B, Ho, Wo, 3, 3, g, K)
        y = y.view(bg // self.groups, self.groups, k, 3, h3 // 3, 3, w3 // 3).permute(0, 4, 6, 3, 5, 1, 2)
        return y.reshape(bg // self.groups, h3 * w3 // 9, 9, self.groups * k)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale x (B, C, H, W) to (B, C, H·s, W·s)."""
        b, c, height, width = x.shape
        ho, wo, g = height * self.scale, width * self.scale, self.groups
        n = self.layer_norm(x)
        q = F.interpolate(self.proj_q(n), (ho, wo), mode="bilinear", align_corners=True)
        k = self.proj_k(n)
        # (B, hidden, Ho, Wo) -> (B·g, hidden/g, Ho, Wo) -> (B·g, 18, Ho, Wo)
        offset = self.conv_offset(q.view(b * g, -1, ho, wo)).tanh() * self.reach + self.base
        # -> (B·g, 3, 3, 2, Ho, Wo) -> (B·g, 3, Ho, 3, Wo, 2)
        offset = offset.view(b * g, 3, 3, 2, ho, wo).permute(0, 1, 4, 2, 5, 3)
        ys = torch.arange(ho, device=x.device, dtype=x.dtype).view(1, 1, ho, 1, 1)
        xs = torch.arange(wo, device=x.device, dtype=x.dtype).view(1, 1, 1, 1, wo)
        grid = torch.stack(
            [2 * (offset[..., 1] + xs) / (wo - 1) - 1, 2 * (offset[..., 0] + ys) / (ho - 1) - 1], -1
        ).view(b * g, 3 * ho, 3 * wo, 2)
        keys = self._sample(k.view(b * g, -1, height, width), grid) + self.relative_position_bias_table[0]
        values = self._sample(x.reshape(b * g, c // g, height, width), grid)
        # (B, hidden, Ho, Wo) -> (B, Ho·Wo, 1, hidden)
        queries = q.flatten(2).transpose(1, 2).unsqueeze(2) * q.shape[1] ** -0.5
        out: Tensor = (queries @ keys.transpose(-1, -2)).softmax(-1) @ values  # (B, Ho·Wo, 1, C)
        return out.squeeze(2).transpose(1, 2).reshape(b, c, ho, wo)


class UpsampleTail(nn.Sequential):
    """A tail with the ``MetaUpsample`` buffer that identifies it."""

    def __init__(self, layers: list[nn.Module], meta: list[int]) -> None:
        super().__init__(*layers)
        self.register_buffer("MetaUpsample", torch.tensor(meta, dtype=torch.uint8))


def build_upsampler(kind: Upsampler, scale: int, dim: int, out_channels: int, mid_dim: int) -> UpsampleTail:
    """Build a tail that maps (B, dim, H, W) to (B, out_channels, H·scale, W·scale).

    Args:
        kind: The tail.
        scale: Upscaling factor.
        dim: Input channels.
        out_channels: Output channels.
        mid_dim: Inner channels of the tails that have an inner width.

    Raises:
        ValueError: The tail does not support this scale or width.
    """
    layers: list[nn.Module] = []
    meta_dim = dim
    match "conv" if scale == 1 else kind:
        case "conv":
            layers = [_conv(dim, out_channels)]
        case "pixelshuffledirect":
            layers = [_conv(dim, out_channels * scale**2), nn.PixelShuffle(scale)]
        case "pixelshuffle":
            layers = [_conv(dim, mid_dim), _leaky(0.01)]
            for step in upscaling_steps(scale, kind):
                layers += [_conv(mid_dim, step**2 * mid_dim), nn.PixelShuffle(step)]
            layers += [_conv(mid_dim, out_channels)]
        case "nearest+conv":
            for step in upscaling_steps(scale, kind):
                layers += [_conv(dim, dim), nn.Upsample(scale_factor=step), _leaky()]
            layers += [_conv(dim, dim), _leaky(), _conv(dim, out_channels)]
        case "dysample" | "lda" as moving:
            if mid_dim != dim:
                layers = [_conv(dim, mid_dim), _leaky(0.01)]
            if moving == "dysample":
                layers += [DySample(mid_dim, out_channels, scale)]
            else:
                layers += [LdaAqu(mid_dim, scale), _conv(mid_dim, out_channels)]
        case "transpose+conv":
            match scale:
                case 2:
                    layers = [nn.ConvTranspose2d(dim, out_channels, 4, 2, 1)]
                case 3:
                    layers = [nn.ConvTranspose2d(dim, out_channels, 3, 3, 0)]
                case 4:
                    first, last = nn.ConvTranspose2d(dim, dim, 4, 2, 1), nn.ConvTranspose2d(dim, out_channels, 4, 2, 1)
                    layers = [first, nn.GELU(), last]
                case _:
                    raise ValueError(f"the transpose+conv tail cannot enlarge {scale} times: possible are 2, 3 and 4")
            layers += [_conv(out_channels, out_channels)]
        case "pa_up":
            for step in upscaling_steps(scale, kind):
                layers += [nn.Upsample(scale_factor=step), _conv(meta_dim, mid_dim), PixelAttention(mid_dim), _leaky()]
                layers += [_conv(mid_dim, mid_dim), _leaky()]
                meta_dim = mid_dim
            layers += [_conv(mid_dim, out_channels)]
    meta = [3, UPSAMPLERS.index(kind), scale, meta_dim, out_channels, mid_dim, GROUPS]
    return UpsampleTail(layers, meta)

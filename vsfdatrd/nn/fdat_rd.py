"""FDAT-RD, a super-resolution transformer, to be read from top to bottom.

Three kinds of blocks alternate: attention inside rectangular windows (spatial), attention between channels over the
whole frame (channel), and attention to a learned dictionary of tokens that is first refined by the frame (dictionary).
In shape comments B is the batch size, H × W the token map, N = H·W, C the embedding dimension, h the number of heads,
d = C / h, and M the number of dictionary tokens.

Source: the public FDAT-RD release (June 2026); its outputs are reproduced in tests/nn/test_fdat_rd.py.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vsfdatrd.archs.fdat_rd import FdatRdConfig, Kind, blocks_with_windows, default_drop_path, variant_config
from vsfdatrd.archs.upsamplers import Upsampler
from vsfdatrd.nn.upsamplers import build_upsampler


class WindowAttention(nn.Module):
    """Attention inside windows of 300 tokens, with a learned bias for every pair of positions."""

    def __init__(self, dim: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        tokens = window[0] * window[1]
        self.rel_pos_bias = nn.Parameter(torch.zeros(heads, tokens, tokens))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens x (B, N, C) to (B, N, C). `size` (H, W) of the map must be a multiple of the window."""
        b, _, c = x.shape
        (height, width), (wh, ww) = size, self.window
        rows, cols, d = height // wh, width // ww, c // self.heads
        # (B, N, 3C) -> (B, rows, wh, cols, ww, 3, h, d) -> (3, B, rows, cols, h, wh, ww, d)
        qkv = self.qkv(x).view(b, rows, wh, cols, ww, 3, self.heads, d).permute(5, 0, 1, 3, 6, 2, 4, 7)
        # -> three of (B·rows·cols, h, 300, d)
        q, k, v = qkv.reshape(3, b * rows * cols, self.heads, wh * ww, d)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.rel_pos_bias.to(q.dtype))
        # (B·rows·cols, h, 300, d) -> (B, rows, wh, cols, ww, h, d) -> (B, N, C)
        out = out.view(b, rows, cols, self.heads, wh, ww, d).permute(0, 1, 4, 2, 5, 3, 6).reshape(b, -1, c)
        return cast(Tensor, self.proj(out))


class ChannelAttention(nn.Module):
    """Attention between the d channels of a head; every product is a sum over the whole frame."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temp = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens x (B, N, C) to (B, N, C)."""
        b, n, c = x.shape
        # (B, N, 3C) -> (B, N, 3, h, d) -> (3, B, h, d, N)
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1)
        # Norms over N tokens in float32, because in half precision a sum of squares over a frame overflows.
        q, k = F.normalize(q.float(), dim=-1), F.normalize(k.float(), dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            attn = ((q @ k.transpose(-1, -2)) * self.temp.float()).softmax(-1)  # (B, h, d, d)
        out = attn.to(v.dtype) @ v  # (B, h, d, N)
        # (B, h, d, N) -> (B, N, h, d) -> (B, N, C)
        return cast(Tensor, self.proj(out.permute(0, 3, 1, 2).reshape(b, n, c)))


class DictionaryAttention(nn.Module):
    """A learned dictionary attends to the frame, then every token attends to the refined dictionary."""

    def __init__(self, dim: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.dictionary = nn.Parameter(torch.zeros(tokens, dim))
        nn.init.trunc_normal_(self.dictionary, std=0.02)
        self.r_norm = nn.LayerNorm(dim)
        self.r_q = nn.Linear(dim, dim, bias=False)
        self.r_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.e_q = nn.Linear(dim, dim, bias=False)
        self.e_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def _attend(self, q: Tensor, kv: Tensor) -> Tensor:
        """Multi-head attention of q (B, Nq, C) to kv (B, Nk, 2C), without projections. Returns (B, Nq, C)."""
        b, nq, c = q.shape
        q = q.view(b, nq, self.heads, -1).transpose(1, 2)  # (B, Nq, h, d) -> (B, h, Nq, d)
        # (B, Nk, 2C) -> (B, Nk, 2, h, d) -> (2, B, h, Nk, d)
        k, v = kv.view(b, kv.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).reshape(b, nq, c)  # (B, h, Nq, d) -> (B, Nq, C)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens x (B, N, C) to (B, N, C)."""
        dictionary = self.dictionary.expand(x.shape[0], -1, -1)  # (M, C) -> (B, M, C)
        dictionary = dictionary + self._attend(self.r_q(dictionary), self.r_kv(self.r_norm(x)))
        return cast(Tensor, self.proj(self._attend(self.e_q(x), self.e_kv(dictionary))))


class DepthwiseConv(nn.Conv2d):
    """Depthwise 3×3 convolution over tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim, bias=False)

    def tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens x (B, N, C) to (B, N, C). The map in between is a channels-last view, so no data is copied."""
        b, n, c = x.shape
        maps = x.view(b, *size, c).permute(0, 3, 1, 2)  # (B, N, C) -> (B, C, H, W)
        mixed: Tensor = self(maps)
        return mixed.permute(0, 2, 3, 1).reshape(b, n, c)  # -> (B, H, W, C) -> (B, N, C)


class FeedForward(nn.Module):
    """Two linear layers with a depthwise convolution between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.smix = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Map tokens x (B, N, C) to (B, N, C)."""
        return cast(Tensor, self.fc2(self.smix.tokens(F.gelu(self.fc1(x)), size)))


class Interaction(nn.Module):
    """Mutual gating of attention and convolution. Spatial and channel blocks have both gates' weights, but use one."""

    def __init__(self, dim: int, hidden: int, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.sg = nn.Sequential(nn.Conv2d(dim, 1, 1, bias=False), nn.Sigmoid())
        self.cg = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(dim, hidden, 1, bias=False),
            nn.GELU(),
            nn.Conv2d(hidden, dim, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, attn: Tensor, conv: Tensor) -> Tensor:
        """Combine attn and conv, both (B, N, C), into (B, N, C)."""
        if self.kind == "spatial":
            gate: Tensor = self.cg(conv.transpose(1, 2).unsqueeze(-1))  # (B, N, C) -> (B, C, N, 1) -> (B, C, 1, 1)
            return attn * gate.flatten(1).unsqueeze(1) + conv  # gate: (B, 1, C)
        gate = self.sg(attn.transpose(1, 2).unsqueeze(-1))  # (B, C, N, 1) -> (B, 1, N, 1)
        return attn + conv * gate.squeeze(1)  # gate: (B, N, 1)


class DropPath(nn.Module):
    """Stochastic depth: skips a residual branch for random samples in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Scale or zero each sample of x (B, N, C). Returns (B, N, C)."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep


class Block(nn.Module):
    """Transformer block with spatial (window), channel or dictionary attention, and a feed-forward network."""

    def __init__(self, config: FdatRdConfig, kind: Kind, window: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        c, heads = config.embed_dim, config.heads
        self.kind = kind
        self.n1 = nn.LayerNorm(c)
        self.n2 = nn.LayerNorm(c)
        self.attn: nn.Module
        match kind:
            case "spatial":
                self.attn = WindowAttention(c, heads, window)
            case "channel":
                self.attn = ChannelAttention(c, heads)
            case "dictionary":
                self.attn = DictionaryAttention(c, heads, config.dict_tokens)
        if kind != "dictionary":
            self.conv = nn.Sequential(DepthwiseConv(c), nn.GELU())
            self.inter = Interaction(c, config.gate_dim, kind)
        self.ffn = FeedForward(c, config.ffn_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, t: Tensor, size: tuple[int, int]) -> Tensor:
        """Apply the block to the tokens t (B, N, C) of a feature map of `size` (H, W). The shape stays the same."""
        n = self.n1(t)
        mixed = self.attn(n, size)
        if self.kind != "dictionary":
            mixed = self.inter(mixed, F.gelu(cast(DepthwiseConv, self.conv[0]).tokens(n, size)))
        t = t + self.drop_path(mixed)
        return t + cast(Tensor, self.drop_path(self.ffn(self.n2(t), size)))


class ResidualGroup(nn.Module):
    """A sequence of blocks and a convolution with a residual connection."""

    def __init__(self, dim: int, blocks: list[Block], use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.use_checkpoint = use_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C, H, W)."""
        b, c, height, width = x.shape
        t = x.flatten(2).transpose(1, 2).contiguous()  # (B, C, H, W) -> (B, C, N) -> (B, N, C)
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                t = cast(Tensor, checkpoint(block, t, (height, width), use_reentrant=False))
            else:
                t = block(t, (height, width))
        maps = t.transpose(1, 2).view(b, c, height, width)  # (B, N, C) -> (B, C, N) -> (B, C, H, W)
        return cast(Tensor, self.conv(maps)) + x


class FdatRd(nn.Module):
    """The complete network: RGB in about [0, 1], any size from 1×1, to RGB `config.scale` times as large.

    Args:
        config: The configuration.
        drop_path: Stochastic depth rate of the last block, rising linearly from 0 at the first; training only.
        use_checkpoint: Recompute blocks in the backward pass to save memory; training only.
    """

    def __init__(self, config: FdatRdConfig, *, drop_path: float = 0.0, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.config = config
        c, u = config.embed_dim, config.unshuffle
        first = nn.Conv2d(config.in_channels * u * u, c, 3, padding=1)
        self.conv_first = first if u == 1 else nn.Sequential(nn.PixelUnshuffle(u), first)
        groups, block = [], 0
        for kinds in blocks_with_windows(config.groups, config.windows):
            blocks = []
            for kind, window in kinds:
                blocks.append(Block(config, kind, window, drop_path * block / max(1, config.blocks - 1)))
                block += 1
            groups.append(ResidualGroup(c, blocks, use_checkpoint))
        self.groups = nn.ModuleList(groups)
        self.conv_after = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.upsampler = build_upsampler(config.upsampler, config.tail_scale, c, config.out_channels, config.mid_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each side."""
        return self.config.scale

    def pad(self, x: Tensor) -> Tensor:
        """Pad at the bottom and right to the multiple that the windows need.

        By reflection; by replication if the image is too small for that.
        """
        height, width = x.shape[-2:]
        bottom, right = -height % self.config.multiple, -width % self.config.multiple
        mode = "reflect" if bottom < height and right < width else "replicate"
        return F.pad(x, (0, right, 0, bottom), mode)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale x (B, 3, H, W) to (B, 3, H·scale, W·scale)."""
        height, width = x.shape[-2:]
        shallow = self.conv_first(self.pad(x))
        deep = shallow
        for group in self.groups:
            deep = group(deep)
        out = self.upsampler(self.conv_after(deep) + shallow)
        return cast(Tensor, out[..., : height * self.scale, : width * self.scale])


def build(
    name: str = "medium",
    *,
    scale: int = 2,
    unshuffle_mod: bool = True,
    upsampler: Upsampler = "transpose+conv",
    drop_path: float | None = None,
    use_checkpoint: bool = False,
) -> FdatRd:
    """Build an untrained network of a published variant, in training mode.

    Args:
        name: ``small``, ``medium`` (``aligned``) or ``large``.
        scale: As for `archs.fdat_rd.variant_config`.
        unshuffle_mod: As for `archs.fdat_rd.variant_config`.
        upsampler: As for `archs.fdat_rd.variant_config`.
        drop_path: Stochastic depth rate; None for the rate that the variant is trained with.
        use_checkpoint: Recompute blocks in the backward pass to save memory.

    Raises:
        ValueError: As for `archs.fdat_rd.variant_config`.
    """
    config = variant_config(name, scale=scale, unshuffle_mod=unshuffle_mod, upsampler=upsampler)
    rate = default_drop_path(name) if drop_path is None else drop_path
    return FdatRd(config, drop_path=rate, use_checkpoint=use_checkpoint)

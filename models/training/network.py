"""The initial network of a training, which already upscales exactly like cubic interpolation.

The tail's only nonlinearity is GELU, and GELU(x) - GELU(-x) = x: with every value sent through it twice, once negated,
the shallow path (first convolution, tail) can be any linear filter. So no training time is spent on learning to
interpolate. The groups of blocks, whose sum is multiplied by zero at first, learn the difference.
"""

from dataclasses import replace
from types import MethodType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.training.recipe import Recipe
from vsfdatrd.archs.fdat_rd import FdatRdConfig, default_drop_path, variant_config
from vsfdatrd.nn.fdat_rd import Block, DepthwiseConv, FdatRd, WindowAttention

TINY = "tiny"


def variant_configuration(name: str) -> FdatRdConfig:
    """Return the configuration of a variant at 2x with pixel unshuffle, or of `TINY`.

    Raises:
        ValueError: There is no variant of this name.
    """
    if name != TINY:
        return variant_config(name)
    groups = variant_config("small").groups[:1]
    small = replace(variant_config("small"), embed_dim=48, heads=2, dict_tokens=16, ffn_dim=48, gate_dim=6)
    return replace(small, groups=(groups[0][:3],))


def configuration(recipe: Recipe) -> FdatRdConfig:
    """Return the configuration of the network that a recipe trains.

    Raises:
        ValueError: The recipe's variant does not exist.
    """
    config = variant_configuration(recipe.variant)
    if not recipe.depth_per_group:
        return config
    return replace(config, groups=tuple(kinds[:3] * recipe.depth_per_group for kinds in config.groups))


def new_network(recipe: Recipe) -> FdatRd:
    """Create an untrained network that interpolates, with random weights from torch's global generator."""
    rate = default_drop_path(recipe.variant) if recipe.drop_path < 0 else recipe.drop_path
    network = FdatRd(configuration(recipe), drop_path=rate)
    interpolate(network)
    return network


BIAS_WIDTHS = ((1.0, 1.0), (2.3, 0.8), (4.5, 1.5), (8.0, 3.0))
"""Initial widths of attention for the heads of a window, in turn: σ across and down of a Gaussian, in tokens."""


@torch.no_grad()
def let_attention_join(network: FdatRd) -> None:
    """Initialize the position biases of window attention that contributes nothing yet.

    The heads get several widths, so that they begin as different blurs. With biases of zero every token would begin
    with the mean of its window and first have to learn its position.
    """
    for module in network.modules():
        if not isinstance(module, WindowAttention) or module.proj.weight.any() or module.rel_pos_bias.any():
            continue
        height, width = module.window
        y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        down, across = ((axis.flatten()[:, None] - axis.flatten()).square() / 2 for axis in (y, x))
        for head, bias in enumerate(module.rel_pos_bias):
            sigma_x, sigma_y = BIAS_WIDTHS[head % len(BIAS_WIDTHS)]
            bias.copy_(-across / sigma_x**2 - down / sigma_y**2)


@torch.no_grad()
def silence(block: Block) -> None:
    """Make a block the identity."""
    block.ffn.fc2.weight.zero_()
    projection = cast(nn.Linear, block.attn.proj)
    projection.weight.zero_()
    projection.bias.zero_()
    if block.kind != "dictionary":
        cast(nn.Conv2d, block.conv[0]).weight.zero_()  # GELU(0) is 0


@torch.no_grad()
def deepen(shallow: FdatRd, config: FdatRdConfig) -> FdatRd:
    """Create a network of `config` that computes what `shallow`, with fewer blocks at the end of its groups, computes.

    The blocks that `shallow` lacks get random weights from torch's global generator and contribute nothing at first.

    Raises:
        ValueError: `shallow` differs in something else, or has trained window attention. Its windows would turn,
            because they do so from one window attention to the next, through all groups.
    """
    blocks = [len(kinds) for kinds in shallow.config.groups]
    groups = tuple(kinds[:count] for kinds, count in zip(config.groups, blocks, strict=False))
    if shallow.config != replace(config, groups=groups):
        raise ValueError("the networks differ in more than the number of blocks in their groups")
    if any(module.proj.weight.any() for module in shallow.modules() if isinstance(module, WindowAttention)):
        raise ValueError("with more blocks, the windows of its trained attention would turn")
    deep = FdatRd(config)
    for group, count in zip(deep.groups, blocks, strict=True):
        for block in list(cast(nn.ModuleList, group.blocks))[count:]:
            silence(cast(Block, block))
    deep.load_state_dict(deep.state_dict() | shallow.state_dict())
    return deep


def leave_attention_out(network: FdatRd) -> FdatRd:
    """Bypass attention: blocks compute as if it gave zeros, and it does not learn.

    Neither do its gates: the spatial gate is one half wherever attention is zero, and the channel gate scales zeros.
    """
    for module in network.modules():
        if isinstance(module, Block):
            module.forward = MethodType(_without_attention, module)  # type: ignore[method-assign]
            for part in (module.attn, getattr(module, "inter", None)):
                if part is not None:
                    part.requires_grad_(False)
            if module.kind == "dictionary":
                module.n1.requires_grad_(False)
    return network


def _without_attention(block: Block, t: Tensor, size: tuple[int, int]) -> Tensor:
    """`Block.forward` if the output projection of attention is zero."""
    if block.kind != "dictionary":
        local = F.gelu(cast(DepthwiseConv, block.conv[0]).tokens(block.n1(t), size))
        t = t + block.drop_path(local if block.kind == "spatial" else local / 2)
    return t + cast(Tensor, block.drop_path(block.ffn(block.n2(t), size)))


def run_without_blocks(network: FdatRd, x: Tensor) -> Tensor:
    """Run the network without its groups of blocks: (B, 3, H, W) with even sides -> (B, 3, 2H, 2W)."""
    return cast(Tensor, network.upsampler(network.conv_first(x)))


def cubic_taps() -> Tensor:
    """Return the cubic interpolation of a pair of pixels as a matrix (2, 6).

    It gives two outputs from six pixels: the pair and two on each side. The rows are outputs 0 and 1 of pixel 0: Keys
    1981 with a = -0.5, a quarter of a pixel to its left and right.
    """

    def weight(d: float) -> float:
        d, a = abs(d), -0.5
        if d < 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    return torch.tensor([[weight(position - center) for position in range(-2, 4)] for center in (-0.25, 0.25)])


@torch.no_grad()
def interpolate(network: FdatRd) -> None:
    """Set the weights so that the network upscales by cubic interpolation, except for the outermost three pixels.

    Raises:
        ValueError: The network is not 2x with unshuffle 2, the tail transpose+conv and at least 48 channels.
    """
    config = network.config
    if (config.unshuffle, config.tail_scale, config.upsampler) != (2, 4, "transpose+conv") or config.embed_dim < 48:
        raise ValueError("only a network of 2x with unshuffle 2, transpose+conv and 48 channels can start like this")
    first = cast(nn.Conv2d, cast(nn.Sequential, network.conv_first)[1])
    spread, _, gather, last = cast(
        tuple[nn.ConvTranspose2d, nn.GELU, nn.ConvTranspose2d, nn.Conv2d], tuple(network.upsampler)
    )
    # A token folds 2×2 pixels and becomes 4×4. Along an axis: output 2p + h of pixel p, from six pixels.
    near = cubic_taps()
    axis = torch.zeros(2, 2, 6)  # (p, h, pixel)
    axis[0] = near
    axis[1, :, 1:] = near[:, :5]
    # First convolution: channel (p, q, h, k, color) is output (2p + h, 2q + k); its inputs are (color, i, j).
    kernel = torch.einsum("pha,qkb->pqhkab", axis, axis).view(2, 2, 2, 2, 3, 2, 3, 2)  # (…, row, i, column, j)
    weight = torch.zeros(2, 2, 2, 2, 3, 3, 2, 2, 3, 3)  # (p, q, h, k, color, from color, i, j, row, column)
    for color in range(3):
        weight[:, :, :, :, color, color] = kernel.permute(0, 1, 2, 3, 5, 7, 4, 6)
    first.weight[:48] = weight.reshape(48, 12, 3, 3)
    cast(Tensor, first.bias)[:48] = 0
    # Tokens to pixels: pixel (p, q) takes its twelve values, and their negatives. Kernel row 1 + p is row 2i + p.
    spread.weight[:, :24] = 0
    cast(Tensor, spread.bias)[:24] = 0
    gather.weight.zero_()
    cast(Tensor, gather.bias).zero_()
    for p in range(2):
        for q in range(2):
            for value in range(12):  # (h, k, color)
                spread.weight[(2 * p + q) * 12 + value, value, 1 + p, 1 + q] = 1
                spread.weight[(2 * p + q) * 12 + value, 12 + value, 1 + p, 1 + q] = -1
    for value in range(12):
        h, k, color = value // 6, value // 3 % 2, value % 3
        gather.weight[value, color, 1 + h, 1 + k] = 1
        gather.weight[12 + value, color, 1 + h, 1 + k] = -1
    nn.init.dirac_(last.weight)
    cast(Tensor, last.bias).zero_()
    network.conv_after.weight.zero_()


def upscale_bicubic(x: Tensor) -> Tensor:
    """Upscale by cubic interpolation, the baseline of validation: (B, 3, H, W) -> (B, 3, 2H, 2W) in [0, 1]."""
    return F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1)

"""Convert the network on single pixels into an FDAT-RD, which folds 2×2 pixels into a token, and back.

Pixel kernels reach at most two pixels to each side, so token kernels can represent them: one pixel kernel for each
position in the output token, over all positions in the neighboring tokens.
"""

import copy
from typing import cast

import torch
from torch import Tensor, nn

from models.training.network import silence
from models.training.pixel_network import FOLD, PixelBlock, PixelGroup, PixelNetwork, as_kernel
from vsfdatrd.nn.fdat_rd import Block, FdatRd


def fold_kernel(kernel: Tensor) -> Tensor:
    """Convert a pixel kernel into an equivalent token kernel: (O, I, k, k), k = 1, 3 or 5, -> (2, 2, O, 2, 2, I, 3, 3).

    The first two axes are the position in the output token, axes 3 and 4 that in the input tokens.
    """
    out, into, size, _ = kernel.shape
    folded = kernel.new_zeros(FOLD, FOLD, out, FOLD, FOLD, into, 3, 3)
    for p in range(FOLD):
        for q in range(FOLD):
            for row in range(size):
                for column in range(size):
                    (i, from_p), (j, from_q) = divmod(p + row - size // 2, FOLD), divmod(q + column - size // 2, FOLD)
                    folded[p, q, :, from_p, from_q, :, 1 + i, 1 + j] = kernel[:, :, row, column]
    return folded


def fold_spread(kernel: Tensor) -> Tensor:
    """Convert a 3×3 pixel kernel into the transposed kernel from tokens to pixels: (O, I, 3, 3) -> (4·I, O, 4, 4)."""
    out, into, _, _ = kernel.shape
    folded = kernel.new_zeros(FOLD, FOLD, into, out, 4, 4)
    for p in range(FOLD):
        for q in range(FOLD):
            for row in range(3):
                for column in range(3):
                    (i, from_p), (j, from_q) = divmod(p + row - 1, FOLD), divmod(q + column - 1, FOLD)
                    # Kernel row r of token i lies on pixel row 2i + r - 1.
                    folded[from_p, from_q, :, :, p + 1 - 2 * i, q + 1 - 2 * j] = kernel[:, :, row, column].T
    return folded.flatten(0, 2)


def _tokens(kernel: Tensor) -> Tensor:
    """Convert a pixel kernel into a token kernel, with positions before channels: (O, I, k, k) -> (4·O, 4·I, 3, 3)."""
    return fold_kernel(kernel).flatten(0, 2).flatten(1, 3)


def _each_place(values: Tensor) -> Tensor:
    """Repeat a tensor for every position in a token: (N, …) -> (4·N, …)."""
    return values.repeat(FOLD**2, *[1] * (values.ndim - 1))


@torch.no_grad()
def fold(unfolded: PixelNetwork, network: FdatRd) -> FdatRd:
    """Fill `network`, of the same configuration, with weights that compute what `unfolded` computes, and return it.

    Its other blocks and all attention keep their random weights, except for their output projections, which become
    zero: they contribute nothing at first, and learn as soon as the network is trained.
    """
    first = cast(nn.Conv2d, cast(nn.Sequential, network.conv_first)[1])
    kernel = fold_kernel(unfolded.first.weight)  # the unshuffled input has places after colors: (2, 2, O, 2, 2, 3, …)
    first.weight.copy_(kernel.permute(0, 1, 2, 5, 3, 4, 6, 7).flatten(0, 2).flatten(1, 3))
    cast(Tensor, first.bias).copy_(_each_place(cast(Tensor, unfolded.first.bias)))
    for group, pixels in zip(network.groups, unfolded.groups, strict=True):
        blocks = cast(list[Block], list(cast(nn.ModuleList, group.blocks)))
        for block in blocks:
            silence(block)
        for block, pixel_block in zip(blocks, cast(PixelGroup, pixels).blocks, strict=False):
            _fill(block, cast(PixelBlock, pixel_block))
        cast(nn.Conv2d, group.conv).weight.copy_(_tokens(as_kernel(cast(PixelGroup, pixels).conv, 3)))
    network.conv_after.weight.copy_(_tokens(as_kernel(unfolded.after, 3)))
    spread, _, gather, last = cast(
        tuple[nn.ConvTranspose2d, nn.GELU, nn.ConvTranspose2d, nn.Conv2d], tuple(network.upsampler)
    )
    middle = len(unfolded.spread)
    spread.weight[:, :middle] = fold_spread(as_kernel(unfolded.spread, 3))
    cast(Tensor, spread.bias)[:middle] = unfolded.spread_bias
    gather.weight.zero_()
    gather.weight[:middle] = unfolded.gather.weight
    cast(Tensor, gather.bias).copy_(cast(Tensor, unfolded.gather.bias))
    last.load_state_dict(unfolded.last.state_dict())
    return network


def _fill(block: Block, pixels: PixelBlock) -> None:
    """Give a block the feed-forward network of a pixel block."""
    block.n2.weight.copy_(_each_place(pixels.n2.weight))
    block.n2.bias.copy_(_each_place(pixels.n2.bias))
    for linear, weights in ((block.ffn.fc1, pixels.ffn.fc1), (block.ffn.fc2, pixels.ffn.fc2)):
        linear.weight.copy_(torch.kron(torch.eye(FOLD**2), weights))  # (O, I) -> (4·O, 4·I)
    block.ffn.smix.weight.copy_(_each_place(pixels.ffn.smix))


def _at_work(network: FdatRd) -> int:
    """Return the number of active blocks in the group that has most of them; at least 1."""
    groups = [cast(list[Block], list(cast(nn.ModuleList, group.blocks))) for group in network.groups]
    return max(1, *(n for blocks in groups for n, block in enumerate(blocks, 1) if block.ffn.fc2.weight.any()))


@torch.no_grad()
def unfold(network: FdatRd) -> PixelNetwork:
    """Reverse `fold`.

    Raises:
        ValueError: The network was trained since then, or did not come from `fold`.
    """
    unfolded, places = PixelNetwork(network.config, _at_work(network)), FdatRd(network.config)
    counts = [parameter.numel() for parameter in unfolded.parameters()]
    # Folding only copies: sent through it, running numbers tell where every weight went. 0 is none of them.
    numbers = torch.split(torch.arange(1.0, 1.0 + sum(counts)), counts)
    for parameter, values in zip(unfolded.parameters(), numbers, strict=True):
        parameter.copy_(values.view_as(parameter))
    for parameter in places.parameters():
        parameter.zero_()
    fold(unfolded, places)
    weights = torch.zeros(1 + sum(counts))
    for place, weight in zip(places.parameters(), network.parameters(), strict=True):
        weights[place.flatten().long()] = weight.flatten().float()
    for parameter, values in zip(unfolded.parameters(), torch.split(weights[1:], counts), strict=True):
        parameter.copy_(values.view_as(parameter))
    again = fold(unfolded, copy.deepcopy(network))
    if not all(map(torch.equal, again.parameters(), network.parameters())):
        raise ValueError(
            "its weights are not those of an unfolded network, for places in a token differ; "
            'train it with form = "whole"'
        )
    return unfolded

"""Initialize a wider network from a trained narrow one (Net2Net; Chen, Goodfellow and Shlens 2016).

Every new channel is a copy of an old one, and the weights that read a copied channel are divided among its copies. Only
norms compute something different, because the copies slightly change their mean and variance. The copies' weights
differ by some noise, or they would stay identical. Additional groups and blocks contribute nothing at first.
"""

from typing import cast

import torch
from torch import Tensor

from models.training.pixel_network import PixelBlock, PixelGroup, PixelNetwork, as_kernel
from vsfdatrd.archs.fdat_rd import FdatRdConfig

NOISE = 0.1
"""Relative noise on the weights of copies."""


class Copies:
    """Which of `old` channels each of `new` channels copies.

    The last channels are copied first: the first twelve hold the interpolated colors, to whose magnitude norms are most
    sensitive.
    """

    def __init__(self, old: int, new: int) -> None:
        self.of = torch.cat([torch.arange(old), old - 1 - torch.arange(new - old) % old])
        self.share = 1 / torch.bincount(self.of)[self.of]

    def out(self, weights: Tensor) -> Tensor:
        """Expand values over old channels (first axis) to new channels."""
        copied = weights[self.of]
        copies = copied[len(weights) :]
        copies += NOISE * copies * torch.randn_like(copies)
        return copied

    def into(self, weights: Tensor) -> Tensor:
        """Expand weights over old channels (second axis) to new channels."""
        return weights[:, self.of] * self.share.view(-1, *[1] * (weights.ndim - 2))


def _first(network: PixelNetwork) -> PixelBlock:
    return cast(PixelBlock, cast(PixelGroup, network.groups[0]).blocks[0])


@torch.no_grad()
def widen(narrow: PixelNetwork, config: FdatRdConfig, blocks: int = 1) -> PixelNetwork:
    """Create a larger network that computes nearly what `narrow` computes.

    The noise comes from torch's global generator.

    Args:
        narrow: The trained network.
        config: Configuration of the larger network.
        blocks: Number of blocks in each of its groups.

    Raises:
        ValueError: The network would be narrower, shorter or shallower.
    """
    wide = PixelNetwork(config, blocks)
    groups = [cast(PixelGroup, group) for group in narrow.groups]
    wider = [cast(PixelGroup, group) for group in wide.groups]
    sizes = [
        (len(net.first.weight), len(_first(net).ffn.fc1), len(net.spread), len(net_groups), len(net_groups[0].blocks))
        for net, net_groups in ((narrow, groups), (wide, wider))
    ]
    if any(old > new for old, new in zip(*sizes, strict=True)):
        raise ValueError(
            "a network can only be widened: channels, hidden channels, those of the tail, groups and their blocks are "
            f"{sizes[0]} in what there is, {sizes[1]} in what is asked for"
        )
    (dim, hidden, middle, *_), (new_dim, new_hidden, new_middle, *_) = sizes
    channels = Copies(dim, new_dim)
    inner, tail = Copies(hidden, new_hidden), Copies(middle, new_middle)

    def kernel(to: Tensor, weights: Tensor, out: Copies) -> None:
        as_kernel(to, 3).copy_(channels.into(out.out(as_kernel(weights, 3))))

    wide.first.weight.copy_(channels.out(narrow.first.weight))
    cast(Tensor, wide.first.bias).copy_(channels.out(cast(Tensor, narrow.first.bias)))
    for new, old in zip(wider, groups, strict=False):
        for fresh, given in zip(new.blocks, old.blocks, strict=False):
            to, of = cast(PixelBlock, fresh), cast(PixelBlock, given)
            to.n2.weight.copy_(channels.out(of.n2.weight))
            to.n2.bias.copy_(channels.out(of.n2.bias))
            to.ffn.fc1.copy_(channels.into(inner.out(of.ffn.fc1)))
            to.ffn.smix.copy_(inner.out(of.ffn.smix))
            to.ffn.fc2.copy_(inner.into(channels.out(of.ffn.fc2)))
        for fresh in list(new.blocks)[len(old.blocks) :]:
            cast(PixelBlock, fresh).ffn.fc2.zero_()
        kernel(new.conv, old.conv, channels)
    for new in wider[len(groups) :]:
        new.conv.zero_()
    kernel(wide.after, narrow.after, channels)
    kernel(wide.spread, narrow.spread, tail)
    wide.spread_bias.copy_(tail.out(narrow.spread_bias))
    wide.gather.weight.copy_(tail.out(narrow.gather.weight) * tail.share.view(-1, 1, 1, 1))
    cast(Tensor, wide.gather.bias).copy_(cast(Tensor, narrow.gather.bias))
    wide.last.load_state_dict(narrow.last.state_dict())
    return wide

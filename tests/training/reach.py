"""Which weights a training reaches."""

import torch

from vsfdatrd.nn.fdat_rd import FdatRd

UNUSED = ("inter.sg", "inter.cg")
"""A spatial block never uses its own gate by place, nor a channel block its gate by channel."""


def untouched(net: FdatRd) -> list[str]:
    """Names of weights that still have no gradient after three steps, those aside that are never used."""
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.rand(1, 3, 60, 60)).square().sum().backward()
        optimizer.step()
    missing = [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()]
    return [name for name in missing if not any(unused in name for unused in UNUSED)]

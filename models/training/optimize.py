"""Optimizers and the learning-rate schedule."""

import math

import torch
from torch import nn

from models.training.recipe import Recipe

_WEIGHT_DECAY = 1e-4
_BETAS = (0.9, 0.99)
_MUON_NAMES = ("groups.", "after", "spread")
"""Name prefixes of the inner matrices of an unfolded network; the outermost layers use AdamW."""


def create_optimizers(network: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Create the optimizers: AdamW for everything, or Muon for the inner matrices of an unfolded network.

    Norms, biases, temperatures and position biases have no weight decay. Muon (Jordan et al. 2024) orthogonalizes the
    update of each matrix; with PyTorch's scaling it uses the same learning rates as AdamW.
    """
    matrices: list[nn.Parameter] = []
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if recipe.optimizer == "muon" and parameter.ndim == 2 and name.startswith(_MUON_NAMES):
            matrices.append(parameter)
        elif parameter.ndim < 2 or name.endswith((".temp", ".rel_pos_bias")):
            keep.append(parameter)
        else:
            decay.append(parameter)
    groups = [{"params": decay, "weight_decay": _WEIGHT_DECAY}, {"params": keep, "weight_decay": 0.0}]
    result: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=_BETAS, fused=True)]
    if matrices:
        result.append(
            torch.optim.Muon(
                matrices, lr=recipe.learning_rate, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
            )
        )
    return result


def learning_rate_at(recipe: Recipe, progress: float, since: int) -> float:
    """Return the learning rate at a point of the schedule (0 to 1), `since` steps after the present stage began."""
    if recipe.schedule == "cosine":
        share = 0.5 + 0.5 * math.cos(math.pi * progress)
    else:
        share = min(1.0, (1 - progress) / recipe.decay) if recipe.decay else 1.0
    return recipe.learning_rate * min(1.0, (since + 1) / recipe.ramp) * share + 1e-8

"""The optimisers of a search, of weights and of decisions, and what of the weights is not learned."""

import math
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from segnas.search.settings import SearchSettings

BEGUN = 0.1
"""Of the rate, for weights that a search starts with (SparseMask's code: .005 and .05)."""


def weight_optimiser(weights: Mapping[nn.Parameter, str], start: Collection[str], settings: SearchSettings) -> torch.optim.SGD:
    """SGD over weights with their names; those named in `start` learn at a share of the rate."""
    parted = (([p for p, name in weights.items() if (name in start) == begun], BEGUN if begun else 1.0) for begun in (False, True))
    groups = [{"params": held, "share": share} for held, share in parted if held]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def set_rate(optimiser: torch.optim.Optimizer, settings: SearchSettings, step: int) -> None:
    """The weights' rate at a step: half a cosine from the first to the final one (DARTS, released code), times each group's share."""
    span = settings.learning_rate - settings.final_rate
    rate = settings.final_rate + span * (1 + math.cos(math.pi * step / settings.steps)) / 2
    for group in optimiser.param_groups:
        group["lr"] = group["share"] * rate


def decision_optimiser(decisions: Sequence[nn.Parameter], settings: SearchSettings) -> torch.optim.Optimizer:
    """Adam with DARTS's moments, or SGD with the weights' momentum (SparseMask)."""
    rate, decay = settings.decision_rate, settings.decision_decay
    if settings.decision_optimiser == "sgd":
        return torch.optim.SGD(decisions, lr=rate, momentum=settings.momentum, weight_decay=decay)
    return torch.optim.Adam(decisions, lr=rate, betas=(0.5, 0.999), weight_decay=decay)


def freeze_normalisation(supernet: nn.Module) -> None:
    """Fix scale and shift of every normalisation, so that no option can buy weight by scaling itself (DARTS: affine=False in search)."""
    for layer in supernet.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.requires_grad_(False)
            layer.bias.requires_grad_(False)


@contextmanager
def kept_statistics(supernet: nn.Module) -> Generator[None]:
    """Whatever runs inside leaves the running statistics of the module's normalisations as they were."""
    before = [(buffer, buffer.clone()) for buffer in supernet.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)

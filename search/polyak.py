"""Polyak averages: a running average of what is trained, put in the place of the last weights, and normalisations estimated anew for it."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from segnas.errors import InputError

T = TypeVar("T")


class PolyakAverage:
    """The average of some tensors over the updates; its memory is short at first, min(decay, (1 + t) / (10 + t)), so that few updates do too (ours).

    Fast-NAS averages parameters alone and keeps the statistics of the last weights, which fit no average: `re_estimated` mends that.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.tensors, self.decay, self.updates = dict(tensors), decay, 0
        self.average = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self) -> None:
        """Take the tensors as they are now in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                self.average[name].lerp_(tensor, 1 - decay)

    def swap_in(self) -> None:
        """Put the average in the tensors' place."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(self.average[name])


def re_estimated(module: nn.Module, run: Callable[[T], object], batches: Iterable[T]) -> None:
    """Forget the running statistics of a module's normalisations and take the mean of those that `run` of each batch gives; weights stay as they are.

    The module is left in evaluation mode. InputError for no batch.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch then averages cumulatively
    count = 0
    module.train()
    try:
        with torch.no_grad():
            for batch in batches:
                run(batch)
                count += 1
    finally:
        module.eval()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if not count:
        raise InputError("no batch was given to estimate normalisation statistics on; at least 1 is needed, 100 are usual")

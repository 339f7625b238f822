"""Folding: each batch normalisation goes into the convolution before it, in double precision, without touching the module that was given.

In numpy: torch would start its threads for each of these small products, which costs milliseconds a network where the cores are busy.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Floats = NDArray[np.float32]


def folded_state(module: nn.Module) -> dict[str, Floats]:
    """Weights of the module with each batch normalisation folded into the convolution before it; names as in `folded_module`'s state."""
    state: dict[str, Floats] = {}
    for path, layer, norm in _convolutions(module):
        weight, bias = _folded(layer, norm)
        state[f"{path}.weight"] = weight
        if bias is not None:
            state[f"{path}.bias"] = bias
    return state


def folded_module(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch normalisations are gone: each convolution carries a bias in their place."""
    folded = copy.deepcopy(module).eval()
    pairs = [(path, layer, norm) for path, layer, norm in _convolutions(folded) if norm is not None]
    for path, layer, norm in pairs:
        weight, bias = _folded(layer, norm)
        assert bias is not None
        layer.weight, layer.bias = (nn.Parameter(torch.from_numpy(values), requires_grad=False) for values in (weight, bias))
        parent, _, name = path.rpartition(".")
        sequence = folded.get_submodule(parent)
        sequence.register_module(str(int(name) + 1), nn.Identity())
    return folded


def _convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d, nn.BatchNorm2d | None]]:
    """Each convolution with its path and the normalisation right behind it; every parameter of the module belongs to one of them."""
    norms: set[int] = set()
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Conv2d):
            parent, _, name = path.rpartition(".")
            sequence = module.get_submodule(parent)
            after = sequence[int(name) + 1] if isinstance(sequence, nn.Sequential) and int(name) + 1 < len(sequence) else None
            norm = after if isinstance(after, nn.BatchNorm2d) else None
            norms.add(id(norm))
            yield path, layer, norm
        elif next(layer.parameters(recurse=False), None) is not None and id(layer) not in norms:
            raise TypeError(f"{path} is a {type(layer).__name__}; weights outside convolutions with a normalisation behind them are not exported")


def _folded(layer: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Floats, Floats | None]:
    weight, bias = _values(layer.weight), None if layer.bias is None else _values(layer.bias)
    if norm is not None:
        if norm.running_mean is None or norm.running_var is None:
            raise TypeError("a batch normalisation without running statistics cannot be folded")
        scale = _values(norm.weight) / np.sqrt(_values(norm.running_var) + norm.eps)  # (C,)
        bias = _values(norm.bias) + ((0 if bias is None else bias) - _values(norm.running_mean)) * scale
        weight = weight * scale.reshape(-1, 1, 1, 1)
    return np.ascontiguousarray(weight, np.float32), None if bias is None else np.ascontiguousarray(bias, np.float32)


def _values(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().numpy().astype(np.float64)

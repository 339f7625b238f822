"""Checkpoints: named tensors and a JSON state in one safetensors file, written whole or not at all, and never unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segnas.errors import InputError
from segnas.files import write_bytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None = None) -> None:
    """Write tensors and state; equal content gives equal bytes."""
    contiguous = {name: tensors[name].detach().to("cpu").contiguous() for name in sorted(tensors)}
    write_bytes(path, save(contiguous, metadata={"state": json.dumps(state or {}, sort_keys=True)}))  # save_file would hide why a disk refused


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state of a file; InputError where it is missing, truncated or no safetensors file."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; a safetensors file is needed")
    try:
        with safe_open(path, framework="pt") as stream:  # pyright: ignore[reportUnknownVariableType]
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - the stream is no mapping
            metadata: dict[str, str] = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no complete safetensors file: {error}") from None
    try:
        state: object = json.loads(metadata.get("state", "{}"))
    except json.JSONDecodeError:
        state = None  # a file of another tool, which uses the name for something else
    return tensors, cast(dict[str, Any], state) if isinstance(state, dict) else {}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.name`, so that several groups share a file."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The group that `prefixed` named."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """Every tensor that an optimiser remembers, as `parameter/quantity`."""
    return {
        f"{names[parameter]}/{quantity}": torch.as_tensor(value)
        for parameter, memory in optimiser.state.items()
        for quantity, value in memory.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]) -> None:
    """The reverse of `optimiser_tensors`, on an optimiser over the same parameters."""
    by_name = {name: parameter for parameter, name in names.items()}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        parameter = by_name[name]
        moved = value if quantity == "step" else value.to(parameter.device)
        optimiser.state[parameter][quantity] = moved.clone(memory_format=torch.preserve_format)

"""Checkpoints: named tensors and a JSON state in one safetensors file, written whole or not at all, and never unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segnas.errors import IncompatibleError, InputError
from segnas.files import plain, write_bytes

CHECKPOINT_NAME = "search.checkpoint.safetensors"
"""What a search's checkpoint is called in the folder of its run."""


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
        # laid out as the parameter is: the fused optimisers walk through both in the order of memory
        optimiser.state[parameter][quantity] = value.clone() if quantity == "step" else torch.empty_like(parameter).copy_(value)


def plain_settings(settings: object) -> dict[str, Any]:
    """Settings as JSON values, for a checkpoint's identity; `checkpoint_s` is left out, since when to save changes nothing that is computed."""
    values = cast(dict[str, Any], plain(settings))
    return {name: value for name, value in values.items() if name != "checkpoint_s"}


def require_identity(path: Path, state: Mapping[str, Any], identity: Mapping[str, Any], what: str) -> None:
    """Refuse the checkpoint of another `what` (run, search); IncompatibleError names the first thing that differs."""
    stored = state.get("identity", {})
    for name, value in identity.items():
        if stored.get(name) != value:
            raise IncompatibleError(f"{path} is a checkpoint of another {what}: its {name} is {stored.get(name)}, not {value}")

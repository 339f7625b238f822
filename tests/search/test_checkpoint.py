"""Checkpoints: there and back, equal bytes for equal content, and files that are damaged."""

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from segnas.errors import InputError, RequirementError
from segnas.search.checkpoint import load_tensors, optimiser_tensors, prefixed, restore_optimiser, save_tensors, unprefixed

TENSORS = {
    "b.weight": torch.arange(24.0).reshape(1, 2, 3, 4),
    "a": torch.tensor(7),
    "random": torch.tensor([1, 255], dtype=torch.uint8),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5], dtype=torch.bfloat16),
}
STATE = {"step": 3, "smooth": 0.1 + 0.2, "identity": {"seed": 0, "crop": [1, 2]}, "curve": [[], [1e-30]], "none": None}


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    save_tensors(path := tmp_path / "deep" / "x.safetensors", TENSORS, STATE)
    tensors, state = load_tensors(path)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert os.listdir(path.parent) == ["x.safetensors"]


def test_a_file_without_state_has_an_empty_one(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"a": torch.ones(1)})
    assert load_tensors(tmp_path / "x")[1] == {}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    save_tensors(tmp_path / "1", TENSORS, STATE)
    laid_out = {name: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t for name, t in reversed(TENSORS.items())}
    save_tensors(tmp_path / "2", laid_out, dict(reversed(STATE.items())))
    parameters = {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in TENSORS.items()}
    save_tensors(tmp_path / "3", parameters, STATE)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == (tmp_path / "3").read_bytes()


def test_what_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"x\.safetensors does not exist; a safetensors file is needed"):
        load_tensors(path)
    with pytest.raises(InputError, match="does not exist"):
        load_tensors(tmp_path)
    save_tensors(path, TENSORS, STATE)
    whole = path.read_bytes()
    for content in (b"", whole[:4], whole[:40], whole[: len(whole) // 2], whole[:-1], whole + b"x", b"\xff" * 200, b"PK\x03\x04 a pickle"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.safetensors is no complete safetensors file: "):
            load_tensors(path)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch) -> None:
    save_tensors(path := tmp_path / "x", TENSORS, STATE)
    before = path.read_bytes()

    def fail(path: Path, content: bytes) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(RequirementError, match="the disk is full"):
        save_tensors(path, TENSORS, {"step": 4})
    assert os.listdir(tmp_path) == ["x"]
    assert path.read_bytes() == before


def test_groups_share_a_file() -> None:
    groups = {**prefixed("model", {"a": torch.ones(1), "b.c": torch.ones(2)}), **prefixed("models", {"a": torch.ones(3)})}
    assert sorted(groups) == ["model.a", "model.b.c", "models.a"]
    assert {name: len(t) for name, t in unprefixed("model", groups).items()} == {"a": 1, "b.c": 2}
    assert {name: len(t) for name, t in unprefixed("models", groups).items()} == {"a": 3}


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.1)], ids=["sgd", "adam"])
def test_an_optimiser_goes_on_as_if_it_had_not_stopped(tmp_path: Path, make) -> None:
    def started() -> tuple[nn.Module, torch.optim.Optimizer, dict]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
        return model, make(model.parameters()), {p: name for name, p in model.named_parameters()}

    def steps(model: nn.Module, optimiser: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            optimiser.zero_grad()
            model(torch.full((2, 2, 5, 5), float(number)).cumsum(-1)).square().mean().backward()
            optimiser.step()

    model, optimiser, _ = started()
    steps(model, optimiser, range(6))
    first, first_optimiser, names = started()
    steps(first, first_optimiser, range(3))
    save_tensors(tmp_path / "x", {**prefixed("model", first.state_dict()), **prefixed("optimiser", optimiser_tensors(first_optimiser, names))})
    second, second_optimiser, names = started()
    tensors, _ = load_tensors(tmp_path / "x")
    second.load_state_dict(unprefixed("model", tensors))
    restore_optimiser(second_optimiser, names, unprefixed("optimiser", tensors))
    steps(second, second_optimiser, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), second.state_dict().values(), strict=True))

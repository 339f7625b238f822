"""Networks drawn at random from each search space: exported, they agree with PyTorch, and TensorRT-RTX builds them for a GPU that is not here."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from segnas.arch import Architecture
from segnas.export.graph import onnx_from_network
from segnas.export.parity import parity
from segnas.export.tensorrt_build import engine_from_onnx
from segnas.network import Network
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.search.spaces import SPACES, space

_spec = importlib.util.spec_from_file_location("engines", Path(__file__).with_name("engines.py"))
assert _spec is not None
assert _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)

TARGET = cpu_target(64, 128)
LARGE = ("cas", "cas-fast", "gas", "gas-fast", "dcnas", "darts", "auto-deeplab", "fasterseg", "sparsemask", "dpc", "fast-nas")
"""The larger presets of families that a smaller one stands for by default: to export them for the first time takes half a minute each."""


IMAGES = [np.random.default_rng(seed).standard_normal((1, 3, 64, 128), np.float32) for seed in range(4)]


def built(api: Any, name: str, seed: int, lively: Callable[[Architecture], Network]) -> int:
    """Bytes of the engine of one random network of a space, whose ONNX file gave the classes that PyTorch gives."""
    drawn = space(name, 19)
    network = lively(drawn.decode(drawn.random(Random(seed))).architecture)  # else deep ones give classes that differ in the ninth digit
    content = onnx_from_network(network, TARGET)
    session = open_session(content, TARGET)
    with torch.inference_mode():
        found = parity(
            lambda image: network(torch.from_numpy(image)).numpy(), session.run, IMAGES, output_contract="labels", reference_name=f"{name} {seed}"
        )
    session.close()
    assert found.passed, found
    return len(engine_from_onnx(content, api, capabilities=("8.9",)).content)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in SPACES])
def test_three_networks_of_each_space(name: str, lively: Callable[[Architecture], Network]) -> None:
    api = engines.rtx()
    assert all(built(api, name, seed, lively) > 10_000 for seed in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_a_hundred_networks_of_each_space(name: str, lively: Callable[[Architecture], Network]) -> None:
    api = engines.rtx()
    assert all(built(api, name, seed, lively) > 10_000 for seed in range(100))

"""What the tests of exports share: networks that do something, a folder of templates, and a way to run a graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from segnas.arch import Architecture, Node
from segnas.data import Dataset, network_input, open_dataset
from segnas.kinds import kind
from segnas.network import Network, initialised
from segnas.streets import write_streets

Runs = Callable[[bytes, np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of templates of this session."""
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="session")
def lively() -> Callable[..., Network]:
    """Makes a network whose normalisations do something: random statistics, scales and shifts."""

    def made(architecture: Architecture, seed: int = 0) -> Network:
        network = initialised(architecture, seed)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            for layer in network.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    assert layer.running_mean is not None
                    assert layer.running_var is not None
                    layer.running_mean.normal_(0, 0.3)
                    layer.running_var.uniform_(0.3, 3)
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.normal_(0, 0.3)
        return network.eval()

    return made


@pytest.fixture(scope="session")
def runs() -> Runs:
    """Runs a graph in ONNX Runtime, with nothing of ours around it."""

    def run(content: bytes, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return session.run(None, {session.get_inputs()[0].name: image})[0]

    return run


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dataset]:
    """Opens a split of a few synthetic streets of 64x96: six of train, four of val."""
    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, counts={"train": 6, "val": 4}, height=64, width=96, seed=0)
    return lambda split: open_dataset("cityscapes", folder, split)


@pytest.fixture(scope="session")
def learned(streets: Callable[[str], Dataset]) -> Network:
    """A small network that has learned the streets of train for a second or two, so that its classes lie apart there; engines are proven on these."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), 16, 4),
        Node(kind("separable"), (1,), 24),
        Node(kind("inverted_residual", expansion=2, squeeze=4), (2,), 24),
        Node(kind("max_pool"), (3,), 24, 2),
        Node(kind("conv", activation="hardswish"), (4,), 24),
        Node(kind("resize"), (5,), 24, 1, 2),
        Node(kind("concat"), (2, 6), 48),
        Node(kind("conv", kernel=1, activation="relu6"), (7,), 24),
        Node(kind("classifier"), (8,), 19),
        Node(kind("resize"), (9,), 19, 1, 4),
    )
    network, dataset = initialised(Architecture(nodes), 0), streets("train")
    pairs = [dataset.read(index) for index in range(len(dataset))]
    x = torch.cat([torch.from_numpy(network_input(image, 64, 96)) for image, _ in pairs])
    truth = torch.from_numpy(np.stack([dataset.labels.train_ids(ids) for _, ids in pairs])).long()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        optimiser = torch.optim.Adam(network.parameters(), 0.02)
        for step in range(60):
            optimiser.param_groups[0]["lr"] = 0.02 * (1 - step / 60)
            optimiser.zero_grad()
            nn.functional.cross_entropy(network.train()(x), truth, ignore_index=255).backward()
            optimiser.step()
    return network.eval()

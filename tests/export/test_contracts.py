"""The ends of an engine: pixels in, a size out."""

import dataclasses

import cv2
import numpy as np
import onnx
import pytest
import torch

from segnas.arch import Architecture, Node
from segnas.data import NORMALISE_MEAN, NORMALISE_STD, engine_input, open_dataset
from segnas.errors import InputError
from segnas.export.check import checked_onnx
from segnas.export.graph import onnx_from_network
from segnas.kinds import kind
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.streets import write_streets

SIZE = (64, 96)


def network_of(lively, classes: int = 5, channels: int = 3, resize: bool = True):
    nodes = [Node(kind("image"), (), channels), Node(kind("conv"), (0,), 8, 2), Node(kind("classifier"), (1,), classes)]
    return lively(
        Architecture((*nodes, Node(kind("resize"), (2,), classes, 1, 2)) if resize else (nodes[0], Node(kind("classifier"), (0,), classes)))
    )


@pytest.fixture(scope="module")
def street(tmp_path_factory) -> np.ndarray:
    """One synthetic street, (64, 96, 3) RGB."""
    folder = tmp_path_factory.mktemp("streets")
    write_streets(folder, counts={"train": 1, "val": 1}, height=64, width=96, seed=5)
    return open_dataset("cityscapes", folder, "val").read(0)[0]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_image_engine_gives_what_a_normalised_one_gives_to_the_bit(precision, street, lively, cache, runs):
    network, target = network_of(lively), cpu_target(*SIZE, precision=precision, output_contract="logits")
    normalised = onnx_from_network(network, target, cache=cache)
    image = onnx_from_network(network, dataclasses.replace(target, input_contract="image"), cache=cache)
    fed = [engine_input(street, contract, *SIZE) for contract in ("normalised", "image")]
    assert [(x.dtype, x.shape) for x in fed] == [(np.float32, (1, 3, *SIZE)), (np.uint8, (1, *SIZE, 3))]
    assert np.array_equal(runs(normalised, fed[0]), runs(image, fed[1]))


def test_the_image_is_normalised_as_torchvision_would(street, lively, cache, runs):
    network = network_of(lively)
    pixels = torch.from_numpy(street).permute(2, 0, 1)[None].double() / 255
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1).double() for values in (NORMALISE_MEAN, NORMALISE_STD))
    with torch.no_grad():
        expected = network(((pixels - mean) / std).float()).numpy()
    content = onnx_from_network(network, cpu_target(*SIZE, input_contract="image", output_contract="logits"), cache=cache)
    assert np.abs(runs(content, street[None]) - expected).max() < 1e-5
    first = onnx.load_from_string(content).graph.node[:2]
    assert [node.op_type for node in first] == ["Cast", "Transpose"]  # TensorRT refuses a transposition of uint8


def test_a_session_of_an_image_engine_reads_and_samples_pixels(street, lively, cache):
    target = cpu_target(*SIZE, input_contract="image")
    content = onnx_from_network(network_of(lively), target, cache=cache)
    session = open_session(content, target)
    assert (session.specification.input.dtype, session.specification.input.shape) == ("uint8", (1, *SIZE, 3))
    assert session.run(street[None]).shape == (1, *SIZE)
    assert len(session.sample(3)) == 3
    with pytest.raises(InputError, match=r"reads input uint8 1x64x96x3; float32 1x3x64x96 was given"):
        session.run(engine_input(street, "normalised", *SIZE))
    with pytest.raises(InputError, match=r"the target's input is 'normalised'"):
        open_session(content, dataclasses.replace(target, input_contract="normalised"))
    plain = onnx_from_network(network_of(lively), cpu_target(*SIZE), cache=cache)
    with pytest.raises(InputError, match=r"the target's input is 'image'"):
        open_session(plain, target)


def test_an_image_has_three_channels(lively, cache):
    with pytest.raises(InputError, match=r"reads 8 channels.*'normalised'"):
        onnx_from_network(network_of(lively, channels=8), cpu_target(*SIZE, input_contract="image"), cache=cache)


@pytest.mark.parametrize(("size", "resize"), [((128, 192), True), ((50, 71), True), ((50, 71), False)])
def test_the_answer_has_the_output_size(size, resize, lively, cache, runs):
    network, target = network_of(lively, resize=resize), cpu_target(*SIZE, output_contract="logits")
    x = np.random.default_rng(1).standard_normal((1, 3, *SIZE), dtype=np.float32)
    content = onnx_from_network(network, target, output_size=size, cache=cache)
    checked_onnx(content, folder=None)
    with torch.no_grad():
        small = network.nodes["2" if resize else "1"](
            [network.nodes["1"]([torch.from_numpy(x)], (32, 48))] if resize else [torch.from_numpy(x)], (32, 48)
        )
    planes = [cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in small[0].numpy()]
    assert np.abs(runs(content, x)[0] - np.stack(planes)).max() < 1e-4
    labels = onnx_from_network(network, dataclasses.replace(target, output_contract="labels"), output_size=size, cache=cache)
    assert runs(labels, x).shape == (1, *size)


def test_an_output_size_of_nothing_is_refused(lively, cache):
    with pytest.raises(InputError, match="at least 1x1"):
        onnx_from_network(network_of(lively), cpu_target(*SIZE), output_size=(0, 5), cache=cache)

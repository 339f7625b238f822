"""Half graphs: against the plain export of a half network, against torch's own half arithmetic, and what overflow and ties do."""

import dataclasses
import warnings

import numpy as np
import onnx
import pytest
import torch

from segnas.arch import Architecture, Node
from segnas.errors import InputError, VerificationError
from segnas.export.check import checked_onnx
from segnas.export.folding import folded_module
from segnas.export.graph import onnx_from_network, whole_onnx_from_network
from segnas.export.rounding import rounded_logits
from segnas.kinds import kind
from segnas.network import Network
from segnas.runtime.onnxruntime_session import cpu_target

SIZE = (75, 109)
HALF = cpu_target(*SIZE, precision="fp16", output_contract="logits")


def small(*, classes: int = 5) -> Architecture:
    """A stem, a separable convolution, a gate, a sum, a pool, a resize."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), 16, 4),
        Node(kind("separable"), (1,), 16),
        Node(kind("inverted_residual", squeeze=4, expansion=2, activation="hardswish"), (2,), 16),
        Node(kind("add"), (2, 3), 16),
        Node(kind("pyramid_pool", bins=(1, 3)), (4,), 16),
        Node(kind("classifier"), (5,), classes),
        Node(kind("resize"), (6,), classes, 1, 4),
    )
    return Architecture(nodes)


def image(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((1, 3, *size), dtype=np.float32)


def in_torch_half(network: Network, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return folded_module(network).half()(torch.from_numpy(x).half()).float().numpy()


@pytest.mark.parametrize("name", ["small", pytest.param("every operation", marks=pytest.mark.slow)])
def test_the_joined_graph_is_the_whole_export_of_the_half_network(name, lively, every_op, cache, runs):
    network = lively(small() if name == "small" else every_op)
    joined, whole = onnx_from_network(network, HALF, cache=cache), whole_onnx_from_network(network, HALF)
    checked_onnx(whole, folder=None)
    x = image()
    assert np.abs(runs(joined, x) - runs(whole, x)).max() < 1e-5 * np.abs(runs(whole, x)).max()
    assert np.abs(runs(rounded_logits(joined), x) - runs(rounded_logits(_named(whole)), x)).max() < 2e-3 * np.abs(runs(whole, x)).max()
    ours, theirs = (sorted(node.op_type for node in onnx.load_from_string(made).graph.node) for made in (joined, whole))
    assert ours == theirs


def _named(whole: bytes) -> bytes:
    """The plain export with its answer called `logits`."""
    model = onnx.load_from_string(whole)
    for node in model.graph.node:
        node.output[:] = ["logits" if name == model.graph.output[0].name else name for name in node.output]
    model.graph.output[0].name = "logits"
    return model.SerializeToString()


def test_rounding_is_what_torch_computes_in_half(lively, cache, runs):
    network, x = lively(small()), image()
    content = onnx_from_network(network, HALF, cache=cache)
    single, half = runs(onnx_from_network(network, dataclasses.replace(HALF, precision="fp32"), cache=cache), x), in_torch_half(network, x)
    rounded, executed = runs(rounded_logits(content), x), runs(content, x)
    noise = np.abs(half - single).mean()
    assert np.abs(rounded - half).mean() < 0.7 * noise  # the same roundings, but for sums in another order
    assert 0.7 * noise < np.abs(rounded - single).mean() < 1.3 * noise
    assert np.abs(executed - single).mean() < 0.9 * noise  # ONNX Runtime rounds the weights alone


def test_nothing_but_the_input_is_single(lively, cache):
    model = onnx.load_from_string(onnx_from_network(lively(small()), dataclasses.replace(HALF, output_contract="labels"), cache=cache))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    assert not {value.name for value in inferred.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    assert inferred.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]


def test_ties_go_to_the_lowest_class_in_half(cache, runs):
    network = Network(Architecture((Node(kind("image"), (), 3), Node(kind("classifier"), (0,), 5))))
    weight = torch.tensor([[1.0, 0, 0], [1.0 + 2**-13, 0, 0], [0.5, 0, 0], [1.0 + 2**-12, 0, 0], [-1.0, 0, 0]])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(weight.reshape(5, 3, 1, 1) if parameter.ndim == 4 else torch.zeros(5))
    x = np.abs(image((8, 8))) + 0.1
    single = runs(onnx_from_network(network, cpu_target(8, 8), cache=cache), x)
    half = runs(onnx_from_network(network, cpu_target(8, 8, precision="fp16"), cache=cache), x)
    assert (single == 3).all()
    assert (half == 0).all()  # both larger weights round to 1: a tie, and the lowest index wins
    assert (half.dtype, half.shape) == (np.uint8, (1, 8, 8))


def test_labels_are_the_argmax_of_the_half_logits(lively, cache, runs):
    network, x = lively(small()), image()
    labels = runs(onnx_from_network(network, dataclasses.replace(HALF, output_contract="labels"), cache=cache), x)
    logits = runs(onnx_from_network(network, HALF, cache=cache), x)
    assert (labels == logits.argmax(axis=1)).mean() > 0.999


def test_rounding_shows_the_overflow_that_execution_hides(lively, cache, runs):
    network = lively(small())
    norms = [layer for name in ("1", "2") for layer in network.nodes[name].modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    with torch.no_grad():  # features of 300 and then of 60000, which the next normalisation brings back
        for layer, before, after in zip(norms[-3:], (1, 300, 6e4), (300, 6e4, 1), strict=True):
            layer.running_mean.mul_(before)
            layer.running_var.mul_(before**2)
            layer.weight.mul_(after)
            layer.bias.mul_(after)
    content = onnx_from_network(network, HALF, cache=cache)
    x = image()
    assert np.isfinite(runs(content, x)).all()
    assert not np.isfinite(runs(rounded_logits(content), x)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not np.isfinite(in_torch_half(network, x)).all()


def test_weights_beyond_half_are_refused(lively, cache):
    network = lively(small())
    with torch.no_grad():
        network.nodes["6"].layers[0].weight[0, 0] = 7e4
    with pytest.raises(VerificationError, match=r"nodes\.6\.layers\.0\.weight reach 7e\+04.*65504.*fp32") as caught:
        onnx_from_network(network, HALF, cache=cache)
    assert caught.value.exit_code == 5


def test_only_a_half_graph_can_be_rounded(lively, cache):
    with pytest.raises(InputError, match="no half values"):
        rounded_logits(onnx_from_network(lively(small()), cpu_target(*SIZE), cache=cache))

"""The rules of int8, read off the graph by a walk of the test's own, and the ranges by hand."""

from collections import defaultdict

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import numpy_helper

from segnas.arch import Architecture, Node
from segnas.data import network_input
from segnas.errors import InputError
from segnas.export.check import checked_onnx
from segnas.export.graph import onnx_from_network
from segnas.export.quantise import plan_of, quantised, weight_scales
from segnas.export.ranges import feature_ranges, magnitude
from segnas.kinds import kind
from segnas.network import Network, initialised
from segnas.report import Sizes
from segnas.runtime.onnxruntime_session import cpu_target, optimised_nodes

SIZE = (64, 96)


def graph_of(network: Network, cache, size=SIZE) -> onnx.ModelProto:
    return onnx.load_from_string(onnx_from_network(network, cpu_target(*size), cache=cache))


def noise(size=SIZE, channels: int = 3) -> list[np.ndarray]:
    return [np.random.default_rng(seed).standard_normal((1, channels, *size), dtype=np.float32) for seed in (0, 1)]


def int8_of(model: onnx.ModelProto, *, signed: bool, images=None) -> onnx.ModelProto:
    plan = plan_of(model, signed=signed)
    return quantised(model, plan, feature_ranges(model, plan.features, images or noise()))


class Walk:
    """A graph by who gives and who reads what, written down anew for the tests."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.giver = {value: node for node in self.nodes for value in node.output}
        self.readers = defaultdict(list)
        for node in self.nodes:
            for value in node.input:
                self.readers[value].append(node)

    def of(self, *types: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in types]

    def is_dequantised(self, value: str) -> bool:
        return value in self.giver and self.giver[value].op_type == "DequantizeLinear"


@pytest.mark.parametrize("signed", [True, False])
def test_the_rules_of_int8(signed, learned, cache):
    single = graph_of(learned, cache)
    model = int8_of(single, signed=signed)
    checked_onnx(model.SerializeToString(), folder=None, tensorrt=False)
    walk, before = Walk(model), Walk(single)
    for node in walk.of("QuantizeLinear"):
        scale, zero = (walk.constants[name] for name in node.input[1:])
        assert scale.shape == zero.shape == ()  # one scale a tensor
        assert scale.dtype == np.float32
        assert scale > 0
        assert (zero.dtype, int(zero)) in ([(np.int8, 0)] if signed else [(np.uint8, 0), (np.uint8, 128)])
        (back,) = walk.readers[node.output[0]]
        assert (back.op_type, list(back.input[1:])) == ("DequantizeLinear", list(node.input[1:]))
    inside = [node for node in walk.of("Conv") if walk.is_dequantised(node.input[1])]
    for node in inside:
        assert walk.is_dequantised(node.input[0])
        dequantise = walk.giver[node.input[1]]
        weight, scale, zero = (walk.constants[name] for name in dequantise.input)
        assert [attribute.i for attribute in dequantise.attribute if attribute.name == "axis"] == [0]
        assert (weight.dtype, zero.dtype, zero.any()) == (np.int8, np.int8, False)
        assert scale.shape == zero.shape == (weight.shape[0],)
        assert np.abs(weight.astype(int)).reshape(len(scale), -1).max(axis=1).tolist() == [127] * len(scale)
        original = next(other for other in before.nodes if other.name == node.name)
        gap = weight * scale.reshape(-1, 1, 1, 1) - before.constants[original.input[1]]
        assert (np.abs(gap) <= 0.5001 * scale.reshape(-1, 1, 1, 1)).all()
        assert node.input[2] == original.input[2]  # the bias, as it was
        assert walk.constants[node.input[2]].dtype == np.float32
    outside = {node.name for node in walk.of("Conv")} - {node.name for node in inside}
    assert outside == {"nodes.1/0.Conv", "nodes.3/5.Conv", "nodes.3/7.Conv", "nodes.9/0.Conv"}  # the first, the gate's two, the classifier
    for name in outside:
        node = next(node for node in walk.of("Conv") if node.name == name)
        assert node.input[1] in before.constants
        assert np.array_equal(walk.constants[node.input[1]], before.constants[node.input[1]])
    assert not [n for n in walk.of("Resize") if walk.giver[n.output[0]].op_type != "Resize"]
    assert [node.name for node in walk.of("Resize")] == [node.name for node in before.of("Resize")]
    assert not walk.is_dequantised(next(n for n in walk.of("Resize") if n.output[0] == "logits").input[0])


def test_a_rectified_feature_begins_at_zero_and_no_other(learned, cache):
    walk = Walk(int8_of(graph_of(learned, cache), signed=False))
    for node in walk.of("QuantizeLinear"):
        giver, seen = walk.giver[node.input[0]], []
        while giver.op_type in ("MaxPool", "Resize", "DequantizeLinear", "QuantizeLinear"):
            giver = walk.giver[giver.input[0]]
        seen.append(giver.op_type)
        zero = int(walk.constants[node.input[2]])
        if giver.op_type in ("Relu", "Clip"):
            assert zero == 0
        elif giver.op_type in ("Conv", "Add", "HardSwish", "Mul"):
            assert zero in ((128,) if giver.op_type != "Mul" else (0, 128))


def test_a_depthwise_convolution_right_behind_the_first_one_stays(cache, lively):
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", unit="separable", width=8), (0,), 24, 8),
        Node(kind("classifier"), (1,), 5),
        Node(kind("resize"), (2,), 5, 1, 8),
    )
    plan = plan_of(graph_of(lively(Architecture(nodes)), cache), signed=False)
    assert plan.convolutions == {"nodes.1/4.Conv", "nodes.1/6.Conv", "nodes.1/8.Conv"}


def test_onnxruntime_executes_every_planned_convolution_in_int8(every_op, lively, cache):
    """Every operation is in it; the signed form is left in float32 wherever a ReLU follows."""
    target = cpu_target(96, 160)
    single = onnx.load_from_string(onnx_from_network(lively(every_op), target, cache=cache))
    images = noise((96, 160))
    plan = plan_of(single, signed=False)
    unsigned = optimised_nodes(int8_of(single, signed=False, images=images).SerializeToString(), target)
    assert unsigned["QLinearConv"] == len(plan.convolutions) >= 25
    assert not {"FusedConv"} & set(unsigned)
    assert unsigned["QLinearAdd"] + unsigned["QLinearConcat"] + unsigned["NhwcMaxPool"] + unsigned["QLinearAveragePool"] >= 10
    signed = optimised_nodes(int8_of(single, signed=True, images=images).SerializeToString(), target)
    assert signed["QLinearConv"] < len(plan.convolutions) / 2


@pytest.mark.parametrize("signed", [True, False])
def test_its_answers_are_near_those_of_float32(signed, learned, streets, cache, runs):
    dataset = streets("train")
    images = [network_input(dataset.read(index)[0], *SIZE) for index in range(len(dataset))]
    single = graph_of(learned, cache)
    labels = runs(int8_of(single, signed=signed, images=images).SerializeToString(), images[0])
    assert (labels == runs(single.SerializeToString(), images[0])).mean() > (0.95 if signed else 0.97)


def test_what_was_quantised_is_computed_from_the_steps(cache, lively, runs):
    """One convolution between two that stay: its answer by integers, in numpy, to the rounding of one step."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("conv", kernel=1), (0,), 4),
        Node(kind("conv", kernel=1), (1,), 6),
        Node(kind("classifier"), (2,), 5),
    )
    network = lively(Architecture(nodes))
    target = cpu_target(*SIZE, output_contract="logits")
    single = onnx.load_from_string(onnx_from_network(network, target, cache=cache))
    plan, x = plan_of(single, signed=False), noise()[0]
    ranges = feature_ranges(single, plan.features, [x])
    walk = Walk(single)
    first, second, last = (walk.constants[f"nodes.{n}.layers.{rest}weight"][:, :, 0, 0] for n, rest in ((1, "0.0."), (2, "0.0."), (3, "0.")))
    biases = [walk.constants[f"nodes.{n}.layers.{rest}bias"][:, None] for n, rest in ((1, "0.0."), (2, "0.0."), (3, "0."))]
    feature = np.maximum(first @ x[0].reshape(3, -1) + biases[0], 0)
    one, two = (np.float32(ranges[f"nodes.{n}"] / 255) for n in (1, 2))
    steps, weight = np.clip(np.rint(feature / one), 0, 255), np.rint(second / weight_scales(second[:, :, None, None])[:, None])
    sums = (weight @ steps) * weight_scales(second[:, :, None, None])[:, None] * one + biases[1]
    after = np.clip(np.rint(sums / two), 0, 255) * two
    expected = last @ after + biases[2]
    answer = runs(quantised(single, plan, ranges).SerializeToString(), x)[0].reshape(5, -1)
    assert np.abs(answer - expected).max() <= 1.01 * two * np.abs(last).sum(axis=1).max()
    assert np.abs(answer - expected).mean() <= 0.02 * two


def test_a_network_with_nothing_to_quantise_is_refused(cache):
    nodes = (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8), Node(kind("classifier"), (1,), 5))
    with pytest.raises(InputError, match="nothing of this network can be quantised"):
        plan_of(graph_of(initialised(Architecture(nodes), 0), cache), signed=False)


def test_the_range_is_the_largest_of_the_images_percentiles(learned, cache):
    model = graph_of(learned, cache)
    images, names = noise(), plan_of(model, signed=False).features
    found, each = feature_ranges(model, names, images), [feature_ranges(model, names, [image]) for image in images]
    assert found == {name: max(one[name] for one in each) for name in names}
    for value in np.linspace(-1, 1, 30001), np.random.default_rng(0).standard_normal(20000):
        kept = np.sort(np.abs(value))
        assert magnitude(value) == kept[int(np.ceil(0.9999 * (len(kept) - 1)))]
    assert magnitude(np.array([-3.0, 2.0])) == 3.0  # few values: the largest


@settings(deadline=None)
@given(arrays.arrays(np.float32, (3, 2, 1, 1), elements=st.floats(-1e4, 1e4, width=32)))
def test_weights_keep_within_half_a_step(weight):
    scale = weight_scales(weight).reshape(-1, 1, 1, 1)
    steps = np.rint(weight / scale)
    assert np.abs(steps).max() <= 127
    assert (np.abs(steps * scale - weight) <= 0.501 * scale).all()


def test_a_dynamic_graph_is_quantised_alike(learned, cache, runs):
    target = cpu_target(*SIZE, output_contract="logits")
    sizes = Sizes((32, 48), SIZE, (96, 128))
    dynamic = onnx.load_from_string(onnx_from_network(learned, target, sizes=sizes, metadata={"sizes": "32x48:64x96:96x128"}, cache=cache))
    static = onnx.load_from_string(onnx_from_network(learned, target, cache=cache))
    plan = plan_of(static, signed=False)
    assert plan_of(dynamic, signed=False) == plan
    ranges = feature_ranges(static, plan.features, noise())
    both = [runs(quantised(model, plan, ranges).SerializeToString(), noise()[0]) for model in (dynamic, static)]
    assert np.abs(both[0] - both[1]).max() < 1e-4

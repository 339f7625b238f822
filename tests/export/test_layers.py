"""Layers of an ONNX graph: their cost against a hand count and against the cost of the architecture, their types, and what is made of them."""

import importlib.util
from pathlib import Path
from random import Random

import onnx
import pytest
from onnx import TensorProto, helper

from segnas.cost import network_cost
from segnas.export.graph import onnx_from_network
from segnas.export.layers import layer_table, onnx_layers, proof_of, shares_text
from segnas.network import initialised
from segnas.report import PrecisionProof, Sizes, TypeShare
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.spaces import space

_spec = importlib.util.spec_from_file_location("engines", Path(__file__).with_name("engines.py"))
assert _spec is not None
assert _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_costs_are_those_of_a_hand_count_in_every_precision(precision: str) -> None:
    proof = proof_of(onnx_layers(engines.small_model(precision)), "hand")
    assert sum(share.macs for share in proof.shares) == engines.MACS
    assert sum(share.parameters for share in proof.shares) == engines.PARAMETERS
    assert proof.share(precision) == 1.0
    assert shares_text(proof) == f"100.0 % {precision}"


def test_multiply_accumulates_are_those_of_the_architecture() -> None:
    """The graph of an exported network against `network_cost`, which knows nothing of ONNX."""
    tiny = space("cas-tiny", 19)
    architecture = tiny.decode(tiny.random(Random(0))).architecture
    model = onnx.load_from_string(onnx_from_network(initialised(architecture, 0).eval(), cpu_target(64, 128)))
    assert sum(layer.macs for layer in onnx_layers(model)) == network_cost(architecture, 64, 128).macs


def test_a_dynamic_graph_is_counted_at_its_best_size() -> None:
    sizes = Sizes((16, 32), (32, 64), (64, 128))
    dynamic = onnx_layers(engines.small_model(dynamic=sizes), sizes)
    assert [(layer.name, layer.macs, layer.output) for layer in dynamic] == [
        (layer.name, layer.macs, layer.output) for layer in onnx_layers(engines.small_model())
    ]


def test_products_and_transposed_convolutions() -> None:
    """MatMul (4x6)(6x5), Gemm with a transposed first factor, and a transposed convolution: each input value meets each weight of its channel."""

    def tensor(name: str, *sides: int) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, sides, [0.5] * int(onnx.numpy_helper.np.prod(sides)))

    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["ab"], "product"),
        helper.make_node("Gemm", ["ab", "c"], ["abc"], "gemm", transA=1),
        helper.make_node("ConvTranspose", ["x", "w"], ["y"], "transposed", strides=[2, 2]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides) for name, sides in (("a", [4, 6]), ("x", [1, 2, 3, 5]))]
    outputs = [helper.make_tensor_value_info("abc", TensorProto.FLOAT, [5, 7]), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [tensor("b", 6, 5), tensor("c", 4, 7), tensor("w", 2, 8, 2, 2)])
    found = {
        layer.name: (layer.macs, layer.parameters) for layer in onnx_layers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    }
    assert found == {"product": (4 * 5 * 6, 30), "gemm": (5 * 7 * 4, 28), "transposed": (3 * 5 * 2 * 8 * 4, 64)}


def test_shares_come_with_most_work_first() -> None:
    half, whole = engines.small_model("fp16"), engines.small_model("fp32")
    layers = [*onnx_layers(half), *onnx_layers(whole)[:1]]
    proof = proof_of(layers, "both")
    assert [share.dtype for share in proof.shares] == ["fp16", "fp32"]
    assert proof.share("fp16") == pytest.approx(engines.MACS / (engines.MACS + 8 * 27 * 16 * 32))
    assert shares_text(PrecisionProof("nothing", (TypeShare("fp32", 1, 0, 0),))) == "nothing is computed"


def test_the_table_has_a_line_a_layer() -> None:
    lines = layer_table(onnx_layers(engines.small_model()))
    assert len(lines) == 1 + 7  # without the Cast behind the ArgMax
    assert lines[1].split() == ["fp32", "1x8x16x32", "224", "0.111", "Conv", "nodes.1/0.Conv"]

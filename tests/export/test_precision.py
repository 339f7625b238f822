"""Proofs of precision: totals against `segnas.cost`, and what is told of each graph."""

import dataclasses

import numpy as np
import onnx
import pytest

from segnas.arch import Architecture, Node
from segnas.cost import convolutions, network_cost
from segnas.errors import InputError, VerificationError
from segnas.export.graph import onnx_from_network
from segnas.export.precision import convolution_efforts, executed_proof, file_proof, require_precision
from segnas.export.quantise import plan_of, quantised
from segnas.export.ranges import feature_ranges
from segnas.kinds import kind
from segnas.report import Engine, PrecisionProof, Sizes, TypeShare
from segnas.runtime.onnxruntime_session import cpu_target, optimised_graph

SIZE = (96, 160)
TARGET = cpu_target(*SIZE)


@pytest.fixture(scope="module")
def network(lively, every_op):
    """Every operation."""
    return lively(every_op)


def proofs(content: bytes, single: bytes, target):
    file, efforts = onnx.load_from_string(content), convolution_efforts(onnx.load_from_string(single))
    executed = onnx.load_from_string(optimised_graph(content, target))
    return file_proof(file, efforts, "the file"), executed_proof(executed, file, efforts, "executed")


def total(proof: PrecisionProof) -> tuple[int, int]:
    return sum(share.parameters for share in proof.shares), sum(share.macs for share in proof.shares)


def test_the_totals_are_those_of_the_cost_module(network, every_op, cache):
    single = onnx_from_network(network, TARGET, cache=cache)
    file, executed = proofs(single, single, TARGET)
    cost = network_cost(every_op, *SIZE)
    held = sum(c.weights + c.output.channels for o in every_op.operations(*SIZE) for c in convolutions(o))  # folded: weights and one bias a channel
    for proof in (file, executed):
        assert total(proof) == (held, cost.macs)
        assert [share.dtype for share in proof.shares] == ["fp32"]
        assert proof.share("fp32") == 1.0
    assert executed.shares[0].layers < file.shares[0].layers  # activations are melted into convolutions


def test_a_half_file_is_half_and_onnxruntime_does_not_execute_it_so(network, cache):
    single = onnx_from_network(network, TARGET, cache=cache)
    target = dataclasses.replace(TARGET, precision="fp16")
    file, executed = proofs(onnx_from_network(network, target, cache=cache), single, target)
    assert [share.dtype for share in file.shares] == ["fp16"]
    assert file.share("fp16") == 1.0
    assert executed.share("fp32") == 1.0
    assert total(file) == total(executed)
    assert "unknown" not in {share.dtype for share in executed.shares}


def test_int8_is_told_from_file_and_execution(network, cache):
    single = onnx_from_network(network, TARGET, cache=cache)
    model = onnx.load_from_string(single)
    image = [np.random.default_rng(0).standard_normal((1, 3, *SIZE), dtype=np.float32)]
    found = {}
    for signed in (False, True):
        plan = plan_of(model, signed=signed)
        content = quantised(model, plan, feature_ranges(model, plan.features, image)).SerializeToString()
        found[signed] = proofs(content, single, TARGET)
        inside = sum(effort.macs for name, effort in convolution_efforts(model).items() if name in plan.convolutions)
        for proof in found[signed]:
            assert total(proof) == total(found[False][0])
        assert found[signed][0].share("int8") == pytest.approx(inside / total(found[False][0])[1])
    assert found[False][1].share("int8") == found[False][0].share("int8") > 0.7
    assert found[True][1].share("int8") < 0.5 * found[True][0].share("int8")  # the signed file says int8, and ONNX Runtime computes most in float32


def test_one_convolution_by_hand(lively, cache):
    nodes = (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8, 2), Node(kind("classifier"), (1,), 5))
    model = onnx.load_from_string(onnx_from_network(lively(Architecture(nodes)), cpu_target(9, 13, output_contract="logits"), cache=cache))
    efforts = convolution_efforts(model)
    assert {name: (e.parameters, e.macs) for name, e in efforts.items()} == {
        "nodes.1/0.Conv": (8 * 3 * 9 + 8, 8 * 3 * 9 * 5 * 7),
        "nodes.2/0.Conv": (5 * 8 + 5, 5 * 8 * 5 * 7),
    }


def test_a_dynamic_graph_is_counted_on_a_static_one(lively, cache):
    nodes = (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8, 2), Node(kind("classifier"), (1,), 5), Node(kind("resize"), (2,), 5, 1, 2))
    network, target = lively(Architecture(nodes)), cpu_target(8, 16)
    dynamic = onnx_from_network(network, target, sizes=Sizes((4, 4), (8, 16), (16, 32)), cache=cache)
    with pytest.raises(InputError, match="a static graph is needed"):
        convolution_efforts(onnx.load_from_string(dynamic))
    file, executed = proofs(dynamic, onnx_from_network(network, target, cache=cache), target)
    assert total(file) == total(executed) == (8 * 28 + 45, (8 * 27 + 40) * 32)


def test_a_convolution_that_is_not_found_again_is_unknown(lively, cache):
    nodes = (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8, 2), Node(kind("classifier"), (1,), 5))
    content = onnx_from_network(lively(Architecture(nodes)), cpu_target(8, 16, output_contract="logits"), cache=cache)
    file = onnx.load_from_string(content)
    efforts, renamed = convolution_efforts(file), onnx.load_from_string(content)
    next(node for node in renamed.graph.node if node.name == "nodes.2/0.Conv").name = "something else"
    proof = executed_proof(renamed, file, efforts, "executed")
    assert {share.dtype: share.macs for share in proof.shares} == {"fp32": efforts["nodes.1/0.Conv"].macs, "unknown": efforts["nodes.2/0.Conv"].macs}


@pytest.mark.parametrize(("half", "passes"), [(51, True), (50, True), (49, False), (0, False)])
def test_half_of_a_half_engine_must_be_half(half, passes):
    shares = (TypeShare("fp32", 1, 1, 100 - half), TypeShare("fp16", 1, 1, half))
    target = dataclasses.replace(TARGET, precision="fp16")
    engine = Engine("a.onnx", "onnx", "", 0, target, "", "", (), None, (), precision=(PrecisionProof("the file", shares),))
    if passes:
        return require_precision(engine)
    with pytest.raises(VerificationError, match=rf"fp16 was asked for, and the file has {half}\.0 %.*at least 50 %") as caught:
        require_precision(engine)
    assert caught.value.exit_code == 5

"""The graph as TensorRT reads it: the same labels from another tail, and the logits that labels were made of."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

from segnas.arch import Architecture, Node
from segnas.errors import InputError
from segnas.export.graph import onnx_from_network
from segnas.export.tensorrt_graph import logits_graph, readable_graph
from segnas.kinds import kind
from segnas.network import initialised
from segnas.runtime.onnxruntime_session import cpu_target

_spec = importlib.util.spec_from_file_location("engines", Path(__file__).with_name("engines.py"))
assert _spec is not None
assert _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)


@pytest.fixture(scope="module")
def chained() -> ModelProto:
    """An exported network whose labels come out of comparisons: at this size ONNX Runtime's CPU is faster so."""
    nodes = (Node(kind("image"), (), 3), Node(kind("classifier"), (0,), 19))
    content = onnx_from_network(initialised(Architecture(nodes), 0).eval(), cpu_target(64, 64))
    return onnx.load_from_string(content)


def labels(model: ModelProto, image: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, {"input": image})[0]


def test_the_chain_of_comparisons_becomes_an_argmax_with_the_same_labels(chained: ModelProto) -> None:
    assert {node.op_type for node in chained.graph.node} >= {"Greater", "Where"}
    read, changed = readable_graph(chained)
    assert changed == "labels by ArgMax"
    assert [node.op_type for node in read.graph.node] == ["Conv", "ArgMax", "Cast"]
    onnx.checker.check_model(read, full_check=True)
    image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    image[:, :, :8] = 0.0  # ties
    assert np.array_equal(labels(chained, image), labels(read, image))


def test_a_plain_argmax_is_left_alone() -> None:
    model = engines.small_model()
    assert readable_graph(model) == (model, "")


def test_logits_are_those_of_the_export_without_labels(chained: ModelProto) -> None:
    nodes = (Node(kind("image"), (), 3), Node(kind("classifier"), (0,), 19))
    expected = onnx_from_network(initialised(Architecture(nodes), 0).eval(), cpu_target(64, 64, output_contract="logits"))
    assert logits_graph(chained).SerializeToString(deterministic=True) == expected
    assert logits_graph(readable_graph(chained)[0]).SerializeToString(deterministic=True) == expected
    same = onnx.load_from_string(expected)
    assert logits_graph(same) == same


def test_a_graph_that_does_not_name_its_logits_is_refused() -> None:
    model = engines.small_model()
    for node in model.graph.node:
        node.name = node.name.replace("argmax/", "tail/")
    with pytest.raises(InputError, match="does not name its logits"):
        logits_graph(model)
    strange = engines.small_model()
    strange.graph.node[-1].op_type = "Where"
    strange.graph.node[-1].input.extend(["input", "logits"])
    with pytest.raises(InputError, match="read input, logits; the logits alone are expected"):
        readable_graph(strange)

"""Sessions of ONNX Runtime: what they answer, and what they refuse."""

import dataclasses
import hashlib
import importlib
import os
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segnas.data import engine_input
from segnas.errors import IncompatibleError, InputError, RequirementError, UsageError
from segnas.latency import Timed
from segnas.report import Port
from segnas.runtime.onnxruntime_session import cpu_target, optimised_nodes
from segnas.runtime.processor import available_cores, device_name
from segnas.runtime.session import NOT_OPENED, OPENERS, Session, Specification, open_session
from segnas.target import CPU_BACKENDS, GPU_BACKENDS, RUNTIMES

TARGET = cpu_target(6, 10, output_contract="logits")


def graph(height: int | str = 6, width: int = 10, labels: bool = False, dtype: int = TensorProto.FLOAT) -> bytes:
    """Twice the image; as labels, its largest channel."""
    nodes = [helper.make_node("Add", ["input", "input"], ["logits"])]
    outputs = [helper.make_tensor_value_info("logits", dtype, [1, 3, height, width])]
    if labels:
        nodes.append(helper.make_node("ArgMax", ["logits"], ["i"], axis=1, keepdims=0))
        nodes.append(helper.make_node("Cast", ["i"], ["labels"], to=TensorProto.UINT8))
        outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, height, width])]
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("input", dtype, [1, 3, height, width])], outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def image(height: int = 6, width: int = 10) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, 3, height, width), dtype=np.float32)


def test_a_session_answers_and_says_what_it_reads():
    session: Session = open_session(graph(), TARGET)
    timed: Timed = session
    assert session.specification == Specification(Port("input", "float32", (1, 3, 6, 10)), Port("logits", "float32", (1, 3, 6, 10)))
    assert str(session.specification.input) == "input float32 1x3x6x10"
    x = image()
    assert np.array_equal(session.run(x), 2 * x)
    assert not session.specification.gives_labels
    times = timed.sample(5)
    assert len(times) == 5
    assert all(0 < ms < 1000 for ms in times)
    timed.close()
    for call in (lambda: session.run(x), lambda: session.sample(1)):
        with pytest.raises(InputError, match="closed"):
            call()


def test_answers_are_not_overwritten_by_later_calls():
    session = open_session(graph(), TARGET)
    first, x = session.run(image()), image()
    session.run(np.zeros_like(x))
    session.sample(2)
    assert np.array_equal(first, 2 * x)


def test_labels_and_a_path(tmp_path):
    target = cpu_target(6, 10)
    path = tmp_path / "model.onnx"
    path.write_bytes(graph(labels=True))
    session = open_session(path, target)
    x = image()
    assert session.specification.gives_labels
    assert np.array_equal(session.run(x), x.argmax(axis=1))
    assert len(session.sample(3)) == 3
    with pytest.raises(InputError, match="cannot be read"):
        open_session(tmp_path / "nothing.onnx", target)


def bytes_graph() -> bytes:
    """Bytes (1, 6, 10, 3) in, the largest channel of each pixel out."""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["x"], ["i"], axis=3, keepdims=0),
        helper.make_node("Cast", ["i"], ["labels"], to=TensorProto.UINT8),
    ]
    reads = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 6, 10, 3])
    gives = helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, 6, 10])
    made = helper.make_graph(nodes, "g", [reads], [gives])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def test_an_engine_that_reads_bytes_is_given_bytes():
    target = cpu_target(6, 10, input_contract="image", precision="int8")
    session = open_session(bytes_graph(), target)
    assert session.specification.input == Port("image", "uint8", (1, 6, 10, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    x = engine_input(pixels, "image", 6, 10)
    assert np.array_equal(session.run(x), pixels[None].argmax(axis=3))
    assert len(session.sample(3)) == 3
    with pytest.raises(InputError, match="the engine reads image uint8 1x6x10x3; float32 1x3x6x10 was given"):
        session.run(image())
    with pytest.raises(InputError, match="the target's input is 'normalised'"):  # bytes where a normalised image is agreed
        open_session(bytes_graph(), cpu_target(6, 10))
    with pytest.raises(InputError, match=r"the target's input is 'normalised'|the target's input is 'image'"):
        open_session(graph(labels=True), target)


def test_a_wrong_image_is_refused():
    session = open_session(graph(), TARGET)
    wrongs: list[Any] = [image(7, 10), image()[0], image().astype(np.float64), (image() * 255).astype(np.uint8)]
    for wrong in wrongs:
        with pytest.raises(InputError, match=r"the engine reads input float32 1x3x6x10; .* was given"):
            session.run(wrong)


@pytest.mark.parametrize("content", [b"", b"no engine at all", graph()[:-20], graph()[: len(graph()) // 2]])
def test_a_damaged_engine_is_refused_quietly(content, capfd):
    with pytest.raises(InputError, match="segnas export"):
        open_session(content, TARGET)
    assert capfd.readouterr().err == ""


def test_an_engine_of_another_target_is_refused():
    with pytest.raises(InputError, match="the target is batch 1, 8x10"):
        open_session(graph(), cpu_target(8, 10, output_contract="logits"))
    with pytest.raises(InputError, match="the target's output is 'labels'"):
        open_session(graph(), cpu_target(6, 10))
    with pytest.raises(InputError, match="a static one is needed"):
        open_session(graph("H"), TARGET)
    with pytest.raises(InputError, match="has type"):
        open_session(graph(dtype=TensorProto.DOUBLE), TARGET)


def test_a_provider_is_had_or_refused():
    for provider in ("CUDAExecutionProvider", "FooProvider"):
        with pytest.raises(RequirementError, match=f"{provider}.*CPUExecutionProvider") as caught:
            open_session(graph(), dataclasses.replace(TARGET, options=(("provider", provider),)))
        assert caught.value.exit_code == 3
        assert not isinstance(caught.value, UsageError)


def test_options_are_known_or_refused():
    for options in ((("spining", "on"),), (("spinning", "maybe"),)):
        with pytest.raises(InputError, match=r"onnxruntime takes|allowed"):
            open_session(graph(), dataclasses.replace(TARGET, options=options))
    assert len(open_session(graph(), dataclasses.replace(TARGET, options=())).sample(1)) == 1


@pytest.mark.parametrize(("runtime", "reason"), [("torch", "has no engine file")])
def test_a_runtime_whose_engines_are_not_opened_says_why_and_what_is(runtime, reason):
    with pytest.raises(RequirementError, match=rf"runtime '{runtime}' was given: .*{reason}.* opened for aotinductor, aotinductor-cuda, onnxruntime"):
        open_session(graph(), dataclasses.replace(TARGET, runtime=runtime))


def test_what_opens_each_backend_is_there():
    """Every name in the dispatch is a function in a module; what cannot be opened is not among them, and every backend is accounted for."""
    for place in OPENERS.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    assert {*CPU_BACKENDS, *GPU_BACKENDS} - {*OPENERS} == {"torch"}
    assert not {*OPENERS} & {*NOT_OPENED}
    assert {*RUNTIMES} <= {*OPENERS, *NOT_OPENED}


def test_an_engine_is_the_one_that_was_vouched_for():
    content = graph()
    assert open_session(content, TARGET, sha256=hashlib.sha256(content).hexdigest()).target == TARGET
    with pytest.raises(IncompatibleError, match=r"the engine has sha256 .*, not 000000000000"):
        open_session(content, TARGET, sha256="0" * 64)


def test_the_target_is_this_machine():
    target = cpu_target(6, 10, available_cores(), spinning=True)
    assert target.device == device_name()
    assert target.device.endswith(("core", "cores"))
    assert dict(target.options) == {"optimisation": "all", "provider": "CPUExecutionProvider", "spinning": "on"}
    assert open_session(graph(labels=True), target).target == target
    for threads in (0, (os.cpu_count() or 1) + 1):
        with pytest.raises(InputError, match="threads were asked for"):
            cpu_target(6, 10, threads)


def test_nodes_are_counted_after_fusion(capfd):
    ones = onnx.numpy_helper.from_array(np.ones((3, 3, 3, 3), np.float32), "w")
    nodes = [helper.make_node("Conv", ["input", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["logits"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 6, 10]) for name in ("input", "logits")]
    made = helper.make_graph(nodes, "g", ports[:1], ports[1:], [ones])
    content = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    fused = optimised_nodes(content, TARGET)
    assert fused["Conv"] == 1
    assert fused["Relu"] == 0
    plain = dataclasses.replace(TARGET, options=(("optimisation", "none"),))
    assert optimised_nodes(content, plain) == Counter({"Conv": 1, "Relu": 1})
    assert capfd.readouterr().err == ""

"""Where nodes ran, by profiles in ONNX Runtime's documented format; one of them of the real runtime here."""

import json

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from segnas.errors import RequirementError, VerificationError
from segnas.runtime.placement import Placed, placed_nodes, require_placement

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def event(name: str, op_type: str, provider: str, **more: object) -> dict[str, object]:
    """One kernel of a profile."""
    args = {"op_name": op_type, "provider": provider, "node_index": "3", "output_size": "32768"}
    return {"cat": "Node", "pid": 1, "tid": 1, "dur": 12, "ts": 9, "ph": "X", "name": f"{name}_kernel_time", "args": args} | more


SESSION = {"cat": "Session", "pid": 1, "tid": 1, "dur": 2203, "ts": 9, "ph": "X", "name": "model_run", "args": {}}
FENCE = {"cat": "Node", "pid": 1, "tid": 1, "dur": 0, "ts": 9, "ph": "X", "name": "nodes.1_fence_before", "args": {"op_name": "Conv"}}
GPU_KERNEL = {"cat": "Kernel", "pid": 1, "tid": 1, "dur": 3, "ts": 9, "ph": "X", "name": "implicit_convolve_sgemm", "args": {"stream": "7"}}


def test_a_whole_engine_on_the_device():
    trace = [SESSION, FENCE, GPU_KERNEL, event("nodes.1", "Conv", CUDA), event("argmax/0.ArgMax", "ArgMax", CUDA), event("nodes.1", "Conv", CUDA)]
    found = require_placement(trace, CUDA)
    assert found.nodes == (Placed("nodes.1", "Conv", CUDA), Placed("argmax/0.ArgMax", "ArgMax", CUDA))
    assert found.on_cpu == found.copies == ()
    assert found.conditions == (("copies_between", "none"), ("nodes_on_cpu", "none"), ("nodes_on_provider", "2"))


@pytest.mark.parametrize("provider", [CPU, "AzureExecutionProvider"])
def test_a_node_that_fell_to_the_cpu_is_named(provider):
    trace = [
        event("nodes.1", "Conv", CUDA),
        event("Memcpy_token_4", "MemcpyToHost", CUDA),
        event("nodes.2/0.Resize", "Resize", provider),
        event("Memcpy_token_5", "MemcpyFromHost", CUDA),
    ]
    with pytest.raises(VerificationError, match=rf"1 of 4 nodes ran elsewhere: nodes\.2/0\.Resize \(Resize\) on {provider}; 2 copies"):
        require_placement(trace, CUDA)


def test_an_engine_that_ran_wholly_elsewhere_is_refused():
    with pytest.raises(VerificationError, match="2 of 2 nodes ran elsewhere"):
        require_placement([event("nodes.1", "Conv", CPU), event("nodes.2", "Relu", CPU)], CUDA)
    with pytest.raises(VerificationError, match="0 of 1 nodes ran elsewhere: all of them"):
        require_placement([event("nodes.1", "Shape", CPU)], CUDA)


def test_what_computes_shapes_may_run_on_the_cpu_and_is_listed_with_the_copies():
    trace = [event("nodes.1", "Conv", CUDA), event("s", "Shape", CPU), event("Memcpy_token_1", "MemcpyFromHost", CUDA)]
    found = require_placement(trace, CUDA)
    assert found.on_cpu == (Placed("s", "Shape", CPU),)
    assert found.copies == (Placed("Memcpy_token_1", "MemcpyFromHost", CUDA),)
    assert dict(found.conditions)["copies_between"] == "Memcpy_token_1 (MemcpyFromHost)"
    assert dict(found.conditions)["nodes_on_cpu"] == "s (Shape)"


@pytest.mark.parametrize("op_type", ["Gather", "Cast", "Squeeze", "Concat"])
def test_what_may_move_features_may_not(op_type):
    with pytest.raises(VerificationError, match=op_type):
        require_placement([event("nodes.1", "Conv", CUDA), event("x", op_type, CPU)], CUDA)


def test_a_profile_that_does_not_tell_proves_nothing():
    with pytest.raises(RequirementError, match="holds no node"):
        require_placement([SESSION], CUDA)
    for missing in ("provider", "op_name"):
        told = event("nodes.1", "Conv", CUDA)
        del told["args"][missing]  # type: ignore[attr-defined]
        with pytest.raises(RequirementError, match=r"does not say which provider ran 'nodes\.1_kernel_time'"):
            require_placement([told], CUDA)


def test_the_profile_of_the_runtime_here_is_read(tmp_path):
    nodes = [helper.make_node("Add", ["x", "x"], ["y"], "first"), helper.make_node("Relu", ["y"], ["z"], "second")]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "trace")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(content, options, providers=[CPU])
    for _ in range(2):
        session.run(None, {"x": np.zeros((2, 3), np.float32)})
    with open(session.end_profiling(), encoding="utf-8") as stream:
        trace = json.load(stream)
    assert placed_nodes(trace) == (Placed("first", "Add", CPU), Placed("second", "Relu", CPU))
    assert len(require_placement(trace, CPU).nodes) == 2
    with pytest.raises(VerificationError, match=r"first \(Add\) on CPUExecutionProvider"):
        require_placement(trace, CUDA)

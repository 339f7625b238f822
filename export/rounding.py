"""Rounding: what a half graph computes where it is computed in half, found out on a runtime that computes it in float32.

ONNX Runtime's CPU has no half kernels for most operators: it changes the weights to float32, takes out the changes of type between nodes (it calls
them "precision free"), and computes in float32 almost from end to end. Its answers show that the file is right, and neither overflow nor rounding. So
the same graph is written in float32 with every value between two nodes rounded to half and back, which it does not take out: sums inside a node are
float32, as on tensor cores.
"""

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from segnas.errors import InputError
from segnas.export.types import element_types


def rounded_logits(content: bytes) -> bytes:
    """A float32 graph that gives the logits of a half one as if it were computed in half: infinite where half overflows.

    It reads what the half one reads and gives `logits`, float32 (N, classes, H, W), whichever the half one's output is. InputError for a graph that
    holds no half values.
    """
    model = ModelProto.FromString(content)
    graph = model.graph
    halves = {name for name, kind in element_types(graph).items() if kind == TensorProto.FLOAT16}
    if not halves:
        raise InputError("the graph holds no half values: a graph of precision fp16 is needed")
    nodes = [made for node in graph.node if not node.name.startswith("argmax/") for made in _rounded(node, halves)]
    read = {name for node in nodes for name in node.input}
    tensors = [_widened(tensor) for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "classes", "rows", "columns"]))
    return model.SerializeToString(deterministic=True)


def _rounded(node: NodeProto, halves: set[str]) -> list[NodeProto]:
    """The node, and behind it the change to half and back of each half value that it gives."""
    copied = NodeProto()
    copied.CopyFrom(node)
    made = [copied]
    for place, name in enumerate(node.output):
        if name in halves:
            copied.output[place] = f"{name}.wide"
            made.append(helper.make_node("Cast", [f"{name}.wide"], [f"{name}.narrow"], f"{name}/narrow.Cast", to=TensorProto.FLOAT16))
            made.append(helper.make_node("Cast", [f"{name}.narrow"], [name], f"{name}/wide.Cast", to=TensorProto.FLOAT))
    return made


def _widened(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT16:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)

"""What of an exported graph TensorRT reads otherwise than ONNX Runtime: the tail that turns logits into labels."""

import onnx
from onnx import ModelProto, NodeProto

from segnas.errors import InputError
from segnas.export.check import require_tensorrt
from segnas.export.templates import argmax_template

PLACE = "argmax/"
"""How the nodes of that tail begin their names (`segnas.export.graph`)."""


def readable_graph(model: ModelProto) -> tuple[ModelProto, str]:
    """The same network as TensorRT can read it, and what was changed; the model itself and no words where nothing had to be.

    InputError for features that are quantised for ONNX Runtime's CPU alone (`require_tensorrt`).

    For a CPU the labels may come out of a chain of comparisons over uint8 planes (`segnas.export.argmax`); TensorRT computes nothing in uint8
    ("the parsed type is int32 which does not match the ONNX specification type uint8"). Its ArgMax gives the same labels, the lowest on ties.
    """
    tail = _tail(model)
    if not tail or {node.op_type for node in tail} <= {"ArgMax", "Cast"}:
        require_tensorrt(model)
        return model, ""
    changed = _without_tail(model)
    changed.graph.node.extend(_argmax(_logits(tail, model), model.graph.output[0].name))
    require_tensorrt(changed)
    return changed, "labels by ArgMax"


def logits_graph(model: ModelProto) -> ModelProto:
    """The same network with the logits as its output, (N, C, H, W), which labels were made of; InputError where the graph does not say."""
    tail = _tail(model)
    if not tail:
        if len(model.graph.output) == 1 and model.graph.output[0].name == "logits":
            return model
        raise InputError("the graph does not name its logits, so labels cannot be judged by them; export it again with this version of segnas")
    name = _logits(tail, model)
    values = [*onnx.shape_inference.infer_shapes(model).graph.value_info, *model.graph.input]
    changed = _without_tail(model)
    del changed.graph.output[:]
    output = changed.graph.output.add(name=name)
    output.type.CopyFrom(next(value.type for value in values if value.name == name))
    return changed


def _tail(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.name.startswith(PLACE)]


def _without_tail(model: ModelProto) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model)
    nodes = [node for node in model.graph.node if not node.name.startswith(PLACE)]
    constants = [tensor for tensor in model.graph.initializer if not tensor.name.startswith(PLACE.replace("/", "."))]
    del changed.graph.node[:], changed.graph.initializer[:]
    changed.graph.node.extend(nodes)
    changed.graph.initializer.extend(constants)
    return changed


def _logits(tail: list[NodeProto], model: ModelProto) -> str:
    """The one value of the network that the tail reads."""
    made = {name for node in tail for name in node.output} | {tensor.name for tensor in model.graph.initializer}
    reads = {name for node in tail for name in node.input} - made - {""}
    if len(reads) != 1:
        raise InputError(f"the nodes {PLACE}* read {', '.join(sorted(reads)) or 'nothing'}; the logits alone are expected: export the network again")
    return reads.pop()


def _argmax(logits: str, labels: str) -> list[NodeProto]:
    names = {"x0": logits, "y": labels}
    nodes: list[NodeProto] = []
    for node in argmax_template().graph.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.name = f"{PLACE}{node.name}"
        copied.input[:] = [names.get(name, f"argmax.{name}") for name in node.input]
        copied.output[:] = [names.get(name, f"argmax.{name}") for name in node.output]
        nodes.append(copied)
    return nodes

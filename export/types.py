"""Element types of the values of a graph, told from its nodes alone: graphs that a runtime has rewritten hold operators that ONNX cannot infer."""

from onnx import GraphProto, NodeProto, TensorProto

_INTEGERS = {"ArgMax": TensorProto.INT64, "Shape": TensorProto.INT64}
_BOOLEANS = frozenset({"And", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "Not"})


def element_types(graph: GraphProto) -> dict[str, int]:
    """`TensorProto` type of each value; of most operators it is that of the first thing they read."""
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in graph.initializer}
    types |= {value.name: value.type.tensor_type.elem_type for value in graph.input if value.name not in types}
    for node in graph.node:
        kind = _given(node, types)
        types |= dict.fromkeys((name for name in node.output if name), kind)
    return types


def attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute of a node."""
    return next((int(found.i) for found in node.attribute if found.name == name), default)


def _given(node: NodeProto, types: dict[str, int]) -> int:
    reads = [types.get(name, TensorProto.UNDEFINED) for name in node.input]
    if node.op_type == "Cast":
        return attribute(node, "to", TensorProto.UNDEFINED)
    if node.op_type == "QuantizeLinear":
        return reads[2] if len(reads) > 2 else TensorProto.UINT8
    if node.op_type == "DequantizeLinear":
        return reads[1]
    if node.op_type == "Where":
        return reads[1]
    if node.op_type == "Constant":
        return next((found.t.data_type for found in node.attribute if found.name == "value"), TensorProto.FLOAT)
    if node.op_type in ("QLinearConcat", "QLinearConv"):
        return reads[1 if node.op_type == "QLinearConcat" else 7]
    if node.op_type in _BOOLEANS:
        return TensorProto.BOOL
    return _INTEGERS.get(node.op_type, reads[0] if reads else TensorProto.UNDEFINED)

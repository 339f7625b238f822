"""Layers: what a network consists of as a runtime sees it, each with number type, parameters and multiply-accumulates; read from an ONNX graph."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from segnas.report import PrecisionProof, Sizes, TypeShare

TYPES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}
_REAL = ("fp32", "fp16", "bf16", "fp64")
_FEATURES = (*_REAL, "int8", "unknown")
"""Types that features have; what computes with others works out sizes and labels."""

_NO_LAYER = ("Constant", "QuantizeLinear", "DequantizeLinear", "Identity", "Cast")
"""Nodes that hold or convert numbers and compute nothing; a runtime folds or fuses most of them."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: `dtype` is the type that it computes with (`fp32`, `fp16`, `int8`, ...; `unknown` where nothing tells), `output` its shape."""

    name: str
    op: str
    dtype: str
    output: tuple[int, ...]
    parameters: int
    macs: int


def onnx_layers(model: ModelProto, sizes: Sizes | None = None) -> tuple[Layer, ...]:
    """The layers of a graph that compute features, in its order; a dynamic graph's at the best of its sizes.

    A convolution or matrix product whose two factors come out of DequantizeLinear computes with int8: that is how ONNX writes it down, and what
    TensorRT and ONNX Runtime make of it. Any other node computes with the type that it reads.
    """
    graph = _static(model, sizes).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values} | {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes: dict[str, Shape] = {value.name: _shape(value) for value in values} | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    constants = _constants(graph)

    def layer(node: NodeProto) -> Layer:
        factors = node.input[:2] if node.op_type in _MACS else []
        quantised = len(factors) == 2 and all(_made_by(makers, name, "DequantizeLinear") for name in factors)
        weights = {_origin(makers, name) for name in node.input if node.op_type in _MACS} & constants
        output = shapes.get(node.output[0], ())
        count = _MACS[node.op_type](node, [shapes.get(name, ()) for name in node.input], output) if node.op_type in _MACS else 0
        dtype = "int8" if quantised else _dtype(node, kinds)
        return Layer(node.name or node.output[0], node.op_type, dtype, output, sum(math.prod(shapes[name]) for name in weights), count)

    found = (layer(node) for node in graph.node if node.op_type not in _NO_LAYER)
    return tuple(each for each in found if each.dtype in _FEATURES)


def proof_of(layers: Iterable[Layer], source: str) -> PrecisionProof:
    """What of these layers computes with which type, the type with most multiply-accumulates first."""
    kept = list(layers)
    shares = [_share(kept, dtype) for dtype in dict.fromkeys(layer.dtype for layer in kept)]
    return PrecisionProof(source, tuple(sorted(shares, key=lambda share: (-share.macs, -share.layers, share.dtype))))


def shares_text(proof: PrecisionProof) -> str:
    """`98.2 % fp16, 1.8 % fp32`: of the multiply-accumulates."""
    return ", ".join(f"{100 * proof.share(share.dtype):.1f} % {share.dtype}" for share in proof.shares if share.macs) or "nothing is computed"


def layer_table(layers: Iterable[Layer]) -> list[str]:
    """One line a layer: type, output, parameters, multiply-accumulates, operator and name."""
    rows = [f"{'type':<8}{'output':<18}{'parameters':>11}{'MMAC':>11}  layer"]
    for layer in layers:
        output = "x".join(map(str, layer.output)) or "-"
        rows.append(f"{layer.dtype:<8}{output:<18}{layer.parameters:>11}{layer.macs / 1e6:>11.3f}  {layer.op} {layer.name}")
    return rows


def _share(layers: list[Layer], dtype: str) -> TypeShare:
    mine = [layer for layer in layers if layer.dtype == dtype]
    return TypeShare(dtype, len(mine), sum(layer.parameters for layer in mine), sum(layer.macs for layer in mine))


def _static(model: ModelProto, sizes: Sizes | None) -> ModelProto:
    """A copy with every shape inferred, height and width of a dynamic input set to the best size."""
    copied = ModelProto()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]
    known = {tensor.name for tensor in copied.graph.initializer}
    for value in copied.graph.input:
        sides = value.type.tensor_type.shape.dim
        if sizes is not None and value.name not in known:
            for side, length in zip([side for side in sides if not side.HasField("dim_value")], sizes.best, strict=False):
                side.dim_value = length
    if sizes is not None:
        for value in copied.graph.output:
            value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copied, data_prop=True)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(side.dim_value for side in value.type.tensor_type.shape.dim)


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Initialisers that are weights: of a real type or of int8, and more than a single number."""
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8)
    return {tensor.name for tensor in graph.initializer if tensor.data_type in kinds and math.prod(tensor.dims) > 1}


def _made_by(makers: Mapping[str, NodeProto], name: str, op: str) -> bool:
    return name in makers and makers[name].op_type == op


def _origin(makers: Mapping[str, NodeProto], name: str) -> str:
    """Where a weight comes from, back through what only converts it."""
    while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
        name = makers[name].input[0]
    return name


def _dtype(node: NodeProto, kinds: Mapping[str, int]) -> str:
    found = [TYPES.get(kinds.get(name, 0), "unknown") for name in (*node.input, *node.output) if name]
    return next((name for name in found if name in _REAL), found[0] if found else "unknown")


def _convolution(node: NodeProto, reads: list[Shape], output: Shape) -> int:
    """Each output value is a sum over the input channels of its group and the kernel's window."""
    return math.prod(output) * math.prod(reads[1][1:])


def _transposed(node: NodeProto, reads: list[Shape], output: Shape) -> int:
    return math.prod(reads[0]) * math.prod(reads[1][1:])


def _product(node: NodeProto, reads: list[Shape], output: Shape) -> int:
    inner = reads[0][-1] if reads[0] else 0
    if node.op_type == "Gemm" and any(attribute.name == "transA" and attribute.i for attribute in node.attribute):
        inner = reads[0][0]
    return math.prod(output) * inner


_MACS: dict[str, Callable[[NodeProto, list[Shape], Shape], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "Gemm": _product,
}

"""Precision: the share of a network that is computed in half or int8, told from the file, and from the graph that a runtime made of it and executes.

A layer is a node that computes features; a change of type or layout is none. Multiply-accumulates and parameters are those of the convolutions
(biases are parameters, and no multiply-accumulates): what they come to is counted once, on the static float32 graph, whose nodes have the same names.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, shape_inference

from segnas.errors import InputError, VerificationError
from segnas.export.quantise import JOINING
from segnas.export.types import element_types
from segnas.report import Engine, PrecisionProof, TypeShare

LEAST_SHARE = {"fp16": 0.5, "int8": 0.01}
"""An engine that was asked for in that precision and has a smaller share of its multiply-accumulates in it is rejected; int8's is our choice."""

UNKNOWN = "unknown"
_NAMES: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.INT8: "int8", TensorProto.UINT8: "int8"}
_ORDER = ("fp32", "fp16", "int8", UNKNOWN)
_CHANGES = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "MemcpyToHost", "MemcpyFromHost"})
_MOVES = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Shape", "Gather", "Slice", "Split", "Constant"})
_NO_LAYER = _CHANGES | _MOVES
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"})
_MELTED = frozenset({"Relu", "Clip", "HardSwish", "HardSigmoid", "Add", "Max", "QuantizeLinear", "DequantizeLinear", "Cast"})
"""What a runtime may melt into a convolution, which then goes by a later value's name."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What one convolution costs: its parameters, bias included, and its multiply-accumulates for one image."""

    parameters: int
    macs: int


def convolution_efforts(model: ModelProto) -> dict[str, Effort]:
    """Each convolution of a static graph by its node's name; InputError where a shape cannot be told."""
    inferred = shape_inference.infer_shapes(model).graph
    shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in [*inferred.value_info, *inferred.output]}
    sides = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    efforts: dict[str, Effort] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            rows, columns = shapes.get(node.output[0], [0])[-2:] or [0, 0]
            if not rows * columns:
                raise InputError(f"the shape of {node.output[0]!r} cannot be told; a static graph is needed to count multiply-accumulates")
            weights = prod(sides[node.input[1]])
            bias = prod(sides[node.input[2]]) if len(node.input) > 2 else 0
            efforts[node.name] = Effort(weights + bias, weights * rows * columns)
    return efforts


def file_proof(model: ModelProto, efforts: Mapping[str, Effort], source: str) -> PrecisionProof:
    """What the file itself says: int8 is a convolution of dequantised feature and weights, and what joins features, between a DequantizeLinear on
    all that it reads and a QuantizeLinear; any other node has the type of what it reads.
    """
    kinds = element_types(model.graph)
    quantised = _quantised_nodes(model.graph)
    layers = [(node.name, "int8" if node.name in quantised else _kind(node, kinds)) for node in _layers(model.graph)]
    return _proof(source, layers, {name: kind for name, kind in layers if name in efforts}, efforts)


def executed_proof(executed: ModelProto, file: ModelProto, efforts: Mapping[str, Effort], source: str) -> PrecisionProof:
    """What a runtime's optimised graph says, kernel by kernel; a convolution that cannot be found again in it is of type `unknown`."""
    kinds = element_types(executed.graph)
    layers = [(node.name, _kind(node, kinds)) for node in _layers(executed.graph)]
    found = _matched(executed.graph, file.graph)
    types = {found[node.name]: _kind(node, kinds) for node in executed.graph.node if node.name in found}
    return _proof(source, layers, {name: types.get(name, UNKNOWN) for name in efforts}, efforts)


def require_precision(engine: Engine) -> None:
    """VerificationError where the engine's first proof says that it does not compute in the precision that its target has."""
    wanted = engine.target.precision
    least = LEAST_SHARE.get(wanted, 0.0)
    if not engine.precision or not any(share.macs for share in engine.precision[0].shares):
        return
    proof = engine.precision[0]
    if proof.share(wanted) < least:
        shown = ", ".join(f"{100 * proof.share(share.dtype):.1f} % {share.dtype}" for share in proof.shares)
        raise VerificationError(
            f"precision {wanted} was asked for, and {proof.source} has {100 * proof.share(wanted):.1f} % of its multiply-accumulates in it, where at "
            f"least {100 * least:.0f} % are needed ({shown}). The artefact is kept as .rejected; export at --precision fp32"
        )


def _proof(source: str, layers: Iterable[tuple[str, str]], types: Mapping[str, str], efforts: Mapping[str, Effort]) -> PrecisionProof:
    counts = Counter(kind for _, kind in layers)
    held, done = Counter[str](), Counter[str]()
    for name, kind in types.items():
        held[kind] += efforts[name].parameters
        done[kind] += efforts[name].macs
    present = [kind for kind in _ORDER if counts[kind] or held[kind]]
    return PrecisionProof(source, tuple(TypeShare(kind, counts[kind], held[kind], done[kind]) for kind in present))


def _layers(graph: GraphProto) -> list[NodeProto]:
    """The nodes that compute features: neither sizes nor labels are features."""
    kinds = element_types(graph)
    return [
        node
        for node in graph.node
        if node.op_type not in _NO_LAYER and kinds.get(_feature(node), 0) in _NAMES and not node.name.startswith(("argmax/", "sizes/"))
    ]


def _feature(node: NodeProto) -> str:
    """The first feature that a node reads; QLinearConcat begins with its output's scale."""
    return node.input[2] if node.op_type == "QLinearConcat" else next(iter(node.input), "")


def _kind(node: NodeProto, kinds: Mapping[str, int]) -> str:
    read = kinds.get(_feature(node), 0)
    if node.op_type in _CONVOLUTIONS and node.op_type not in ("QLinearConv", "ConvInteger"):
        read = kinds.get(node.input[1], read)  # what a blocked layout was made of is told by the weights
    return _NAMES.get(read, UNKNOWN)


def _quantised_nodes(graph: GraphProto) -> set[str]:
    giver = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)

    def dequantised(name: str) -> bool:
        return name in giver and giver[name].op_type == "DequantizeLinear"

    found = set[str]()
    for node in graph.node:
        if node.op_type == "Conv":
            if dequantised(node.input[0]) and dequantised(node.input[1]):
                found.add(node.name)
        elif node.op_type in JOINING and all(dequantised(name) for name in node.input):
            after = readers[node.output[0]]
            if after and all(reader.op_type == "QuantizeLinear" for reader in after):
                found.add(node.name)
    for node in graph.node:  # an activation behind a quantised convolution, before a QuantizeLinear, is part of it
        after = readers[node.output[0]] if node.output else []
        if node.op_type in ("Relu", "Clip") and after and all(reader.op_type == "QuantizeLinear" for reader in after):
            source = giver.get(node.input[0])
            if source is not None and source.name in found:
                found.add(node.name)
    return found


def _matched(executed: GraphProto, file: GraphProto) -> dict[str, str]:
    """For each convolution of the optimised graph the one of the file that it was: by its own name, or by the last value that it gives."""
    convolutions = [node.name for node in file.node if node.op_type == "Conv"]
    giver = {name: node for node in file.node for name in node.output}
    names = {node.name: _plain(node.name) for node in executed.node if node.op_type in _CONVOLUTIONS}
    found = {name: plain for name, plain in names.items() if plain in convolutions}
    left = set(convolutions) - set(found.values())
    for name, plain in names.items():
        if name not in found:
            source = _behind(plain, giver, left)
            if source is not None:
                found[name] = source
                left.remove(source)
    return found


def _plain(name: str) -> str:
    """A kernel's name without what the runtime puts around it (ONNX Runtime 1.31)."""
    return re.sub(r"(_token_\d+)?(_nchwc)?$", "", name).removeprefix("InsertedPrecisionFreeCast_")


def _behind(value: str, giver: Mapping[str, NodeProto], left: set[str]) -> str | None:
    """The nearest convolution that is left behind a value, through what may be melted into it."""
    waiting = [value]
    while waiting:
        node = giver.get(waiting.pop(0))
        if node is None:
            continue
        if node.name in left:
            return node.name
        if node.op_type in _MELTED:
            waiting += node.input
    return None

"""Quantise: an int8 graph from a float32 one, by a QuantizeLinear and DequantizeLinear pair on each feature that a quantised node reads or gives.

Symmetric throughout: weights int8 with a scale for each output channel (axis 0) and zero point 0, features with one scale each; biases are left as
they are, since TensorRT refuses quantised ones. What stays in float32: the convolutions that read the image, and a depthwise one right behind, which
costs less than quantising what it reads; the classifier; what lies on one pixel (gates, global means); resizes.

There are two forms of features, as no file is both readable for TensorRT and fast on ONNX Runtime's CPU. **Signed**: int8 with zero point 0, all that
TensorRT reads. **Unsigned**: uint8, with zero point 0 where the feature cannot be negative (behind a ReLU) and 128 elsewhere. ONNX Runtime melts a
ReLU into an unsigned convolution alone: of signed ones it leaves each with a ReLU in float32, behind a DequantizeLinear, slower than no quantising at
all (1.31 on x86, by its optimised graph).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from segnas.errors import InputError
from segnas.export.types import attribute

SIGNED_STEPS, UNSIGNED_STEPS, MIDDLE = 127, 255, 128
JOINING = frozenset({"Add", "Concat", "MaxPool", "AveragePool"})
"""Operations that compute in int8 where something that they read is int8 already."""

_RECTIFIERS = frozenset({"Relu", "Clip"})
_ACTIVATIONS = _RECTIFIERS | {"HardSwish", "HardSigmoid"}
_GLOBAL = frozenset({"ReduceMean", "GlobalAveragePool"})
_KEEPS_SIGN = JOINING | _GLOBAL | {"Resize", "Mul", "MatMul"}
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Plan:
    """What is quantised of a graph: its convolutions and joining operations by name, the features that get a pair, and how.

    `leader` gives for each feature the one whose scale it shares (itself, mostly); `rectified` are the features that cannot be negative, told apart
    in the unsigned form only; `given` those that a quantised operation gives, which all their readers read dequantised.
    """

    convolutions: frozenset[str]
    joining: frozenset[str]
    leader: Mapping[str, str]
    rectified: frozenset[str]
    given: frozenset[str]
    signed: bool

    @property
    def features(self) -> tuple[str, ...]:
        """Every feature whose range must be known, in the graph's order."""
        return tuple(self.leader)


def plan_of(model: ModelProto, *, signed: bool) -> Plan:
    """What of a float32 graph of ours is to be quantised; InputError where nothing is left to quantise."""
    view = _View(model.graph)
    kept = _kept(view)
    convolutions = [node for node in view.graph.node if node.op_type == "Conv" and node.name not in kept]
    if not convolutions:
        raise InputError(
            "nothing of this network can be quantised: all its convolutions read the image, give the logits or lie on one pixel; export with "
            "--precision fp32 or fp16"
        )
    names = frozenset(node.name for node in convolutions)
    joining, given = set[str](), set[str]()
    for node in view.graph.node:
        if node.name in names:
            given.add(view.feature(node, rectified_only=not signed))
        elif node.op_type in JOINING and any(name in given for name in view.reads(node)):
            joining.add(node.name)
            given.add(view.feature(node, rectified_only=not signed))
    read = {name for node in view.graph.node if node.name in names or node.name in joining for name in view.reads(node)}
    wanted = [name for name in view.order if name in read or (not signed and name in given)]
    leader = _leaders(view, wanted, joining, {"MaxPool", "Concat"} if signed else {"MaxPool"})
    negative = {leader[name] for name in wanted if signed or not view.never_negative[name]}
    rectified = frozenset(name for name in wanted if leader[name] not in negative)
    return Plan(names, frozenset(joining), leader, rectified, frozenset(given & set(wanted)), signed)


def quantised(model: ModelProto, plan: Plan, ranges: Mapping[str, float]) -> ModelProto:
    """The graph with its pairs; `ranges` is the largest magnitude of each of the plan's features that is to be kept apart."""
    result = ModelProto()
    result.CopyFrom(model)
    maker = _Maker(result.graph, plan, ranges)
    nodes = [made for node in model.graph.node for made in maker.rewritten(node)]
    read = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in result.graph.initializer if tensor.name in read]
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(tensors)
    return result


def weight_scales(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale of each output channel (axis 0): its largest magnitude is 127 steps."""
    largest = np.abs(weight).reshape(weight.shape[0], -1).max(axis=1)
    return np.maximum(largest / np.float32(SIGNED_STEPS), np.float32(_LEAST_SCALE))


class _View:
    """Who gives and who reads each value of a graph."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.giver = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.order = [name for node in graph.node for name in node.output]

    def reads(self, node: NodeProto) -> list[str]:
        """The features that a node reads: the first thing of most, all of a sum or concatenation."""
        names = node.input if node.op_type in ("Add", "Concat", "Mul") else node.input[:1]
        return [name for name in names if name and name not in self.constants]

    def feature(self, node: NodeProto, *, rectified_only: bool) -> str:
        """What a node gives, its activation included where nothing else reads what lies between."""
        name = node.output[0]
        after = self.readers[name]
        melted = len(after) == 1 and after[0].op_type in _ACTIVATIONS and (not rectified_only or self._rectifies(after[0]))
        return after[0].output[0] if melted and node.op_type == "Conv" else name

    @cached_property
    def never_negative(self) -> dict[str, bool]:
        """Whether each value is at least 0 whatever the image."""
        known: dict[str, bool] = defaultdict(bool)
        for node in self.graph.node:
            sign = self._rectifies(node) or node.op_type == "HardSigmoid"
            sign = sign or (node.op_type in _KEEPS_SIGN and all(known[name] for name in self.reads(node)))
            known |= dict.fromkeys(node.output, sign)
        return known

    def _rectifies(self, node: NodeProto) -> bool:
        if node.op_type != "Clip":
            return node.op_type == "Relu"
        least = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        return least is not None and float(numpy_helper.to_array(least)) >= 0


def _kept(view: _View) -> frozenset[str]:
    """Names of the convolutions that stay in float32."""
    after_convolution, one_pixel = dict[str, bool](), dict[str, bool]()
    first, kept = set[str](), set[str]()
    for node in view.graph.node:
        reads = view.reads(node)
        behind = any(after_convolution.get(name, False) for name in reads)
        tiny = node.op_type in _GLOBAL or (node.op_type in {"Conv", *_ACTIVATIONS} and one_pixel.get(reads[0], False))
        if node.op_type == "Conv":
            if not behind:
                first.add(node.name)
            elif tiny or (_is_depthwise(view, node) and _source(view, node) in first):
                kept.add(node.name)
        after_convolution |= dict.fromkeys(node.output, behind or node.op_type == "Conv")
        one_pixel |= dict.fromkeys(node.output, tiny)
    return frozenset(first | kept | set(_classifiers(view)))


def _is_depthwise(view: _View, node: NodeProto) -> bool:
    return attribute(node, "group", 1) == view.constants[node.input[1]].dims[0] > 1


def _source(view: _View, node: NodeProto) -> str:
    """The operation that a convolution reads, seen through an activation."""
    giver = view.giver.get(node.input[0])
    if giver is not None and giver.op_type in _ACTIVATIONS:
        giver = view.giver.get(giver.input[0])
    return giver.name if giver is not None else ""


def _classifiers(view: _View) -> Iterator[str]:
    """The convolutions behind which only resizes and the like lie before the logits."""
    waiting, seen = ["logits"], set[str]()
    while waiting:
        node = view.giver.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type == "Conv":
            yield node.name
        else:
            waiting += view.reads(node)


def _leaders(view: _View, wanted: list[str], joining: set[str], copying: set[str]) -> dict[str, str]:
    """For each feature the one whose scale it shares: what an operation that only copies reads and gives has one scale, so that nothing is computed.

    A concatenation is one of these in the signed form; in the unsigned one a shared scale would take from rectified features their zero point 0.
    """
    leader = {name: name for name in wanted}
    for node in view.graph.node:
        if node.name in joining and node.op_type in copying:
            together = {leader[name] for name in (*view.reads(node), node.output[0]) if name in leader}
            chosen = next(name for name in wanted if name in together)
            leader = {name: chosen if head in together else head for name, head in leader.items()}
    return leader


class _Maker:
    """Writes the pairs and the quantised weights."""

    def __init__(self, graph: GraphProto, plan: Plan, ranges: Mapping[str, float]) -> None:
        self._graph, self._plan = graph, plan
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        largest: dict[str, float] = defaultdict(float)
        for name, head in plan.leader.items():
            largest[head] = max(largest[head], ranges[name])
        self._range = {name: largest[head] for name, head in plan.leader.items()}

    def rewritten(self, node: NodeProto) -> Iterator[NodeProto]:
        """The node, reading what it is to read, with the pairs of what it gives behind it."""
        copied = NodeProto()
        copied.CopyFrom(node)
        inside = node.name in self._plan.convolutions or node.name in self._plan.joining
        for place, name in enumerate(node.input):
            if name in self._plan.leader and (inside or name in self._plan.given):
                copied.input[place] = f"{name}.dequantised"
        if node.name in self._plan.convolutions:
            yield self._weight(copied)
        yield copied
        for name in node.output:
            if name in self._plan.leader:
                yield from self._pair(name)

    def _pair(self, name: str) -> Iterator[NodeProto]:
        rectified, kind = name in self._plan.rectified, np.int8 if self._plan.signed else np.uint8
        steps = UNSIGNED_STEPS if rectified else SIGNED_STEPS
        self._constant(f"{name}.scale", np.array(max(self._range[name] / steps, _LEAST_SCALE), np.float32))
        self._constant(f"{name}.zero", np.array(0 if rectified or self._plan.signed else MIDDLE, kind))
        by = [f"{name}.scale", f"{name}.zero"]
        yield helper.make_node("QuantizeLinear", [name, *by], [f"{name}.quantised"], f"{name}/QuantizeLinear")
        yield helper.make_node("DequantizeLinear", [f"{name}.quantised", *by], [f"{name}.dequantised"], f"{name}/DequantizeLinear")

    def _weight(self, node: NodeProto) -> NodeProto:
        name = node.input[1]
        weight = numpy_helper.to_array(self._weights[name])
        scales = weight_scales(weight)
        steps = np.rint(weight / scales.reshape(-1, 1, 1, 1)).clip(-SIGNED_STEPS, SIGNED_STEPS)
        self._constant(f"{name}.quantised", steps.astype(np.int8))
        self._constant(f"{name}.scale", scales)
        self._constant(f"{name}.zero", np.zeros(len(scales), np.int8))
        node.input[1] = f"{name}.dequantised"
        reads = [f"{name}.quantised", f"{name}.scale", f"{name}.zero"]
        return helper.make_node("DequantizeLinear", reads, [f"{name}.dequantised"], f"{name}/DequantizeLinear", axis=0)

    def _constant(self, name: str, value: NDArray[np.generic]) -> None:
        self._graph.initializer.append(numpy_helper.from_array(value, name))

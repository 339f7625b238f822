"""Dynamic sizes: a static graph made to follow the height and width of its input.

Only three things in our graphs know a size: where resizes go, and where the windows of a pyramid pool lie. A feature at level k is
ceil(H / 2^k) x ceil(W / 2^k), so each resize gets its goal from the input's shape by one addition and one division. The windows of a pyramid pool
follow the size, which no operator's attribute can: they become two products with matrices of means, made from the shape, of the same values
(`segnas.ops.pooled_to`).
"""

from collections.abc import Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from segnas.arch import size_at

_DEEPEST = 12


def free(graph: GraphProto, *, most: tuple[int, int], levels: Sequence[int], bins: Mapping[int, tuple[int, ...]], fixed: Set[str]) -> None:
    """Let the height and width of a graph that was made for the size `most` vary below it.

    `levels` are those of the network's nodes; `bins` the pools of each pyramid pool, by its node. Nodes whose name begins with one of `fixed` stay.
    """
    made = _Shapes(graph)
    level_of = {size_at(level, *most): level for level in reversed(range(_DEEPEST))}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    grids = {index: [b for b in pools if b > 1] for index, pools in bins.items()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        place = _place(node.name)
        if node.op_type == "Resize" and not any(node.name.startswith(kept) for kept in fixed):
            batch, channels, height, width = (int(n) for n in numpy_helper.to_array(constants[node.input[3]]))
            node.input[3] = made.full_size(batch, channels, level_of[height, width])
        elif node.op_type == "AveragePool" and place in grids:
            nodes += made.pool(node, levels[place], grids[place].pop(0))
            continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend([*made.nodes, *nodes])
    _drop_unread(graph)


class _Shapes:
    """Nodes that compute sizes from the input's shape, each once; they stand before all others."""

    def __init__(self, graph: GraphProto) -> None:
        self.nodes: list[NodeProto] = []
        self._graph = graph
        self._known: dict[str, str] = {}
        self._half = any("input.half" in node.output for node in graph.node)
        first = 1 if graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8 else 2
        self._image = self._put("image", "Shape", "input", start=first, end=first + 2)

    def full_size(self, batch: int, channels: int, level: int) -> str:
        """(N, C, h, w) of a feature at that level."""
        ahead = self._constant(f"n{batch}c{channels}", [batch, channels])
        return self._put(f"full{batch}x{channels}at{level}", "Concat", ahead, self._level(level), axis=0)

    def pool(self, node: NodeProto, level: int, bins: int) -> list[NodeProto]:
        """What stands in place of a pool of a feature at that level to at most bins x bins windows."""
        rows, columns = (self._means(level, axis, bins) for axis in (0, 1))
        turned = self._put(f"{columns}.turned", "Transpose", columns, perm=[1, 0])
        middle = f"{node.name}.columns"
        return [
            helper.make_node("MatMul", [node.input[0], turned], [middle], f"{node.name}.0.MatMul"),
            helper.make_node("MatMul", [rows, middle], [node.output[0]], f"{node.name}.1.MatMul"),
        ]

    def _level(self, level: int) -> str:
        """(h, w) of a feature at that level."""
        if level == 0:
            return self._image
        more = self._put(f"more{level}", "Add", self._image, self._constant(f"more{level}", [2**level - 1]))
        return self._put(f"level{level}", "Div", more, self._constant(f"step{level}", [2**level]))

    def _means(self, level: int, axis: int, bins: int) -> str:
        """(count, n): a row for each window along that axis, 1 / length where the window is, 0 elsewhere."""
        key = f"means{bins}at{level}{'hw'[axis]}"
        if key in self._known:
            return self._known[key]
        one, none = self._constant("one", 1), self._constant("none", 0)
        n = self._put(f"{key}.n", "Gather", self._level(level), self._constant(f"axis{axis}", axis))
        count = self._put(f"{key}.count", "Min", n, self._constant(f"bins{bins}", bins))
        stride = self._put(f"{key}.stride", "Div", n, count)
        before = self._put(f"{key}.before", "Mul", self._put(f"{key}.rest", "Sub", count, one), stride)
        length = self._put(f"{key}.length", "Sub", n, before)
        steps = self._put(f"{key}.steps", "Mul", self._put(f"{key}.windows", "Range", none, count, one), stride)
        start = self._put(f"{key}.start", "Unsqueeze", steps, self._constant("last", [1]))
        pixels = self._put(f"{key}.pixels", "Unsqueeze", self._put(f"{key}.places", "Range", none, n, one), self._constant("first", [0]))
        past = self._put(f"{key}.past", "GreaterOrEqual", pixels, start)
        within = self._put(f"{key}.within", "Less", pixels, self._put(f"{key}.end", "Add", start, length))
        inside = self._put(f"{key}.inside", "Cast", self._put(f"{key}.both", "And", past, within), to=TensorProto.FLOAT)
        means = self._put(f"{key}.means", "Div", inside, self._put(f"{key}.pixels_each", "Cast", length, to=TensorProto.FLOAT))
        if self._half:
            means = self._put(f"{key}.half", "Cast", means, to=TensorProto.FLOAT16)
        self._known[key] = means
        return means

    def _put(self, key: str, op: str, *reads: str, **attributes: int | list[int]) -> str:
        """The output of that node; the same key is the same node."""
        if key not in self._known:
            self._known[key] = f"sizes.{key}"
            node = helper.make_node(op, list(reads), [f"sizes.{key}"], f"sizes/{key}.{op}")
            node.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))
            self.nodes.append(node)
        return self._known[key]

    def _constant(self, key: str, value: int | list[int]) -> str:
        name = f"sizes.constant.{key}"
        if name not in self._known:
            self._known[name] = name
            array: NDArray[np.int64] = np.array(value, np.int64)
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def _place(name: str) -> int:
    """The node of the network that a node of the graph belongs to; -1 for none."""
    text = name.partition("/")[0].removeprefix("nodes.")
    return int(text) if text.isdecimal() else -1


def _drop_unread(graph: GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)

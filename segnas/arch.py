"""Architecture: a network as a value, and the one walk over it.

Node 0 is the image (of any width: a probe's input is a feature); the last node is the output. A feature at level k is ceil(H / 2^k) x
ceil(W / 2^k): a stride-2 node goes one level down whatever the parity, and since ceil(ceil(n/2)/2) = ceil(n/4), every path to a level gives the same
size. So a resize names a level, never a number of pixels.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from segnas.errors import InputError
from segnas.kinds import SCHEMAS, Kind, Value, kind

DEEPEST_LEVEL = 7


class Shape(NamedTuple):
    """Channels, height, width of one feature (batch is 1)."""

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation in its place: which features it reads, how many channels it gives, how far it shrinks (`stride`) or enlarges (`up`).

    `label` names the place for people and pictures; it is no part of the value.
    """

    kind: Kind
    inputs: tuple[int, ...]
    channels: int
    stride: int = 1
    up: int = 1
    label: str = field(default="", compare=False)

    @property
    def op(self) -> str:
        """The operation's name."""
        return self.kind.op


@dataclass(frozen=True, slots=True, order=True)
class Operation:
    """A node with its shapes resolved: what is built, timed and looked up; the key of a latency table."""

    kind: Kind
    stride: int
    inputs: tuple[Shape, ...]
    output: Shape

    @property
    def op(self) -> str:
        """The operation's name."""
        return self.kind.op

    @property
    def is_free(self) -> bool:
        """Whether it is nothing at run time: the image itself, a skip that keeps the resolution, a shortcut that keeps the width too."""
        stays = self.stride == 1 and (self.op == "skip" or (self.op == "shortcut" and self.inputs[0].channels == self.output.channels))
        return self.op in {"image", "none"} or stays

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.kind}{stride} {'+'.join(map(str, self.inputs))} -> {self.output}"

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of the operation's canonical JSON."""
        return _digest([_spelled(self.kind), self.stride, [list(shape) for shape in self.inputs], list(self.output)])


@dataclass(frozen=True)
class Architecture:
    """A network: nodes in topological order, checked when made.

    Raises InputError that says which node, what was given and what is allowed.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        if len(self.nodes) < 2:
            raise InputError(f"an architecture needs an image and at least one operation; {len(self.nodes)} nodes were given")
        if self.nodes[0].op != "image" or self.nodes[0].inputs:
            raise InputError(f"node 0 is {self.nodes[0].op!r}; it must be the image, with no inputs")
        levels: list[int] = []
        for index, node in enumerate(self.nodes):
            levels.append(_checked_level(self.nodes, levels, index, node))
        unread = set(range(len(self.nodes) - 1)) - {source for node in self.nodes for source in node.inputs}
        if unread:
            first = min(unread)
            raise InputError(f"node {first} ({self.nodes[first].op}) is read by no other node; remove it or connect it")

    @property
    def classes(self) -> int:
        """Number of channels of the output."""
        return self.nodes[-1].channels

    def require_segmentation(self) -> "Architecture":
        """The architecture itself, if it maps a colour image to logits of the same size; InputError otherwise. Probes need not."""
        if self.nodes[0].channels != 3:
            raise InputError(f"node 0 (image) has {self.nodes[0].channels} channels; a segmentation network reads 3")
        if self.levels[-1] != 0:
            raise InputError(f"the last node is at 1/{2 ** self.levels[-1]} of the image's size; the output must be resized to the image's size")
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """Level of each node: its feature is 1/2^level of the image."""
        levels: list[int] = []
        for node in self.nodes:
            levels.append(_level(levels, node))
        return tuple(levels)

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of the canonical JSON, labels left out."""
        return _digest([[_spelled(n.kind), list(n.inputs), n.channels, n.stride, n.up] for n in self.nodes])

    def operations(self, height: int, width: int) -> tuple[Operation, ...]:
        """The one walk: every node's operation at an input of that size, in node order.

        Raises InputError where the image is smaller than the deepest feature's stride.
        """
        levels = self.levels
        require_size(levels, height, width)
        shapes = [Shape(node.channels, *size_at(level, height, width)) for node, level in zip(self.nodes, levels, strict=True)]
        return tuple(Operation(node.kind, node.stride, tuple(shapes[i] for i in node.inputs), shapes[index]) for index, node in enumerate(self.nodes))


def size_at(level: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of a feature at that level: ceil(n / 2^level)."""
    return -(-height // 2**level), -(-width // 2**level)


def require_size(levels: Iterable[int], height: int, width: int) -> None:
    """InputError where an input of that size is smaller than the stride of the deepest of these levels."""
    least = 2 ** max(levels)
    if min(height, width) < least:
        raise InputError(f"input size {height}x{width} is too small: this network shrinks by {least}, so at least {least}x{least} is needed")


def argmax_operation(logits: Shape) -> Operation:
    """The argmax that a `labels` engine adds behind the logits; it is priced like any other operation."""
    return Operation(kind("argmax"), 1, (logits,), Shape(1, logits.height, logits.width))


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _digest(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:12]


def _spelled(kind_: Kind) -> list[object]:
    def plain(value: Value) -> object:
        return list(value) if isinstance(value, tuple) else value

    return [kind_.op, {name: plain(value) for name, value in kind_.attributes}]


def _level(levels: Sequence[int], node: Node) -> int:
    above = levels[node.inputs[0]] if node.inputs else 0
    return above + node.stride.bit_length() - 1 - (node.up.bit_length() - 1)


def _checked_level(nodes: Sequence[Node], levels: Sequence[int], index: int, node: Node) -> int:
    def refuse(message: str) -> InputError:
        name = f" {node.label!r}" if node.label else ""
        return InputError(f"node {index}{name} ({node.op}): {message}")

    schema = SCHEMAS[node.op]
    if node.op in {"none", "argmax"} or (node.op == "image") != (index == 0):
        raise refuse("this operation cannot stand here")
    if any(not 0 <= source < index for source in node.inputs):
        raise refuse(f"inputs {node.inputs} were given; only earlier nodes, 0 to {index - 1}, are allowed")
    most = schema.most_inputs
    if len(node.inputs) < schema.least_inputs or (most is not None and len(node.inputs) > most):
        raise refuse(f"{len(node.inputs)} inputs were given; it takes {schema.least_inputs}{'' if most == schema.least_inputs else ' or more'}")
    if node.stride not in schema.strides:
        raise refuse(f"stride {node.stride} was given; allowed: {', '.join(map(str, schema.strides))}")
    if node.up != 1 and (not schema.resizes or node.up not in (2, 4, 8, 16, 32, 64, 128) or node.stride != 1):
        raise refuse(f"enlargement {node.up} was given; only a resize of stride 1 enlarges, by a power of two")
    if node.channels < 1:
        raise refuse(f"{node.channels} channels were given; at least 1 is needed")
    _check_inputs(refuse, schema.channels, node, [nodes[i].channels for i in node.inputs], [levels[i] for i in node.inputs])
    level = _level(levels, node)
    if not 0 <= level <= DEEPEST_LEVEL:
        raise refuse(f"its feature would be at level {level}; levels 0 to {DEEPEST_LEVEL} are allowed")
    return level


def _check_inputs(refuse: Callable[[str], InputError], rule: str, node: Node, widths: list[int], scales: list[int]) -> None:
    if len(set(scales)) > 1:
        raise refuse(f"its inputs lie at levels {scales}; they must lie at the same level: resize first")
    if rule == "same" and (set(widths) != {node.channels}):
        raise refuse(f"{node.channels} channels were given for inputs of {widths}; all must be equal")
    if rule == "sum" and sum(widths) != node.channels:
        raise refuse(f"{node.channels} channels were given; the inputs {widths} make {sum(widths)}")
    if node.op in {"conv"} and (widths[0] % node.kind.integer("groups") or node.channels % node.kind.integer("groups")):
        raise refuse(f"{node.kind.integer('groups')} groups do not divide {widths[0]} input and {node.channels} output channels")

"""From the slots that live to an architecture in canonical order: equal networks give equal digests, whatever space or
genotype they came from.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from segnas.arch import Architecture, Node
from segnas.kinds import kind

ADD = kind("add")


@dataclass(frozen=True, slots=True)
class Derived:
    """A decoded architecture, and the index of the slot that each node came from: for weights, pictures and reports."""

    architecture: Architecture
    origins: tuple[int, ...]


def derived(nodes: Sequence[Node], origins: Sequence[int]) -> Derived:
    """The canonical architecture of a graph whose last node is the output and whose additions may have more than two
    inputs.

    Nodes stand in depth-first order from the output; the inputs of an addition are sorted by what they compute, and
    added one by one.
    """
    nodes = _sorted_additions(nodes)
    place: dict[int, int] = {}
    result: list[Node] = []
    sources: list[int] = []
    for index in _depth_first(nodes):
        node = nodes[index]
        inputs = tuple(place[i] for i in node.inputs)
        while node.kind == ADD and len(inputs) > 2:
            result.append(replace(node, inputs=inputs[:2]))
            sources.append(origins[index])
            inputs = (len(result) - 1, *inputs[2:])
        place[index] = len(result)
        result.append(replace(node, inputs=inputs))
        sources.append(origins[index])
    return Derived(Architecture(tuple(result)), tuple(sources))


def _sorted_additions(nodes: Sequence[Node]) -> list[Node]:
    keys: list[str] = []
    result: list[Node] = []
    for node in nodes:
        inputs = tuple(sorted(node.inputs, key=keys.__getitem__)) if node.kind == ADD else node.inputs
        value = (node.op, node.kind.attributes, node.channels, node.stride, node.up, [keys[i] for i in inputs])
        keys.append(hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest())
        result.append(replace(node, inputs=inputs))
    return result


def _depth_first(nodes: Sequence[Node]) -> Iterator[int]:
    """Indices of the nodes that the last one needs, each after its inputs."""
    done: set[int] = set()
    stack = [len(nodes) - 1]
    while stack:
        waiting = [i for i in nodes[stack[-1]].inputs if i not in done]
        if waiting:
            stack.append(waiting[0])
            continue
        index = stack.pop()
        done.add(index)
        yield index

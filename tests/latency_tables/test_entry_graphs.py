"""The key of an entry is its operation: one operation is one graph, however it is exported, and what it reads tells graphs apart that look alike."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from segnas.arch import Operation
from segnas.export.graph import graph_sha256
from segnas.export.templates import forget, templates
from segnas.kinds import Kind, kind
from segnas.search.spaces import SPACES, space
from segnas.target import Target

TARGET = Target("made up", "onnxruntime", "1.0", "fp32", 64, 128)
LARGE = replace(TARGET, height=128, width=256)  # at which a grid of eight rows is not cut to the feature's four
FRESH = 4  # operations that the quick test exports again
EVERY_SPACE = [pytest.param(name, marks=() if name == "cas-tiny" else pytest.mark.slow) for name in SPACES]


def hashes(operations: tuple[Operation, ...], cache: Path | None = None) -> dict[Operation, str]:
    """The graph's hash of each operation; what the cache lacks is exported in one go."""
    templates([operation for operation in operations if operation.op != "argmax"], cache=cache)
    return {operation: graph_sha256(operation, cache=cache) for operation in operations}


def computed(operation: Operation) -> tuple[Kind, int]:
    """Its kind and stride; FasterSeg's shortcut is a 1x1 convolution unit where it is not free, so these two may be one graph under two keys."""
    is_shortcut = operation.op == "shortcut" and not operation.is_free
    return (kind("conv", kernel=1) if is_shortcut else operation.kind), operation.stride


@pytest.mark.parametrize("name", EVERY_SPACE)
def test_no_two_operations_that_read_the_same_are_one_graph(name: str) -> None:
    operations = space(name, 19).all_operations(LARGE if name == "dpc" else TARGET)
    sharing: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation, sha256 in hashes(operations).items():
        assert len(sha256) == 64
        sharing[sha256].append(operation)
    for shared in sharing.values():
        # A graph states its operators, attributes and weights, not the size of what flows through it: the same convolution at 1/8 and at 1/16, an
        # addition of any width. So those that share one are one kind, and read features of different shapes.
        assert len({computed(operation) for operation in shared}) == 1, shared
        assert len({(operation.kind, operation.inputs) for operation in shared}) == len(shared), shared


@pytest.mark.parametrize("name", EVERY_SPACE)
def test_no_operation_is_two_graphs(name: str, tmp_path: Path) -> None:
    operations = space(name, 19).all_operations(TARGET)
    known = hashes(operations)
    forget()
    assert hashes(operations) == known  # read back from the disk
    by_op = {operation.op: operation for operation in operations}
    again = tuple(Random(name).sample([o for o in by_op.values() if o.op != "argmax"], FRESH))
    forget()
    assert hashes(again, tmp_path) == {operation: known[operation] for operation in again}  # beside other operations than before
    forget()


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_no_operation_is_two_graphs_all_exported_again(name: str, tmp_path: Path) -> None:
    known = hashes(space(name, 19).all_operations(TARGET))
    shuffled = Random(name).sample(list(known), len(known))
    forget()
    assert hashes(tuple(shuffled), tmp_path) == known
    forget()

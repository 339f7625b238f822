"""What ONNX Runtime computes once: the operations that an estimate counts, against the nodes of the runtime's own optimised graph."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from segnas.arch import Architecture, Node
from segnas.export.graph import onnx_from_network
from segnas.kinds import kind
from segnas.latency import Entry, LatencyTable, executed_operations, priced_operations
from segnas.network import initialised
from segnas.runtime.onnxruntime_session import cpu_target, optimised_nodes
from segnas.search.draws import corners
from segnas.search.spaces import SPACES

TARGET = cpu_target(64, 128)


def network() -> Architecture:
    """Twice the same two poolings, through a skip too, twice their sum, twice its enlargement; twice the same convolution, whose weights differ."""
    pool, mean, add = kind("max_pool"), kind("avg_pool"), kind("add")
    nodes = [Node(kind("image"), (), 3), Node(kind("stem", width=16), (0,), 16, 4), Node(kind("conv"), (1,), 16, 2), Node(kind("skip"), (2,), 16)]
    nodes += [Node(pool, (2,), 16), Node(mean, (2,), 16), Node(pool, (3,), 16), Node(mean, (3,), 16)]  # 4 to 7, the latter two again
    nodes += [Node(add, (4, 5), 16), Node(add, (6, 7), 16)]  # 8, and again
    nodes += [Node(kind("resize"), (8,), 16, 1, 2), Node(kind("resize"), (9,), 16, 1, 2)]  # 10, and again
    nodes += [Node(kind("conv"), (10,), 16), Node(kind("conv"), (11,), 16)]  # 12 and 13: two
    nodes += [Node(pool, (12,), 16), Node(pool, (13,), 16), Node(kind("max_pool", kernel=5), (12,), 16)]  # 14 to 16: three
    nodes += [Node(kind("concat"), (14, 15, 16, 1), 64), Node(kind("classifier"), (17,), 5), Node(kind("resize"), (18,), 5, 1, 4)]
    return Architecture(tuple(nodes))


def nodes_of(architecture: Architecture, optimisation: str = "all") -> Counter[str]:
    target = cpu_target(64, 128, optimisation=optimisation)
    return optimised_nodes(onnx_from_network(initialised(architecture, 0).eval(), target), target)


def counts(architecture: Architecture, target=TARGET) -> Counter[str]:
    return Counter(operation.op for operation in executed_operations(architecture, target))


def test_equal_operations_without_weights_are_computed_once() -> None:
    found, made = nodes_of(network()), counts(network())
    assert (made["max_pool"], made["avg_pool"], made["resize"], made["add"], made["conv"]) == (1 + 3, 1, 2, 1, 3)
    assert (found["MaxPool"], found["AveragePool"], found["Resize"] + found["Upsample"]) == (4, 1, 2)
    assert Counter(o.op for o in priced_operations(network(), TARGET))["max_pool"] == 5


def test_nothing_is_merged_where_nothing_is_optimised() -> None:
    target = cpu_target(64, 128, optimisation="none")
    assert executed_operations(network(), target) == priced_operations(network(), target)
    assert nodes_of(network(), "none")["MaxPool"] == 5


def test_what_other_runtimes_merge_is_not_known() -> None:
    target = replace(TARGET, runtime="torch", options=())
    assert executed_operations(network(), target) == priced_operations(network(), target)


@pytest.mark.parametrize("name", ["cas-tiny", "darts-tiny", "gas-fast", "auto-deeplab-small"])
def test_networks_of_the_spaces_hold_as_many_pools_as_are_counted(name: str) -> None:
    """But for the average poolings inside of the head, which are no operations of their own."""
    space, merged, inside = SPACES[name](5), 0, set[int]()
    drawn = [space.decode(space.random(Random(seed))).architecture for seed in range(3)]
    for architecture in [*drawn, corners(space, lambda genotype: 0.0)["all max_pool"]]:
        made, found = counts(architecture), nodes_of(architecture)
        assert found["MaxPool"] == made["max_pool"]
        inside.add(found["AveragePool"] - made["avg_pool"])
        merged += len(priced_operations(architecture, TARGET)) - made.total()
    assert len(inside) == 1
    assert merged > 0


def test_no_part_of_a_factorised_reduction_is_shared() -> None:
    """Where every edge of a reduction cell is a skip, many read one feature: each leaves the padding of its own convolution away, a row and a
    column."""
    space = SPACES["darts-tiny"](5)
    (name,) = (name for name in corners(space, lambda genotype: 0.0) if name.startswith("all skip"))
    architecture = corners(space, lambda genotype: 0.0)[name]
    reductions = [node for node in architecture.nodes if node.kind.op == "factorised_reduce"]
    assert len(reductions) > len({node.inputs for node in reductions})
    assert nodes_of(architecture)["Slice"] == 2 * len(reductions)


def test_an_estimate_counts_once_and_a_search_each() -> None:
    operations = {o for o in priced_operations(network(), TARGET) if not o.is_free}
    table = LatencyTable("test", TARGET, tuple(Entry(o, "block", 1.0, 0.01, 9, "series", "") for o in operations), overhead_ms=0.5)
    each = sum(not o.is_free for o in priced_operations(network(), TARGET))
    assert table.additive_ms(network()) == each + 0.5
    assert table.estimate(network()).total_ms == table.raw_sum_ms(network()) == each - 4 + 0.5
    assert dict(table.probe(network(), 9.0).counts).keys() == {o.digest for o in operations}

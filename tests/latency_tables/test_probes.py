"""Every kind of operation has probes, and their algebra gives back the price that went in."""

import math
from dataclasses import replace

import pytest

from segnas.arch import Architecture, Node, Operation, Shape, argmax_operation
from segnas.kinds import SCHEMAS, kind
from segnas.latency_tables.probes import COPIES, Design, Rung, copies_of, design, designs, entry_kind, probe_operations
from segnas.latency_tables.slope import slope_over


def operation_of(
    op: str, stride: int = 1, channels: tuple[int, ...] = (32,), outputs: int | None = None, size=(24, 40), up: int = 1, **attributes
) -> Operation:
    """The last operation of a network made for it; `size` is the input's."""
    image = Node(kind("image"), (), channels[0])
    height, width = size
    nodes = [image, *(Node(kind("conv", kernel=1), (0,), c) for c in channels[1:])]
    if up > 1:
        nodes = [Node(kind("image"), (), 8), Node(kind("resize"), (0,), 8, up), Node(kind("conv", kernel=1), (1,), channels[0])]
        height, width = height * up, width * up
    rule = SCHEMAS[op].channels
    free = outputs or channels[0]
    given = {"free": free, "same": channels[0], "sum": sum(channels)}[rule]
    inputs = (len(nodes) - 1,) if up > 1 else tuple(range(len(channels)))
    nodes.append(Node(kind(op, **attributes), inputs, given, stride, up))
    return Architecture(tuple(nodes)).operations(height, width)[-1]


CASES = [
    *(
        operation_of(op, stride)
        for op, schema in SCHEMAS.items()
        for stride in schema.strides
        if schema.least_inputs == 1 and op not in {"none", "argmax"}
    ),
    operation_of("stem", 4, (3,), 48, size=(64, 96)),
    operation_of("conv", 1, (32,), 64),
    operation_of("conv", 2, (3,), 64, size=(33, 47), kernel=5),
    operation_of("separable", 2, (48,), 96, size=(33, 47)),
    operation_of("inverted_residual", 1, (32,), 48, squeeze=4),
    operation_of("pyramid_pool", 1, (64,), 32, bins=(1, 2)),
    operation_of("add", 1, (32, 32)),
    operation_of("concat", 1, (32, 48)),
    operation_of("concat", 1, (32, 48, 16, 32)),
    operation_of("resize", up=4),
    operation_of("resize", up=16, size=(3, 5)),
    operation_of("classifier", 1, (64,), 19),
    operation_of("conv", 1, (16,), kernel=1),  # the very operation that probes are framed with
    argmax_operation(Shape(19, 128, 256)),
    Operation(kind("resize"), 1, (Shape(19, 32, 64),), Shape(19, 128, 256)),  # gives the target's size
    Operation(kind("resize"), 1, (Shape(19, 17, 33),), Shape(19, 33, 65)),  # an odd size: ceil(33 / 2) = 17
]
PRICED = [o for o in dict.fromkeys(CASES) if not o.is_free]


def price(operation: Operation, target, machine, depth: int = 0) -> float:
    """What the design makes of a machine without noise."""
    made = design(operation, target)
    costs = [machine.true_ms(rung.architecture, rung.target(target)) for rung in made.rungs]
    assert depth < 3
    return slope_over([rung.copies for rung in made.rungs], costs) - math.fsum(n * price(o, target, machine, depth + 1) for o, n in made.companions)


@pytest.mark.parametrize("operation", PRICED, ids=str)
@pytest.mark.parametrize("runtime", ["onnxruntime", "tensorrt"])
def test_price_is_the_true_cost(operation, runtime, target, machine):
    assert price(operation, replace(target, runtime=runtime), machine) == pytest.approx(machine.price(operation), rel=1e-9)


@pytest.mark.parametrize("operation", [o for o in PRICED if o.op != "argmax"], ids=str)
def test_probe_holds_the_operation_as_often_as_it_says(operation, target):
    counts = [_count(rung, operation) - rung.copies for rung in design(operation, target).rungs]
    assert len(set(counts)) == 1  # a frame of the same kind is in every rung alike
    assert counts[0] == 0 or operation.op in {"conv"}


def test_every_kind_is_covered():
    priced = {op for op in SCHEMAS if op not in {"image", "none"}}
    assert {operation.op for operation in PRICED} == priced


@pytest.mark.parametrize("operation", PRICED, ids=str)
def test_copies_read_features_of_their_own_where_they_have_no_weights(operation, target):
    if operation.op not in {"max_pool", "avg_pool", "resize", "concat"}:
        return
    for rung in design(operation, target).rungs:
        read = [node.inputs for node in rung.architecture.nodes if node.kind == operation.kind]
        assert len(read) == len(set(read))


def test_series_where_the_shape_stays_and_parallel_where_it_changes(target):
    assert _method("separable", target) == "series 1,2,4"
    assert design(operation_of("separable", 2), target).method == "parallel 1,2,4"
    assert design(operation_of("conv", 1, (32,), 64), target).method == "parallel 1,2,4"
    assert design(operation_of("resize", up=2), target).method == "parallel 1,2,4"
    assert design(Operation(kind("resize"), 1, (Shape(19, 32, 64),), Shape(19, 128, 256)), target).method == "difference 0,1"


def test_additions_are_kept_apart_where_the_runtime_merges_them(target, gpu_target):
    addition = operation_of("add", 1, (32, 32))
    assert design(addition, target).companions == ()
    (companion, times) = design(addition, gpu_target).companions[0]
    assert (companion.kind, times) == (kind("conv", kernel=1), 1)


def test_free_operations_have_no_design(target):
    with pytest.raises(ValueError, match="free"):
        design(operation_of("skip"), target)


def test_designs_bring_their_companions_once(target):
    plan = designs([operation_of("conv", 2), operation_of("separable", 2), operation_of("skip"), operation_of("conv", 2)], target)
    assert [d.operation.op for d in plan] == ["conv", "separable", "add"]


def test_copies_follow_the_cost(target):
    assert copies_of(operation_of("conv", 1, (128,), size=(64, 128))) == (1, 2)
    assert copies_of(operation_of("add", 1, (32, 32))) == (1, 4, 8)
    assert copies_of(operation_of("separable")) == (1, 2, 4)


def test_probe_operations_are_all_that_an_exporter_needs(target):
    plan = designs([operation_of("conv", 2), operation_of("resize", up=2)], target)
    found = probe_operations(plan)
    assert len(found) == len(set(found))
    assert {d.operation for d in plan} <= set(found)
    assert all(o in found for d in plan for r in d.rungs for o in r.architecture.operations(r.height, r.width)[1:])


def test_entry_kinds(target):
    assert entry_kind(operation_of("stem", 4, (3,), 32), target) == "fixed"
    assert entry_kind(argmax_operation(Shape(19, 128, 256)), target) == "fixed"
    assert entry_kind(Operation(kind("resize"), 1, (Shape(19, 32, 64),), Shape(19, 128, 256)), target) == "fixed"
    assert entry_kind(operation_of("resize", up=2), target) == "junction"
    assert entry_kind(operation_of("add", 1, (32, 32)), target) == "junction"
    assert entry_kind(operation_of("separable"), target) == "block"


def _method(op: str, target) -> str:
    made: Design = design(operation_of(op), target)
    assert tuple(rung.copies for rung in made.rungs) == COPIES
    return made.method


def _count(rung: Rung, operation: Operation) -> int:
    return sum(o == operation for o in rung.architecture.operations(rung.height, rung.width))

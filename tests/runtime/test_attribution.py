"""Attribution: real profiles of ONNX Runtime against the architecture, and made-up ones against a count by hand."""

import dataclasses
import math
from pathlib import Path
from random import Random

import pytest

from segnas.arch import Architecture, Node, argmax_operation
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export.graph import onnx_from_network
from segnas.kinds import Kind, kind
from segnas.latency import priced_operations
from segnas.latency_tables.probes import entry_kind
from segnas.network import initialised
from segnas.runtime.attribution import VISIT, Attribution, Kernel, OptimisedNode, Row, attribute, kernels_of, rows_of, values_of
from segnas.runtime.onnxruntime_session import cpu_target, optimised_nodes
from segnas.search.spaces import space
from segnas.target import Target

TARGET = cpu_target(64, 128)


def engine(architecture: Architecture, target: Target, /, **metadata: str) -> bytes:
    return onnx_from_network(initialised(architecture, 0).eval(), target, metadata=metadata)


def chain(*steps: tuple[Kind, int], channels: int = 3) -> Architecture:
    return Architecture((Node(kind("image"), (), channels), *(Node(made, (index,), width) for index, (made, width) in enumerate(steps))))


@pytest.fixture(scope="module")
def drawn() -> Architecture:
    """A random network of cas-tiny."""
    made = space("cas-tiny", 19)
    return made.decode(made.random(Random(0))).architecture


@pytest.fixture(scope="module")
def content(drawn) -> bytes:
    return engine(drawn, TARGET, architecture=drawn.digest)


@pytest.fixture(scope="module")
def found(drawn, content) -> Attribution:
    return attribute(content, drawn, TARGET)


def part(found: Attribution, name: str) -> Row:
    (row,) = [row for row in found.rows if row.part == name]
    return row


def test_everything_is_attributed(found, drawn):
    assert found.attributed >= 0.99
    assert math.fsum(row.share for row in found.rows) == pytest.approx(1)
    assert math.fsum(row.ms for row in found.rows) == pytest.approx(found.total_ms)
    assert found.total_ms > 0
    assert found.kernels_ms > 0
    assert found.profiled_ms > 0
    assert found.runs == 20
    assert (found.architecture, found.target) == (drawn.digest, TARGET)


def test_every_operation_that_runs_has_its_row(found, drawn):
    operations = priced_operations(drawn, TARGET)
    rows = [row for row in found.rows if row.part == "operation"]
    assert [row.operation for row in rows] == [o for o in operations if not o.is_free]
    assert all(row.kernels and row.ms > 0 for row in rows)
    assert [row.node for row in rows] == [i for i, o in enumerate(operations[:-1]) if not o.is_free] + [None]
    assert rows[-1].operation == argmax_operation(operations[-2].output)
    assert all(name.startswith("argmax/") for name in rows[-1].kernels)
    assert sum(found.by_operation().values()) == pytest.approx(sum(row.ms for row in rows))
    assert set(found.by_operation()) == {row.operation for row in rows}


def test_every_kernel_of_the_optimised_graph_is_told_once(found, content):
    nodes = optimised_nodes(content, TARGET)
    names = [name for row in found.rows for name in row.kernels]
    assert len(names) == len(set(names)) == sum(nodes.values())
    reorders = part(found, "reorder")
    assert len(reorders.kernels) == nodes["ReorderInput"] + nodes["ReorderOutput"] > 0
    assert part(found, "unattributed").kernels == ()


def test_reorders_count_as_junctions(found):
    by_kind = found.by_kind(lambda operation: entry_kind(operation, TARGET))
    assert set(by_kind) == {"block", "junction", "fixed", "unattributed"}
    joining = [r.ms for r in found.rows if r.operation is not None and entry_kind(r.operation, TARGET) == "junction"]
    assert by_kind["junction"] == pytest.approx(math.fsum(joining) + part(found, "reorder").ms)
    assert math.fsum(by_kind.values()) == pytest.approx(found.total_ms)


def test_every_kind_of_operation(every_op):
    for target in (cpu_target(75, 109), cpu_target(75, 109, output_contract="logits")):
        found = attribute(engine(every_op, target), every_op, target, runs=1)
        assert found.attributed >= 0.99, part(found, "unattributed").kernels
        assert found.runs == VISIT
        assert all(row.kernels for row in found.rows if row.part == "operation")
        assert (None in [r.node for r in found.rows if r.part == "operation"]) == (target.output_contract == "labels")


@pytest.mark.parametrize("optimisation", ["all", "extended", "basic", "none"])
def test_what_the_runtime_writes_out_is_told_by_the_value_it_leads_to(optimisation: str):
    """Two branches of one feature, each with a HardSwish: below `all` a HardSigmoid and a Mul without names each, and one pair in a block."""
    nodes = (
        Node(kind("image"), (), 16),
        Node(kind("conv", kernel=1), (0,), 16),
        Node(kind("conv", activation="hardswish"), (1,), 16),
        Node(kind("inverted_residual", expansion=3, squeeze=4, activation="hardswish"), (1,), 16),
        Node(kind("conv", kernel=5, activation="hardswish"), (1,), 16),
        Node(kind("add"), (2, 4), 16),
        Node(kind("add"), (3, 5), 16),
        Node(kind("classifier"), (6,), 5),
    )
    architecture, target = Architecture(nodes), cpu_target(32, 64, optimisation=optimisation)
    found = attribute(engine(architecture, target), architecture, target, runs=1)
    assert found.attributed == 1, part(found, "unattributed").kernels
    kernels = {row.node: row.kernels for row in found.rows if row.part == "operation"}
    written = {node: [name.split("_")[0] for name in names if name.startswith(("HardSigmoid_", "Mul_"))] for node, names in kernels.items()}
    pair = [] if optimisation == "all" else ["HardSigmoid", "Mul"]
    assert written == {1: [], 2: pair, 3: 2 * pair, 4: pair, 5: [], 6: [], 7: [], None: []}


def test_values_by_hand():
    """A kernel with a name is left alone; a nameless one is told by the first value with a place behind it; of other nodes nothing is told."""
    kernels = [
        Kernel("nodes.1/0.Conv", "Conv", 1.0),
        Kernel("HardSigmoid_7", "HardSigmoid", 1.0),
        Kernel("Mul_8", "Mul", 1.0),
        Kernel("Neg_9", "Neg", 1.0),
    ]
    nodes = [
        OptimisedNode("nodes.1/0.Conv", "Conv", ("input", "w"), "nodes.1.v3"),
        OptimisedNode("", "HardSigmoid", ("nodes.1.v3",), "inlined"),
        OptimisedNode("", "Mul", ("nodes.1.v3", "inlined"), "nodes.1"),
        OptimisedNode("", "Neg", ("nodes.1",), "nowhere"),
    ]
    assert values_of(kernels, nodes) == {"HardSigmoid_7": "nodes.1", "Mul_8": "nodes.1", "Neg_9": "nowhere"}
    assert values_of(kernels[:3], nodes) == values_of([kernels[0], *kernels[:0:-1]], nodes) == {}
    rows = rows_of(kernels, chain((kind("conv"), 8)), cpu_target(64, 128, output_contract="logits"), 4.0, values_of(kernels, nodes))
    assert [(row.part, row.kernels) for row in rows] == [
        ("operation", ("nodes.1/0.Conv", "HardSigmoid_7", "Mul_8")),
        ("reorder", ()),
        ("unattributed", ("Neg_9",)),
    ]


def test_what_melts_into_a_neighbour_has_no_kernel():
    nodes = (
        Node(kind("image"), (), 16),
        Node(kind("conv", kernel=1), (0,), 16),
        Node(kind("conv", activation="none"), (1,), 16),
        Node(kind("add"), (1, 2), 16),
        Node(kind("skip"), (3,), 16),
    )
    architecture, target = Architecture(nodes), cpu_target(32, 64, output_contract="logits")
    found = attribute(engine(architecture, target), architecture, target)
    kernels = {row.node: row.kernels for row in found.rows if row.part == "operation"}
    assert set(kernels) == {1, 2, 3}
    assert kernels[3] == ()
    assert kernels[2]
    assert found.attributed == 1


def test_a_path_is_read_and_a_missing_one_told(tmp_path, drawn, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert attribute(path, drawn, TARGET, runs=1).attributed >= 0.99
    with pytest.raises(InputError, match="cannot be read"):
        attribute(Path(tmp_path / "nothing.onnx"), drawn, TARGET)


def test_an_engine_of_another_architecture_is_refused(drawn, content):
    other = chain((kind("classifier"), 19))
    with pytest.raises(IncompatibleError, match=f"architecture {drawn.digest}; {other.digest} was given"):
        attribute(content, other, TARGET)
    with pytest.raises(IncompatibleError, match="no operation: it was made from another one"):
        attribute(engine(drawn, TARGET), other, TARGET)


def test_what_cannot_be_attributed_is_refused(drawn, content):
    refused = {
        "launching": dataclasses.replace(TARGET, options=(("provider", "CUDAExecutionProvider"),)),
        "only the profile of 'onnxruntime'": dataclasses.replace(TARGET, runtime="tensorrt"),
        "the target is batch 1, 128x128": dataclasses.replace(TARGET, height=128),
    }
    for message, target in refused.items():
        with pytest.raises(InputError, match=message):
            attribute(content, drawn, target)
    with pytest.raises(InputError, match="0 profiled runs"):
        attribute(content, drawn, TARGET, runs=0)


def test_rows_by_hand():
    architecture = chain((kind("conv"), 8), (kind("skip"), 8), (kind("classifier"), 5), (kind("skip"), 5))
    kernels = [
        Kernel("nodes.1_nchwc", "Conv", 3.0),
        Kernel("ReorderOutput_token_7", "ReorderOutput", 1.0),
        Kernel("logits_nchwc", "Conv", 2.0),
        Kernel("argmax/0.ArgMax", "ArgMax", 1.5),
        Kernel("labels", "Cast", 0.5),
        Kernel("nodes.1.v4", "Relu", 1.0),
        Kernel("Mul_68", "Mul", 1.0),
    ]
    rows = rows_of(kernels, architecture, TARGET, 20.0)
    assert [(row.part, row.node, row.ms, row.share) for row in rows] == [
        ("operation", 1, 8.0, 0.4),
        ("operation", 3, 4.0, 0.2),
        ("operation", None, 4.0, 0.2),
        ("reorder", None, 2.0, 0.1),
        ("unattributed", None, 2.0, 0.1),
    ]
    assert rows[0].kernels == ("nodes.1_nchwc", "nodes.1.v4")
    for wrong in ("nodes.2_nchwc", "nodes.17/0.Conv"):
        with pytest.raises(IncompatibleError, match=f"kernel '{wrong}'"):
            rows_of([Kernel(wrong, "Conv", 1.0)], architecture, TARGET, 1.0)
    with pytest.raises(RequirementError, match="microsecond"):
        rows_of([Kernel("nodes.1", "Conv", 0.0)], architecture, TARGET, 1.0)


def trace(runs: int) -> list[dict[str, object]]:
    """One run a millisecond, of two kernels; cold runs take ten times as long, and each run ends with its own event, as in a real trace."""
    events: list[dict[str, object]] = [{"cat": "Session", "name": "session_initialization", "ts": 1, "dur": 5}]
    for run in range(runs):
        cold = 10 if run <= VISIT or run % (VISIT + 1) == 0 else 1
        for offset, name, us in ((10, "nodes.2_nchwc", 30), (500, "nodes.10/0.Add", 4)):
            args = {"op_name": "Conv" if us == 30 else "Add"}
            events.append({"cat": "Node", "name": f"{name}_kernel_time", "ts": 1000 * run + offset, "dur": us * cold, "args": args})
        events.append({"cat": "Session", "name": "model_run", "ts": 1000 * run + 9, "dur": 900})
    return events


def test_only_warm_runs_count():
    kernels = kernels_of(trace(18), 18)
    assert [(k.name, k.op_type) for k in kernels] == [("nodes.2_nchwc", "Conv"), ("nodes.10/0.Add", "Add")]
    assert [k.ms for k in kernels] == pytest.approx([0.030, 0.004])


def test_a_trace_that_is_not_whole_is_refused():
    events = trace(12)
    nodes = [i for i, event in enumerate(events) if event["cat"] == "Node"]
    for broken in (events[:-1], events[: nodes[-1]] + events[nodes[-1] + 1 :], [e for e in events if e["cat"] != "Node"], []):
        with pytest.raises(RequirementError, match="12 whole runs are needed"):
            kernels_of(broken, 12)

"""Prices that are not monotone: which pairs can be compared, what is flagged, and that a profile measures both again."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.arch import Operation, Shape
from segnas.kinds import kind
from segnas.latency import Entry, LatencyTable, priced_operations
from segnas.latency_tables.check import check_coverage
from segnas.latency_tables.compose import PROTOCOL
from segnas.latency_tables.journal import ProfileJournal, header_of
from segnas.latency_tables.monotone import does_more, inversions
from segnas.latency_tables.profile import profile

shapes = st.builds(Shape, st.sampled_from([8, 16, 24]), st.sampled_from([4, 8]), st.sampled_from([8, 16]))
convolutions = st.builds(lambda width, shape: conv(width, shape), st.sampled_from([8, 16, 24]), shapes)


def conv(width: int, shape: Shape, name: str = "conv", **values: int) -> Operation:
    return Operation(kind(name, **values), 1, (shape._replace(channels=width),), shape)


def macs(operation: Operation) -> int:
    """Of a plain 3x3 convolution."""
    return 9 * operation.inputs[0].channels * operation.output.channels * operation.output.height * operation.output.width


@given(convolutions, convolutions)
def test_what_does_more_multiplies_more(one, other):
    assert not (does_more(one, other) and does_more(other, one))
    assert not does_more(one, one)
    if does_more(one, other):
        assert macs(one) > macs(other)
    if one.inputs[0].channels >= other.inputs[0].channels and all(a >= b for a, b in zip(one.output, other.output, strict=True)):
        assert does_more(one, other) == (one != other)


def test_what_cannot_be_compared():
    small, large = Shape(16, 8, 16), Shape(16, 16, 32)
    assert does_more(conv(16, large), conv(16, small))
    assert not does_more(conv(16, large, kernel=5), conv(16, small))
    assert not does_more(conv(16, large, "separable"), conv(16, small))
    assert not does_more(conv(16, large), replace(conv(16, small), stride=2))
    up = [Operation(kind("resize"), 1, (shape,), Shape(16, 32, 64)) for shape in (small, large)]
    assert not does_more(up[1], up[0])  # as much is written, whatever is read
    assert does_more(Operation(kind("resize"), 1, (large,), Shape(16, 64, 128)), up[0])
    assert not does_more(conv(24, small, "inverted_residual"), conv(16, small, "inverted_residual"))  # only the second adds its input


def test_only_a_difference_beyond_both_intervals_is_flagged():
    small, large = conv(16, Shape(16, 8, 16)), conv(16, Shape(16, 16, 32))
    assert not inversions({small: (1.04, 0.03), large: (1.0, 0.03)})  # 0.04 < sqrt(2) 0.03
    (found,) = inversions({small: (1.05, 0.03), large: (1.0, 0.03)})
    assert found == (small, large, 1.05, 1.0)
    assert str(found) == f"{small} 1.0500 ms, {large} 1.0000 ms"
    assert not inversions({small: (1.0, 0.0), large: (1.05, 0.0)})


@pytest.mark.parametrize("truth", ["monotone", "inverted"])
def test_both_of_a_pair_are_measured_again(make_machine, small_network, target, tmp_path, truth):
    narrow, wide = (priced_operations(small_network("separable", width=width), target) for width in (16, 32))
    blocks = [next(o for o in operations if o.op == "separable") for operations in (narrow, wide)]
    cost = {blocks[0]: 0.4 if truth == "inverted" else 0.2, blocks[1]: 0.3}
    machine = make_machine()
    before = machine.price
    machine.price = lambda operation: cost.get(operation, before(operation))
    path = tmp_path / "table.jsonl"
    table = profile(
        "tiny", blocks, target, prepare=machine.prepare, graph_sha256=lambda o: o.digest, journal=path, provenance={}, rounds=6, repeats=2
    )
    log = ProfileJournal(path, header_of("tiny", target, PROTOCOL))
    again = truth == "inverted"
    assert [len(log.records(block)) for block in blocks] == [3, 3] if again else [1, 1]  # it is the truth here, so it stays
    assert [pair[:2] for pair in check_coverage(table, blocks).inverted] == [tuple(blocks)] * again


def test_of_a_table_the_intervals_follow_from_the_spreads(target):
    small, large = conv(16, Shape(16, 8, 16)), conv(16, Shape(16, 16, 32))

    def table(spread: float) -> LatencyTable:
        prices = ((small, 0.22), (large, 0.20))
        return LatencyTable("tiny", target, tuple(Entry(o, "block", ms, spread, 48, "slope", o.digest) for o, ms in prices))

    assert check_coverage(table(0.05), [small, large]).inverted
    assert not check_coverage(table(0.15), [small, large]).inverted  # 90 %: 0.22 +- 0.018 and 0.20 +- 0.016

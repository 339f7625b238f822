"""Two tables as one: the union, at one speed, and no contradiction that goes unseen."""

from dataclasses import fields, replace
from itertools import combinations

import pytest

from segnas.arch import Operation, Shape
from segnas.errors import IncompatibleError, InputError
from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable, Probe
from segnas.latency_tables.merge import at_speed_of, merge
from segnas.latency_tables.store import content_sha256, load_table, save_table, table_text
from segnas.target import Target

SHAPE = Shape(32, 64, 128)
OPERATIONS = tuple(sorted(Operation(kind(op), 1, (SHAPE,), SHAPE) for op in ("conv", "separable", "max_pool", "avg_pool")))
TARGET = Target("test cpu", "onnxruntime", "1.0", "fp32", 256, 512)


def table(prices: dict[int, float], sentinel_ms: float | None = None, **changes) -> LatencyTable:
    """A table of `OPERATIONS` by place."""
    entries = tuple(Entry(OPERATIONS[place], "block", ms, 0.01, 90, "series 1,2,4", "a" * 64) for place, ms in prices.items())
    provenance = () if sentinel_ms is None else (("sentinel_ms", f"{sentinel_ms:.6f}"),)
    return replace(LatencyTable("tiny", TARGET, entries, provenance=provenance), **changes)


def prices(merged: LatencyTable) -> dict[int, float]:
    return {OPERATIONS.index(entry.operation): entry.median_ms for entry in merged.entries}


@pytest.mark.parametrize("split", [*combinations(range(4), 2), (), (0, 1, 2, 3)])
def test_the_union_of_two_tables_is_the_whole_one(split):
    whole = {0: 1.0, 1: 0.5, 2: 0.25, 3: 0.125}
    part = table({place: whole[place] for place in split})
    rest = table({place: ms for place, ms in whole.items() if place not in split or place == 0})
    merged = merge(part, rest)
    assert prices(merged) == whole
    assert [entry.operation for entry in merged.entries] == sorted(OPERATIONS)
    assert set(merged.entries) == set(part.entries) | set(rest.entries)


def test_it_says_what_it_was_merged_from_and_keeps_what_both_state(tmp_path):
    first = table({0: 1.0}, provenance=(("created", "monday"), ("torch", "2.13")))
    second = table({1: 2.0}, provenance=(("created", "tuesday"), ("torch", "2.13")))
    merged = merge(first, second)
    assert dict(merged.provenance) == {"torch": "2.13", "merged_from": f"{content_sha256(first)}, {content_sha256(second)}"}
    assert dict(merge(first, second, prefer="second").provenance)["merge_preferred"] == "second"
    save_table(tmp_path / "t.json", merged)
    assert load_table(tmp_path / "t.json") == merged
    assert content_sha256(first) in table_text(first)
    assert len({content_sha256(first), content_sha256(second), content_sha256(merged)}) == 3


def test_no_calibration_outlives_a_merge():
    fitted = Calibration(scale=1.25, relative_sd=0.01, probes=(Probe("abc", 10.0, 12.5),))
    assert merge(table({0: 1.0}, calibration=fitted), table({1: 1.0}, calibration=fitted)).calibration == Calibration()


def test_a_contradiction_names_the_operation_both_prices_and_the_option():
    first, second = table({0: 1.0, 1: 0.5}), table({1: 0.625, 2: 0.25})
    with pytest.raises(IncompatibleError) as caught:
        merge(first, second)
    message = str(caught.value)
    assert f"both tables price {OPERATIONS[1]}: 0.5 ms" in message
    assert "0.625 ms" in message
    assert "--prefer first or --prefer second" in message
    assert caught.value.exit_code == 6
    assert prices(merge(first, second, prefer="first")) == {0: 1.0, 1: 0.5, 2: 0.25}
    assert prices(merge(first, second, prefer="second")) == {0: 1.0, 1: 0.625, 2: 0.25}


def test_one_operation_with_two_graphs_is_a_contradiction():
    first = table({0: 1.0})
    second = replace(first, entries=(replace(first.entries[0], graph_sha256="b" * 64),))
    with pytest.raises(IncompatibleError, match=r"different graphs \(a{12} and b{12}\).*--prefer"):
        merge(first, second)
    assert merge(first, second, prefer="second").entries == second.entries


def test_what_a_call_costs_is_a_price_too():
    first, second = table({0: 1.0}, overhead_ms=0.25), table({1: 1.0}, overhead_ms=0.5)
    with pytest.raises(IncompatibleError, match=r"a call with nothing in it: 0\.25 ms .*0\.5 ms.*--prefer"):
        merge(first, second)
    assert merge(first, second, prefer="first").overhead_ms == 0.25
    assert merge(first, second, prefer="second").overhead_ms == 0.5


def test_the_seconds_prices_are_told_at_the_firsts_speed():
    """The second was measured when the machine was 1.5 times slower: the sentinel took 3 ms, and so did everything."""
    first, second = table({0: 1.0}, 2.0, overhead_ms=0.5), table({0: 1.5, 1: 0.75}, 3.0, overhead_ms=0.75)
    merged = merge(first, second)  # no contradiction: at one speed the prices are one
    assert prices(merged) == {0: 1.0, 1: 0.5}
    assert dict(merged.provenance)["sentinel_ms"] == "2.000000"
    assert merged.overhead_ms == 0.5
    backwards = merge(second, first)
    assert prices(backwards) == {0: 1.5, 1: 0.75}
    assert dict(backwards.provenance)["sentinel_ms"] == "3.000000"
    assert merge(first, second, prefer="second").overhead_ms == pytest.approx(0.5)
    with pytest.raises(IncompatibleError, match=r"1 ms and, at the same speed, 0\.666667 ms"):
        merge(first, table({0: 1.0}, 3.0, overhead_ms=0.75))


def test_tables_of_one_speed_are_taken_as_they_are():
    one = table({0: 0.1 + 0.2}, 2.0)
    assert at_speed_of(one, table({}, 2.0)) is one
    assert at_speed_of(table({0: 1.0}), table({})).entries == table({0: 1.0}).entries


@pytest.mark.parametrize(("mine", "theirs"), [(2.0, None), (None, 2.0)])
def test_a_speed_that_only_one_states_is_refused(mine, theirs):
    with pytest.raises(IncompatibleError, match="sentinel_ms"):
        merge(table({0: 1.0}, mine), table({1: 1.0}, theirs))


def test_a_speed_that_is_no_time_is_refused():
    with pytest.raises(InputError, match="a positive number is needed"):
        merge(table({0: 1.0}, 2.0), table({1: 1.0}, 0.0))


OTHERS = {
    "device": "another cpu",
    "runtime": "torch",
    "runtime_version": "2.0",
    "precision": "fp16",
    "height": 128,
    "width": 1024,
    "batch": 2,
    "threads": 4,
    "input_contract": "image",
    "output_contract": "logits",
    "scope": "gpu",
    "options": (("spinning", "off"),),
}


def test_every_field_of_a_target_is_tried():
    assert set(OTHERS) == {f.name for f in fields(Target)}


@pytest.mark.parametrize("prefer", [None, "first", "second"])
@pytest.mark.parametrize("name", OTHERS)
def test_another_target_is_refused_by_the_field_that_differs(name, prefer):
    second = table({1: 1.0}, target=replace(TARGET, **{name: OTHERS[name]}))
    with pytest.raises(IncompatibleError, match=rf"\({name}: .*{OTHERS[name] if isinstance(OTHERS[name], str) else ''}.*segnas profile tiny"):
        merge(table({0: 1.0}), second, prefer=prefer)


def test_another_space_is_refused():
    with pytest.raises(IncompatibleError, match=r"\(space: 'tiny' and 'cas'\)"):
        merge(table({0: 1.0}), table({1: 1.0}, space="cas"), prefer="first")

"""A table on a new device of the same family: one factor from a few networks, and what cannot be moved."""

from dataclasses import replace

import pytest

from segnas.errors import IncompatibleError, InputError
from segnas.latency import Entry, LatencyTable, priced_operations
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.latency_tables.transfer import transferred

CHOICES = ("separable", "max_pool", "conv", "avg_pool", "zoomed_conv")


@pytest.fixture
def networks(small_network):
    return tuple(small_network(a, b) for i, a in enumerate(CHOICES) for b in CHOICES[i:])


@pytest.fixture
def table(networks, target, machine) -> LatencyTable:
    operations = dict.fromkeys(o for network in networks for o in priced_operations(network, target) if not o.is_free)
    entries = tuple(Entry(o, "block", machine.price(o), 0.01, 100, "series", "0") for o in operations)
    sentinel = machine.true_ms(sentinel_architecture(), sentinel_target(target))
    return LatencyTable("tiny", target, entries, provenance=(("sentinel_ms", f"{sentinel:.6f}"),))


def test_a_device_that_is_slower_by_a_factor(table, networks, target, make_machine, machine):
    elsewhere = replace(target, device="a slower cpu")
    slower = make_machine(price=lambda operation: 1.6 * machine.price(operation), noise=0.01, overhead_ms=0.0)
    made = transferred(table, elsewhere, networks[:5], prepare=slower.prepare)
    assert made.target == elsewhere
    assert {entry.source for entry in made.entries} == {"transferred"}
    for before, after in zip(table.entries, made.entries, strict=True):
        assert after.median_ms == pytest.approx(1.6 * before.median_ms, rel=0.02)
    for network in networks[5:]:
        assert made.estimate(network).total_ms == pytest.approx(slower.true_ms(network, elsewhere), rel=0.02)
    assert made.provenance_of("transferred_device") == "test cpu"


def test_what_an_earlier_calibration_learnt_of_entries_moves_along(table, networks, target, machine):
    learnt = replace(
        table, calibration=replace(table.calibration, scale=1.1, level="entries", corrections=((table.entries[0].operation.digest, 0.2),))
    )
    made = transferred(learnt, target, networks[:5], prepare=machine.prepare)
    ratios = [after.median_ms / before.median_ms for before, after in zip(table.entries, made.entries, strict=True)]
    assert ratios[0] / ratios[1] == pytest.approx(1.2, rel=1e-6)


@pytest.mark.parametrize(("field", "value"), [("height", 256), ("precision", "fp16"), ("runtime", "torch"), ("output_contract", "logits")])
def test_what_one_factor_cannot_follow_is_refused(table, networks, target, machine, field, value):
    with pytest.raises(IncompatibleError, match=f"{field}: the table has"):
        transferred(table, replace(target, **{field: value}), networks, prepare=machine.prepare)
    assert machine.opened == 0


def test_too_few_networks_and_missing_entries_are_refused_before_the_clock(table, networks, target, machine, small_network):
    with pytest.raises(InputError, match="at least 3 are needed"):
        transferred(table, target, [networks[0]] * 5, prepare=machine.prepare)
    with pytest.raises(IncompatibleError, match="has no entry"):
        transferred(table, target, [*networks, small_network("inverted_residual")], prepare=machine.prepare)
    assert machine.opened == 0

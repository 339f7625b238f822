"""Checking a table against a machine whose true costs are known and may have changed since."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest

from segnas.arch import Operation, Shape
from segnas.errors import IncompatibleError, InputError
from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable, Probe, priced_operations
from segnas.latency_tables.compose import reference_ms
from segnas.latency_tables.live import (
    EntryCheck,
    LiveCheck,
    at_most,
    check_live,
    live_entries,
    median_interval,
    missed_by_chance,
    rescaled,
)
from segnas.latency_tables.probes import entry_kind
from segnas.latency_tables.profile import profile
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.target import Target


def sha256(operation: Operation) -> str:
    return operation.digest


@pytest.fixture
def small(target) -> Target:
    return replace(target, height=32, width=64)


@pytest.fixture
def table(machine, small_network, small, tmp_path) -> LatencyTable:
    """Some twenty entries of every kind, measured on the quiet machine."""
    networks = [small_network("separable", "max_pool", width=width) for width in (32, 64)]
    operations = list(dict.fromkeys(o for network in networks for o in priced_operations(network, small)))
    return profile("tiny", operations, small, prepare=machine.prepare, graph_sha256=sha256, journal=tmp_path / "j", provenance={"cpu": "made up"})


@pytest.fixture
def slowed(make_machine, machine, small) -> Callable[..., LiveCheck]:
    """Check a table on a machine where operations cost `factor(operation)` times as much, the sentinel's own `sentinel` times."""

    def checked(table: LatencyTable, factor: Callable[[Operation], float], sentinel: float = 1.0, noise: float = 0.0, **options) -> LiveCheck:
        inside = set(sentinel_architecture().operations(*sentinel_size(small)))
        changed = make_machine(price=lambda o: machine.price(o) * (sentinel if o in inside else factor(o)), noise=noise)
        changed.overhead_ms = machine.overhead_ms * sentinel
        found = check_live(table, prepare=changed.prepare, graph_sha256=sha256, **options)
        assert changed.opened == changed.closed
        return found

    return checked


def sentinel_size(target: Target) -> tuple[int, int]:
    made = sentinel_target(target)
    return made.height, made.width


def test_the_same_machine_is_the_same(slowed, table):
    found = slowed(table, lambda o: 1.0)
    assert (found.verdict, found.action) == ("same", "keep")
    assert found.space == "tiny"
    assert len(found.entries) == 12
    assert found.ratio == pytest.approx(1, abs=2e-3)
    assert found.sentinel_ratio == pytest.approx(1, abs=1e-4)
    assert (found.outside, found.apart) == (0, 0)
    assert all(c.low < c.ratio < c.high for c in found.entries)
    assert all(c.before_ms == table.entry(c.operation).median_ms for c in found.entries)
    assert "true here" in found.advice


@pytest.mark.parametrize("factor", [0.5, 1.3, 3.0])
def test_a_speed_that_the_sentinel_shares_is_the_same(slowed, table, factor):
    found = slowed(table, lambda o: factor, sentinel=factor)
    assert (found.verdict, found.action) == ("same", "keep")
    assert found.sentinel_ratio == pytest.approx(factor, rel=1e-3)
    assert found.ratio == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize(("factor", "verdict"), [(1.12, "slower"), (2.0, "slower"), (0.8, "faster")])
def test_a_factor_that_the_sentinel_does_not_share_offers_to_rescale(slowed, table, factor, verdict):
    found = slowed(table, lambda o: factor)
    assert (found.verdict, found.action) == (verdict, "rescale")
    assert found.ratio == pytest.approx(factor, rel=5e-3)
    assert found.low <= found.ratio <= found.high
    assert found.sentinel_ratio == pytest.approx(1, abs=1e-4)
    assert found.apart == 0
    assert found.outside == 12
    assert f"`segnas tables rescale TABLE --factor {found.ratio:.4f}" in found.advice
    again = slowed(rescaled(table, found.ratio), lambda o: factor)
    assert (again.verdict, again.action) == ("same", "keep")


@pytest.mark.parametrize("kind_", ["block", "junction", "fixed"])
@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_one_kind_that_changed_makes_the_table_stale(slowed, table, small, kind_, factor):
    found = slowed(table, lambda o: factor if entry_kind(o, small) == kind_ else 1.0)
    assert (found.verdict, found.action) == ("unclear", "profile")
    assert found.apart >= 4
    assert "`segnas profile tiny --size 32x64 --threads 1`" in found.advice


def test_one_entry_that_doubled_makes_the_table_stale(slowed, table):
    victim = live_entries(table)[0].operation
    found = slowed(table, lambda o: 2.0 if o == victim else 1.0)
    assert (found.action, found.apart) == ("profile", 1)


def test_all_slower_but_apart_is_slower_and_stale(slowed, table, small):
    found = slowed(table, lambda o: 2.0 if entry_kind(o, small) == "block" else 1.3)
    assert (found.verdict, found.action) == ("slower", "profile")


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_unclear(slowed, table, seed):
    found = slowed(table, lambda o: 1.0, noise=0.6, seed=seed)
    assert (found.verdict, found.action) == ("unclear", "repeat")
    assert "close other programs" in found.advice


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_little_noise_does_no_harm(slowed, table, seed):
    assert slowed(table, lambda o: 1.0, noise=0.01, seed=seed).verdict == "same"
    assert slowed(table, lambda o: 1.4, noise=0.01, seed=seed).action == "rescale"


def test_a_change_at_the_edge_of_the_tolerance_is_unclear(slowed, table, small):
    found = slowed(table, lambda o: 1.055 if entry_kind(o, small) == "block" else 1.0)
    assert (found.verdict, found.action, found.apart) == ("unclear", "repeat", 0)


def test_each_check_has_a_journal_of_its_own(slowed, table, tmp_path):
    folder = tmp_path / "checks"
    for _ in range(2):
        slowed(table, lambda o: 1.0, entries=3, journal_folder=folder)
    journals = sorted(folder.iterdir())
    assert len(journals) == 2
    for path in journals:
        header, *records = [json.loads(line) for line in path.read_text().splitlines()]
        assert header["space"] == "tiny"
        assert len(records) >= 3


def test_progress_is_told(slowed, table):
    seen: list[tuple[int, int]] = []
    slowed(table, lambda o: 1.0, entries=2, progress=lambda done, total, operation: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] >= 2


def test_what_cannot_be_checked_is_refused(machine, table):
    opened = machine.opened
    foreign = replace(table, provenance=(("cpu", "made up"),))
    edited = replace(table, entries=tuple(replace(e, graph_sha256="0" * 64) for e in table.entries))
    older = replace(table, provenance=tuple((k, "segnas.slope/0" if k == "protocol" else v) for k, v in table.provenance))
    nameless = replace(table, provenance=tuple(pair for pair in table.provenance if pair[0] != "protocol"))
    refused = (
        (foreign, InputError, "no sentinel time"),
        (edited, IncompatibleError, "another graph"),
        (older, IncompatibleError, "segnas.slope/0"),
        (nameless, IncompatibleError, "by which protocol"),
    )
    for wrong, error, message in refused:
        with pytest.raises(error, match=f"{message}.*`segnas profile tiny --size 32x64"):
            check_live(wrong, prepare=machine.prepare, graph_sha256=sha256)
    with pytest.raises(InputError, match="0 of"):
        check_live(table, prepare=machine.prepare, graph_sha256=sha256, entries=0)
    assert machine.opened == opened


def made_up(counts: dict[str, int], **changes) -> LatencyTable:
    """A table of so many entries a kind, priced 1, 2, ... ms."""
    entries: list[Entry] = []
    for name, count in counts.items():
        for index in range(count):
            shape = Shape(len(entries) + 1, 8, 8)
            operation = Operation(kind("conv"), 1, (shape,), shape)
            entries.append(Entry(operation, name, index + 1.0, 0.05, 50, "series 1,2,4", operation.digest, **changes))
    return LatencyTable("made", Target("cpu", "onnxruntime", "1", "fp32", 32, 64), tuple(entries))


def test_entries_are_spread_over_kinds_and_prices():
    table = made_up({"block": 40, "junction": 20, "fixed": 3})
    for seed in range(20):
        chosen = live_entries(table, 12, seed)
        assert chosen == live_entries(table, 12, seed)
        assert len(set(chosen)) == 12
        assert Counter(e.kind for e in chosen) == {"block": 5, "junction": 4, "fixed": 3}
        blocks = [e.median_ms for e in chosen if e.kind == "block"]
        assert all(8 * i < ms <= 8 * (i + 1) for i, ms in enumerate(blocks))
    assert len({live_entries(table, 12, seed) for seed in range(20)}) > 10
    assert Counter(e.kind for e in live_entries(table, 100)) == {"block": 40, "junction": 20, "fixed": 3}
    assert {e.kind for e in live_entries(made_up({"block": 3}), 12)} == {"block"}


def test_the_better_resolved_half_is_drawn_from():
    table = made_up({"block": 24})
    noisy = replace(table, entries=tuple(replace(e, spread=0.05 + 0.5 * (i % 2)) for i, e in enumerate(table.entries)))
    assert {e.spread for seed in range(20) for e in live_entries(noisy, 6, seed)} == {0.05}


def test_entries_that_say_nothing_are_left_out():
    unsure, measured = made_up({"block": 4}), made_up({"junction": 2})
    entries = (*(replace(e, spread=1.0) for e in unsure.entries[:2]), *(replace(e, source="interpolated") for e in unsure.entries[2:]))
    assert {e.kind for e in live_entries(replace(measured, entries=(*entries, *measured.entries)))} == {"junction"}
    with pytest.raises(InputError, match=r"12 of 0 measured entries.*segnas profile"):
        live_entries(replace(measured, entries=entries))


def test_rescaling_multiplies_every_price_and_says_so(table):
    before = replace(table, overhead_ms=0.5, calibration=Calibration(1.1, 0.02, (Probe("a" * 12, 1.0, 1.1),), "scale"))
    after = rescaled(before, 1.25)
    assert [e.median_ms / b.median_ms for e, b in zip(after.entries, before.entries, strict=True)] == pytest.approx([1.25] * len(table.entries))
    assert [replace(e, median_ms=0.0) for e in after.entries] == [replace(e, median_ms=0.0) for e in before.entries]
    assert after.overhead_ms == pytest.approx(0.625)
    assert after.calibration == Calibration(1.1, 0.02, (), "scale")
    assert dict(after.provenance) == dict(before.provenance) | {"rescaled": "1.250000"}
    assert dict(rescaled(after, 0.4).provenance)["rescaled"] == "0.500000"
    assert reference_ms(after) == reference_ms(before)
    assert rescaled(before, 2.0).target == before.target
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="positive"):
            rescaled(table, wrong)


@pytest.mark.parametrize("level", ["scale", "kinds", "entries"])
def test_a_rescaled_table_estimates_that_much_more(table, small, small_network, level):
    networks = [small_network(*ops, width=width) for ops in (("separable",), ("max_pool",), ("separable", "max_pool")) for width in (32, 64)]
    fitted = table.calibrated([table.probe(a, (1 + 0.01 * i) * table.raw_sum_ms(a)) for i, a in enumerate(networks)], level)
    after = rescaled(fitted, 1.25)
    for network in networks:
        assert after.estimate(network).total_ms == pytest.approx(1.25 * fitted.estimate(network).total_ms)
        assert after.estimate(network).low_ms < after.estimate(network).total_ms < after.estimate(network).high_ms
    assert (after.calibration.level, after.calibration.corrections) == (level, fitted.calibration.corrections)


def test_binomial_tails_by_enumeration():
    for trials, chance in product((1, 4, 7), (0.1, 0.5)):
        weights = dict.fromkeys(range(trials + 1), 0.0)
        for outcome in product((0, 1), repeat=trials):
            weights[sum(outcome)] += chance ** sum(outcome) * (1 - chance) ** (trials - sum(outcome))
        for most in range(trials + 1):
            assert at_most(most, trials, chance) == pytest.approx(sum(weights[k] for k in range(most + 1)))
    assert [missed_by_chance(n) for n in (1, 3, 12)] == [1, 1, 3]


def checks_of(ratios: list[float]) -> list[EntryCheck]:
    shape = Shape(1, 8, 8)
    return [EntryCheck(Operation(kind("conv"), 1, (shape,), shape), "block", 1.0, r, r, 0.9 * r, 1.1 * r) for r in ratios]


def test_the_interval_holds_the_median_often_enough():
    dice = random.Random(0)
    for count in (5, 10, 12):
        held = 0
        for _ in range(1000):
            low, high = median_interval(checks_of([math.exp(dice.gauss(0, 0.1)) for _ in range(count)]))
            held += low <= 1 <= high
        assert 0.83 <= held / 1000 <= 0.98
    assert median_interval(checks_of([1.0, 1.2])) == pytest.approx((0.9, 1.32))

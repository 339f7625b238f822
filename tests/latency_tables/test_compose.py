"""Whole networks: measured in the sentinel's units, and the scale that they give a table."""

from dataclasses import replace
from random import Random
from typing import NamedTuple

import pytest

from segnas.arch import Architecture, Node
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.kinds import kind
from segnas.latency import Entry, LatencyTable, priced_operations
from segnas.latency_tables.compose import calibrate, residuals
from segnas.latency_tables.measure import measure, measure_all
from segnas.latency_tables.sentinel import SENTINELS, Interleaver, Visit, alone_ms, interleaved, sentinel_architecture, sentinel_target, steady_rounds

CHOICES = ("separable", "max_pool", "conv", "avg_pool", "zoomed_conv")


@pytest.fixture
def networks(small_network):
    return tuple(small_network(a, b) for i, a in enumerate(CHOICES) for b in CHOICES[i:])


def table_of(networks, target, machine, factor: float = 1.0) -> LatencyTable:
    operations = dict.fromkeys(o for network in networks for o in priced_operations(network, target) if not o.is_free)
    entries = tuple(Entry(o, "block", machine.price(o) * factor, 0.01, 100, "made up", "0") for o in operations)
    sentinel = machine.true_ms(sentinel_architecture(), sentinel_target(target))
    return LatencyTable("tiny", target, entries, provenance=(("sentinel_ms", f"{sentinel:.6f}"),))


def test_measure_on_a_quiet_machine(machine, small_network, target):
    measured = measure(small_network("conv"), target, prepare=machine.prepare)
    assert measured.median_ms == pytest.approx(machine.true_ms(small_network("conv"), target), rel=1e-5)
    assert measured.relative_sd < 1e-6
    assert machine.opened == machine.closed == SENTINELS + 1


def test_measure_tells_what_it_would_be_at_the_reference_speed(make_machine, small_network, target):
    nominal = make_machine().true_ms(sentinel_architecture(), sentinel_target(target))
    slow = make_machine(price=lambda operation: 1.3 * make_machine().price(operation), overhead_ms=0.026)
    measured = measure(small_network("conv"), target, prepare=slow.prepare, sentinel_ref_ms=nominal)
    assert measured.median_ms == pytest.approx(make_machine().true_ms(small_network("conv"), target), rel=1e-5)


def test_its_standard_deviation_is_honest(make_machine, small_network, target):
    truth = make_machine().true_ms(small_network("conv"), target)
    nominal = make_machine().true_ms(sentinel_architecture(), sentinel_target(target))
    found = [
        measure(small_network("conv"), target, prepare=make_machine(noise=0.03, drift=0.1, stalls=0.02, seed=s).prepare, sentinel_ref_ms=nominal)
        for s in range(30)
    ]
    inside = sum(abs(m.median_ms / truth - 1) < 3 * m.relative_sd for m in found)
    assert inside >= 24
    assert sum(abs(m.median_ms / truth - 1) for m in found) / len(found) < 0.02


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_the_scale_is_recovered(make_machine, networks, target, factor):
    machine = make_machine(noise=0.02, drift=0.05, stalls=0.01, overhead_ms=0.0)
    table = calibrate(table_of(networks, target, machine, factor), networks[:8], prepare=machine.prepare)
    assert table.calibration.scale == pytest.approx(1 / factor, rel=0.015)
    assert table.calibration.relative_sd < 0.03
    assert len(table.calibration.probes) == 8
    held_out = measure_all(networks[8:], target, prepare=make_machine(overhead_ms=0.0).prepare)
    assert max(abs(r.relative) for r in residuals(table, networks[8:], held_out)) < 0.02


def test_calibration_measures_nothing_where_an_entry_is_missing(machine, networks, target, small_network):
    table = table_of(networks, target, machine)
    with pytest.raises(IncompatibleError, match="segnas profile tiny"):
        calibrate(table, [*networks, small_network("inverted_residual")], prepare=machine.prepare)
    assert machine.opened == 0


def test_calibration_needs_a_network(machine, networks, target):
    with pytest.raises(InputError, match="no networks"):
        calibrate(table_of(networks, target, machine), [], prepare=machine.prepare)


def test_an_interrupted_calibration_repeats_no_network(machine, networks, target):
    table, kept = table_of(networks, target, machine), {}

    def stopping(digest: str, ms: float) -> None:
        kept[digest] = ms
        if len(kept) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(table, networks, prepare=machine.prepare, keep=stopping)
    opened, again = machine.opened, dict(kept)
    found = calibrate(table, networks, prepare=machine.prepare, known=kept, keep=again.__setitem__)
    assert len(again) == len(networks) == 15
    assert machine.opened - opened == 5 + SENTINELS, "what was left, and the sentinel"
    assert found == calibrate(table, networks, prepare=machine.prepare)


def test_the_same_network_twice_is_measured_once(machine, networks, target):
    calibrate(table_of(networks, target, machine), [networks[0], networks[0]], prepare=machine.prepare)
    assert machine.opened == SENTINELS + 1


def test_networks_are_closed_when_one_cannot_be_prepared(machine, networks, target):
    def prepare(architecture, target):
        if architecture == networks[2]:
            raise RequirementError("no room")
        return machine.prepare(architecture, target)

    with pytest.raises(RequirementError):
        measure_all(networks[:4], target, prepare=prepare)
    assert machine.opened == machine.closed == SENTINELS + 2


def test_a_clock_that_gives_nothing_is_refused(target):
    class Broken:
        def sample(self, runs: int) -> tuple[float, ...]:
            return (0.0,) * runs

        def close(self) -> None: ...

    class Working(Broken):
        def sample(self, runs: int) -> tuple[float, ...]:
            return (1.0,) * runs

    interleaver = Interleaver([Working()], target)
    interleaver.begin()
    with pytest.raises(RequirementError, match="clock"):
        interleaver.visit(Broken(), 3)


@pytest.mark.parametrize(
    ("sample", "wall", "busy", "expected"),
    [
        (10.0, 10.1, 10.09, 10.0),  # the core to itself
        (10.0, 10.1, 10.0, 10.0),  # 1 % is what clocks cost
        (14.0, 14.1, 10.1, 10.0),  # somebody else had it for 4 ms
        (0.1, 0.115, 0.1, 0.1),  # microseconds are the clocks' own
        (10.0, 0.2, 0.1, 10.0),  # a clock that is not the machine's
    ],
)
def test_time_without_the_core_does_not_count(monkeypatch, sample, wall, busy, expected):
    clocks = iter([(100.0, 50.0), (100.0 + wall, 50.0 + busy)])
    monkeypatch.setattr("segnas.latency_tables.sentinel.clocks_ms", lambda: next(clocks))

    class Once:
        def sample(self, runs: int) -> tuple[float, ...]:
            return (sample,) * runs

        def close(self) -> None: ...

    assert alone_ms(Once()) == pytest.approx(expected)


def test_several_threads_are_sampled_in_one_go(target):
    asked: list[int] = []

    class Counting:
        def sample(self, runs: int) -> tuple[float, ...]:
            asked.append(runs)
            return (10.0,) * runs

        def close(self) -> None: ...

    for threads in (1, 2):
        Interleaver([Counting()], replace(target, threads=threads)).visit(Counting(), 3)
    assert asked == [*([1] * (4 + 2)), 4, 2]


def test_a_turn_counts_with_its_fastest_run(target):
    """Neighbours make runs slower, never faster: with a third of all runs disturbed by up to 40 % a reading is right to a third of a percent."""
    dice = Random(5)

    class Disturbed(NamedTuple):
        ms: float

        def sample(self, runs: int) -> tuple[float, ...]:
            return tuple(self.ms * (dice.uniform(1, 1.4) if dice.random() < 1 / 3 else dice.uniform(1, 1.001)) for _ in range(runs))

        def close(self) -> None: ...

    def prepare(architecture: Architecture, _) -> Disturbed:
        return Disturbed(3.0 if architecture == sentinel_architecture() else 9.0)

    network = Architecture((Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8)))
    found = measure(network, replace(target, threads=2), prepare=prepare, sentinel_ref_ms=3.0)
    assert found.median_ms == pytest.approx(9.0, rel=0.003)
    assert found.raw_ms > 9.1, "what the clock said is told as it was"


def test_the_sentinel_is_read_after_a_long_turn_and_after_several_short_ones(target):
    read: list[int] = []

    class Lasting(NamedTuple):
        ms: float

        def sample(self, runs: int) -> tuple[float, ...]:
            return (self.ms,) * runs

        def close(self) -> None: ...

    class Sentinel(Lasting):
        def sample(self, runs: int) -> tuple[float, ...]:
            read.append(runs)
            return (self.ms,) * runs

    interleaver = Interleaver([Sentinel(7.0)], replace(target, threads=2))
    interleaver.begin()
    after: list[int] = []
    for ms in (4.0, 4.0, 4.0, 4.0, 30.0, 4.0):  # two runs each, one of which is not kept
        read.clear()
        assert interleaver.visit(Lasting(ms), 1).took_ms == 2 * ms
        after.append(len(read))
    assert after == [0, 0, 0, 1, 1, 0]


def test_sentinels_are_read_in_turn_and_each_is_warm(target):
    """Their median is taken, so that none that came to lie well or ill decides."""
    read: list[float] = []

    class Lying(NamedTuple):
        ms: float

        def sample(self, runs: int) -> tuple[float, ...]:
            read.append(self.ms)
            return (self.ms,) * runs

        def close(self) -> None: ...

    found = Interleaver([Lying(30.0), Lying(33.0), Lying(31.0)], replace(target, threads=2))
    found.begin()
    assert read[:3] == [30.0, 33.0, 31.0], "each runs before one is read"
    assert sorted(read[3:]) == [30.0, 31.0, 33.0]
    for _ in range(4):
        assert found.visit(Lying(40.0), 1).sentinel_ms == 31.0
    assert [ms for ms in read[6:] if ms != 40.0] == [30.0, 33.0, 31.0, 30.0]


def test_a_gpu_has_one_sentinel_and_a_core_several(machine, target):
    for scope, count in (("end_to_end", SENTINELS), ("gpu", 1)):
        opened = machine.opened
        with interleaved(replace(target, scope=scope), machine.prepare):
            assert machine.opened - opened == count
        assert machine.closed == machine.opened


def test_the_sentinel_grows_with_the_threads(target):
    assert sentinel_target(replace(target, threads=4)).height == 4 * sentinel_target(target).height
    assert sentinel_target(replace(target, input_contract="image")).output_contract == "logits"


def test_rounds_with_a_disturbed_sentinel_are_left_out():
    calm, stormy = Visit(2.5, (1.0,)), Visit(3.5, (1.4,))
    assert steady_rounds([[calm, calm, stormy, calm], [calm, calm, calm, calm]]) == [0, 1, 3]
    assert steady_rounds([[calm, stormy, stormy, calm], [stormy, calm, calm, calm]]) == [0, 1, 2, 3]  # too few would be left

"""Budgets: what their texts mean, and that the network that meets one was measured to meet it, whatever the table believed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from random import Random

import pytest
import torch

from segnas.arch import Architecture
from segnas.errors import InputError, UsageError
from segnas.kinds import kind
from segnas.latency import Calibration, LatencyTable, Probe
from segnas.search.budget import Measurement, Met, bounds, budget_ms, meet_budget
from segnas.search.prices import prices
from segnas.search.space import Space
from segnas.search.spaces.cells import cell
from segnas.search.spaces.stacked import Head, stack
from segnas.timing import Measured, percentile

SEEDS = range(6)


@pytest.fixture(scope="module")
def space() -> Space:
    """2304 networks, which are searched whole, at prices that lie closely."""
    stem, head = kind("stem", unit="separable", width=8), Head(kind("pyramid_pool"), 16, 8, 1)
    few = (kind("none"), kind("max_pool"), kind("conv"))
    build = partial(cell, candidates=few)
    return stack("small", 7, cells="RNRN", widths=(8, 16, 24), stem=stem, stem_stride=8, head=head, shared=True, build=build)


@pytest.fixture(scope="module")
def table(space: Space, made_up_table: Callable[[Space], LatencyTable]) -> LatencyTable:
    """Priced without error, what is fixed cheaply; a calibration on ten networks, as a profile leaves it, which one more probe hardly moves."""
    made = unmerged(replace(made_up_table(space), calibration=Calibration()))
    factors = {kind("conv"): 1.0, kind("max_pool"): 0.3}
    made = replace(made, entries=tuple(replace(e, median_ms=e.median_ms * factors.get(e.operation.kind, 0.01)) for e in made.entries))
    rng, probes = Random(9), list[Probe]()
    for _ in range(10):
        architecture = space.decode(space.random(rng)).architecture
        sum_ms = made.raw_sum_ms(architecture)
        probes.append(Probe(architecture.digest, sum_ms, sum_ms * (1 + 0.02 * rng.gauss(0, 1))))
    return made.calibrated(probes)


def unmerged(table: LatencyTable) -> LatencyTable:
    """On a target that computes each operation, however often it comes: a sum of prices is what a network takes."""
    return replace(table, target=replace(table.target, options=(("optimisation", "none"),)))


def estimates(space: Space, table: LatencyTable, seed: int, count: int = 200) -> list[float]:
    rng = Random(seed)
    return [table.estimate(space.decode(space.random(rng)).architecture).total_ms for _ in range(count)]


@pytest.fixture(scope="module")
def middling(space: Space, table: LatencyTable) -> float:
    """A budget that half of the random networks meet."""
    return percentile(estimates(space, table, 1), 50)


@dataclass
class Clock:
    """A machine that the table is wrong about: `bias` for all networks, `noise` for each measurement, and strays: number of measurement -> factor."""

    table: LatencyTable
    bias: float = 0.0
    noise: float = 0.01
    seed: int = 0
    strays: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        self.rng, self.measured = Random(self.seed), list[tuple[str, float]]()

    def __call__(self, architecture: Architecture) -> Measured:
        true = self.table.estimate(architecture).total_ms * (1 + self.bias)
        ms = true * (1 + self.noise * self.rng.gauss(0, 1)) * (self.strays or {}).get(len(self.measured), 1.0)
        self.measured.append((architecture.digest, ms))
        return Measured(ms, self.noise)


def scores(space: Space, seed: int) -> dict[str, tuple[float, ...]]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: 1.5 * torch.randn(size, generator=generator) for name, size in space.decisions.items()}
    return {name: tuple(torch.log_softmax(values, 0).tolist()) for name, values in drawn.items()}


def met(space: Space, clock: Clock, budget: float, seed: int = 0, told: list[Measurement] | None = None) -> Met:
    on_measured = None if told is None else told.append
    return meet_budget(space, scores(space, seed), clock.table, prices(space, clock.table, budget), measure=clock, seed=seed, on_measured=on_measured)


# ---- texts


@pytest.mark.parametrize(("text", "ms"), [("8", 8.0), ("8ms", 8.0), (" 8.5 MS ", 8.5), ("120fps", 1000 / 120), ("0.5 FPS", 2000.0), ("1e1", 10.0)])
def test_milliseconds_and_frames_a_second(space: Space, table: LatencyTable, text: str, ms: float) -> None:
    assert budget_ms(text, space, table, 0) == pytest.approx(ms, rel=1e-15)


@pytest.mark.parametrize("seed", [0, 7])
def test_a_percentile_is_that_of_200_random_networks_by_the_table(space: Space, table: LatencyTable, seed: int) -> None:
    expected = sorted(estimates(space, table, seed))
    assert budget_ms("p35", space, table, seed) == expected[69]  # trtexec's rule: 130 of 200 lie above
    assert budget_ms("P0", space, table, seed) == expected[0]
    assert budget_ms("p100", space, table, seed) == expected[-1]
    slower = replace(table, calibration=Calibration(table.calibration.scale * 2))
    assert budget_ms("p35", space, slower, seed) == pytest.approx(2 * expected[69])


@pytest.mark.parametrize(
    "text",
    [*("", "fast", "ms", "fps", "p", "p-1", "p101", "pnan", "8s", "8 ms fps", "35p", "0", "-8", "0ms", "-3fps", "0fps"), *("nan", "inf", "inffps")],
)
def test_other_texts_are_refused_by_their_name(space: Space, table: LatencyTable, text: str) -> None:
    with pytest.raises(UsageError, match=f"^budget '{text}' was given; "):
        budget_ms(text, space, table, 0)


# ---- meeting one


@pytest.mark.parametrize("bias", [-0.2, 0.0, 0.2])
def test_a_biased_table_still_ends_in_the_window(space: Space, table: LatencyTable, middling: float, bias: float) -> None:
    landed = 0
    for seed in SEEDS:
        clock = Clock(table, bias, seed=seed)
        found = met(space, clock, middling, seed)
        low, high = bounds(clock.noise)
        assert (low - 0.02) * middling <= found.measured_ms <= middling
        landed += low * middling <= found.measured_ms <= high * middling
        assert 1 <= len(found.measurements) <= 5
        assert dict(clock.measured)[found.derived.architecture.digest] == found.measured_ms
        assert space.decode(found.genotype).architecture == found.derived.architecture
    assert landed >= len(SEEDS) - 1  # in a window of two standard deviations, which a measurement misses now and then


def test_an_exact_table_needs_one_measurement(space: Space, table: LatencyTable, middling: float) -> None:
    """In a window as wide as the gaps between the prices of so small a space."""
    for seed in SEEDS:
        limits, exact = prices(space, table, middling), Clock(table, noise=0.0)
        assert len(meet_budget(space, scores(space, seed), table, limits, measure=exact, seed=seed, window=0.02).measurements) == 1


@pytest.mark.parametrize("bias", [0.0, 0.2])
@pytest.mark.parametrize(("number", "factor"), [(0, 2.0), (1, 2.0), (0, 0.5)])
def test_one_stray_measurement_does_not_end_the_search(
    space: Space, table: LatencyTable, middling: float, bias: float, number: int, factor: float
) -> None:
    for seed in SEEDS[:2]:
        found = met(space, Clock(table, bias, seed=seed, strays={number: factor}), middling, seed)
        assert 0.90 * middling <= found.measured_ms <= middling
        assert len(found.measurements) <= 5


def test_every_measurement_is_told_once_and_in_order(space: Space, table: LatencyTable, middling: float) -> None:
    for seed in SEEDS[:3]:
        clock, told = Clock(table, 0.2, seed=seed, strays={1: 1.5}), list[Measurement]()
        found = met(space, clock, middling, seed, told)
        assert len(told) > 1
        assert tuple(told) == found.measurements
        assert [(m.digest, m.measured_ms) for m in told] == clock.measured
        assert len({m.digest for m in told}) == len(told)
        assert told[0].predicted_ms == pytest.approx(table.estimate(_network(space, clock, seed, middling)).total_ms)
        probes = {probe.digest: probe.measured_ms for probe in found.table.calibration.probes}
        assert {m.digest: m.measured_ms for m in told}.items() <= probes.items()
        assert len(probes) == 10 + len(told)


def _network(space: Space, clock: Clock, seed: int, budget: float) -> Architecture:
    """The network that is measured first: the one that ends a search on an exact clock."""
    return met(space, Clock(clock.table, noise=0.0), budget, seed).derived.architecture


def test_equal_measurements_give_an_equal_result(space: Space, table: LatencyTable, middling: float) -> None:
    first, second = (met(space, Clock(table, -0.2, seed=4), middling, 4) for _ in range(2))
    assert first.genotype == second.genotype
    assert first.measurements == second.measurements
    assert first.table == second.table


# ---- budgets that cannot be met


def test_a_budget_below_all_prices_is_refused_before_anything_is_measured(space: Space, table: LatencyTable) -> None:
    clock = Clock(table)
    with pytest.raises(InputError, match="no network of 'small' was found within"):
        met(space, clock, 1.0)
    assert clock.measured == []


def test_a_machine_that_is_slower_than_the_table_says_so_after_measuring(space: Space, table: LatencyTable) -> None:
    fastest = min(estimates(space, table, 2, 50))
    clock = Clock(table, bias=1.5)
    with pytest.raises(InputError, match=rf"no network met the budget of {fastest:.3f} ms: \d were measured, the fastest took .* ask for at least"):
        met(space, clock, fastest)
    assert 1 < len(clock.measured) <= 5
    assert len(dict(clock.measured)) == len(clock.measured)
    assert min(ms for _, ms in clock.measured) > fastest


def test_the_slowest_within_the_budget_where_none_lands_in_the_window(toy_named: Callable[[str], Space], made_up_table) -> None:
    """A space of few networks: their prices leave gaps."""
    space = toy_named("cells")
    table = unmerged(replace(made_up_table(space), calibration=Calibration()))
    each = sorted({table.estimate(space.decode(genotype).architecture).total_ms for genotype in space.genotypes()})
    below, above = max(pairwise(each), key=lambda pair: pair[1] / pair[0])
    budget = (below * above) ** 0.5
    clock = Clock(table, noise=0.0)
    found = meet_budget(space, scores(space, 0), table, prices(space, table, budget), measure=clock, seed=0, window=(1 - below / budget) / 2)
    assert found.measured_ms == pytest.approx(below)
    assert 1 < len(clock.measured) == len(dict(clock.measured)) <= 5  # it went on looking, among networks of that price

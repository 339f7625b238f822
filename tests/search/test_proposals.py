"""Proposals against enumeration: what is allowed, how it is drawn, who becomes a parent, and that evolution learns where random draws don't."""

import math
from collections import Counter
from collections.abc import Callable
from random import Random
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas.errors import InputError, UsageError
from segnas.kinds import kind
from segnas.search import proposals
from segnas.search.expected import ExpectedLatency
from segnas.search.proposals import Allowed, Strategy, propose
from segnas.search.slots import Choice, Keep, Slot
from segnas.search.space import Genotype, Space

KINDS = (kind("none"), kind("conv"), kind("skip"), kind("max_pool"))


def valued(space: Space, rng: Random) -> Callable[[Genotype], float]:
    """A sum of one random number an option: a score or a price that can be checked by hand."""
    values = {name: [rng.random() for _ in range(size)] for name, size in space.decisions.items()}
    return lambda genotype: sum(values[name][option] for name, option in genotype.items())


def layered(layers: list[tuple[int, int, int, int]]) -> Space:
    """Layers of (edges, options, low, high): the sum of `edges` operations of which low to high may be on. With low 0 a layer can be cut through."""
    slots, rules = [Slot(kind("image"), (), 3)], list[Keep]()
    for index, (edges, options, low, high) in enumerate(layers):
        source, names = len(slots) - 1, [f"{index}.{edge}" for edge in range(edges)]
        slots += [Slot(Choice(name, KINDS[:options]), (source,), 3) for name in names]
        slots.append(Slot("add", tuple(range(source + 1, source + 1 + edges)), 3))
        rules.append(Keep(tuple(names), low, high))
    return Space("layered", tuple(slots), tuple(rules))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    layers = list[tuple[int, int, int, int]]()
    for _ in range(draw(st.integers(1, 3))):
        edges = draw(st.integers(1, 3))
        high = draw(st.integers(1, edges))
        layers.append((edges, draw(st.integers(2, 4)), draw(st.integers(0, high)), high))
    return layered(layers)


def by_hand(space: Space, price: Callable[[Genotype], float], budget_ms: float) -> set[tuple[int, ...]]:
    """The allowed genotypes of a layered space: in budget, as many on as each rule asks, and no layer without an operation."""
    found = set[tuple[int, ...]]()
    for genotype in space.genotypes():
        on = [sum(genotype[name] > 0 for name in rule.decisions) for rule in space.rules]
        if price(genotype) <= budget_ms and all(max(1, r.low) <= n <= r.high for r, n in zip(space.rules, on, strict=True)):
            found.add(tuple(genotype.values()))
    return found


def far_tail(counts: Counter[tuple[int, ...]], allowed: set[tuple[int, ...]]) -> bool:
    """Whether chi-square of the counts against uniform lies more than five standard deviations above its mean."""
    expected, degrees = counts.total() / len(allowed), len(allowed) - 1
    assert set(counts) <= allowed
    return sum((counts[key] - expected) ** 2 / expected for key in allowed) > degrees + 5 * math.sqrt(2 * degrees)


@given(space=spaces(), seed=st.integers(0, 10**6), share=st.floats(0, 1), name=st.sampled_from(proposals.STRATEGIES))
@settings(deadline=None, max_examples=30)
def test_every_proposal_is_in_budget_and_obeys_the_rules(space: Space, seed: int, share: float, name: str) -> None:
    rng = Random(seed)
    price, score = valued(space, rng), valued(space, rng)
    everything = sorted(price(dict(zip(space.decisions, key, strict=True))) for key in by_hand(space, price, math.inf))
    budget_ms = everything[round(share * (len(everything) - 1))]
    allowed, possible = Allowed(space, price, budget_ms), by_hand(space, price, budget_ms)
    scored = list[tuple[Genotype, float]]()
    for slot in range(12):
        genotype = propose(Strategy(name, 4, 2), allowed, scored, [allowed.key(g) for g, _ in scored], Random(f"{seed} {slot}"))
        assert tuple(genotype.values()) in possible
        scored.append((genotype, score(genotype)))


@pytest.mark.parametrize(("rejections", "listed"), [(1000, 20_000), (0, 20_000), (0, 0)], ids=["rejection", "list", "walk"])
def test_draws_are_uniform_within_the_budget(monkeypatch: pytest.MonkeyPatch, rejections: int, listed: int) -> None:
    monkeypatch.setattr(proposals, "REJECTIONS", rejections)
    monkeypatch.setattr(proposals, "LISTED", listed)
    space = layered([(2, 3, 1, 2), (2, 3, 0, 2)])
    price = valued(space, Random(3))
    budget_ms = sorted(map(price, space.genotypes()))[space.count() // 2]
    allowed, possible = Allowed(space, price, budget_ms), by_hand(space, price, budget_ms)
    rng = Random(0)
    counts = Counter(allowed.key(allowed.draw(rng)) for _ in range(25 * len(possible)))
    assert 10 < len(possible) < space.count()
    assert not far_tail(counts, possible)


def test_mutations_alone_would_not_be_uniform() -> None:
    """The test above can fail: the children of one parent are no uniform draw."""
    space = layered([(2, 3, 1, 2), (2, 3, 0, 2)])
    price = valued(space, Random(3))
    budget_ms = sorted(map(price, space.genotypes()))[space.count() // 2]
    allowed, possible = Allowed(space, price, budget_ms), by_hand(space, price, budget_ms)
    rng = Random(0)
    assert far_tail(Counter(allowed.key(allowed.child(allowed.start, rng)) for _ in range(25 * len(possible))), possible)


def test_a_budget_that_one_network_meets_is_met(toy_named, made_up_table) -> None:
    space = toy_named("own-cells")
    price = ExpectedLatency(space, made_up_table(space)).exact
    cheapest = min(space.genotypes(), key=price)
    allowed = Allowed(space, price, price(cheapest))
    assert price(allowed.draw(Random(1))) == price(allowed.child(cheapest, Random(2))) == price(cheapest)


def test_an_impossible_budget_is_refused_with_the_range(toy_named, made_up_table) -> None:
    space = toy_named("cells")
    price = ExpectedLatency(space, made_up_table(space)).exact
    low, high = min(map(price, space.genotypes())), max(map(price, space.genotypes()))
    with pytest.raises(InputError, match=f"cheapest takes {low:.3f} ms and the dearest {high:.3f} ms"):
        Allowed(space, price, low - 1e-6)


def test_a_cut_network_is_cheap_and_still_not_allowed() -> None:
    space = layered([(2, 2, 0, 2)])
    allowed = Allowed(space, lambda genotype: float(sum(genotype.values())), 1.0)
    assert not allowed.holds({"0.0": 0, "0.1": 0})
    assert {allowed.key(allowed.draw(Random(seed))) for seed in range(40)} == {(0, 1), (1, 0)}
    with pytest.raises(InputError, match=r"no network of 'layered' was found within 0\.500 ms"):
        Allowed(space, lambda genotype: float(sum(genotype.values())), 0.5)


# ---- evolution


class Parents(Allowed):
    """Proposes the parent itself."""

    def child(self, parent: Genotype, rng: Random) -> dict[str, int]:
        return dict(parent)


@pytest.fixture(scope="module")
def parents(toy_named, made_up_table) -> Parents:
    space = toy_named("own-cells")
    return Parents(space, ExpectedLatency(space, made_up_table(space)).exact, math.inf)


def test_the_parent_is_the_best_of_a_sample_with_replacement(parents: Parents) -> None:
    rng, population, sample, draws = Random(5), 6, 3, 6000
    scored = [(genotype, float(rank)) for rank, genotype in zip(range(population), parents.space.genotypes(), strict=False)]
    rng.shuffle(scored)
    ranks = {parents.key(genotype): int(score) for genotype, score in scored}
    counts = Counter(ranks[parents.key(propose(Strategy("evolution", population, sample), parents, scored, (), rng))] for _ in range(draws))
    expected = {rank: draws * ((rank + 1) ** sample - rank**sample) / population**sample for rank in range(population)}
    assert sum((counts[r] - e) ** 2 / e for r, e in expected.items()) < population - 1 + 5 * math.sqrt(2 * (population - 1))


def test_the_oldest_dies_however_good_it_is(parents: Parents) -> None:
    genotypes = [genotype for genotype, _ in zip(parents.space.genotypes(), range(11), strict=False)]
    scored = [(genotypes[0], 100.0), *((genotype, float(index)) for index, genotype in enumerate(genotypes[1:]))]
    strategy = Strategy("evolution", 10, 5)
    dead = {parents.key(propose(strategy, parents, scored, (), Random(seed))) for seed in range(200)}
    alive = {parents.key(propose(strategy, parents, scored[:-1], (), Random(seed))) for seed in range(200)}
    assert parents.key(genotypes[0]) not in dead
    assert parents.key(genotypes[0]) in alive


def test_until_the_population_is_full_networks_are_drawn(parents: Parents) -> None:
    genotypes = [genotype for genotype, _ in zip(parents.space.genotypes(), range(9), strict=False)]
    scored = [(genotype, 1.0) for genotype in genotypes]
    for seed in range(20):
        assert propose(Strategy("evolution", 10, 5), parents, scored, (), Random(seed)) == parents.draw(Random(seed))


def test_a_taken_genotype_is_not_proposed_again(toy_named, made_up_table) -> None:
    space = toy_named("cells")
    allowed = Allowed(space, ExpectedLatency(space, made_up_table(space)).exact, math.inf)
    everything = [allowed.key(genotype) for genotype in space.genotypes()]
    for left in everything[:5]:
        taken = set(everything) - {left}
        found = [allowed.key(propose(Strategy("random"), allowed, (), taken, Random(seed))) for seed in range(30)]
        by_chance = 1 - (1 - 1 / len(everything)) ** proposals.REPEATS  # a third; without looking at `taken` it would be a fiftieth
        assert found.count(left) / len(found) > by_chance / 3


def test_evolution_finds_the_optimum_and_beats_random(toy_named, made_up_table) -> None:
    space = toy_named("own-cells")
    price = ExpectedLatency(space, made_up_table(space)).exact
    budget_ms = sorted(map(price, space.genotypes()))[space.count() // 2]
    allowed, seeds, evaluations = Allowed(space, price, budget_ms), range(8), 150

    def best(strategy: Strategy, seed: int) -> tuple[float, float]:
        score = valued(space, Random(seed))
        scored = list[tuple[Genotype, float]]()
        for slot in range(evaluations):
            taken = {allowed.key(genotype) for genotype, _ in scored}
            genotype = propose(strategy, allowed, scored, taken, Random(f"{seed} {slot}"))
            scored.append((genotype, score(genotype)))
        return max(value for _, value in scored), max(score(g) for g in space.genotypes() if price(g) <= budget_ms)

    evolved = [best(Strategy("evolution", 20, 5), seed) for seed in seeds]
    drawn = [best(Strategy("random"), seed) for seed in seeds]
    assert sum(found == optimum for found, optimum in evolved) >= 6
    assert sum(found == optimum for found, optimum in drawn) <= 2  # 150 of 1152: one in eight finds it
    assert mean(found for found, _ in evolved) > mean(found for found, _ in drawn) + 0.05


@pytest.mark.parametrize(("values", "message"), [(("greedy",), "allowed: random, evolution"), (("evolution", 3, 4), "1 <= sample <= population")])
def test_strategies_that_make_no_sense(values: tuple[str, int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Strategy(*values)

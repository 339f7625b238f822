"""Networks to judge a table by: distinct, spread over the prices, and the corners against enumeration; random ones between two prices."""

from itertools import islice
from random import Random

import pytest

from segnas.search import draws
from segnas.search.derive import mode
from segnas.search.draws import between, corners, distinct, stratified, uniform
from segnas.search.space import Space
from segnas.search.spaces.cas import cas_tiny


@pytest.fixture(scope="module")
def space() -> Space:
    return cas_tiny(3)


def price(genotype) -> float:
    """Any sum over decisions will do."""
    return 10.0 + sum((7 * index + 3 * option) % 11 for index, option in enumerate(genotype.values()))


def test_draws_are_distinct_and_repeatable(space: Space) -> None:
    for drawn in (uniform(space, 20, Random(1)), stratified(space, 20, price, Random(1))):
        assert len({a.digest for a in drawn}) == 20
    assert [a.digest for a in uniform(space, 5, Random(2))] == [a.digest for a in uniform(space, 5, Random(2))]
    assert [a.digest for a in uniform(space, 5, Random(2))] != [a.digest for a in uniform(space, 5, Random(3))]


def test_stratified_draws_use_the_whole_range(space: Space) -> None:
    seen: dict[str, float] = {}

    def remembered(genotype) -> float:
        seen[space.decode(genotype).architecture.digest] = price(genotype)
        return price(genotype)

    chosen = sorted(seen_ms for a in stratified(space, 12, remembered, Random(4)) for seen_ms in [seen[a.digest]])
    low, high = min(seen.values()), max(seen.values())
    for stratum, ms in enumerate(chosen):
        assert abs(ms - (low + (high - low) * (stratum + 0.5) / 12)) <= 1.5 * (high - low) / 12


def test_corners_hold_one_option_everywhere_and_the_extremes(space: Space) -> None:
    found = corners(space, price)
    options = next(slot.kind.options for slot in space.slots if hasattr(slot.kind, "options"))
    assert {f"all {option}" for option in options[1:]} <= set(found)
    edges = [node.kind for node in found["all conv"].nodes if node.label.startswith("cell") and node.label.split(".")[-1].isdigit()]
    assert {str(kind) for kind in edges} == {"conv", "add"}
    cheapest = min(map(price, space.genotypes())) if space.count() < 50_000 else None
    assert {"cheapest", "dearest"} <= set(found)
    if cheapest is not None:
        assert found["cheapest"].digest in {space.decode(g).architecture.digest for g in space.genotypes() if price(g) == cheapest}


def test_distinct_networks_come_once_with_a_genotype_that_decodes_to_them(space: Space) -> None:
    found = list(islice(distinct(space, Random(0)), 30))
    assert len({architecture.digest for _, architecture in found}) == 30
    assert all(space.decode(genotype).architecture == architecture for genotype, architecture in found)
    assert found == list(islice(distinct(space, Random(0)), 30))


def test_a_search_that_is_sure_has_one_network(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "REJECTED", 50)
    genotype = space.random(Random(5))
    sure = {name: [float(option == genotype[name]) for option in range(size)] for name, size in space.decisions.items()}
    assert list(distinct(space, Random(0), sure)) == [(genotype, space.decode(genotype).architecture)]


def test_networks_between_two_prices_are_the_uniform_draws_that_lie_there(space: Space) -> None:
    prices = sorted(price(space.random(Random(i))) for i in range(300))
    low, high, rng = prices[100], prices[200], Random(1)
    uniform_draws = [space.random(rng) for _ in range(400)]
    expected = dict.fromkeys(space.decode(genotype).architecture.digest for genotype in uniform_draws if low <= price(genotype) <= high)
    found = [architecture.digest for _, architecture in islice(between(space, low, high, price, Random(1)), 25)]
    assert found == list(expected)[:25]


def test_a_window_that_no_uniform_draw_meets_is_walked_into(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "REJECTED", 200)
    least = min(
        price(mode(space, {name: [1.0] * size for name, size in space.decisions.items()})), *(price(space.random(Random(i))) for i in range(200))
    )
    rng = Random(0)
    assert all(price(space.random(rng)) >= least for _ in range(200))
    seen: dict[str, float] = {}

    def remembered(genotype) -> float:
        return seen.setdefault(space.decode(genotype).architecture.digest, price(genotype))

    found = list(islice(between(space, least - 3, least - 1, remembered, Random(0)), 3))
    assert len({architecture.digest for _, architecture in found}) == 3
    assert all(least - 3 <= seen[architecture.digest] <= least - 1 for _, architecture in found)
    assert all(space.decode(genotype).architecture == architecture for genotype, architecture in found)


def test_a_window_without_networks_ends(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "REJECTED", 200)
    monkeypatch.setattr(draws, "WALKS", 3)
    assert list(between(space, -5.0, -4.0, price, Random(0))) == []


def test_what_is_no_network_is_left_out(toy_named) -> None:
    space = toy_named("dense")
    for found in (distinct(space, Random(0)), between(space, -1.0, 1e9, lambda genotype: 1.0, Random(0))):
        assert all(network for network in islice(found, 10))

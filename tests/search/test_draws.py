"""Networks to judge a table by: distinct, spread over the prices, and the corners against enumeration."""

from random import Random

import pytest

from segnas.search.draws import corners, stratified, uniform
from segnas.search.space import Space
from segnas.search.spaces.cas import cas_tiny


@pytest.fixture(scope="module")
def space() -> Space:
    return cas_tiny(3)


def price(genotype) -> float:
    """Any sum over decisions will do."""
    return 10.0 + sum((7 * index + 3 * option) % 11 for index, option in enumerate(genotype.values()))


def test_draws_are_distinct_and_repeatable(space: Space) -> None:
    for draws in (uniform(space, 20, Random(1)), stratified(space, 20, price, Random(1))):
        assert len({a.digest for a in draws}) == 20
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

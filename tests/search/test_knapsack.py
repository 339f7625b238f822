"""The knapsack against brute force: its price always lies between the bounds, and its score is the best but for the grid."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.cost import macs
from segnas.kinds import kind
from segnas.search.derive import score_of, under_budget
from segnas.search.expected import ExpectedPrice
from segnas.search.knapsack import best_between, suits
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.spaces.dcnas import grid

OPTIONS = (kind("none"), kind("skip"), kind("conv"))


@pytest.fixture(scope="module")
def cells(toy_named) -> Space:
    return toy_named("cells")


def drawn(space: Space, seed: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    rng = Random(seed)
    scores = {name: [rng.gauss(0, 1) for _ in range(size)] for name, size in space.decisions.items()}
    prices = {name: [rng.uniform(0, 2) for _ in range(size)] for name, size in space.decisions.items()}
    return scores, prices


@given(seed=st.integers(0, 10_000), least=st.floats(0, 1), most=st.floats(0, 1))
def test_the_best_between_two_prices_is_brute_forces(cells: Space, seed: int, least: float, most: float) -> None:
    scores, prices = drawn(cells, seed)
    priced = [(score_of(scores, g), 0.7 + math.fsum(prices[n][o] for n, o in g.items())) for g in cells.genotypes()]
    low, high = min(p for _, p in priced), max(p for _, p in priced)
    least, most = (low - 0.1 + share * (high - low + 0.2) for share in sorted((least, most)))
    best = max((score for score, price in priced if least <= price <= most), default=None)
    found = best_between(cells, scores, prices, 0.7, least=least, most=most)
    if best is None:
        assert found is None
        return
    if found is None:  # two partial choices in one cell of the grid: only where hardly any price lies between the bounds
        assert most - least < 1e-3 * most
        return
    cells.check(found)
    assert least * (1 - 1e-8) <= 0.7 + math.fsum(prices[n][o] for n, o in found.items()) <= most * (1 + 1e-8)
    assert score_of(scores, found) >= best - 1e-9 or most - least < 1e-3 * most


def test_a_linear_space_is_solved_whole_and_never_worse_than_local_search() -> None:
    cas = space("cas-fast", 11)
    price = ExpectedPrice(cas, 128, 256, lambda operation: macs(operation) / 1e6)
    assert price.is_linear
    assert suits(cas)
    prices, constant = price.linear
    for seed in range(3):
        scores, _ = drawn(cas, seed)
        most = price.exact(cas.random(Random(seed)))
        found = best_between(cas, scores, prices, constant, least=0.97 * most, most=most)
        assert found is not None
        assert 0.97 * most <= price.exact(found) <= most * (1 + 1e-8)
        local = under_budget(cas, scores, price.exact, most, Random(0), least_ms=0.97 * most, evaluations=5000)
        assert score_of(scores, found) >= score_of(scores, local) - 1e-9


def test_dense_grids_are_left_to_local_search() -> None:
    dense = grid("grid", 5, layers=13, width=8, head=kind("conv"), head_width=8)
    assert not suits(dense)  # the last cells choose 1 to 3 of 52 links: 23,478 ways
    assert suits(space("gas-fast", 5))
    assert suits(space("darts", 5))  # 490 of the 32,768 assignments of a node's five edges obey the rule


def test_nothing_fits_below_the_constant(cells: Space) -> None:
    scores, prices = drawn(cells, 0)
    assert best_between(cells, scores, prices, 5.0, least=0.0, most=4.9) is None

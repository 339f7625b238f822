import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.search.derive import likeliest, mode, score_of, under_budget
from segnas.search.expected import ExpectedLatency
from segnas.search.sampling import one_hot
from segnas.search.settings import CHOICES
from segnas.search.spaces import SPACES
from segnas.search.trellis import trellis_of

TINY = SPACES["cas-tiny"](7)
RANKINGS = CHOICES["ranking"]


def scores_of(space, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.log_softmax(torch.randn(size, generator=generator) * spread, 0) for name, size in space.decisions.items()}


def probabilities_of(scores):
    return {name: values.exp() for name, values in scores.items()}


def best_listed(space, scores, price, budget_ms):
    return max((g for g in space.genotypes() if price(g) <= budget_ms), key=lambda g: score_of(scores, g))


@pytest.mark.parametrize("seed", range(5))
def test_mode_by_odds_is_the_most_probable_genotype(toy, seed):
    scores = scores_of(toy, seed)
    found = mode(toy, probabilities_of(scores))
    toy.check(found)
    if toy.count() < 3000:
        assert found == best_listed(toy, scores, lambda g: 0.0, 1.0)


@given(seed=st.integers(0, 10**6), ranking=st.sampled_from(RANKINGS), spread=st.floats(0, 50))
@settings(deadline=None)
def test_mode_obeys_every_rule(seed, ranking, spread):
    TINY.check(mode(TINY, probabilities_of(scores_of(TINY, seed, spread)), ranking))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_mode_and_likeliest_of_random_logits_obey_every_rule(any_space, ranking):
    states = trellis_of(any_space)
    for seed, spread in enumerate((0.1, 1.0, 50.0)):
        p = probabilities_of(scores_of(any_space, seed, spread))
        any_space.check(mode(any_space, p, ranking))
        any_space.check(likeliest(any_space, p, ranking, states))


def best_under(rule, scores):
    """The highest sum of scores, one of each decision, under a rule: decision by decision, by how many are on so far."""
    best = {0: 0.0}
    for off, *on in scores:
        ways = [(k, worth + off) for k, worth in best.items()] + [(k + 1, worth + max(on)) for k, worth in best.items() if on]
        best = {k: max(worth for other, worth in ways if other == k) for k, _ in ways}
    return max(worth for k, worth in best.items() if rule.low <= k <= rule.high)


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_no_genotype_of_any_space_is_more_probable_than_the_mode(any_space, spread):
    scores = scores_of(any_space, 3, spread)
    best = math.fsum(best_under(group, [scores[name].tolist() for name in group.decisions]) for group in any_space.groups)
    assert score_of(scores, mode(any_space, probabilities_of(scores))) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("ranking", RANKINGS)
def test_mode_and_likeliest_of_one_hot_give_it_back(any_space, ranking):
    rng, states = Random(0), trellis_of(any_space)
    for _ in range(10):
        genotype = any_space.random(rng)
        weights = one_hot(any_space, genotype).weights
        assert mode(any_space, weights, ranking) == genotype
        assert likeliest(any_space, weights, ranking, states) == genotype


def test_odds_and_strength_can_differ(toy_named):
    space = toy_named("cells")
    p = {name: [0.1, 0.5, 0.4] for name in space.decisions}
    p["cell.1.0"] = [0.50, 0.49, 0.01]  # strong, but weaker than none
    p["cell.1.1"] = [0.02, 0.51, 0.47]
    p["cell.1.2"] = [0.05, 0.48, 0.47]  # a little weaker, and hardly ever none
    assert {name: option > 0 for name, option in mode(space, p, "odds").items() if ".1." in name} == {
        "cell.1.0": False,
        "cell.1.1": True,
        "cell.1.2": True,
    }
    assert {name: option > 0 for name, option in mode(space, p, "strength").items() if ".1." in name} == {
        "cell.1.0": True,
        "cell.1.1": True,
        "cell.1.2": False,
    }


@pytest.mark.parametrize("enumerate_up_to", [20_000, 0])
@pytest.mark.parametrize("seed", range(3))
def test_under_budget_finds_the_best_of_toys(toy, seed, enumerate_up_to, made_up_table):
    if toy.count() > 3000:
        pytest.skip("too many genotypes for the brute force")
    price, scores = ExpectedLatency(toy, made_up_table(toy)).exact, scores_of(toy, seed)
    prices = sorted(price(genotype) for genotype in toy.genotypes())
    for budget_ms in (prices[0], prices[len(prices) // 5], prices[len(prices) // 2], prices[-1]):
        found = under_budget(toy, scores, price, budget_ms, Random(0), enumerate_up_to=enumerate_up_to)
        assert price(found) <= budget_ms
        toy.check(found)
        assert score_of(scores, found) == pytest.approx(score_of(scores, best_listed(toy, scores, price, budget_ms)))


@pytest.mark.parametrize("seed", range(2))
def test_under_budget_of_a_large_space_is_near_a_much_longer_search(seed, made_up_table):
    price, scores = ExpectedLatency(TINY, made_up_table(TINY)).exact, scores_of(TINY, seed)
    rng = Random(seed)
    budget_ms = sorted(price(TINY.random(rng)) for _ in range(500))[50]
    found = under_budget(TINY, scores, price, budget_ms, Random(0))
    draws = (TINY.random(rng, {n: v.exp().tolist() for n, v in scores.items()}) for _ in range(5000))
    assert price(found) <= budget_ms
    assert score_of(scores, found) >= max((score_of(scores, g) for g in draws if price(g) <= budget_ms), default=-math.inf)


def test_under_budget_repeats_itself(made_up_table):
    price, scores = ExpectedLatency(TINY, made_up_table(TINY)).exact, scores_of(TINY)
    budget_ms = price(mode(TINY, probabilities_of(scores))) * 0.9
    first, second = (under_budget(TINY, scores, price, budget_ms, Random(1)) for _ in range(2))
    assert first == second


def test_a_loose_budget_gives_the_mode(made_up_table):
    price, scores = ExpectedLatency(TINY, made_up_table(TINY)).exact, scores_of(TINY)
    assert under_budget(TINY, scores, price, math.inf, Random(0)) == mode(TINY, probabilities_of(scores))


@pytest.mark.parametrize("enumerate_up_to", [20_000, 0])
def test_an_impossible_budget_names_what_was_found(toy_named, made_up_table, enumerate_up_to):
    space = toy_named("cells")
    price = ExpectedLatency(space, made_up_table(space)).exact
    low, high = min(map(price, space.genotypes())), max(map(price, space.genotypes()))
    with pytest.raises(InputError, match=f"of 48 .* cheapest takes {low:.3f} ms and the dearest {high:.3f} ms"):
        under_budget(space, scores_of(space), price, low - 0.01, Random(0), enumerate_up_to=enumerate_up_to)

"""Correlations against published values, brute force and what they must not depend on; bootstrap intervals against what is known of them."""

import math
from functools import partial
from itertools import combinations
from random import Random
from statistics import correlation as stdlib_correlation

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.search.correlation import (
    LEAST,
    STATISTICS,
    Interval,
    advantage,
    bootstrap,
    correlations,
    kendall,
    kendalls,
    pearson,
    percentile_interval,
    ranks,
    spearman,
)

ALL = (pearson, spearman, kendall)
RANKED = (spearman, kendall)
TIED = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12)
DISTINCT = st.lists(st.integers(-1000, 1000), min_size=3, max_size=12, unique=True)


def by_counting(x, y) -> float | None:
    """Tau-b from its definition, pair by pair."""
    concordant = discordant = only_x = only_y = 0
    for (a, b), (c, d) in combinations(zip(x, y, strict=True), 2):
        if a == c and b == d:
            continue
        if a == c:
            only_x += 1
        elif b == d:
            only_y += 1
        elif (a < c) == (b < d):
            concordant += 1
        else:
            discordant += 1
    untied = (concordant + discordant + only_x) * (concordant + discordant + only_y)
    return (concordant - discordant) / math.sqrt(untied) if untied else None


def by_places(values) -> list[float]:
    """Mean rank by counting who is smaller and who is equal."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]


@pytest.mark.parametrize(
    ("statistic", "x", "y", "expected"),
    [
        # examples of the documentation of scipy.stats
        (kendall, (12, 2, 1, 12, 2), (1, 4, 7, 1, 0), -0.47140452079103173),
        (spearman, (1, 2, 3, 4, 5), (5, 6, 7, 8, 7), 0.8207826816681233),
        (pearson, (1, 2, 3, 4, 5, 6, 7), (10, 9, 2.5, 6, 4, 3, 2), -0.828503883588428),
        # by hand: pairs 12 13 23 concordant, discordant, discordant
        (kendall, (1, 2, 3), (2, 3, 1), -1 / 3),
        (spearman, (1, 2, 3), (2, 3, 1), 1 - 6 * (1 + 1 + 4) / (3 * 8)),
    ],
)
def test_known_values(statistic, x, y, expected: float) -> None:
    assert statistic(x, y) == pytest.approx(expected, abs=1e-12)


@given(TIED)
def test_kendall_counts_pairs(rows) -> None:
    x, y = zip(*rows, strict=True)
    expected = by_counting(x, y)
    found = kendall(x, y)
    assert (found is None) == (expected is None)
    assert found is None or found == pytest.approx(expected, abs=1e-12)


@given(TIED)
def test_ranks_and_spearman_count_places(rows) -> None:
    x, y = zip(*rows, strict=True)
    assert ranks(np.array(x, float), np.ones((1, len(x))))[0].tolist() == by_places(x)
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert spearman(x, y) == pytest.approx(stdlib_correlation(by_places(x), by_places(y)), abs=1e-12)
    else:
        assert spearman(x, y) is None


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=3, max_size=12).filter(lambda r: np.ptp(np.array(r), 0).min() > 1e-3))
def test_pearson_is_the_standard_librarys(rows) -> None:
    x, y = zip(*rows, strict=True)
    assert pearson(x, y) == pytest.approx(stdlib_correlation(x, y), abs=1e-6)


@pytest.mark.parametrize("statistic", ALL)
@given(rows=TIED)
def test_symmetric_bounded_and_odd(statistic, rows) -> None:
    x, y = zip(*rows, strict=True)
    value = statistic(x, y)
    assert statistic(y, x) == (None if value is None else pytest.approx(value, abs=1e-12))
    if value is not None:
        assert -1 <= value <= 1
        assert statistic(x, [-v for v in y]) == pytest.approx(-value, abs=1e-12)


@pytest.mark.parametrize("statistic", RANKED)
@given(rows=TIED)
def test_ranks_do_not_see_a_monotone_map(statistic, rows) -> None:
    x, y = zip(*rows, strict=True)
    assert statistic([math.exp(v) for v in x], [v**3 for v in y]) == statistic(x, y)


@given(rows=TIED, scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_pearson_does_not_see_an_affine_map(rows, scale: float, shift: float) -> None:
    x, y = zip(*rows, strict=True)
    value = pearson(x, y)
    assert pearson([scale * v + shift for v in x], y) == (None if value is None else pytest.approx(value, abs=1e-9))


@pytest.mark.parametrize("statistic", RANKED)
@given(x=DISTINCT)
def test_one_for_the_same_order_and_minus_one_for_the_reverse(statistic, x) -> None:
    assert statistic(x, [v**3 for v in x]) == pytest.approx(1)
    assert statistic(x, [-v for v in x]) == pytest.approx(-1)


@pytest.mark.parametrize("statistic", ALL)
def test_a_constant_has_no_correlation_even_where_its_mean_is_rounded(statistic) -> None:
    assert statistic([0.1] * 7, list(range(7))) is None
    assert statistic(list(range(7)), [0.1] * 7) is None


def test_pearson_of_huge_and_tiny_numbers() -> None:
    assert pearson([1e300, 2e300, 3e300], [1e-300, 2e-300, 3e-300]) == pytest.approx(1)


@pytest.mark.parametrize("columns", [((1.0,), (1.0,)), ((1.0, 2.0), (1.0, 2.0, 3.0)), ((1.0, math.nan), (1.0, 2.0)), ((1.0, 2.0), (math.inf, 2.0))])
@pytest.mark.parametrize("statistic", ALL)
def test_bad_columns_are_refused(statistic, columns) -> None:
    with pytest.raises(InputError):
        statistic(*columns)


def test_a_bootstrap_of_the_mean_has_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 200)
    found = bootstrap(lambda counts: counts @ values / 200, 200, seed=0)
    error = 1.96 * values.std() / math.sqrt(200)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.06 * error + 0.01)
    assert found.verdict == "positive"


def test_intervals_of_normal_columns_are_those_of_fishers_z() -> None:
    """atanh(r) is normal: its variance is 1 / (n - 3) of Pearson's, (1 + r^2 / 2) / (n - 3) of Spearman's (Bonett and Wright 2000) and
    0.437 / (n - 4) of Kendall's (Fieller, Hartley and Pearson 1957).
    """
    rows, rng = 300, np.random.default_rng(0)
    x = rng.normal(size=rows)
    y = 0.6 * x + 0.8 * rng.normal(size=rows)
    found = correlations(x, y, seed=0)
    variances = {"pearson": lambda r: 1 / (rows - 3), "spearman": lambda r: (1 + r**2 / 2) / (rows - 3), "kendall": lambda r: 0.437 / (rows - 4)}
    for name, variance in variances.items():
        value, low, high = found[name].value, found[name].low, found[name].high
        assert value is not None
        half = 1.96 * math.sqrt(variance(value))
        expected = math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
        assert (low, high) == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))


def test_intervals_are_those_of_rows_that_are_drawn_and_counted_one_by_one() -> None:
    """A bootstrap with another generator, whose statistics are counted from their definitions."""
    rng = Random(1)
    rows = [(value, value + rng.gauss(0, 1.2)) for value in (rng.gauss(0, 1) for _ in range(14))]
    drawn = [list(zip(*rng.choices(rows, k=14), strict=True)) for _ in range(2000)]
    by_hand = {
        "kendall": [by_counting(*columns) for columns in drawn],
        "spearman": [stdlib_correlation(by_places(x), by_places(y)) for x, y in drawn],
        "pearson": [stdlib_correlation(x, y) for x, y in drawn],
    }
    for name, interval in correlations(*zip(*rows, strict=True), seed=0).items():
        values = sorted(value for value in by_hand[name] if value is not None)
        assert len(values) == 2000
        assert (interval.low, interval.high) == pytest.approx((values[50], values[1950]), abs=0.06)


def test_a_bootstrap_keeps_rows_together_and_is_seeded() -> None:
    x = np.random.default_rng(2).normal(size=30)
    assert bootstrap(partial(kendalls, x, x), 30, seed=5) == Interval(pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0))
    noisy = x + np.random.default_rng(3).normal(size=30)
    one, same, other = (bootstrap(partial(kendalls, x, noisy), 30, seed=seed) for seed in (5, 5, 6))
    assert one == same != other


@pytest.mark.parametrize("name", STATISTICS)
@given(rows=TIED, seed=st.integers(0, 99))
def test_a_resample_is_the_column_of_the_rows_that_came(name: str, rows, seed: int) -> None:
    """Each statistic on counts against the same statistic on rows that are written out."""
    x, y = (np.array(column, float) for column in zip(*rows, strict=True))
    drawn = np.random.default_rng(seed).integers(0, len(x), (5, len(x)))
    counts = np.array([np.bincount(row, minlength=len(x)) for row in drawn], float)
    found = STATISTICS[name](x, y, counts)
    single = {"pearson": pearson, "spearman": spearman, "kendall": kendall}[name]
    for value, row in zip(found, drawn, strict=True):
        expected = single(x[row], y[row])
        assert np.isnan(value) if expected is None else value == pytest.approx(expected, abs=1e-9)


def test_what_is_known_is_found() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    related, reverse, unrelated = x + 0.5 * rng.normal(size=30), -x + 0.5 * rng.normal(size=30), rng.normal(size=30)
    assert [i.verdict for i in correlations(x, related, 0).values()] == ["positive"] * 3
    assert [i.verdict for i in correlations(x, reverse, 0).values()] == ["negative"] * 3
    assert [i.verdict for i in correlations(x, unrelated, 0).values()] == ["undecided"] * 3
    assert advantage(related, unrelated, x, 0).verdict == "positive"
    assert advantage(unrelated, related, x, 0).verdict == "negative"
    assert advantage(related, related, x, 0) == Interval(0.0, 0.0, 0.0)
    assert advantage(related, related, x, 0).verdict == "undecided"


def test_unrelated_columns_are_rarely_decided() -> None:
    rng = np.random.default_rng(0)
    decided = sum(bootstrap(partial(kendalls, *rng.normal(size=(2, 20))), 20, seed=i).verdict != "undecided" for i in range(300))
    assert decided <= 30  # 15 are expected at 5 %; 31 or more come once in 5000 times


def test_few_rows_and_undefined_values_have_no_interval() -> None:
    few = list(range(LEAST - 1))
    assert bootstrap(partial(kendalls, few, few), LEAST - 1, seed=0) == Interval(1.0, None, None)
    assert bootstrap(partial(kendalls, few, few), LEAST - 1, seed=0).verdict == "undecided"
    assert bootstrap(partial(kendalls, [1.0] * 9, list(range(9))), 9, seed=0) == Interval(None, None, None)
    assert percentile_interval(0.5, [0.5] * 49, 100) == Interval(0.5, None, None)
    assert percentile_interval(0.5, [0.5] * 50, 100) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("interval", "verdict", "text"),
    [
        (Interval(0.5, 0.1, 0.9), "positive", "+0.50 [+0.10, +0.90]"),
        (Interval(-0.5, -0.9, -0.1), "negative", "-0.50 [-0.90, -0.10]"),
        (Interval(0.5, 0.0, 0.9), "undecided", "+0.50 [+0.00, +0.90]"),
        (Interval(0.5, -0.1, 0.9), "undecided", "+0.50 [-0.10, +0.90]"),
        (Interval(0.5, None, None), "undecided", "+0.50"),
        (Interval(None, None, None), "undecided", "undefined"),
    ],
)
def test_verdicts(interval: Interval, verdict: str, text: str) -> None:
    assert (interval.verdict, str(interval)) == (verdict, text)

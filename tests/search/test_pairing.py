"""Pairing at equal latency: who pairs with whom, the mean of the differences by hand, and how often the interval is wrong."""

import numpy as np
import pytest

from segnas.search.pairing import Points, expansion, paired, student_975, windows

STUDENT = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 8: 2.3060, 12: 2.1788, 20: 2.0860, 60: 2.0003}
"""Quantile 0.975 by degrees of freedom, from any printed table."""


@pytest.mark.parametrize(("degrees", "value"), STUDENT.items())
def test_students_quantile(degrees: int, value: float) -> None:
    assert student_975(degrees) == pytest.approx(value, rel=0.01 if degrees == 3 else 0.003)


def test_the_expansion_goes_to_one() -> None:
    assert expansion(2) == pytest.approx(2**0.5 * 12.7062 / 1.95996, rel=1e-4)
    assert [expansion(n) > expansion(n + 1) > 1 for n in range(2, 200)] == [True] * 198
    assert expansion(10_000) == pytest.approx(1, abs=1e-3)


def test_a_window_is_a_share_of_the_first_ones_latency() -> None:
    assert windows((10.0, 20.0), (9.69, 9.71, 10.29, 10.31, 20.5), 0.03).tolist() == [
        [False, True, True, False, False],
        [False, False, False, False, True],
    ]


def test_differences_by_hand() -> None:
    first = Points((10.0, 20.0, 40.0), (0.50, 0.60, 0.90))
    second = Points((10.1, 9.9, 20.0, 30.0), (0.40, 0.44, 0.55, 0.10))
    found = paired(first, second, 0.03, 0)
    assert found.partners == ((0, 1), (2,), ())
    assert found.differences == (pytest.approx(0.08), pytest.approx(0.05), None)
    assert found.pairs == 2
    assert found.mean.value == pytest.approx(0.065)
    assert found.mean.low < 0.05
    assert found.mean.high > 0.08
    assert found == paired(first, second, 0.03, 0)


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        (Points((10.0,), (0.5,)), Points((10.0, 10.0, 10.0), (0.4, 0.3, 0.2)), 0.2),
        (Points((10.0, 10.0, 10.0), (0.4, 0.3, 0.2)), Points((10.0,), (0.5,)), -0.2),
        (Points((10.0, 10.0), (0.4, 0.3)), Points((20.0,), (0.5,)), None),
        (Points((10.0, 10.0), (0.4, 0.3)), Points((), ()), None),
    ],
)
def test_one_network_on_a_side_has_no_interval(first: Points, second: Points, value: float | None) -> None:
    mean = paired(first, second, 0.03, 0).mean
    assert (mean.low, mean.high, mean.verdict) == (None, None, "undecided")
    assert mean.value == (None if value is None else pytest.approx(value))


def drawn(rng: np.random.Generator, count: int, mean: float) -> Points:
    """Networks around 10 ms whose mIoU has a standard deviation of 1 point."""
    return Points(tuple(rng.uniform(9.9, 10.1, count)), tuple(rng.normal(mean, 0.01, count)))


def test_a_true_difference_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(0)
    assert paired(drawn(rng, 4, 0.56), drawn(rng, 8, 0.50), 0.03, 0).mean.verdict == "positive"
    assert paired(drawn(rng, 4, 0.50), drawn(rng, 8, 0.56), 0.03, 0).mean.verdict == "negative"
    assert paired(drawn(rng, 4, 0.50), drawn(rng, 8, 0.50), 0.03, 0).mean.verdict == "undecided"


@pytest.mark.parametrize("scattered", [0, 1])
def test_the_spread_of_either_source_counts(scattered: int) -> None:
    """One source's networks are all alike, the other's lie far apart around a mean 0.02 below or above."""
    alike, apart = Points((10.0,) * 6, (0.50,) * 6), Points((10.0,) * 6, (0.38, 0.42, 0.46, 0.50, 0.54, 0.58))
    first, second = (apart, alike) if scattered == 0 else (alike, apart)
    mean = paired(first, second, 0.03, 0).mean
    assert abs(mean.value) == pytest.approx(0.02)
    assert mean.verdict == "undecided"
    assert mean.high - mean.low == pytest.approx(2 * 2.571 * 0.0748 / 6**0.5, rel=0.15)  # Student's interval of six values


@pytest.mark.parametrize("sizes", [(2, 2), (3, 6), (5, 10)])
def test_equal_sources_are_rarely_decided(sizes: tuple[int, int]) -> None:
    """A plain percentile interval would decide 34, 15 and 11 of 100."""
    rng = np.random.default_rng(1)
    decided = sum(paired(drawn(rng, sizes[0], 0.5), drawn(rng, sizes[1], 0.5), 0.03, i, 400).mean.verdict != "undecided" for i in range(200))
    assert decided <= 18  # 10 are expected at 5 %; 19 or more come once in 130 times


def test_networks_in_windows_of_their_own_are_compared_within_them() -> None:
    """Slow networks are far better than fast ones, which no pair sees."""
    rng = np.random.default_rng(2)
    ms = (10.0, 20.0, 40.0, 80.0)
    first = Points(ms, tuple(0.01 * m + 0.03 + rng.normal(0, 0.001) for m in ms))
    second = Points(tuple(m for m in ms for _ in range(3)), tuple(0.01 * m + rng.normal(0, 0.001) for m in ms for _ in range(3)))
    found = paired(first, second, 0.03, 0)
    assert [len(partners) for partners in found.partners] == [3] * 4
    assert found.mean.value == pytest.approx(0.03, abs=0.002)
    assert found.mean.verdict == "positive"
    assert found.mean.high - found.mean.low < 0.01

"""Correlation: how well one ranking of networks tells another, with bootstrap intervals; closed forms on numpy.

A statistic is computed on many resamples at once: a resample is how often each row comes, so that all of them share the comparisons of the rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError

Floats = NDArray[np.float64]
Column = Sequence[float] | Floats
Statistic = Callable[[Floats], Floats]
"""How often each row comes in each resample (resamples, rows) -> the statistic of each resample (resamples,); NaN where it has no meaning."""

RESAMPLES = 2000
LEVEL = 0.95
LEAST = 5
"""Below so many networks a bootstrap of a correlation says nothing (our choice)."""
Verdict = Literal["positive", "negative", "undecided"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic with its two-sided 95 % interval; all None where it has no meaning, the ends None where too few resamples have one."""

    value: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """Which side of 0 the whole interval lies on; "undecided" where it contains 0 or does not exist."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "undecided"
        return "positive" if self.low > 0 else "negative"

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        return f"{self.value:+.2f}" if self.low is None else f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def pearson(x: Column, y: Column) -> float | None:
    """Pearson's correlation of two columns (rows,); None where one of them is constant."""
    return _value(pearsons, x, y)


def spearman(x: Column, y: Column) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, ties at their mean rank; None where a column is constant."""
    return _value(spearmans, x, y)


def kendall(x: Column, y: Column) -> float | None:
    """Kendall's tau-b: concordant less discordant pairs, over the geometric mean of the pairs that are not tied in x and in y; None where all are."""
    return _value(kendalls, x, y)


def pearsons(x: Column, y: Column, counts: Floats) -> Floats:
    """Pearson's correlation in each resample."""
    a, b = _columns(x, y)
    return _weighted(_standard(a)[None], _standard(b)[None], counts)


def spearmans(x: Column, y: Column, counts: Floats) -> Floats:
    """Spearman's correlation in each resample, its rows ranked anew."""
    a, b = _columns(x, y)
    return _weighted(ranks(a, counts), ranks(b, counts), counts)


def kendalls(x: Column, y: Column, counts: Floats) -> Floats:
    """Kendall's tau-b in each resample; a row that comes twice is tied with itself."""
    a, b = _columns(x, y)
    left, right = np.sign(a[:, None] - a[None, :]), np.sign(b[:, None] - b[None, :])  # every pair twice, on both sides of the fraction

    def pairs(kept: Floats) -> Floats:
        return ((counts @ kept) * counts).sum(axis=1)

    untied = pairs(np.abs(left)) * pairs(np.abs(right))
    return np.clip(np.divide(pairs(left * right), np.sqrt(untied), out=np.full(len(counts), np.nan), where=untied > 0), -1, 1)


def ranks(values: Floats, counts: Floats) -> Floats:
    """Ranks from 1 in each resample, the smallest first; equal values share the mean of theirs: (resamples, rows)."""
    below, equal = values[:, None] < values[None, :], values[:, None] == values[None, :]
    return counts @ below + (counts @ equal + 1) / 2


def bootstrap(statistic: Statistic, rows: int, seed: int, resamples: int = RESAMPLES) -> Interval:
    """A statistic of so many rows and its percentile bootstrap interval: whole rows are drawn with replacement.

    Resamples in which it has no meaning are left out; where those are more than half, or fewer than `LEAST` rows are given, there is no interval.
    """
    value = _optional(float(statistic(np.ones((1, rows)))[0]))
    if rows < LEAST:
        return Interval(value, None, None)
    counts = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(np.float64)
    found = statistic(counts)
    return percentile_interval(value, found[~np.isnan(found)].tolist(), resamples)


def percentile_interval(value: float | None, found: Sequence[float], resamples: int) -> Interval:
    """The interval that holds the middle 95 % of the values found in so many resamples; without one where more than half found none."""
    if value is None or 2 * len(found) < resamples or not found:
        return Interval(value, None, None)
    low, high = np.quantile(np.array(found), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


STATISTICS: Mapping[str, Callable[[Column, Column, Floats], Floats]] = {"pearson": pearsons, "spearman": spearmans, "kendall": kendalls}


def correlations(x: Column, y: Column, seed: int) -> dict[str, Interval]:
    """All three correlations of two columns with their intervals."""
    return {name: bootstrap(partial(statistic, x, y), len(x), seed) for name, statistic in STATISTICS.items()}


def advantage(x: Column, baseline: Column, y: Column, seed: int) -> Interval:
    """By how much Kendall's tau of x with y exceeds that of the baseline with y: the same resamples for both, since the networks are the same."""
    return bootstrap(lambda counts: kendalls(x, y, counts) - kendalls(baseline, y, counts), len(y), seed)


def _value(statistic: Callable[[Column, Column, Floats], Floats], x: Column, y: Column) -> float | None:
    return _optional(float(statistic(x, y, np.ones((1, len(x))))[0]))


def _optional(value: float) -> float | None:
    return None if np.isnan(value) else value


def _weighted(a: Floats, b: Floats, counts: Floats) -> Floats:
    """Pearson's correlation of columns (1 or resamples, rows) whose rows come so often."""
    total = counts.sum(axis=1, keepdims=True)
    left = a - (counts * a).sum(axis=1, keepdims=True) / total
    right = b - (counts * b).sum(axis=1, keepdims=True) / total
    spread = (counts * left**2).sum(axis=1) * (counts * right**2).sum(axis=1)
    varied = _varied(a, counts) & _varied(b, counts) & (spread > 0)
    return np.clip(np.divide((counts * left * right).sum(axis=1), np.sqrt(spread), out=np.full(len(counts), np.nan), where=varied), -1, 1)


def _varied(values: Floats, counts: Floats) -> NDArray[np.bool_]:
    """Whether the rows that come in each resample differ: exact, where a variance of equal numbers is rounded."""
    there = counts > 0
    return np.where(there, values, -np.inf).max(axis=1) > np.where(there, values, np.inf).min(axis=1)


def _standard(values: Floats) -> Floats:
    """The values less their mean, the largest of them 1, so that squares neither overflow nor vanish."""
    scaled = values / (np.abs(values).max() or 1.0)
    deviations = scaled - scaled.mean()
    return deviations / (np.abs(deviations).max() or 1.0)


def _columns(x: Column, y: Column) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.ndim != 1 or a.shape != b.shape or len(a) < 2:
        raise InputError(f"columns of shapes {a.shape} and {b.shape} were given; two of equal length, at least 2, are needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("a column holds a number that is not finite; correlations need finite ones")
    return a, b

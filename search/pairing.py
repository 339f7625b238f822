"""Pairing: networks of two sources compared at equal latency, with an interval that knows how few they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segnas.search.correlation import RESAMPLES, Floats, Interval, percentile_interval

Mask = NDArray[np.bool_]
NORMAL_975 = 1.959963984540054  # quantile 0.975 of the standard normal distribution: both sides of a 95 % interval


@dataclass(frozen=True, slots=True)
class Paired:
    """First source less second at equal latency.

    `partners[i]` are the numbers of those of the second source that lie in the window of the first one's network i, `differences[i]` its value less
    their mean (None without partners); `mean` is the mean of the differences with its interval.
    """

    partners: tuple[tuple[int, ...], ...]
    differences: tuple[float | None, ...]
    mean: Interval

    @property
    def pairs(self) -> int:
        """How many networks of the first source have partners."""
        return sum(difference is not None for difference in self.differences)


@dataclass(frozen=True, slots=True)
class Points:
    """Networks of one source: measured latency in ms and the value that is compared, such as mIoU."""

    ms: tuple[float, ...]
    values: tuple[float, ...]


def paired(first: Points, second: Points, within: float, seed: int, resamples: int = RESAMPLES) -> Paired:
    """Pair each network of the first source with those of the second whose latency lies within that share of its own.

    The interval is a bootstrap over the networks of each source, a second source's network kept or left out for all its partners at once. Each side's
    deviations are widened for its number n of networks by sqrt(n / (n - 1)) and by Student's quantile over the normal one (after the expanded
    percentile interval of Hesterberg, 2015, recalled; the way is ours): a plain one is wrong 15 times in 100 with 3 against 6 networks. Below two
    paired networks on a side there is no interval. Where partners are not shared, their spread counts twice: too wide rather than too narrow.
    """
    near = windows(first.ms, second.ms, within)  # (first, second)
    partners = tuple(tuple(int(j) for j in np.flatnonzero(row)) for row in near)
    kept, used = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    values, others, near = np.array(first.values)[kept], np.array(second.values)[used], near[np.ix_(kept, used)]
    differences = _differences(values, others, near, np.ones((1, len(used))))[0]
    filled = iter(differences.tolist())
    listed = tuple(next(filled) if found else None for found in partners)
    mean = float(differences.mean()) if len(kept) else None
    if mean is None or len(kept) < 2 or len(used) < 2:
        return Paired(partners, listed, Interval(mean, None, None))
    rng = np.random.default_rng(seed)
    by_first = differences[rng.integers(0, len(kept), (resamples, len(kept)))].mean(axis=1) - mean
    counts = rng.multinomial(len(used), np.full(len(used), 1 / len(used)), size=resamples)  # (resamples, second)
    again = _differences(values, others, near, counts)
    some = ~np.isnan(again).all(axis=1)
    by_second = np.nanmean(again[some], axis=1) - mean
    found = mean + expansion(len(kept)) * by_first[some] + expansion(len(used)) * by_second
    return Paired(partners, listed, percentile_interval(mean, found.tolist(), resamples))


def windows(first_ms: Sequence[float], second_ms: Sequence[float], within: float) -> Mask:
    """Whether each latency of the second lies within that share of each one of the first: (first, second)."""
    return np.abs(np.array(second_ms)[None, :] / np.array(first_ms)[:, None] - 1) <= within


def expansion(count: int) -> float:
    """By how much the spread of a bootstrapped mean of so many is too narrow."""
    return math.sqrt(count / (count - 1)) * student_975(count - 1) / NORMAL_975


def student_975(degrees: int) -> float:
    """Quantile 0.975 of Student's t distribution: exact for 1 and 2 degrees of freedom, by its expansion around the normal one from 3 on (to 1 %)."""
    if degrees == 1:
        return math.tan(0.475 * math.pi)
    if degrees == 2:
        return 0.95 * math.sqrt(2 / (4 * 0.975 * 0.025))
    z, n = NORMAL_975, degrees
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)


def _differences(first: Floats, second: Floats, near: Mask, counts: Floats | NDArray[np.int64]) -> Floats:
    """Each of the first less the mean of its partners, the second ones counted so often: (resamples, first); NaN where none of them is left."""
    weights = near[None] * counts[:, None, :]  # (resamples, first, second)
    total = weights.sum(axis=2)
    means = np.divide((weights * second).sum(axis=2), total, out=np.full(total.shape, np.nan), where=total > 0)
    return first[None] - means

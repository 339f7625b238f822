"""Ratios: how much longer than its price a network will take, by what the clock said of a few others; so that a next network lands in the window."""

import math
from collections.abc import Sequence
from statistics import median_high, median_low

import numpy as np

from segnas.search.space import Genotype

SHARED = 0.02
"""By how much the table is wrong about all networks alike, as a relative standard deviation before anything is measured, and at least half of what
the measured ones say: a machine that has changed is believed at once. Our choice, as are the others."""

OWN = 0.015
"""And by how much about one network alone: judged tables are off by 1 to 2 %. Networks have that in common as far as they decide alike."""

FAR = 3.0
"""A measurement that lies further from the median than so many times what is expected counts as one that lies there: a stray. Of two in the middle
the median is the one that is nearer to the table's word."""


class Ratios:
    """The expected ratio of clock and price of any genotype: a Gaussian process over genotypes in closed form, given measured ones.

    `ratios` are clock over price and `sds` the relative standard deviations of the clock's means, one per genotype; without any, all ratios are 1.
    """

    def __init__(self, genotypes: Sequence[Genotype], ratios: Sequence[float], sds: Sequence[float]) -> None:
        self._genotypes = list(genotypes)
        if not self._genotypes:
            return
        said = [math.log(ratio) for ratio in ratios]
        middle = min(median_low(said), median_high(said), key=abs)
        self._shared = max(SHARED, abs(middle) / 2) ** 2
        reach = [FAR * math.hypot(OWN, sd) for sd in sds]
        kept = [min(max(y, middle - far), middle + far) for y, far in zip(said, reach, strict=True)]
        covariance = np.array([[self._alike(a, b) for b in self._genotypes] for a in self._genotypes]) + np.diag(np.square(sds))
        self._weights = np.linalg.solve(covariance + 1e-12 * np.eye(len(kept)), np.array(kept))

    def of(self, genotype: Genotype) -> float:
        """What its price is to be multiplied by."""
        if not self._genotypes:
            return 1.0
        return math.exp(float(np.dot([self._alike(genotype, each) for each in self._genotypes], self._weights)))

    def _alike(self, one: Genotype, other: Genotype) -> float:
        """Covariance of the logarithms of two networks' ratios."""
        same = sum(other[name] == option for name, option in one.items())
        return self._shared + OWN**2 * same / len(one)

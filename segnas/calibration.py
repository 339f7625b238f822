"""Calibration in closed form: how far whole networks lie from the sum of their entries, by Bayesian linear regression.

The ratio of a network's clock to its sum, over the scale, less 1, is modelled as w' d + noise: w are the shares that the network's coefficients have
in its sum, d their relative corrections, normal around 0 (so the table itself is the prior), the noise normal with `noise_sd`. A correction has three
parts: one that all share, one that its group shares (the same operation at another size or width errs alike), one of its own; the last two each with
standard deviation `prior_sd`. Both standard deviations are those under which the measured ratios are the most likely (evidence, on a grid).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SCALE_SD = 0.05  # prior of the correction that all coefficients share, around the median ratio (our choice)
PRIORS = tuple(0.0025 * 2 ** (k / 2) for k in range(13))  # 0.25 to 16 %
NOISES = tuple(0.002 * 2 ** (k / 8) for k in range(41))  # 0.2 to 6.4 %, in steps of 9 %
NORMAL_95 = 1.6448536269514722  # quantile 0.95 of the standard normal distribution: both sides of a 90 % interval


@dataclass(frozen=True)
class Posterior:
    """What the measured ratios say of the corrections; `shares` is (networks, coefficients), `deviations` (networks,): ratio over scale, less 1;
    `groups` the number of each coefficient's group (coefficients,).
    """

    shares: Floats
    deviations: Floats
    groups: Integers
    prior_sd: float
    noise_sd: float

    @cached_property
    def covariance(self) -> Floats:
        """Posterior covariance (coefficients, coefficients)."""
        prior = prior_covariance(self.groups, self.prior_sd)
        gain = prior @ self.shares.T  # (coefficients, networks)
        return prior - gain @ np.linalg.solve(self._marginal, gain.T)

    @cached_property
    def mean(self) -> Floats:
        """Posterior mean of the relative corrections (coefficients,)."""
        gain = prior_covariance(self.groups, self.prior_sd) @ self.shares.T
        return gain @ np.linalg.solve(self._marginal, self.deviations)

    @cached_property
    def evidence(self) -> float:
        """Logarithm of the deviations' probability density, but for a constant."""
        return -0.5 * float(np.linalg.slogdet(self._marginal)[1] + self.deviations @ np.linalg.solve(self._marginal, self.deviations))

    @cached_property
    def _marginal(self) -> Floats:
        """Covariance of the deviations, (networks, networks)."""
        prior = prior_covariance(self.groups, self.prior_sd)
        return self.shares @ prior @ self.shares.T + self.noise_sd**2 * np.eye(len(self.shares))

    def model_sd(self, shares: Floats) -> float:
        """Relative standard deviation of a prediction by what is not known of the corrections; `shares` (coefficients,)."""
        return math.sqrt(max(0.0, float(shares @ self.covariance @ shares)))


def fitted(shares: Floats, deviations: Floats, groups: Integers) -> Posterior:
    """The posterior under the most likely prior and noise."""
    return max((Posterior(shares, deviations, groups, p, n) for p in PRIORS for n in NOISES), key=lambda posterior: posterior.evidence)


def prior_covariance(groups: Integers, prior_sd: float) -> Floats:
    """Covariance of the corrections before anything was measured (coefficients, coefficients)."""
    same = (groups[:, None] == groups[None, :]).astype(np.float64)
    return SCALE_SD**2 + prior_sd**2 * (same + np.eye(len(groups)))


def quantile_95(degrees: int) -> float:
    """Quantile 0.95 of Student's t distribution, by its expansion around the normal one; within 0.5 % from 5 degrees of freedom on."""
    z, n = NORMAL_95, max(1, degrees)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)

"""Calibration in closed form: how far whole networks lie from the sum of their entries, by Bayesian linear regression.

The ratio of a network's clock to its sum, over the scale, less 1, is modelled as w' d + noise: w are the shares that the network's coefficients have
in its sum, d their relative corrections, normal around 0 with standard deviation `prior_sd` (so the table itself is the prior), the noise normal with
`noise_sd`. Both standard deviations are those under which the measured ratios are the most likely (evidence, on a grid).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SCALE_SD = 0.05  # prior of the correction that all coefficients share, around the median ratio (our choice)
PRIORS = tuple(0.0025 * 2 ** (k / 2) for k in range(13))  # 0.25 to 16 %
NOISES = tuple(0.002 * 2 ** (k / 2) for k in range(11))  # 0.2 to 6.4 %
NORMAL_95 = 1.6448536269514722  # quantile 0.95 of the standard normal distribution: both sides of a 90 % interval


@dataclass(frozen=True)
class Posterior:
    """What the measured ratios say of the corrections; `shares` is (networks, coefficients), `deviations` (networks,): ratio over scale, less 1."""

    shares: Floats
    deviations: Floats
    prior_sd: float
    noise_sd: float

    @cached_property
    def covariance(self) -> Floats:
        """Posterior covariance (coefficients, coefficients)."""
        prior = _prior(self.shares.shape[1], self.prior_sd)
        gain = prior @ self.shares.T  # (coefficients, networks)
        return prior - gain @ np.linalg.solve(_marginal(self.shares, self.prior_sd, self.noise_sd), gain.T)

    @cached_property
    def mean(self) -> Floats:
        """Posterior mean of the relative corrections (coefficients,)."""
        gain = _prior(self.shares.shape[1], self.prior_sd) @ self.shares.T
        return gain @ np.linalg.solve(_marginal(self.shares, self.prior_sd, self.noise_sd), self.deviations)

    def model_sd(self, shares: Floats) -> float:
        """Relative standard deviation of a prediction by what is not known of the corrections; `shares` (coefficients,)."""
        return math.sqrt(max(0.0, float(shares @ self.covariance @ shares)))


def fitted(shares: Floats, deviations: Floats) -> Posterior:
    """The posterior under the most likely prior and noise."""
    best = max(((p, n) for p in PRIORS for n in NOISES), key=lambda sds: _evidence(shares, deviations, *sds))
    return Posterior(shares, deviations, *best)


def quantile_95(degrees: int) -> float:
    """Quantile 0.95 of Student's t distribution, by its expansion around the normal one; within 0.5 % from 5 degrees of freedom on."""
    z, n = NORMAL_95, max(1, degrees)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)


def _prior(coefficients: int, prior_sd: float) -> Floats:
    return SCALE_SD**2 * np.ones((coefficients, coefficients)) + prior_sd**2 * np.eye(coefficients)


def _marginal(shares: Floats, prior_sd: float, noise_sd: float) -> Floats:
    """Covariance of the deviations, (networks, networks)."""
    return shares @ _prior(shares.shape[1], prior_sd) @ shares.T + noise_sd**2 * np.eye(len(shares))


def _evidence(shares: Floats, deviations: Floats, prior_sd: float, noise_sd: float) -> float:
    """Logarithm of the deviations' probability density, but for a constant."""
    covariance = _marginal(shares, prior_sd, noise_sd)
    return -0.5 * float(np.linalg.slogdet(covariance)[1] + deviations @ np.linalg.solve(covariance, deviations))

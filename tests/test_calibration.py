"""The calibration's algebra against the same model written another way, and against simulated tables whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.calibration import NOISES, PRIORS, SCALE_SD, Posterior, fitted, quantile_95


def pairs(coefficients: int):
    return np.arange(coefficients) // 2


def prior_of(coefficients: int, prior_sd: float):
    same = np.array([[float(i // 2 == j // 2) for j in range(coefficients)] for i in range(coefficients)])
    return SCALE_SD**2 * np.ones((coefficients, coefficients)) + prior_sd**2 * (same + np.eye(coefficients))


def simulated(networks: int, coefficients: int, prior_sd: float, noise_sd: float, seed: int):
    """Two coefficients a group: what they share and what is their own have the same standard deviation."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(coefficients, 0.5), networks)
    truth = rng.normal(0, prior_sd, coefficients) + np.repeat(rng.normal(0, prior_sd, coefficients), 2)[:coefficients]
    return shares, truth, shares @ truth + rng.normal(0, noise_sd, networks)


@given(st.integers(2, 12), st.integers(1, 8), st.sampled_from(PRIORS), st.sampled_from(NOISES), st.integers(0, 99))
def test_mean_and_covariance_equal_those_of_the_normal_equations(n: int, p: int, prior_sd: float, noise_sd: float, seed: int) -> None:
    shares, _, deviations = simulated(n, p, 0.03, 0.01, seed)
    precision = np.linalg.inv(prior_of(p, prior_sd)) + shares.T @ shares / noise_sd**2
    posterior = Posterior(shares, deviations, pairs(p), prior_sd, noise_sd)
    np.testing.assert_allclose(posterior.covariance, np.linalg.inv(precision), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(posterior.mean, np.linalg.solve(precision, shares.T @ deviations / noise_sd**2), rtol=1e-4, atol=1e-7)
    assert posterior.model_sd(shares[0]) == pytest.approx(math.sqrt(shares[0] @ np.linalg.inv(precision) @ shares[0]), rel=1e-3)


def test_the_evidence_is_the_density_of_the_marginal() -> None:
    shares, _, deviations = simulated(3, 2, 0.03, 0.01, 0)
    covariance = shares @ prior_of(2, 0.02) @ shares.T + 0.01**2 * np.eye(3)
    density = math.exp(-0.5 * deviations @ np.linalg.inv(covariance) @ deviations) / math.sqrt((2 * math.pi) ** 3 * np.linalg.det(covariance))
    assert Posterior(shares, deviations, pairs(2), 0.02, 0.01).evidence == pytest.approx(math.log(density) + 1.5 * math.log(2 * math.pi), rel=1e-9)


def test_many_networks_recover_the_truth_and_the_noise() -> None:
    shares, truth, deviations = simulated(400, 10, 0.05, 0.01, 3)
    found = fitted(shares, deviations, pairs(10))
    assert np.abs(found.mean - truth).max() < 0.01
    assert found.noise_sd == pytest.approx(0.01, rel=0.45)
    assert found.prior_sd == pytest.approx(0.05, rel=1.0)


def test_without_anything_to_learn_the_table_stands() -> None:
    shares, _, _ = simulated(40, 30, 0.0, 0.0, 5)
    deviations = np.random.default_rng(1).normal(0, 0.01, 40)
    assert np.abs(fitted(shares, deviations, pairs(30)).mean).max() < 0.012


def test_ninety_percent_intervals_cover_nine_in_ten() -> None:
    inside = 0
    for seed in range(40):
        shares, _, deviations = simulated(60, 20, 0.04, 0.01, seed)
        found = fitted(shares[:40], deviations[:40], pairs(20))
        for row, deviation in zip(shares[40:], deviations[40:], strict=True):
            margin = quantile_95(39) * math.hypot(found.noise_sd, found.model_sd(row))
            inside += abs(float(row @ found.mean) - deviation) <= margin
    assert 0.85 <= inside / 800 <= 0.95


@pytest.mark.parametrize(("degrees", "quantile"), [(5, 2.0150), (9, 1.8331), (20, 1.7247), (39, 1.6849), (1000, 1.6464)])
def test_quantiles_of_students_distribution(degrees: int, quantile: float) -> None:
    assert quantile_95(degrees) == pytest.approx(quantile, rel=0.005)

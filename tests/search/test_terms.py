"""The terms: each against its formula and its derivatives, and which way each one pulls."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segnas.errors import UsageError
from segnas.search.terms import FORMS, TERMS, AugmentedLagrangian, term

FORMULAS = {
    "cas": lambda loss, ms, limit, w: loss + w * ms / limit,
    "gas": lambda loss, ms, limit, w: loss + w * math.log(ms),
    "fbnet": lambda loss, ms, limit, w: loss * 0.2 * math.log(1000 * ms) ** w,
    "mnasnet": lambda loss, ms, limit, w: loss * (ms / limit) ** w,
    "mnasnet-hard": lambda loss, ms, limit, w: loss * max(1.0, ms / limit) ** w,
    "proxyless": lambda loss, ms, limit, w: loss * (math.log(1000 * ms) / math.log(1000 * limit)) ** w,
    "tunas": lambda loss, ms, limit, w: loss + w * abs(ms / limit - 1),
    "hinge": lambda loss, ms, limit, w: loss + w * max(0.0, ms / limit - 1),
}


def test_the_settings_know_every_term() -> None:
    assert ("lagrangian", *FORMS, "fasterseg", "none") == TERMS


@pytest.mark.parametrize("name", FORMS)
@given(loss=st.floats(0.01, 10), ms=st.floats(0.1, 100), limit=st.floats(0.1, 100), weight=st.floats(0.01, 2))
def test_each_term_against_its_formula(name: str, loss: float, ms: float, limit: float, weight: float) -> None:
    made = term(name, limit, weight=weight, rho=1.0, rate=0.2)
    value = made(torch.tensor(loss, dtype=torch.float64), torch.tensor(ms, dtype=torch.float64))
    assert float(value) == pytest.approx(FORMULAS[name](loss, ms, limit, weight), rel=1e-9)


@pytest.mark.parametrize("name", [name for name in TERMS if name != "none"])
def test_over_the_limit_every_term_pulls_the_price_down(name: str) -> None:
    held = term(name, 10.0, weight=0.0, rho=1.0, rate=0.2)
    ms = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)
    held(torch.tensor(0.7, dtype=torch.float64), ms).backward()
    assert ms.grad is not None
    assert ms.grad.item() > 0
    assert held.multiplier == (0.06 if name == "fasterseg" else 0.0)


def test_no_term_says_nothing_and_an_unknown_one_lists_the_known() -> None:
    loss = torch.tensor(0.7)
    assert term("none", 10.0, weight=3.0, rho=1.0, rate=0.2)(loss, torch.tensor(14.0)) is loss
    with pytest.raises(UsageError, match="lagrangian, cas, gas, fbnet"):
        term("nas", 10.0, weight=0.0, rho=1.0, rate=0.2)


def test_the_gradient_of_the_log_latency_is_the_price_over_the_latency() -> None:
    prices = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)  # GAS: LAT is linear in z
    z = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    term("gas", 1.0, weight=0.005, rho=1.0, rate=0.2)(torch.zeros((), dtype=torch.float64), prices @ z).backward()
    assert z.grad is not None
    assert torch.allclose(z.grad, 0.005 * prices / (prices @ z.detach()))


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0, 10), st.floats(0, 5))
def test_the_term_and_its_gradient_against_the_formula(expected: float, budget: float, multiplier: float, rho: float) -> None:
    ms = torch.tensor(expected, dtype=torch.float64, requires_grad=True)
    term = AugmentedLagrangian(budget, rho=rho, multiplier=multiplier)(torch.zeros((), dtype=torch.float64), ms)
    g = math.log(expected / budget)
    assert term.item() == pytest.approx(multiplier * g + rho / 2 * max(0.0, g) ** 2, rel=1e-9, abs=1e-12)
    term.backward()
    assert ms.grad is not None
    # d/dms log(ms / budget) = 1 / ms
    assert ms.grad.item() == pytest.approx((multiplier + rho * max(0.0, g)) / expected, rel=1e-9, abs=1e-12)


def test_under_the_budget_and_without_a_multiplier_latency_is_free() -> None:
    ms = torch.tensor(5.0, requires_grad=True)
    term = AugmentedLagrangian(10.0)(torch.zeros(()), ms)
    term.backward()
    assert term.item() == 0.0
    assert ms.grad is not None
    assert ms.grad.item() == 0.0


def test_the_multiplier_written_out() -> None:
    latency = AugmentedLagrangian(10.0, rate=0.5)
    latency.update(10.0 * math.e)
    assert latency.multiplier == pytest.approx(0.5)
    latency.update(10.0)
    assert latency.multiplier == pytest.approx(0.5)
    latency.update(10.0 / math.e**0.5)
    assert latency.multiplier == pytest.approx(0.25)
    latency.update(0.001)
    assert latency.multiplier == 0.0


@given(st.lists(st.floats(0.01, 1000), max_size=20), st.floats(0.01, 1), st.floats(0.1, 100))
def test_the_multiplier_is_never_negative_and_units_do_not_matter(decoded: list[float], rate: float, unit: float) -> None:
    first, second = AugmentedLagrangian(3.0, rate=rate), AugmentedLagrangian(3.0 * unit, rate=rate)
    for ms in decoded:
        first.update(ms)
        second.update(ms * unit)
        assert first.multiplier >= 0
        assert second.multiplier == pytest.approx(first.multiplier, rel=1e-6, abs=1e-9)

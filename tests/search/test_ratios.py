"""Ratios of clock and price, expected of networks that were not measured: against closed forms of a Gaussian process."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.search.ratios import FAR, OWN, SHARED, Ratios

ALL, HALF, NONE = {"a": 1, "b": 1}, {"a": 1, "b": 0}, {"a": 0, "b": 0}


def test_without_a_measurement_the_table_is_believed() -> None:
    assert Ratios([], [], []).of(ALL) == 1.0


@pytest.mark.parametrize("ratio", [1.01, 0.98, 1.3, 0.7])
def test_one_measurement_is_believed_by_its_noise_and_by_how_alike_the_networks_decide(ratio: float) -> None:
    said, sd = math.log(ratio), 0.008
    shared = max(SHARED, abs(said) / 2) ** 2
    whole = shared + OWN**2 + sd**2
    found = Ratios([ALL], [ratio], [sd])
    for genotype, alike in ((ALL, 1.0), (HALF, 0.5), (NONE, 0.0)):
        assert math.log(found.of(genotype)) == pytest.approx((shared + alike * OWN**2) / whole * said, rel=1e-6)


@given(ratios=st.lists(st.floats(0.97, 1.03), min_size=2, max_size=5))
def test_what_was_measured_without_noise_is_known(ratios: list[float]) -> None:
    genotypes = [{"a": index, "b": 0} for index in range(len(ratios))]
    found = Ratios(genotypes, ratios, [0.0] * len(ratios))
    said = sorted(map(math.log, ratios))
    reach = FAR * OWN
    for genotype, ratio in zip(genotypes, ratios, strict=True):
        if said[-1] - said[0] < reach:  # none of them a stray
            assert found.of(genotype) == pytest.approx(ratio, rel=1e-4)


@given(
    ratios=st.lists(st.floats(0.6, 1.6), min_size=1, max_size=5), sds=st.lists(st.floats(0.0, 0.05), min_size=5, max_size=5), seed=st.integers(0, 99)
)
def test_no_ratio_leaves_what_was_measured_and_the_tables_own_word(ratios: list[float], sds: list[float], seed: int) -> None:
    """Alike, they are weighted means of the measured ones and of 1."""
    found = Ratios([ALL] * len(ratios), ratios, [sd + 0.001 for sd in sds[: len(ratios)]])
    assert min(1.0, *ratios) - 1e-9 <= found.of(ALL) <= max(1.0, *ratios) + 1e-9
    order = sorted(range(len(ratios)), key=lambda index: (index * 7 + seed) % 11)
    again = Ratios([ALL] * len(ratios), [ratios[i] for i in order], [sds[i] + 0.001 for i in order])
    assert again.of(ALL) == pytest.approx(found.of(ALL), rel=1e-9)


def test_a_stray_does_not_lead_the_others_astray() -> None:
    genotypes = [{"a": index, "b": 0} for index in range(4)]
    calm = Ratios(genotypes, [1.01, 1.0, 1.01, 1.01], [0.005] * 4).of(genotypes[0])
    assert Ratios(genotypes, [1.01, 1.5, 1.01, 1.01], [0.005] * 4).of(genotypes[0]) == pytest.approx(calm, abs=0.01)

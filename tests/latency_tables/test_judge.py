"""Held-out figures against brute force and closed form."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.latency import Calibration, Entry, LatencyTable, priced_operations
from segnas.latency_tables.judge import figures, kendall, rows, spread
from segnas.latency_tables.labels import Label

PAIRS = st.lists(st.tuples(st.integers(1, 30).map(float), st.integers(1, 30).map(float)), min_size=2, max_size=12)


def label(digest: str, ms: float) -> Label:
    return Label(digest, ms, 0.0, (ms,))


@given(PAIRS, st.sampled_from([0.1, 0.5, math.inf]))
def test_kendall_counts_pairs(pairs, band: float) -> None:
    signs = []
    for i in range(len(pairs)):
        for j in range(i + 1, len(pairs)):
            (a, x), (b, y) = pairs[i], pairs[j]
            if max(x, y) <= (1 + band) * min(x, y) + 1e-12:
                signs.append(0 if a == b or x == y else 1 if (a < b) == (x < y) else -1)
    found = kendall(pairs, band)
    assert (found is None) == (not signs)
    if signs:
        assert found == pytest.approx(sum(signs) / len(signs))


def test_spread() -> None:
    assert spread([label("a", 10.1), label("b", 20.2)]) == pytest.approx(100 * (10.1 / math.sqrt(2)) / 15.15)


@pytest.fixture
def known(small_network, target):
    """Five networks, a table of all their operations at 1 ms each, and the networks by digest."""
    networks = {a.digest: a for a in (small_network(*ops) for ops in (["conv"], ["separable"], ["conv"] * 2, ["conv"] * 3, ["separable"] * 3))}
    operations = {o: None for a in networks.values() for o in priced_operations(a, target) if not o.is_free}
    entries = tuple(Entry(o, "block", 1.0, 0.01, 9, "series", "") for o in operations)
    return LatencyTable("test", target, entries), networks


def test_figures_of_known_errors(known) -> None:
    table, networks = known
    factors = [1.0, 1 / 1.04, 1 / 0.94, 1 / 1.08, 1 / 0.8]
    labels = [label(d, table.raw_sum_ms(a) * f) for (d, a), f in zip(networks.items(), factors, strict=True)]
    found = figures(replace(table, calibration=Calibration(relative_sd=0.06)), networks, labels)
    assert found.mape == pytest.approx((0 + 4 + 6 + 8 + 20) / 5)
    assert found.rmspe == pytest.approx(math.sqrt((16 + 36 + 64 + 400) / 5))
    assert found.bias == pytest.approx((4 - 6 + 8 - 20) / 5)
    assert found.worst == pytest.approx(-20)
    assert (found.hit5, found.hit10) == (pytest.approx(40), pytest.approx(80))
    assert found.covered == pytest.approx(80), "1.645 * 6 % = 9.9 %"


def test_rows_refuse_a_network_that_was_fitted_on(known) -> None:
    table, networks = known
    labels = [label(d, table.raw_sum_ms(a)) for d, a in networks.items()]
    with pytest.raises(InputError, match="was used for fitting"):
        rows(table, networks, labels[:3], {"held": labels[2:]})
    assert [(row.fitted_on, row.level) for row in rows(table, networks, labels[:3], {"held": labels[3:]})] == [(0, "sum")]

"""Measuring apart: how many readings it takes, what their mean is, and that a new process really measures."""

import math
from statistics import fmean, stdev

import pytest

from segnas.apart import MOST_TO_DECIDE, SHARED, measured_apart, sure_of
from segnas.arch import Architecture, Node
from segnas.errors import RequirementError
from segnas.export.graph import onnx_from_network
from segnas.kinds import kind
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.network import initialised
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.timing import Measured, interquartile_mean


def given(*readings: float, stated: float = 0.0):
    return lambda number: Measured(readings[number], stated, 2 * readings[number])


def test_readings_that_agree_end_at_the_least_and_others_at_the_most() -> None:
    few = [10.0, 10.01, 9.99, 10.02, 9.98]
    alike = sure_of(given(*few))
    assert alike.median_ms == pytest.approx(10.0)
    assert alike.raw_ms == pytest.approx(20.0)
    assert alike.relative_sd == pytest.approx(stdev(few) / 10 * math.sqrt(1 / 5 + SHARED**2))
    apart = [9.0, 11.0, 10.0, 12.0, 8.0, 10.0, 9.5, 10.5, 11.5, 8.5]
    wild = sure_of(given(*apart))
    assert wild.median_ms == pytest.approx(fmean(sorted(apart)[2:-2]))  # between the quartiles of ten
    assert wild.relative_sd == pytest.approx(stdev(apart) / wild.median_ms * math.sqrt(1 / 10 + SHARED**2))
    assert sure_of(given(10.0), least=1, most=1).relative_sd == 0.0


def test_readings_go_on_until_it_is_clear_on_which_side_of_a_limit_they_lie() -> None:
    noisy = [10.4, 10.9, 10.1, 10.6, 10.5] + [9.5, 9.6, 9.4, 9.5, 9.6] * 3  # a noisy moment, and then a quiet one
    even = [10.4, 9.8] * 10
    for readings, limit, count in ((noisy, None, 5), (noisy, 8.0, 5), (noisy, 13.0, 5), (noisy, 10.3, 16), (even, 10.1, MOST_TO_DECIDE)):
        taken = list[float]()

        def read(number: int, readings: list[float] = readings, taken: list[float] = taken) -> Measured:
            taken.append(readings[number])
            return Measured(readings[number], 0.01, 1.0)

        found = sure_of(read, sure=0.02, limit_ms=limit)
        assert len(taken) == count, limit
        assert found.median_ms == pytest.approx(interquartile_mean(taken))


def test_readings_share_what_they_spread_by_beyond_what_they_state() -> None:
    readings = [9.8, 10.2, 10.1, 9.9, 10.0]
    spread = stdev(readings) / 10
    by_chance = 1 + math.sqrt(1 / 2)
    for stated, shared in ((0.0, spread), (0.6 * spread / math.sqrt(by_chance), 0.8 * spread), (0.8 * spread, 0.0), (3 * spread, 0.0)):
        found = sure_of(given(*readings, stated=stated), most=5)
        assert found.relative_sd == pytest.approx(math.hypot(spread / math.sqrt(5), SHARED * shared))


def test_a_new_process_measures_the_engines_that_it_is_given() -> None:
    target = cpu_target(64, 128)
    small, large = (
        Architecture((Node(kind("image"), (), 3), Node(kind("conv"), (0,), width, 2), Node(kind("conv"), (1,), width))) for width in (8, 64)
    )
    networks = {a.digest: a for a in (small, large)}
    sentinel = sentinel_architecture()
    logits = cpu_target(64, 128, output_contract="logits")
    engines = {digest: onnx_from_network(initialised(a, 0).eval(), logits) for digest, a in networks.items()}
    engines[sentinel.digest] = onnx_from_network(initialised(sentinel, 0).eval(), sentinel_target(target))
    found = measured_apart(networks, engines, logits, 2.0, 0)
    assert set(found) == set(networks)
    assert 0 < found[small.digest].median_ms < found[large.digest].median_ms
    with pytest.raises(RequirementError, match="the process that measures ended with 1 and said: "):
        measured_apart(networks, {sentinel.digest: b"nothing"}, logits, 2.0, 0)

"""Percentiles by trtexec's rule, robust means, and what is read from the machine's counters."""

import os
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.timing import CpuTimes, Disturbance, cpu_times, disturbance, interquartile_mean, percentile, relative_spread

# sampleReporting.cpp of TensorRT 11.1, in 32-bit floats: exclude = int((1 - percentile / 100) * all); timings[max(all - 1 - exclude, 0)].
# The indices below are what these two lines print when compiled (gcc 12, x86-64); 100 runs leave out none at 99 %, since 1 - 0.99f < 0.01.
TRTEXEC = {
    90: {1: 0, 9: 8, 10: 8, 11: 9, 20: 17, 99: 89, 100: 89, 101: 90, 200: 179, 300: 269, 500: 449, 1000: 899, 1234: 1110},
    95: {1: 0, 9: 8, 10: 9, 11: 10, 20: 18, 99: 94, 100: 94, 101: 95, 200: 189, 300: 284, 500: 474, 1000: 949, 1234: 1172},
    99: {1: 0, 9: 8, 10: 9, 11: 10, 20: 19, 99: 98, 100: 99, 101: 99, 200: 198, 300: 297, 500: 495, 1000: 990, 1234: 1221},
}


@pytest.mark.parametrize(("percent", "count", "index"), [(p, n, i) for p, row in TRTEXEC.items() for n, i in row.items()])
def test_percentiles_are_those_of_trtexec(percent: int, count: int, index: int) -> None:
    values = [0.5 * i for i in range(count)]
    Random(0).shuffle(values)
    assert percentile(values, percent) == 0.5 * index


def test_percentiles_written_out() -> None:
    ten = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 8.0, 7.0, 6.0, 100.0]
    assert percentile(ten, 90) == 9.0  # int(0.1 * 10) = 1 is left out
    assert percentile(ten, 95) == 100.0  # int(0.05 * 10) = 0
    assert percentile(ten, 100) == 100.0
    assert percentile(ten, 0) == 1.0  # int(1.0 * 10) = 10 would leave nothing: the first
    assert percentile(ten, 50) == 5.5  # the middle two
    assert percentile(ten[:3], 50) == 2.0
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=50), st.floats(0, 100))
def test_a_percentile_lies_among_the_values_and_grows(values: list[float], percent: float) -> None:
    assert min(values) <= percentile(values, percent) <= max(values)
    assert percentile(values, 60) <= percentile(values, 90) <= percentile(values, 95) <= percentile(values, 99) <= max(values)


def test_the_interquartile_mean_written_out() -> None:
    assert interquartile_mean([1.0]) == 1.0
    assert interquartile_mean([3.0, 1.0, 2.0]) == 2.0  # fewer than four: all of them
    assert interquartile_mean([100.0, 2.0, 4.0, 0.0]) == 3.0  # one off either end
    assert interquartile_mean([1e6, 5.0, 1.0, 2.0, 3.0, 4.0, 0.0]) == 3.0  # 7 // 4 = 1
    assert interquartile_mean([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 1e6, 1e6]) == 2.5  # 8 // 4 = 2


@given(st.lists(st.floats(0.1, 100), min_size=8, max_size=40))
def test_stalls_do_not_move_the_interquartile_mean(values: list[float]) -> None:
    stalled = sorted(values)
    for place in range(len(values) // 4):
        stalled[-1 - place] = 1e9
    assert interquartile_mean(stalled) == interquartile_mean(values)


def test_the_relative_spread_written_out() -> None:
    assert relative_spread([5.0, 5.0, 5.0]) == 0.0
    assert relative_spread([8.0, 10.0, 12.0, 1.0]) == (10.0 - 8.0) / 9.0  # sorted 1 8 10 12: quarter 1, from 8 to 10, median 9
    assert relative_spread([1.0, 2.0, 3.0]) == 1.0  # fewer than four: the whole range over the median


# ---- disturbance


def test_disturbance_written_out() -> None:
    """In 10 s at 100 ticks a second on 2 cores: 2000 ticks, 600 busy (6 s), 20 stolen; this process used 4 s."""
    ticks = os.sysconf("SC_CLK_TCK")
    before = CpuTimes(busy=500, stolen=3, total=5000, own_s=7.0, when_s=100.0)
    after = CpuTimes(busy=500 + 6 * ticks, stolen=3 + ticks // 5, total=5000 + 20 * ticks, own_s=11.0, when_s=110.0)
    found = disturbance(before, after)
    assert found is not None
    assert found.others_cores == pytest.approx((6 - 4) / 10)
    assert found.stolen == pytest.approx(0.01)
    assert not found.quiet


def test_own_work_disturbs_nobody() -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    before, after = CpuTimes(0, 0, 0, 0.0, 0.0), CpuTimes(19 * ticks, 0, 20 * ticks, 19.5, 10.0)  # own time is finer than ticks: never below 0
    assert disturbance(before, after) == Disturbance(0.0, 0.0)


@pytest.mark.parametrize(("others", "stolen", "quiet"), [(0.19, 0.009, True), (0.2, 0.0, False), (0.0, 0.01, False), (0.0, 0.0, True)])
def test_what_is_quiet(others: float, stolen: float, quiet: bool) -> None:
    assert Disturbance(others, stolen).quiet is quiet


def test_without_counters_nothing_is_claimed() -> None:
    now = CpuTimes(1, 0, 10, 1.0, 5.0)
    assert disturbance(None, now) is disturbance(now, None) is disturbance(now, now) is None


def test_counters_of_this_machine(monkeypatch) -> None:
    line = "cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    monkeypatch.setattr("segnas.timing.Path.read_text", lambda self: line)
    found = cpu_times()
    assert found is not None
    # user + nice + system + irq + softirq are busy; guest times stand within user and are not counted again
    assert (found.busy, found.stolen, found.total) == (163, 8, 163 + 4000 + 50 + 8)
    for broken in ("", "cpu a b c d e f g h\n", "cpu 1 2 3\n"):
        monkeypatch.setattr("segnas.timing.Path.read_text", lambda self, text=broken: text)
        assert cpu_times() is None

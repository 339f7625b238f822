"""Bench over a session whose clock we set."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest

from segnas.errors import InputError
from segnas.report import Port
from segnas.runtime import bench as bench_module
from segnas.runtime.bench import Yardstick, bench
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import Specification
from segnas.timing import CpuTimes, percentile


class Scripted:
    """A session that says the given times, the last of `warmup` first, without taking any time itself."""

    def __init__(self, times: list[float], warmup: list[float] | None = None) -> None:
        self.target = cpu_target(6, 10)
        self.specification = Specification(Port("input", "float32", (1, 3, 6, 10)), Port("labels", "uint8", (1, 6, 10)))
        self.times, self.warmup, self.given = times, warmup or [], 0

    def run(self, image):
        return np.zeros((1, 6, 10), np.uint8)

    def sample(self, runs: int) -> tuple[float, ...]:
        self.given += runs
        if self.warmup:
            return (self.warmup.pop(0),) * runs
        return tuple(self.times[i % len(self.times)] for i in range(runs))

    def close(self) -> None: ...


def quiet(monkeypatch) -> None:
    """A machine on which nothing else happens."""
    monkeypatch.setattr(bench_module, "cpu_times", lambda: None)


def test_percentiles_are_those_of_the_samples(monkeypatch):
    quiet(monkeypatch)
    session = Scripted([10.0 + 0.01 * i for i in range(10)])
    timing = bench(session, min_seconds=0, min_runs=100, warmup_seconds=0)
    assert timing.runs == 100
    values = [10.0 + 0.01 * (i % 10) for i in range(100)]
    assert timing.median_ms == percentile(values, 50) == pytest.approx(10.045)
    assert (timing.min_ms, timing.max_ms) == (10.0, 10.09)
    assert (timing.p90_ms, timing.p95_ms, timing.p99_ms) == tuple(percentile(values, p) for p in (90, 95, 99))
    assert timing.mean_ms == pytest.approx(statistics.mean(values))
    assert timing.coefficient_of_variation == pytest.approx(statistics.stdev(values) / statistics.mean(values))
    assert timing.fps == pytest.approx(1000 / 10.045)
    assert timing.warnings == ()
    assert timing.warmup_runs + timing.runs == session.given


def test_conditions_say_how_it_was_measured(monkeypatch):
    quiet(monkeypatch)
    conditions = dict(bench(Scripted([1.0]), min_seconds=0, warmup_seconds=0).conditions)
    assert {"load_before", "load_after", "threads", "spinning", "provider"} <= set(conditions)
    assert list(conditions) == sorted(conditions)


def test_an_unsteady_engine_is_warned_about(monkeypatch):
    quiet(monkeypatch)
    timing = bench(Scripted([10.0, 12.0]), min_seconds=0, warmup_seconds=0)
    assert any("coefficient of variation" in text for text in timing.warnings)


def ticking(session: Scripted, monkeypatch, seconds: float | None = None) -> Scripted:
    """Let the clock go on by `seconds` a call of `sample`, or by 10 ms a run."""
    now, plain = [0.0], session.sample
    monkeypatch.setattr(bench_module.time, "perf_counter", lambda: now[0])

    def sample(runs: int) -> tuple[float, ...]:
        now[0] += runs * 0.010 if seconds is None else seconds
        return plain(runs)

    session.sample = sample
    return session


def test_the_warm_up_goes_on_until_two_parts_agree(monkeypatch):
    quiet(monkeypatch)
    session = ticking(Scripted([10.0], warmup=[30.0, 30.0, 20.0, 15.0, 10.1]), monkeypatch, 0.05)
    timing = bench(session, min_seconds=0, warmup_seconds=0.1)
    assert session.warmup == []
    assert timing.max_ms == 10.0
    assert timing.warnings == ()


def test_a_warm_up_that_never_agrees_ends_with_a_warning(monkeypatch):
    quiet(monkeypatch)
    session = Scripted([10.0], warmup=[2.0**i for i in range(40)])
    timing = bench(session, min_seconds=0, warmup_seconds=0)
    assert any("warm-up" in text for text in timing.warnings)


def test_a_busy_machine_is_warned_about(monkeypatch):
    readings = iter([CpuTimes(0, 0, 0, 0.0, 0.0), CpuTimes(900, 50, 1000, 1.0, 10.0)])
    monkeypatch.setattr(bench_module, "cpu_times", lambda: next(readings))
    timing = bench(Scripted([10.0]), min_seconds=0, warmup_seconds=0)
    assert any("not quiet" in text for text in timing.warnings)
    assert dict(timing.conditions)["stolen"] == "0.0500"


def test_it_lasts_as_long_as_was_asked_and_tells_how_far_it_is(monkeypatch):
    quiet(monkeypatch)
    session, shares = ticking(Scripted([10.0]), monkeypatch), list[float]()
    timing = bench(session, min_seconds=3, min_runs=10, progress=shares.append)
    assert timing.duration_s == pytest.approx(3.0, abs=0.11)
    assert timing.throughput_qps == pytest.approx(100)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert math.isclose(timing.runs * 0.010, timing.duration_s)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match="scope 'gpu'"):
        bench(Scripted([1.0]), scope="gpu")
    with pytest.raises(InputError, match="at least 2"):
        bench(Scripted([1.0]), min_runs=1)


class Drifting:
    """A session and a yardstick on one machine whose speed changes by a third between their calls."""

    def __init__(self, ms: float, machine: list[int]) -> None:
        self.ms, self.machine = ms, machine

    def sample(self, runs: int) -> tuple[float, ...]:
        self.machine[0] += 1
        speed = 1.0 if self.machine[0] // 40 % 2 else 1.33
        return tuple(self.ms * speed * (1.5 if index == 0 else 1.0) for index in range(runs))

    def close(self) -> None: ...


def test_beside_a_yardstick_the_median_is_told_at_its_reference_speed(monkeypatch):
    quiet(monkeypatch)
    machine = [0]
    session = Scripted([])
    session.sample = Drifting(10.0, machine).sample
    yardstick = Yardstick(Drifting(2.5, machine), "a stick", 2.0, "last year")
    raw: list[tuple[float, float]] = []
    timing = bench(session, min_seconds=0, min_runs=30_000, warmup_seconds=0, yardstick=yardstick, raw=raw)
    assert timing.median_ms in (10.0, 13.3)
    assert timing.normalised_median_ms == pytest.approx(8.0, rel=0.01)  # 10 ms where the stick takes 2.5; at 2.0 a fifth less
    conditions = dict(timing.conditions)
    assert (conditions["sentinel"], conditions["sentinel_reference_ms"], conditions["sentinel_reference_of"]) == ("a stick", "2.0000", "last year")
    assert len(yardstick.readings) >= 3
    assert len(raw) == timing.runs
    assert all(a + ms == pytest.approx(b) for (a, ms), (b, _) in pairwise(raw))


def test_a_yardstick_without_a_reference_is_its_own(monkeypatch):
    quiet(monkeypatch)
    timing = bench(Scripted([10.0]), min_seconds=0, warmup_seconds=0, yardstick=Yardstick(Drifting(2.5, [0]), "a stick"))
    assert timing.normalised_median_ms == pytest.approx(10.0)
    assert dict(timing.conditions)["sentinel_reference_of"] == "this measurement"
    assert bench(Scripted([10.0]), min_seconds=0, warmup_seconds=0).normalised_median_ms is None


def test_whether_the_machine_was_idle_is_said(monkeypatch):
    for after, expected in ((CpuTimes(900, 50, 1000, 1.0, 10.0), "no"), (CpuTimes(100, 0, 1000, 10.0, 10.0), "yes"), (None, "unknown")):
        readings = iter([CpuTimes(0, 0, 0, 0.0, 0.0), after])
        monkeypatch.setattr(bench_module, "cpu_times", lambda readings=readings: next(readings))
        assert dict(bench(Scripted([10.0]), min_seconds=0, warmup_seconds=0).conditions)["machine_idle"] == expected

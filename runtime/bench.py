"""Bench: the latency of an open engine, with everything about the moment that could have disturbed it."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from segnas.errors import InputError
from segnas.latency import Timed, sample_runs
from segnas.report import Timing
from segnas.runtime.session import Session
from segnas.timing import Disturbance, cpu_times, disturbance, percentile

STEADY = 0.025
"""Largest coefficient of variation without a warning, and largest change from one part of the warm-up to the next: trtexec's 2.5 %."""

_PART_S = 0.1
_READING_MS = 8.0  # as in the latency tables


@dataclass(slots=True)
class Yardstick:
    """Something fixed that is timed before, between and after, so that times of different moments can be compared.

    `reference_ms` is what it took at the moment that times are told for; without one, that is the median of its own readings. `name` says what it
    is, `since` of when the reference is.
    """

    timed: Timed
    name: str
    reference_ms: float | None = None
    since: str = ""
    readings: list[float] = field(default_factory=list[float])

    def read(self) -> float:
        """One more reading in ms: the median of the runs that fill 8 ms, after one that is cold and does not count."""
        runs = 3 if not self.readings else min(max(round(_READING_MS / max(self.readings[-1], 1e-6)), 2), 8)
        self.readings.append(percentile(self.timed.sample(runs + 1)[1:], 50))
        return self.readings[-1]

    @property
    def median_ms(self) -> float:
        """The median of its readings."""
        return percentile(self.readings, 50)


def bench(
    session: Session,
    *,
    scope: str = "end_to_end",
    min_seconds: float = 3.0,
    min_runs: int = 100,
    warmup_seconds: float = 0.5,
    yardstick: Yardstick | None = None,
    raw: list[tuple[float, float]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Timing:
    """Time the session, one query in flight, for at least `min_seconds` and `min_runs`, after a warm-up that lasts until it is steady.

    The warm-up takes `warmup_seconds` at least and ten times as long at most. `progress(share)` is told how much is done, 0 to 1. `end_to_end` is
    from the input in the host's memory to the answer there; `gpu` is on the device alone, each sample the mean of a batch; `pipeline` from the
    image's file to the labels. Beside a yardstick, the first run after each of its readings is cold and does not count. `raw` is given each sample:
    when it began, in ms, and what it took. InputError for another scope than the session's target has: its samples are of that one.
    """
    if scope != session.target.scope:
        raise InputError(f"scope {scope!r} was asked for; this session of {session.target.backend!r} is timed {session.target.scope!r}")
    if min_runs < 2 or min_seconds < 0:
        raise InputError(f"{min_runs} runs and {min_seconds} s were asked for; at least 2 runs are needed")
    warmup_runs, part, steady = _warmed(session, warmup_seconds)
    before, load = cpu_times(), _load()
    taken = _Taken([], [], 0.0)
    if yardstick is not None:
        yardstick.read()
    while len(taken.times) < min_runs or taken.duration_s < min_seconds:
        _take(session, part, yardstick, taken)
        if progress is not None:
            progress(min(1.0, taken.duration_s / min_seconds if min_seconds else 1.0, len(taken.times) / min_runs))
    around = disturbance(before, cpu_times())
    if raw is not None:
        raw += zip(_starts(taken.times), taken.times, strict=True)
    variation = coefficient_of_variation(taken.times)
    return Timing(
        scope=scope,
        runs=len(taken.times),
        warmup_runs=warmup_runs,
        duration_s=taken.duration_s,
        min_ms=min(taken.times),
        median_ms=percentile(taken.times, 50),
        mean_ms=math.fsum(taken.times) / len(taken.times),
        p90_ms=percentile(taken.times, 90),
        p95_ms=percentile(taken.times, 95),
        p99_ms=percentile(taken.times, 99),
        max_ms=max(taken.times),
        coefficient_of_variation=variation,
        throughput_qps=len(taken.times) * sample_runs(session) / taken.duration_s,
        warnings=(*_warnings(variation, around, steady), *getattr(session, "warnings", ())),
        conditions=_conditions(session, load, around, yardstick),
        normalised_median_ms=None if yardstick is None else percentile(taken.relative, 50) * (yardstick.reference_ms or yardstick.median_ms),
    )


def coefficient_of_variation(times: Sequence[float]) -> float:
    """Standard deviation of the sample over its mean."""
    mean = math.fsum(times) / len(times)
    return math.sqrt(math.fsum((t - mean) ** 2 for t in times) / (len(times) - 1)) / mean


@dataclass(slots=True)
class _Taken:
    times: list[float]
    relative: list[float]  # in units of the yardstick
    duration_s: float  # of the samples alone


def _take(session: Session, part: int, yardstick: Yardstick | None, taken: _Taken) -> None:
    """A part; beside a yardstick, between two of its readings."""
    if yardstick is None:
        started = time.perf_counter()
        taken.times += session.sample(part)
        taken.duration_s += time.perf_counter() - started
        return
    before = yardstick.readings[-1]
    session.sample(1)
    started = time.perf_counter()
    found = session.sample(part)
    taken.duration_s += time.perf_counter() - started
    unit = (before + yardstick.read()) / 2
    taken.times += found
    taken.relative += [ms / unit for ms in found]


def _warmed(session: Session, seconds: float) -> tuple[int, int, bool]:
    """Run until two parts in a row agree; the runs made, the runs in a part of 0.1 s, and whether it became steady."""
    started = time.perf_counter()
    first = session.sample(2)
    part = max(3, min(1000, round(1000 * _PART_S / max(first[-1] * sample_runs(session), 1e-3))))
    runs, last = 2, math.inf
    while True:
        times = session.sample(part)
        middle = percentile(times, 50)
        runs += part
        elapsed = time.perf_counter() - started
        steady = abs(middle - last) <= STEADY * middle
        if math.isfinite(last) and elapsed >= seconds and (steady or elapsed >= 10 * seconds):
            return runs, part, steady
        last = middle


def _starts(times: Sequence[float]) -> list[float]:
    """When each sample began, as if they had followed each other without a gap."""
    starts, now = list[float](), 0.0
    for ms in times:
        starts.append(now)
        now += ms
    return starts


def _warnings(variation: float, around: Disturbance | None, steady: bool) -> tuple[str, ...]:
    warnings: list[str] = []
    if not steady:
        warnings.append("the warm-up did not become steady: the latency still changed by more than 2.5 % from one part to the next")
    if variation > STEADY:
        warnings.append(f"coefficient of variation {100 * variation:.1f} % (above 2.5 %): close other programs, fix the clock, or measure longer")
    if around is not None and not around.quiet:
        warnings.append(
            f"the machine was not quiet: others used {around.others_cores:.2f} cores, the host took {100 * around.stolen:.1f} % of the time"
        )
    return tuple(warnings)


def _conditions(session: Session, load: str, around: Disturbance | None, yardstick: Yardstick | None) -> tuple[tuple[str, str], ...]:
    conditions = (
        dict(session.target.options)
        | dict(getattr(session, "conditions", ()))
        | {"load_before": load, "load_after": _load(), "threads": str(session.target.threads)}
    )
    if hasattr(os, "sched_getaffinity"):
        conditions["affinity"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    conditions["machine_idle"] = "unknown" if around is None else "yes" if around.quiet else "no"
    if around is not None:
        conditions |= {"others_cores": f"{around.others_cores:.2f}", "stolen": f"{around.stolen:.4f}"}
    if yardstick is not None:
        reference = yardstick.reference_ms or yardstick.median_ms
        conditions |= {
            "sentinel": yardstick.name,
            "sentinel_ms": f"{yardstick.median_ms:.4f} ({min(yardstick.readings):.4f} to {max(yardstick.readings):.4f})",
            "sentinel_reference_ms": f"{reference:.4f}",
            "sentinel_reference_of": yardstick.since or "this measurement",
        }
    return tuple(sorted(conditions.items()))


def _load() -> str:
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"

"""Bench: the latency of an open engine, with everything about the moment that could have disturbed it."""

import math
import os
import time
from collections.abc import Callable

from segnas.errors import InputError
from segnas.latency import sample_runs
from segnas.report import Timing
from segnas.runtime.session import Session
from segnas.timing import Disturbance, cpu_times, disturbance, percentile

STEADY = 0.025
"""Largest coefficient of variation without a warning, and largest change from one part of the warm-up to the next: trtexec's 2.5 %."""

_PART_S = 0.1


def bench(
    session: Session,
    *,
    scope: str = "end_to_end",
    min_seconds: float = 3.0,
    min_runs: int = 100,
    warmup_seconds: float = 0.5,
    progress: Callable[[float], None] | None = None,
) -> Timing:
    """Time the session, one query in flight, for at least `min_seconds` and `min_runs`, after a warm-up that lasts until it is steady.

    The warm-up takes `warmup_seconds` at least and ten times as long at most. `progress(share)` is told how much is done, 0 to 1. `end_to_end` is
    from the input in the host's memory to the answer there; `gpu` is on the device alone, each sample the mean of a batch. InputError for another
    scope than the session's target has: its samples are of that one.
    """
    if scope != session.target.scope:
        raise InputError(f"scope {scope!r} was asked for; this session of {session.target.backend!r} is timed {session.target.scope!r}")
    if min_runs < 2 or min_seconds < 0:
        raise InputError(f"{min_runs} runs and {min_seconds} s were asked for; at least 2 runs are needed")
    warmup_runs, part, steady = _warmed(session, warmup_seconds)
    before, load = cpu_times(), _load()
    times: list[float] = []
    started = time.perf_counter()
    duration = 0.0
    while len(times) < min_runs or duration < min_seconds:
        times += session.sample(part)
        duration = time.perf_counter() - started
        if progress is not None:
            progress(min(1.0, duration / min_seconds if min_seconds else 1.0, len(times) / min_runs))
    around = disturbance(before, cpu_times())
    mean = math.fsum(times) / len(times)
    variation = math.sqrt(math.fsum((t - mean) ** 2 for t in times) / (len(times) - 1)) / mean
    return Timing(
        scope=scope,
        runs=len(times),
        warmup_runs=warmup_runs,
        duration_s=duration,
        min_ms=min(times),
        median_ms=percentile(times, 50),
        mean_ms=mean,
        p90_ms=percentile(times, 90),
        p95_ms=percentile(times, 95),
        p99_ms=percentile(times, 99),
        max_ms=max(times),
        coefficient_of_variation=variation,
        throughput_qps=len(times) * sample_runs(session) / duration,
        warnings=(*_warnings(variation, around, steady), *getattr(session, "warnings", ())),
        conditions=_conditions(session, load, around),
    )


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


def _conditions(session: Session, load: str, around: Disturbance | None) -> tuple[tuple[str, str], ...]:
    conditions = (
        dict(session.target.options)
        | dict(getattr(session, "conditions", ()))
        | {"load_before": load, "load_after": _load(), "threads": str(session.target.threads)}
    )
    if hasattr(os, "sched_getaffinity"):
        conditions["affinity"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    if around is not None:
        conditions |= {"others_cores": f"{around.others_cores:.2f}", "stolen": f"{around.stolen:.4f}"}
    return tuple(sorted(conditions.items()))


def _load() -> str:
    return f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown"

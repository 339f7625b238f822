"""Estimators and the state of the machine, shared by profile, search and bench."""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Measured(NamedTuple):
    """Latency in ms at the speed at which the sentinel takes its reference time, the relative standard deviation of that mean, and what the clock
    itself said, in ms (not a number where that is not known).
    """

    median_ms: float
    relative_sd: float
    raw_ms: float = math.nan


def percentile(values: Sequence[float], percent: float) -> float:
    """trtexec's rule: sorted[max(n - 1 - floor((1 - p/100) * n), 0)]; the median averages the middle two (sampleReporting.cpp of TensorRT 11.1).

    In single precision, as there: of 100 runs the 99 % percentile is the slowest, where exact arithmetic gives the one before it.
    """
    ordered = sorted(values)
    count = len(ordered)
    if percent == 50:
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    excluded = int((np.float32(1) - np.float32(percent) / np.float32(100)) * np.float32(count))
    return ordered[max(count - 1 - excluded, 0)]


def interquartile_mean(values: Sequence[float]) -> float:
    """Mean of the values between the quartiles: neither stalls nor the rare fast state of a core count."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return math.fsum(kept) / len(kept)


def relative_spread(values: Sequence[float]) -> float:
    """Interquartile range over the median."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return (ordered[len(ordered) - 1 - quarter] - ordered[quarter]) / percentile(ordered, 50)


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Jiffies of the whole machine since it started, from /proc/stat: busy, stolen by the host, and in all; and when it was read."""

    busy: int
    stolen: int
    total: int
    own_s: float
    when_s: float


def cpu_times() -> CpuTimes | None:
    """The machine's counters now; None where the system has no /proc/stat."""
    try:
        fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, idle, wait, irq, softirq, steal = fields
    except (OSError, ValueError):
        return None
    busy = user + nice + system + irq + softirq
    own = os.times()
    return CpuTimes(busy, steal, busy + idle + wait + steal, own.user + own.system + own.children_user + own.children_system, time.monotonic())


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What else the machine did between two readings: cores kept busy by others, and share of the time that the host stole."""

    others_cores: float
    stolen: float

    @property
    def quiet(self) -> bool:
        """Whether a measurement made in that time can be trusted: under 0.2 cores of others' work and under 1 % stolen (our choice)."""
        return self.others_cores < 0.2 and self.stolen < 0.01


def disturbance(before: CpuTimes | None, after: CpuTimes | None) -> Disturbance | None:
    """What happened between two readings of `cpu_times`; None where they cannot be had."""
    if before is None or after is None or after.total <= before.total:
        return None
    seconds = max(after.when_s - before.when_s, 1e-9)
    ticks = os.sysconf("SC_CLK_TCK")
    others = max(0.0, (after.busy - before.busy) / ticks - (after.own_s - before.own_s)) / seconds
    return Disturbance(others, (after.stolen - before.stolen) / (after.total - before.total))

"""Sentinel: one fixed network that is timed between all others, so that their samples can be told in units of the machine's present speed.

A core has several speed states and neighbours come and go: of all tricks this one matters most (our study: repeat error between sessions 3.6 -> 2.2
%, and 14.7 -> 2.2 % with a busy neighbour). The first run after another session is cold, up to 12 % slow, and is never counted.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from segnas.arch import Architecture, Node
from segnas.errors import RequirementError
from segnas.kinds import kind
from segnas.latency import Timed, sample_runs
from segnas.target import Target
from segnas.timing import interquartile_mean, percentile

WIDTH = 64
NARROW = 16
OUTLYING = 0.15  # a round whose sentinel is further from the median is not used (our study, section 5)


@dataclass(frozen=True, slots=True)
class Visit:
    """One turn of one network: its samples in ms, the sentinel's ms just before and after, averaged, and what the turn took of the clock.

    `took_ms` counts every run: those that a sample is the mean of, the one sample in each turn that is not kept, and the sentinel's.
    """

    sentinel_ms: float
    samples_ms: tuple[float, ...]
    took_ms: float = 0.0

    @property
    def ratio(self) -> float:
        """Interquartile mean of the samples in units of the sentinel."""
        return interquartile_mean(self.samples_ms) / self.sentinel_ms


def sentinel_architecture() -> Architecture:
    """Half its time computes, half moves memory, as real-time networks do: three convolutions down to 1/4, and a bilinear resize back.

    The two speeds of a shared machine change apart: with convolutions alone, a network whose resize and argmax are two thirds of its time was seen to
    be off by 14 % within three minutes.
    """
    return Architecture(
        (
            Node(kind("image"), (), NARROW),
            Node(kind("conv"), (0,), NARROW, 2),
            Node(kind("conv"), (1,), WIDTH, 2),
            Node(kind("conv"), (2,), WIDTH),
            Node(kind("conv", kernel=1), (3,), NARROW),
            Node(kind("resize"), (4,), NARROW, up=4),
        )
    )


def sentinel_target(target: Target) -> Target:
    """The same target at the size at which the sentinel takes 2 to 4 ms of a core, however many threads share it."""
    height, width = (1024, 2048) if target.scope == "gpu" else (128 * target.threads, 256)
    return replace(target, height=height, width=width, input_contract="normalised", output_contract="logits")


class Interleaver:
    """Takes turns between networks and the sentinel, which is read after each turn; a turn's speed is the median of the last three readings.

    With one thread on a CPU, a run from which other processes took the core counts with the time that it had the core, as if it had been alone
    (`alone_ms`).
    """

    def __init__(self, sentinel: Timed, target: Target, *, reading_ms: float = 2.0) -> None:
        self._sentinel = sentinel
        self._reading_ms = reading_ms  # what one reading aims at
        self._runs_alone = target.threads == 1 and target.scope != "gpu"
        self._readings: deque[float] = deque(maxlen=3)
        self._runs = 2
        self._took_ms = 0.0  # since the turn began

    def begin(self) -> None:
        """Read the sentinel three times after a pause."""
        self._runs = min(max(round(self._reading_ms / max(self._sentinel.sample(2)[1], 1e-6)), 1), 8)
        for _ in range(3):
            self._read()

    def visit(self, network: Timed, runs: int) -> Visit:
        """One turn: a run that is not counted, `runs` that are, and the sentinel."""
        self._took_ms = 0.0
        samples = self._sampled(network, runs)
        if len(samples) != runs or not all(math.isfinite(ms) and ms > 0 for ms in samples):
            raise RequirementError(f"the clock gave {samples} for {runs} runs; it does not work on this machine")
        self._read()
        sentinel_ms = round(percentile(tuple(self._readings), 50), 6)
        return Visit(sentinel_ms, tuple(max(round(ms, 6), 1e-6) for ms in samples), round(self._took_ms, 3))

    def _read(self) -> None:
        self._readings.append(percentile(self._sampled(self._sentinel, self._runs), 50))

    def _sampled(self, network: Timed, runs: int) -> tuple[float, ...]:
        samples = tuple(alone_ms(network) for _ in range(runs + 1)) if self._runs_alone else network.sample(runs + 1)
        self._took_ms += math.fsum(samples) * sample_runs(network)
        return samples[1:]


def alone_ms(network: Timed) -> float:
    """One run in ms, less the time in which this process, though it never waits, did not have the core.

    On a core that is shared, the table's sum was off by 38 % from whole networks without this, and by 3 % with it (load 5 on two cores). On a quiet
    one nothing is subtracted: under 2 % or 20 microseconds, the difference is what reading the clocks costs.
    """
    wall_before, busy_before = clocks_ms()
    (ms,) = network.sample(1)
    wall_after, busy_after = clocks_ms()
    wall = wall_after - wall_before
    lost = wall - (busy_after - busy_before)
    return ms - lost if max(0.02 * ms, 0.02) < lost < ms <= wall else ms


def clocks_ms() -> tuple[float, float]:
    """Time that passed, and time that this process had a core, in ms."""
    return time.perf_counter() * 1e3, time.process_time() * 1e3


def steady_rounds(visits: Sequence[Sequence[Visit]]) -> list[int]:
    """The rounds in which no turn's sentinel was off by more than `OUTLYING`; all rounds where less than half would be left.

    `visits[k][i]` is network k's turn in round i.
    """
    middle = percentile([visit.sentinel_ms for turns in visits for visit in turns], 50)
    rounds = range(len(visits[0]))
    steady = [i for i in rounds if all(abs(turns[i].sentinel_ms / middle - 1) <= OUTLYING for turns in visits)]
    return steady if 2 * len(steady) >= len(rounds) else list(rounds)

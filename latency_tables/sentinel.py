"""Sentinel: one fixed network that is timed between all others, so that their samples can be told in units of the machine's present speed.

A core has several speed states and neighbours come and go: of all tricks this one matters most (our study: repeat error between sessions 3.6 -> 2.2
%, and 14.7 -> 2.2 % with a busy neighbour). The first run after another session is cold, up to 12 % slow, and is never counted.
"""

import math
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle

from segnas.arch import Architecture, Node
from segnas.errors import RequirementError
from segnas.kinds import kind
from segnas.latency import Prepare, Timed, sample_runs
from segnas.target import Target
from segnas.timing import interquartile_mean, percentile

CHANNELS = 16
WIDTH = 32
BETWEEN_MS = 25.0
"""Turns of probes go on for so long before the sentinel is read again: it takes 15 ms, and the machine's speed hardly changes in 50 (our choice)."""
SENTINELS = 5
"""How often the sentinel is opened on a CPU. Of 24 networks that sixteen processes read in groups of eight, the groups' common errors had a standard
deviation of 2.2 % with one and of 1.7 % with five; no more time is taken."""
OUTLYING = 0.15  # a round whose sentinel is further from the median is not used (our study, section 5)


@dataclass(frozen=True, slots=True)
class Visit:
    """One turn of one network: its samples in ms, the sentinel's ms around it, and what the network's runs took of the clock.

    `took_ms` counts every run: those that a sample is the mean of, and the one sample in each turn that is not kept.
    """

    sentinel_ms: float
    samples_ms: tuple[float, ...]
    took_ms: float = 0.0

    @property
    def ratio(self) -> float:
        """Interquartile mean of the samples in units of the sentinel."""
        return interquartile_mean(self.samples_ms) / self.sentinel_ms

    @property
    def fastest_ratio(self) -> float:
        """The fastest sample in units of the sentinel. What disturbs a run within some tens of milliseconds makes it slower, never faster."""
        return min(self.samples_ms) / self.sentinel_ms


def sentinel_architecture() -> Architecture:
    """A short network that neighbours on a shared machine slow as much as they slow real ones: convolutions, a separable one among them, down to 1/4,
    and a bilinear resize back. At 256x512 its image and its answer take 8 MiB each, more than a core's own cache.

    Beside six spaces' networks, in 24 processes, their times followed its own to the power of 0.94. Those of a sentinel that fits into a core's cache
    (three convolutions and a resize at 128x256) they followed to the power of 1.57, so that a network read 4 % slow where the machine was 7 % slow.
    """
    return Architecture(
        (
            Node(kind("image"), (), CHANNELS),
            Node(kind("conv"), (0,), CHANNELS, 2),
            Node(kind("conv"), (1,), WIDTH, 2),
            Node(kind("separable"), (2,), WIDTH),
            Node(kind("conv", kernel=1), (3,), CHANNELS),
            Node(kind("resize"), (4,), CHANNELS, up=4),
        )
    )


def sentinel_target(target: Target) -> Target:
    """The same target at the sentinel's own size, at which it takes 6 to 10 ms of a core, however many threads share it."""
    height, width = (1024, 2048) if target.scope == "gpu" else (256 * target.threads, 512)
    return replace(target, height=height, width=width, input_contract="normalised", output_contract="logits")


@contextmanager
def interleaved(target: Target, prepare: Prepare, *, reading: int = 1) -> Generator["Interleaver"]:
    """An interleaver whose sentinels are open as long as the context lasts."""
    with ExitStack() as stack:
        count = 1 if target.scope == "gpu" else SENTINELS
        yield Interleaver(
            [stack.enter_context(closing(prepare(sentinel_architecture(), sentinel_target(target)))) for _ in range(count)],
            target,
            reading=reading,
        )


class Interleaver:
    """Takes turns between networks and the sentinel, which is read after each turn, or after several short ones (`BETWEEN_MS`); a turn's speed is the
    median of the last three readings.

    The sentinel is given several times over, opened apart, and they are read in turn: where a session's memory came to lie makes it up to two percent
    faster or slower for as long as it is open, which would be in all that is measured beside it.

    With one thread on a CPU, a run from which other processes took the core counts with the time that it had the core, as if it had been alone
    (`alone_ms`).
    """

    def __init__(self, sentinels: Sequence[Timed], target: Target, *, reading: int = 1) -> None:
        self._opened = tuple(sentinels)
        self._sentinels = cycle(sentinels)
        self._reading = reading  # so many runs, of which the fastest counts
        self._runs_alone = target.threads == 1 and target.scope != "gpu"
        self._readings: deque[float] = deque(maxlen=3)
        self._unread_ms = 0.0  # since the last reading

    def begin(self) -> None:
        """Run each sentinel twice, the first time a session is slow, and read three of them: at the start, and after a pause."""
        for sentinel in self._opened:
            sentinel.sample(2)
        for _ in range(3):
            self._read()

    def visit(self, network: Timed, runs: int) -> Visit:
        """One turn: a run that is not counted, `runs` that are, and the sentinel."""
        samples, took_ms = self._sampled(network, runs)
        if len(samples) != runs or not all(math.isfinite(ms) and ms > 0 for ms in samples):
            raise RequirementError(f"the clock gave {samples} for {runs} runs; it does not work on this machine")
        self._unread_ms += took_ms
        if self._unread_ms >= BETWEEN_MS:
            self._read()
        sentinel_ms = round(percentile(tuple(self._readings), 50), 6)
        return Visit(sentinel_ms, tuple(max(round(ms, 6), 1e-6) for ms in samples), round(took_ms, 3))

    def _read(self) -> None:
        self._unread_ms = 0.0
        self._readings.append(min(self._sampled(next(self._sentinels), self._reading)[0]))

    def _sampled(self, network: Timed, runs: int) -> tuple[tuple[float, ...], float]:
        """So many samples after one that does not count, and what all of them took."""
        samples = tuple(alone_ms(network) for _ in range(runs + 1)) if self._runs_alone else network.sample(runs + 1)
        return samples[1:], math.fsum(samples) * sample_runs(network)


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

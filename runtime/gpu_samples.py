"""Samples on a GPU: batches of replays between two events, taken again where the clock was held down, as trtexec and nvbench take them.

What is replayed is the session's own affair: a CUDA graph of torch, or calls of ONNX Runtime that wait for the device themselves.
"""

import math
import warnings
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise

from segnas.runtime.nvml import CLOCK_TOLERANCE, Clocks, GpuClock, middle_clocks, steady_at
from segnas.timing import percentile

SAMPLE_MS = 2.0  # the least that one sample of scope "gpu" lasts; replays are added until it does
BLOCK_MS = 20.0  # queries of scope "end_to_end" between two readings of the clocks
WARMUP_MS = 200.0  # trtexec's; then until three samples in a row agree
STEADY = 0.005
MOST_WARMUP_MS = 1000.0
SPARE_SAMPLES = 2  # a call keeps at most twice the samples asked for, and these, to choose from
PATIENCE_MS, PATIENCE = 500.0, 0.5  # how long a session waits for a clock that is held down: this, and that share of the time its samples took
MOST_REPLAYS = 4096
ENQUEUE_SHARE = 0.8  # trtexec's: above it the host, not the device, sets the pace
_REMEMBERED = 128
_UNSTEADY = "samples were kept while the GPU's clock jumped by more than 2 % or was held down: cool the GPU, or stop what else runs on it"
_MOVED = "the GPU's clock moved by more than 2 % to either side between samples: their times can be compared in units of a sentinel only"
_UNREAD = "the GPU's clocks cannot be read (`pip install nvidia-ml-py`): neither drift nor throttling was looked for"
_ENQUEUE = "the host takes more than 80 % of the time to enqueue so small a network: it sets the pace, and the GPU may be faster"


class UnsteadyWarning(UserWarning):
    """Something about samples that were kept is in doubt; `GpuSamples.conditions` counts them."""


class GpuSamples:
    """The samples of one session, of scope "gpu" or "end_to_end", by the clock of its stream.

    A sample of scope "gpu" is the mean of a batch of replays between two events, at least 2 ms long; of scope "end_to_end", one query, by the host's
    clock. Samples during which a clock was held down, or more than 2 % off the median of the call, are taken again, a bounded number of times; what
    has to be kept all the same is warned of (`UnsteadyWarning`) and counted. `replay(times)` enqueues, and does not wait unless `host_waits` says so;
    `query()` is finished when it returns.
    """

    def __init__(self, clock: GpuClock, scope: str, *, replay: Callable[[int], None], query: Callable[[], None], host_waits: bool = False) -> None:
        self._clock = clock
        self._scope = scope
        self._replay, self._query = replay, query
        self._host_waits = host_waits
        self._is_warm = False
        self._batch = 1  # replays in a sample of scope "gpu", queries between two readings of the clocks otherwise
        self._sampled_ms = self._waited_ms = 0.0
        self._last: Clocks | None = None
        self._medians: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)  # SM and memory clock of a call of `take`, in MHz
        self._enqueue_shares: deque[float] = deque(maxlen=_REMEMBERED)
        self._counts: Counter[str] = Counter()
        self._reasons: set[str] = set()
        self._told: list[str] = []

    def take(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` samples in a row; the first call warms the device up."""
        if not self._is_warm:
            self._warm_up()
            self._is_warm = True
        taken = self._collected(runs)
        steady = steady_at([clocks for _, clocks in taken])
        kept = sorted(sorted(range(len(taken)), key=lambda i: (steady[i], i))[len(taken) - runs :])
        self._counts.update(samples=runs, samples_retried=len(taken) - runs, samples_unsteady=sum(not steady[i] for i in kept))
        if known := [clocks for _, clocks in taken if clocks is not None]:
            self._last = known[-1]
            self._medians.append(middle_clocks(known))
        for doubt in self._doubts():
            if doubt not in self._told:
                self._told.append(doubt)
                warnings.warn(doubt, UnsteadyWarning, stacklevel=3)
        return tuple(taken[i][0] for i in kept)

    @property
    def runs_per_sample(self) -> int:
        """How many runs a sample is the mean of; it may still grow, until a sample lasts 2 ms."""
        return self._batch if self._scope == "gpu" else 1

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """What the samples were taken under, sorted: median clocks, temperature, why a clock was held down, samples taken again or kept in doubt."""
        found = {name: str(self._counts[name]) for name in ("samples", "samples_retried", "samples_unsteady")}
        if self._scope == "gpu":
            found["replays_per_sample"] = str(self._batch)
        if self._last is not None:
            for name, values in zip(("sm", "memory"), zip(*self._medians, strict=True), strict=True):
                found[f"{name}_clock_mhz"] = f"{percentile(values, 50):.0f} ({min(values):.0f} to {max(values):.0f})"
            found["temperature_c"] = str(self._last.temperature_c)
        found["throttled"] = ", ".join(sorted(self._reasons)) or ("no" if self._last else "unknown")
        return tuple(sorted(found.items()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the numbers must be told; each is also given once as an `UnsteadyWarning`."""
        return tuple(self._told)

    def _warm_up(self) -> None:
        """Until three samples in a row agree, for 200 ms at least and a second at most."""
        started = self._clock.host_ms()
        last: deque[float] = deque(maxlen=3)
        elapsed = 0.0
        while elapsed < MOST_WARMUP_MS:
            last.append(self._taken(1)[0][0])
            elapsed = self._clock.host_ms() - started
            if elapsed >= WARMUP_MS and len(last) == 3 and max(last) <= (1 + STEADY) * min(last):
                break
        if self._scope == "end_to_end":
            self._batch = max(1, round(BLOCK_MS / percentile(last, 50)))

    def _taken(self, most: int) -> tuple[list[float], Clocks | None]:
        """One sample of scope "gpu", a block of at most `most` queries of scope "end_to_end", in ms; and the clocks meanwhile."""
        return self._replays() if self._scope == "gpu" else self._queries(most)

    def _replays(self) -> tuple[list[float], Clocks | None]:
        """Mean time of a replay, of as many as last 2 ms; the clocks are read while they run."""
        clock = self._clock
        while True:
            self._replay(1)  # so that the device is at work when its time begins to count, and does not wait for the host
            first, started = clock.event(), clock.host_ms()
            self._replay(self._batch)
            enqueued = clock.host_ms() - started
            last = clock.event()
            clocks = clock.clocks()
            clock.synchronise()
            elapsed = max(clock.elapsed_ms(first, last), 1e-6)
            if elapsed >= SAMPLE_MS or self._batch >= MOST_REPLAYS:
                self._enqueue_shares.append(enqueued / elapsed)
                return [elapsed / self._batch], clocks
            self._batch = min(max(self._batch + 1, math.ceil(1.1 * self._batch * SAMPLE_MS / elapsed)), MOST_REPLAYS)

    def _queries(self, most: int) -> tuple[list[float], Clocks | None]:
        stamps = [self._clock.host_ms()]
        for _ in range(min(most, self._batch)):
            self._query()
            stamps.append(self._clock.host_ms())
        return [after - before for before, after in pairwise(stamps)], self._clock.clocks()

    def _collected(self, runs: int) -> list[tuple[float, Clocks | None]]:
        """As many samples as make `runs` steady ones, but at most about twice as many.

        A clock that is held down is waited for, replaying, and what came before does not count: without that, turns at one clock stand beside
        sentinels at another (simulated, 250 ms in every 1.7 s, 120 sums of a table: worst error 0.6 % with and 3.2 % without).
        """
        taken: list[tuple[float, Clocks | None]] = []
        most, steady = 2 * runs + SPARE_SAMPLES, 0
        patience = PATIENCE_MS + PATIENCE * self._sampled_ms - self._waited_ms
        while (enough := len(taken) + min(runs - steady, most - len(taken))) > len(taken):
            while len(taken) < enough:
                found, clocks = self._taken(enough - len(taken))
                span = math.fsum(found) * self.runs_per_sample
                self._reasons.update(clocks.throttled if clocks is not None else ())
                if clocks is not None and clocks.throttled and patience > 0:
                    patience -= span
                    self._waited_ms += span
                    self._counts["samples_retried"] += len(taken) + len(found)
                    taken, enough = [], runs
                else:
                    self._sampled_ms += span
                    taken += [(ms, clocks) for ms in found]
            steady = sum(steady_at([clocks for _, clocks in taken]))
        return taken

    def _doubts(self) -> list[str]:
        """What is in doubt about the latest samples."""
        found: list[str] = []
        if self._counts["samples_unsteady"]:
            found.append(_UNSTEADY)
        if self._counts["samples"] and self._last is None:
            found.append(_UNREAD)
        if any(max(values) - min(values) > 2 * CLOCK_TOLERANCE * percentile(values, 50) for values in zip(*self._medians, strict=True)):
            found.append(_MOVED)
        if not self._host_waits and self._enqueue_shares and percentile(self._enqueue_shares, 50) > ENQUEUE_SHARE:
            found.append(_ENQUEUE)
        return found

"""Meeting the budget: derive under it with the table, measure, feed the measurement back, derive again; and what a budget is when written as text."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from statistics import median

from segnas.arch import Architecture
from segnas.errors import InputError, UsageError
from segnas.latency import LatencyTable
from segnas.search.derive import under_budget
from segnas.search.draws import networks
from segnas.search.expected import ExpectedLatency
from segnas.search.space import Derived, Space
from segnas.timing import percentile

MeasureMs = Callable[[Architecture], float]
DRAWS = 200


@dataclass(frozen=True, slots=True)
class Measurement:
    """One network that was exported and timed while meeting a budget."""

    digest: str
    predicted_ms: float
    measured_ms: float


@dataclass(frozen=True, slots=True)
class Met:
    """The derived network, the table with every measurement in its calibration, and the measurements in order."""

    genotype: dict[str, int]
    derived: Derived
    table: LatencyTable
    measurements: tuple[Measurement, ...]

    @property
    def measured_ms(self) -> float:
        """The chosen network's measured latency."""
        digest = self.derived.architecture.digest
        return next(m.measured_ms for m in self.measurements if m.digest == digest)


def budget_ms(text: str, space: Space, table: LatencyTable, seed: int) -> float:
    """The budget in ms that a text asks for.

    `8` or `8ms`: that many; `120fps`: 1000 / 120; `p35`: that percentile of the table's estimates over 200 random draws of the space.
    """
    value, is_percentile = read_budget(text)
    if not is_percentile:
        return value
    rng = Random(seed)
    return percentile([table.estimate(network).total_ms for network in networks(space, DRAWS, rng)], value)


def read_budget(text: str) -> tuple[float, bool]:
    """What a budget's text says, without a table: (ms, False), or (percentile, True). UsageError for anything else."""
    asked = text.strip().lower()
    try:
        if asked.startswith("p"):
            share = float(asked[1:])
            if not 0 <= share <= 100:
                raise ValueError
            return share, True
        value = 1000 / float(asked.removesuffix("fps")) if asked.endswith("fps") else float(asked.removesuffix("ms"))
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"budget {text!r} was given; write milliseconds (8 or 8ms), frames per second (120fps) or a percentile (p35)") from None
    if not 0 < value < math.inf:
        raise UsageError(f"budget {text!r} was given; it must be above 0 and finite")
    return value, False


def meet_budget(
    space: Space,
    scores: Mapping[str, tuple[float, ...]],
    table: LatencyTable,
    budget: float,
    *,
    measure: MeasureMs,
    seed: int,
    window: tuple[float, float] = (0.90, 0.97),
    most: int = 5,
    on_measured: Callable[[Measurement], None] | None = None,
) -> Met:
    """The most probable network whose *measured* latency lies in `window` (shares of the budget), in at most `most` measurements.

    `scores` are log-probabilities a decision. The table's prices are corrected by the median ratio of clock to table over the networks measured here,
    so that one stray measurement does not lead astray; no network is measured twice. Where none lands in the window, the slowest measured network
    under its upper end is taken, else the slowest within the budget. InputError where even the fastest measured network is over the budget, or the
    table knows none within it.
    """
    aim = _Aim(space, scores, table, budget, window, seed)
    candidates: dict[str, tuple[dict[str, int], Derived, float]] = {}
    record: list[Measurement] = []
    ratios: list[float] = []
    while len(record) < most:
        found = aim.next(median(ratios) if ratios else 1.0, is_first=not record)
        if found is None and not any(ms <= budget for _, _, ms in candidates.values()):
            found = aim.next(1.0, is_first=False)  # rather the table's word than a single measurement's that nothing fits
        if found is None:
            break
        genotype, derived = found
        architecture = derived.architecture
        ms = measure(architecture)
        candidates[architecture.digest] = (genotype, derived, ms)
        ratios.append(ms / aim.price(genotype))
        record.append(Measurement(architecture.digest, table.estimate(architecture).total_ms, ms))
        level = table.calibration.level if table.calibration.level != "sum" else "scale"
        table = table.calibrated((*table.calibration.probes, table.probe(architecture, ms)), level)
        if on_measured:
            on_measured(record[-1])
        if window[0] * budget <= ms <= window[1] * budget:
            break
    return _best(candidates, budget, window, table, tuple(record))


class _Aim:
    """Derives networks for a budget, each one once."""

    def __init__(
        self, space: Space, scores: Mapping[str, tuple[float, ...]], table: LatencyTable, budget: float, window: tuple[float, float], seed: int
    ) -> None:
        self.space, self.scores, self.budget, self.seed = space, scores, budget, seed
        self.price = ExpectedLatency(space, table, table.target).exact
        quarter = (window[1] - window[0]) / 4  # of the window, on each side, is left to noise
        self.aims = ((window[0] + quarter, window[1] - quarter), window, (window[0], 1.0))
        self.given: set[str] = set()
        self.spent: set[tuple[int, ...]] = set()

    def next(self, correction: float, *, is_first: bool) -> tuple[dict[str, int], Derived] | None:
        """The most probable network not given before that lies in the window at prices times `correction`, else within the budget; None, or
        InputError at the first, where there is none.
        """
        while True:
            genotype = self._genotype(correction, is_first)
            if genotype is None:
                return None
            derived = self.space.decode(genotype)
            self.spent.add(tuple(genotype[name] for name in self.scores))
            if derived.architecture.digest not in self.given:
                self.given.add(derived.architecture.digest)
                return genotype, derived

    def _genotype(self, correction: float, is_first: bool) -> dict[str, int] | None:
        budget = self.budget / correction
        best: dict[str, int] | None = None
        for low, high in self.aims:
            try:
                found = under_budget(self.space, self.scores, self._unspent, high * budget, Random(self.seed), least_ms=low * budget)
            except InputError:
                if is_first and high == 1.0:
                    raise
                continue
            if self.price(found) >= low * budget:
                return found
            if best is None or self.price(found) > self.price(best):
                best = found
        return best

    def _unspent(self, genotype: Mapping[str, int]) -> float:
        return math.inf if tuple(genotype[name] for name in self.scores) in self.spent else self.price(genotype)


def _best(
    candidates: Mapping[str, tuple[dict[str, int], Derived, float]],
    budget: float,
    window: tuple[float, float],
    table: LatencyTable,
    record: tuple[Measurement, ...],
) -> Met:
    """The slowest network at or under the window's upper end; else the slowest within the budget."""
    for limit in (window[1] * budget, budget):
        within = [item for item in candidates.values() if item[2] <= limit]
        if within:
            genotype, derived, _ = max(within, key=lambda item: item[2])
            return Met(genotype, derived, table, record)
    fastest = min(item[2] for item in candidates.values())
    raise InputError(
        f"no network met the budget of {budget:.3f} ms: {len(candidates)} were measured, the fastest took {fastest:.3f} ms; "
        f"ask for at least {fastest * 1.1:.2f} ms or choose a faster space (`segnas spaces`)"
    )

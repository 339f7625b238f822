"""Meeting the budget: derive under it with the table, measure, feed the measurement back, derive again; and what a budget is when written as text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from segnas.arch import Architecture
from segnas.errors import InputError, UsageError
from segnas.latency import LatencyTable, Probe
from segnas.search.derive import under_budget
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
    asked = text.strip().lower()
    try:
        if asked.startswith("p"):
            share = float(asked[1:])
            if not 0 <= share <= 100:
                raise ValueError
            rng = Random(seed)
            draws = [table.estimate(space.decode(space.random(rng)).architecture).total_ms for _ in range(DRAWS)]
            return percentile(draws, share)
        value = 1000 / float(asked.removesuffix("fps")) if asked.endswith("fps") else float(asked.removesuffix("ms"))
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"budget {text!r} was given; write milliseconds (8 or 8ms), frames per second (120fps) or a percentile (p35)") from None
    if value <= 0:
        raise UsageError(f"budget {text!r} was given; it must be above 0")
    return value


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

    `scores` are log-probabilities a decision. Each measurement moves the table's calibration, so the next derivation knows it. Where none lands
    in the window, the slowest measured network within the budget is taken. InputError where even the fastest measured network is over the budget, or
    the table knows none within it.
    """
    candidates: dict[str, tuple[dict[str, int], Derived, float]] = {}
    record: list[Measurement] = []
    correction = 1.0
    while len(record) < most:
        genotype = _derived(space, scores, table, budget / correction, window, seed, must=not record)
        digest = "" if genotype is None else space.decode(genotype).architecture.digest
        if genotype is None or digest in candidates:  # nothing new to try
            break
        derived = space.decode(genotype)
        ms = measure(derived.architecture)
        candidates[digest] = (dict(genotype), derived, ms)
        record.append(Measurement(digest, table.estimate(derived.architecture).total_ms, ms))
        if on_measured:
            on_measured(record[-1])
        if window[0] * budget <= ms <= window[1] * budget:
            break
        table = table.calibrated((*table.calibration.probes, Probe(digest, table.raw_sum_ms(derived.architecture), ms)))
        correction = ms / table.estimate(derived.architecture).total_ms
    return _best(candidates, budget, window, table, tuple(record))


def _derived(
    space: Space, scores: Mapping[str, tuple[float, ...]], table: LatencyTable, budget: float, window: tuple[float, float], seed: int, *, must: bool
) -> dict[str, int] | None:
    """The best genotype in the window by the table, else within the whole budget; None, or InputError where one `must` be, if there is none."""
    price = ExpectedLatency(space, table, table.target).exact
    for low, high in (window, (window[0], 1.0)):
        try:
            return under_budget(space, scores, price, high * budget, Random(seed), least_ms=low * budget)
        except InputError:
            if must and high == 1.0:
                raise
    return None


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

"""Meeting the budget: derive under it with the table, measure, trim or grow by what was measured; and what a budget is when written as text."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from statistics import fmean, median

from segnas.arch import Architecture
from segnas.errors import InputError, UsageError
from segnas.latency import LatencyTable
from segnas.search import knapsack
from segnas.search import rules as ruling
from segnas.search.derive import score_of, under_budget
from segnas.search.draws import networks
from segnas.search.path_decode import PathDecoder
from segnas.search.prices import Priced, within_all
from segnas.search.ratios import Ratios
from segnas.search.space import Derived, Genotype, Space
from segnas.search.trellis import trellis_of
from segnas.timing import Measured, percentile

Measure = Callable[[Architecture], Measured]
DRAWS = 200
WINDOW = 0.01
"""How far under its upper end, as a share of the budget, a measured network is still what was asked for, where twice its mean's noise is not more;
our choice."""
EVALUATIONS = 50_000
"""Of prices in a local search; a tenth of that in a trellis and a quarter where joins choose inputs, whose prices take longer; our choice."""
ABOVE = 3.0
"""Where none lands in the window, a network between it and the budget counts as so many times further from it than it is; our choice."""
USUAL_SD = 0.005
"""Relative standard deviation of a measured mean, before one is known."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One network that was exported and timed while meeting a budget."""

    digest: str
    predicted_ms: float
    measured_ms: float
    relative_sd: float = 0.0


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


def budget_texts(text: str) -> tuple[str, ...]:
    """The budgets that a text with commas names, each once. UsageError where one of them says nothing."""
    texts = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for part in texts:
        read_budget(part)
    return texts


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
    limits: tuple[Priced, ...],
    *,
    measure: Measure,
    seed: int,
    window: float = WINDOW,
    most: int = 5,
    on_measured: Callable[[Measurement], None] | None = None,
) -> Met:
    """The most probable network whose *measured* latency is under the budget by twice the noise of its mean, and by at most that or `window` more.

    `scores` are log-probabilities a decision; the first of `limits` is the budget, the others are kept by what they expect. First the best network by
    the table is derived, exactly where the price is a sum over groups of decisions (multiple-choice knapsack), or is one given a path, and measured;
    then the measured one nearest to the budget is trimmed or grown by one decision, the one that costs the least score, at its prices times what the
    clock's word on the measured ones lets expect (`Ratios`); at most `most` measurements, no network twice. Where none lands in the window, the
    measured network within the budget that is nearest to it is taken. InputError where even the fastest measured network is over the budget, or the
    table knows none within it.
    """
    aim, budget = _Aim(space, scores, limits, window, seed), limits[0].limit
    tried: list[_Tried] = []
    while len(tried) < most:
        found = aim.next(tried)
        if found is None:
            break
        derived = space.decode(found)
        tried.append(_Tried(found, derived, aim.milliseconds(found), measure(derived.architecture)))
        measured = tried[-1].measured
        record = Measurement(derived.architecture.digest, table.estimate(derived.architecture).total_ms, measured.median_ms, measured.relative_sd)
        level = table.calibration.level if table.calibration.level != "sum" else "scale"
        table = table.calibrated((*table.calibration.probes, table.probe(derived.architecture, record.measured_ms)), level)
        tried[-1].record = record
        if on_measured:
            on_measured(record)
        low, high = bounds(record.relative_sd, window)
        if low * budget <= record.measured_ms <= high * budget:
            break
    chosen = _best(tried, budget, window)
    return Met(chosen.genotype, chosen.derived, table, tuple(each.record for each in tried if each.record))


def bounds(relative_sd: float, window: float = WINDOW) -> tuple[float, float]:
    """The shares of the budget between which a measured mean of that noise is what was asked for."""
    high = 1 - max(0.005, 2 * relative_sd)
    return high - max(window, 2 * relative_sd), high


@dataclass
class _Tried:
    """A network that was measured: its genotype, its price by the table as it was at first, and what the clock said."""

    genotype: dict[str, int]
    derived: Derived
    priced_ms: float
    measured: Measured
    record: Measurement | None = None

    @property
    def ratio(self) -> float:
        """Clock over table."""
        return self.measured.median_ms / self.priced_ms


class _Aim:
    """Proposes networks for a budget, each one once."""

    def __init__(self, space: Space, scores: Mapping[str, tuple[float, ...]], limits: tuple[Priced, ...], window: float, seed: int) -> None:
        self.space, self.limits, self.window, self.seed = space, limits, window, seed
        trellis = trellis_of(space)
        self.scores = dict(scores) if trellis is None else {**scores, **trellis.pushed(scores)}
        self.paths = PathDecoder.of(space, trellis, limits[0].expected) if len(limits) == 1 else None
        self.evaluations = EVALUATIONS // (10 if trellis else 4 if limits[0].expected.walks else 1)
        self.price, self.milliseconds, self.budget = within_all(limits), limits[0].expected.exact, limits[0].limit
        self.given: set[str] = set()
        self.spent: set[tuple[int, ...]] = set()

    def next(self, tried: list[_Tried]) -> dict[str, int] | None:
        """A network not given before that should land in the window, else within budget; None, or InputError at the first, where there is none."""
        proposals = [lambda: self._derived(1.0, tried)]
        if tried:
            aimed = self.budget * fmean(bounds(self._sd(tried), self.window))
            nearest = min(tried, key=lambda each: abs(math.log(each.measured.median_ms / aimed)))
            ratios = Ratios([each.genotype for each in tried], [each.ratio for each in tried], [each.measured.relative_sd for each in tried])
            proposals = [lambda: self._stepped(nearest, ratios, tried), lambda: self._derived(ratios.of(nearest.genotype), tried)]
            if not any(each.measured.median_ms <= self.budget for each in tried):
                proposals.append(lambda: self._derived(1.0, tried))  # rather the table's word than a single measurement's that nothing fits
        for propose in proposals:
            while (genotype := propose()) is not None:
                self.spent.add(self._key(genotype))
                digest = self.space.decode(genotype).architecture.digest
                if digest not in self.given:
                    self.given.add(digest)
                    return genotype
        return None

    def _stepped(self, start: _Tried, ratios: Ratios, tried: list[_Tried]) -> dict[str, int] | None:
        """Trim or grow: the neighbour by one decision of the highest score that should land well inside the window; None where none should."""
        low, high = (share * self.budget for share in self._inner(tried))
        fitting = [g for g in self._neighbours(start.genotype) if low <= self._unspent(g) * ratios.of(g) <= high]
        return max(fitting, key=lambda genotype: score_of(self.scores, genotype), default=None)

    def _neighbours(self, genotype: Genotype) -> Iterator[dict[str, int]]:
        for group in self.space.groups:
            sizes, now = [self.space.decisions[name] for name in group.decisions], [genotype[name] for name in group.decisions]
            for options in ruling.near(group, sizes, now):
                yield {**genotype, **dict(zip(group.decisions, options, strict=True))}

    def _derived(self, ratio: float, tried: list[_Tried]) -> dict[str, int] | None:
        """The best network at prices times `ratio`: inside the window, else in it, else under its end, else within the budget."""
        budget, best = self.budget / ratio, None
        low, high = bounds(self._sd(tried), self.window)
        for least, most in (self._inner(tried), (low, high), (3 * low - 2 * high, 1.0)):
            found = self._exact(least * budget, most * budget)
            try:
                found = found or self._climbed(least * budget, most * budget)
            except InputError:
                if not tried and most == 1.0:
                    raise
                continue
            if self.price(found) >= least * budget:
                return found
            if best is None or self.price(found) > self.price(best):
                best = found
        return best

    def _climbed(self, least_ms: float, most_ms: float) -> dict[str, int]:
        """By local search, among those not given before; InputError where nothing is found."""
        return under_budget(self.space, self.scores, self._unspent, most_ms, Random(self.seed), least_ms=least_ms, evaluations=self.evaluations)

    def _exact(self, least_ms: float, most_ms: float) -> dict[str, int] | None:
        """By the knapsack, or over all paths of a trellis, where that applies and its answer was not given before."""
        expected, found = self.limits[0].expected, None
        if len(self.limits) > 1:
            return None
        if self.paths is not None:
            found = self.paths.best_between(self.scores, least=least_ms, most=most_ms)
        elif expected.is_linear and knapsack.suits(self.space):
            prices, constant = expected.linear
            found = knapsack.best_between(self.space, self.scores, prices, constant, least=least_ms, most=most_ms)
        return None if found is None or self._key(found) in self.spent else found

    def _inner(self, tried: list[_Tried]) -> tuple[float, float]:
        """The window less a quarter on each side, which is left to noise."""
        low, high = bounds(self._sd(tried), self.window)
        quarter = (high - low) / 4
        return low + quarter, high - quarter

    def _sd(self, tried: list[_Tried]) -> float:
        return median(each.measured.relative_sd for each in tried) if tried else USUAL_SD

    def _key(self, genotype: Genotype) -> tuple[int, ...]:
        return tuple(genotype[name] for name in self.scores)

    def _unspent(self, genotype: Genotype) -> float:
        return math.inf if self._key(genotype) in self.spent else self.price(genotype)


def _best(tried: list[_Tried], budget: float, window: float) -> _Tried:
    """The network within the budget that is nearest to its window, from above by `ABOVE`."""

    def far(each: _Tried) -> tuple[float, float]:
        share = each.measured.median_ms / budget
        low, high = bounds(each.measured.relative_sd, window)
        return max(low - share, ABOVE * (share - high), 0.0), -share

    found = min((each for each in tried if each.measured.median_ms <= budget), key=far, default=None)
    if found is None:
        fastest = min(each.measured.median_ms for each in tried)
        raise InputError(
            f"no network met the budget of {budget:.3f} ms: {len(tried)} were measured, the fastest took {fastest:.3f} ms; "
            f"ask for at least {fastest * 1.1:.2f} ms or choose a faster space (`segnas spaces`)"
        )
    return found

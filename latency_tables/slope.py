"""Slope: from the turns of a design's probes to a price, its spread and how sure it is.

All in units of the sentinel until the end, where the table's reference time turns them into milliseconds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from segnas.arch import Operation
from segnas.calibration import NORMAL_95
from segnas.latency_tables.probes import Design
from segnas.latency_tables.sentinel import Visit, steady_rounds
from segnas.timing import interquartile_mean, percentile

FLOOR_MS = 0.0002  # the least price: a difference of noisy clocks may come out negative, a kernel never takes less
QUARTILES = 1.349  # interquartile range of a normal distribution, in standard deviations
IQM_LOSS = 1.1  # standard deviation of an interquartile mean over that of a mean, for normal samples
LEAST_ROUNDS = 6  # that an operation gets


@dataclass(frozen=True, slots=True)
class Slope:
    """Cost of one more copy, the standard deviation that one round alone would have, and how many rounds there were."""

    value: float
    round_sd: float
    rounds: int

    @property
    def half_width(self) -> float:
        """Half the 90 % confidence interval of `value`."""
        return NORMAL_95 * IQM_LOSS * self.round_sd / math.sqrt(self.rounds)


def slope_weights(copies: Sequence[int]) -> list[float]:
    """The least-squares slope of costs over copies is their sum with these weights."""
    middle = math.fsum(copies) / len(copies)
    square = math.fsum((r - middle) ** 2 for r in copies)
    return [(r - middle) / square for r in copies]


def slope_over(copies: Sequence[int], costs: Sequence[float]) -> float:
    """Least-squares slope of `costs` over `copies`."""
    return math.fsum(w * cost for w, cost in zip(slope_weights(copies), costs, strict=True))


def slope_of(copies: Sequence[int], visits: Sequence[Sequence[Visit]]) -> Slope:
    """Slope of one design's turns, `visits[rung][round]`, from each rung's interquartile mean over the rounds.

    The rungs' relative deviations are pooled: the quartiles of five rounds alone would often look far too tight.
    """
    rounds = steady_rounds(visits)
    ratios = [[turns[i].ratio for i in rounds] for turns in visits]
    centres = [interquartile_mean(values) for values in ratios]
    deviations = [abs(ratio / centre - 1) for values, centre in zip(ratios, centres, strict=True) for ratio in values]
    relative_sd = 1.4826 * percentile(deviations, 50) * math.sqrt(len(rounds) / max(1, len(rounds) - 1))
    weights = slope_weights(copies)
    round_sd = relative_sd * math.hypot(*(w * centre for w, centre in zip(weights, centres, strict=True)))
    return Slope(slope_over(copies, centres), round_sd, len(rounds))


@dataclass(frozen=True, slots=True)
class Price:
    """What an operation costs in ms, the standard deviation that one round alone would have, and half the 90 % confidence interval."""

    ms: float
    round_sd_ms: float
    half_width_ms: float

    @property
    def spread(self) -> float:
        """Interquartile range of single rounds over the price; 1 and more means that a round could not resolve it."""
        return QUARTILES * self.round_sd_ms / self.ms

    def is_settled(self, scale_ms: float) -> bool:
        """Whether it is known to 5 %; what costs less than `scale_ms` need only be known to 5 % of that."""
        return self.half_width_ms <= 0.05 * max(self.ms, scale_ms)


def half_width_from(spread: float) -> float:
    """Half the 90 % interval over the price, of an entry with that spread and the fewest rounds."""
    return NORMAL_95 * IQM_LOSS * spread / QUARTILES / math.sqrt(LEAST_ROUNDS)


def prices(designs: Iterable[Design], slopes: Mapping[Operation, Slope], reference_ms: float) -> dict[Operation, Price]:
    """Each design's price: its slope less what its companions cost; at least `FLOOR_MS`, and then with a spread of at least 1."""
    by_operation = {design.operation: design for design in designs}
    found: dict[Operation, Price] = {}

    def price(operation: Operation) -> Price:
        if operation not in found:
            slope, parts = slopes[operation], [(price(o), times) for o, times in by_operation[operation].companions]
            ms = slope.value * reference_ms - math.fsum(times * part.ms for part, times in parts)
            round_sd = math.hypot(slope.round_sd * reference_ms, *(times * part.round_sd_ms for part, times in parts))
            half_width = math.hypot(slope.half_width * reference_ms, *(times * part.half_width_ms for part, times in parts))
            found[operation] = Price(ms, round_sd, half_width) if ms >= FLOOR_MS else Price(FLOOR_MS, max(round_sd, FLOOR_MS), half_width)
        return found[operation]

    return {operation: price(operation) for operation in by_operation}

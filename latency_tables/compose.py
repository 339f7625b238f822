"""Compose: from the sum of a table's entries to whole networks, by one factor fitted on networks that were measured whole.

Additivity holds well once entries were measured in place; one factor on 5 to 10 networks takes what is left (MAPE 1.2 to 1.5 % on 60 held-out
networks in our study). More coefficients on fewer than 40 networks make the ranking worse, so there are none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from segnas.arch import Architecture
from segnas.errors import InputError
from segnas.latency import LatencyTable, Prepare, Probe
from segnas.latency_tables.measure import ROUNDS, Measured, measure_all

SENTINEL_KEY = "sentinel_ms"


class Residual(NamedTuple):
    """One network's estimate beside its measurement, both in ms."""

    digest: str
    estimated_ms: float
    measured_ms: float

    @property
    def relative(self) -> float:
        """Estimate over measurement, less one."""
        return self.estimated_ms / self.measured_ms - 1


def reference_ms(table: LatencyTable) -> float | None:
    """The sentinel's time to which the table's figures refer; None in a table that was not made by `profile`."""
    return next((float(value) for name, value in table.provenance if name == SENTINEL_KEY), None)


def calibrate(
    table: LatencyTable,
    architectures: Sequence[Architecture],
    *,
    prepare: Prepare,
    measure_rounds: int = ROUNDS,
    sentinel: float | None = None,
    seed: int = 0,
) -> LatencyTable:
    """The table with one scale fitted on these networks, measured whole and once each.

    `sentinel` overrides the reference time in ms that the table's provenance holds. InputError where none is given.
    """
    distinct = tuple({a.digest: a for a in architectures}.values())
    if not distinct:
        raise InputError("calibration was given no networks; at least 1 is needed, 5 to 10 are advised")
    sums = [table.raw_sum_ms(a) for a in distinct]  # before the clock: a missing entry must not cost a measurement
    measured = measure_all(distinct, table.target, prepare=prepare, sentinel_ref_ms=sentinel or reference_ms(table), rounds=measure_rounds, seed=seed)
    return table.calibrated(Probe(a.digest, total, m.median_ms) for a, total, m in zip(distinct, sums, measured, strict=True))


def residuals(table: LatencyTable, architectures: Sequence[Architecture], measured: Sequence[Measured]) -> tuple[Residual, ...]:
    """What the table says beside what was measured, network by network."""
    return tuple(Residual(a.digest, table.estimate(a).total_ms, m.median_ms) for a, m in zip(architectures, measured, strict=True))

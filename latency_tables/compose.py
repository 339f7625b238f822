"""Compose: from the sum of a table's entries to whole networks, by what was fitted on networks that were measured whole.

Additivity holds well once entries were measured in place; one factor on 5 to 10 networks takes what is left (MAPE 1.2 to 1.5 % on 60 held-out
networks in our study). More coefficients on fewer than 40 networks make the ranking worse, so there are none; the fit itself is
`segnas.calibration`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from segnas.arch import Architecture
from segnas.errors import IncompatibleError, InputError
from segnas.latency import ENTRIES_FROM, LatencyTable, Prepare, profile_command
from segnas.latency_tables.measure import ROUNDS, Measured, in_groups, measure_all

SENTINEL_KEY = "sentinel_ms"
PROTOCOL_KEY = "protocol"
PROTOCOL = "segnas.slope/2"
"""How entries are measured, and beside which sentinel; the second differs from the first by its sentinel."""

ONE_PROCESS_SD = 0.015
"""Of all networks that one process measures, beside the mean of many processes: 0.5 to 4 % was seen (docs/measuring.md); our choice."""


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
    """The sentinel's time to which the table's figures refer; None in a table that was not made by `profile`.

    IncompatibleError for a table of another protocol, whose sentinel was another.
    """
    protocol = table.provenance_of(PROTOCOL_KEY)
    if protocol not in (None, PROTOCOL):
        raise IncompatibleError(
            f"the latency table of {table.space!r} was made by protocol {protocol!r}, not {PROTOCOL!r}; run "
            f"`{profile_command(table.space, table.target)}`"
        )
    value = table.provenance_of(SENTINEL_KEY)
    if value is None:
        return None
    try:
        reference = float(value)
    except ValueError:
        reference = math.nan
    if not 0 < reference < math.inf:
        raise InputError(f"the table of {table.space!r} has {SENTINEL_KEY} {value!r} in its provenance; a positive number is needed: profile again")
    return reference


def calibrate(
    table: LatencyTable,
    architectures: Sequence[Architecture],
    *,
    prepare: Prepare,
    measure_rounds: int = ROUNDS,
    sentinel: float | None = None,
    seed: int = 0,
    known: Mapping[str, float] | None = None,
    keep: Callable[[str, float], None] | None = None,
) -> LatencyTable:
    """The table fitted on these networks, measured whole and once each: one scale, and from 40 networks on a correction for each entry.

    `sentinel` overrides the reference time in ms that the table's provenance holds. `known` is what an interrupted calibration measured, by digest;
    `keep` is told of each measurement as soon as it is made. InputError where no network is given.
    """
    distinct = {a.digest: a for a in architectures}
    if not distinct:
        raise InputError("calibration was given no networks; at least 1 is needed, 5 to 10 are advised")
    for architecture in distinct.values():
        table.raw_sum_ms(architecture)  # before the clock: a missing entry must not cost a measurement
    found = {digest: ms for digest, ms in (known or {}).items() if digest in distinct}
    left = [architecture for digest, architecture in distinct.items() if digest not in found]
    for group in in_groups(left):
        reference = sentinel or reference_ms(table)
        measured = measure_all(group, table.target, prepare=prepare, sentinel_ref_ms=reference, rounds=measure_rounds, seed=seed)
        for architecture, label in zip(group, measured, strict=True):
            found[architecture.digest] = label.median_ms
            if keep:
                keep(architecture.digest, label.median_ms)
    level = "entries" if len(distinct) >= ENTRIES_FROM else "scale"
    return table.calibrated([table.probe(architecture, found[digest]) for digest, architecture in distinct.items()], level, process_sd=ONE_PROCESS_SD)


def most_telling(table: LatencyTable, architectures: Sequence[Architecture]) -> Architecture:
    """The network whose measurement would tell most: the one whose estimate is the least sure for want of measurements; the first of equals."""
    return max(architectures, key=table.model_sd)


def residuals(table: LatencyTable, architectures: Sequence[Architecture], measured: Sequence[Measured]) -> tuple[Residual, ...]:
    """What the table says beside what was measured, network by network."""
    return tuple(Residual(a.digest, table.estimate(a).total_ms, m.median_ms) for a, m in zip(architectures, measured, strict=True))

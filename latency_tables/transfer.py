"""Transfer: a table for a new device of the same family, from another device's table and a few whole networks that are measured here.

What operations cost beside each other changes little within a family; what all of them cost does. So every price is multiplied by one factor, the
median ratio of these networks, and what is left shows in the interval.
"""

from collections.abc import Sequence
from dataclasses import replace

from segnas.arch import Architecture
from segnas.errors import IncompatibleError, InputError
from segnas.latency import Calibration, LatencyTable, Prepare
from segnas.latency_tables.compose import SENTINEL_KEY
from segnas.latency_tables.measure import ROUNDS, measure, measure_all
from segnas.latency_tables.merge import rounded, scaled
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.latency_tables.store import content_sha256
from segnas.target import Target

MOVABLE = ("device", "runtime_version", "threads", "options")
"""What may differ between a table's target and that of its transfer; all else changes prices in ways that one factor does not follow."""
LEAST_NETWORKS = 3


def transferred(
    table: LatencyTable, target: Target, networks: Sequence[Architecture], *, prepare: Prepare, rounds: int = ROUNDS, seed: int = 0
) -> LatencyTable:
    """The table for `target`, which is here, its prices times one factor that these networks give; its entries say `transferred`.

    10 networks are advised. IncompatibleError, with the field, where the targets are of no one family; InputError below 3 distinct networks.
    """
    differing = table.differing(target, allow=MOVABLE)
    if differing:
        raise IncompatibleError(f"a latency table cannot be transferred to that target ({differing}); only {', '.join(MOVABLE)} may differ")
    distinct = tuple({a.digest: a for a in networks}.values())
    if len(distinct) < LEAST_NETWORKS:
        raise InputError(f"{len(distinct)} networks were given to transfer a table with; at least {LEAST_NETWORKS} are needed, 10 are advised")
    corrected = tuple(replace(e, median_ms=rounded(table.price_ms(e.operation) / table.calibration.scale)) for e in table.entries)
    priced = replace(table, entries=corrected, calibration=Calibration())  # what was fitted on the other device, but for its one factor, stays
    for architecture in distinct:
        priced.raw_sum_ms(architecture)  # before the clock: a missing entry must not cost a measurement
    reference = measure(sentinel_architecture(), sentinel_target(target), prepare=prepare, rounds=rounds).median_ms
    labels = measure_all(distinct, target, prepare=prepare, sentinel_ref_ms=reference, rounds=rounds, seed=seed)
    measured = [(architecture, label.median_ms) for architecture, label in zip(distinct, labels, strict=True)]
    factor = priced.calibrated([priced.probe(*pair) for pair in measured]).calibration.scale
    origin = {"transferred_from": content_sha256(table), "transferred_device": table.target.device, SENTINEL_KEY: f"{reference:.6f}"}
    made = scaled(replace(priced, target=target, provenance=tuple(sorted({**dict(table.provenance), **origin}.items()))), factor)
    made = replace(made, entries=tuple(replace(e, source="transferred", method=f"{e.method}, transferred") for e in made.entries))
    return made.calibrated([made.probe(*pair) for pair in measured])

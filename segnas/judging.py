"""Judging a table: draw networks, measure each in several processes, fit at every level, and say how far the estimates are off.

draws -> judge.jsonl (one line a network and process) -> Judgement
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Protocol, cast

from segnas.arch import Architecture
from segnas.errors import IncompatibleError, InputError
from segnas.export.manifest import versions
from segnas.files import plain, read_versioned, write_text
from segnas.journals import Journal
from segnas.latency import LatencyTable
from segnas.latency_tables.compose import reference_ms
from segnas.latency_tables.judge import JUDGED, Judgement, bare, rows, spread
from segnas.latency_tables.labels import Label, labels, noise, process_sd
from segnas.latency_tables.measure import Measured, in_groups, measure_all
from segnas.measuring import Progress, prepare_probe, require_entries
from segnas.search.draws import corners, stratified, uniform
from segnas.search.expected import ExpectedLatency
from segnas.search.space import Space
from segnas.target import Target

SCHEMA = ("segnas.judgement", 2)
FITTED, UNIFORM, STRATIFIED = 40, 30, 30
ROUNDS = 4
"""Turns of each network in each process: half of what a single measurement takes, since as many turns in twice the processes say more: what all
networks of a process share, and of a group, is averaged over more of them (our choice)."""
Draw = Callable[[int, Collection[str]], Sequence[Architecture]]


class MeasureAll(Protocol):
    """Latencies of several networks in one new process, at the speed at which the sentinel takes `sentinel_ref_ms`."""

    def __call__(self, architectures: Sequence[Architecture], target: Target, sentinel_ref_ms: float, seed: int) -> tuple[Measured, ...]: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """The networks that a table is fitted on and judged by, all distinct."""

    calibration: tuple[Architecture, ...]
    uniform: tuple[Architecture, ...]
    stratified: tuple[Architecture, ...]
    corners: dict[str, Architecture]

    @property
    def by_digest(self) -> dict[str, Architecture]:
        """All of them."""
        return {a.digest: a for a in (*self.calibration, *self.uniform, *self.stratified, *self.corners.values())}


def save_judgement(table: Path, judgement: Judgement) -> None:
    """Write it beside that table, whole or not at all."""
    content = {"schema": f"{SCHEMA[0]}/{SCHEMA[1]}", **cast(dict[str, Any], plain(judgement))}
    write_text(table.with_suffix(JUDGED), json.dumps(content, indent=1) + "\n")


def read_judgement(table: Path) -> Judgement:
    """What was saved beside that table. InputError where there is none or it is damaged, IncompatibleError at another version."""
    return read_versioned(table.with_suffix(JUDGED), Judgement, *SCHEMA)


def draw(space: Space, table: LatencyTable, seed: int) -> Drawn:
    """Half of the calibration networks uniform and half stratified, in turn, so that the first ten are of both; held-out ones are none of them.

    The stratified ones come as every fourth of the range, then the next fourth, so that the first ten hold cheap and dear networks alike.
    """
    rng, price = Random(seed), ExpectedLatency(space, bare(table)).exact  # whatever the table was calibrated on, the same draws
    edges = corners(space, price)
    taken = {architecture.digest for architecture in edges.values()}

    def fresh(draw_so_many: Draw, count: int) -> list[Architecture]:
        kept = draw_so_many(count, frozenset(taken))
        if len(kept) < count:
            raise InputError(f"{space.name!r} has too few networks to judge a table by: {len(kept)} of {count} could be drawn")
        taken.update(architecture.digest for architecture in kept)
        return list(kept)

    def evenly(count: int, without: Collection[str]) -> Sequence[Architecture]:
        return uniform(space, count, rng, without)

    def over_the_range(count: int, without: Collection[str]) -> Sequence[Architecture]:
        return stratified(space, count, price, rng, without)

    ranged = fresh(over_the_range, FITTED // 2)
    spread_out = [architecture for first in (2, 0, 3, 1) for architecture in ranged[first::4]]
    mixed = zip(fresh(evenly, FITTED // 2), spread_out, strict=True)
    calibration = tuple(architecture for pair in mixed for architecture in pair)
    return Drawn(calibration, tuple(fresh(evenly, UNIFORM)), tuple(fresh(over_the_range, STRATIFIED)), edges)


def measured_in_new_process(architectures: Sequence[Architecture], target: Target, sentinel_ref_ms: float, seed: int) -> tuple[Measured, ...]:
    """`measure_all` in a process that did nothing before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (tuple(architectures), target, sentinel_ref_ms, seed))


def _measured(architectures: tuple[Architecture, ...], target: Target, sentinel_ref_ms: float, seed: int) -> tuple[Measured, ...]:
    return measure_all(architectures, target, prepare=prepare_probe, sentinel_ref_ms=sentinel_ref_ms, rounds=ROUNDS, seed=seed)


def judge_table(
    space: Space,
    table: LatencyTable,
    *,
    journal: Path,
    processes: int,
    seed: int,
    progress: Progress,
    measure: MeasureAll = measured_in_new_process,
) -> tuple[Judgement, LatencyTable]:
    """The table's held-out figures, and the table calibrated for each entry on all the calibration networks.

    Networks that are fitted on and networks that are held out are measured in `processes` processes each, never in the same one, in turn, each time
    in another order, so that those that are open together are others in each.
    A process that has finished is in the journal and is not repeated. IncompatibleError for a journal of another table or of other networks.
    """
    require_entries(space, table)
    reference = reference_ms(table)
    if reference is None:
        raise InputError(f"the table of {table.space!r} does not say at which speed of the sentinel it was made; make it with `segnas profile`")
    drawn = draw(space, table, seed)
    held_out = (*drawn.uniform, *drawn.stratified, *dict.fromkeys(drawn.corners.values()))
    log = _Sessions(journal, table, [a.digest for a in (*drawn.calibration, *held_out)])
    plan = [task for i in range(processes) for task in (("fit", i, drawn.calibration), ("held", i, held_out))]
    for done, (role, number, networks) in enumerate(plan):
        progress(done, len(plan), f"process {done + 1} of {len(plan)}: {len(networks)} networks")
        if not log.has(role, number):
            shuffled = Random(f"{seed} {done} order").sample(networks, len(networks))
            log.add(role, number, shuffled, measure(shuffled, table.target, reference, seed + done))
    progress(len(plan), len(plan), "")
    architectures = drawn.by_digest
    fitted_on, held = log.labels("fit"), log.labels("held")
    calibration = tuple(fitted_on[a.digest] for a in drawn.calibration)
    sets = {
        "uniform": tuple(held[a.digest] for a in drawn.uniform),
        "stratified": tuple(held[a.digest] for a in drawn.stratified),
        "corners": tuple(held[a.digest] for a in dict.fromkeys(drawn.corners.values())),
    }
    probes = [table.probe(architectures[label.digest], label.ms) for label in calibration]
    fitted = table.calibrated(probes, "entries", process_sd=process_sd(calibration, tuple(held.values())))
    by_digest = {label.digest: label for label in sets["corners"]}
    errors = {name: 100 * (fitted.estimate(a).total_ms / by_digest[a.digest].ms - 1) for name, a in drawn.corners.items()}
    judgement = Judgement(
        space=space.name,
        target=table.target,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        processes=processes,
        calibration=calibration,
        sets=tuple(sets.items()),
        label_noise=tuple((name, noise(found)) for name, found in sets.items()),
        spread=tuple((name, spread(found)) for name, found in sets.items()),
        rows=rows(table, architectures, calibration, sets),
        corners=tuple(errors.items()),
        conditions=(*versions(), ("load", " ".join(f"{value:.2f}" for value in os.getloadavg())), *table.mismatch),
        together=log.together,
    )
    return judgement, fitted


class _Sessions:
    """The journal: a header that names table and networks, then one line a finished process."""

    def __init__(self, path: Path, table: LatencyTable, digests: Sequence[str]) -> None:
        self._journal = Journal(path)
        self._found: dict[tuple[str, int], list[dict[str, float]]] = {}
        header = {"space": table.space, "prices": table.prices_digest, "networks": list(digests)}
        if self._journal.begin(header) != header:
            raise IncompatibleError(f"{path} was begun with another table or other networks; remove it, or give another --out")
        for number, line in enumerate(self._journal.entries[1:], 2):
            try:
                self._found[line["role"], line["process"]] = [{digest: float(ms) for digest, ms in group.items()} for group in line["groups"]]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise self._journal.damaged(number, "each line must hold a role, a process and the ms of its groups of networks") from None

    def has(self, role: str, process: int) -> bool:
        """Whether that process has finished."""
        return (role, process) in self._found

    def add(self, role: str, process: int, networks: Sequence[Architecture], measured: Sequence[Measured]) -> None:
        """Keep what a process found; on the disk before this returns."""
        pairs = [(a.digest, m.median_ms) for a, m in zip(networks, measured, strict=True)]
        groups = [dict(group) for group in in_groups(pairs)]
        self._journal.add({"role": role, "process": process, "groups": groups})
        self._found[role, process] = groups

    def labels(self, role: str) -> dict[str, Label]:
        """The networks' labels over all finished processes of that role."""
        return labels([groups for (kept, _), groups in sorted(self._found.items()) if kept == role])

    @property
    def together(self) -> tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]:
        """Each process's role, and its groups of networks."""
        return tuple((role, tuple(tuple(group) for group in groups)) for (role, _), groups in sorted(self._found.items()))


def judgement_lines(judgement: Judgement) -> list[str]:
    """The figures as a table for people."""
    noises, spreads = dict(judgement.label_noise), dict(judgement.spread)
    lines = [f"{judgement.space} on {judgement.target}: labels are means of {judgement.processes} processes"]
    lines += [f"{name}: {len(labels)} networks, spread {spreads[name]:.1f} %, label noise {noises[name]:.2f} %" for name, labels in judgement.sets]
    lines.append(
        f"{'held-out set':<12} {'fitted on':>9} {'level':<8} {'MAPE':>6} {'RMSPE':>6} {'bias':>6} {'worst':>6} {'hit5':>5} {'hit10':>5}"
        f" {'tau':>6} {'in band':>7} {'in 90 %':>7}"
    )
    for row in judgement.rows:
        f = row.figures
        band = "-" if f.band_tau is None else f"{f.band_tau:.2f}"
        lines.append(
            f"{row.networks:<12} {row.fitted_on:>9} {row.level:<8} {f.mape:>6.2f} {f.rmspe:>6.2f} {f.bias:>+6.2f} {f.worst:>+6.1f} {f.hit5:>5.0f} "
            f"{f.hit10:>5.0f} {f.tau:>6.3f} {band:>7} {f.covered:>7.0f}"
        )
    lines += [f"corner {name:<28} {error:+.1f} %" for name, error in judgement.corners]
    return lines

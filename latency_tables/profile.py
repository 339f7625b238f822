"""Profile: measure the price of each operation on a target, resumably, into a latency table.

A group of operations is open at once; rounds visit all their probes in shuffled order with the sentinel between; an operation is done when its
confidence interval is tight or its time is up, and goes to the journal at once. What stayed unsure, or costs more than the same operation on larger
features, is measured again, a bounded number of times.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from segnas.arch import Operation
from segnas.errors import IncompatibleError
from segnas.latency import Entry, LatencyTable, Prepare, Timed
from segnas.latency_tables.compose import PROTOCOL, PROTOCOL_KEY, SENTINEL_KEY
from segnas.latency_tables.journal import ProfileJournal, Record, header_of
from segnas.latency_tables.monotone import inversions
from segnas.latency_tables.probes import Design, designs, entry_kind
from segnas.latency_tables.sentinel import Interleaver, Visit, interleaved
from segnas.latency_tables.slope import LEAST_ROUNDS, Price, Slope, prices, slope_of
from segnas.target import Target
from segnas.timing import percentile

GROUP = 8
VISIT_MS = 8.0  # what one turn of a probe aims at
ROUNDS = 36
TIGHT = 0.015  # relative half-width of the slope's confidence interval at which an operation is done
ENTRY_MS = 900.0  # measuring time after which an operation is done, however wide the interval
REPEATS = 2  # of what stayed unsure, or costs more than the same operation on larger features
REPEATED_MS = 600.0  # an operation's share, on average, of the time for measuring again
GPU_SHARE = 5 / 3
"""How much longer both are on a GPU, where a sample lasts 2 ms however short the network is: simulated with drift, throttling and outliers, the worst
error of a table's sums over 30 seeds is 0.66 % with 600 ms an operation and 0.59 % from 1200 ms on (our choice)."""

CHEAP = 0.25  # of the table's median price: below it, absolute precision counts

Progress = Callable[[int, int, Operation], None]
"""Called after each finished operation: how many are done, how many there are, which one it was."""


@dataclass(slots=True)
class _Open:
    """An operation whose probes stand open, and its turns so far."""

    design: Design
    graph_sha256: str
    probes: list[Timed]
    runs: list[int]
    visits: list[list[Visit]]
    limit_ms: float

    @property
    def copies(self) -> tuple[int, ...]:
        return tuple(rung.copies for rung in self.design.rungs)

    def is_done(self, rounds: int) -> bool:
        """Whether the interval is tight, the time up or the rounds over."""
        made = len(self.visits[0])
        if made < LEAST_ROUNDS or made >= rounds:
            return made >= rounds
        slope = slope_of(self.copies, self.visits)
        return slope.half_width <= TIGHT * slope.value or time_of(self.visits) > self.limit_ms


def profile(
    space_name: str,
    operations: Sequence[Operation],
    target: Target,
    *,
    prepare: Prepare,
    graph_sha256: Callable[[Operation], str],
    journal: Path,
    provenance: Mapping[str, str],
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
    progress: Progress | None = None,
    seed: int = 0,
) -> LatencyTable:
    """The table of these operations, measured here or read from the journal of an interrupted profile.

    Prices are in ms at the speed at which the sentinel takes its median time, which the provenance keeps as `sentinel_ms`. Raises IncompatibleError
    where the journal belongs to another space or target; whatever `prepare` raises passes through, and what was finished stays in the journal.
    """
    plan = designs(operations, target)
    log = ProfileJournal(journal, header_of(space_name, target, PROTOCOL))
    _require_graphs(plan, log, graph_sha256)
    done = sum(1 for design in plan if log.records(design.operation))
    for attempt in range(repeats + 1):
        pending = _pending(plan, log, attempt, REPEATED_MS * _patience(target))
        random.Random(f"{seed} {attempt}").shuffle(pending)
        for record in _measured(pending, target, prepare, graph_sha256, rounds, attempt, random.Random(f"{seed} {attempt} turns")):
            log.append(record)
            done += attempt == 0
            if progress is not None:
                progress(done, len(plan), record.operation)
    return _table(space_name, operations, target, plan, log, provenance)


def time_of(visits: Sequence[Sequence[Visit]]) -> float:
    """What these turns took of the clock in ms: every run of the networks, also those that are not kept and those that a sample is the mean of."""
    return math.fsum(visit.took_ms for turns in visits for visit in turns)


def _patience(target: Target) -> float:
    """What the limits of time are multiplied by."""
    return GPU_SHARE if target.scope == "gpu" else 1.0


def _require_graphs(plan: Sequence[Design], log: ProfileJournal, graph_sha256: Callable[[Operation], str]) -> None:
    """IncompatibleError where the journal holds an operation that is exported as another graph by now."""
    for design in plan:
        records = log.records(design.operation)
        if records and {record.graph_sha256 for record in records} != {graph_sha256(design.operation)}:
            raise IncompatibleError(
                f"{log.path} holds {design.operation} as another graph than it is exported as now; remove it or choose another --out"
            )


def _pending(plan: Sequence[Design], log: ProfileJournal, attempt: int, share_ms: float) -> list[Design]:
    """What this attempt measures: everything at first, then what is not settled or not monotone, within `share_ms` an operation; never what the
    journal holds.
    """
    waiting = [design for design in plan if len(log.records(design.operation)) == attempt]
    if attempt == 0 or not waiting:
        return waiting
    known, _ = _prices(plan, log)
    scale = CHEAP * percentile([price.ms for price in known.values()], 50)
    inverted = {o for pair in inversions({o: (price.ms, price.half_width_ms) for o, price in known.items()}) for o in (pair.smaller, pair.larger)}
    unsure = [design for design in waiting if design.operation in inverted or not known[design.operation].is_settled(scale)]
    unsure.sort(key=lambda design: -known[design.operation].half_width_ms)
    earlier = [record for design in plan for record in log.records(design.operation) if record.attempt <= attempt]
    left = share_ms * len(plan) - sum(time_of(record.visits) for record in earlier if record.attempt > 0)
    chosen: list[Design] = []
    for design in unsure:
        left -= time_of(log.records(design.operation)[0].visits)
        if left >= 0:
            chosen.append(design)
    return chosen


def _measured(
    pending: Sequence[Design],
    target: Target,
    prepare: Prepare,
    graph_sha256: Callable[[Operation], str],
    rounds: int,
    attempt: int,
    dice: random.Random,
) -> Iterator[Record]:
    if not pending:
        return
    with interleaved(target, prepare) as interleaver:
        for first in range(0, len(pending), GROUP):
            with ExitStack() as stack:
                group = [_opened(design, target, prepare, graph_sha256, stack) for design in pending[first : first + GROUP]]
                for entry in _finished(group, interleaver, rounds, dice):
                    yield Record(entry.design.operation, attempt, entry.graph_sha256, entry.copies, tuple(map(tuple, entry.visits)))


def _opened(design: Design, target: Target, prepare: Prepare, graph_sha256: Callable[[Operation], str], stack: ExitStack) -> _Open:
    probes = [stack.enter_context(closing(prepare(rung.architecture, rung.target(target)))) for rung in design.rungs]
    runs = [min(max(round(VISIT_MS / max(probe.sample(2)[1], 1e-6)), 1), 12) for probe in probes]
    return _Open(design, graph_sha256(design.operation), probes, runs, [[] for _ in probes], ENTRY_MS * _patience(target))


def _finished(group: Sequence[_Open], interleaver: Interleaver, rounds: int, dice: random.Random) -> Iterator[_Open]:
    """Rounds over all that is unfinished; each operation as soon as it is done."""
    unfinished = list(group)
    interleaver.begin()
    while unfinished:
        turns = [(entry, rung) for entry in unfinished for rung in range(len(entry.probes))]
        dice.shuffle(turns)
        for entry, rung in turns:
            entry.visits[rung].append(interleaver.visit(entry.probes[rung], entry.runs[rung]))
        for entry in unfinished:
            if entry.is_done(rounds):
                yield entry
        unfinished = [entry for entry in unfinished if not entry.is_done(rounds)]


def _prices(plan: Sequence[Design], log: ProfileJournal) -> tuple[dict[Operation, Price], float]:
    """Prices from all that the journal holds, and the sentinel's median time in ms that they refer to."""
    readings = [v.sentinel_ms for d in plan for record in log.records(d.operation) for turns in record.visits for v in turns]
    reference = percentile(readings, 50)
    return prices(plan, {design.operation: _slope(design, log) for design in plan}, reference), reference


def _slope(design: Design, log: ProfileJournal) -> Slope:
    records = log.records(design.operation)
    joined = [[visit for record in records for visit in record.visits[rung]] for rung in range(len(design.rungs))]
    return slope_of(records[0].copies, joined)


def _table(
    space: str, operations: Sequence[Operation], target: Target, plan: Sequence[Design], log: ProfileJournal, provenance: Mapping[str, str]
) -> LatencyTable:
    wanted = {operation for operation in operations if not operation.is_free}
    known, reference = _prices(plan, log) if plan else ({}, 0.0)
    entries = [_entry(design, known[design.operation], log.records(design.operation), target) for design in plan if design.operation in wanted]
    origin = {**provenance, SENTINEL_KEY: f"{reference:.6f}", PROTOCOL_KEY: PROTOCOL}
    return LatencyTable(space, target, tuple(sorted(entries, key=lambda entry: entry.operation)), provenance=tuple(sorted(origin.items())))


def _entry(design: Design, price: Price, records: Sequence[Record], target: Target) -> Entry:
    return Entry(
        operation=design.operation,
        kind=entry_kind(design.operation, target),
        median_ms=round(price.ms, 7),
        spread=round(price.spread, 4),
        samples=sum(record.samples for record in records),
        method=design.method,
        graph_sha256=records[0].graph_sha256,
    )

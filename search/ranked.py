"""Ranked candidates: what a search that samples networks leaves behind, and how the first of them that meets the budget is found by measuring."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from segnas.data import Dataset
from segnas.errors import InputError
from segnas.latency import LatencyTable
from segnas.report import Curve
from segnas.search.budget import USUAL_SD, Measure, Measurement, Met, bounds
from segnas.search.settings import SearchSettings, TrainSettings
from segnas.search.space import Derived, Space

Progress = Callable[[int, int, str], None]

MOST = 8
"""So many candidates are measured at most; our choice."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that was scored: its genotype, its price by the table in ms, its score, and its score after a re-ranking where it was in one."""

    genotype: dict[str, int]
    price_ms: float
    score: float
    reranked: float | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a sampled search runs: its folder, starting weights (a file) if any, device, seed, and whom it tells how far it is."""

    folder: Path
    pretrained: Path | None
    device: str
    seed: int
    progress: Progress


@dataclass(frozen=True)
class Sought:
    """What a sampled search is to find: a network of a space within a budget in ms by the table, for these images, by these settings."""

    space: Space
    table: LatencyTable
    dataset: Dataset
    search: SearchSettings
    train: TrainSettings
    budget_ms: float


@dataclass(frozen=True)
class Ranked:
    """What a sampled search found: candidates within the budget, the best first, its curves, and what it has to say of itself.

    `found` is kept in `search.json` as it is (JSON values).
    """

    candidates: tuple[Candidate, ...]
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict[str, Any])


SampledMethod = Callable[[Sought, Surroundings], Ranked]


def in_order(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The re-ranked ones by what they reached there, then the others by their score, the best first; of equal ones the cheapest."""
    return tuple(sorted(candidates, key=lambda c: (c.reranked is None, -(c.score if c.reranked is None else c.reranked), -c.score, c.price_ms)))


def meet_ranked(
    space: Space,
    candidates: Sequence[Candidate],
    table: LatencyTable,
    budget_ms: float,
    *,
    measure: Measure,
    most: int = MOST,
    on_measured: Callable[[Measurement], None] | None = None,
) -> Met:
    """The first candidate whose *measured* latency is under the budget by twice the noise of its mean, else the one that is furthest within it.

    At most `most` are measured; those that the table, corrected by what was measured, does not expect so far under the budget come after all others,
    the cheapest of them first. InputError where none of those that were measured is within the budget.
    """
    records: list[Measurement] = []
    within: list[tuple[float, Candidate, Derived]] = []
    for candidate, derived in _turns(space, candidates, table, budget_ms, records):
        if len(records) >= most:
            break
        measured = measure(derived.architecture)
        digest, predicted = derived.architecture.digest, table.estimate(derived.architecture).total_ms
        records.append(Measurement(digest, predicted, measured.median_ms, measured.relative_sd))
        if on_measured:
            on_measured(records[-1])
        if measured.median_ms <= budget_ms:
            within.append((measured.median_ms, candidate, derived))
        if measured.median_ms <= bounds(measured.relative_sd)[1] * budget_ms:
            within = within[-1:]
            break
    if not within:
        fastest = min((r.measured_ms for r in records), default=float("nan"))
        raise InputError(
            f"none of {len(records)} candidates met the budget of {budget_ms:.3f} ms, the fastest took {fastest:.3f} ms; ask for at least "
            f"{fastest * 1.1:.2f} ms, or search again with more trials"
        )
    _, candidate, derived = min(within, key=lambda each: each[0])
    probes = [(space.decode(c.genotype).architecture, c) for c in candidates]
    known = {architecture.digest: architecture for architecture, _ in probes}
    for record in records:
        level = table.calibration.level if table.calibration.level != "sum" else "scale"
        table = table.calibrated((*table.calibration.probes, table.probe(known[record.digest], record.measured_ms)), level)
    return Met(dict(candidate.genotype), derived, table, tuple(records))


def _turns(
    space: Space, candidates: Sequence[Candidate], table: LatencyTable, budget_ms: float, records: Sequence[Measurement]
) -> Iterator[tuple[Candidate, Derived]]:
    """The candidates in the order in which they are tried; `records` grows meanwhile. Each network once."""
    late: list[tuple[float, Candidate, Derived]] = []
    seen: set[str] = set()
    for candidate in candidates:
        derived = space.decode(candidate.genotype)
        if derived.architecture.digest in seen:
            continue
        seen.add(derived.architecture.digest)
        ratio = fmean(r.measured_ms / r.predicted_ms for r in records) if records else 1.0
        aimed = bounds(fmean(r.relative_sd for r in records) if records else USUAL_SD)[1] * budget_ms
        predicted = table.estimate(derived.architecture).total_ms
        if predicted * ratio > aimed:
            late.append((predicted, candidate, derived))
        else:
            yield candidate, derived
    yield from ((candidate, derived) for _, candidate, derived in sorted(late, key=lambda each: each[0]))

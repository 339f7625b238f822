"""Sampling-based search: genotypes within a budget are proposed, priced by the table, scored one by one, and the best is kept.

The score is injected (`Scoring`). Any number of workers, on any number of machines, share the work through a storage of Optuna (study.py).
"""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import Trial

from segnas.arch import canonical_json
from segnas.errors import RequirementError, VerificationError
from segnas.latency import Estimate, LatencyTable
from segnas.search.expected import ExpectedLatency
from segnas.search.proposals import Allowed, Proposer, Strategy, propose
from segnas.search.space import Derived, Genotype, Space
from segnas.search.study import SharedStudy
from segnas.search.trials import SampledTrial, scored
from segnas.search.workers import BEAT_S, SILENCE_S, beating, this_worker

Score = Callable[[Genotype], float]
"""What a genotype is worth; higher is better; a `Noted` one has notes that are kept with the trial.

It raises one of `FAILURES`, or answers no finite number, where the genotype cannot be scored.
"""

Progress = Callable[[int, int, str], None]

FAILURES = (VerificationError, MemoryError)
"""What makes a trial a failed one: the loss diverged, the memory did not do. Anything else stops the worker, and the genotype goes to another."""

POLL_S = 2.0
"""How often a worker without work looks whether the others have finished."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """A score, and everything that it depends on but the genotype, as JSON values: two studies whose `schedule` differs do not mix.

    `hear`, where there is one, is told all trials as they are before each evaluation.
    """

    score: Score
    schedule: Mapping[str, Any]
    hear: Callable[[Sequence[SampledTrial]], None] | None = None


class Noted(float):
    """A score with notes: numbers by name. `truncated` says that the evaluation was stopped early: such a score is not compared with others."""

    notes: Mapping[str, float]

    def __new__(cls, score: float, **notes: float) -> "Noted":
        made = super().__new__(cls, score)
        made.notes = notes
        return made


@dataclass(frozen=True)
class Sampled:
    """The best genotype of a study, its network, the table's estimate of it, its score, and every trial by number."""

    genotype: dict[str, int]
    derived: Derived
    estimate: Estimate
    score: float
    trials: tuple[SampledTrial, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many trials ended in each state."""
        return dict(sorted(Counter(trial.state for trial in self.trials).items()))


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between two signs of life, of silence until a worker counts as dead, and between two looks of one that waits; tests give others."""

    beat_s: float = BEAT_S
    silence_s: float = SILENCE_S
    poll_s: float = POLL_S


def sample(
    space: Space,
    table: LatencyTable,
    strategy: Strategy | Proposer,
    scoring: Scoring,
    *,
    budget_ms: float,
    trials: int,
    storage: BaseStorage,
    name: str,
    seed: int,
    progress: Progress | None = None,
    pace: Pace = Pace(),
) -> Sampled:
    """Work on the study of that name until `trials` are complete or failed, over all workers, and return its best.

    A worker alone gives the same trials for the same seed, however often it was killed and started again on its machine. Several workers share the
    population, which is read from the storage. InputError for a budget that no network meets, before anything is written; IncompatibleError for a
    study of another search; VerificationError where no trial could be scored; RequirementError where the storage is out of reach.
    """
    allowed = Allowed(space, ExpectedLatency(space, table).exact, budget_ms)

    def choose(before: Sequence[SampledTrial], slot: int) -> dict[str, int]:
        taken = {allowed.key(trial.genotype) for trial in before if trial.counts and trial.genotype is not None}
        rng = Random(f"{seed} {slot}")
        if not isinstance(strategy, Strategy):
            return strategy.propose(allowed, before, taken, rng)
        return propose(strategy, allowed, scored(before), taken, rng)

    identity = study_identity(space, table, strategy, budget_ms, seed, scoring.schedule)
    try:
        study = SharedStudy(storage, name, identity=identity, allowed=allowed, choose=choose, worker=this_worker(), silence_s=pace.silence_s)
        return best_of(space, table, _worked(study, scoring, trials, progress, pace))
    except StorageInternalError as error:
        raise RequirementError(f"the storage of study {name!r} is out of reach ({error}); run the same command again once it is back") from error


def score_listed(
    space: Space,
    table: LatencyTable,
    genotypes: Sequence[Genotype],
    scoring: Scoring,
    *,
    budget_ms: float,
    storage: BaseStorage,
    name: str,
    seed: int,
    progress: Progress | None = None,
    pace: Pace = Pace(),
) -> tuple[SampledTrial, ...]:
    """Score these genotypes, each once, shared by all workers on the study of that name; errors as of `sample`. Those that fail have no score."""
    allowed = Allowed(space, ExpectedLatency(space, table).exact, budget_ms)
    identity = study_identity(space, table, f"listed {_digest([dict(g) for g in genotypes])}", budget_ms, seed, scoring.schedule)

    def choose(before: Sequence[SampledTrial], slot: int) -> dict[str, int]:
        return dict(genotypes[min(slot, len(genotypes) - 1)])

    try:
        study = SharedStudy(storage, name, identity=identity, allowed=allowed, choose=choose, worker=this_worker(), silence_s=pace.silence_s)
        return _worked(study, scoring, len(genotypes), progress, pace)
    except StorageInternalError as error:
        raise RequirementError(f"the storage of study {name!r} is out of reach ({error}); run the same command again once it is back") from error


def study_identity(
    space: Space, table: LatencyTable, strategy: Strategy | Proposer | str, budget_ms: float, seed: int, schedule: Mapping[str, Any]
) -> dict[str, Any]:
    """What a study is of, as JSON values; it is kept with the study, and another is refused."""
    calibration = [table.calibration.scale, [list(correction) for correction in table.calibration.corrections]]
    return {
        "space": space.name,
        "classes": space.classes,
        "definition": _digest(space.to_dict()),
        "table": table.prices_digest,
        "calibration": _digest(calibration),
        "budget_ms": budget_ms,
        "strategy": str(strategy),
        "seed": seed,
        "schedule": json.loads(canonical_json(dict(schedule))),
    }


def best_of(space: Space, table: LatencyTable, trials: Sequence[SampledTrial]) -> Sampled:
    """The trial of the highest score, of equal ones the cheapest, then the first; a truncated one where there is no other.

    VerificationError where none has a score.
    """
    complete = [t for t in trials if t.score is not None and t.genotype is not None]
    if not complete:
        failed = [t for t in trials if t.state == "failed"]
        reason = f"; the last reason: {failed[-1].reason}" if failed else ""
        raise VerificationError(
            f"none of {len(failed)} trials could be scored{reason}; give another schedule (--recipe, --steps) and another --study"
        )
    best = max(complete, key=lambda t: (not t.truncated, t.score or 0.0, -(t.price_ms or 0.0), -t.number))
    genotype = dict(best.genotype or {})
    derived = space.decode(genotype)
    return Sampled(genotype, derived, table.estimate(derived.architecture), best.score or 0.0, tuple(trials))


def _worked(study: SharedStudy, scoring: Scoring, total: int, progress: Progress | None, pace: Pace) -> tuple[SampledTrial, ...]:
    """Every trial, once so many are done: take trials while there are any, then wait for those of others, or for their end."""
    while True:
        study.require_same()
        study.reclaim()
        known = study.trials()
        done = sum(trial.is_done for trial in known)
        if progress:
            progress(min(done, total), total, _told(known))
        if done >= total:
            return known
        if sum(trial.counts for trial in known) >= total and not any(trial.state == "waiting" for trial in known):
            time.sleep(pace.poll_s)
            continue
        asked = study.ask(total)
        if asked is not None:
            if scoring.hear:
                scoring.hear(study.trials())
            _evaluate(study, *asked, scoring.score, pace.beat_s)


def _evaluate(study: SharedStudy, trial: Trial, genotype: dict[str, int], score: Score, beat_s: float) -> None:
    begun = time.monotonic()
    try:
        with beating(lambda count: study.beat(trial, count), beat_s):
            value = score(genotype)
    except FAILURES as error:
        study.fail(trial, f"{type(error).__name__}: {error}", _seconds(begun))
        return
    except BaseException:
        study.give_back(trial)
        raise
    if math.isfinite(value):
        study.tell(trial, float(value), _seconds(begun), value.notes if isinstance(value, Noted) else {})
    else:
        study.fail(trial, f"the score is {value}", _seconds(begun))


def _seconds(begun: float) -> float:
    return round(time.monotonic() - begun, 3)


def _told(trials: Sequence[SampledTrial]) -> str:
    scores = [t.score for t in trials if t.score is not None]
    failed = sum(t.state == "failed" for t in trials)
    return f"best {max(scores):.4f}{f', {failed} failed' if failed else ''}" if scores else f"{failed} failed" if failed else ""


def _digest(content: object) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]

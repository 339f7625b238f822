"""Trials of a sampling search as values: what an Optuna study says about each, and what follows from all of them.

A trial counts towards the number that was asked for, unless it is `lost` (its worker died; another trial stands for it) or `surplus` (one more than
was asked for). The slot of a trial is the number of those before it that count: what is proposed depends on the slot, so that a loss changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from segnas.search.space import Genotype
from segnas.search.workers import Worker

State = Literal["complete", "failed", "lost", "surplus", "running", "waiting"]


@dataclass(frozen=True, slots=True)
class SampledTrial:
    """One trial: its genotype (none before it was chosen), its price by the table in ms, its score once complete, the seconds that scoring took.

    `attempt` counts how often the genotype was tried after a worker died; `stands_for` is the number of the trial that was lost; `reason` says why
    it failed; `notes` are those of its score.
    """

    number: int
    state: State
    genotype: dict[str, int] | None = None
    score: float | None = None
    price_ms: float | None = None
    seconds: float | None = None
    attempt: int = 1
    stands_for: int | None = None
    reason: str = ""
    worker: Worker | None = None
    beat: int = 0
    notes: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def truncated(self) -> bool:
        """Whether the evaluation was stopped early, so that the score is not compared with others."""
        return bool(self.notes.get("truncated"))

    @property
    def counts(self) -> bool:
        """Whether it is one of those that were asked for."""
        return self.state not in ("lost", "surplus")

    @property
    def is_done(self) -> bool:
        """Whether it counts and nothing remains to be done."""
        return self.state in ("complete", "failed")


def read_trial(trial: FrozenTrial, decisions: Iterable[str]) -> SampledTrial:
    """The trial as Optuna keeps it."""
    kept: Mapping[str, Any] = trial.user_attrs
    chosen = kept.get("genotype") or trial.params
    genotype = {name: int(chosen[name]) for name in decisions} if all(name in chosen for name in decisions) else None
    return SampledTrial(
        number=trial.number,
        state=_state(trial),
        genotype=genotype,
        score=trial.value if trial.state == TrialState.COMPLETE else None,
        price_ms=kept.get("price_ms"),
        seconds=kept.get("seconds"),
        attempt=kept.get("attempt", 1),
        stands_for=kept.get("stands_for"),
        reason=kept.get("reason", ""),
        worker=Worker(**kept["worker"]) if "worker" in kept else None,
        beat=kept.get("beat", 0),
        notes=dict(kept.get("notes", {})),
    )


def slot_of(trials: Iterable[SampledTrial], number: int) -> int:
    """How many trials before that number count."""
    return sum(trial.counts for trial in trials if trial.number < number)


def scored(trials: Iterable[SampledTrial]) -> list[tuple[Genotype, float]]:
    """The genotypes with their scores, the oldest first: by number, which is the same on every machine."""
    complete = sorted((t for t in trials if t.score is not None), key=lambda trial: trial.number)
    return [(t.genotype, t.score) for t in complete if t.genotype is not None and t.score is not None]


def is_stood_for(trials: Sequence[SampledTrial], trial: SampledTrial) -> bool:
    """Whether a trial that stands for a lost one is not needed: an earlier one stands there, or the lost one ended after all."""
    return any(
        (other.number < trial.number and other.stands_for == trial.stands_for) or (other.number == trial.stands_for and other.is_done)
        for other in trials
    )


def _state(trial: FrozenTrial) -> State:
    match trial.state:
        case TrialState.COMPLETE:
            return "complete"
        case TrialState.WAITING:
            return "waiting"
        case TrialState.RUNNING:
            return "running"
        case _:
            void = trial.user_attrs.get("void")
            return void if void in ("lost", "surplus") else "failed"

"""The controller as a proposer of a sampling search: it learns from the study's finished trials, and its state is a file that follows from them."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any

from segnas.arch import canonical_json
from segnas.errors import InputError
from segnas.search.checkpoint import load_tensors, plain_settings, save_tensors
from segnas.search.controlled_settings import ControllerSettings
from segnas.search.controller import Controller, Learner, decisions_of, latency_factor
from segnas.search.proposals import Allowed, Key
from segnas.search.space import Space
from segnas.search.trials import SampledTrial

DRAWS = 500
"""So many of the controller's samples may be over the budget, break a rule or be known before a uniform draw takes their place; our choice."""


class ControlledProposer:
    """Proposes what a controller samples, and what is allowed. `file` keeps its state; without it, or where it doesn't fit, trials are learned anew.

    The controller learns from each complete trial once, in the order of their numbers as far as they are known: its reward is the score times the
    latency factor. A failed trial has no reward. A truncated one is learned from, but does not enter the baseline. The old log-probability is that of
    the policy when it first learns from the trial; with one worker that is the policy that proposed it.
    """

    def __init__(self, space: Space, settings: ControllerSettings, *, order: Sequence[str], budget_ms: float, seed: int, file: Path | None) -> None:
        self.settings, self.budget_ms, self.seed, self.file = settings, budget_ms, seed, file
        self.decisions = decisions_of(space, order)
        self._identity: dict[str, Any] = {"space": _digest(space), "budget_ms": budget_ms, "seed": seed, "settings": plain_settings(settings)}
        self.learner = self._fresh()
        self.consumed: list[tuple[int, float]] = []
        self._loaded = False

    def __str__(self) -> str:
        return f"controller {plain_settings(self.settings)}"

    def propose(self, allowed: Allowed, before: Sequence[SampledTrial], taken: Collection[Key], rng: Random) -> dict[str, int]:
        """A sample of the controller, after it has learned from the trials before that are complete."""
        self.attend(before)
        for _ in range(DRAWS):
            genotype = self.learner.controller.sample(rng.getrandbits(62))
            if _obeys(allowed.space, genotype) and allowed.key(genotype) not in taken and allowed.holds(genotype):
                return genotype
        return allowed.draw(rng)

    def attend(self, trials: Sequence[SampledTrial]) -> None:
        """Learn from the complete trials that were not learned from yet, and save the state."""
        rewards = {t.number: self.reward(t) for t in trials if t.score is not None and t.genotype is not None}
        self._load()
        if any(rewards.get(number) != reward for number, reward in self.consumed):
            self.learner, self.consumed = self._fresh(), []  # the file is of other trials: all are learned anew
        known = {number for number, _ in self.consumed}
        new = [t for t in sorted(trials, key=lambda t: t.number) if t.number in rewards and t.number not in known]
        for trial in new:
            self.learner.learn(trial.genotype or {}, rewards[trial.number], in_baseline=not trial.truncated)
            self.consumed.append((trial.number, rewards[trial.number]))
        if new and self.file is not None:
            state = {"identity": self._identity, "consumed": [list(pair) for pair in self.consumed], **self.learner.state}
            save_tensors(self.file, self.learner.tensors, state)

    def reward(self, trial: SampledTrial) -> float:
        """What the controller is to learn from a complete trial."""
        price = self.budget_ms if trial.price_ms is None else trial.price_ms
        return (trial.score or 0.0) * latency_factor(self.settings.factor, price, self.budget_ms)

    def _fresh(self) -> Learner:
        sizes = {"hidden": self.settings.hidden, "layers": self.settings.layers}
        controller = Controller(self.decisions, conditioned=self.settings.conditioned, seed=self.seed, **sizes)
        return Learner(controller, self.settings, self.seed)

    def _load(self) -> None:
        """The state in the file, once; nothing where there is none of this search."""
        if self._loaded or self.file is None or not self.file.is_file():
            return
        self._loaded = True
        tensors, state = load_tensors(self.file)
        if state.get("identity") == self._identity:
            self.learner.restore(tensors, state)
            self.consumed = [(int(number), float(reward)) for number, reward in state["consumed"]]


def _digest(space: Space) -> str:
    return hashlib.sha256(canonical_json(space.to_dict()).encode()).hexdigest()[:12]


def _obeys(space: Space, genotype: dict[str, int]) -> bool:
    try:
        space.check(genotype)
    except InputError:
        return False
    return True

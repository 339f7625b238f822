"""Controller: an LSTM that writes a genotype one decision after the other, and learns from rewards by proximal policy optimisation (PPO).

Fast-NAS's released code (rl/micro_controllers.py, rl/gradient_estimators.py): two layers of 100 units drawn from U(-0.1, 0.1), a learned start, one
step for each tap before the first decision, a linear head for each decision and one for all operations; clip 0.1, Adam at 1e-4, gradients clipped at
2, a moving average of the rewards as baseline, the newest 100 samples gone through once for each new one, one at a time. Mended here: a buffer that
is not yet full has no empty places that step the optimiser, and what was not measured to the end leaves the baseline alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segnas.kinds import Kind
from segnas.search.checkpoint import optimiser_tensors, prefixed, restore_optimiser, unprefixed
from segnas.search.controlled_settings import ControllerSettings
from segnas.search.slots import Choice
from segnas.search.space import Genotype, Space

RANGE = 0.1
"""Weights are drawn from -0.1 to 0.1."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One step of the controller: the decision that it takes, the head that it reads, and which of the head's outputs are its options."""

    name: str
    head: str
    outputs: tuple[int, ...]


def decisions_of(space: Space, order: Sequence[str] = ()) -> tuple[Decision, ...]:
    """A space's decisions, those of `order` first: each has a head of its own, but those between operations share one over all operations."""
    chosen = {slot.kind.decision: slot.kind.options for slot in space.slots if isinstance(slot.kind, Choice)}
    kinds: list[Kind] = list(dict.fromkeys(kind for options in chosen.values() for kind in options))
    names = [*order, *(name for name in space.decisions if name not in order)]
    return tuple(
        Decision(name, "operation", tuple(map(kinds.index, chosen[name])))
        if name in chosen
        else Decision(name, name, tuple(range(space.decisions[name])))
        for name in names
    )


class Controller(nn.Module):
    """A distribution over genotypes. As released, its input at a step is its own last output, so decisions are drawn independently of each other.

    With `conditioned` it is an embedding of the option that was drawn last (ENAS, section 2.3; the released code has one and does not use it).
    """

    def __init__(
        self, decisions: Sequence[Decision], *, hidden: int = 100, layers: int = 2, ahead: int = 4, conditioned: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.decisions, self.ahead = tuple(decisions), ahead
        sizes: dict[str, int] = {}
        for decision in decisions:
            sizes[decision.head] = max(sizes.get(decision.head, 0), 1 + max(decision.outputs))
        self._outputs = [torch.tensor(decision.outputs) for decision in decisions]
        self._places = {head: str(place) for place, head in enumerate(sizes)}
        self.cells = nn.ModuleList(nn.LSTMCell(hidden, hidden) for _ in range(layers))
        self.heads = nn.ModuleDict({self._places[head]: nn.Linear(hidden, size) for head, size in sizes.items()})
        self.embeddings = nn.ModuleDict({self._places[h]: nn.Embedding(size, hidden) for h, size in sizes.items()} if conditioned else {})
        self.start = nn.Parameter(torch.empty(hidden))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -RANGE, RANGE, generator=generator)

    def sample(self, seed: int) -> dict[str, int]:
        """A genotype, drawn from the seed alone; rules of the space are not looked at."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            _, drawn = self._unrolled(None, generator)
        return {decision.name: option for decision, option in zip(self.decisions, drawn, strict=True)}

    def log_prob(self, genotype: Genotype) -> Tensor:
        """Logarithm of the probability with which `sample` draws the genotype: a scalar with gradients."""
        return self._unrolled([genotype[decision.name] for decision in self.decisions], None)[0]

    def probabilities(self) -> dict[str, tuple[float, ...]]:
        """The chance of each option of each decision, where decisions do not depend on each other; of option 0 all along where they do."""
        found: dict[str, tuple[float, ...]] = {}
        with torch.no_grad():
            self._unrolled([0] * len(self.decisions), None, found)
        return found

    def _unrolled(
        self, options: Sequence[int] | None, generator: torch.Generator | None, told: dict[str, tuple[float, ...]] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Log-probability and options of a walk over all decisions; drawn where none are given."""
        empty = torch.zeros_like(self.start)[None]
        state: list[tuple[Tensor, Tensor]] = [(empty, empty) for _ in self.cells]
        feature, total, taken = self.start[None], torch.zeros(()), list[int]()
        for _ in range(self.ahead):
            feature = self._step(feature, state)
        for place, decision in enumerate(self.decisions):
            feature = self._step(feature, state)
            logits = self.heads[self._places[decision.head]](feature)[0].index_select(0, self._outputs[place]).log_softmax(0)
            if told is not None:
                told[decision.name] = tuple(float(p) for p in logits.exp())
            option = int(torch.multinomial(logits.exp(), 1, generator=generator)) if options is None else options[place]
            total = total + logits[option]
            taken.append(option)
            if self.embeddings:
                feature = self.embeddings[self._places[decision.head]](torch.tensor([decision.outputs[option]]))
        return total, taken

    def _step(self, feature: Tensor, state: list[tuple[Tensor, Tensor]]) -> Tensor:
        for layer, cell in enumerate(self.cells):
            state[layer] = cell(feature, state[layer])
            feature = state[layer][0]
        return feature


def ppo_loss(log_prob: Tensor, old_log_prob: float, advantage: float, clip: float) -> Tensor:
    """The clipped surrogate of one sample, to be minimised (Schulman et al., arXiv 1707.06347, equation 7)."""
    ratio = (log_prob - old_log_prob).exp()
    return -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


@dataclass(frozen=True, slots=True)
class Experience:
    """What the controller remembers of a sample: the options in its decisions' order, their log-probability when it was learned from, its reward."""

    options: tuple[int, ...]
    log_prob: float
    reward: float


class Learner:
    """PPO on a controller: `learn` takes a reward, and everything that the next one depends on is in `tensors` and `state`."""

    def __init__(self, controller: Controller, settings: ControllerSettings, seed: int) -> None:
        self.controller, self.settings, self.seed = controller, settings, seed
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in controller.named_parameters()}
        self.optimiser = torch.optim.Adam(controller.parameters(), lr=settings.learning_rate)
        self.baseline: float | None = None
        self.buffer: list[Experience] = []
        self.learned = 0

    def learn(self, genotype: Genotype, reward: float, *, in_baseline: bool = True) -> int:
        """Take one sample in, and go through the buffer; the number of optimiser steps. Nothing is learned before there is a baseline."""
        names = [decision.name for decision in self.controller.decisions]
        with torch.no_grad():
            known = float(self.controller.log_prob(genotype))
        if in_baseline:
            decay = self.settings.baseline_decay
            self.baseline = reward if self.baseline is None else decay * self.baseline + (1 - decay) * reward
        self.buffer = [*self.buffer, Experience(tuple(genotype[name] for name in names), known, reward)][-self.settings.buffer :]
        self.learned += 1
        return 0 if self.baseline is None else self._epochs(self.baseline, names)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next sample depends on."""
        return {**prefixed("controller", self.controller.state_dict()), **prefixed("optimiser", optimiser_tensors(self.optimiser, self.names))}

    @property
    def state(self) -> dict[str, Any]:
        """The rest of it, as JSON values."""
        return {"baseline": self.baseline, "learned": self.learned, "buffer": [[list(e.options), e.log_prob, e.reward] for e in self.buffer]}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The reverse of `tensors` and `state`."""
        self.controller.load_state_dict(unprefixed("controller", tensors))
        restore_optimiser(self.optimiser, self.names, unprefixed("optimiser", tensors))
        self.baseline, self.learned = state["baseline"], state["learned"]
        self.buffer = [Experience(tuple(options), log_prob, reward) for options, log_prob, reward in state["buffer"]]

    def _epochs(self, baseline: float, names: Sequence[str]) -> int:
        steps = 0
        for epoch in range(self.settings.epochs):
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * (self.learned * self.settings.epochs + epoch))
            for place in torch.randperm(len(self.buffer), generator=generator).tolist():
                seen = self.buffer[place]
                log_prob = self.controller.log_prob(dict(zip(names, seen.options, strict=True)))
                self.optimiser.zero_grad(set_to_none=True)
                ppo_loss(log_prob, seen.log_prob, seen.reward - baseline, self.settings.clip).backward()
                nn.utils.clip_grad_norm_(self.controller.parameters(), self.settings.gradient_clip)
                self.optimiser.step()
                steps += 1
        return steps


def latency_factor(name: str, price_ms: float, budget_ms: float) -> float:
    """What a reward is multiplied by (MnasNet, section 3.1): `mnasnet` (latency / budget)^-0.07, `mnasnet-hard` its inverse above the budget.

    Candidates over the budget are refused before they are scored, so a hard factor is 1 in a search.
    """
    if name == "none" or (name == "mnasnet-hard" and price_ms <= budget_ms):
        return 1.0
    return (price_ms / budget_ms) ** (-1.0 if name == "mnasnet-hard" else -0.07)

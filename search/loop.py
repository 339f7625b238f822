"""The search: weights and decisions under a latency term, in turn (CAS, DCNAS; DARTS, algorithm 1) or in one pass (GAS)."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from segnas.augment import Augmentation, Batch, ImageCache
from segnas.data import Dataset, halves
from segnas.errors import UsageError, VerificationError
from segnas.latency import LatencyTable
from segnas.network import weights_digest
from segnas.report import Curve
from segnas.search.beside import Beside
from segnas.search.checkpoint import (
    load_tensors,
    optimiser_tensors,
    plain_settings,
    prefixed,
    require_identity,
    restore_optimiser,
    save_tensors,
    unprefixed,
)
from segnas.search.families import decoupled
from segnas.search.objective import cross_entropy
from segnas.search.optimisers import decision_optimiser, freeze_normalisation, kept_statistics, set_rate, weight_optimiser
from segnas.search.prices import Priced, prices
from segnas.search.regularise import Regulariser, Sparsity
from segnas.search.relaxation import Relaxation
from segnas.search.sampling import Sample
from segnas.search.second_order import Forward, VirtualStep, second_order_gradient
from segnas.search.settings import SearchSettings
from segnas.search.space import Space
from segnas.search.streams import stream, thinned
from segnas.search.supernet import untrained_supernet
from segnas.search.terms import Term, term
from segnas.search.trace import Trace, TraceHeader

__all__ = ["SearchSettings", "Searched", "search"]

Progress = Callable[[int, int, str], None]
Probabilities = dict[str, tuple[float, ...]]
CACHE_BYTES = 2 << 30
LAST_PHASE = "multi_scale."
"""Decisions of this prefix are searched in CAS's second phase."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Probabilities of every decision's options after the search, and its curves."""

    probabilities: Probabilities
    curves: tuple[Curve, ...]
    teacher: Probabilities | None = None
    """Those of a teacher that was searched beside."""


def search(
    space: Space,
    table: LatencyTable,
    dataset: Dataset,
    settings: SearchSettings,
    *,
    budget_ms: float,
    seed: int,
    checkpoint: Path,
    device: str = "cpu",
    progress: Progress | None = None,
    workers: int = 1,
    tables: Mapping[str, LatencyTable] | None = None,
    trace: Path | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> Searched:
    """Search the space under the budget; resumes from `checkpoint` where it is there, to the same trajectory. What happens is kept in `trace`.

    `tables` are those that the settings' constraints on time name; `start` are weights of a backbone under the supernet's names, which then learn at
    a tenth of the rate (SparseMask). UsageError where the settings do not suit the space, VerificationError where a
    value is not finite.
    """
    limits = prices(space, table, budget_ms, settings.constraints, tables)
    run = _Run(space, limits, settings, seed, device, start or {})
    identity = {
        "space": space.name,
        "classes": space.classes,
        "seed": seed,
        "data": f"{dataset.name} {dataset.split}, {len(dataset)} samples",
        "budget_ms": budget_ms,
        "settings": plain_settings(settings),
        **({"start": weights_digest(start)} if start else {}),
        "table": _origin(table),
        "tables": {name: _origin(other) for name, other in sorted((tables or {}).items())},
    }
    begun = checkpoint.is_file()
    if begun:
        run.restore(checkpoint, identity)
    cache, saved = ImageCache(CACHE_BYTES), time.monotonic()
    single = settings.levels == "single"
    first, second = (tuple(range(len(dataset))), ()) if single else halves(len(dataset), seed)
    endless = partial(stream, dataset, augmentation=Augmentation(settings.crop, settings.scale), batch=settings.batch, workers=workers, cache=cache)
    weights_stream = endless(indices=first, seed=seed, done=run.step)
    decision_stream = endless(indices=second, seed=seed + 1, done=max(0, run.step - settings.warmup))
    header = TraceHeader(space.name, space.classes, space.decisions, settings.steps, budget_ms, identity)
    kept = None if trace is None else Trace.resume(trace, header, step=run.step) if begun else Trace.start(trace, header)
    with closing(weights_stream), closing(decision_stream), kept or nullcontext():
        while run.step < settings.steps:
            alternates = not single and run.step >= settings.warmup
            text = run.advance(next(weights_stream), next(decision_stream) if alternates else None)
            if kept is not None:
                kept.append(run.step, run.latest, run.probabilities() if header.is_due(run.step) else None)
            if progress:
                progress(run.step, settings.steps, text)
            if run.step < settings.steps and time.monotonic() - saved > settings.checkpoint_s:
                run.save(checkpoint, identity)
                saved = time.monotonic()
    run.save(checkpoint, identity)
    return Searched(run.probabilities(), run.finished_curves(), run.taught_probabilities())


class _Run:
    """Everything that changes while searching."""

    def __init__(self, space: Space, limits: Sequence[Priced], settings: SearchSettings, seed: int, device: str, start: Mapping[str, Tensor]) -> None:
        self.space, self.settings, self.device, self.limits = space, settings, torch.device(device), limits
        self.supernet = untrained_supernet(space, seed, parts=settings.parts)
        self.supernet.load_state_dict({**self.supernet.state_dict(), **start})
        freeze_normalisation(self.supernet)
        self.supernet = self.supernet.to(self.device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        self.relaxation = Relaxation(space, settings, seed)
        self.beside = Beside(space, settings, seed + 5)
        self.decisions = {**dict(self.relaxation.named_parameters()), **self.beside.parameters()}
        weights = {p: name for name, p in self.supernet.named_parameters() if p.requires_grad}
        self.names: dict[Tensor, str] = {**weights, **{p: name for name, p in self.decisions.items()}}
        self.weight_optimiser = weight_optimiser(weights, start, settings)
        self.decision_optimiser = decision_optimiser(list(self.decisions.values()), settings)
        self.terms: list[Term] = [
            term(settings.term, limit.limit, weight=settings.term_weight, rho=settings.rho, rate=settings.multiplier_rate) for limit in limits
        ]
        self.regulariser, self.sparsity = Regulariser(space), Sparsity(space)
        if settings.phases == 2 and not self._last_phase():
            raise UsageError(f"search.phases 2 was given for space {space.name!r}, which has no multi-scale cell; give 1, or search `cas`")
        self.step, self.decoded_ms = 0, math.nan
        self.curves: dict[str, tuple[list[int], list[float]]] = {}
        self.latest: dict[str, float] = {}

    def advance(self, weights_batch: Batch, decision_batch: Batch | None) -> str:
        """One step of the decisions and one of the weights; a line that says how it goes."""
        self.latest, self.supernet.turn = {}, self.step
        self._begin_last_phase()
        set_rate(self.weight_optimiser, self.settings, self.step)
        if self.settings.levels == "single":
            loss = self._learn(weights_batch, decides=self.step >= self.settings.warmup)
        else:
            if decision_batch is not None:
                self._decide(decision_batch, weights_batch)
            loss = self._learn(weights_batch, decides=False)
        self.step += 1
        decoded = "" if math.isnan(self.decoded_ms) else f", decoded {self.decoded_ms:.2f} ms"
        return f"loss {loss:.3f}{decoded}"

    def _learn(self, batch: Batch, *, decides: bool) -> float:
        """One update of the weights; of the decisions too, from the same backward pass, where `decides` is set."""
        logits = self.relaxation.logits()
        if not decides:
            logits = {name: values.detach() for name, values in logits.items()}
        sample = self.relaxation.sample(logits, self.step)
        loss = self._loss(batch, sample)
        beside = self._taught(batch, decides=decides) + self.beside.extremes(
            lambda other: self._loss(batch, other), sample, self.relaxation, self.step
        )
        self.weight_optimiser.zero_grad(set_to_none=True)
        parameters = list(self.decisions.values())
        self.decision_optimiser.zero_grad(set_to_none=True)
        if decides:
            of_loss, from_prices = self._shares(loss, logits, sample.weights)
            (of_loss * loss + beside).backward()
            self._move([parameter.grad for parameter in parameters], from_prices)
        else:
            (loss + beside).backward()
        nn.utils.clip_grad_norm_([p for p in self.supernet.parameters() if p.requires_grad], self.settings.clip)
        self.weight_optimiser.step()
        return self._record("loss on weights' half" if self.settings.levels == "bilevel" else "loss", loss)

    def _decide(self, batch: Batch, weights_batch: Batch) -> None:
        """One update of the decisions; at second order through the step that the weights would take on `weights_batch`.

        Neither order moves the running statistics of normalisations, which like the weights learn from the weights' half alone (our choice).
        """
        logits = self.relaxation.logits()
        with kept_statistics(self.supernet):
            if self.settings.order == 2:
                loss, sample, found = self._looked_ahead(batch, weights_batch)
            else:
                sample = self.relaxation.sample(logits, self.step)
                loss = self._loss(batch, sample)
                parameters = list(self.decisions.values())
                found = cast(Sequence[Tensor | None], torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
            of_loss, from_prices = self._shares(loss, logits, sample.weights)
            moves = [None if gradient is None else of_loss * gradient for gradient in found]
            taught = self._taught(batch, decides=True)
            if isinstance(taught, Tensor):
                theirs = torch.autograd.grad(taught, list(self.decisions.values()), allow_unused=True)
                moves = [other if mine is None else mine for mine, other in zip(moves, theirs, strict=True)]
        self._move(moves, from_prices)
        self._record("loss on decisions' half", loss)

    def _looked_ahead(self, batch: Batch, weights_batch: Batch) -> tuple[Tensor, Sample, list[Tensor]]:
        """The loss, its sample and its second-order gradient to the decisions (DARTS)."""
        seen: list[tuple[Tensor, Sample]] = []

        def val_loss(forward: Forward) -> Tensor:
            sample = self.relaxation.sample(self.relaxation.logits(), self.step)
            loss = self._loss(batch, sample, forward)
            seen.append((loss.detach(), sample))
            return loss

        found = second_order_gradient(
            self.supernet,
            list(self.decisions.values()),
            train_loss=lambda forward: self._loss(weights_batch, self.relaxation.sample(self.relaxation.logits(), self.step), forward),
            val_loss=val_loss,
            step=VirtualStep.of(self.weight_optimiser, self.names),
            generators=(self.relaxation.random, self.relaxation.draws),
        )
        return (*seen[0], found)

    def _taught(self, batch: Batch, *, decides: bool) -> Tensor | float:
        """The teacher's loss; 0 without one."""
        loss = self.beside.taught(lambda sample: self._loss(batch, sample), self.step, decides=decides)
        if loss is None:
            return 0.0
        self._record("loss of the teacher" + (" on decisions' half" if decides and self.settings.levels == "bilevel" else ""), loss)
        return loss

    def _shares(self, loss: Tensor, logits: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[float, Sequence[Tensor | None]]:
        """The share of the loss in the objective, by which its gradients count, and the gradients of all else to the decisions.

        The loss is walked back once, by the caller: its share, and that of each price, are the objective's partial derivatives at their values.
        """
        expected = self._expected(logits, weights)
        leaf = loss.detach().requires_grad_()
        leaves = [price.detach().requires_grad_() for price in expected]
        total: Tensor = leaf
        for held, price in zip(self.terms, leaves, strict=False):
            total = held(total, price)
        partials = cast(Sequence[Tensor | None], torch.autograd.grad(total, [leaf, *leaves], allow_unused=True))
        of_loss, *of_prices = [0.0 if partial is None else float(partial) for partial in partials]
        times = self.settings.price_every
        beside = [times * share * price for share, price in zip(of_prices, expected, strict=True) if share] + self._regularised(logits)
        parameters = list(self.decisions.values())
        found: Sequence[Tensor | None] = [None] * len(parameters)
        if beside:
            found = torch.autograd.grad(torch.stack(beside).sum(), parameters, retain_graph=True, allow_unused=True)
        return (1 + times * (of_loss - 1) if expected else 1.0), found

    def _move(self, from_loss: Sequence[Tensor | None], from_prices: Sequence[Tensor | None]) -> None:
        """One step of the decisions along both gradients."""
        for parameter, one, other in zip(self.decisions.values(), from_loss, from_prices, strict=True):
            parameter.grad = one if other is None else other.to(parameter) if one is None else one + other.to(one)
        self.decision_optimiser.step()
        self.relaxation.project()
        self._record("gradient of the loss to the decisions, norm", _norm(from_loss))
        if any(gradient is not None for gradient in from_prices):
            self._record("gradient of prices and regularisers to the decisions, norm", _norm(from_prices))
        self._account()

    def _expected(self, logits: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[Tensor]:
        """The expected prices, at the steps that price at all; none where no term wants them."""
        if self.settings.term == "none" or self.step % self.settings.price_every:
            return []
        by_sample = self.settings.priced == "sample"
        given = weights if by_sample else self.relaxation.probabilities(logits)
        found = [self._priced(limit, given, given_rules=not by_sample) for limit in self.limits]
        for limit, price in zip(self.limits, found, strict=True):
            self._record(f"expected {limit.name}", price)
        return found

    def _priced(self, limit: Priced, given: Mapping[str, Tensor], *, given_rules: bool) -> Tensor:
        """One expected price, whole or a family of decisions at a time."""
        if self.settings.priced == "decoupled":
            return decoupled(self.space, given, self.settings.shares, limit.expected)
        return limit.expected(given, given_rules=given_rules)

    def _regularised(self, logits: Mapping[str, Tensor]) -> list[Tensor]:
        """The weighted regularisers: off for the first third of the search, then rising to their weights (ours: earlier, they freeze the noise)."""
        ramp = max(0.0, min(1.0, 3 * self.step / self.settings.steps - 1))
        found: list[Tensor] = []
        if ramp and any(self.settings.regularise):
            found.append(self.regulariser(self.relaxation.probabilities(logits), self.settings.regularise))
            self._record("regularisers", found[-1])
        if ramp and self.settings.sparsity and self.settings.sampler == "clamp":
            found.append(self.settings.sparsity * self.sparsity(self.relaxation.probabilities(logits)))
            self._record("sparsity loss", found[-1])
        return [ramp * value for value in found]

    def _account(self) -> None:
        """Decode, move the multipliers by the decoded network's prices, and log what the search is doing."""
        genotype = self.relaxation.mode()
        decoded = [limit.expected.exact(genotype) for limit in self.limits]
        self.decoded_ms = decoded[0]
        for limit, held, price in zip(self.limits, self.terms, decoded, strict=True):
            held.update(price)
            self._record(f"decoded {limit.name}", price)
            if self.settings.term in ("lagrangian", "fasterseg"):
                self._record(f"multiplier of {limit.name}", held.multiplier)
        self._record("entropy of decisions, share of the most", self.relaxation.entropy())
        operations = [slot.kinds[genotype[slot.decision]].op for slot in self.space.slots if slot.decision]
        chosen = [op for op in operations if op != "none"]
        self._record("share of skips among the chosen operations", chosen.count("skip") / max(1, len(chosen)))
        if self.settings.sampler == "gumbel":
            self._record("temperature", self.relaxation.temperature(self.step))

    def _loss(self, batch: Batch, sample: Sample, forward: Forward | None = None) -> Tensor:
        images = batch.images.to(self.device, memory_format=torch.channels_last)
        return cross_entropy((forward or self.supernet)(images, sample), batch.labels.to(self.device))

    def _last_phase(self) -> set[str]:
        return {name for name in self.space.decisions if name.startswith(LAST_PHASE)}

    def _begin_last_phase(self) -> None:
        """With two phases: from the middle of the steps on, everything but the multi-scale cell is decided."""
        middle = self.settings.warmup + (self.settings.steps - self.settings.warmup) // 2
        if self.settings.phases == 2 and self.step >= middle and not self.relaxation.fixed:
            self.relaxation.decide(set(self.space.decisions) - self._last_phase())

    def _record(self, name: str, value: Tensor | float) -> float:
        number = float(value.detach()) if isinstance(value, Tensor) else value
        if not math.isfinite(number):
            raise VerificationError(
                f"the search diverged at step {self.step}: {name} is {number}. The last checkpoint is kept; start again in another folder with a "
                f"search.learning_rate below {self.settings.learning_rate} in the recipe"
            )
        steps, values = self.curves.setdefault(name, ([], []))
        steps.append(self.step)
        values.append(round(number, 6))
        self.latest[name] = values[-1]
        return number

    def probabilities(self) -> Probabilities:
        """What the search has learned, guidance included."""
        return _as_tuples(self.relaxation)

    def taught_probabilities(self) -> Probabilities | None:
        """What the teacher beside has learned; None without one."""
        return None if self.beside.teacher is None else _as_tuples(self.beside.teacher)

    def finished_curves(self) -> tuple[Curve, ...]:
        """The curves, thinned to at most 200 points each by means over equal stretches."""
        return tuple(thinned(f"search/{name}", steps, values) for name, (steps, values) in self.curves.items())

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write all that the next step depends on."""
        tensors = {
            **prefixed("supernet", self.supernet.state_dict()),
            **prefixed("decision", self.decisions),
            **prefixed("weights", optimiser_tensors(self.weight_optimiser, self.names)),
            **prefixed("decisions", optimiser_tensors(self.decision_optimiser, self.names)),
            "random": self.relaxation.random.get_state(),
        }
        version, words, gauss = self.relaxation.draws.getstate()
        state = {
            "identity": identity,
            "step": self.step,
            "multipliers": [held.multiplier for held in self.terms],
            "fixed": self.relaxation.fixed,
            "curves": [[name, steps, values] for name, (steps, values) in self.curves.items()],  # a list: JSON objects are written sorted
            "decoded_ms": None if math.isnan(self.decoded_ms) else self.decoded_ms,
            "draws": [version, list(words), gauss],
        }
        save_tensors(path, tensors, state)

    def restore(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of the same search; IncompatibleError names what differs."""
        tensors, state = load_tensors(path)
        require_identity(path, state, identity, "search")
        self.supernet.load_state_dict(unprefixed("supernet", tensors))
        with torch.no_grad():
            for name, value in unprefixed("decision", tensors).items():
                self.decisions[name].copy_(value)
        restore_optimiser(self.weight_optimiser, self.names, unprefixed("weights", tensors))
        restore_optimiser(self.decision_optimiser, self.names, unprefixed("decisions", tensors))
        self.relaxation.random.set_state(tensors["random"])
        version, words, gauss = state["draws"]
        self.relaxation.draws.setstate((version, tuple(words), gauss))
        self.relaxation.fixed = {name: int(option) for name, option in state["fixed"].items()}
        for held, multiplier in zip(self.terms, state["multipliers"], strict=True):
            held.multiplier = float(multiplier)
        self.step = int(state["step"])
        self.decoded_ms = math.nan if state["decoded_ms"] is None else float(state["decoded_ms"])
        self.curves = {name: (list(steps), list(values)) for name, steps, values in state["curves"]}


def _as_tuples(relaxation: Relaxation) -> Probabilities:
    """The probabilities of every decision's options, as numbers."""
    return {name: tuple(p.tolist()) for name, p in relaxation.probabilities().items()}


def _origin(table: LatencyTable) -> dict[str, Any]:
    """What a search depends on of a table."""
    corrections = [list(correction) for correction in table.calibration.corrections]
    return {"prices": table.prices_digest, "scale": table.calibration.scale, "corrections": corrections}


def _norm(gradients: Sequence[Tensor | None]) -> float:
    return math.sqrt(sum(float(gradient.double().pow(2).sum()) for gradient in gradients if gradient is not None))

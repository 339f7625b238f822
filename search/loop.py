"""The search: weights on one half of the training images, decisions on the other, in turn, under a latency term (CAS; DARTS, algorithm 1)."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from segnas.augment import Augmentation, Batch, ImageCache, batch_count, batches
from segnas.data import Dataset, halves
from segnas.errors import UsageError, VerificationError
from segnas.latency import LatencyTable
from segnas.network import initialise
from segnas.report import Curve
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
from segnas.search.derive import mode
from segnas.search.expected import ExpectedLatency
from segnas.search.objective import AugmentedLagrangian, cross_entropy
from segnas.search.sampling import Sample, gumbel, hard, softmax
from segnas.search.space import Space
from segnas.search.supernet import Supernet

Progress = Callable[[int, int, str], None]
Probabilities = dict[str, tuple[float, ...]]
SAMPLERS = ("softmax", "gumbel", "hard")
CACHE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """One search schedule. A step is one update of the weights and, after `warmup` steps, one of the decisions.

    Rates, moments and decay of both optimisers are DARTS's (its released code), the decisions' rate is ours: a search here has hundreds of steps, not
    thousands. `crop` is (HEIGHT, WIDTH) and says nothing about latency, which is always the table's, at the size that is deployed.
    """

    steps: int = 400
    warmup: int = 100
    batch: int = 8
    crop: tuple[int, int] = (180, 240)
    scale: tuple[float, float] = (0.5, 1.0)
    sampler: str = "softmax"
    learning_rate: float = 0.05
    final_rate: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    decision_rate: float = 0.01
    decision_decay: float = 1e-3
    initial_sd: float = 1e-3
    temperature: float = 1.0
    final_temperature: float = 0.1
    rho: float = 1.0
    multiplier_rate: float = 0.2
    checkpoint_s: float = 30.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UsageError(f"search.sampler was given {self.sampler!r}; allowed: {', '.join(SAMPLERS)}")
        if self.batch < 2 or not 0 <= self.warmup < self.steps:
            raise UsageError(
                f"search.steps {self.steps}, search.warmup {self.warmup} and search.batch {self.batch} were given; "
                "more steps than warm-up steps and at "
                "least 2 images a batch are needed"
            )


@dataclass(frozen=True, slots=True)
class Searched:
    """Probabilities of every decision's options after the search, and its curves."""

    probabilities: Probabilities
    curves: tuple[Curve, ...]


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
) -> Searched:
    """Search the space under the budget; resumes from `checkpoint` where it is there, to the same trajectory."""
    run = _Run(space, table, settings, budget_ms, seed, device)
    identity = {
        "space": space.name,
        "seed": seed,
        "data": f"{dataset.name} {dataset.split}, {len(dataset)} samples",
        "budget_ms": budget_ms,
        "settings": plain_settings(settings),
    }
    corrections = [list(correction) for correction in table.calibration.corrections]
    identity["table"] = {"prices": table.prices_digest, "scale": table.calibration.scale, "corrections": corrections}
    if checkpoint.is_file():
        run.restore(checkpoint, identity)
    first, second = halves(len(dataset), seed)
    cache, saved = ImageCache(CACHE_BYTES), time.monotonic()
    weights_stream = _stream(dataset, first, settings, seed, run.step, workers, cache)
    decision_stream = _stream(dataset, second, settings, seed + 1, max(0, run.step - settings.warmup), workers, cache)
    with closing(weights_stream), closing(decision_stream):
        while run.step < settings.steps:
            text = run.advance(next(weights_stream), next(decision_stream) if run.step >= settings.warmup else None)
            if progress:
                progress(run.step, settings.steps, text)
            if run.step < settings.steps and time.monotonic() - saved > settings.checkpoint_s:
                run.save(checkpoint, identity)
                saved = time.monotonic()
    run.save(checkpoint, identity)
    return Searched(run.probabilities(), run.finished_curves())


class _Run:
    """Everything that changes while searching."""

    def __init__(self, space: Space, table: LatencyTable, settings: SearchSettings, budget_ms: float, seed: int, device: str) -> None:
        self.space, self.table, self.settings, self.device = space, table, settings, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.supernet = Supernet(space)
            initialise(self.supernet)
        _freeze_normalisation(self.supernet)
        self.supernet = self.supernet.to(self.device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        self.random = torch.Generator().manual_seed(seed + 2)
        self.draws = Random(seed + 3)
        self.logits = {name: nn.Parameter(settings.initial_sd * torch.randn(size, generator=self.random)) for name, size in space.decisions.items()}
        weights = {p: name for name, p in self.supernet.named_parameters() if p.requires_grad}
        self.names: dict[Tensor, str] = {**weights, **{p: name for name, p in self.logits.items()}}
        self.weight_optimiser = torch.optim.SGD(
            list(weights), lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.decision_optimiser = torch.optim.Adam(
            list(self.logits.values()), lr=settings.decision_rate, betas=(0.5, 0.999), weight_decay=settings.decision_decay
        )
        self.expected = ExpectedLatency(space, table, table.target)
        self.term = AugmentedLagrangian(budget_ms, settings.rho, settings.multiplier_rate)
        self.step, self.decoded_ms = 0, math.nan
        self.curves: dict[str, tuple[list[int], list[float]]] = {}

    def advance(self, weights_batch: Batch, decision_batch: Batch | None) -> str:
        """One step of the decisions (after the warm-up), then one of the weights; a line that says how it goes."""
        if decision_batch is not None:
            self._decide(decision_batch)
        loss = self._learn(weights_batch)
        self.step += 1
        decoded = "" if math.isnan(self.decoded_ms) else f", decoded {self.decoded_ms:.2f} ms"
        return f"loss {loss:.3f}{decoded}"

    def _learn(self, batch: Batch) -> float:
        progress = self.step / self.settings.steps
        span = self.settings.learning_rate - self.settings.final_rate
        for group in self.weight_optimiser.param_groups:
            group["lr"] = self.settings.final_rate + span * (1 + math.cos(math.pi * progress)) / 2
        loss = self._loss(batch, {name: logits.detach() for name, logits in self.logits.items()})
        self.weight_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.supernet.parameters() if p.requires_grad], self.settings.clip)
        self.weight_optimiser.step()
        return self._record("loss on weights' half", loss)

    def _decide(self, batch: Batch) -> None:
        loss = self._loss(batch, dict(self.logits))
        probabilities = {name: logits.softmax(0) for name, logits in self.logits.items()}
        expected = self.expected(probabilities)
        total = loss + self.term(expected)
        gradients = torch.autograd.grad(total, list(self.logits.values()), allow_unused=True)
        for parameter, gradient in zip(self.logits.values(), gradients, strict=True):
            parameter.grad = gradient
        self.decision_optimiser.step()
        self._record("loss on decisions' half", loss)
        self._record("expected latency, ms", expected)
        self._account()

    def _account(self) -> None:
        """Decode, move the multiplier by the decoded network's latency, and log what the search is doing."""
        probabilities = {name: logits.detach().softmax(0) for name, logits in self.logits.items()}
        derived = self.space.decode(mode(self.space, {name: p.tolist() for name, p in probabilities.items()}))
        self.decoded_ms = self.table.estimate(derived.architecture).total_ms
        self.term.update(self.decoded_ms)
        entropies = [float(-(p * p.clamp(min=1e-12).log()).sum()) / math.log(len(p)) for p in probabilities.values() if len(p) > 1]
        self._record("decoded latency, ms", self.decoded_ms)
        self._record("multiplier of the latency term", self.term.multiplier)
        self._record("entropy of decisions, share of the most", sum(entropies) / len(entropies))
        operations = [node.op for node in derived.architecture.nodes[1:]]
        self._record("share of skips in the decoded network", operations.count("skip") / len(operations))

    def _loss(self, batch: Batch, logits: Mapping[str, Tensor]) -> Tensor:
        images = batch.images.to(self.device, memory_format=torch.channels_last)
        return cross_entropy(self.supernet(images, self._sample(logits)), batch.labels.to(self.device))

    def _sample(self, logits: Mapping[str, Tensor]) -> Sample:
        match self.settings.sampler:
            case "softmax":
                return softmax(self.space, dict(logits))
            case "gumbel":
                share = self.step / self.settings.steps
                temperature = self.settings.temperature * (self.settings.final_temperature / self.settings.temperature) ** share
                return gumbel(self.space, dict(logits), tau=temperature, generator=self.random)
            case _:
                return hard(self.space, dict(logits), rng=self.draws)

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
        return number

    def probabilities(self) -> Probabilities:
        """Softmax of the decisions' logits."""
        return {name: tuple(logits.detach().double().softmax(0).tolist()) for name, logits in self.logits.items()}

    def finished_curves(self) -> tuple[Curve, ...]:
        """The curves, thinned to at most 200 points each by means over equal stretches."""
        return tuple(_thinned(f"search/{name}", steps, values) for name, (steps, values) in self.curves.items())

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write all that the next step depends on."""
        tensors = {
            **prefixed("supernet", self.supernet.state_dict()),
            **prefixed("logits", self.logits),
            **prefixed("weights", optimiser_tensors(self.weight_optimiser, self.names)),
            **prefixed("decisions", optimiser_tensors(self.decision_optimiser, self.names)),
            "random": self.random.get_state(),
        }
        version, words, gauss = self.draws.getstate()
        curves = [[name, steps, values] for name, (steps, values) in self.curves.items()]  # a list: JSON objects are written sorted
        decoded = None if math.isnan(self.decoded_ms) else self.decoded_ms
        state = {"identity": identity, "step": self.step, "multiplier": self.term.multiplier, "curves": curves, "decoded_ms": decoded}
        save_tensors(path, tensors, {**state, "draws": [version, list(words), gauss]})

    def restore(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of the same search; IncompatibleError names what differs."""
        tensors, state = load_tensors(path)
        require_identity(path, state, identity, "search")
        self.supernet.load_state_dict(unprefixed("supernet", tensors))
        with torch.no_grad():
            for name, value in unprefixed("logits", tensors).items():
                self.logits[name].copy_(value)
        restore_optimiser(self.weight_optimiser, self.names, unprefixed("weights", tensors))
        restore_optimiser(self.decision_optimiser, self.names, unprefixed("decisions", tensors))
        self.random.set_state(tensors["random"])
        version, words, gauss = state["draws"]
        self.draws.setstate((version, tuple(words), gauss))
        self.step, self.term.multiplier = int(state["step"]), float(state["multiplier"])
        self.decoded_ms = math.nan if state["decoded_ms"] is None else float(state["decoded_ms"])
        self.curves = {name: (list(steps), list(values)) for name, steps, values in state["curves"]}


def _stream(
    dataset: Dataset, indices: tuple[int, ...], settings: SearchSettings, seed: int, done: int, workers: int, cache: ImageCache
) -> Generator[Batch, None, None]:
    """Batches without end over these samples, from batch number `done` on."""
    augmentation = Augmentation(settings.crop, settings.scale)
    per_epoch = batch_count(len(indices), settings.batch)
    while True:
        epoch, offset = divmod(done, per_epoch)
        for batch in batches(
            dataset, indices, seed=seed, epoch=epoch, batch_size=settings.batch, augmentation=augmentation, start=offset, workers=workers, cache=cache
        ):
            yield batch
            done += 1


def _freeze_normalisation(supernet: nn.Module) -> None:
    """Fix scale and shift of every normalisation, so that no option can buy weight by scaling itself (DARTS: affine=False in search)."""
    for layer in supernet.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.requires_grad_(False)
            layer.bias.requires_grad_(False)


def _thinned(name: str, steps: list[int], values: list[float], most: int = 200) -> Curve:
    width = max(1, math.ceil(len(steps) / most))
    starts = range(0, len(steps), width)
    means = tuple(round(sum(values[i : i + width]) / len(values[i : i + width]), 6) for i in starts)
    return Curve(name, tuple(steps[min(i + width, len(steps)) - 1] for i in starts), means)

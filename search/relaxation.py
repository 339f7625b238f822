"""Relaxation: the decisions as they are learned: logits, what guides them, how a step samples them, and what is already decided."""

import math
from collections.abc import Iterator, Mapping
from random import Random
from typing import cast

import torch
from torch import Tensor, nn

from segnas.errors import UsageError
from segnas.search.derive import Ranking, likeliest
from segnas.search.gates import HIGHEST
from segnas.search.guidance import Guidance
from segnas.search.regularise import gate_logits
from segnas.search.sampling import Estimator, Gate, Sample, clamp, drawn_widths, gate_probabilities, gumbel, hard, one_hot_of, paths, softmax
from segnas.search.settings import SearchSettings
from segnas.search.space import Space
from segnas.search.trellis import trellis_of

NOISE = 0.1
"""Standard deviation of a clamped gate's noise (SparseMask's code)."""


class Relaxation:
    """Logits of every decision, in name order of the space; all randomness comes from two generators that a checkpoint keeps."""

    def __init__(self, space: Space, settings: SearchSettings, seed: int) -> None:
        self.space, self.settings, self.trellis = space, settings, trellis_of(space)
        self.random = torch.Generator().manual_seed(seed + 2)
        self.draws = Random(seed + 3)
        self.raw = {name: nn.Parameter(settings.initial_sd * torch.randn(size, generator=self.random)) for name, size in space.decisions.items()}
        self.fixed: dict[str, int] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 4)
            self.guidance = None if settings.guidance == "none" else Guidance(space, chained=settings.guidance == "chained")
        if settings.sampler == "paths":
            self._begin_gates()
        self.clamped = space.gates if settings.sampler == "clamp" else ()
        if settings.sampler == "clamp":
            self._begin_clamped()

    def _begin_gates(self) -> None:
        """Start each gate so that about twice as many are on as may be in the end."""
        for rule in self.space.rules:
            for name in rule.decisions:
                if self.space.decisions[name] == 2:
                    with torch.no_grad():
                        self.raw[name][1] += gate_logits(len(rule.decisions), rule.high)

    def _begin_clamped(self) -> None:
        """Start each clamped gate in the middle, at 1 (SparseMask's code)."""
        if not self.clamped or self.guidance is not None:
            raise UsageError(
                f"search.sampler clamp was given for space {self.space.name!r} with guidance {self.settings.guidance}; it needs links that decisions "
                "switch on and off, such as sparsemask's, and no guidance: choose another search.sampler"
            )
        with torch.no_grad():
            for name in self.clamped:
                self.raw[name].copy_(torch.tensor([0.0, HIGHEST / 2]))

    def project(self) -> None:
        """Bring the clamped gates back to where they are defined, after a step."""
        with torch.no_grad():
            for name in self.clamped:
                self.raw[name].clamp_(0, HIGHEST)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Everything that the decisions' optimiser moves, by name."""
        yield from self.raw.items()
        if self.guidance is not None:
            yield from ((f"guidance/{name}", parameter) for name, parameter in self.guidance.named_parameters())

    def logits(self) -> dict[str, Tensor]:
        """Guided logits, with gradients."""
        raw: Mapping[str, Tensor] = self.raw
        return dict(raw) if self.guidance is None else cast(dict[str, Tensor], self.guidance(raw))

    def sample(self, logits: Mapping[str, Tensor], step: int) -> Sample:
        """What the supernet computes at this step."""
        settings = self.settings
        match settings.sampler:
            case "softmax":
                sample = softmax(self.space, logits)
            case "gumbel":
                sample = gumbel(self.space, logits, tau=self.temperature(step), generator=self.random)
            case "widths":
                sample = drawn_widths(self.space, logits, tau=self.temperature(step), generator=self.random)
            case "hard":
                return hard(self.space, {**logits, **self._decided(logits)}, rng=self.draws)
            case "clamp":
                sample = clamp(self.space, logits, noise=NOISE, generator=self.random)
            case _:
                sample = paths(
                    self.space,
                    logits,
                    n=settings.paths,
                    generator=self.random,
                    gate=cast(Gate, settings.gate),
                    estimator=cast(Estimator, settings.estimator),
                    even=step < settings.warmup,
                )
        for name, option in self.fixed.items():
            sample.weights[name] = one_hot_of(option, self.space.decisions[name], sample.weights[name].dtype)
            sample.active[name] = (option,)
        return sample

    def _decided(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: 100 * one_hot_of(option, self.space.decisions[name], logits[name].dtype) for name, option in self.fixed.items()}

    def temperature(self, step: int) -> float:
        """Gumbel's temperature, falling exponentially over the search (GAS: 1 to 0.03, recalled; the curve is our choice)."""
        settings = self.settings
        return settings.temperature * (settings.final_temperature / settings.temperature) ** (step / settings.steps)

    def probabilities(self, logits: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Softmax of the guided logits, of a clamped gate its half, float64; with gradients where `logits` has them. What is decided has 1."""
        with torch.set_grad_enabled(logits is not None):
            doubles = {name: values.double() for name, values in (logits or self.logits()).items()}
            found = {name: values.softmax(0) for name, values in doubles.items()}
            if self.clamped:
                found |= gate_probabilities(self.space, doubles)
        decided = {name: one_hot_of(option, self.space.decisions[name], torch.float64) for name, option in self.fixed.items()}
        return {**found, **decided}

    def mode(self) -> dict[str, int]:
        """The genotype that the search would end with now: by the guided logits, since the guidance is part of what was learned."""
        return likeliest(self.space, self.probabilities(), cast(Ranking, self.settings.ranking), self.trellis)

    def decide(self, names: set[str]) -> None:
        """Fix these decisions at what they are most likely to be."""
        self.fixed |= {name: option for name, option in self.mode().items() if name in names}

    def entropy(self) -> float:
        """Mean entropy of the decisions, as a share of the most."""
        found = [float(-(p * p.clamp(min=1e-12).log()).sum()) / math.log(len(p)) for p in self.probabilities().values() if len(p) > 1]
        return sum(found) / max(1, len(found))

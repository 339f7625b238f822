"""Samples: which options of a supernet are computed at all, and what scales each of them.

Dense, top-n, single-path and one-hot searches differ by this data alone. All randomness comes from the generator that
the caller hands over, so that a search resumes exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from segnas.errors import InputError
from segnas.search.space import Genotype, Space

Logits = Mapping[str, Tensor]
"""One vector per decision, (options,), unnormalised."""

Probabilities = Mapping[str, Tensor]
"""One vector per decision, (options,), that sums to 1."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`weights`: what scales each option of each decision, (options,); `active`: the options that are computed at
    all.
    """

    weights: dict[str, Tensor]
    active: dict[str, tuple[int, ...]]


def zero_logits(space: Space, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Logits under which every option of a decision is equally probable, ready for gradients."""
    return {name: torch.zeros(size, dtype=dtype, requires_grad=True) for name, size in space.decisions.items()}


def probabilities_of(logits: Logits) -> dict[str, Tensor]:
    """Softmax of each decision, the rules left aside (`expected.conditioned` takes them in)."""
    return {name: torch.softmax(values, 0) for name, values in logits.items()}


def everything(space: Space) -> dict[str, tuple[int, ...]]:
    """Every option of every decision as active."""
    return {name: tuple(range(size)) for name, size in space.decisions.items()}


def softmax(space: Space, logits: Logits) -> Sample:
    """Every option, weighted by its softmax (DARTS, section 2.2)."""
    return Sample(probabilities_of(logits), everything(space))


def gumbel(space: Space, logits: Logits, *, tau: float, generator: torch.Generator, hard: bool = False) -> Sample:
    """Gumbel-softmax at temperature `tau` (Jang et al., 2017); `hard` computes the largest option alone, with
    straight-through weights.

    Decisions are drawn independently, so a hard sample may break rules and even cut the output off; `hard` (the
    sampler) never does.
    """
    weights = {name: torch.softmax((values + _gumbel_noise(values, generator)) / tau, 0) for name, values in logits.items()}
    if not hard:
        return Sample(weights, everything(space))
    return _straight_through(weights, {name: int(values.argmax()) for name, values in weights.items()})


def clamp(space: Space, logits: Logits) -> Sample:
    """The gate of a two-option decision is its second logit clipped to 0..1 (SparseMask); other decisions keep their
    softmax.
    """
    weights = probabilities_of(logits)
    for name, values in logits.items():
        if len(values) == 2:
            gate = values[1].clamp(0, 1)
            weights[name] = torch.stack([1 - gate, gate])
    return Sample(weights, everything(space))


def paths(space: Space, logits: Logits, *, n: int, generator: torch.Generator) -> Sample:
    """At most `n` decisions of each rule, drawn without replacement by their odds of being on (Plackett-Luce); the
    others are off and not computed.

    The drawn ones are on, each with its share: the softmax of the odds over those drawn (DCNAS samples connections so),
    times the softmax over its options but the first. Decisions under no rule keep their softmax. The shares sum to 1,
    so the supernet's sums are not the decoded network's.
    """
    sample = softmax(space, logits)
    for rule in space.rules:
        odds = torch.stack([logits[d][1:].logsumexp(0) - logits[d][0] for d in rule.decisions])
        drawn = (odds + _gumbel_noise(odds, generator)).topk(min(n, len(odds))).indices
        shares = dict(zip(drawn.tolist(), torch.softmax(odds[drawn], 0), strict=True))
        for index, name in enumerate(rule.decisions):
            size = space.decisions[name]
            if index in shares:
                on = shares[index] * torch.softmax(logits[name][1:], 0)
                sample.weights[name] = torch.cat([on.new_zeros(1), on])
                sample.active[name] = tuple(range(1, size))
            else:
                sample.weights[name] = torch.zeros_like(logits[name])
                sample.active[name] = (0,)
    return sample


def hard(space: Space, logits: Logits, *, rng: Random) -> Sample:
    """One genotype that obeys the rules, drawn by the softmax given the rules, with straight-through weights: 1
    forward, the softmax's gradient backward.

    The cheapest sampler and priced exactly; its gradient is biased (it is that of the softmax without the rules).
    """
    weights = probabilities_of(logits)
    return _straight_through(weights, space.random(rng, {name: values.tolist() for name, values in weights.items()}))


def one_hot(space: Space, genotype: Genotype, dtype: torch.dtype = torch.float32) -> Sample:
    """The sample that computes one network, without gradient; InputError where it is no genotype of the space."""
    space.check(genotype)
    return Sample(
        {name: _one_hot(genotype[name], size, dtype) for name, size in space.decisions.items()},
        {name: (genotype[name],) for name in space.decisions},
    )


def check_logits(space: Space, logits: Logits) -> None:
    """Refuse logits that are not those of the space: InputError names the first decision that differs."""
    for name in [*space.decisions, *logits]:
        if name not in logits or name not in space.decisions or logits[name].shape != (space.decisions[name],):
            given = tuple(logits[name].shape) if name in logits else "nothing"
            raise InputError(f"decision {name!r} was given {given}; space {space.name!r} has {space.decisions.get(name, 0)} options for it")


def _straight_through(weights: Mapping[str, Tensor], genotype: Genotype) -> Sample:
    through = {name: _one_hot(genotype[name], len(p), p.dtype).to(p.device) + (p - p.detach()) for name, p in weights.items()}
    return Sample(through, {name: (genotype[name],) for name in weights})


def _one_hot(option: int, size: int, dtype: torch.dtype) -> Tensor:
    values = torch.zeros(size, dtype=dtype)
    values[option] = 1
    return values


def _gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of that shape."""
    uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64).clamp(1e-20, 1 - 1e-16)
    return -torch.log(-torch.log(uniform)).to(like)

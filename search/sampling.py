"""Samples: which options of a supernet are computed at all, and what scales each of them.

Dense, top-n, single-path and one-hot searches differ by this data alone. All randomness comes from the generator that
the caller hands over, so that a search resumes exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
from torch import Tensor

from segnas.errors import InputError
from segnas.search.gates import HIGHEST
from segnas.search.slots import Widths
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


def drawn_widths(space: Space, logits: Logits, *, tau: float, generator: torch.Generator) -> Sample:
    """Softmax over operations and ways; of each width one, drawn by a hard Gumbel-softmax (FasterSeg, section 3.2).

    The weight of a drawn width is 1 and scales what it makes, so that its gradient reaches the logits, of the loss and of the price alike.
    """
    names = {slot.channels.decision for slot in space.slots if isinstance(slot.channels, Widths)}
    drawn = gumbel(space, {name: logits[name].log_softmax(0) for name in space.decisions if name in names}, tau=tau, generator=generator, hard=True)
    mixed = softmax(space, logits)
    return Sample({**mixed.weights, **drawn.weights}, {**mixed.active, **drawn.active})


def clamp(space: Space, logits: Logits, *, noise: float = 0.0, generator: torch.Generator | None = None) -> Sample:
    """Each gate (`Space.gates`) is its second logit, with Gaussian noise of that standard deviation, cut to 0..`HIGHEST`, on its own, as
    SparseMask's; other decisions keep their softmax. Without noise nothing is random.
    """
    weights = probabilities_of(logits)
    for name in space.gates:
        gate = logits[name][1]
        if noise:
            gate = gate + noise * torch.randn((), generator=generator, dtype=torch.float64).to(gate)
        gate = gate.clamp(0, HIGHEST)
        weights[name] = torch.stack([HIGHEST - gate, gate])
    return Sample(weights, everything(space))


def gate_probabilities(space: Space, logits: Logits) -> dict[str, Tensor]:
    """What each gate's second logit w says as (off, on), (2,): w / `HIGHEST`, as SparseMask's loss and its pruning take it."""
    shares = {name: logits[name][1].clamp(0, HIGHEST) / HIGHEST for name in space.gates}
    return {name: torch.stack([1 - share, share]) for name, share in shares.items()}


Gate = Literal["softmax", "sigmoid"]
Estimator = Literal["share", "ht"]


def paths(
    space: Space,
    logits: Logits,
    *,
    n: int,
    generator: torch.Generator,
    gate: Gate = "softmax",
    estimator: Estimator = "share",
    even: bool = False,
) -> Sample:
    """At most `n` decisions of each rule, drawn without replacement (Plackett-Luce); the others are off and not computed (DCNAS, figure 1).

    `gate` softmax: a decision's strength is the exponential of its odds of being on; sigmoid: the probability of being on.
    They are drawn by strength, or evenly where `even` is set (a warm-up). `estimator` share: each drawn one has its share
    of the strength that was drawn, so that shares sum to 1 (biased towards what is drawn once strengths differ); ht: its
    share of the whole strength over its chance of being drawn (Horvitz-Thompson, unbiased). An option's weight is that
    times the softmax over the options but the first. Decisions under no rule keep their softmax. DCNAS's own gate and
    estimator are unknown to us. The shares sum to 1, so the supernet's sums are not the decoded network's.
    """
    sample = softmax(space, logits)
    for rule in space.rules:
        odds = torch.stack([logits[d][1:].logsumexp(0) - logits[d][0] for d in rule.decisions])
        strengths = odds if gate == "softmax" else torch.nn.functional.logsigmoid(odds)
        chances = torch.zeros_like(odds) if even else strengths.detach()
        count = min(n, len(odds))
        drawn = (chances + _gumbel_noise(odds, generator)).topk(count).indices
        if estimator == "share":
            weights = torch.softmax(strengths[drawn], 0)
        else:
            weights = torch.softmax(strengths, 0)[drawn] / inclusion(torch.softmax(chances.double(), 0), count)[drawn].to(odds)
        shares = dict(zip(drawn.tolist(), weights, strict=True))
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


def inclusion(probabilities: Tensor, n: int, points: int = 200) -> Tensor:
    """Chance of each item, (items,), to be among `n` drawn without replacement by these probabilities (Plackett-Luce).

    Item j arrives at an exponential time of rate p_j, and the first n are drawn: the chance is an integral over u = exp(-t p_j) of the chance that
    fewer than n others have arrived, by double-exponential quadrature with so many points, exact to about 1e-9.
    """
    items = len(probabilities)
    if n >= items:
        return torch.ones_like(probabilities)
    x = torch.linspace(-4, 4, points, dtype=torch.float64)
    log_u = -torch.log1p(torch.exp(-math.pi * torch.sinh(x)))  # u rises from 0 to 1, densely at both ends: common items there, rare ones here
    slopes = (8 / (points - 1)) * math.pi * torch.cosh(x) * torch.exp(log_u - torch.nn.functional.softplus(math.pi * torch.sinh(x)))
    p = probabilities.double().clamp_min(1e-30)
    arrived = -torch.expm1(log_u[None, :, None] * (p[None, None, :] / p[:, None, None]))  # (item, point, other)
    arrived = arrived * (1 - torch.eye(items, dtype=p.dtype))[:, None, :]
    mass = torch.zeros(items, points, n, dtype=p.dtype)  # of 0 .. n - 1 others arrived
    mass[..., 0] = 1
    for other in range(items):
        here = arrived[..., other, None]
        mass = mass * (1 - here) + torch.cat([torch.zeros_like(mass[..., :1]), mass[..., :-1]], -1) * here
    return (mass.sum(-1) * slopes).sum(-1).to(probabilities)


def hard(space: Space, logits: Logits, *, rng: Random) -> Sample:
    """One genotype that obeys the rules, drawn by the softmax given the rules, with straight-through weights: 1
    forward, the softmax's gradient backward.

    The cheapest sampler; its gradient is biased (it is that of the softmax without the rules).
    """
    weights = probabilities_of(logits)
    return _straight_through(weights, space.random(rng, {name: values.tolist() for name, values in weights.items()}))


def one_hot(space: Space, genotype: Genotype, dtype: torch.dtype = torch.float32) -> Sample:
    """The sample that computes one network, without gradient; InputError where it is no genotype of the space."""
    space.check(genotype)
    return Sample(
        {name: one_hot_of(genotype[name], size, dtype) for name, size in space.decisions.items()},
        {name: (genotype[name],) for name in space.decisions},
    )


def one_hot_of(option: int, size: int, dtype: torch.dtype) -> Tensor:
    """1 for that option, 0 for the others, (size,)."""
    values = torch.zeros(size, dtype=dtype)
    values[option] = 1
    return values


def check_logits(space: Space, logits: Logits) -> None:
    """Refuse logits that are not those of the space: InputError names the first decision that differs."""
    for name in [*space.decisions, *logits]:
        if name not in logits or name not in space.decisions or logits[name].shape != (space.decisions[name],):
            given = tuple(logits[name].shape) if name in logits else "nothing"
            raise InputError(f"decision {name!r} was given {given}; space {space.name!r} has {space.decisions.get(name, 0)} options for it")


def _straight_through(weights: Mapping[str, Tensor], genotype: Genotype) -> Sample:
    through = {name: one_hot_of(genotype[name], len(p), p.dtype).to(p.device) + (p - p.detach()) for name, p in weights.items()}
    return Sample(through, {name: (genotype[name],) for name in weights})


def _gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise of that shape."""
    uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64).clamp(1e-20, 1 - 1e-16)
    return -torch.log(-torch.log(uniform)).to(like)

"""Terms: how latency, or any other price, enters what the search minimises; by the names of the works that they come from.

A term takes the loss and the expected price and gives the whole objective, since some works add and some multiply. `limit` is what the price should
stay within, in the price's own unit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from segnas.errors import UsageError
from segnas.search.settings import TERMS

BAND = (165 / 175, 165 / 155)
"""FasterSeg's band, as shares of its middle's milliseconds: faster halves the multiplier, slower doubles it."""
BOUNDS = (1e-4, 1e4)


class Term(Protocol):
    """What a price does to the objective."""

    multiplier: float
    """What the term has learned so far and a checkpoint keeps; 0 where it learns nothing."""

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        """The objective, a scalar that carries the gradients of both."""
        ...

    def update(self, decoded: float) -> None:
        """Take note of the decoded network's price."""
        ...


@dataclass
class AugmentedLagrangian:
    """loss + multiplier * g + rho / 2 * max(0, g)^2 with g = log(expected / limit).

    The multiplier follows the *decoded* network (LightNAS's idea), never below 0: multiplier += rate * log(decoded / limit). On the log scale
    neither the unit nor the size of the limit matters. The default rho and rate are our choice.
    """

    limit: float
    rho: float = 1.0
    rate: float = 0.2
    multiplier: float = 0.0

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        """See the class."""
        violation = torch.log(expected / self.limit)
        return loss + self.multiplier * violation + self.rho / 2 * violation.clamp(min=0) ** 2

    def update(self, decoded: float) -> None:
        """Move the multiplier by what the decoded network is over, or under, the limit."""
        self.multiplier = max(0.0, self.multiplier + self.rate * math.log(decoded / self.limit))


@dataclass
class Doubling:
    """loss + multiplier * expected / limit, where the multiplier doubles while the decoded network is too slow and halves while it is too fast.

    FasterSeg's released code, at the end of an epoch: halved from 175 FPS on, doubled up to 155, as it is between. Ours: the band around the limit is
    as wide as theirs around 165 FPS; each decoded network moves the multiplier by 2^rate; and it stays within `BOUNDS`.
    """

    limit: float
    rate: float = 0.2
    multiplier: float = 0.06

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        """See the class."""
        return loss + self.multiplier * expected / self.limit

    def update(self, decoded: float) -> None:
        """Halve or double, as far as `rate` says, where the decoded network is outside the band."""
        turn = int(decoded >= BAND[1] * self.limit) - int(decoded <= BAND[0] * self.limit)
        self.multiplier = min(BOUNDS[1], max(BOUNDS[0], self.multiplier * 2 ** (turn * self.rate)))


@dataclass
class Fixed:
    """A term of fixed strength: `form` takes loss, expected price, limit and weight."""

    limit: float
    weight: float
    form: Callable[[Tensor, Tensor, float, float], Tensor]
    multiplier: float = 0.0

    def __call__(self, loss: Tensor, expected: Tensor) -> Tensor:
        """See the class."""
        return self.form(loss, expected, self.limit, self.weight)

    def update(self, decoded: float) -> None:
        """Nothing: the strength is fixed."""


def cas(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss + weight * expected / limit: a cost of each operation is added to the loss (CAS, introduction; that the costs are weighted by the
    softmax and taken relative to a reference is our reading, and the limit as that reference is our choice).
    """
    return loss + weight * expected / limit


def gas(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss + weight * log(expected) (GAS; recalled, unverified): the limit plays no part."""
    return loss + weight * torch.log(expected)


def fbnet(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss * 0.2 * log(expected)^weight, in microseconds where the price is ms, so that the logarithm is positive (FBNet, section 3.3: alpha 0.2,
    beta 0.6): the limit plays no part.
    """
    return loss * 0.2 * torch.log(1000 * expected).clamp(min=1e-3) ** weight


def mnasnet(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss * (expected / limit)^weight (MnasNet, equation 2, soft: the reward is accuracy * ratio^-0.07; for a loss the sign turns)."""
    return loss * (expected / limit) ** weight


def mnasnet_hard(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss * max(1, expected / limit)^weight (MnasNet, equation 2, hard: weight 1)."""
    return loss * (expected / limit).clamp(min=1) ** weight


def proxyless(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss * (log expected / log limit)^weight, in microseconds where the price is ms (ProxylessNAS's released code)."""
    return loss * (torch.log(1000 * expected).clamp(min=1e-3) / math.log(1000 * limit)) ** weight


def tunas(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss + weight * |expected / limit - 1| (TuNAS, section 3.1, whose reward is accuracy - |beta| * that)."""
    return loss + weight * (expected / limit - 1).abs()


def hinge(loss: Tensor, expected: Tensor, limit: float, weight: float) -> Tensor:
    """loss + weight * max(0, expected / limit - 1) (HardCoRe-NAS's penalty)."""
    return loss + weight * (expected / limit - 1).clamp(min=0)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor, float, float], Tensor], float]] = {
    "cas": (cas, 0.1),
    "gas": (gas, 0.005),
    "fbnet": (fbnet, 0.6),
    "mnasnet": (mnasnet, 0.07),
    "mnasnet-hard": (mnasnet_hard, 1.0),
    "proxyless": (proxyless, 1.0),
    "tunas": (tunas, 0.1),
    "hinge": (hinge, 1.0),
}
"""Each fixed term with its weight where none is given: the work's own for gas (recalled), fbnet, mnasnet; ours for the others."""


def term(name: str, limit: float, *, weight: float, rho: float, rate: float) -> Term:
    """The term of that name; a weight of 0 asks for the term's own. UsageError lists the names."""
    if name == "lagrangian":
        return AugmentedLagrangian(limit, rho, rate)
    if name == "fasterseg":
        return Doubling(limit, rate, weight or Doubling.multiplier)
    if name == "none":
        return Fixed(limit, 0.0, lambda loss, expected, limit, weight: loss)
    if name not in FORMS:
        raise UsageError(f"latency term {name!r} was given; allowed: {', '.join(TERMS)}")
    form, own = FORMS[name]
    return Fixed(limit, weight or own, form)

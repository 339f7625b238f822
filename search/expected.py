"""Expected latency: the table's price of the network that probabilities will draw, as a differentiable number.

Each slot's price is contracted with the probabilities of the decisions that it mentions, and multiplied by the chance
that the slot is there. An addition of n live inputs costs n - 1 binary additions. All of it runs on the marginals given
the rules, which is what the draws obey.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from segnas.arch import Operation, argmax_operation
from segnas.latency import LatencyTable
from segnas.search.chances import ALWAYS, Chances, Event, is_undecided
from segnas.search.conditioning import Conditioner, conditioned
from segnas.search.exact import ExactPrice
from segnas.search.incoming import Incoming
from segnas.search.presence import Presence
from segnas.search.space import Genotype, Space

__all__ = ["ExpectedLatency", "ExpectedPrice", "conditioned"]


class ExpectedPrice:
    """Expected price of a drawn network at one input size, for any price of an operation (milliseconds,
    multiply-accumulates); `constant` is added.

    Exact where every slot's presence is certain or one decision's event, as in stacked cells without dead ends
    (`is_linear` says so), and where joins choose one input each (`incoming`). Elsewhere presences of different slots are
    taken as independent, which is exact at one-hot probabilities only.
    """

    def __init__(self, space: Space, height: int, width: int, price: Callable[[Operation], float], constant: float = 0.0) -> None:
        self.space = space
        slots = space.operations(height, width)
        self._decisions = [slot.decisions for slot in slots]
        self._prices = [{chosen: 0.0 if o.is_free else price(o) for chosen, o in slot.options.items()} for slot in slots]
        self._conditioner = Conditioner(space)
        self._chances = Chances(space)
        self._exact = ExactPrice(space, self._chances, self._decisions, self._prices, constant)
        self._constant = constant
        self._linear = {name: [0.0] * size for name, size in space.decisions.items()}
        self._open = {index: self._tensor(index) for index in range(len(space.slots)) if not self._fold(index)}
        self._incoming = Incoming.of(space) if self._open else None
        self._weights = torch.tensor([price for values in self._linear.values() for price in values], dtype=torch.float64)

    @property
    def is_linear(self) -> bool:
        """Whether the expectation is linear in the marginals, hence exact."""
        return not self._open

    @property
    def walks(self) -> bool:
        """Whether the expectation is exact by a walk over choices of inputs."""
        return self._incoming is not None

    @property
    def linear(self) -> tuple[dict[str, list[float]], float]:
        """Price of each option of each decision, and the constant; the whole price where `is_linear`."""
        return self._linear, self._constant

    @property
    def single(self) -> ExactPrice:
        """Prices of single networks, slot by slot."""
        return self._exact

    def __call__(self, probabilities: Mapping[str, Tensor], *, given_rules: bool = True) -> Tensor:
        """Expected price: a scalar in float64 on the CPU, with gradients to the probabilities, (options,) each.

        `given_rules` False takes the probabilities as marginals already: right for the weights of a sample that obeys
        the rules.
        """
        flat = self._conditioner.flat(probabilities)
        if given_rules:
            flat = self._conditioner.given_rules(flat)
        total = self._weights @ flat + self._constant
        if not self._open:
            return total
        if self._incoming is not None:
            return total + self._walked(self._incoming, self._conditioner.split(flat))
        presence = Presence(self.space, self._chances, self._conditioner.split(flat))
        return total + sum(presence.price(index, self._decisions[index], prices) for index, prices in self._open.items())

    def _walked(self, incoming: Incoming, marginals: Mapping[str, Tensor]) -> Tensor:
        """Expected price of the slots whose presence hangs on choices of inputs: exact."""
        chances = [torch.ones(1, dtype=torch.float64)]
        for stage in incoming.stages:
            factors = torch.cat([marginals[stage.decision], torch.ones(1, dtype=torch.float64)])
            options = [len(factors) - 1 if option is None else option for option in stage.options]
            moved = chances[-1][list(stage.sources)] * factors[options]
            chances.append(torch.zeros(stage.size, dtype=torch.float64).index_add(0, torch.tensor(stage.targets), moved))
        total = torch.zeros((), dtype=torch.float64)
        for index, prices in self._open.items():
            step, places = incoming.wanted[index]
            for name in reversed(self._decisions[index]):
                prices = prices @ marginals[name]
            inputs = len(self.space.slots[index].inputs) - 1 if self.space.slots[index].join else 1
            total = total + inputs * prices * chances[step][list(places)].sum()
        return total

    def exact(self, genotype: Genotype) -> float:
        """Price of one network: what its decoded architecture costs, without decoding it; the genotype is not
        checked.
        """
        if self.is_linear:
            return self._constant + math.fsum(values[genotype[name]] for name, values in self._linear.items())
        return self._exact(genotype)

    def _fold(self, index: int) -> bool:
        """Add the slot to the linear part, if its share is linear in the marginals; False otherwise."""
        slot, prices, wanted = self.space.slots[index], self._prices[index], self._chances.wanted[index]
        if not any(prices.values()):
            return True
        if len(self._decisions[index]) > 1:
            return False
        if slot.join:
            gates = self._chances.gates(slot)
            certain = wanted is ALWAYS and self._chances.fed[index] is ALWAYS and not self._decisions[index]
            if not certain or None in gates or any(map(is_undecided, slot.inputs)):
                return False
            self._constant -= prices[()]
            for gate in gates:
                self._add({(): prices[()]}, (), gate if isinstance(gate, Event) else None)
            return True
        presence = self._chances.both(self._chances.fed[index], wanted)
        event = presence if isinstance(presence, Event) else None
        if presence is None or (event and self._decisions[index] not in ((), (event.decision,))):
            return False
        self._add(prices, self._decisions[index], event)
        return True

    def _add(self, prices: Mapping[tuple[int, ...], float], decisions: tuple[str, ...], event: Event | None) -> None:
        """Add prices under at most one decision, where that event happens."""
        if event is None and not decisions:
            self._constant += prices[()]
            return
        name = event.decision if event else decisions[0]
        for option in range(self.space.decisions[name]):
            if event is None or option in event.options:
                self._linear[name][option] += prices[(option,) if decisions else ()]

    def _tensor(self, index: int) -> Tensor:
        """The slot's prices, one axis for each of its decisions."""
        shape = [self.space.decisions[name] for name in self._decisions[index]]
        return torch.tensor(list(self._prices[index].values()), dtype=torch.float64).reshape(shape)


class ExpectedLatency(ExpectedPrice):
    """Expected milliseconds by a table, on its target: with the constant of a call, and the argmax where the output is
    labels.

    Equal to `table.additive_ms(decoded)` at one-hot probabilities: each operation counts as often as it comes, also where
    the runtime will compute several at once, which the estimate of the decoded network knows. IncompatibleError where
    the table lacks an entry.
    """

    def __init__(self, space: Space, table: LatencyTable) -> None:
        target, constant = table.target, table.constant_ms
        if target.output_contract == "labels":
            constant += table.price_ms(argmax_operation(space.output_shape(target.height, target.width)))
        super().__init__(space, target.height, target.width, table.price_ms, constant)

"""Presence of slots under given marginals, where it is more than one decision's event: trellises and dense links.

Presences of different slots are taken as independent, except that a select reads one input at a time, that a rule
leaves no addition empty, and that what an operation joins is there together: a cell on a path has all of its nodes or none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segnas.search.chances import Always, Chance, Chances, Event, is_undecided
from segnas.search.decode import ADD
from segnas.search.slots import Link, Slot, source_of
from segnas.search.space import Space

Value = Tensor | float
TINY = 1e-300


class Presence:
    """For each slot the chance that it is fed, there (fed and not `none`) and wanted, under the marginals of every
    decision.
    """

    def __init__(self, space: Space, chances: Chances, marginals: dict[str, Tensor]) -> None:
        self.space, self.chances, self.marginals = space, chances, marginals
        self._events: dict[Event, Value] = {}
        self.fed: list[Value] = []
        self.there: list[Value] = []
        for index, slot in enumerate(space.slots):
            known = self._known(chances.fed[index])
            self.fed.append(self._fed(index) if known is None else known)
            known = self._known(chances.there[index])
            self.there.append(self.fed[-1] * self._sure(chances.own(slot)) if known is None else known)
        self.wanted: list[Value] = [1.0] * len(space.slots)
        for index in reversed(range(len(space.slots))):
            known = self._known(chances.wanted[index])
            self.wanted[index] = self._wanted(index) if known is None else known

    def price(self, index: int, decisions: Sequence[str], prices: Tensor) -> Value:
        """Expected price of a slot: its prices, one axis for each of its decisions, times how often it is there."""
        for name in reversed(decisions):
            prices = prices @ self.marginals[name]
        slot = self.space.slots[index]
        if not slot.join:
            return prices * self.fed[index] * self.wanted[index]
        additions: Value = -self.fed[index]
        for entry in slot.inputs:
            if is_undecided(entry):
                additions = additions + self.there[source_of(entry)] * self.wanted[source_of(entry)] * self.fed[index]
            else:
                additions = additions + self.there[source_of(entry)] * self._sure(self.chances.switch(entry))
        return prices * additions * self.wanted[index]

    def _known(self, chance: Chance) -> Value | None:
        if isinstance(chance, Event):
            if chance not in self._events:
                self._events[chance] = self.marginals[chance.decision][sorted(chance.options)].sum() if chance.options else 0.0
            return self._events[chance]
        return 1.0 if isinstance(chance, Always) else None

    def _sure(self, chance: Chance) -> Value:
        known = self._known(chance)
        assert known is not None
        return known

    def _fed(self, index: int) -> Value:
        slot = self.space.slots[index]
        if not slot.join:
            return self._joined(slot)
        parts = [self._part(entry) for entry in slot.inputs if not is_undecided(entry)]
        if slot.join == "select":
            return sum((p * t for p, t, _ in parts), start=0.0)
        most = torch.stack([torch.as_tensor(t, dtype=torch.float64) for _, t, _ in parts]).max().clamp_min(TINY)
        some = most * (1 - _product([1 - p * t / most for p, t, _ in parts]))
        events = [event for _, _, event in parts if isinstance(event, Event)]
        return some / (1 - _product([1 - p for p, _, _ in parts])) if self.chances.is_certain(events) else some

    def _joined(self, slot: Slot) -> Value:
        """The chance that all inputs of an operation are there: together, but for those of a sum that needs both."""
        there = [self.there[source] for source in slot.sources]
        return _product(there) if slot.kind == ADD else _least(there)

    def _part(self, entry: int | Link) -> tuple[Value, Value, Chance]:
        """Of a join's input: the chance that it is on (its link, its operation not `none`), that it is there if so, and the event of the former."""
        source, switch = source_of(entry), self.chances.switch(entry)
        if self.chances.there[source] is not None:
            return self._sure(switch), self.there[source], switch
        own = self.chances.own(self.space.slots[source])
        return self._sure(switch) * self._sure(own), self.fed[source], self.chances.both(switch, own)

    def _wanted(self, index: int) -> Value:
        exclusive: Value = 0.0
        nobody: Value = 1.0
        for reader, entry in self.chances.readers[index]:
            slot = self.space.slots[reader]
            reason = self.wanted[reader] * self._sure(self.chances.own(slot)) * self._sure(self.chances.switch(entry))
            if not slot.join:
                reason = reason * _given(self._joined(slot), self.there[index])
            if self.chances.exclusive[reader]:
                exclusive = exclusive + reason
            else:
                nobody = nobody * (1 - reason)
        return 1 - (1 - torch.as_tensor(exclusive, dtype=torch.float64).clamp(max=1)) * nobody


def _product(values: Sequence[Value]) -> Value:
    """Product of all; 1 for none; factors that are the number one are left out."""
    result: Value = 1.0
    for value in values:
        if not (isinstance(value, float) and value == 1.0):
            result = value * result
    return result


def _least(values: Sequence[Value]) -> Value:
    """The least of all; 1 for none; those that are the number one are left out."""
    uncertain = [value for value in values if not (isinstance(value, float) and value == 1.0)]
    if len(uncertain) < 2:
        return uncertain[0] if uncertain else 1.0
    return torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in uncertain]).min()


def _given(both: Value, one: Value) -> Value:
    """Chance of both, given the one; of both where the one never happens."""
    if not isinstance(one, Tensor):
        return both / one if one else both
    return torch.where(one > 0, both / torch.where(one > 0, one, torch.ones_like(one)), torch.as_tensor(both, dtype=torch.float64))

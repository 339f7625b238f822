"""Presence of slots under given marginals, where it is more than one decision's event: trellises and dense links.

Presences of different slots are taken as independent, except that a select reads one input at a time and that a rule
leaves no addition empty.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segnas.search.chances import Always, Chance, Chances, Event, is_undecided
from segnas.search.slots import source_of
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
            return _product([self.there[source] for source in slot.sources])
        entries = [entry for entry in slot.inputs if not is_undecided(entry)]
        on = [self._sure(self.chances.switch(entry)) for entry in entries]
        there = [self.there[source_of(entry)] for entry in entries]
        if slot.join == "select":
            return sum((p * t for p, t in zip(on, there, strict=True)), start=0.0)
        most = torch.stack([torch.as_tensor(t, dtype=torch.float64) for t in there]).max().clamp_min(TINY)
        some = most * (1 - _product([1 - p * t / most for p, t in zip(on, there, strict=True)]))
        events = [event for entry in entries if isinstance(event := self.chances.switch(entry), Event)]
        return some / (1 - _product([1 - p for p in on])) if self.chances.is_certain(events) else some

    def _wanted(self, index: int) -> Value:
        exclusive: Value = 0.0
        nobody: Value = 1.0
        for reader, entry in self.chances.readers[index]:
            slot = self.space.slots[reader]
            reason = self.wanted[reader] * self._sure(self.chances.own(slot)) * self._sure(self.chances.switch(entry))
            if not slot.join:
                reason = reason * _product([self.there[source] for source in slot.sources if source != index])
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

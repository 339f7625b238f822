"""Chances: what can be said about a slot's presence before any probability is known.

A slot is fed when its inputs are there, and wanted when a live reader needs it. Both are often certain, or the event
that one decision takes some of its options; then prices are linear in the probabilities. None stands for anything more
involved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from segnas.search.slots import Link, Slot, source_of
from segnas.search.space import Space


@dataclass(frozen=True, slots=True)
class Event:
    """That `decision` takes one of `options`."""

    decision: str
    options: frozenset[int]


class Always:
    """What happens under every genotype that obeys the rules."""


ALWAYS = Always()
Chance = Event | Always | None


class Chances:
    """For each slot: `fed` (its inputs are there, its own `none` left aside), `there` (fed and not `none`), `wanted` (a
    live reader needs it, if it is there).
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._simplified: dict[Event, Chance] = {}
        self.fed: list[Chance] = []
        self.there: list[Chance] = []
        for slot in space.slots:
            gates = self.gates(slot)
            self.fed.append(self.either(gates) if slot.join else self.all(gates))
            self.there.append(self.both(self.fed[-1], self.own(slot)))
        self.wanted: list[Chance] = [Event("", frozenset())] * len(space.slots)
        self.readers = readers_of(space)
        self.exclusive = [slot.join == "select" for slot in space.slots]
        """Whether a slot excludes its fellows: a select does, and what a single slot reads that does."""
        self.wanted[-1] = ALWAYS
        for index in reversed(range(len(space.slots) - 1)):
            alone = len(self.readers[index]) == 1
            self.exclusive[index] = self.exclusive[index] or (alone and self.exclusive[self.readers[index][0][0]])
            self.wanted[index] = self.either([self._reason(reader, entry) for reader, entry in self.readers[index]])

    def gates(self, slot: Slot) -> list[Chance]:
        """The chance of each input that is a reason to live: its source is there and its link is on."""
        return [self.both(self.there[source_of(entry)], self.switch(entry)) for entry in slot.inputs if not is_undecided(entry)]

    def switch(self, entry: int | Link) -> Chance:
        """The chance that a link is on."""
        if isinstance(entry, int) or entry.decision is None:
            return ALWAYS
        return self.simplified(Event(entry.decision, frozenset({entry.option})))

    def own(self, slot: Slot) -> Chance:
        """The chance that a slot's operation is not `none`."""
        if slot.decision is None or not slot.may_be_absent:
            return ALWAYS
        return self.simplified(Event(slot.decision, frozenset(i for i, kind in enumerate(slot.kinds) if kind.op != "none")))

    def simplified(self, event: Event) -> Chance:
        """ALWAYS where the rules leave the event no way not to happen."""
        if event not in self._simplified:
            self._simplified[event] = ALWAYS if self.is_certain([event]) else event
        return self._simplified[event]

    def both(self, one: Chance, other: Chance) -> Chance:
        """One and the other."""
        if isinstance(one, Always) or isinstance(other, Always):
            return other if isinstance(one, Always) else one
        if one is None or other is None or one.decision != other.decision:
            return None
        return Event(one.decision, one.options & other.options)

    def all(self, chances: Iterable[Chance]) -> Chance:
        """All of them; ALWAYS for none."""
        result: Chance = ALWAYS
        for chance in chances:
            result = self.both(result, chance)
        return result

    def either(self, chances: Sequence[Chance]) -> Chance:
        """At least one of them."""
        events = [chance for chance in chances if isinstance(chance, Event) and chance.options]
        if any(isinstance(chance, Always) for chance in chances) or self.is_certain(events):
            return ALWAYS
        if None in chances or len({event.decision for event in events}) > 1:
            return None
        if not events:
            return Event("", frozenset())
        return Event(events[0].decision, frozenset().union(*(event.options for event in events)))

    def is_certain(self, events: Sequence[Event]) -> bool:
        """Whether one of the events always happens: they cover a decision's options, or a rule turns on more decisions
        than they leave out.
        """
        options: dict[str, set[int]] = {}
        for event in events:
            options.setdefault(event.decision, set()).update(event.options)
        full = {name for name, found in options.items() if found >= set(range(1, self.space.decisions[name]))}
        covered = any(0 in options[name] for name in full)
        return covered or any(len(full & set(rule.decisions)) + rule.low > len(rule.decisions) for rule in self.space.rules)

    def _reason(self, reader: int, entry: int | Link) -> Chance:
        slot = self.space.slots[reader]
        others = [] if slot.join else self.gates(slot)
        return self.all([self.wanted[reader], self.own(slot), self.switch(entry), *others])


def readers_of(space: Space) -> list[list[tuple[int, int | Link]]]:
    """For each slot: the slots that it has a reason to live for, and by which input."""
    readers: list[list[tuple[int, int | Link]]] = [[] for _ in space.slots]
    for index, slot in enumerate(space.slots):
        for entry in slot.inputs:
            if not is_undecided(entry):
                readers[source_of(entry)].append((index, entry))
    return readers


def is_undecided(entry: int | Link) -> bool:
    """Whether an input is a link without decision: there iff its source lives anyway."""
    return isinstance(entry, Link) and entry.decision is None

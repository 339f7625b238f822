"""Space: a search space as a value. It is the graph of an architecture with a few open places and rules over them.

Meaning, decoding, counting, drawing, mutating and the operations to be priced are written here once; supernets and
expected latencies read the same slots.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any, cast

from segnas import files
from segnas.arch import Node, Operation, Shape, argmax_operation, require_size, size_at
from segnas.errors import InputError
from segnas.kinds import Kind
from segnas.search import rules as ruling
from segnas.search.decode import ADD, Derived, derived
from segnas.search.slots import (
    Choice,
    Join,
    Keep,
    Link,
    Slot,
    Widths,
    check_rules,
    check_slots,
    decision_sizes,
    slot_levels,
    slot_name,
    source_of,
)
from segnas.target import Target

__all__ = ["Choice", "Derived", "Genotype", "Join", "Keep", "Link", "Slot", "SlotOperations", "Space", "Widths"]

Genotype = Mapping[str, int]
"""One option per decision, by name. Two genotypes are the same network iff their architectures have equal digests."""


@dataclass(frozen=True, slots=True)
class SlotOperations:
    """What may stand in a slot at one input size: the decisions that it depends on, and the operation under each
    assignment of them.

    For an addition it is one binary addition, of which n live inputs need n - 1; a select has none.
    """

    decisions: tuple[str, ...]
    options: Mapping[tuple[int, ...], Operation]


@dataclass(frozen=True)
class Space:
    """Slots in topological order (slot 0 the image, the last one the output) and rules; checked when made.

    Raises InputError that says which slot, what was given and what is allowed.
    """

    name: str
    slots: tuple[Slot, ...]
    rules: tuple[Keep, ...] = ()

    def __post_init__(self) -> None:
        check_slots(self.slots)
        check_rules(self.rules, decision_sizes(self.slots), self.slots)
        everything = {name: tuple(range(size)) for name, size in self.decisions.items()}
        dead = [index for index, lives in enumerate(self.live(everything)) if not lives]
        if dead:
            raise InputError(f"{slot_name(self.slots, dead[0])}: it can never matter to the output; remove it or connect it")

    @cached_property
    def decisions(self) -> dict[str, int]:
        """Number of options of each decision, by name, in order of first appearance."""
        return decision_sizes(self.slots)

    @cached_property
    def groups(self) -> tuple[Keep, ...]:
        """The rules, then every decision under no rule as a group of its own: the space is their product."""
        ruled = {decision for rule in self.rules for decision in rule.decisions}
        return (*self.rules, *(Keep((decision,), 0, 1) for decision in self.decisions if decision not in ruled))

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """The decisions of two options, off and on, that switch links alone; a move between scales, whose two options both switch links, is none."""
        found = {name for name, size in self.decisions.items() if size == 2}
        for slot in self.slots:
            found -= {choice.decision for choice in (slot.kind, slot.channels) if isinstance(choice, Choice | Widths)}
            found -= {entry.decision for entry in slot.inputs if isinstance(entry, Link) and entry.decision is not None and entry.option == 0}
        return tuple(name for name in self.decisions if name in found)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Level of each slot: its feature is 1/2^level of the image."""
        return slot_levels(self.slots)

    @property
    def classes(self) -> int:
        """Channels of the output."""
        width = self.slots[-1].channels
        return width if isinstance(width, int) else max(width.options)

    def live(self, active: Mapping[str, Collection[int]]) -> tuple[bool, ...]:
        """Whether each slot matters to the output when every decision may take its `active` options.

        Forward: fed, by all inputs for an operation, by any for a join, never by a link without decision. Then backward
        from the output: wanted.
        """
        fed: list[bool] = []
        for slot in self.slots:
            reasons = [fed[source] for source in _reasons(slot, active)]
            there = slot.decision is None or any(slot.kinds[option].op != "none" for option in active[slot.decision])
            fed.append(there and (any(reasons) if slot.join else all(reasons)))
        wanted = [False] * len(self.slots)
        wanted[-1] = True
        for index in reversed(range(len(self.slots))):
            wanted[index] = wanted[index] and fed[index]
            if wanted[index]:
                for source in _reasons(self.slots[index], active):
                    wanted[source] = True
        return tuple(wanted)

    def readings(self, index: int, active: Mapping[str, Collection[int]], live: Sequence[bool]) -> tuple[int | Link, ...]:
        """The inputs that a slot reads, given `live(active)`: those whose source lives and whose decision may take the
        link's option.
        """
        entries = self.slots[index].inputs
        return tuple(entry for entry in entries if live[source_of(entry)] and _switched_on(entry, active))

    def check(self, genotype: Genotype) -> None:
        """Refuse a genotype that does not name each decision once with an option that it has, or that breaks a rule;
        InputError says which.
        """
        if set(genotype) != set(self.decisions):
            wrong = sorted(set(genotype) ^ set(self.decisions))
            raise InputError(f"this genotype is none of space {self.name!r}: decisions {', '.join(wrong[:5])} are missing or unknown")
        for name, size in self.decisions.items():
            if not 0 <= genotype[name] < size:
                raise InputError(f"decision {name!r} was given option {genotype[name]}; options 0 to {size - 1} are allowed")
        for rule in self.rules:
            if not ruling.obeys(rule, [genotype[name] for name in rule.decisions]):
                raise InputError(f"this genotype breaks a rule of {self.name!r}: {rule.low} to {rule.high} of {', '.join(rule.decisions)} must be on")

    def decode(self, genotype: Genotype) -> Derived:
        """The network that a genotype stands for. InputError where it is no genotype of this space or leaves the output
        unconnected.
        """
        self.check(genotype)
        active = {name: (option,) for name, option in genotype.items()}
        live = self.live(active)
        if not live[-1]:
            raise InputError(f"this genotype of {self.name!r} leaves no way from the image to the output")
        nodes: list[Node] = []
        origins: list[int] = []
        place: dict[int, int] = {}
        for index, slot in enumerate(self.slots):
            if not live[index]:
                continue
            inputs = tuple(place[source_of(entry)] for entry in self.readings(index, active, live))
            if slot.join == "select" and len(inputs) != 1:
                raise InputError(f"{slot_name(self.slots, index)}: {len(inputs)} of its inputs live under this genotype; a select needs exactly one")
            if slot.join and len(inputs) == 1:
                place[index] = inputs[0]
                continue
            place[index] = len(nodes)
            nodes.append(Node(self.kind_of(index, genotype), inputs, slot.width(genotype), slot.stride, slot.up, slot.label))
            origins.append(index)
        return derived(nodes[: place[len(self.slots) - 1] + 1], origins)

    def kind_of(self, index: int, genotype: Genotype) -> Kind:
        """The operation in a slot under a genotype; the binary addition for a join."""
        slot = self.slots[index]
        if slot.join:
            return ADD
        return slot.kinds[0 if slot.decision is None else genotype[slot.decision]]

    def operations(self, height: int, width: int) -> tuple[SlotOperations, ...]:
        """What each slot may cost at that input size, by slot; `none` stands for an absent operation and is free.

        InputError where the image is smaller than the deepest slot's stride.
        """
        require_size(self.levels, height, width)
        return tuple(self._slot_operations(index, height, width) for index in range(len(self.slots)))

    def all_operations(self, target: Target) -> tuple[Operation, ...]:
        """Every operation that has a price and that some genotype needs on that target, argmax included where its
        output is labels; each once.
        """
        found = (o for slot in self.operations(target.height, target.width) for o in slot.options.values() if not o.is_free)
        tail: tuple[Operation, ...] = ()
        if target.output_contract == "labels":
            tail = (argmax_operation(self.output_shape(target.height, target.width)),)
        return tuple(dict.fromkeys((*found, *tail)))

    def output_shape(self, height: int, width: int) -> Shape:
        """Shape of the logits at that input size."""
        return Shape(self.classes, *size_at(self.levels[-1], height, width))

    def count(self) -> int:
        """Number of genotypes that obey the rules."""
        return math.prod(ruling.count(group, [self.decisions[d] for d in group.decisions]) for group in self.groups)

    def genotypes(self) -> Iterator[dict[str, int]]:
        """Every genotype that obeys the rules, in a fixed order; only for spaces whose `count` is small."""
        names = [name for group in self.groups for name in group.decisions]
        each = [list(ruling.assignments(group, [self.decisions[d] for d in group.decisions])) for group in self.groups]
        for chosen in itertools.product(*each):
            yield self._ordered(dict(zip(names, itertools.chain(*chosen), strict=True)))

    def random(self, rng: Random, probabilities: Mapping[str, Sequence[float]] | None = None) -> dict[str, int]:
        """One genotype: uniform over those that obey the rules, or the independent draw from `probabilities` given the
        rules.
        """
        drawn: dict[str, int] = {}
        for group in self.groups:
            drawn |= zip(group.decisions, self._draw(group, rng, probabilities), strict=True)
        return self._ordered(drawn)

    def mutate(self, genotype: Genotype, rng: Random, probabilities: Mapping[str, Sequence[float]] | None = None) -> dict[str, int]:
        """The genotype with one group of decisions drawn anew, differently where the group allows more than one
        assignment.
        """
        self.check(genotype)
        open_ = [g for g in self.groups if ruling.count(g, [self.decisions[d] for d in g.decisions]) > 1]
        if not open_:
            return self._ordered(genotype)
        group = rng.choice(open_)
        before = tuple(genotype[d] for d in group.decisions)
        for _ in range(100):
            after = self._draw(group, rng, probabilities)
            if after != before:
                break
        else:
            after = next(a for a in ruling.assignments(group, [self.decisions[d] for d in group.decisions]) if a != before)
        return self._ordered({**genotype, **dict(zip(group.decisions, after, strict=True))})

    def to_dict(self) -> dict[str, Any]:
        """The space as JSON values."""
        return cast(dict[str, Any], files.plain(self))

    @classmethod
    def from_dict(cls, data: object) -> "Space":
        """The reverse of `to_dict`, strict: InputError names the place of an unknown, missing or wrong value."""
        return files.unplain(cls, data)

    def _draw(self, group: Keep, rng: Random, probabilities: Mapping[str, Sequence[float]] | None) -> tuple[int, ...]:
        weights = [[1.0] * self.decisions[d] if probabilities is None else probabilities[d] for d in group.decisions]
        return ruling.draw(group, weights, rng)

    def _ordered(self, genotype: Genotype) -> dict[str, int]:
        return {name: genotype[name] for name in self.decisions}

    def _slot_operations(self, index: int, height: int, width: int) -> SlotOperations:
        slot = self.slots[index]
        if slot.join == "select" or (slot.join == "add" and self._most_inputs(slot) < 2):
            return SlotOperations((), {})
        places = [self.slots[source] for source in slot.sources[: 2 if slot.join else None]]
        if slot.join:
            places = (places * 2)[:2]
        open_widths = [place.channels.decision for place in (*places, slot) if isinstance(place.channels, Widths)]
        decisions = tuple(dict.fromkeys(([slot.decision] if slot.decision else []) + open_widths))
        sizes = [size_at(self.levels[source], height, width) for source in slot.sources]
        options: dict[tuple[int, ...], Operation] = {}
        for chosen in itertools.product(*(range(self.decisions[d]) for d in decisions)):
            genotype = dict(zip(decisions, chosen, strict=True))
            inputs = tuple(Shape(place.width(genotype), *sizes[min(i, len(sizes) - 1)]) for i, place in enumerate(places))
            output = Shape(slot.width(genotype), *size_at(self.levels[index], height, width))
            options[chosen] = Operation(self.kind_of(index, genotype), slot.stride, inputs, output)
        return SlotOperations(decisions, options)

    def _most_inputs(self, slot: Slot) -> int:
        """How many inputs of an addition can live at once, as far as the rules over their own decisions say."""
        always = 0
        switched: set[str] = set()
        for entry in slot.inputs:
            source = self.slots[source_of(entry)]
            decision = entry.decision if isinstance(entry, Link) and entry.decision else source.decision if source.may_be_absent else None
            if decision is None:
                always += 1
            else:
                switched.add(decision)
        return always + sum(min(group.high, len(switched & set(group.decisions))) for group in self.groups)


def _switched_on(entry: int | Link, active: Mapping[str, Collection[int]]) -> bool:
    return isinstance(entry, int) or entry.decision is None or entry.option in active[entry.decision]


def _reasons(slot: Slot, active: Mapping[str, Collection[int]]) -> Iterator[int]:
    """Sources that keep a slot alive and that it keeps alive: all inputs but links without decision and those that are
    switched off.
    """
    for entry in slot.inputs:
        if isinstance(entry, int) or (entry.decision is not None and entry.option in active[entry.decision]):
            yield source_of(entry)

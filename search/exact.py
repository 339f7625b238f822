"""Exact prices of single networks, from the output backwards: only what a network holds is looked at, however large the space."""

import math
from collections.abc import Iterator, Mapping, Sequence

from segnas.search.chances import Always, Chances
from segnas.search.slots import Link, source_of
from segnas.search.space import Genotype, Space


class ExactPrice:
    """Price of one genotype's network without decoding it.

    `decisions` and `prices` are, by slot, the decisions that its price depends on, and the price under each assignment of them; a join's price is
    that of one addition.
    """

    def __init__(
        self,
        space: Space,
        chances: Chances,
        decisions: Sequence[tuple[str, ...]],
        prices: Sequence[Mapping[tuple[int, ...], float]],
        constant: float,
    ) -> None:
        self._slots, self._decisions, self._prices, self._constant = space.slots, decisions, prices, constant
        self._entries = [tuple((source_of(entry), *_switch(entry)) for entry in slot.inputs) for slot in space.slots]
        self._sure = [isinstance(chance, Always) for chance in chances.there]
        self._absent = [tuple(i for i, kind in enumerate(slot.kinds) if kind.op == "none") if slot.decision else () for slot in space.slots]

    def __call__(self, genotype: Genotype) -> float:
        """The price; the constant alone where the output is not reached. The genotype is not checked."""
        live = self.live(genotype)
        return self._constant + math.fsum(self._priced(index, genotype, live) for index in live)

    @property
    def constant(self) -> float:
        """What is paid for whatever network."""
        return self._constant

    def live(self, genotype: Genotype) -> set[int]:
        """The slots that the network holds; none where the output is not reached."""
        there: dict[int, bool] = {}
        last = len(self._slots) - 1
        if not self._there(last, genotype, there):
            return set()
        live, stack = {last}, [last]
        while stack:
            for source, decision, option in self._entries[stack.pop()]:
                switched_on = decision == "" or (decision is not None and genotype[decision] == option)
                if switched_on and source not in live and self._there(source, genotype, there):
                    live.add(source)
                    stack.append(source)
        return live

    def terms(self, index: int, genotype: Genotype, live: set[int]) -> Iterator[tuple[str | None, tuple[float, ...]]]:
        """What a live slot adds to the price: a decision and the price of each of its options, or None and a price that depends on none.

        An addition costs one unit for each input but the first: for an input that may be `none`, by the decision of that. Right where none of its
        inputs is missing for another reason. NotImplementedError for a slot that several decisions price.
        """
        prices = self._prices[index]
        if not prices or not any(prices.values()):
            return
        names = self._decisions[index]
        if len(names) > 1 or (names and self._slots[index].join):
            raise NotImplementedError(f"slot {index} has a price that depends on {', '.join(names)}")
        if not self._slots[index].join:
            yield (names[0] if names else None), tuple(prices.values())
            return
        unit = prices[()]
        yield None, (-unit,)
        for source, decision, option in self._entries[index]:
            if source in live and (not decision or genotype[decision] == option):
                slot = self._slots[source]
                absent = self._absent[source]
                yield (slot.decision, tuple(0.0 if o in absent else unit for o in range(len(slot.kinds)))) if absent else (None, (unit,))

    def _priced(self, index: int, genotype: Genotype, live: set[int]) -> float:
        prices = self._prices[index]
        if not prices:
            return 0.0
        price = prices[tuple(genotype[name] for name in self._decisions[index])]
        if not self._slots[index].join:
            return price
        inputs = sum(source in live and (not decision or genotype[decision] == option) for source, decision, option in self._entries[index])
        return (inputs - 1) * price

    def _there(self, index: int, genotype: Genotype, known: dict[int, bool]) -> bool:
        """Whether a slot is fed and not `none`; asked upwards with a stack, since a chain may be longer than Python's recursion allows."""
        if self._sure[index]:
            return True
        pending = [index]
        while pending:
            slot = pending[-1]
            if slot in known:
                pending.pop()
                continue
            reasons = [s for s, decision, option in self._entries[slot] if decision == "" or (decision is not None and genotype[decision] == option)]
            unknown = [s for s in reasons if not self._sure[s] and s not in known]
            if unknown:
                pending += unknown
                continue
            fed = [self._sure[s] or known[s] for s in reasons]
            decision = self._slots[slot].decision
            present = decision is None or genotype[decision] not in self._absent[slot]
            known[slot] = present and (any(fed) if self._slots[slot].join else all(fed))
        return known[index]


def _switch(entry: int | Link) -> tuple[str | None, int]:
    """Decision and option that switch an input on: an empty decision for one that is always on, None for one that is no reason to live."""
    return ("", 0) if isinstance(entry, int) else (entry.decision, entry.option)

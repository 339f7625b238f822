"""Counting, drawing and listing the assignments of one group of decisions under its rule."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from segnas.search.slots import Keep

Number = TypeVar("Number", int, float)

LEAST = 1e-12
"""Floor of a probability in a draw, so that rounding to zero never leaves a rule without an assignment; our choice."""


def totals(off: Sequence[Number], on: Sequence[Number], low: int, high: int) -> list[list[Number]]:
    """totals[i][k]: summed weight of the ways to complete decisions i.. when k of the earlier ones are on, so that low
    to high are on in the end.
    """
    zero = off[0] - off[0]
    size = len(off)
    last = [zero + (1 if low <= k <= high else 0) for k in range(size + 2)]
    table = [last]
    for i in reversed(range(size)):
        after = table[0]
        table.insert(0, [off[i] * after[k] + on[i] * after[k + 1] for k in range(size + 1)] + [zero])
    return table


def count(rule: Keep, sizes: Sequence[int]) -> int:
    """Number of assignments of the rule's decisions that obey it."""
    return totals([1] * len(sizes), [size - 1 for size in sizes], rule.low, rule.high)[0][0]


def draw(rule: Keep, weights: Sequence[Sequence[float]], rng: random.Random) -> tuple[int, ...]:
    """One assignment, with a probability in proportion to the product of its options' weights: exactly the independent
    draw given the rule.
    """
    floored = [[max(float(w), LEAST) for w in options] for options in weights]
    off, on = [options[0] for options in floored], [float(sum(options[1:])) for options in floored]
    table = totals(off, on, rule.low, rule.high)
    result: list[int] = []
    used = 0
    for i, options in enumerate(floored):
        stays, leaves = off[i] * table[i + 1][used], on[i] * table[i + 1][used + 1]
        if rng.random() * (stays + leaves) < stays:
            result.append(0)
        else:
            result.append(rng.choices(range(1, len(options)), options[1:])[0])
            used += 1
    return tuple(result)


def assignments(rule: Keep, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every assignment that obeys the rule, in lexicographic order."""
    may_leave = list(itertools.accumulate((int(size > 1) for size in reversed(sizes)), initial=0))[::-1]

    def extended(chosen: tuple[int, ...], on: int) -> Iterator[tuple[int, ...]]:
        place = len(chosen)
        if on > rule.high or on + may_leave[place] < rule.low:
            return
        if place == len(sizes):
            yield chosen
            return
        for option in range(sizes[place]):
            yield from extended((*chosen, option), on + int(option > 0))

    yield from extended((), 0)


def near(rule: Keep, sizes: Sequence[int], now: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The assignments that obey the rule in which one decision differs from `now`, or one goes off and another on."""
    for i, size in enumerate(sizes):
        for option in range(size):
            if option == now[i]:
                continue
            changed = (*now[:i], option, *now[i + 1 :])
            if obeys(rule, changed):
                yield changed
            if option and not now[i]:
                yield from ((*changed[:j], 0, *changed[j + 1 :]) for j, other in enumerate(now) if other)


def obeys(rule: Keep, options: Sequence[int]) -> bool:
    """Whether between `low` and `high` of the options are not 0."""
    return rule.low <= sum(1 for option in options if option) <= rule.high

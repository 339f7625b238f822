"""Multiple-choice knapsack: where a price is a sum over groups of decisions, the best genotype between two prices, exactly up to a fine grid.

One assignment of each group is chosen, so that the summed score is the largest and the summed price lies between `least` and `most`. The table of
dynamic programming has one cell for each `most / CELLS` of price and holds in it the best score with its true price (so that
a bound is never broken by the grid); two partial choices in one cell are told apart by their score alone, which is all that is not exact.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segnas.search import rules as ruling
from segnas.search.slots import Keep
from segnas.search.space import Space

Floats = NDArray[np.float64]
CELLS = 40_000
ROUNDING = 1e-9
"""A price may be above `most` by so much, relatively: a budget may be a network's own price, summed in another order."""
LARGEST = 20_000
"""A group of more assignments than this is left to local search."""


def suits(space: Space) -> bool:
    """Whether every group's assignments can be listed."""
    return all(ruling.count(group, [space.decisions[name] for name in group.decisions]) <= LARGEST for group in space.groups)


@dataclass(frozen=True)
class Table:
    """The best score of some groups' assignments in each cell of price, minus infinity where none is, with its true price."""

    score: Floats
    price: Floats
    choices: tuple[tuple[Keep, list[tuple[int, ...]], NDArray[np.int32], NDArray[np.int32]], ...]
    """By group: its assignments, and in each cell the one that was added last and the cell that it came from."""

    def genotype(self, cell: int) -> dict[str, int]:
        """The groups' decisions that a cell stands for."""
        found: dict[str, int] = {}
        for group, options, option, origin in reversed(self.choices):
            found |= zip(group.decisions, options[option[cell]], strict=True)
            cell = int(origin[cell])
        return found


def best_between(
    space: Space,
    scores: Mapping[str, Sequence[float]],
    prices: Mapping[str, Sequence[float]],
    constant: float,
    *,
    least: float,
    most: float,
) -> dict[str, int] | None:
    """The genotype of the highest summed score whose price, `constant` plus its options' `prices`, lies in [least, most]; None where none does."""
    room = (most - constant) * (1 + ROUNDING)
    if room < 0:
        return None
    table = tabulated(space, space.groups, scores, prices, room)
    cells = np.flatnonzero((table.score > -math.inf) & (table.price + constant >= least * (1 - ROUNDING)))
    if not len(cells):
        return None
    genotype = table.genotype(int(cells[np.argmax(table.score[cells])]))
    return {name: genotype[name] for name in space.decisions}


def tabulated(
    space: Space,
    groups: Sequence[Keep],
    scores: Mapping[str, Sequence[float]],
    prices: Mapping[str, Sequence[float]],
    room: float,
    *,
    cells: int = CELLS,
) -> Table:
    """The table over these groups' assignments, with so many cells up to a price of `room`."""
    width = room / cells or 1.0
    score: Floats = np.full(cells + 1, -math.inf)
    price: Floats = np.zeros(cells + 1)
    score[0] = 0.0
    choices: list[tuple[Keep, list[tuple[int, ...]], NDArray[np.int32], NDArray[np.int32]]] = []
    for group in groups:
        options, worth, cost = _options(space, group, scores, prices)
        score, price, option, origin = _extended(score, price, worth, cost, width, room)
        choices.append((group, options, option, origin))
    return Table(score, price, tuple(choices))


def worths(space: Space, group: Keep, scores: Mapping[str, Sequence[float]]) -> list[float]:
    """The summed score of each assignment of a group."""
    return _options(space, group, scores, scores)[1].tolist()


def _options(
    space: Space, group: Keep, scores: Mapping[str, Sequence[float]], prices: Mapping[str, Sequence[float]]
) -> tuple[list[tuple[int, ...]], Floats, Floats]:
    names = group.decisions
    listed = list(ruling.assignments(group, [space.decisions[name] for name in names]))

    def summed(values: Mapping[str, Sequence[float]]) -> Floats:
        return np.array([math.fsum(values[name][option] for name, option in zip(names, options, strict=True)) for options in listed])

    return listed, summed(scores), summed(prices)


def _extended(
    score: Floats, price: Floats, worth: Floats, cost: Floats, width: float, room: float
) -> tuple[Floats, Floats, NDArray[np.int32], NDArray[np.int32]]:
    """The table with one more group: in each cell the best score, its price, the assignment that was added and the cell that it came from."""
    cells = len(score)
    new_score, new_price = np.full(cells, -math.inf), np.zeros(cells)
    option, origin = np.zeros(cells, np.int32), np.zeros(cells, np.int32)
    held = np.flatnonzero(score > -math.inf)
    for index, (gain, ms) in enumerate(zip(worth, cost, strict=True)):
        total = price[held] + ms
        fits = total <= room
        source, total = held[fits], total[fits]
        place = np.minimum((total / width).astype(np.int64), cells - 1)
        value = score[source] + gain
        order = np.argsort(value, kind="stable")  # later assignments to one cell win: the best is written last
        place, value, total, source = place[order], value[order], total[order], source[order]
        better = value > new_score[place]
        place, value, total, source = place[better], value[better], total[better], source[better]
        new_score[place], new_price[place], option[place], origin[place] = value, total, index, source
    return new_score, new_price, option, origin

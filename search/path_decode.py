"""The best network of a trellis space between two prices: path and cell together, exactly but for a fine grid of prices.

Every path is listed (28,657 in Auto-DeepLab's twelve layers). Given a path, the price is a sum over the other decisions: the cell's edges cost what
they cost at the scales that the path goes through. Paths that agree in those costs, whatever their order of scales, share one multiple-choice
knapsack over the cell; what differs between them is a constant. Knapsacks are solved in the order of the score that they might reach, until none can
reach more than was found.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from segnas.search import knapsack
from segnas.search.expected import ExpectedPrice
from segnas.search.slots import Link
from segnas.search.space import Space
from segnas.search.trellis import Trellis

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MOST_PATHS = 200_000
"""More are not listed, and the space is left to local search."""
CELLS = 2_000
"""Of each knapsack's grid: fewer than usual, since many are solved; our choice."""
TELLING = 9
"""Decimals to which two paths' costs of an option agree: milliseconds are measured to far fewer."""


class PathDecoder:
    """All paths of a trellis space, each with its price as a linear form over the decisions that are no moves.

    What a state costs is taken from one path through it and the two states after it: a cell is read by the next two.
    """

    def __init__(self, space: Space, trellis: Trellis, expected: ExpectedPrice) -> None:
        self.space, self.trellis, self.price = space, trellis, expected.single
        self.groups = [group for group in space.groups if not set(group.decisions) & set(trellis.moves)]
        self.others = [name for group in self.groups for name in group.decisions]
        sizes = [space.decisions[name] for name in self.others]
        self.places = dict(zip(self.others, np.cumsum([1, *sizes[:-1]]).tolist(), strict=True))
        self.length = 1 + sum(sizes)
        self.names = list(trellis.moves)

    @classmethod
    def of(cls, space: Space, trellis: Trellis | None, expected: ExpectedPrice) -> "PathDecoder | None":
        """The decoder of a space; None where it has no trellis, too many paths, a group of too many assignments, or another kind of price."""
        if trellis is None or trellis.count() > MOST_PATHS or not knapsack.suits(space):
            return None
        found = cls(space, trellis, expected)
        try:
            return found if found.holds(Random(0)) else None
        except NotImplementedError:  # some price depends on several decisions: an operation of a searched width
            return None

    def holds(self, rng: Random, draws: int = 20) -> bool:
        """Whether the forms tell the prices of some random networks."""
        row_of = {tuple(row): index for index, row in enumerate(self.paths[0][:, :-1].tolist())}
        index = {name: i for i, name in enumerate(self.names)}
        for genotype in (self.space.random(rng) for _ in range(draws)):
            form = self.forms[row_of[tuple(index[state] for state in self.trellis.path(genotype))]]
            told = form[0] + math.fsum(form[place + genotype[name]] for name, place in self.places.items())
            if not math.isclose(told, self.price(genotype), rel_tol=1e-9):
                return False
        return True

    @cached_property
    def paths(self) -> tuple[Integers, Integers]:
        """States (paths, steps) as indices, -1 behind the end, and the options taken (paths, steps)."""
        index = {name: i for i, name in enumerate(self.names)}
        widest = max(map(len, self.trellis.moves.values()))
        followers = np.full((len(index), widest), -1)
        for name, options in self.trellis.moves.items():
            followers[index[name], : len(options)] = [-1 if f is None else index[f] for f in options]
        many = np.array([len(options) for options in self.trellis.moves.values()])
        states, taken = np.array([[index[self.trellis.start]]]), np.zeros((1, 0), np.int64)
        while states[0, -1] >= 0:
            counts = many[states[:, -1]]
            row = np.repeat(np.arange(len(states)), counts)
            option = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
            states = np.concatenate([states[row], followers[states[row, -1], option][:, None]], 1)
            taken = np.concatenate([taken[row], option[:, None]], 1)
        return states, taken

    @cached_property
    def forms(self) -> Floats:
        """Price of each path, (paths, length): a constant, then the price of each option of each other decision."""
        states, taken = self.paths
        steps = states.shape[1]
        padded = np.concatenate([states, np.full((len(states), 2), -1)], 1)
        homes, found = _homes(self.space, self.trellis), np.zeros((len(states), self.length))
        seen: dict[int, Floats] = {}
        for step in range(steps):
            _, first, which = np.unique(padded[:, step : step + 3], axis=0, return_index=True, return_inverse=True)
            for row in first.tolist():
                if row not in seen:
                    seen[row] = self._by_step(taken[row], homes, steps)
            found += np.stack([seen[row][step] for row in first.tolist()])[which.reshape(-1)]
        found[:, 0] += self.price.constant
        return found

    @cached_property
    def kinds(self) -> Integers:
        """For each path a number that it shares with those whose other decisions cost the same, (paths,)."""
        return np.unique(np.round(self.forms[:, 1:], TELLING), axis=0, return_inverse=True)[1].reshape(-1)

    def best_between(self, scores: Mapping[str, Sequence[float]], *, least: float, most: float) -> dict[str, int] | None:
        """The genotype of the highest sum of scores, the moves' over the states of its path alone, whose price lies in [least, most].

        None where there is none.
        """
        worth, of_kind = self._path_scores(scores), self.kinds
        top = np.full(int(of_kind.max()) + 1, -math.inf)
        np.maximum.at(top, of_kind, worth)
        best, found = -math.inf, None
        ceiling = math.fsum(max(knapsack.worths(self.space, group, scores)) for group in self.groups)
        for kind in np.argsort(-top, kind="stable").tolist():
            if top[kind] + ceiling <= best:
                break
            value, genotype = self._best_of(np.flatnonzero(of_kind == kind), worth, scores, best, least, most)
            if genotype is not None:
                best, found = value, genotype
        return found

    def _best_of(
        self, rows: Integers, worth: Floats, scores: Mapping[str, Sequence[float]], best: float, least: float, most: float
    ) -> tuple[float, dict[str, int] | None]:
        """The best network whose path is one of these rows, which share their costs; only above the score `best`."""
        constants, form = self.forms[rows, 0], self.forms[rows[0]]
        room = (most - float(constants.min())) * (1 + knapsack.ROUNDING)
        if room < 0:
            return best, None
        prices = {name: form[place : place + self.space.decisions[name]].tolist() for name, place in self.places.items()}
        table = knapsack.tabulated(self.space, self.groups, scores, prices, room, cells=CELLS)
        held = np.flatnonzero(table.score > -math.inf)
        chosen: tuple[int, int] | None = None
        for row, constant in zip(rows.tolist(), constants.tolist(), strict=True):
            total = table.price[held] + constant
            fits = held[(total <= most * (1 + knapsack.ROUNDING)) & (total >= least * (1 - knapsack.ROUNDING))]
            if len(fits):
                cell = int(fits[np.argmax(table.score[fits])])
                if worth[row] + table.score[cell] > best:
                    best, chosen = float(worth[row] + table.score[cell]), (row, cell)
        return best, None if chosen is None else self._genotype(chosen[0], table.genotype(chosen[1]), scores)

    def _genotype(self, row: int, others: Mapping[str, int], scores: Mapping[str, Sequence[float]]) -> dict[str, int]:
        """The whole genotype; states off the path take their best move, which changes nothing."""
        idle = {name: max(range(len(options)), key=scores[name].__getitem__) for name, options in self.trellis.moves.items()}
        genotype = {**others, **idle, **self._moves(self.paths[1][row])}
        return {name: genotype[name] for name in self.space.decisions}

    def _moves(self, taken: Integers) -> dict[str, int]:
        state: str | None = self.trellis.start
        found: dict[str, int] = {}
        for option in taken.tolist():
            assert state is not None
            found[state] = option
            state = self.trellis.moves[state][option]
        return found

    def _path_scores(self, scores: Mapping[str, Sequence[float]]) -> Floats:
        states, taken = self.paths
        widest = max(map(len, self.trellis.moves.values()))
        values = np.array([[*scores[name], *[0.0] * (widest - len(scores[name]))] for name in self.names])
        return values[states[:, :-1], taken].sum(1)

    def _by_step(self, taken: Integers, homes: Sequence[int], steps: int) -> Floats:
        """The price of one path by the step that it is paid at, (steps, length), from a network with every edge of its cells."""
        on = {name: min(1, self.space.decisions[name] - 1) for name in self.space.decisions}
        genotype = {**on, **dict.fromkeys(self.trellis.moves, 0), **self._moves(taken)}
        live, found = self.price.live(genotype), np.zeros((steps, self.length))
        for index in live:
            for decision, prices in self.price.terms(index, genotype, live):
                place = 0 if decision is None else self.places[decision]
                found[homes[index], place : place + len(prices)] += prices
        return found


def _homes(space: Space, trellis: Trellis) -> list[int]:
    """For each slot the step of the path at which it is paid: that of the state that it is computed in."""
    homes: list[int] = []
    for slot in space.slots:
        home = 0
        for entry in slot.inputs:
            link = entry if isinstance(entry, Link) else Link(entry)
            home = max(home, trellis.depths[link.decision] + 1 if link.decision in trellis.depths else homes[link.source])
        homes.append(home)
    return homes

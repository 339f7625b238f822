"""Trellis: the decisions of a space that choose a path, and what can be said of all paths without listing genotypes.

In a trellis each state owns a decision, whose options are where a path may go on to from there (Auto-DeepLab, section 3.2: softmax over the outgoing
transitions). A genotype decides for every state, a network only for those on its path: so genotypes are more than networks, and the likeliest
genotype need not be the likeliest network.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from segnas.search import incoming
from segnas.search import rules as ruling
from segnas.search.slots import Choice, Link, Widths
from segnas.search.space import Genotype, Space

Scores = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Trellis:
    """States by the names of their decisions, in the order of the network; `moves` says for each option which state follows, None after the last."""

    start: str
    moves: Mapping[str, tuple[str | None, ...]]

    @cached_property
    def depths(self) -> dict[str, int]:
        """How many moves lead to each state."""
        depths = {self.start: 0}
        for state, options in self.moves.items():
            for follower in options:
                if follower is not None:
                    depths[follower] = depths[state] + 1
        return depths

    @cached_property
    def completions(self) -> dict[str, int]:
        """Number of ways to the end from each state."""
        found: dict[str, int] = {}
        for state in reversed(tuple(self.moves)):
            found[state] = sum(1 if follower is None else found[follower] for follower in self.moves[state])
        return found

    def count(self) -> int:
        """Number of paths."""
        return self.completions[self.start]

    def even(self) -> dict[str, tuple[float, ...]]:
        """Probabilities of each state's moves under which every path is equally probable."""
        ways = self.completions
        return {s: tuple((1 if f is None else ways[f]) / ways[s] for f in followers) for s, followers in self.moves.items()}

    def path(self, genotype: Genotype) -> tuple[str, ...]:
        """The states that the path of a genotype goes through."""
        states = [self.start]
        while (follower := self.moves[states[-1]][genotype[states[-1]]]) is not None:
            states.append(follower)
        return tuple(states)

    def paths(self) -> Iterator[dict[str, int]]:
        """Every path, as the moves that it takes, in a fixed order."""
        waiting: list[dict[str, int]] = [{}]
        states: list[str | None] = [self.start]
        while waiting:
            taken, state = waiting.pop(), states.pop()
            if state is None:
                yield taken
                continue
            for option in reversed(range(len(self.moves[state]))):
                waiting.append({**taken, state: option})
                states.append(self.moves[state][option])

    def best(self, scores: Scores) -> dict[str, float]:
        """Viterbi, backwards: the highest sum of the moves' scores from each state to the end."""
        found: dict[str, float] = {}
        for state in reversed(tuple(self.moves)):
            found[state] = max(score + (0.0 if f is None else found[f]) for score, f in zip(scores[state], self.moves[state], strict=True))
        return found

    def pushed(self, scores: Scores) -> dict[str, tuple[float, ...]]:
        """Scores of the moves whose best sum over *all* states is that of the best path, where `scores` are to be summed over its own states alone.

        To each move is added what the best way on from its end is worth, less the same of its beginning (weight pushing): along a path the sum
        changes by a constant, and the best move from any state is worth 0. So the best move of each state is Viterbi's, and states off the path cost
        nothing.
        """
        best, found = self.best(scores), dict[str, tuple[float, ...]]()
        for state, followers in self.moves.items():
            onward = (0.0 if follower is None else best[follower] for follower in followers)
            found[state] = tuple(float(score) + way - best[state] for score, way in zip(scores[state], onward, strict=True))
        return found


def trellis_of(space: Space) -> Trellis | None:
    """The trellis in a space; None where it has none.

    Its states are the decisions that switch nothing but inputs of selects, each option on its own way, and that all lie on some path from one first
    state to the output.
    """
    owners = _owners(space)
    if not owners:
        return None
    reached = _reached(space, owners)
    start = reached[0]
    moves: dict[str, tuple[str | None, ...]] = {}
    for state in owners:
        followers: list[set[str]] = [set() for _ in range(space.decisions[state])]
        for reader, option in owners[state]:
            followers[option] |= reached[reader]
        if any(len(found) > 1 for found in followers):
            return None
        moves[state] = tuple(next(iter(found), None) for found in followers)
    if len(start) != 1:
        return None
    found = Trellis(next(iter(start)), _ordered(next(iter(start)), moves))
    return found if set(found.moves) == set(owners) and _is_layered(found) else None


def networks(space: Space) -> int:
    """Number of networks: of genotypes, but for the decisions of what is not on the path."""
    if incoming.suits(space):
        return incoming.networks(space)
    trellis = trellis_of(space)
    if trellis is None:
        return space.count()
    others = (group for group in space.groups if not set(group.decisions) & set(trellis.moves))
    return trellis.count() * math.prod(ruling.count(group, [space.decisions[d] for d in group.decisions]) for group in others)


def _owners(space: Space) -> dict[str, list[tuple[int, int]]]:
    """For each decision that switches nothing but inputs of selects: the selects, with the options."""
    owners: dict[str, list[tuple[int, int]]] = {}
    others = {decision for rule in space.rules for decision in rule.decisions}
    for index, slot in enumerate(space.slots):
        others |= {chosen.decision for chosen in (slot.kind, slot.channels) if isinstance(chosen, Choice | Widths)}
        for entry in slot.inputs:
            if isinstance(entry, Link) and entry.decision is not None:
                owners.setdefault(entry.decision, []).append((index, entry.option))
                others |= set() if slot.join == "select" else {entry.decision}
    return {name: found for name, found in owners.items() if name not in others}


def _reached(space: Space, owners: Mapping[str, object]) -> list[frozenset[str]]:
    """For each slot the states whose moves are the next that its feature meets on its ways to the output."""
    reached: list[set[str]] = [set() for _ in space.slots]
    for index in reversed(range(len(space.slots))):
        for entry in space.slots[index].inputs:
            if isinstance(entry, int):
                reached[entry] |= reached[index]
            elif entry.decision is not None:
                reached[entry.source] |= {entry.decision} if entry.decision in owners else reached[index]
    return [frozenset(found) for found in reached]


def _ordered(start: str, moves: Mapping[str, tuple[str | None, ...]]) -> dict[str, tuple[str | None, ...]]:
    """The states that are reached from the first one, each after all that lead to it."""
    found: dict[str, tuple[str | None, ...]] = {}
    layer = [start]
    while layer:
        for state in layer:
            found.pop(state, None)
            found[state] = moves[state]
        layer = list(dict.fromkeys(f for state in layer for f in moves[state] if f is not None))
    return found


def _is_layered(trellis: Trellis) -> bool:
    """Whether all ways to a state take the same number of moves, and all ways to the end too."""
    depths = trellis.depths
    last = {depths[state] for state, followers in trellis.moves.items() if None in followers}
    return len(last) == 1 and all(depths[f] == depths[s] + 1 for s, followers in trellis.moves.items() for f in followers if f is not None)

"""Marginals given the rules: independent draws that are thrown away where they break a rule, without drawing."""

from collections.abc import Mapping

import torch
from torch import Tensor

from segnas.search.space import Space


class Conditioner:
    """The marginals of one space; all vectors lie in one flat vector, decision after decision, in float64 on the
    CPU.
    """

    def __init__(self, space: Space) -> None:
        self.names, self.sizes = list(space.decisions), list(space.decisions.values())
        sizes = torch.tensor(self.sizes, dtype=torch.long)
        self._first = sizes.cumsum(0) - sizes
        self._owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self._is_first = torch.zeros(len(self._owner), dtype=torch.bool).index_fill(0, self._first, True)
        place = {name: index for index, name in enumerate(self.names)}
        batches: dict[tuple[int, int, int], list[list[int]]] = {}
        for rule in space.rules:
            batches.setdefault((len(rule.decisions), rule.low, rule.high), []).append([place[name] for name in rule.decisions])
        self._batches = [(torch.tensor(members), low, high) for (_, low, high), members in batches.items()]

    def flat(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """All vectors one after another, (options of all decisions,)."""
        return torch.cat([probabilities[name] for name in self.names]).to("cpu", torch.float64)

    def given_rules(self, flat: Tensor) -> Tensor:
        """Marginals of the independent draw given that it obeys the rules; not a number where it never does."""
        if not self._batches:
            return flat
        off = flat[self._first]
        on = torch.zeros_like(off).index_add(0, self._owner, flat) - off
        off_factor, on_factor = torch.ones_like(off), torch.ones_like(off)
        for members, low, high in self._batches:
            ways_off, ways_on = _ways(off[members], on[members], low, high)
            total = off[members] * ways_off + on[members] * ways_on
            off_factor = off_factor.index_put((members,), ways_off / total)
            on_factor = on_factor.index_put((members,), ways_on / total)
        return flat * torch.where(self._is_first, off_factor[self._owner], on_factor[self._owner])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The vectors by decision again."""
        return dict(zip(self.names, flat.split(self.sizes), strict=True))


def conditioned(space: Space, probabilities: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Marginals of each decision, (options,), given that the independent draw obeys the rules; exact, in float64."""
    conditioner = Conditioner(space)
    return conditioner.split(conditioner.given_rules(conditioner.flat(probabilities)))


def _ways(off: Tensor, on: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """For each decision of each rule, (rules, decisions): the mass of what the others may do when it is off, and when
    it is on.
    """
    rules, size = off.shape
    others = 1 - torch.eye(size, dtype=off.dtype)  # (left out, decision)
    mass = torch.cat([off.new_ones(rules, size, 1), off.new_zeros(rules, size, high)], 2)  # (rules, left out, number on)
    for i in range(size):
        stays = torch.where(others[:, i] > 0, off[:, i, None], 1.0)[..., None]
        leaves = (on[:, i, None] * others[:, i])[..., None]
        shifted = torch.cat([mass.new_zeros(rules, size, 1), mass[..., :-1]], 2)
        mass = mass * stays + shifted * leaves
    return mass[..., low : high + 1].sum(2), mass[..., max(low - 1, 0) : high].sum(2)

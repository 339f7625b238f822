"""Guidance: the graph convolution that carries what one cell is about to be to the next one (GAS, figure 3), in the search only.

What the paper states: it works between adjacent cells, on the raw logits of cell k - 1 and cell k, and its output takes the place of the latter.
Recalled, unverified: one graph node an edge, similarity of edges as adjacency, one graph convolution of 64 features, a factor of 0.5 on what is
added. The normalisations, the scaled similarity and that it begins as nothing (the last layer is zero) are our choice.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from segnas.errors import UsageError
from segnas.search.space import Space

FEATURES = 64
STRENGTH = 0.5


def cells_of(space: Space) -> dict[str, tuple[str, ...]]:
    """Decisions by cell, the cells in the order of the network: what stands before the first dot of a decision's name.

    UsageError for a space of fewer than two cells, or whose decisions do not all have the same number of options.
    """
    cells: dict[str, tuple[str, ...]] = {}
    for name in space.decisions:
        cell = name.partition(".")[0]
        cells[cell] = (*cells.get(cell, ()), name)
    sizes = sorted(set(space.decisions.values()))
    if len(cells) < 2 or len(sizes) != 1:
        raise UsageError(
            f"search.guidance was asked for in space {space.name!r}, which has {len(cells)} cells and decisions of {', '.join(map(str, sizes))} "
            "options; it needs two or more cells of edges with the same options, as in gas and gas-fast: choose search.guidance = 'none' or the "
            "method gumbel"
        )
    return cells


class GuidedModule(nn.Module):
    """One link of the guidance: logits of the cell before (edges, options) and of the cell itself (edges, options) to the latter, guided.

    A_ij = softmax over j of Phi1(a_i) . Phi2(b_j) / sqrt(d) for edges i of the cell and j of the one before, and the result is
    a + strength * Phi3(A Phi(b) W).
    """

    def __init__(self, options: int, features: int = FEATURES, strength: float = STRENGTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(options, elementwise_affine=False)
        self.query, self.key, self.value = (nn.Linear(options, features) for _ in range(3))
        self.convolution = nn.Linear(features, features, bias=False)
        self.readout = nn.Linear(features, options)
        self.strength = strength
        nn.init.orthogonal_(self.convolution.weight)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def adjacency(self, before: Tensor, own: Tensor) -> Tensor:
        """How much each edge of the cell attends to each of the cell before, (edges, edges before); rows sum to 1."""
        query, key = self.query(self.norm(own)), self.key(self.norm(before))
        return torch.softmax(query @ key.T / math.sqrt(key.shape[1]), 1)

    def forward(self, before: Tensor, own: Tensor) -> Tensor:
        """The guided logits (edges, options)."""
        message = self.convolution(self.adjacency(before, own) @ self.value(self.norm(before)))
        return own + self.strength * self.readout(message)


class Guidance(nn.Module):
    """The transform of a whole space's logits: a guided module between each two adjacent cells.

    `chained` feeds each module the guided logits of the cell before in place of the raw ones, so that what a cell is travels further than one cell
    (ours). UsageError where the space has no such cells.
    """

    def __init__(self, space: Space, *, chained: bool = False, features: int = FEATURES, strength: float = STRENGTH) -> None:
        super().__init__()
        self.cells, self.chained = cells_of(space), chained
        options = next(iter(space.decisions.values()))
        self.links = nn.ModuleList(GuidedModule(options, features, strength) for _ in range(len(self.cells) - 1))

    def forward(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every decision's logits, guided; those of the first cell as they are."""
        stacked = [torch.stack([logits[name] for name in names]) for names in self.cells.values()]
        guided = stacked[:1]
        for link, raw, own in zip(self.links, stacked, stacked[1:], strict=False):
            guided.append(link(guided[-1] if self.chained else raw, own))
        rows = zip(self.cells.values(), guided, strict=True)
        return {name: row for names, values in rows for name, row in zip(names, values.unbind(), strict=True)}

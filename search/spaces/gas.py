"""GAS, Graph-guided Architecture Search (Lin et al., CVPR 2020): every cell has an architecture of its own.

What the paper states (abstract; caption of figure 3): a series of independent cells; in reducing cells the operations
next to the inputs have stride 2. Recalled, unverified: 14 cells of two intermediate nodes, 8 initial channels, the eight
candidates (those of CAS), one operation an edge. The stems, where the cells reduce, the widths and the heads are our
choice, and so is the rule that each node keeps at least one edge (the paper repairs empty nodes, or leaves them).
The module that guides one cell by the one before it is no part of the space: it is `segnas.search.guidance`.
"""

from functools import partial

from segnas.kinds import kind
from segnas.search.space import Space
from segnas.search.spaces.cells import cell
from segnas.search.spaces.stacked import Head, stack

CELL = partial(cell, keep=(1, None))
"""At least one edge enters each node."""


def gas(classes: int) -> Space:
    """The paper-like preset: stem to 1/4, 14 cells, reductions at the third and the seventh, 16 to 64 channels."""
    stem, head = kind("stem", width=8), Head(kind("aspp"), 64, 4)
    return stack("gas", classes, cells="NNRNNNRNNNNNNN", widths=(16, 32, 64), stem=stem, stem_stride=4, head=head, shared=False, build=CELL)


def gas_fast(classes: int) -> Space:
    """The real-time preset: the stem, widths and head of `cas-fast`, with six independent cells; our choice."""
    return _fast("gas-fast", classes, shared=False)


def gas_fast_shared(classes: int) -> Space:
    """`gas-fast` with one architecture for each type of cell: the ablation of independence; it needs the table of `gas-fast`."""
    return _fast("gas-fast-shared", classes, shared=True)


def _fast(name: str, classes: int, *, shared: bool) -> Space:
    stem, head = kind("stem", unit="separable", width=32), Head(kind("pyramid_pool"), 64, 8, 1)
    return stack(name, classes, cells="RNNRNN", widths=(64, 96, 128), stem=stem, stem_stride=8, head=head, shared=shared, build=CELL)

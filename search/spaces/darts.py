"""DARTS, Differentiable Architecture Search (Liu, Simonyan and Yang, ICLR 2019): a normal and a reduction cell, stacked.

From the released code (commit f276dd3): the eight operations and their order, two inputs and four intermediate nodes a cell, stride 2 on the edges
from the inputs of a reducing cell, the 1x1 units and factorised reductions that bring the inputs to the cell's width, the concatenation as output,
reductions at 1/3 and 2/3 of the depth, where the width doubles, a stem of 3 C channels. From the paper: top-2 edges a node, eight cells of C = 16 in
the search. Ours: everything that makes a segmentation network of it (stems to 1/4 and 1/8, heads), and convolution, normalisation and activation in
the order of this project, where DARTS has the activation first: so each depthwise convolution has a normalisation more, and pools have none.
"""

from collections.abc import Sequence

from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.space import Space
from segnas.search.spaces.cells import searched_nodes
from segnas.search.spaces.stacked import Head, finish, stacked_cells

CANDIDATES: dict[str, Kind] = {
    "none": kind("none"),
    "max_pool_3x3": kind("max_pool"),
    "avg_pool_3x3": kind("avg_pool"),
    "skip_connect": kind("skip"),
    "sep_conv_3x3": kind("separable", repeats=2),
    "sep_conv_5x5": kind("separable", kernel=5, repeats=2),
    "dil_conv_3x3": kind("separable", dilation=2),
    "dil_conv_5x5": kind("separable", kernel=5, dilation=2),
}
"""The operations of an edge by DARTS's names, in DARTS's order."""

STRIDED: dict[str, Kind] = {**CANDIDATES, "skip_connect": kind("factorised_reduce", activation="none")}
"""Those of an edge of stride 2, where the identity is a factorised reduction."""

NODES = 4
HALVE = kind("factorised_reduce")


def darts(classes: int) -> Space:
    """The paper's search network, eight cells of C = 16, as a backbone: stem to 1/4, cells to 1/16, ASPP-lite and a head at 1/4."""
    return network("darts", classes, cells="NNRNNRNN", width=16, stem=kind("stem", width=32), stem_stride=4, head=Head(kind("aspp"), 64, 4))


def darts_tiny(classes: int) -> Space:
    """The preset that a CPU can search: five cells of C = 16 from 1/4 to 1/16, pyramid pooling and a head at 1/8; our choice.

    Behind a stem at 1/8 the dearest network takes 1.2 times as long as the cheapest on a CPU, and most of it is the last resize and the argmax.
    """
    stem, head = kind("stem", unit="separable", width=16), Head(kind("pyramid_pool"), 48, 8, 1)
    return network("darts-tiny", classes, cells="NRNRN", width=16, stem=stem, stem_stride=4, head=head)


def network(name: str, classes: int, *, cells: str, width: int, stem: Kind, stem_stride: int, head: Head) -> Space:
    """Segmentation networks of DARTS cells: `cells`, N (normal) or R (reduction), share one architecture a type; C is `width`, doubled by each R.

    Decisions are `normal.NODE.SOURCE` and `reduction.NODE.SOURCE`; sources 0 and 1 are the two cells before.
    """
    draft = Draft(name)
    first = draft.node(stem, 0, channels=3 * width, stride=stem_stride, label="stem")
    finish(draft, [first, *row(draft, first, first, cells, width)], head, classes)
    return draft.space()


def row(draft: Draft, before: int, previous: int, cells: str, width: int) -> list[int]:
    """Append a row of DARTS cells behind two features and return the slots of their outputs, 4 C channels each."""
    widths = [width * 2**stage for stage in range(cells.count("R") + 1)]
    return stacked_cells(draft, before, previous, cells=cells, widths=widths, shared=True, build=darts_cell)


def darts_cell(draft: Draft, decisions: str, before: int, previous: int, *, width: int, reduce: bool, label: str) -> int:
    """Append a cell of C = `width` and return the slot of its output: the concatenation of its four nodes, 4 C channels.

    Both inputs come through a 1x1 unit of C channels, `before` through a factorised reduction where `previous` is half as large.
    """
    crossed = draft.level(before) < draft.level(previous)
    inputs = (
        draft.node(HALVE if crossed else kind("conv", kernel=1), before, channels=width, stride=2 if crossed else 1, label=f"{label}.before"),
        draft.node(kind("conv", kernel=1), previous, channels=width, label=f"{label}.previous"),
    )
    outputs = searched_nodes(
        draft,
        decisions,
        inputs,
        nodes=NODES,
        candidates=tuple(CANDIDATES.values()),
        strided=tuple(STRIDED.values()),
        reduce=reduce,
        label=label,
    )
    return draft.node(kind("concat"), *outputs, label=f"{label}.output")


def cells_of_depth(depth: int) -> str:
    """DARTS's row of so many cells: N, with R at a third and at two thirds."""
    return "".join("R" if index in (depth // 3, 2 * depth // 3) else "N" for index in range(depth))


def genotype(normal: Sequence[tuple[str, int]], reduction: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The decisions of two cells that are written as DARTS writes them: for each node in turn two pairs of operation and source."""
    names = list(CANDIDATES)
    edges = {f"{cell}.{node}.{source}": 0 for cell in ("normal", "reduction") for node in range(NODES) for source in range(node + 2)}
    for cell, pairs in (("normal", normal), ("reduction", reduction)):
        for place, (operation, source) in enumerate(pairs):
            edges[f"{cell}.{place // 2}.{source}"] = names.index(operation)
    return edges

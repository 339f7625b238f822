"""Cells: small graphs of searched edges that are stacked, as in CAS, GAS and DARTS."""

from collections.abc import Sequence

from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.slots import Choice

CANDIDATES = (
    kind("none"),
    kind("skip"),
    kind("max_pool"),
    kind("conv"),
    kind("separable"),
    kind("separable", dilation=2),
    kind("separable", dilation=4),
    kind("separable", dilation=8),
)
"""The eight operations of an edge: none, skip, max_pool_3x3, conv_3x3, sep_3x3 and dil_sep_3x3 at rates 2, 4, 8 (CAS;
recalled, unverified).
"""


MULTI_SCALE_CANDIDATES = (
    kind("none"),
    kind("skip"),
    kind("conv", kernel=1),
    kind("separable", dilation=6),
    kind("separable", dilation=12),
    kind("separable", dilation=18),
    kind("separable", dilation=24),
    kind("pyramid_pool", bins=(1,)),
    kind("pyramid_pool", bins=(2,)),
    kind("pyramid_pool", bins=(4,)),
)
"""The ten operations of an edge of the multi-scale cell: large rates and pooling at several grids (recalled of CAS,
unverified); the exact list is our choice. A rate at or above the feature's side makes a 3x3 kernel a 1x1 one.
"""


def cell(
    draft: Draft,
    decisions: str,
    before: int,
    previous: int,
    *,
    width: int,
    reduce: bool = False,
    nodes: int = 2,
    keep: tuple[int, int | None] = (2, 2),
    candidates: Sequence[Kind] = CANDIDATES,
    label: str = "",
) -> int:
    """Append a cell of `width` output channels and return the slot of its output.

    Edge j of intermediate node i has decision `{decisions}.{i}.{j}`; j counts the cell's two inputs (`before`, then
    `previous`) and the earlier nodes. A node is the sum of its edges, of which `keep` (low, high) are on, so none is
    empty. Edges from the two inputs of a reducing cell have stride 2. Our choices: a reducing cell works at the width
    of its input and widens at its output; the output is the concatenation of the nodes followed, always, by a 1x1
    convolution unit (CAS leaves open where the concatenation is narrowed); inputs are fitted by a 1x1 unit only where
    width or size differ.
    """
    inner = draft.width(previous) if reduce else width
    features = [fitted(draft, before, previous, inner, f"{label}.before"), fitted(draft, previous, previous, inner, f"{label}.previous")]
    outputs = searched_nodes(draft, decisions, features, nodes=nodes, keep=keep, candidates=candidates, reduce=reduce, label=label)
    return _joined(draft, outputs, width, label)


def multi_scale_cell(
    draft: Draft,
    deep: int,
    fine: int,
    *,
    width: int,
    nodes: int = 2,
    candidates: Sequence[Kind] = MULTI_SCALE_CANDIDATES,
    label: str = "multi_scale",
) -> int:
    """Append CAS's multi-scale cell and return the slot of its output, `width` channels at the level of `fine`.

    Its two inputs are the deepest feature, narrowed and then resized, and the fine one; edge j of node i has decision
    `{label}.{i}.{j}`, and two edges enter each node. How it is wired is our choice.
    """
    point = kind("conv", kernel=1)
    coarse = draft.resize(draft.node(point, deep, channels=width, label=f"{label}.deep"), fine, f"{label}.resize")
    features = [coarse, draft.node(point, fine, channels=width, label=f"{label}.fine")]
    return _joined(draft, searched_nodes(draft, label, features, nodes=nodes, candidates=candidates, label=label), width, label)


def searched_nodes(
    draft: Draft,
    decisions: str,
    inputs: Sequence[int],
    *,
    nodes: int,
    keep: tuple[int, int | None] = (2, 2),
    candidates: Sequence[Kind],
    strided: Sequence[Kind] | None = None,
    reduce: bool = False,
    label: str,
) -> list[int]:
    """Append the intermediate nodes of a cell with two inputs, each a sum over edges from the inputs and the earlier nodes, and return their slots.

    The edges from the inputs of a reducing cell have stride 2, and `strided` in place of `candidates`, where given.
    """
    features = list(inputs)
    for node in range(nodes):
        names = [f"{decisions}.{node}.{source}" for source in range(len(features))]
        edges: list[int] = []
        for source, (name, feature) in enumerate(zip(names, features, strict=True)):
            halves = reduce and source < 2
            options = tuple(strided if halves and strided is not None else candidates)
            edges.append(draft.node(Choice(name, options), feature, stride=2 if halves else 1, label=f"{label}.{node}.{source}"))
        draft.keep(names, keep[0], len(names) if keep[1] is None else keep[1])
        features.append(draft.node("add", *edges, label=f"{label}.{node}"))
    return features[2:]


def _joined(draft: Draft, outputs: Sequence[int], width: int, label: str) -> int:
    joined = draft.node(kind("concat"), *outputs, label=f"{label}.concat") if len(outputs) > 1 else outputs[0]
    return draft.node(kind("conv", kernel=1), joined, channels=width, label=f"{label}.output")


def fitted(draft: Draft, source: int, like: int, width: int, label: str) -> int:
    """`source` at the level of `like` with `width` channels: itself where it fits, else behind a 1x1 convolution unit,
    of stride 2 across a reduction.
    """
    stride = 2 ** (draft.level(like) - draft.level(source))
    if stride == 1 and draft.width(source) == width:
        return source
    return draft.node(kind("conv", kernel=1), source, channels=width, stride=stride, label=label)

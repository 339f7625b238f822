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


def cell(
    draft: Draft,
    decisions: str,
    before: int,
    previous: int,
    *,
    width: int,
    reduce: bool = False,
    nodes: int = 2,
    keep: tuple[int, int] = (2, 2),
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
    for node in range(nodes):
        names = [f"{decisions}.{node}.{source}" for source in range(len(features))]
        edges = [
            draft.node(Choice(name, tuple(candidates)), feature, stride=2 if reduce and source < 2 else 1, label=f"{label}.{node}.{source}")
            for source, (name, feature) in enumerate(zip(names, features, strict=True))
        ]
        draft.keep(names, *keep)
        features.append(draft.node("add", *edges, label=f"{label}.{node}"))
    outputs = features[2:]
    joined = draft.node(kind("concat"), *outputs, label=f"{label}.concat") if nodes > 1 else outputs[0]
    return draft.node(kind("conv", kernel=1), joined, channels=width, label=f"{label}.output")


def fitted(draft: Draft, source: int, like: int, width: int, label: str) -> int:
    """`source` at the level of `like` with `width` channels: itself where it fits, else behind a 1x1 convolution unit,
    of stride 2 across a reduction.
    """
    stride = 2 ** (draft.level(like) - draft.level(source))
    if stride == 1 and draft.width(source) == width:
        return source
    return draft.node(kind("conv", kernel=1), source, channels=width, stride=stride, label=label)

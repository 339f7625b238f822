"""Stacked cells: a stem, normal and reducing cells in a row, and a head; what CAS, GAS and DARTS have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.space import Space
from segnas.search.spaces.cells import CANDIDATES, MULTI_SCALE_CANDIDATES, cell, multi_scale_cell


@dataclass(frozen=True, slots=True)
class Head:
    """The fixed end of a network: `context` on the deepest feature, resized, plus a 1x1 unit of the feature at
    1/`stride`, then `units` separable units.
    """

    context: Kind
    width: int
    stride: int
    units: int = 2


@dataclass(frozen=True, slots=True)
class MultiScaleHead:
    """The searched end of a network: CAS's multi-scale cell over the deepest feature and the last one at 1/`stride`."""

    width: int
    stride: int
    nodes: int = 2
    candidates: tuple[Kind, ...] = MULTI_SCALE_CANDIDATES


def stack(
    name: str,
    classes: int,
    *,
    cells: str,
    widths: Sequence[int],
    stem: Kind,
    stem_stride: int,
    head: Head | MultiScaleHead,
    shared: bool,
    keep: tuple[int, int | None] = (2, 2),
    nodes: int = 2,
    candidates: Sequence[Kind] = CANDIDATES,
) -> Space:
    """The space of networks that stack `cells`, N (normal) or R (reduction): `widths[0]` channels behind the stem, the
    next of `widths` from each R on.

    `shared` cells of one type have the same decisions (CAS); otherwise each cell has its own (GAS). `keep` (low, high)
    edges enter each intermediate node; high None means all. InputError where letters, widths and strides do not go
    together.
    """
    if not cells or set(cells) - {"N", "R"} or len(widths) != cells.count("R") + 1:
        raise InputError(
            f"cells {cells!r} with widths {tuple(widths)} were given; N and R are allowed, with one width for the stem and one for each R"
        )
    draft = Draft(name)
    features = [draft.node(stem, 0, channels=widths[0], stride=stem_stride, label="stem")] * 2
    stage = 0
    for index, letter in enumerate(cells):
        reduce = letter == "R"
        stage += reduce
        type_ = "reduction" if reduce else "normal"
        output = cell(
            draft,
            type_ if shared else f"cell{index}",
            *features[-2:],
            width=widths[stage],
            reduce=reduce,
            nodes=nodes,
            keep=keep,
            candidates=candidates,
            label=f"cell{index}.{type_}",
        )
        features.append(output)
    fine = [f for f in features if 2 ** draft.level(f) == head.stride]
    if not fine:
        raise InputError(f"no cell and no stem of {name!r} ends at 1/{head.stride} of the image, where its head reads")
    if isinstance(head, Head):
        feature = _fixed(draft, features[-1], fine[-1], head)
    else:
        feature = multi_scale_cell(draft, features[-1], fine[-1], width=head.width, nodes=head.nodes, candidates=head.candidates)
    logits = draft.node(kind("classifier"), feature, channels=classes, label="head.classifier")
    draft.resize(logits, 0, "head.output")
    return draft.space()


def _fixed(draft: Draft, deep: int, fine: int, head: Head) -> int:
    context = draft.node(head.context, deep, channels=head.width, label="head.context")
    coarse = draft.resize(context, fine, "head.resize")
    detail = draft.node(kind("conv", kernel=1), fine, channels=head.width, label="head.detail")
    feature = draft.node("add", coarse, detail, label="head.add")
    for unit in range(head.units):
        feature = draft.node(kind("separable"), feature, label=f"head.unit{unit}")
    return feature

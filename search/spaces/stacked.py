"""Stacked cells: a stem, normal and reducing cells in a row, and a head; what CAS, GAS and DARTS have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.space import Space
from segnas.search.spaces.cells import MULTI_SCALE_CANDIDATES, cell, multi_scale_cell


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


class CellBuilder(Protocol):
    """What appends one cell to a draft and returns the slot of its output, as `cells.cell` does."""

    def __call__(self, draft: Draft, decisions: str, before: int, previous: int, *, width: int, reduce: bool, label: str) -> int:
        """A cell over the outputs of the two cells before it; `decisions` is what the names of its decisions begin with."""
        ...


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
    build: CellBuilder = cell,
) -> Space:
    """The space of networks that stack `cells`, N (normal) or R (reduction): `widths[0]` channels behind the stem, the
    next of `widths` from each R on.

    `shared` cells of one type have the same decisions (CAS); otherwise each cell has its own (GAS). InputError where
    letters, widths and strides do not go together.
    """
    draft = Draft(name)
    features = [draft.node(stem, 0, channels=widths[0], stride=stem_stride, label="stem")] * 2
    features += stacked_cells(draft, *features, cells=cells, widths=widths, shared=shared, build=build)
    finish(draft, features, head, classes)
    return draft.space()


def stacked_cells(draft: Draft, before: int, previous: int, *, cells: str, widths: Sequence[int], shared: bool, build: CellBuilder) -> list[int]:
    """Append a row of cells behind two features, as `stack` describes it, and return the slots of their outputs."""
    if not cells or set(cells) - {"N", "R"} or len(widths) != cells.count("R") + 1:
        raise InputError(
            f"cells {cells!r} with widths {tuple(widths)} were given; N and R are allowed, with one width for the stem and one for each R"
        )
    features, stage = [before, previous], 0
    for index, letter in enumerate(cells):
        reduce = letter == "R"
        stage += reduce
        type_ = "reduction" if reduce else "normal"
        names = type_ if shared else f"cell{index}"
        features.append(build(draft, names, *features[-2:], width=widths[stage], reduce=reduce, label=f"cell{index}.{type_}"))
    return features[2:]


def finish(draft: Draft, features: Sequence[int], head: Head | MultiScaleHead, classes: int) -> None:
    """Append the end of a network: the head over the last feature and the last one at its stride, the classifier, the resize to the image's size.

    InputError where no feature lies at the head's stride.
    """
    fine = [f for f in features if 2 ** draft.level(f) == head.stride]
    if not fine:
        raise InputError(f"no cell and no stem of {draft.name!r} ends at 1/{head.stride} of the image, where its head reads")
    if isinstance(head, Head):
        feature = _fixed(draft, features[-1], fine[-1], head)
    else:
        feature = multi_scale_cell(draft, features[-1], fine[-1], width=head.width, nodes=head.nodes, candidates=head.candidates)
    logits = draft.node(kind("classifier"), feature, channels=classes, label="head.classifier")
    draft.resize(logits, 0, "head.output")


def _fixed(draft: Draft, deep: int, fine: int, head: Head) -> int:
    context = draft.node(head.context, deep, channels=head.width, label="head.context")
    coarse = draft.resize(context, fine, "head.resize")
    detail = draft.node(kind("conv", kernel=1), fine, channels=head.width, label="head.detail")
    feature = draft.node("add", coarse, detail, label="head.add")
    for unit in range(head.units):
        feature = draft.node(kind("separable"), feature, label=f"head.unit{unit}")
    return feature

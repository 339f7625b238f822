"""CAS, Customizable Architecture Search (Zhang et al., CVPR 2019): cells of one type share their architecture and have
weights of their own.

What the paper states (abstract, introduction): stacked cells, edges that are operations, one architecture per cell
type, a cost per operation in the loss. What a third party reports: normal, reduction and multi-scale cells, searched in
the DARTS manner. All else here is our reading or our choice: the candidate list and the two-input cell are recalled,
unverified; two intermediate nodes, the widths, the stems and the heads are ours; and instead of the multi-scale cell
stands a fixed head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.space import Space
from segnas.search.spaces.cells import CANDIDATES, cell


@dataclass(frozen=True, slots=True)
class Head:
    """The fixed end of a network: `context` on the deepest feature, resized, plus a 1x1 unit of the feature at
    1/`stride`, then `units` separable units.
    """

    context: Kind
    width: int
    stride: int
    units: int = 2


def build(
    name: str,
    classes: int,
    *,
    cells: str,
    widths: Sequence[int],
    stem: Kind,
    stem_stride: int,
    head: Head,
    nodes: int = 2,
    candidates: Sequence[Kind] = CANDIDATES,
) -> Space:
    """The space of networks that stack `cells`, N (normal) or R (reduction): `widths[0]` channels behind the stem, the
    next of `widths` from each R on.

    The head reads the last feature at 1/`head.stride` of the image. InputError where letters, widths and strides do not
    go together.
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
        decisions = "reduction" if reduce else "normal"
        output = cell(
            draft, decisions, *features[-2:], width=widths[stage], reduce=reduce, nodes=nodes, candidates=candidates, label=f"cell{index}.{decisions}"
        )
        features.append(output)
    _finish(draft, features, classes, head)
    return draft.space()


def cas(classes: int) -> Space:
    """The paper-like preset: stem to 1/4, eight cells, reductions at 1/3 and 2/3 (DARTS), widths doubling, ASPP-lite
    and the 1/4 feature in the head.

    Depth, widths and head are our choice; the paper's are unknown to us.
    """
    head = Head(kind("aspp"), 128, 4)
    return build("cas", classes, cells="NNRNNRNN", widths=(64, 128, 256), stem=kind("stem", width=32), stem_stride=4, head=head)


def cas_fast(classes: int) -> Space:
    """The real-time preset: a separable stem to 1/8 (Fast-SCNN's learning to downsample), cells down to 1/32, pyramid
    pooling, a head at 1/8; our choice.
    """
    stem, head = kind("stem", unit="separable", width=32), Head(kind("pyramid_pool"), 64, 8, 1)
    return build("cas-fast", classes, cells="RNNRNN", widths=(64, 96, 128), stem=stem, stem_stride=8, head=head)


def cas_tiny(classes: int) -> Space:
    """The preset of tests and the quickstart: five narrow cells, the first at 1/8, where its choices weigh most; our choice."""
    stem, head = kind("stem", unit="separable", width=16), Head(kind("pyramid_pool"), 48, 8, 1)
    return build("cas-tiny", classes, cells="NRNRN", widths=(48, 64, 96), stem=stem, stem_stride=8, head=head)


def _finish(draft: Draft, features: Sequence[int], classes: int, head: Head) -> None:
    fine = [f for f in features if 2 ** draft.level(f) == head.stride]
    if not fine:
        raise InputError(f"no cell and no stem of {draft.name!r} ends at 1/{head.stride} of the image, where its head reads")
    context = draft.node(head.context, features[-1], channels=head.width, label="head.context")
    coarse = draft.resize(context, fine[-1], "head.resize")
    detail = draft.node(kind("conv", kernel=1), fine[-1], channels=head.width, label="head.detail")
    feature = draft.node("add", coarse, detail, label="head.add")
    for unit in range(head.units):
        feature = draft.node(kind("separable"), feature, label=f"head.unit{unit}")
    logits = draft.node(kind("classifier"), feature, channels=classes, label="head.classifier")
    draft.resize(logits, 0, "head.output")

"""The networks that Auto-DeepLab published, S, M and L, as its authors' code builds them (tensorflow/models, research/deeplab).

Backbone: core/nas_network.py and core/nas_cell.py, whose cells halve the size inside, at the edges from their inputs, where our space halves it
before them. Context and decoder: model.py, DeepLabv3+'s with plain convolutions, as the published counts show. F is 20, 32 and 48 (table 2 of the
paper).
"""

from segnas.arch import Architecture
from segnas.kinds import kind
from segnas.search.draft import Draft
from segnas.search.spaces.autodeeplab import CANDIDATES

SCALES = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)
"""The best path: the scale of each layer, 0 for 1/4."""

BLOCKS = (
    (("atrous_5x5", 1), ("separable_3x3", 0)),
    (("separable_3x3", 1), ("atrous_3x3", 0)),
    (("separable_3x3", 3), ("separable_3x3", 1)),
    (("separable_5x5", 4), ("separable_5x5", 2)),
    (("separable_5x5", 3), ("atrous_5x5", 5)),
)
"""The best cell: each block's two operations with their sources; 0 is the cell before, 1 the one before that, then the earlier blocks."""

FILTERS = {"s": 20, "m": 32, "l": 48}
CONTEXT, DETAIL = 256, 48
"""Channels of the context and decoder, and of the fine feature that joins them."""
RATES = (12, 24, 36)
"""Of the context at 1/8 (DeepLabv3+; which ones were used here is not said, and no count depends on it)."""
POINT = kind("conv", kernel=1)


def auto_deeplab_s(classes: int) -> Architecture:
    """F = 20: published with 10.15 M parameters, 333.25 B multiply-adds and 79.74 % on Cityscapes val."""
    return published(FILTERS["s"], classes)


def auto_deeplab_m(classes: int) -> Architecture:
    """F = 32: published with 21.62 M parameters, 460.93 B multiply-adds and 80.04 % on Cityscapes val."""
    return published(FILTERS["m"], classes)


def auto_deeplab_l(classes: int) -> Architecture:
    """F = 48: published with 44.42 M parameters, 695.03 B multiply-adds and 80.33 % on Cityscapes val."""
    return published(FILTERS["l"], classes)


def published(filters: int, classes: int) -> Architecture:
    """The best path and cell with so many filters a block at 1/4, the context at the last scale, the decoder at 1/4."""
    draft = Draft("auto-deeplab")
    first = draft.node(kind("conv"), 0, channels=64, stride=2, label="stem.0")
    features = [draft.node(kind("conv"), first, channels=64, label="stem.1")]
    features.append(draft.node(kind("conv"), features[-1], channels=128, stride=2, label="stem.2"))
    for layer, scale in enumerate(SCALES, 1):
        features.append(_cell(draft, features[-2], features[-1], scale, filters, f"layer{layer}.{4 * 2**scale}"))
    context = draft.resize(_context(draft, features[-1]), features[1], "decoder.up")
    detail = draft.node(POINT, features[4], channels=DETAIL, label="decoder.detail")  # the third cell's output, at 1/4
    joined = draft.node(kind("concat"), context, detail, label="decoder.concat")
    for unit in range(2):
        joined = draft.node(kind("conv"), joined, channels=CONTEXT, label=f"decoder.unit{unit}")
    logits = draft.node(kind("classifier"), joined, channels=classes, label="classifier")
    draft.resize(logits, 0, "output")
    return draft.space().decode({}).architecture


def _cell(draft: Draft, before: int, previous: int, scale: int, filters: int, label: str) -> int:
    """One cell: finer ones enlarge their input first; coarser ones work at its size, but for the edges from the two inputs, which halve it."""
    width, here = filters * 2**scale, draft.level(previous) - 2
    if scale < here:
        previous = draft.node(kind("resize"), previous, up=2, label=f"{label}.up")
    resized = draft.resize(before, previous, f"{label}.before.resize")
    features = [
        draft.node(POINT, previous, channels=width, label=f"{label}.previous"),
        draft.node(POINT, resized, channels=width, label=f"{label}.before"),
    ]
    for block, pairs in enumerate(BLOCKS):
        edges = [_edge(draft, op, features[s], halves=scale > here and s < 2, label=f"{label}.{block}.{s}") for op, s in pairs]
        features.append(draft.node("add", *edges, label=f"{label}.{block}"))
    return draft.node(kind("concat"), *features[2:], label=f"{label}.output")


def _edge(draft: Draft, operation: str, feature: int, *, halves: bool, label: str) -> int:
    """One operation; an atrous convolution that halves is a bilinear resize and a convolution without dilation."""
    made = CANDIDATES[operation]
    if halves and made.op == "conv":
        feature = draft.node(kind("resize"), feature, stride=2, label=f"{label}.half")
        made = kind("conv", kernel=made.integer("kernel"))
    return draft.node(made, feature, stride=2 if halves and made.op != "conv" else 1, label=label)


def _context(draft: Draft, feature: int) -> int:
    """ASPP with plain convolutions (DeepLabv3, section 3.3): image pooling, a 1x1 unit, a 3x3 unit a rate; joined by a 1x1 unit."""
    branches = [
        draft.node(kind("grid_pool"), feature, channels=CONTEXT, label="context.pool"),
        draft.node(POINT, feature, channels=CONTEXT, label="context.point"),
        *(draft.node(kind("conv", dilation=rate), feature, channels=CONTEXT, label=f"context.rate{rate}") for rate in RATES),
    ]
    return draft.node(POINT, draft.node(kind("concat"), *branches, label="context.concat"), channels=CONTEXT, label="context.output")

"""The student that FasterSeg published, as its authors' code builds it (VITA-Group/FasterSeg, train/model_seg.py).

Layers and widths were read from the released architecture file. Its branches share their first three cells and part where their choices do, which is
later than a trellis of states would have it: cells that were skipped are gone from each branch on its own. The channel attention behind the fusion
returns before it is applied in the released code, and is left out (32,768 parameters). Resizes align corners, as there; the zoomed units' do not.
"""

from segnas.arch import Architecture
from segnas.kinds import kind
from segnas.search.draft import Draft
from segnas.search.spaces.fasterseg import CANDIDATES, Widening

WIDENING = Widening(12, (4, 6, 8, 10, 12), ends=8, details=4)

Cells = tuple[tuple[str, int, int], ...]
"""Each cell's operation, the scale of its input, and the twelfths of its output's width."""

SHARED: Cells = (("conv_2x", 8, 4), ("conv_2x", 8, 4), ("conv_2x_downup", 8, 4))

TO_32: Cells = (
    ("conv_downup", 8, 8),
    *(("conv_2x_downup", 16, 4),) * 4,
    ("conv_2x_downup", 32, 4),
    ("conv_2x_downup", 32, WIDENING.ends),
)
"""Those of the branch that ends at 1/32, behind the shared ones."""

TO_16: Cells = (
    ("conv_2x_downup", 8, 4),
    ("conv_2x", 8, 4),
    ("conv_2x", 8, 4),
    ("conv_2x_downup", 16, 4),
    ("conv_2x_downup", 16, 12),
    ("conv_2x_downup", 16, WIDENING.ends),
)


def fasterseg_student(classes: int) -> Architecture:
    """The student: published with 28.2 GFLOPs at 1024x2048, 163.9 FPS (GTX 1080 Ti, TensorRT, fp32) and 73.1 % on Cityscapes val."""
    draft = Draft("fasterseg-student")
    ends = {scale: WIDENING.channels(scale, WIDENING.ends) for scale in (2, 4, 8, 16)}
    feature = draft.node(kind("conv"), 0, channels=2 * ends[2], stride=2, label="stem.0")
    feature = draft.node(kind("double_conv"), feature, channels=2 * ends[4], stride=2, label="stem.1")
    feature = draft.node(kind("double_conv"), feature, channels=ends[8], stride=2, label="stem.2")
    shared, _ = _cells(draft, feature, SHARED, 8, "shared")
    branches = [_branch(draft, shared, cells, scale) for scale, cells in ((16, TO_16), (32, TO_32))]
    joined = draft.node(kind("concat"), *branches, label="head.concat")
    joined = draft.node(kind("conv", kernel=1), joined, label="head.fusion")
    joined = draft.node(kind("conv"), joined, label="head.unit")
    logits = draft.node(kind("classifier"), joined, channels=classes, label="head.classifier")
    draft.node(kind("resize", align_corners=True), logits, up=8, label="head.output")
    return draft.space().decode({}).architecture


def _cells(draft: Draft, feature: int, cells: Cells, end: int, label: str) -> tuple[int, dict[int, int]]:
    """Append cells up to the scale `end`, and return the last feature, and that which each halving cell reads, by its scale."""
    last: dict[int, int] = {}
    for index, (operation, scale, twelfths) in enumerate(cells):
        target = cells[index + 1][1] if index + 1 < len(cells) else end
        if target > scale:
            last[scale] = feature
        width = WIDENING.channels(target, twelfths)
        feature = draft.node(CANDIDATES[operation], feature, channels=width, stride=target // scale, label=f"{label}.{index}")
    return feature, last


def _branch(draft: Draft, feature: int, cells: Cells, end: int) -> int:
    """A branch behind the shared cells, merged upwards with the last finer features of its path, up to 1/8."""
    feature, last = _cells(draft, feature, cells, end, f"branch{end}")
    for finer in sorted(last, reverse=True):
        label, width = f"branch{end}.{finer}", WIDENING.channels(finer, WIDENING.ends)
        feature = draft.node(kind("conv", kernel=1), feature, channels=width, label=f"{label}.arm")
        feature = draft.node(kind("resize", align_corners=True), feature, up=2, label=f"{label}.up")
        feature = draft.node(kind("concat"), feature, last[finer], label=f"{label}.concat")
        feature = draft.node(kind("conv"), feature, channels=width, label=f"{label}.refine")
    return feature

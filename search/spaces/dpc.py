"""DPC, the dense prediction cell (Chen et al., NeurIPS 2018): a small recursive decoder on a backbone that is not searched.

From the paper: five branches; each reads the backbone's feature or an earlier branch and applies one of 81 operations of 256 channels: a 1x1
convolution, a 3x3 separable convolution whose rates are 1, 3, 6, ..., 21 each way, a pooling to a grid of 1, 2, 4 or 8 windows each way; the
branches are concatenated; 5! 81^5 cells. From the released code (tensorflow/models, research/deeplab/core/dense_prediction_cell.py): a 1x1
convolution to 256 channels behind the concatenation; at stride 8 all rates double.
Ours: MobileNet-v2 alone as backbone; no dropout; pooled windows that overlap where the grid does not divide the feature (`ops.pooled_to`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.mobilenet import STAGES
from segnas.search.draft import Draft
from segnas.search.slots import Choice, Link
from segnas.search.space import Space
from segnas.search.spaces.backbone import mobilenet_v2

RATES = (1, 3, 6, 9, 12, 15, 18, 21)
"""Of the separable convolutions, at stride 16."""
GRIDS = (1, 2, 4, 8)
WIDTH = 256
BRANCHES = 5
POINT = kind("conv", kernel=1)


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch of a cell: its operation at stride 16, and what it reads: 0 the backbone's feature, i the i-th branch."""

    operation: Kind
    source: int


def operations(rates: Sequence[int] = RATES, grids: Sequence[int] = GRIDS, *, multiplier: int = 1) -> tuple[Kind, ...]:
    """The operations of a branch: the 1x1 convolution, then the separable ones by (height, width) of their rate, then the grids; 81 of the paper's.

    `multiplier` times the rates: 16 over the backbone's stride.
    """
    dilated = [kind("separable", dilation=(multiplier * down, multiplier * across)) for down in rates for across in rates]
    return (POINT, *dilated, *(kind("grid_pool", grid=(rows, columns)) for rows in grids for columns in grids))


def dpc(classes: int) -> Space:
    """The paper's space on its small backbone: MobileNet-v2 at 1/16, five branches of 81 operations, 256 channels; 418,414,128,120 cells."""
    return dense_cells("dpc", classes, operations(), branches=BRANCHES, width=WIDTH)


def dpc_small(classes: int) -> Space:
    """The preset that a CPU can search: five branches of 14 operations, 256 channels, at 1/8 behind three stages of half the backbone's width, and a
    projection to 96 channels.

    Our choice: behind the whole backbone no cell at 1/16 changes what a network takes on a CPU by more than 2 %, and a projection to 256 channels
    would take more than any branch.
    """
    candidates = operations((1, 3, 6), (1, 2), multiplier=2)
    return dense_cells("dpc-small", classes, candidates, branches=BRANCHES, width=WIDTH, projection=96, backbone=0.5, stages=3, output_stride=8)


def dense_cells(
    name: str,
    classes: int,
    candidates: tuple[Kind, ...],
    *,
    branches: int,
    width: int,
    projection: int | None = None,
    backbone: float = 1.0,
    stages: int = len(STAGES),
    output_stride: int = 16,
) -> Space:
    """Networks of one cell on MobileNet-v2, or on its first stages, at 1/8 or 1/16; `projection` is the width behind the cell, its own if not given.

    Decisions: `op.BRANCH` (1 to `branches`) and `input.BRANCH`, as `Branch.source`.
    A branch that may read features of two widths has its operation twice, under one decision: on the backbone's and on the branches'.
    """
    draft = Draft(name)
    feature = mobilenet_v2(draft, width=backbone, stages=stages, output_stride=output_stride)[-1]
    outputs: list[int] = []
    for branch in range(1, branches + 1):
        choice, label = Choice(f"op.{branch}", candidates), f"branch{branch}"
        direct = draft.node(choice, feature, channels=width, label=f"{label}.direct")
        if not outputs:
            outputs.append(direct)
            continue
        earlier = [Link(output, f"input.{branch}", source) for source, output in enumerate(outputs, 1)]
        through = draft.node(choice, draft.node("select", *earlier, label=f"{label}.input"), channels=width, label=f"{label}.through")
        ways = [Link(through, f"input.{branch}", source) for source in range(1, branch)]
        outputs.append(draft.node("select", Link(direct, f"input.{branch}", 0), *ways, label=label))
    finish(draft, outputs, classes, projection or width)
    return draft.space()


def fixed_cell(draft: Draft, feature: int, cell: Sequence[Branch], *, width: int = WIDTH, multiplier: int = 1) -> tuple[int, ...]:
    """Append the branches of one cell to a draft, and return their slots. InputError where a branch reads one that is not before it."""
    features = [feature]
    for number, branch in enumerate(cell, 1):
        if not 0 <= branch.source < number:
            raise InputError(f"branch {number} of a dense prediction cell reads {branch.source}; 0 (the backbone) to {number - 1} are allowed")
        made = at_multiplier(branch.operation, multiplier)
        features.append(draft.node(made, features[branch.source], channels=width, label=f"branch{number}"))
    return tuple(features[1:])


def at_multiplier(operation: Kind, multiplier: int) -> Kind:
    """The operation with its rates times that: the released code's rule for strides below 16."""
    if operation.op != "separable" or multiplier == 1:
        return operation
    down, across = operation.integers("dilation")
    return kind("separable", dilation=(multiplier * down, multiplier * across))


def finish(draft: Draft, branches: Sequence[int], classes: int, width: int) -> None:
    """Concatenation, 1x1 projection, classifier, and the resize to the image."""
    joined = draft.node(kind("concat"), *branches, label="cell.concat")
    projected = draft.node(POINT, joined, channels=width, label="cell.projection")
    logits = draft.node(kind("classifier"), projected, channels=classes, label="classifier")
    draft.resize(logits, 0, "output")


def genotype(cell: Sequence[Branch], candidates: Sequence[Kind]) -> dict[str, int]:
    """The decisions of a cell in a space of these operations (at stride 16); InputError for an operation that is none of them."""
    found: dict[str, int] = {}
    for number, branch in enumerate(cell, 1):
        if branch.operation not in candidates:
            raise InputError(f"branch {number} has the operation {branch.operation}, which is none of the space's {len(candidates)}")
        found[f"op.{number}"] = list(candidates).index(branch.operation)
        if number > 1:
            found[f"input.{number}"] = branch.source
    return found

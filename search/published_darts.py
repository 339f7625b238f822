"""The networks that DARTS published, as members of our space: its cells in the networks for CIFAR-10 and ImageNet, and as a segmentation backbone.

The cells are those of the released code (cnn/genotypes.py: DARTS_V1 is in its first commit, DARTS_V2 as many repositories quote it); the networks are
its cnn/model.py.
"""

from dataclasses import dataclass

from segnas.arch import Architecture
from segnas.kinds import kind
from segnas.search.draft import Draft
from segnas.search.spaces.darts import cells_of_depth, genotype, row
from segnas.search.spaces.stacked import Head, finish

Edges = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class DartsCells:
    """A normal and a reduction cell as DARTS writes them: two pairs of operation and source for each of the four nodes."""

    normal: Edges
    reduction: Edges

    @property
    def genotype(self) -> dict[str, int]:
        """The same as decisions of our space."""
        return genotype(self.normal, self.reduction)


SEP, SKIP, MAX, AVG = "sep_conv_3x3", "skip_connect", "max_pool_3x3", "avg_pool_3x3"

DARTS_V1 = DartsCells(
    ((SEP, 1), (SEP, 0), (SKIP, 0), (SEP, 1), (SKIP, 0), (SEP, 1), (SEP, 0), (SKIP, 2)),
    ((MAX, 0), (MAX, 1), (SKIP, 2), (MAX, 0), (MAX, 0), (SKIP, 2), (SKIP, 2), (AVG, 0)),
)
"""Found with the first-order gradient: 3.00 % error on CIFAR-10, 3.3 M parameters (table 1 of the paper)."""

DARTS_V2 = DartsCells(
    ((SEP, 0), (SEP, 1), (SEP, 0), (SEP, 1), (SEP, 1), (SKIP, 0), (SKIP, 0), ("dil_conv_3x3", 2)),
    ((MAX, 0), (MAX, 1), (SKIP, 2), (MAX, 1), (MAX, 0), (SKIP, 2), (SKIP, 2), (MAX, 1)),
)
"""Found with the second-order gradient: 2.76 % error on CIFAR-10, 3.3 M parameters; 26.7 % on ImageNet, 4.7 M (tables 1 and 3)."""


def darts_cifar(cells: DartsCells, depth: int = 20, width: int = 36) -> Architecture:
    """The network for CIFAR-10 up to its last cell, 16 C channels at 1/4; behind it come a global mean and a linear layer (`linear_parameters`)."""
    draft = Draft("darts-cifar")
    stem = draft.node(kind("conv"), 0, channels=3 * width, label="stem")
    row(draft, stem, stem, cells_of_depth(depth), width)
    return draft.space().decode(cells.genotype).architecture


def darts_imagenet(cells: DartsCells, depth: int = 14, width: int = 48) -> Architecture:
    """The network for ImageNet up to its last cell, 16 C channels at 1/32; behind it come a global mean and a linear layer."""
    draft = Draft("darts-imagenet")
    _backbone(draft, depth, width)
    return draft.space().decode(cells.genotype).architecture


def linear_parameters(network: Architecture, classes: int) -> int:
    """Parameters of the linear layer behind a network's global mean: a weight for each channel and class, and a bias for each class."""
    return network.nodes[-1].channels * classes + classes


def darts_v1(classes: int) -> Architecture:
    """The ImageNet network with the cells of the first order as a backbone."""
    return _segmentation("darts-v1", DARTS_V1, classes)


def darts_v2(classes: int) -> Architecture:
    """The ImageNet network with the cells of the second order as a backbone."""
    return _segmentation("darts-v2", DARTS_V2, classes)


def _segmentation(name: str, cells: DartsCells, classes: int) -> Architecture:
    """14 cells of C = 48 from 1/8 to 1/32, ASPP-lite of 128 channels and two separable units at 1/8 (the head is ours)."""
    draft = Draft(name)
    features = _backbone(draft, 14, 48)
    finish(draft, features, Head(kind("aspp"), 128, 8), classes)
    return draft.space().decode(cells.genotype).architecture


def _backbone(draft: Draft, depth: int, width: int) -> list[int]:
    """Three convolutions of stride 2, the outputs of the last two of which the first cell reads, and the cells."""
    first = draft.node(kind("conv"), 0, channels=width // 2, stride=2, label="stem.0")
    before = draft.node(kind("conv"), first, channels=width, stride=2, label="stem.1")
    previous = draft.node(kind("conv"), before, channels=width, stride=2, label="stem.2")
    return [previous, *row(draft, before, previous, cells_of_depth(depth), width)]

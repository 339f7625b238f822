"""Auto-DeepLab (Liu et al., CVPR 2019): a cell and a path through scales, searched together.

From the paper: the eight operations; B = 5 blocks a cell, each the sum of two inputs among the two cells before and the earlier blocks, their
concatenation as output; one cell for all layers and scales; a trellis of L = 12 layers over 1/4 to 1/32, whose path keeps, halves or doubles the
size at each layer; widths of F, 2 F, 4 F and 8 F a block, F = 8 in the search; stride-2 convolutions down, bilinear resizing and 1x1 convolutions
up; ASPP of three branches at the end of each scale, summed. From the released code (tensorflow/models, research/deeplab/core/nas_*.py): atrous
convolutions are not separable, separable ones are applied twice; the cell two back is the path's own, resized, whatever its scale.
Ours: the kernel of the stride-2 convolutions, gates before a cell in place of behind it (Cell(sum beta x) for sum beta Cell(x), equal once decoded),
ASPP-lite, widths of stem and head; convolution, normalisation and activation in the order of this project.

The first layer stands at 1/4, as the paper's count of 2.9e4 paths says: 28,657 in twelve layers. The released code would allow it at 1/8 too, which
makes 75,025.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.slots import Link
from segnas.search.space import Space
from segnas.search.spaces.cells import searched_nodes

CANDIDATES: dict[str, Kind] = {
    "none": kind("none"),
    "separable_3x3": kind("separable", repeats=2),
    "separable_5x5": kind("separable", kernel=5, repeats=2),
    "atrous_3x3": kind("conv", dilation=2),
    "atrous_5x5": kind("conv", kernel=5, dilation=2),
    "avg_pool_3x3": kind("avg_pool"),
    "max_pool_3x3": kind("max_pool"),
    "skip": kind("skip"),
}
"""The operations of an edge by the names of the released code, in the order of the paper, `none` first."""

SCALES = 4
POINT = kind("conv", kernel=1)


def auto_deeplab(classes: int) -> Space:
    """The paper's search network: 12 layers, 5 blocks, F = 8; stem of 64, 64 and 128 channels, a head of 64 at 1/4."""
    return trellis("auto-deeplab", classes, layers=12, filters=8, blocks=5, stem=(64, 64, 128), head=64)


def auto_deeplab_small(classes: int) -> Space:
    """The preset that a CPU can search: 6 layers, 3 blocks, F = 8, a narrow stem and head; our choice."""
    return trellis("auto-deeplab-small", classes, layers=6, filters=8, blocks=3, stem=(16, 16, 32), head=32)


def trellis(name: str, classes: int, *, layers: int, filters: int, blocks: int, stem: tuple[int, int, int], head: int, free: bool = False) -> Space:
    """Networks of one cell along a path through the scales.

    Decisions: `cell.BLOCK.SOURCE` (source 0 is the cell before, 1 the one before that, then the earlier blocks); `move.LAYER.SCALE`, whose options
    are the scales that the path may go on to from there, the finest first; `exit.SCALE`, of one option each. `free` lets the first layer choose its
    scale. InputError where the last layer does not reach all scales.
    """
    least = SCALES - int(free)
    if layers < least:
        raise InputError(f"{layers} layers were given; {least} or more are needed to reach all {SCALES} scales")
    draft = Draft(name)
    states = _States(draft, filters, blocks, stem, free)
    for layer in range(1, layers + 1):
        states.append(layer)
    ends = [Link(_context(draft, feature, scale, head), f"exit.{scale}", 0) for scale, feature in states.features[layers].items()]
    _decode(draft, draft.node("select", *ends, label="head.context"), states.features[0][0], classes, head)
    return draft.space()


def scales_of(layer: int, *, free: bool = False) -> tuple[int, ...]:
    """The scales that a path may be at in a layer, 0 for 1/4; layer 0 is the stem."""
    return tuple(range(min(SCALES, max(1, layer + int(free)))))


def moves(layer: int, scale: int, *, free: bool = False) -> tuple[int, ...]:
    """The scales that a path may go on to from that scale in that layer, the finest first."""
    return tuple(s for s in (scale - 1, scale, scale + 1) if s in scales_of(layer + 1, free=free))


def path(scales: Sequence[int], *, free: bool = False) -> dict[str, int]:
    """The moves of the path that is at these scales in layers 1, 2, ...; InputError where a step is none of `moves`."""
    taken: dict[str, int] = {}
    for layer, (here, there) in enumerate(pairwise((0, *scales))):
        allowed = moves(layer, here, free=free)
        if there not in allowed:
            raise InputError(f"the path goes from scale {here} of layer {layer} to {there}; {', '.join(map(str, allowed))} are allowed")
        if len(allowed) > 1:
            taken[f"move.{layer}.{here}"] = allowed.index(there)
    return taken


class _States:
    """The trellis in the making: the output of each state by layer and scale. The stem counts as two layers, at 1/2 (scale -1) and at 1/4."""

    def __init__(self, draft: Draft, filters: int, blocks: int, stem: tuple[int, int, int], free: bool) -> None:
        self.draft, self.filters, self.blocks, self.free = draft, filters, blocks, free
        first = draft.node(kind("conv"), 0, channels=stem[0], stride=2, label="stem.0")
        second = draft.node(kind("conv"), first, channels=stem[1], label="stem.1")
        third = draft.node(kind("conv"), second, channels=stem[2], stride=2, label="stem.2")
        self.features: dict[int, dict[int, int]] = {-1: {-1: second}, 0: {0: third}}

    def append(self, layer: int) -> None:
        """One more layer: a cell at each scale that it may be at."""
        self.features[layer] = {scale: self._cell(layer, scale) for scale in scales_of(layer, free=self.free)}

    def _cell(self, layer: int, scale: int) -> int:
        """One state: the cell over the path's cell before, brought to the state's size and width, and the path's cell before that."""
        label = f"layer{layer}.{4 * 2**scale}"
        sources = [s for s in self.features[layer - 1] if scale in moves(layer - 1, s, free=self.free)]
        aligned = {s: self._aligned(self.features[layer - 1][s], s, scale, f"{label}.from{4 * 2**s}") for s in sources}
        fitted: dict[int, int] = {}
        carried = {s: self._carried(layer, s, scale, fitted, label) for s in sources}
        inputs = (self._joined(layer - 1, scale, aligned, f"{label}.previous"), self._joined(layer - 1, scale, carried, f"{label}.before"))
        candidates = tuple(CANDIDATES.values())
        outputs = searched_nodes(self.draft, "cell", inputs, nodes=self.blocks, candidates=candidates, label=label)
        return outputs[0] if len(outputs) == 1 else self.draft.node(kind("concat"), *outputs, label=f"{label}.output")

    def _carried(self, layer: int, middle: int, scale: int, fitted: dict[int, int], label: str) -> int:
        """The cell two layers back of a path that comes through scale `middle`, resized to `scale`; `fitted` holds what was resized already."""
        found: dict[int, int] = {}
        for source, feature in self.features[layer - 2].items():
            if middle in moves(layer - 2, source, free=self.free):
                if source not in fitted:
                    resized = self._resized(feature, source, scale, f"{label}.back{2 ** (2 + source)}")
                    fitted[source] = self.draft.node(POINT, resized, channels=self._width(scale), label=f"{label}.back{2 ** (2 + source)}.point")
                found[source] = fitted[source]
        return self._joined(layer - 2, middle, found, f"{label}.through{4 * 2**middle}")

    def _joined(self, layer: int, scale: int, features: Mapping[int, int], label: str) -> int:
        """That one of the features, by the scale that each comes from, whose path goes on from `layer` to `scale`."""
        allowed = {source: moves(layer, source, free=self.free) for source in features}
        if all(len(options) == 1 for options in allowed.values()):
            (only,) = features.values()
            return only
        links = [Link(feature, f"move.{layer}.{source}", allowed[source].index(scale)) for source, feature in features.items()]
        return self.draft.node("select", *links, label=label)

    def _aligned(self, feature: int, source: int, scale: int, label: str) -> int:
        """The cell before at a state's size and width: a 1x1 unit; down a 3x3 unit of stride 2; up a resize first."""
        if source < scale:
            return self.draft.node(kind("conv"), feature, channels=self._width(scale), stride=2, label=f"{label}.down")
        resized = self._resized(feature, source, scale, f"{label}.up")
        return self.draft.node(POINT, resized, channels=self._width(scale), label=f"{label}.point")

    def _resized(self, feature: int, source: int, scale: int, label: str) -> int:
        if source == scale:
            return feature
        stride, up = (2 ** (scale - source), 1) if source < scale else (1, 2 ** (source - scale))
        return self.draft.node(kind("resize"), feature, stride=stride, up=up, label=label)

    def _width(self, scale: int) -> int:
        return self.filters * 2**scale


def _context(draft: Draft, feature: int, scale: int, width: int) -> int:
    """ASPP of three branches at the path's last scale, its rate 96 over the stride (the paper's, in the search), brought to 1/4."""
    context = draft.node(kind("aspp", rates=(96 // (4 * 2**scale),)), feature, channels=width, label=f"head.aspp{4 * 2**scale}")
    if scale == 0:
        return context
    return draft.node(kind("resize"), context, up=2**scale, label=f"head.up{4 * 2**scale}")


def _decode(draft: Draft, context: int, fine: int, classes: int, width: int) -> None:
    """DeepLabv3+'s decoder, separable (ours): context and a narrowed fine feature, two units, classifier, resize."""
    detail = draft.node(POINT, fine, channels=width // 2, label="head.detail")
    joined = draft.node(kind("concat"), context, detail, label="head.concat")
    for unit in range(2):
        joined = draft.node(kind("separable"), joined, channels=width, label=f"head.unit{unit}")
    logits = draft.node(kind("classifier"), joined, channels=classes, label="head.classifier")
    draft.resize(logits, 0, "head.output")

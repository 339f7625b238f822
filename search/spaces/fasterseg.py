"""FasterSeg (Chen et al., ICLR 2020): two branches through a trellis of scales whose cells choose their operation and their width.

From the released code (VITA-Group/FasterSeg): the five operations and their order; 16 layers over 1/8, 1/16 and 1/32; a stem to 1/8 of one unit and
two double units; widths of 4/12 to 12/12 of 96, 192 and 384 channels (F = 12); at each cell one choice of operation for the way that keeps the size
and the way that halves it, which doubles the channels; two branches, one that ends at 1/16 and one at 1/32, each merged upwards with the last finer
features of its own path; a 3x3 unit and a classifier at 1/8. A state chooses where it comes *from*, as there: beta is a softmax over incoming ways.

Ours: every network has both branches (there 1/8 + 1/32 is tried too), and they share every cell where their paths meet; a finer feature comes to its
merge through a 1x1 unit of one width, since features of open width cannot be concatenated; gates before a cell in place of behind it, equal once
decoded; the zoomed units have their activation before the bilinear enlargement, which has half-pixel centres.
"""

from dataclasses import dataclass

from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.slots import Choice, Link, Widths
from segnas.search.space import Space

CANDIDATES: dict[str, Kind] = {
    "skip": kind("shortcut"),
    "conv": kind("conv"),
    "conv_downup": kind("zoomed_conv"),
    "conv_2x": kind("double_conv"),
    "conv_2x_downup": kind("zoomed_conv", repeats=2),
}
"""The operations of a cell by FasterSeg's names, in its order; `downup` is the zoomed convolution."""

SCALES = (8, 16, 32)
DOWN, KEEP = 0, 1
"""Options of where a state comes from: the finer state before, halved, or the same scale's (the order of the released code's beta)."""
POINT = kind("conv", kernel=1)


@dataclass(frozen=True, slots=True)
class Widening:
    """The widths of a network: F, the twelfths of 8 F, 16 F and 32 F channels that cells may have, those of stem and head and of the details."""

    filters: int
    twelfths: tuple[int, ...]
    ends: int
    details: int

    def channels(self, scale: int, twelfths: int) -> int:
        """Channels at a scale."""
        return round(scale * self.filters * twelfths / 12)

    def options(self, scale: int) -> tuple[int, ...]:
        """The widths that a state at that scale may have, the narrowest first."""
        return tuple(self.channels(scale, twelfths) for twelfths in self.twelfths)


def fasterseg(classes: int) -> Space:
    """The paper's: 16 layers, F = 12, five widths; stem and head of the student, 8/12; details of 4/12, as its own has."""
    return branches("fasterseg", classes, layers=16, widening=Widening(12, (4, 6, 8, 10, 12), ends=8, details=4))


def fasterseg_small(classes: int) -> Space:
    """The preset that a CPU can search: 6 layers, F = 4, three widths; our choice."""
    return branches("fasterseg-small", classes, layers=6, widening=Widening(4, (6, 9, 12), ends=9, details=6))


def branches(name: str, classes: int, *, layers: int, widening: Widening) -> Space:
    """Networks of two branches through so many layers of cells.

    Decisions: `op.LAYER.SCALE`; `width.LAYER.SCALE` of the state before that layer, with an option a width; `from.LAYER.SCALE` (0: from the finer
    scale, 1: from the same), where both are there. InputError for fewer than three layers, which do not reach 1/32.
    """
    if layers < 3:
        raise InputError(f"{layers} layers were given; 3 or more are needed to reach 1/32")
    draft = Draft(name)
    trellis = _Trellis(draft, layers, widening)
    for layer in range(layers):
        trellis.append(layer)
    sixteenth, thirty_second = (trellis.merged(scale) for scale in SCALES[1:])
    joined = draft.node(kind("concat"), sixteenth, thirty_second, label="head.concat")
    joined = draft.node(POINT, joined, label="head.fusion")
    joined = draft.node(kind("conv"), joined, label="head.unit")
    draft.resize(draft.node(kind("classifier"), joined, channels=classes, label="head.classifier"), 0, "head.output")
    return draft.space()


def states(layers: int) -> tuple[tuple[int, int], ...]:
    """The states (layer, scale) that a branch may go through, in the order of the network; a branch ends at 1/16 or 1/32 of the last layer."""
    return tuple((layer, scale) for layer in range(layers) for index, scale in enumerate(SCALES) if index <= layer and (index or layer < layers - 1))


def origins(layer: int, scale: int) -> tuple[int, ...]:
    """The scales that a state may come from, the finer first; none for the first, which is the stem's."""
    index = SCALES.index(scale)
    return tuple(SCALES[i] for i in (index - 1, index) if 0 <= i <= layer - 1)


class _Trellis:
    """The states in the making: what each of them reads, and the last finer features of the path that it is on."""

    def __init__(self, draft: Draft, layers: int, widening: Widening) -> None:
        self.draft, self.layers, self.widening = draft, layers, widening
        first, second = (widening.channels(scale, widening.ends) for scale in (2, 4))
        stem = draft.node(kind("conv"), 0, channels=2 * first, stride=2, label="stem.0")
        stem = draft.node(kind("double_conv"), stem, channels=2 * second, stride=2, label="stem.1")
        stem = draft.node(kind("double_conv"), stem, channels=widening.channels(8, widening.ends), stride=2, label="stem.2")
        self.inputs: dict[int, int] = {8: stem}
        self.moved: dict[tuple[int, int], int] = {}
        """Of the last layer: the cell's output by the scales that it comes from and goes to."""
        self.details: dict[tuple[int, int], int] = {}
        """By a state's scale and a finer one: the last feature at that one on the state's path, brought to the details' width."""

    def append(self, layer: int) -> None:
        """One more layer: its states, then their cells."""
        here = [scale for at, scale in states(self.layers) if at == layer]
        if layer:
            self._enter(layer, here)
        self.moved = {}
        for scale in here:
            for target in self._targets(layer, scale):
                self.moved[scale, target] = self._cell(layer, scale, target)

    def merged(self, scale: int) -> int:
        """A branch's end: its last feature, merged with the last finer ones of its path, up to 1/8."""
        feature, draft = self.moved[scale, scale], self.draft
        for finer in reversed(SCALES[: SCALES.index(scale)]):
            label, width = f"branch{scale}.{finer}", self.widening.channels(finer, self.widening.ends)
            feature = draft.node(POINT, feature, channels=width, label=f"{label}.arm")
            feature = draft.node(kind("resize"), feature, up=2, label=f"{label}.up")
            feature = draft.node(kind("concat"), feature, self.details[scale, finer], label=f"{label}.concat")
            feature = draft.node(kind("conv"), feature, channels=width, label=f"{label}.refine")
        return feature

    def _enter(self, layer: int, here: list[int]) -> None:
        laterals = {scale: self._lateral(layer - 1, scale) for scale in self.inputs if (scale, 2 * scale) in self.moved}
        before, self.details, self.inputs = self.details, {}, {}
        for scale in here:
            sources = {source: self.moved[source, scale] for source in origins(layer, scale)}
            self.inputs[scale] = self._chosen(layer, scale, sources, f"layer{layer}.{scale}.input")
            for finer in SCALES[: SCALES.index(scale)]:
                last = {source: laterals[source] if source == finer else before[source, finer] for source in sources}
                self.details[scale, finer] = self._chosen(layer, scale, last, f"layer{layer}.{scale}.last{finer}")

    def _chosen(self, layer: int, scale: int, features: dict[int, int], label: str) -> int:
        """That one of the features, by the scale that each comes from, from which the state comes."""
        if len(features) == 1:
            return next(iter(features.values()))
        links = [Link(feature, f"from.{layer}.{scale}", DOWN if source < scale else KEEP) for source, feature in features.items()]
        return self.draft.node("select", *links, label=label)

    def _lateral(self, layer: int, scale: int) -> int:
        """A state's feature at the details' width, for a path that goes on to the coarser scale from there."""
        width = self.widening.channels(scale, self.widening.details)
        return self.draft.node(POINT, self.inputs[scale], channels=width, label=f"layer{layer}.{scale}.lateral")

    def _targets(self, layer: int, scale: int) -> tuple[int, ...]:
        if layer == self.layers - 1:
            return (scale,)
        return tuple(target for target in (scale, 2 * scale) if (layer + 1, target) in states(self.layers))

    def _cell(self, layer: int, scale: int, target: int) -> int:
        """A cell: the chosen operation, at the width of the state that it goes on to."""
        ends = self.widening.channels(target, self.widening.ends)
        width = ends if layer == self.layers - 1 else Widths(f"width.{layer + 1}.{target}", self.widening.options(target))
        choice = Choice(f"op.{layer}.{scale}", tuple(CANDIDATES.values()))
        label = f"layer{layer}.{scale}.{'keep' if scale == target else 'down'}"
        return self.draft.node(choice, self.inputs[scale], channels=width, stride=target // scale, label=label)

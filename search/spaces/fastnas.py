"""Fast-NAS (Nekrasov et al., CVPR 2019): decoders on MobileNet-v2, whose connections and one contextual cell are searched.

From the released code (nn/micro_decoders.py, layer_factory.py): the eleven operations and their order, taps of 24, 32, 96 and 320 channels, blocks
that join two entries of a growing pool, each behind its own copy of the one cell, a cell whose unread sums are summed, unread blocks concatenated at
the finest of their sizes, 1x1, 3x3. Ours: the 3x3 that gives the logits has a normalisation in place of its bias (no operation of ours is a 3x3
classifier), depthwise convolutions have a normalisation and an activation of their own, and at most one operation of a cell is `none`, never the
first, so that no cell is dead. A cell runs at the size of the entry that it reads, which depends on decisions: so each level has a copy of each slot,
of which one is live. That a feature is unread is a chain of selects, one for each decision that might have read it.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.slots import Choice, Link
from segnas.search.space import Space
from segnas.search.spaces.backbone import mobilenet_v2

POINT = kind("conv", kernel=1)
Features = dict[int, int]
"""A feature that may lie at several levels: the slot at each."""


def operations(repeats: int) -> dict[str, Kind]:
    """The operations of a cell by Fast-NAS's names, in its order; separable ones are stacked `repeats` times (1 in its search, 2 in the end)."""
    return {
        "conv1x1": POINT,
        "conv3x3": kind("conv"),
        "sep_conv_3x3": kind("separable", repeats=repeats),
        "sep_conv_5x5": kind("separable", kernel=5, repeats=repeats),
        "global_average_pool": kind("grid_pool"),
        "conv3x3_dil3": kind("conv", dilation=3),
        "conv3x3_dil12": kind("conv", dilation=12),
        "sep_conv_3x3_dil3": kind("separable", dilation=3, repeats=repeats),
        "sep_conv_5x5_dil6": kind("separable", kernel=5, dilation=6, repeats=repeats),
        "skip_connect": kind("skip"),
        "none": kind("none"),
    }


def fast_nas(classes: int) -> Space:
    """The paper's space at its final size: MobileNet-v2, four taps, three blocks and three cell layers of 64 channels."""
    return network("fast-nas", classes, width=64, repeats=2)


def fast_nas_proxy(classes: int) -> Space:
    """The networks that the paper's search trains in place of those: 48 channels, separable operations once; the same decisions."""
    return network("fast-nas-proxy", classes, width=48, repeats=1)


def fast_nas_small(classes: int) -> Space:
    """The preset that a CPU can search: MobileNet-v2 of width 0.35, taps from 1/8 on, two blocks, two cell layers of 32 channels; our choice."""
    return network("fast-nas-small", classes, width=32, repeats=1, blocks=2, layers=2, finest=3, multiplier=0.35)


def network(
    name: str, classes: int, *, width: int, repeats: int, blocks: int = 3, layers: int = 3, finest: int = 2, multiplier: float = 1.0
) -> Space:
    """Decoders of `blocks` blocks on MobileNet-v2's taps from level `finest` on, with cells of `layers` layers behind the first operation.

    Decisions: `block.B.SIDE`, the pool's entry that a side of a block reads (the taps from fine to coarse, then earlier blocks); `cell.op.0`, the
    first operation; `cell.pos.L.SIDE` and `cell.op.L.SIDE`, which of the cell's 2 + 3 (L - 1) entries a side of layer L reads and what it does; the
    options of the latter begin with `none`.
    """
    draft = Draft(name)
    taps = taps_of(draft, multiplier, finest)
    pool = [{level: draft.node(POINT, slot, channels=width, label=f"adapt.{2**level}")} for level, slot in taps.items()]
    draft_cell = _CellDrafter(draft, layers, tuple(operations(repeats).values()))
    for block in range(blocks):
        sides = [_side(draft, draft_cell, pool, tuple(taps), f"block.{block}.{side}") for side in range(2)]
        pool.append(_joined(draft, sides, f"block.{block}.sum"))
    draft.keep([f"cell.op.{layer}.{side}" for layer in range(1, layers + 1) for side in range(2)], 2 * layers - 1, 2 * layers)
    _output(draft, pool, len(taps), width, classes)
    return draft.space()


def taps_of(draft: Draft, multiplier: float, finest: int) -> Features:
    """Append MobileNet-v2; the slot of the last stage of each level from `finest` on."""
    found: Features = {}
    for slot in mobilenet_v2(draft, width=multiplier)[1:]:
        found[draft.level(slot)] = slot
    return {level: slot for level, slot in found.items() if level >= finest}


def entries_before(layer: int) -> int:
    """Entries of a cell that a side of layer `layer` (from 1 on) may read: the input, the first output, and three of each earlier layer."""
    return 2 + 3 * (layer - 1)


def order(space: Space) -> tuple[str, ...]:
    """The decisions in the order in which Fast-NAS's controller takes them: the connections, then the cell layer by layer, positions first."""

    def place(name: str) -> tuple[int, ...]:
        part, *rest = name.split(".")
        if part == "block":
            return (0, *map(int, rest))
        return (1, int(rest[1]), rest[0] == "op", *map(int, rest[2:]))

    return tuple(sorted((name for name in space.decisions if name.startswith(("block.", "cell.op.", "cell.pos."))), key=place))


class _CellDrafter:
    """Appends copies of the contextual cell: each has slots of its own and all share the decisions."""

    def __init__(self, draft: Draft, layers: int, kinds: Sequence[Kind]) -> None:
        self.draft, self.layers = draft, layers
        self.first, self.later = tuple(kinds[:-1]), (kinds[-1], *kinds[:-1])

    def __call__(self, source: int, label: str) -> int:
        """Append one behind `source` and return the sum of what none of its layers reads."""
        node = self.draft.node
        first = node(Choice("cell.op.0", self.first), source, label=f"{label}.op.0")
        entries, sums = [source, first], [first]
        for layer in range(1, self.layers + 1):
            pair: list[int] = []
            for side in range(2):
                read = node("select", *(Link(entry, f"cell.pos.{layer}.{side}", option) for option, entry in enumerate(entries)))
                pair.append(node(Choice(f"cell.op.{layer}.{side}", self.later), read, label=f"{label}.op.{layer}.{side}"))
            sums.append(node("add", *pair, label=f"{label}.sum.{layer}"))
            entries += [*pair, sums[-1]]
        ends = [_unless(self.draft, sums[layer], self._readers(layer)) for layer in range(self.layers)]
        return node("add", *ends, sums[-1], label=f"{label}.output")

    def _readers(self, layer: int) -> Iterator[tuple[str, int, int]]:
        """The decisions that may read the sum of a layer (0 is the first operation): name, the option that does, and number of options."""
        for later in range(layer + 1, self.layers + 1):
            for side in range(2):
                yield f"cell.pos.{later}.{side}", 1 + 3 * layer, entries_before(later)


def _side(draft: Draft, cell: _CellDrafter, pool: Sequence[Features], levels: Sequence[int], decision: str) -> Features:
    """One side of a block: the entry that the decision takes, the cell at its level, a 1x1 unit."""
    found = Features()
    for level in levels:
        links = [Link(entry[level], decision, option) for option, entry in enumerate(pool) if level in entry]
        read = cell(draft.node("select", *links), f"{decision}.{2**level}")
        found[level] = draft.node(POINT, read, label=f"{decision}.{2**level}.point")
    return found


def _joined(draft: Draft, sides: Sequence[Features], label: str) -> Features:
    """The sum of both sides at the finer of their levels, for every pair of levels."""
    ways: dict[int, list[int]] = {level: [] for level in sides[0]}
    resized: dict[tuple[int, int], int] = {}
    for levels in product(*sides):
        level = min(levels)
        pair = [_enlarged(draft, resized, side[at], at - level) for side, at in zip(sides, levels, strict=True)]
        ways[level].append(draft.node(kind("add"), *pair, label=f"{label}.{2**level}"))
    return {level: draft.node("select", *found) for level, found in ways.items()}


def _output(draft: Draft, pool: Sequence[Features], taps: int, width: int, classes: int) -> None:
    """The blocks that no later one reads, concatenated at the finest of their levels, 1x1, 3x3 to the classes, enlarged to the image's size."""
    last, resized = len(pool) - 1, dict[tuple[int, int], int]()
    readers = {
        entry: [(f"block.{b}.{side}", entry, taps + b) for b in range(entry - taps + 1, last - taps + 1) for side in range(2)]
        for entry in range(taps, last)
    }
    unread = {entry: {level: _unless(draft, slot, readers[entry]) for level, slot in pool[entry].items()} for entry in readers}
    ends: dict[int, list[int]] = {level: [] for level in pool[last]}
    for held in product((False, True), repeat=len(readers)):
        features = [unread[entry] for entry, loose in zip(readers, held, strict=True) if loose]
        features.append({level: _gated(draft, slot, readers.values(), held) for level, slot in pool[last].items()})
        for level, slots in _concatenated(draft, resized, features).items():
            ends[level].append(draft.node(POINT, slots, channels=width, label=f"output.{2**level}.point"))
    logits: list[int] = []
    for level, units in ends.items():
        scores = draft.node(kind("conv", activation="none"), draft.node("select", *units), channels=classes, label=f"output.{2**level}.classifier")
        logits.append(draft.node(kind("resize"), scores, up=2**level, label="output"))
    draft.node("select", *logits, label="output")


def _concatenated(draft: Draft, resized: dict[tuple[int, int], int], features: Sequence[Features]) -> Features:
    """The concatenation of one or more features at the finest of their levels, for every combination of levels."""
    if len(features) == 1:
        return features[0]
    ways: dict[int, list[int]] = {level: [] for level in features[0]}
    for levels in product(*features):
        level = min(levels)
        parts = [_enlarged(draft, resized, feature[at], at - level) for feature, at in zip(features, levels, strict=True)]
        ways[level].append(draft.node(kind("concat"), *parts, label=f"output.{2**level}.concat"))
    return {level: draft.node("select", *found) for level, found in ways.items()}


def _gated(draft: Draft, slot: int, readers: Iterable[Sequence[tuple[str, int, int]]], held: Sequence[bool]) -> int:
    """The feature where each group of decisions reads its entry, or where it doesn't (`held`)."""
    for group, loose in zip(readers, held, strict=True):
        slot = _unless(draft, slot, group) if loose else _where(draft, slot, group)
    return slot


def _unless(draft: Draft, slot: int, readers: Iterable[tuple[str, int, int]]) -> int:
    """The feature where no decision takes its option: a chain of selects, which decode to nothing."""
    for decision, option, size in readers:
        slot = draft.node("select", *(Link(slot, decision, other) for other in range(size) if other != option))
    return slot


def _where(draft: Draft, slot: int, readers: Sequence[tuple[str, int, int]]) -> int:
    """The feature where at least one decision takes its option: by the first one that does, so that it comes once."""
    ways: list[int] = []
    for reader in readers:
        decision, option, _ = reader
        ways.append(draft.node("select", Link(slot, decision, option)))
        if reader != readers[-1]:
            slot = _unless(draft, slot, [reader])
    return draft.node("select", *ways)


def _enlarged(draft: Draft, made: dict[tuple[int, int], int], slot: int, levels: int) -> int:
    """The feature, bilinearly enlarged by so many levels; made once."""
    if not levels:
        return slot
    if (slot, levels) not in made:
        made[slot, levels] = draft.node(kind("resize"), slot, up=2**levels)
    return made[slot, levels]

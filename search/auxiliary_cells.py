"""Fast-NAS's auxiliary cells: behind each block, in training only, a copy of the searched cell and a 3x3 classifier; no part of any network."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from segnas.arch import Architecture
from segnas.errors import InputError
from segnas.kinds import Kind
from segnas.network import Network
from segnas.ops import build
from segnas.search.slots import Choice
from segnas.search.space import Genotype, Space


class ContextualCell(nn.Module):
    """The cell of a genotype as one module, `width` channels in and out (nn/micro_decoders.py of the released code).

    What reads a feature that `none` made, and what no layer reads and is none, is left out.
    """

    def __init__(self, kinds: Mapping[str, Sequence[Kind]], genotype: Genotype, width: int) -> None:
        super().__init__()
        layers = (len(kinds) - 1) // 2
        chosen = {name: options[genotype[name]] for name, options in kinds.items()}
        self.steps = [("cell.op.0", 0)]
        loose = {1}
        for layer in range(1, layers + 1):
            positions = [genotype[f"cell.pos.{layer}.{side}"] for side in range(2)]
            self.steps += [(f"cell.op.{layer}.{side}", position) for side, position in enumerate(positions)]
            loose = {entry for entry in loose if entry not in positions} | {3 * layer + 1}
        self.ends = sorted(loose)
        self.operations = nn.ModuleDict(
            {name.replace(".", "_"): build(kind, (width,), width, 1) for name, kind in chosen.items() if kind.op != "none"}
        )

    def forward(self, feature: Tensor) -> Tensor:
        """(N, width, H, W) -> (N, width, H, W)."""
        size = (int(feature.shape[-2]), int(feature.shape[-1]))
        entries: list[Tensor | None] = [feature]
        for name, position in self.steps:
            key, read = name.replace(".", "_"), entries[position]
            entries.append(self.operations[key]([read], size) if read is not None and key in self.operations else None)
            if len(entries) > 2 and len(entries) % 3 == 1:
                entries.append(_total(entries[-2:]))
        total = _total([entries[end] for end in self.ends])
        assert total is not None  # the space's rules leave no cell dead
        return total


class AuxiliaryCells(nn.Module):
    """An auxiliary cell with its classifier for each block of a network of a space. InputError where the network has no blocks."""

    def __init__(self, space: Space, genotype: Genotype, network: Network) -> None:
        super().__init__()
        self.taps = block_nodes(network.architecture)
        kinds = {
            slot.kind.decision: slot.kind.options
            for slot in space.slots
            if isinstance(slot.kind, Choice) and slot.kind.decision.startswith("cell.op.")
        }
        if not self.taps or not kinds:
            raise InputError(f"the networks of {space.name!r} have no blocks for auxiliary cells; spaces with some are fast-nas and fast-nas-small")
        widths = [network.architecture.nodes[tap].channels for tap in self.taps]
        classes = network.architecture.classes
        self.heads = nn.ModuleList(nn.Sequential(ContextualCell(kinds, genotype, width), nn.Conv2d(width, classes, 3, padding=1)) for width in widths)

    def forward(self, features: Mapping[int, Tensor]) -> list[Tensor]:
        """The blocks' sums, by node, to logits of their size."""
        return [head(features[tap]) for head, tap in zip(self.heads, self.taps, strict=True)]


def block_nodes(architecture: Architecture) -> tuple[int, ...]:
    """The nodes in which a block ends."""
    return tuple(index for index, node in enumerate(architecture.nodes) if node.label.split(".")[::2][:2] == ["block", "sum"])


def _total(features: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for feature in features:
        if feature is not None:
            total = feature if total is None else total + feature
    return total

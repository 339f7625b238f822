"""Fast-NAS's own spelling of a decoder, and what leads from it to a genotype of our space and back, or to the controller's row of numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segnas.errors import InputError
from segnas.search.spaces.fastnas import entries_before, operations

OPERATIONS = tuple(operations(1))
"""Names of the operations in Fast-NAS's order."""
NONE = OPERATIONS.index("none")
TAPS = 4


@dataclass(frozen=True, slots=True)
class Design:
    """A cell and the connections of the blocks, by Fast-NAS's numbers.

    `first` is the operation on the cell's input. A layer is (position, position, operation, operation). Positions count the cell's entries: the
    input, the first output, then of each layer its two outputs and their sum. A connection is two entries of the pool: the taps, then earlier blocks.
    InputError, with the place, where a number is out of its range, or where the cell might be dead: `none` first, or more than once.
    """

    first: int
    layers: tuple[tuple[int, int, int, int], ...]
    connections: tuple[tuple[int, int], ...]
    taps: int = TAPS

    def __post_init__(self) -> None:
        _require("the first operation", self.first, len(OPERATIONS))
        for layer, (*positions, first, second) in enumerate(self.layers, 1):
            for position in positions:
                _require(f"a position of layer {layer}", position, entries_before(layer))
            for operation in (first, second):
                _require(f"an operation of layer {layer}", operation, len(OPERATIONS))
        for block, pair in enumerate(self.connections):
            for entry in pair:
                _require(f"a connection of block {block}", entry, self.taps + block)
        absent = sum(operation == NONE for layer in self.layers for operation in layer[2:])
        if self.first == NONE or absent > 1:
            raise InputError(f"this cell has {absent + (self.first == NONE)} operations `none`; one is allowed, and not as the first operation")

    @property
    def genotype(self) -> dict[str, int]:
        """The decisions of our space."""
        found = {"cell.op.0": self.first}
        for number, layer in enumerate(self.layers, 1):
            for side in range(2):
                found[f"cell.pos.{number}.{side}"] = layer[side]
                found[f"cell.op.{number}.{side}"] = (layer[2 + side] + 1) % len(OPERATIONS)
        found |= {f"block.{block}.{side}": pair[side] for block, pair in enumerate(self.connections) for side in range(2)}
        return found

    @property
    def actions(self) -> tuple[int, ...]:
        """The row of numbers that the released code keeps: 0, the first operation, each layer, each connection."""
        return (0, self.first, *(n for layer in self.layers for n in layer), *(n for pair in self.connections for n in pair))


def design_of(genotype: Mapping[str, int], *, taps: int = TAPS) -> Design:
    """The reverse of `Design.genotype`."""
    layers = sum(name.startswith("cell.pos.") for name in genotype) // 2
    blocks = sum(name.startswith("block.") for name in genotype) // 2
    rows: list[tuple[int, int, int, int]] = []
    for layer in range(1, layers + 1):
        first, second = (genotype[f"cell.pos.{layer}.{side}"] for side in range(2))
        does = [(genotype[f"cell.op.{layer}.{side}"] - 1) % len(OPERATIONS) for side in range(2)]
        rows.append((first, second, does[0], does[1]))
    connections = tuple((genotype[f"block.{block}.0"], genotype[f"block.{block}.1"]) for block in range(blocks))
    return Design(genotype["cell.op.0"], tuple(rows), connections, taps)


def design_of_actions(actions: Sequence[int], *, layers: int = 3, taps: int = TAPS) -> Design:
    """The reverse of `Design.actions`; InputError where the row has another length than its layers and pairs take, or a number is out of range."""
    cell, pairs = actions[2 : 2 + 4 * layers], actions[2 + 4 * layers :]
    if len(cell) != 4 * layers or len(pairs) % 2 or not pairs or actions[0]:
        raise InputError(
            f"{len(actions)} actions were given; 0, an operation, {4 * layers} numbers of {layers} layers and pairs of connections are needed"
        )
    rows = tuple((cell[i], cell[i + 1], cell[i + 2], cell[i + 3]) for i in range(0, len(cell), 4))
    return Design(actions[1], rows, tuple((pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)), taps)


def _require(what: str, value: int, size: int) -> None:
    if not 0 <= value < size:
        raise InputError(f"{what} is {value}; 0 to {size - 1} are allowed")

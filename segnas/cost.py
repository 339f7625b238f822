"""Multiply-accumulates, parameters and activation bytes: folds over the one walk, exact.

One multiply-accumulate counts as one (a "FLOP" in many papers, two operations in others). Counted: convolutions, bias left out. Not counted:
normalisation (folded at export), activation, pooling, resizing, additions, a gate's product, a shift by one pixel. Parameters are the trained
network's, scale and shift of its normalisations included. Activation bytes are the fp32 outputs of every convolution unit, pooling, resize, addition,
product and concatenation, inside nodes too.
"""

from dataclasses import dataclass
from math import prod

from segnas.arch import Architecture, Operation, Shape
from segnas.kinds import branch_width, stem_widths
from segnas.report import Cost


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution with its output's shape; `normalised` says whether a batch normalisation follows, `bias` whether it has a bias of its own."""

    inputs: int
    output: Shape
    kernel: int = 1
    groups: int = 1
    normalised: bool = True
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights of the kernel."""
        return self.inputs // self.groups * self.output.channels * self.kernel**2

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.weights * self.output.height * self.output.width

    @property
    def parameters(self) -> int:
        """Trained parameters: weights, bias, normalisation's scale and shift."""
        return self.weights + self.output.channels * (int(self.bias) + 2 * int(self.normalised))


def network_cost(architecture: Architecture, height: int, width: int) -> Cost:
    """The three totals of a network at that input size, batch 1."""
    operations = architecture.operations(height, width)
    return Cost(sum(map(macs, operations)), sum(map(parameters, operations)), sum(map(activation_bytes, operations)))


def macs(operation: Operation) -> int:
    """Multiply-accumulates of one operation."""
    return sum(c.macs for c in convolutions(operation))


def parameters(operation: Operation) -> int:
    """Trained parameters of one operation."""
    return sum(c.parameters for c in convolutions(operation))


def activation_bytes(operation: Operation) -> int:
    """Bytes of the features that one operation writes, in fp32."""
    return 4 * sum(prod(shape) for shape in (*(c.output for c in convolutions(operation)), *_other_maps(operation)))


def convolutions(operation: Operation) -> tuple[Convolution, ...]:
    """Every convolution that the operation's module holds, in order."""
    kind, output = operation.kind, operation.output
    if operation.op in {"image", "max_pool", "avg_pool", "resize", "add", "concat", "argmax"} or operation.is_free:
        return ()
    source = operation.inputs[0]
    match operation.op:
        case "conv":
            return (Convolution(source.channels, output, kind.integer("kernel"), kind.integer("groups")),)
        case "separable":
            pair = _separable(source.channels, output, kind.integer("kernel"))
            return pair if kind.integer("repeats") == 1 else (*pair, *_separable(output.channels, output, kind.integer("kernel")))
        case "skip":
            return (Convolution(source.channels, output),)
        case "double_conv":
            return tuple(Convolution(width, output, kind.integer("kernel")) for width in (source.channels, output.channels))
        case "shortcut" if operation.stride == 1:
            return (Convolution(source.channels, output),)
        case "factorised_reduce" | "shortcut":
            odd = output.channels // 2
            padded = _with(output, odd, output.height + 1, output.width + 1)  # `ops.OddUnit`
            return (Convolution(source.channels, _with(output, output.channels - odd)), Convolution(source.channels, padded))
        case "grid_pool":
            return (Convolution(source.channels, _with(output, output.channels, *_grid(source, *kind.integers("grid")))),)
        case "classifier":
            return (Convolution(source.channels, output, normalised=False, bias=True),)
        case "stem":
            return _stem(operation)
        case "zoomed_conv":
            small = _with(output, output.channels, *_zoomed(operation))
            widths = (source.channels, output.channels)[: kind.integer("repeats")]
            return tuple(Convolution(width, small, kind.integer("kernel")) for width in widths)
        case "inverted_residual":
            return _inverted_residual(operation)
        case "pyramid_pool":
            width = branch_width(output.channels, len(kind.integers("bins")))
            branches = tuple(Convolution(source.channels, _with(output, width, *_grid(source, b, b))) for b in kind.integers("bins"))
            return (*branches, Convolution(source.channels + width * len(branches), output))
        case "aspp":
            width = branch_width(output.channels, len(kind.integers("rates")) + 2)
            branch = _with(output, width)
            dilated = [c for _ in kind.integers("rates") for c in _separable(source.channels, branch, 3)]
            pool = Convolution(source.channels, Shape(width, 1, 1))
            return (Convolution(source.channels, branch), *dilated, pool, Convolution(width * (len(kind.integers("rates")) + 2), output))
        case _:
            raise NotImplementedError(operation.op)


def _other_maps(operation: Operation) -> tuple[Shape, ...]:
    """Features that the operation writes and that no convolution makes."""
    kind, output = operation.kind, operation.output
    match operation.op:
        case "max_pool" | "avg_pool" | "resize" | "add" | "concat" | "factorised_reduce":
            return (output,)
        case "shortcut" if operation.stride == 2:
            return (output,)
        case "grid_pool":
            source = operation.inputs[0]
            grid = _grid(source, *kind.integers("grid"))
            return (_with(source, source.channels, *grid), *(() if grid == output[1:] else (output,)))
        case "zoomed_conv":
            source, (height, width) = operation.inputs[0], _zoomed(operation)
            small = () if (height, width) == source[1:] else (_with(source, source.channels, height, width),)
            back = () if (height, width) == output[1:] else (output,)
            return (*small, *back)
        case "inverted_residual":
            hidden = operation.inputs[0].channels * kind.integer("expansion")
            gate = (Shape(hidden, 1, 1), _with(output, hidden)) if kind.integer("squeeze") else ()
            residual = operation.stride == 1 and operation.inputs[0].channels == output.channels
            return (*gate, output) if residual else gate
        case "pyramid_pool":
            source, bins = operation.inputs[0], kind.integers("bins")
            width = branch_width(output.channels, len(bins))
            grids = [_grid(source, b, b) for b in bins]
            resized = [_with(output, width) for grid in grids if grid != output[1:]]
            return (*(_with(source, source.channels, *grid) for grid in grids), *resized, _with(output, source.channels + width * len(bins)))
        case "aspp":
            source, branches = operation.inputs[0], len(kind.integers("rates")) + 2
            width = branch_width(output.channels, branches)
            return (Shape(source.channels, 1, 1), _with(output, width), _with(output, width * branches))
        case _:
            return ()


def _separable(inputs: int, output: Shape, kernel: int) -> tuple[Convolution, Convolution]:
    return Convolution(inputs, _with(output, inputs), kernel, inputs), Convolution(inputs, output)


def _stem(operation: Operation) -> tuple[Convolution, ...]:
    kind, source, output = operation.kind, operation.inputs[0], operation.output
    widths = stem_widths(kind.integer("width"), output.channels, operation.stride.bit_length() - 1)
    before, result = source, list[Convolution]()
    for index, width in enumerate(widths):
        after = Shape(width, -(-before.height // 2), -(-before.width // 2))
        if index and kind.text("unit") == "separable":
            result += _separable(before.channels, after, 3)
        else:
            result.append(Convolution(before.channels, after, 3))
        before = after
    return tuple(result)


def _inverted_residual(operation: Operation) -> tuple[Convolution, ...]:
    kind, source, output = operation.kind, operation.inputs[0], operation.output
    hidden = source.channels * kind.integer("expansion")
    result = [Convolution(source.channels, _with(source, hidden))] if hidden != source.channels else []
    result.append(Convolution(hidden, _with(output, hidden), kind.integer("kernel"), hidden))
    if kind.integer("squeeze"):
        narrow = max(8, hidden // kind.integer("squeeze"))
        result.append(Convolution(hidden, Shape(narrow, 1, 1), normalised=False, bias=True))
        result.append(Convolution(narrow, Shape(hidden, 1, 1), normalised=False, bias=True))
    return (*result, Convolution(hidden, output))


def _zoomed(operation: Operation) -> tuple[int, int]:
    source, zoom = operation.inputs[0], operation.kind.integer("zoom")
    return -(-source.height // zoom), -(-source.width // zoom)


def _grid(source: Shape, rows: int, columns: int) -> tuple[int, int]:
    return min(rows, source.height), min(columns, source.width)


def _with(shape: Shape, channels: int, height: int | None = None, width: int | None = None) -> Shape:
    return Shape(channels, shape.height if height is None else height, shape.width if width is None else width)

"""OPS: name -> builder of the module; the only definition of each operation.

What is searched, trained, exported and timed is built here. Every module takes its input features, each (N, C, H, W), and the size (H, W) of its
output; only what resizes reads the size, so one module serves every input size.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segnas.depthwise import DepthwiseConv2d
from segnas.kinds import Kind, branch_width, stem_widths

Size = tuple[int, int]
Builder = Callable[[Kind, tuple[int, ...], int, int], nn.Module]


class Unit(nn.Sequential):
    """Convolution, batch normalisation, activation: the three that every runtime fuses into one kernel."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
        activation: str = "relu",
    ) -> None:
        convolution: nn.Conv2d
        if groups == inputs == outputs and kernel > 1:
            convolution = DepthwiseConv2d(inputs, kernel, stride=stride, dilation=(dilation[0], dilation[-1]))
        else:
            padding = (dilation[0] * (kernel - 1) // 2, dilation[-1] * (kernel - 1) // 2)
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, (dilation[0], dilation[-1]), groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), *_activation(activation))


class One(nn.Module):
    """A chain of layers on one feature; the size follows from the strides."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C', *size)."""
        return self.layers(features[0])


class Add(nn.Module):
    """Sum of two features."""

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """Two (N, C, H, W) -> (N, C, H, W)."""
        return features[0] + features[1]


class Concat(nn.Module):
    """Concatenation along the channels."""

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, Ci, H, W) each -> (N, sum Ci, H, W)."""
        return torch.cat(list(features), dim=1)


class Resize(nn.Module):
    """Bilinear resize to exactly `size`."""

    def __init__(self, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C, *size)."""
        return resized(features[0], size, self.align_corners)


class ZoomedConv(nn.Module):
    """Convolution units at a fraction of the resolution (FasterSeg, section 3.1)."""

    def __init__(self, kind: Kind, inputs: int, outputs: int) -> None:
        super().__init__()
        self.zoom = kind.integer("zoom")
        widths = [inputs] + [outputs] * kind.integer("repeats")
        activation = kind.text("activation")
        self.layers = nn.Sequential(*(Unit(a, b, kind.integer("kernel"), activation=activation) for a, b in pairwise(widths)))

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C', *size), computed at 1/zoom of the input."""
        height, width = features[0].shape[-2:]
        small = (-(-height // self.zoom), -(-width // self.zoom))
        return resized(self.layers(resized(features[0], small)), size)


class SqueezeExcitation(nn.Module):
    """Channel gate: global mean, two 1x1 convolutions, hard sigmoid (MobileNet-v3, section 4)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(8, channels // reduction)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return feature * self.gate(feature)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-excitation, projection (MobileNet-v2, figure 3)."""

    def __init__(self, kind: Kind, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden, activation = inputs * kind.integer("expansion"), kind.text("activation")
        layers: list[nn.Module] = [Unit(inputs, hidden, activation=activation)] if hidden != inputs else []
        layers.append(
            Unit(hidden, hidden, kind.integer("kernel"), stride=stride, dilation=kind.integers("dilation"), groups=hidden, activation=activation)
        )
        if kind.integer("squeeze"):
            layers.append(SqueezeExcitation(hidden, kind.integer("squeeze")))
        self.layers = nn.Sequential(*layers, Unit(hidden, outputs, activation="none"))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C', *size)."""
        result = self.layers(features[0])
        return features[0] + result if self.residual else result


class PyramidPool(nn.Module):
    """Pooling pyramid (PSPNet, figure 3); each branch has outputs / len(bins) channels."""

    def __init__(self, kind: Kind, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bins, activation = kind.integers("bins"), kind.text("activation")
        width = branch_width(outputs, len(self.bins))
        self.branches = nn.ModuleList(Unit(inputs, width, activation=activation) for _ in self.bins)
        self.project = Unit(inputs + width * len(self.bins), outputs, activation=activation)

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        pooled = [resized(branch(pooled_to(features[0], bins)), size) for branch, bins in zip(self.branches, self.bins, strict=True)]
        return self.project(torch.cat([features[0], *pooled], dim=1))


class OddUnit(Unit):
    """A 1x1 unit of stride 2 that sees the pixels in odd rows and columns; behind a last even one lie zeros.

    Of the two ways to shift what a strided convolution sees, a copy of the feature, or a padded convolution whose first row and column are left
    away, the second copies an eighth as much: in ONNX Runtime on a CPU a factorised reduction so takes 0.34 to 0.89 of the time, 0.61 in the middle
    (18 shapes of `fasterseg-small`). And no two of them have a copy in common, which the runtime would make once and no table could price.
    """

    def __init__(self, inputs: int, outputs: int, activation: str) -> None:
        super().__init__(inputs, outputs, stride=2, activation=activation)
        self[0] = nn.Conv2d(inputs, outputs, 1, stride=2, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / 2), ceil(W / 2)).

        What is left away is so before the normalisation whose statistics it would move, else at the end, where the unit stays one kernel.
        """
        convolution, *rest = self
        found = convolution(input)
        if self.training:
            found = found[:, :, 1:, 1:]
        for layer in rest:
            found = layer(found)
        return found if self.training else found[:, :, 1:, 1:]


class FactorisedReduce(nn.Module):
    """Half the size by two strided 1x1 units that see the even and the odd pixels (the released code of DARTS, which normalises the whole).

    Where a side is odd, the odd pixels lack a last one, which is zero (ours: DARTS's fails there).
    """

    def __init__(self, kind: Kind, inputs: int, outputs: int) -> None:
        super().__init__()
        activation = kind.text("activation")
        self.even = Unit(inputs, outputs - outputs // 2, stride=2, activation=activation)
        self.odd = OddUnit(inputs, outputs // 2, activation)

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C', ceil(H / 2), ceil(W / 2))."""
        return torch.cat([self.even(features[0]), self.odd(features[0])], dim=1)


class GridPool(nn.Module):
    """Means over a grid of windows, a 1x1 unit, and back to the feature's size."""

    def __init__(self, kind: Kind, inputs: int, outputs: int) -> None:
        super().__init__()
        self.rows, self.columns = kind.integers("grid")
        self.unit = Unit(inputs, outputs, activation=kind.text("activation"))

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        return resized(self.unit(pooled_to(features[0], self.rows, self.columns)), size)


class AsppLite(nn.Module):
    """ASPP with separable dilated branches of a quarter of the width each (after DeepLabv3, section 3.3; the sizes are our choice)."""

    def __init__(self, kind: Kind, inputs: int, outputs: int) -> None:
        super().__init__()
        rates, activation = kind.integers("rates"), kind.text("activation")
        width = branch_width(outputs, len(rates) + 2)
        self.point = Unit(inputs, width, activation=activation)
        self.dilated = nn.ModuleList(nn.Sequential(*_separable(inputs, width, 3, 1, (rate, rate), activation)) for rate in rates)
        self.pool = Unit(inputs, width, activation=activation)
        self.project = Unit(width * (len(rates) + 2), outputs, activation=activation)

    def forward(self, features: Sequence[Tensor], size: Size) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        x = features[0]
        everywhere = F.interpolate(self.pool(F.adaptive_avg_pool2d(x, 1)), size=size, mode="nearest")
        return self.project(torch.cat([self.point(x), *(branch(x) for branch in self.dilated), everywhere], dim=1))


def resized(feature: Tensor, size: Size, align_corners: bool = False) -> Tensor:
    """Bilinear resize of (N, C, H, W) to (N, C, *size); the feature itself where the size is already right."""
    height, width = feature.shape[-2:]
    if (height, width) == size:
        return feature
    return F.interpolate(feature, size=size, mode="bilinear", align_corners=align_corners)


def pooled_to(feature: Tensor, bins: int, columns: int | None = None) -> Tensor:
    """Mean over a grid of bins x bins windows, or bins x columns, (N, C, H, W) -> (N, C, bins, columns).

    Windows of one size that may overlap, n - (b - 1) * (n // b) long and n // b apart: one AveragePool in every runtime, where adaptive pooling with
    bins that do not divide the feature exports as hundreds of nodes. Equal to adaptive pooling where they do divide.
    """
    grid = (bins, bins if columns is None else columns)
    if grid == (1, 1):
        return F.adaptive_avg_pool2d(feature, 1)
    sides = [int(n) for n in feature.shape[-2:]]
    counts = [min(b, n) for b, n in zip(grid, sides, strict=True)]
    strides = [n // b for n, b in zip(sides, counts, strict=True)]
    windows = [n - (b - 1) * s for n, b, s in zip(sides, counts, strides, strict=True)]
    return F.avg_pool2d(feature, windows, strides)


def _activation(name: str) -> tuple[nn.Module, ...]:
    modules: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.ReLU(inplace=True),
        "relu6": lambda: nn.ReLU6(inplace=True),
        "hardswish": lambda: nn.Hardswish(inplace=True),
    }
    return () if name == "none" else (modules[name](),)


def _separable(inputs: int, outputs: int, kernel: int, stride: int, dilation: tuple[int, ...], activation: str) -> tuple[Unit, Unit]:
    depthwise = Unit(inputs, inputs, kernel, stride=stride, dilation=dilation, groups=inputs, activation=activation)
    return depthwise, Unit(inputs, outputs, activation=activation)


def _stem(kind: Kind, inputs: tuple[int, ...], outputs: int, stride: int) -> nn.Module:
    halvings, width, activation = stride.bit_length() - 1, kind.integer("width"), kind.text("activation")
    widths = stem_widths(width, outputs, halvings)
    layers: list[nn.Module] = [Unit(inputs[0], widths[0], 3, stride=2, activation=activation)]
    for before, after in pairwise(widths):
        if kind.text("unit") == "separable":
            layers.extend(_separable(before, after, 3, 2, (1, 1), activation))
        else:
            layers.append(Unit(before, after, 3, stride=2, activation=activation))
    return One(*layers)


def _conv(kind: Kind, inputs: tuple[int, ...], outputs: int, stride: int) -> nn.Module:
    groups, activation = kind.integer("groups"), kind.text("activation")
    unit = Unit(inputs[0], outputs, kind.integer("kernel"), stride=stride, dilation=kind.integers("dilation"), groups=groups, activation=activation)
    return One(unit)


def _separable_op(kind: Kind, inputs: tuple[int, ...], outputs: int, stride: int) -> nn.Module:
    kernel, dilation, activation = kind.integer("kernel"), kind.integers("dilation"), kind.text("activation")
    layers = list(_separable(inputs[0], outputs, kernel, stride, dilation, activation))
    if kind.integer("repeats") == 2:
        layers += _separable(outputs, outputs, kernel, 1, dilation, activation)
    return One(*layers)


def _skip(kind: Kind, inputs: tuple[int, ...], outputs: int, stride: int) -> nn.Module:
    return One() if stride == 1 else One(Unit(inputs[0], outputs, stride=2, activation="none"))


def _double_conv(kind: Kind, inputs: tuple[int, ...], outputs: int, stride: int) -> nn.Module:
    kernel, activation = kind.integer("kernel"), kind.text("activation")
    first = Unit(inputs[0], outputs, kernel, stride=stride, activation=activation)
    return One(first, Unit(outputs, outputs, kernel, activation=activation))


def _shortcut(kind: Kind, inputs: tuple[int, ...], outputs: int, stride: int) -> nn.Module:
    if stride == 2:
        return FactorisedReduce(kind, inputs[0], outputs)
    return One() if inputs[0] == outputs else One(Unit(inputs[0], outputs, activation=kind.text("activation")))


OPS: dict[str, Builder] = {
    "stem": _stem,
    "conv": _conv,
    "separable": _separable_op,
    "max_pool": lambda kind, i, o, stride: One(nn.MaxPool2d(kind.integer("kernel"), stride, kind.integer("kernel") // 2)),
    "avg_pool": lambda kind, i, o, stride: One(nn.AvgPool2d(kind.integer("kernel"), stride, kind.integer("kernel") // 2, count_include_pad=False)),
    "skip": _skip,
    "factorised_reduce": lambda kind, i, o, stride: FactorisedReduce(kind, i[0], o),
    "double_conv": _double_conv,
    "shortcut": _shortcut,
    "zoomed_conv": lambda kind, i, o, stride: ZoomedConv(kind, i[0], o),
    "inverted_residual": lambda kind, i, o, stride: InvertedResidual(kind, i[0], o, stride),
    "pyramid_pool": lambda kind, i, o, stride: PyramidPool(kind, i[0], o),
    "aspp": lambda kind, i, o, stride: AsppLite(kind, i[0], o),
    "grid_pool": lambda kind, i, o, stride: GridPool(kind, i[0], o),
    "resize": lambda kind, i, o, stride: Resize(bool(kind["align_corners"])),
    "add": lambda kind, i, o, stride: Add(),
    "concat": lambda kind, i, o, stride: Concat(),
    "classifier": lambda kind, i, o, stride: One(nn.Conv2d(i[0], o, 1)),
}


def build(kind: Kind, inputs: tuple[int, ...], outputs: int, stride: int) -> nn.Module:
    """The module of an operation with these input channels, output channels and stride."""
    return OPS[kind.op](kind, inputs, outputs, stride)

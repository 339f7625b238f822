"""Kind: what an operation is, before it has shapes; and the one list of operations that exist.

A convolutional operation is convolution, batch normalisation and activation, complete in itself, in that order, so that runtimes fuse the three.
`add` takes two features and has no activation; pooling has no normalisation (our deviation from DARTS, where a pool is followed by one).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from segnas.errors import InputError

Value = int | str | bool | tuple[int, ...]

ACTIVATIONS = ("relu", "relu6", "hardswish", "none")
_STRIDES = (1, 2)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of an operation: its default and what is allowed (`allowed` lists values, or bounds for integers)."""

    default: Value
    allowed: tuple[Value, ...] | None = None
    low: int = 1
    high: int = 65536


@dataclass(frozen=True, slots=True)
class Schema:
    """What one operation accepts.

    `channels` says how the output's width follows: `free`, `same` as the input, `sum` of the inputs.
    `most_inputs` None means any number from `least_inputs` on.
    """

    summary: str
    attributes: Mapping[str, Attribute]
    channels: Literal["free", "same", "sum"] = "free"
    least_inputs: int = 1
    most_inputs: int | None = 1
    strides: tuple[int, ...] = (1,)
    resizes: bool = False


_KERNEL = Attribute(3, (1, 3, 5, 7))
_DILATION = Attribute((1, 1), None)
_ACTIVATION = Attribute("relu", ACTIVATIONS)
_REPEATS = Attribute(1, (1, 2))

SCHEMAS: dict[str, Schema] = {
    "image": Schema("the network's input", {}, least_inputs=0, most_inputs=0),
    "none": Schema("no operation: the edge is absent (search spaces only)", {}, strides=(1, 2, 4, 8)),
    "stem": Schema(
        "3x3 stride-2 convolution to `width`, then stride-2 units to the output; `separable` is Fast-SCNN's learning to downsample",
        {"unit": Attribute("conv", ("conv", "separable")), "width": Attribute(32, None, 1, 4096), "activation": _ACTIVATION},
        strides=(2, 4, 8),
    ),
    "conv": Schema(
        "convolution, batch normalisation, activation",
        {"kernel": _KERNEL, "dilation": _DILATION, "groups": Attribute(1), "activation": _ACTIVATION},
        strides=_STRIDES,
    ),
    "separable": Schema(
        "depthwise then pointwise convolution, each with normalisation and activation; `repeats` 2 stacks two, as in DARTS's sep_conv",
        {"kernel": _KERNEL, "dilation": _DILATION, "repeats": _REPEATS, "activation": _ACTIVATION},
        strides=_STRIDES,
    ),
    "max_pool": Schema("maximum over the window", {"kernel": Attribute(3, (3, 5))}, "same", strides=_STRIDES),
    "avg_pool": Schema("mean over the window, padding not counted", {"kernel": Attribute(3, (3, 5))}, "same", strides=_STRIDES),
    "skip": Schema("identity; with stride 2 a strided 1x1 convolution and normalisation", {}, "same", strides=_STRIDES),
    "factorised_reduce": Schema(
        "two strided 1x1 convolutions of half the width each, of the feature and of the feature shifted by one pixel, each with normalisation and "
        "activation; concatenated (the released code of DARTS)",
        {"activation": _ACTIVATION},
        strides=(2,),
    ),
    "zoomed_conv": Schema(
        "bilinear shrink by `zoom`, 3x3 convolution units, bilinear back (FasterSeg, section 3.1)",
        {"zoom": Attribute(2, (2, 4)), "kernel": _KERNEL, "repeats": _REPEATS, "activation": _ACTIVATION},
        strides=_STRIDES,
    ),
    "double_conv": Schema(
        "two convolution units, the first with the stride (FasterSeg's BasicResidual2x, which adds no residual in spite of its name)",
        {"kernel": _KERNEL, "activation": _ACTIVATION},
        strides=_STRIDES,
    ),
    "shortcut": Schema(
        "identity where size and width stay; a 1x1 convolution unit where the width changes; with stride 2 a factorised_reduce (FasterSeg's skip)",
        {"activation": _ACTIVATION},
        strides=_STRIDES,
    ),
    "inverted_residual": Schema(
        "1x1 expansion, depthwise convolution, squeeze-excitation where `squeeze` > 0 (reduction ratio), 1x1 projection; "
        "residual where shapes agree (MobileNet-v2, figure 3; squeeze-excitation as in MobileNet-v3)",
        {
            "kernel": _KERNEL,
            "dilation": _DILATION,
            "expansion": Attribute(6, None, 1, 16),
            "squeeze": Attribute(0, None, 0, 64),
            "activation": Attribute("relu6", ACTIVATIONS),
        },
        strides=_STRIDES,
    ),
    "pyramid_pool": Schema(
        "average pooling to each of `bins` squared, 1x1 convolution unit, bilinear back, concatenation with the input, 1x1 unit (PSPNet, figure 3)",
        {"bins": Attribute((1, 2, 3, 6), None, 1, 64), "activation": _ACTIVATION},
    ),
    "aspp": Schema(
        "ASPP-lite: 1x1 unit, separable units at `rates`, global pooling; concatenation; 1x1 unit (after DeepLabv3, section 3.3; separable is ours)",
        {"rates": Attribute((6, 12, 18), None, 1, 64), "activation": _ACTIVATION},
    ),
    "grid_pool": Schema(
        "average pooling to `grid` windows (height, width), 1x1 convolution unit, bilinear back; 1x1 is the image pooling of DeepLabv3, section 3.3",
        {"grid": Attribute((1, 1), None, 1, 64), "activation": _ACTIVATION},
    ),
    "resize": Schema(
        "bilinear resize to the exact size of the level that it joins",
        {"align_corners": Attribute(False, (False, True))},
        "same",
        strides=(1, 2, 4, 8, 16),
        resizes=True,
    ),
    "add": Schema("sum of two features", {}, "same", 2, 2),
    "concat": Schema("concatenation along the channels", {}, "sum", 2, None),
    "argmax": Schema("index of the largest channel, the lowest on ties, as uint8; part of a `labels` engine, never of a network", {}),
    "classifier": Schema("1x1 convolution with bias to one channel a class; no activation", {}),
}


@dataclass(frozen=True, slots=True, order=True)
class Kind:
    """An operation without its shapes: name and attributes, all of them, sorted by name; made by `kind`."""

    op: str
    attributes: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        schema = SCHEMAS.get(self.op)
        if schema is None:
            raise InputError(f"unknown operation {self.op!r}; known operations: {', '.join(sorted(SCHEMAS))}")
        names = [name for name, _ in self.attributes]
        if names != sorted(schema.attributes):
            raise InputError(f"operation {self.op!r} was given attributes {names}; it takes exactly {sorted(schema.attributes)}")
        for name, value in self.attributes:
            _check(self.op, name, value, schema.attributes[name])

    def __getitem__(self, name: str) -> Value:
        return dict(self.attributes)[name]

    def integer(self, name: str) -> int:
        """Attribute `name` as an integer; TypeError where the schema says otherwise (a bug, not a user error)."""
        value = self[name]
        if not isinstance(value, int):
            raise TypeError(f"{self.op}.{name} is no integer")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Attribute `name` as a tuple of integers."""
        value = self[name]
        if not isinstance(value, tuple):
            raise TypeError(f"{self.op}.{name} is no tuple")
        return value

    def text(self, name: str) -> str:
        """Attribute `name` as a string."""
        value = self[name]
        if not isinstance(value, str):
            raise TypeError(f"{self.op}.{name} is no string")
        return value

    def __str__(self) -> str:
        """The shortest spelling: only what differs from the default, such as `separable(dilation=4x4)`."""
        defaults = SCHEMAS[self.op].attributes
        shown = [f"{name}={_spell(value)}" for name, value in self.attributes if value != defaults[name].default]
        return f"{self.op}({','.join(shown)})" if shown else self.op


def kind(op: str, **attributes: Value) -> Kind:
    """The kind of that name, with defaults filled in; a single dilation means the same one both ways."""
    schema = SCHEMAS.get(op)
    if schema is None:
        raise InputError(f"unknown operation {op!r}; known operations: {', '.join(sorted(SCHEMAS))}")
    unknown = sorted(set(attributes) - set(schema.attributes))
    if unknown:
        raise InputError(f"operation {op!r} has no attribute {', '.join(unknown)}; it takes {', '.join(sorted(schema.attributes)) or 'none'}")
    dilation = attributes.get("dilation")
    if isinstance(dilation, int):
        attributes["dilation"] = (dilation, dilation)
    values = {name: attributes.get(name, attribute.default) for name, attribute in schema.attributes.items()}
    return Kind(op, tuple(sorted(values.items())))


def branch_width(outputs: int, branches: int) -> int:
    """Channels of each of several concatenated branches: an even share, rounded up to a multiple of 16 (the blocked layouts of CPU runtimes)."""
    return -(-outputs // branches // 16) * 16 if outputs >= 16 * branches else max(1, outputs // branches)


def stem_widths(width: int, outputs: int, halvings: int) -> tuple[int, ...]:
    """Output channels of a stem's units: `width` first, `outputs` last, halfway (in multiples of 16) between."""
    if halvings == 1:
        return (outputs,)
    middle = (max(width, -(-(width + outputs) // 2 // 16) * 16),) if halvings == 3 else ()
    return (width, *middle, outputs)


def _check(op: str, name: str, value: Value, attribute: Attribute) -> None:
    if type(value) is not type(attribute.default):
        raise InputError(f"{op}.{name} was given {value!r}; a value like {attribute.default!r} is allowed")
    if attribute.allowed is not None:
        if value not in attribute.allowed:
            raise InputError(f"{op}.{name} was given {value!r}; allowed: {', '.join(map(str, attribute.allowed))}")
        return
    numbers = value if isinstance(value, tuple) else (value,)
    pair = name not in {"dilation", "grid"} or len(numbers) == 2
    if not numbers or not pair or any(type(n) is not int or not attribute.low <= n <= attribute.high for n in numbers):
        raise InputError(f"{op}.{name} was given {value!r}; integers from {attribute.low} to {attribute.high} are allowed")


def _spell(value: Value) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)

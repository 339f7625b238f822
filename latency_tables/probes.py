"""Probes: small architectures whose times, subtracted, are the price of one operation.

Nothing is timed alone: an isolated session pays for converting its input to the runtime's blocked layout and back, which makes cheap operations
look up to three times too dear. So every probe holds the operation between 1x1 convolutions of the real width, in three designs:

- series: the operation 1, 2 and 4 times in a row; the slope over the number of copies is its price;
- parallel, for what cannot follow itself (it changes the shape): copies beside each other on features of their own, their outputs summed by binary
  additions; the slope is the operation and an addition, whose own price comes from a series of additions;
- difference, for what ends a network: with it and without it.

All else in a probe is the same for each number of copies and drops out. Protocol after our own study of ONNX Runtime on a CPU; see
docs/measuring.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from segnas.arch import DEEPEST_LEVEL, Architecture, Node, Operation, size_at
from segnas.cost import activation_bytes, macs
from segnas.kinds import Kind, kind
from segnas.target import Target

COPIES = (1, 2, 4)
CHEAP_COPIES = (1, 4, 8)  # in series, for what has no multiplications: microseconds, and additions are in every parallel design
DEAR_COPIES = (1, 2)  # where one copy is long enough to be told from the rest: as precise for the time that it takes, in less memory
DEAR_MACS, DEAR_BYTES = 40_000_000, 8_000_000  # about a millisecond of one core
NARROW = 16  # channels of a probe's own input and output: one block of the runtimes' blocked layouts
FUSING_RUNTIMES = ("tensorrt", "tensorrt-rtx", "aotinductor")  # they merge additions in a row into one kernel


@dataclass(frozen=True, slots=True)
class Rung:
    """One probe of a design: an architecture that holds the operation `copies` times, and the image size it is timed at."""

    copies: int
    architecture: Architecture
    height: int
    width: int
    output_contract: str = "logits"

    def target(self, target: Target) -> Target:
        """The table's target at this probe's size; a probe reads a feature and gives a feature."""
        return replace(target, height=self.height, width=self.width, input_contract="normalised", output_contract=self.output_contract)


@dataclass(frozen=True, slots=True)
class Design:
    """How an operation is priced: slope over the rungs' copies, less `companions`, which come (operation, times) with every copy."""

    operation: Operation
    method: str
    rungs: tuple[Rung, ...]
    companions: tuple[tuple[Operation, int], ...] = ()


def entry_kind(operation: Operation, target: Target) -> str:
    """`fixed` for the stem and what ends a network, `junction` for what joins features, `block` for the rest."""
    if operation.op in {"stem", "classifier", "argmax"} or is_tail(operation, target):
        return "fixed"
    return "junction" if operation.op in {"add", "concat", "resize"} else "block"


def is_tail(operation: Operation, target: Target) -> bool:
    """Whether nothing but the argmax follows: a resize or classifier that gives the target's full size."""
    return operation.op in {"resize", "classifier"} and operation.output[1:] == (target.height, target.width)


def copies_of(operation: Operation) -> tuple[int, ...]:
    """How many copies the probes of this operation hold."""
    if macs(operation) >= DEAR_MACS or activation_bytes(operation) >= DEAR_BYTES:
        return DEAR_COPIES
    return CHEAP_COPIES if operation.op in {"add", "max_pool", "avg_pool"} and operation.stride == 1 else COPIES


def design(operation: Operation, target: Target) -> Design:
    """The probes that price this operation on this target; ValueError for what is nothing at run time."""
    if operation.is_free:
        raise ValueError(f"{operation} is free: it has no price")
    if operation.op == "argmax":
        return _argmax(operation)
    if is_tail(operation, target):
        return _difference(operation)
    if operation.op == "add":
        return _additions(operation, target.runtime in FUSING_RUNTIMES)
    if len(operation.inputs) == 1 and operation.stride == 1 and operation.inputs[0] == operation.output:
        return _series(operation)
    return _parallel(operation)


def designs(operations: Iterable[Operation], target: Target) -> tuple[Design, ...]:
    """Designs of these operations, each once and in order, followed by those of the companions that are not among them."""
    made: dict[Operation, Design] = {}
    queue = [o for o in operations if not o.is_free]
    for operation in queue:  # grows: companions join at the end
        if operation not in made:
            made[operation] = design(operation, target)
            queue.extend(companion for companion, _ in made[operation].companions)
    return tuple(made.values())


class _Sketch:
    """An architecture in the making: nodes appended one by one."""

    def __init__(self, channels: int) -> None:
        self.nodes = [Node(kind("image"), (), channels)]

    def put(self, kind_: Kind, inputs: Sequence[int], channels: int, stride: int = 1, up: int = 1) -> int:
        """Append a node; its index."""
        self.nodes.append(Node(kind_, tuple(inputs), channels, stride, up))
        return len(self.nodes) - 1

    def point(self, source: int, channels: int, stride: int = 1) -> int:
        """Append a 1x1 convolution unit, whose activation keeps an addition behind it from melting into it."""
        return self.put(kind("conv", kernel=1), (source,), channels, stride)

    def copy(self, operation: Operation, inputs: Sequence[int]) -> int:
        """Append the operation under measurement."""
        return self.put(operation.kind, inputs, operation.output.channels, operation.stride, _enlargement(operation))

    def sum(self, features: Sequence[int]) -> int:
        """Append the binary additions that join these features."""
        total = features[0]
        for feature in features[1:]:
            total = self.put(kind("add"), (total, feature), self.nodes[total].channels)
        return total

    def rung(self, copies: int, size: tuple[int, int], output_contract: str = "logits") -> Rung:
        """The finished probe."""
        return Rung(copies, Architecture(tuple(self.nodes)), *size, output_contract)


def _series(operation: Operation) -> Design:
    copies = copies_of(operation)
    return Design(operation, _named("series", copies), tuple(_series_rung(operation, count) for count in copies))


def _series_rung(operation: Operation, copies: int) -> Rung:
    sketch = _Sketch(NARROW)
    feature = sketch.point(0, operation.output.channels)
    for _ in range(copies):
        feature = sketch.copy(operation, (feature,))
    sketch.point(feature, NARROW)
    return sketch.rung(copies, operation.output[1:])


def _additions(operation: Operation, fuses: bool) -> Design:
    """Additions in a row; with a 1x1 convolution before each where the runtime would merge them."""
    point = Operation(kind("conv", kernel=1), 1, (operation.output,), operation.output)
    rungs: list[Rung] = []
    for copies in copies_of(operation):
        sketch = _Sketch(NARROW)
        sources = [sketch.point(0, operation.output.channels) for _ in range(2)]
        feature = sources[0]
        for index in range(copies):
            left = sketch.point(feature, operation.output.channels) if fuses else feature
            feature = sketch.put(operation.kind, (left, sources[(index + 1) % 2]), operation.output.channels)
        sketch.point(feature, NARROW)
        rungs.append(sketch.rung(copies, operation.output[1:]))
    return Design(operation, _named("series", copies_of(operation)), tuple(rungs), ((point, 1),) if fuses else ())


def _parallel(operation: Operation) -> Design:
    joins = 2 if _melts(operation) else 1
    addition = Operation(kind("add"), 1, (operation.output, operation.output), operation.output)
    copies = copies_of(operation)
    rungs = tuple(_parallel_rung(operation, count, joins) for count in copies)
    return Design(operation, _named("parallel", copies), rungs, ((addition, joins),))


def _parallel_rung(operation: Operation, copies: int, joins: int) -> Rung:
    """Copies on features of their own (nothing to merge), which every rung makes, and sums, all of: only copies and joins differ."""
    sketch, size, features = _sources(operation, max(copies_of(operation)) - 1)
    if features != [0]:
        features.insert(0, sketch.sum(features))
    narrow = _halvings(operation)  # the node that the sources were made from
    others = [sketch.point(narrow, shape.channels) for shape in operation.inputs[1:]]
    outputs = [sketch.copy(operation, (features[i % len(features)], *others)) for i in range(copies)]
    if joins == 2:
        outputs = [output for output in outputs for _ in range(2)]
    sketch.point(sketch.sum(outputs), NARROW)
    return sketch.rung(copies, size)


def _difference(operation: Operation) -> Design:
    rungs: list[Rung] = []
    for copies in (0, 1):
        sketch, size, features = _sources(operation, 1)
        if copies:
            sketch.copy(operation, features)
        rungs.append(sketch.rung(copies, size))
    return Design(operation, _named("difference", (0, 1)), tuple(rungs))


def _argmax(operation: Operation) -> Design:
    rungs: list[Rung] = []
    for copies, contract in enumerate(("logits", "labels")):
        sketch = _Sketch(3)
        sketch.put(kind("classifier"), (0,), operation.inputs[0].channels)
        rungs.append(sketch.rung(copies, operation.inputs[0][1:], contract))
    return Design(operation, _named("difference", (0, 1)), tuple(rungs))


def _sources(operation: Operation, count: int) -> tuple[_Sketch, tuple[int, int], list[int]]:
    """A sketch, its image size, and `count` features of the operation's first input shape; the image itself for what reads the image."""
    first = operation.inputs[0]
    if operation.op == "stem" or first.channels <= 4:
        return _Sketch(first.channels), first[1:], [0]
    halvings = _halvings(operation)
    size = operation.output[1:] if halvings else first[1:]
    sketch = _Sketch(3 if halvings else NARROW)
    feature = 0
    for _ in range(halvings):
        feature = sketch.point(feature, NARROW, stride=2)
    return sketch, size, [sketch.point(feature, first.channels) for _ in range(count)]


def _halvings(operation: Operation) -> int:
    """How many levels the operation's input lies below the probe's image, which is as large as the larger of input and output."""
    return _enlargement(operation).bit_length() - 1


def _enlargement(operation: Operation) -> int:
    """The power of two by which a resize enlarges; 1 for everything else."""
    source, output = operation.inputs[0], operation.output
    if operation.op != "resize" or operation.stride != 1:
        return 1
    matching = [2**level for level in range(DEEPEST_LEVEL + 1) if size_at(level, output.height, output.width) == source[1:]]
    if not matching:
        raise ValueError(f"{operation} enlarges by no power of two")
    return matching[0]


def _melts(operation: Operation) -> bool:
    """Whether it ends in a convolution without activation that an addition would melt into, though no addition follows it in a network as a rule."""
    return operation.op in {"classifier", "inverted_residual"}


def _named(method: str, copies: tuple[int, ...]) -> str:
    return f"{method} {','.join(map(str, copies))}"


def probe_operations(plan: Iterable[Design]) -> tuple[Operation, ...]:
    """Every operation in any probe, each once: an exporter that works faster on many at a time is given these first."""
    found: dict[Operation, None] = {}
    for made in plan:
        for rung in made.rungs:
            found.update(dict.fromkeys(o for o in rung.architecture.operations(rung.height, rung.width) if o.op != "image"))
    return tuple(found)

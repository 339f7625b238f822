"""Engine, Timing, Accuracy and Report: what was shipped, how fast it ran, how right it was, of the same bytes."""

from dataclasses import dataclass, field
from typing import NamedTuple

from segnas.arch import Architecture
from segnas.target import Target


@dataclass(frozen=True, slots=True)
class Port:
    """Name, element type as numpy writes it, and shape of an input or output; -1 is a side that may vary within the engine's `sizes`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {'x'.join('?' if side < 0 else str(side) for side in self.shape)}"


@dataclass(frozen=True, slots=True)
class Parity:
    """Agreement of an engine with what it was made from, over `images` inputs; gates are the least agreement and what was asked for.

    `miou_change` is the engine's mIoU less its reference's, as a fraction, over those of the images that have labels; None where none has.
    """

    reference: str
    images: int
    max_abs: float
    mean_abs: float
    cosine: float
    non_finite: int
    argmax_agreement: float
    required_agreement: float
    passed: bool
    miou_change: float | None = None


@dataclass(frozen=True, slots=True)
class TypeShare:
    """What of a network runs with numbers of one type (`fp32`, `fp16`, `int8`): layers, parameters, multiply-accumulates."""

    dtype: str
    layers: int
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class PrecisionProof:
    """In what precision an engine computes, and where that was read: its own file, or the graph that a runtime made of it and executes."""

    source: str
    shares: tuple[TypeShare, ...]

    def share(self, dtype: str) -> float:
        """Share of the multiply-accumulates that run with numbers of that type, 0 to 1."""
        total = sum(share.macs for share in self.shares)
        return sum(share.macs for share in self.shares if share.dtype == dtype) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The real images that the ranges of an int8 engine were taken from: data set, split, names, and the sha256 of that list and of the files."""

    dataset: str
    split: str
    images: tuple[str, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Sizes:
    """The input sizes that a dynamic engine takes, each (height, width) in pixels: the least, the one it is tuned for, the largest."""

    least: tuple[int, int]
    best: tuple[int, int]
    most: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Unrun:
    """A check that was not made, and why; nothing reports it as passed."""

    check: str
    reason: str


@dataclass(frozen=True, slots=True)
class Engine:
    """An artefact and what it is: the manifest that lies beside it. `file` is relative to the manifest.

    `inputs` and `outputs` are what it reads and gives; `sizes` is there for a dynamic one. `source_sha256` is the ONNX file that it was built from,
    empty where it is that file. `capabilities` are the compute capabilities that it was built for (`8.9`), `build` sorted pairs of text: every
    setting of its builder and, of one that is tied to a machine, that machine. `unrun` names each check that could not be made where it was built.
    """

    file: str
    kind: str
    sha256: str
    bytes: int
    target: Target
    architecture: str
    weights_sha256: str
    classes: tuple[str, ...]
    parity: Parity | None
    versions: tuple[tuple[str, str], ...]
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    sizes: Sizes | None = None
    precision: tuple[PrecisionProof, ...] = ()
    calibrated: Calibrated | None = None
    source_sha256: str = ""
    capabilities: tuple[str, ...] = ()
    build: tuple[tuple[str, str], ...] = ()
    unrun: tuple[Unrun, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Latency of one engine, in ms; percentiles by trtexec's rule. `conditions` are sorted pairs of text: load, steal, spinning, affinity.

    `normalised_median_ms` is the median at the speed that the machine has where a sentinel, timed in between, takes its reference time; both are
    among the conditions, and so are the processes that it is the mean of, where it is of several. None where no sentinel was timed.
    """

    scope: str
    runs: int
    warmup_runs: int
    duration_s: float
    min_ms: float
    median_ms: float
    mean_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    coefficient_of_variation: float
    throughput_qps: float
    warnings: tuple[str, ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    normalised_median_ms: float | None = None

    @property
    def fps(self) -> float:
        """Frames per second at one query in flight: 1000 / median."""
        return 1000.0 / self.median_ms


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Intersection over union of one class, 0 to 1; None where neither truth nor prediction has it."""

    name: str
    iou: float | None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean IoU over a split, 0 to 1, official Cityscapes semantics in raw label ids; the raw matrix is kept so that it can be merged."""

    dataset: str
    split: str
    images: int
    miou: float
    pixel_accuracy: float
    classes: tuple[ClassScore, ...]
    protocol: str
    matrix: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ScoringProtocol:
    """How an image becomes a prediction at its truth's size; counts are added to one another only where all of it is equal.

    `size` (height, width) is what an image is resized to, bilinearly, at scale 1; as a wish, None is the engine's own. `upsample` is what brings the
    answer to the truth's size: `bilinear` of logits before the argmax, `nearest` of labels, `none` (refused where the sizes differ); as a wish, None
    is `bilinear` or `none`. `align_corners` is of that resizing. Several `scales`, or `flip`, average the probabilities of all views.
    """

    size: tuple[int, int] | None = None
    upsample: str | None = None
    align_corners: bool = False
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)


class InstanceCount(NamedTuple):
    """One object of the truth: the index of its image, its label's id, its pixels, and how many of them are right by class and by category."""

    image: int
    label: int
    pixels: int
    hits: int
    category_hits: int


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Scores 0 to 1 by name, and the mean of those that are not None."""

    mean: float | None
    scores: tuple[ClassScore, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An accuracy with all that it takes to add it to others exactly.

    `engine_sha256` and `protocol` are those of the engine, or empty and None where images of labels were scored. `images_sha256` and `available` are
    of the whole split; `spans` are the [first, next) indices of its images that were counted. `instances` is None where the truth has no instances,
    and the instance scores (iIoU) are then None too.
    """

    accuracy: Accuracy
    categories: ScoreTable
    instance_classes: ScoreTable
    instance_categories: ScoreTable
    engine_sha256: str
    images_sha256: str
    available: int
    spans: tuple[tuple[int, int], ...]
    protocol: ScoringProtocol | None
    instances: tuple[InstanceCount, ...] | None = None


@dataclass(frozen=True, slots=True)
class Floor:
    """What a predictor that never looks at the image scores."""

    name: str
    miou: float


@dataclass(frozen=True, slots=True)
class Budget:
    """What was asked for, what the table predicted, what the clock said; ms. `asked` is the text of the request.

    `missed_ms` are the engines that were trained before, over the budget, and set aside.
    """

    asked: str
    budget_ms: float
    predicted_ms: float
    predicted_low_ms: float
    predicted_high_ms: float
    measured_ms: float
    measurements: tuple[tuple[str, float, float], ...]
    missed_ms: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """Measured over budget: met where it is at most 1."""
        return self.measured_ms / self.budget_ms


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-accumulates, parameters and activation bytes of a network at the target's size."""

    macs: int
    parameters: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """Part of the predicted milliseconds: an operation's spelling, how often it stands in the network, and what it takes in all."""

    name: str
    count: int
    total_ms: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A quantity over training or search: `values[i]` at step `steps[i]`."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """FPS and mIoU of the same bytes, with every condition that they depend on."""

    name: str
    created: str
    space: str
    method: str
    architecture: Architecture
    architecture_digest: str
    engine: Engine
    budget: Budget
    timing: Timing
    accuracy: Accuracy
    floors: tuple[Floor, ...]
    cost: Cost
    shares: tuple[Share, ...]
    pretraining: str
    recipe: tuple[tuple[str, str], ...]
    seconds: tuple[tuple[str, float], ...]
    versions: tuple[tuple[str, str], ...]
    curves: tuple[Curve, ...] = field(default=())

"""References: networks that people designed or that others searched, as architectures, so that ours are trained and measured beside them.

Fast-SCNN is Poudel, Liwicki and Cipolla, BMVC 2019. What its section 3.2 and tables 1 to 3 say of the layers is recalled.
"""

from collections.abc import Callable
from dataclasses import dataclass

from segnas.arch import Architecture, Node
from segnas.errors import UsageError
from segnas.kinds import Kind, kind
from segnas.mobilenet import mobilenet_v2_network
from segnas.search.published_autodeeplab import auto_deeplab_l, auto_deeplab_m, auto_deeplab_s
from segnas.search.published_darts import darts_v1, darts_v2
from segnas.search.published_dpc import dpc_mobilenet
from segnas.search.published_fasterseg import fasterseg_student
from segnas.search.published_fastnas import fast_nas_0, fast_nas_1, fast_nas_2
from segnas.search.published_sparsemask import sparsemask_released

BOTTLENECKS = ((64, 2), (96, 2), (128, 1))
"""Channels and stride of each stage of Fast-SCNN's global feature extractor: three inverted residuals of expansion 6 each."""
FUSED = 128
"""Channels of Fast-SCNN's feature fusion and of its classifier's units."""


def fast_scnn(classes: int) -> Architecture:
    """Fast-SCNN for so many classes: 1.14 M parameters and 6.71 G multiply-accumulates at 1024x2048 with 19.

    Published are 1.11 M parameters; the 23,680 of ours that are scales and shifts of normalisations seem not to be counted there. Ours differs in
    three places. The published sum of the fused branches has a ReLU, and `add` none: here each branch has it before the sum. All resizes are bilinear
    with half-pixel centres. A pyramid level whose bins do not divide the feature pools over windows of one size that overlap (`ops.pooled_to`).
    """
    nodes = [Node(kind("image"), (), 3, label="image")]

    def node(made: Kind, *inputs: int, channels: int, stride: int = 1, up: int = 1, label: str) -> int:
        nodes.append(Node(made, inputs, channels, stride, up, label))
        return len(nodes) - 1

    def separable(source: int, channels: int, stride: int, label: str) -> int:
        """A separable unit without a nonlinearity between its two convolutions (section 3.2.1)."""
        width = nodes[source].channels
        deep = node(kind("conv", groups=width, activation="none"), source, channels=width, stride=stride, label=f"{label}.depthwise")
        return node(kind("conv", kernel=1), deep, channels=channels, label=f"{label}.pointwise")

    shared = node(kind("conv"), 0, channels=32, stride=2, label="downsample.0")
    for index, channels in enumerate((48, 64), 1):
        shared = separable(shared, channels, 2, f"downsample.{index}")
    deep = shared
    for stage, (channels, stride) in enumerate(BOTTLENECKS):
        for repeat in range(3):
            block = kind("inverted_residual", activation="relu")
            deep = node(block, deep, channels=channels, stride=1 if repeat else stride, label=f"extractor.{stage}.{repeat}")
    deep = node(kind("pyramid_pool"), deep, channels=FUSED, label="extractor.pool")
    deep = node(kind("resize"), deep, channels=FUSED, up=4, label="fusion.up")
    deep = node(kind("conv", groups=FUSED, dilation=4), deep, channels=FUSED, label="fusion.depthwise")
    deep = node(kind("conv", kernel=1), deep, channels=FUSED, label="fusion.deep")
    fine = node(kind("conv", kernel=1), shared, channels=FUSED, label="fusion.fine")
    last = node(kind("add"), deep, fine, channels=FUSED, label="fusion.join")
    for index in range(2):
        last = separable(last, FUSED, 1, f"classifier.{index}")
    last = node(kind("classifier"), last, channels=classes, label="classifier")
    node(kind("resize"), last, channels=classes, up=8, label="output")
    return Architecture(tuple(nodes))


REFERENCES: dict[str, Callable[[int], Architecture]] = {
    "fast-scnn": fast_scnn,
    "mobilenet-v2": mobilenet_v2_network,
    "darts-v1": darts_v1,
    "darts-v2": darts_v2,
    "auto-deeplab-s": auto_deeplab_s,
    "auto-deeplab-m": auto_deeplab_m,
    "auto-deeplab-l": auto_deeplab_l,
    "fasterseg-student": fasterseg_student,
    "sparsemask-released": sparsemask_released,
    "dpc-mobilenet": dpc_mobilenet,
    "fast-nas-0": fast_nas_0,
    "fast-nas-1": fast_nas_1,
    "fast-nas-2": fast_nas_2,
}
"""Every reference network by name: number of classes -> architecture."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a paper says of its network for 19 classes, where it says it: parameters, and multiply-accumulates of an image of (height, width)."""

    parameters: float
    macs: float
    size: tuple[int, int]
    source: str


PUBLISHED: dict[str, Published] = {
    "fast-scnn": Published(1.11e6, 6.7e9, (1024, 2048), "Poudel et al., BMVC 2019"),
    "auto-deeplab-s": Published(10.15e6, 333.25e9, (1025, 2049), "Liu et al., CVPR 2019, table 2"),
    "auto-deeplab-m": Published(21.62e6, 460.93e9, (1025, 2049), "Liu et al., CVPR 2019, table 2"),
    "auto-deeplab-l": Published(44.42e6, 695.03e9, (1025, 2049), "Liu et al., CVPR 2019, table 2"),
    "fasterseg-student": Published(3.42e6, 27.77e9, (1024, 2048), "Chen et al., ICLR 2020: released architecture, counted"),
}
"""The size at which Auto-DeepLab's multiply-adds were counted is inferred from them (docs/auto-deeplab.md)."""


def references(classes: int) -> dict[str, Architecture]:
    """Every reference network for so many classes, by name."""
    return {name: made(classes) for name, made in REFERENCES.items()}


def reference(name: str, classes: int) -> Architecture:
    """The reference network of that name for so many classes; UsageError lists the names."""
    if name not in REFERENCES:
        raise UsageError(f"no reference network is called {name!r}; known networks: {', '.join(sorted(REFERENCES))}")
    return REFERENCES[name](classes)

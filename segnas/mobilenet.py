"""MobileNet-v2 as nodes: the backbone that several systems search decoders for, and that pretrained weights exist for."""

from segnas.arch import Architecture, Node
from segnas.kinds import kind

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, channels, repeats, stride) of each stage (MobileNet-v2, table 2)."""
LABEL = "mobilenetv2"


def mobilenet_v2_nodes() -> list[Node]:
    """The image, the stem and the 17 inverted residuals, without the last 1x1 convolution; labels are `mobilenetv2.0` to `mobilenetv2.17`."""
    nodes = [Node(kind("image"), (), 3), Node(kind("conv", activation="relu6"), (0,), 32, 2, label=f"{LABEL}.0")]
    for expansion, channels, repeats, stride in STAGES:
        for repeat in range(repeats):
            block = kind("inverted_residual", expansion=expansion)
            nodes.append(Node(block, (len(nodes) - 1,), channels, stride if repeat == 0 else 1, label=f"{LABEL}.{len(nodes) - 1}"))
    return nodes


def mobilenet_v2_network(classes: int, width: int = 128) -> Architecture:
    """MobileNet-v2 with a light decoder: ASPP-lite at 1/32, joined with 1/8 features (the decoder is our choice)."""
    nodes = mobilenet_v2_nodes()
    last, fine = len(nodes) - 1, next(i for i, n in enumerate(nodes) if n.label == f"{LABEL}.6")
    nodes += [
        Node(kind("aspp"), (last,), width, label="head.aspp"),
        Node(kind("resize"), (last + 1,), width, up=4, label="head.up"),
        Node(kind("conv", kernel=1), (fine,), width, label="head.fine"),
        Node(kind("add"), (last + 2, last + 3), width, label="head.join"),
        Node(kind("separable"), (last + 4,), width, label="head.mix"),
        Node(kind("classifier"), (last + 5,), classes, label="head.classifier"),
        Node(kind("resize"), (last + 6,), classes, up=8, label="head.output"),
    ]
    return Architecture(tuple(nodes))

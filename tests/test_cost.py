"""Multiply-accumulates, parameters and activation bytes against torch's own counter, `numel`, a counter of what torch calls, and one hand count."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from segnas.arch import Architecture, Node, Operation, Shape
from segnas.cost import activation_bytes, convolutions, macs, network_cost, parameters
from segnas.kinds import kind
from segnas.mobilenet import mobilenet_v2_network
from segnas.network import Network
from segnas.ops import build
from segnas.report import Cost

aten = torch.ops.aten
WRITERS = {
    aten.convolution, aten.avg_pool2d, aten.max_pool2d_with_indices, aten._adaptive_avg_pool2d, aten.mean, aten.upsample_bilinear2d,
    aten.upsample_nearest2d, aten.cat, aten.add, aten.mul,
}  # fmt: skip
IGNORED = {
    aten.cudnn_batch_norm, aten.native_batch_norm, aten._native_batch_norm_legit_no_training, aten.relu_, aten.relu, aten.hardtanh_, aten.hardswish_,
    aten.hardsigmoid, aten.detach, aten.view, aten.empty, aten.slice, aten.constant_pad_nd,
}  # fmt: skip


class WrittenBytes(TorchDispatchMode):
    """Bytes of the first result of each call that writes a feature; a call that it does not know is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        assert packet in WRITERS | IGNORED, packet
        if packet in WRITERS:
            written = result[0] if isinstance(result, tuple) else result
            self.bytes += written.numel() * written.element_size()
        return result


def counted(run: Callable[[], object], weights: int) -> Cost:
    """What torch counts while `run` runs, on the meta device: shapes without numbers."""
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        run()
    with torch.no_grad(), WrittenBytes() as written:
        run()
    by_call = flops.get_flop_counts().get("Global", {})
    assert set(by_call) <= {aten.convolution}
    return Cost(sum(by_call.values()) // 2, weights, written.bytes)


def counted_network(architecture: Architecture, height: int, width: int) -> Cost:
    with torch.device("meta"):
        network, image = Network(architecture).eval(), torch.empty(1, architecture.nodes[0].channels, height, width)
    return counted(lambda: network(image), sum(p.numel() for p in network.parameters()))


@pytest.mark.parametrize("size", [(360, 480), (769, 769), (1025, 2049), (512, 1024), (32, 33)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_network_of_every_operation_costs_what_torch_counts(every_op, size: tuple[int, int]) -> None:
    assert network_cost(every_op, *size) == counted_network(every_op, *size)


@pytest.mark.parametrize("size", [(360, 480), (769, 769)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_mobilenet_costs_what_torch_counts(size: tuple[int, int]) -> None:
    assert network_cost(mobilenet_v2_network(19), *size) == counted_network(mobilenet_v2_network(19), *size)


@pytest.mark.parametrize("size", [(45, 60), (97, 97), (16, 17)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_each_operation_costs_what_torch_counts(variant, placed, size: tuple[int, int]) -> None:
    operation = placed(variant).operations(*size)[-1]
    with torch.device("meta"):
        module = build(variant.kind, variant.widths, variant.channels, variant.stride).eval()
        features = [torch.empty(1, *shape) for shape in operation.inputs]
    found = Cost(macs(operation), parameters(operation), activation_bytes(operation))
    assert found == counted(lambda: module(features, operation.output[1:]), sum(p.numel() for p in module.parameters()))
    assert len(convolutions(operation)) == sum(isinstance(m, torch.nn.Conv2d) for m in module.modules())


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (5, 5)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_features_of_a_few_pixels_cost_what_torch_counts(size: tuple[int, int]) -> None:
    """At the deepest levels of small images a pool is its own grid and a zoom has nothing to shrink."""
    for made in (kind("zoomed_conv"), kind("zoomed_conv", zoom=4), kind("pyramid_pool"), kind("pyramid_pool", bins=(1, 5)), kind("aspp")):
        operation = Operation(made, 1, (Shape(16, *size),), Shape(24, *size))
        with torch.device("meta"):
            module = build(made, (16,), 24, 1).eval()
            feature = torch.empty(1, 16, *size)
        found = Cost(macs(operation), parameters(operation), activation_bytes(operation))
        assert found == counted(lambda: module([feature], size), sum(p.numel() for p in module.parameters())), made  # noqa: B023 - run at once


def test_a_count_by_hand() -> None:
    """At 9x13.

    stem 3 -> 8, stride 2, to 5x7:         weights 3*3*3*8 = 216;             macs 216*35 = 7560;    written 8*35 = 280
    separable 8 -> 16, 3x3, stride 2, 3x4: depthwise 3*3*8 = 72, 1x1 8*16 = 128; macs 72*12 + 128*12 = 2400; written 8*12 + 16*12 = 288
    classifier 16 -> 5, with bias:         weights 80, bias 5;                 macs 80*12 = 960;      written 5*12 = 60
    resize to 9x13:                        nothing to learn or multiply;                             written 5*117 = 585
    Normalisations: scale and shift of 8, 8 and 16 channels = 64.
    """
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem"), (0,), 8, 2),
        Node(kind("separable"), (1,), 16, 2),
        Node(kind("classifier"), (2,), 5),
        Node(kind("resize"), (3,), 5, up=4),
    )
    weights, bias, normalisation = 216 + 72 + 128 + 80, 5, 64
    assert network_cost(Architecture(nodes), 9, 13) == Cost(7560 + 2400 + 960, weights + bias + normalisation, 4 * (280 + 288 + 60 + 585))


def test_what_is_free_costs_nothing() -> None:
    image, skip = Architecture((Node(kind("image"), (), 3), Node(kind("skip"), (0,), 3))).operations(64, 64)
    assert [macs(o) + parameters(o) + activation_bytes(o) for o in (image, skip)] == [0, 0]

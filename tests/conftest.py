"""Fixtures that several test files share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from segnas.arch import Architecture, Node
from segnas.kinds import Kind, Value, kind


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """Folder of the CamVid images, from the environment; a test that asks for it is skipped where it is not set."""
    root = os.environ.get("SEGNAS_CAMVID")
    if not root:
        pytest.skip("SEGNAS_CAMVID is not set to a CamVid folder")
    return Path(root)


class StreetEngines(NamedTuple):
    """Real engines of one small network with random weights, 64x128, and streets to run them on: six of 64x128 and two of 128x256."""

    streets: Path
    large: Path
    labels: Path
    logits: Path


@pytest.fixture(scope="session")
def street_engines(tmp_path_factory: pytest.TempPathFactory) -> StreetEngines:
    """Two ONNX engines on disk with their manifests, and folders of streets; nobody changes them."""
    from segnas.data import open_dataset
    from segnas.exporting import export_engine
    from segnas.network import initialised
    from segnas.runtime.onnxruntime_session import cpu_target
    from segnas.search.spaces import space
    from segnas.streets import write_streets

    folder = tmp_path_factory.mktemp("engines")
    streets = write_streets(folder / "streets", counts={"train": 1, "val": 6}, height=64, width=128, seed=0)
    large = write_streets(folder / "large", counts={"val": 2}, height=128, width=256, seed=1)
    tiny, dataset = space("cas-tiny", 19), open_dataset("cityscapes", streets, "val")
    network = initialised(tiny.decode(next(tiny.genotypes())).architecture, 0).eval()
    for output in ("labels", "logits"):
        export_engine(network, cpu_target(64, 128, output_contract=output), folder / output, dataset=dataset)
    return StreetEngines(streets, large, folder / "labels" / "model.onnx", folder / "logits" / "model.onnx")


class Variant(NamedTuple):
    """One operation as it may stand in a network: its kind, the widths of its inputs, its own width, stride and enlargement."""

    kind: Kind
    widths: tuple[int, ...]
    channels: int
    stride: int = 1
    up: int = 1

    def __str__(self) -> str:
        return f"{self.kind}-{'+'.join(map(str, self.widths))}to{self.channels}-s{self.stride}-u{self.up}"


def _variants() -> tuple[Variant, ...]:
    """Every operation with every stride, and the attributes that change what it does."""
    stems = [Variant(kind("stem", unit=unit, width=8), (3,), 24, stride) for unit in ("conv", "separable") for stride in (2, 4, 8)]
    rest = [
        Variant(made, (16,), channels, stride)
        for stride in (1, 2)
        for channels in (16, 24)
        for made in (
            kind("conv", kernel=1),
            kind("conv", kernel=5, dilation=(1, 3), activation="none"),
            kind("conv", groups=4, dilation=2, activation="hardswish"),
            kind("separable", kernel=7, activation="relu6"),
            kind("separable", dilation=(4, 2), repeats=2),
            kind("double_conv"),
            kind("double_conv", kernel=5, activation="none"),
            kind("shortcut"),
            kind("zoomed_conv"),
            kind("zoomed_conv", zoom=4, repeats=2, kernel=5),
            kind("inverted_residual"),
            kind("inverted_residual", expansion=1, kernel=5, activation="hardswish"),
            kind("inverted_residual", expansion=3, squeeze=4, dilation=2),
        )
    ]
    pools = [Variant(kind(op, kernel=kernel), (16,), 16, stride) for op in ("max_pool", "avg_pool") for kernel in (3, 5) for stride in (1, 2)]
    return (
        *stems,
        *rest,
        *pools,
        Variant(kind("skip"), (16,), 16),
        Variant(kind("skip"), (16,), 16, 2),
        Variant(kind("factorised_reduce"), (16,), 24, 2),
        Variant(kind("factorised_reduce", activation="none"), (16,), 17, 2),
        Variant(kind("grid_pool"), (16,), 24),
        Variant(kind("grid_pool", grid=(2, 5), activation="hardswish"), (16,), 16),
        Variant(kind("pyramid_pool"), (16,), 24),
        Variant(kind("pyramid_pool", bins=(1, 5)), (16,), 64),
        Variant(kind("aspp"), (16,), 40),
        Variant(kind("aspp", rates=(2,)), (16,), 128),
        *(Variant(kind("resize"), (16,), 16, stride) for stride in (2, 4, 8, 16)),
        *(Variant(kind("resize", align_corners=align), (16,), 16, 1, up) for align in (False, True) for up in (2, 4, 8)),
        Variant(kind("add"), (16, 16), 16),
        Variant(kind("concat"), (16, 8), 24),
        Variant(kind("concat"), (16, 8, 3), 27),
        Variant(kind("classifier"), (16,), 19),
    )


VARIANTS = _variants()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes go by their count in a test's name: an archive written at collection holds the time, and two workers must collect the same names."""
    return f"{argname}-{len(val)}-bytes" if isinstance(val, bytes) else None


def pytest_configure() -> None:
    """One thread for torch: the networks are tiny, and two test processes with two threads each on two cores took nine times as long."""
    torch.set_num_threads(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument `variant` runs once for every operation, stride and telling attribute."""
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", VARIANTS, ids=str)


@pytest.fixture(scope="session")
def placed() -> Callable[[Variant], Architecture]:
    """A small architecture whose last node is the variant; what it reads is made of the image by pools, resizes and 1x1 convolutions."""

    def made(variant: Variant) -> Architecture:
        nodes = [Node(kind("image"), (), variant.widths[0])]
        if variant.up > 1:
            nodes.append(Node(kind("resize"), (0,), variant.widths[0], variant.up))
        source, inputs = len(nodes) - 1, [len(nodes) - 1]
        for width in variant.widths[1:]:
            inputs.append(len(nodes))
            nodes.append(Node(kind("conv", kernel=1), (source,), width))
        nodes.append(Node(variant.kind, tuple(inputs), variant.channels, variant.stride, variant.up))
        return Architecture(tuple(nodes))

    return made


@pytest.fixture(scope="session")
def every_op() -> Architecture:
    """A segmentation network of 19 classes in which every operation stands, most of them with both strides."""
    nodes = [Node(kind("image"), (), 3)]

    def node(op: str, inputs: int | tuple[int, ...], channels: int, stride: int = 1, up: int = 1, **attributes: Value) -> int:
        sources = inputs if isinstance(inputs, tuple) else (inputs,)
        nodes.append(Node(kind(op, **attributes), sources, channels, stride, up, label=f"{op}.{len(nodes)}"))
        return len(nodes) - 1

    stem = node("stem", 0, 32, 4, unit="separable", width=16)
    eighth = node("conv", stem, 48, 2, groups=2, dilation=2)
    mixed = node("separable", eighth, 48, kernel=5, repeats=2)
    gated = node("inverted_residual", mixed, 48, expansion=3, squeeze=4, activation="hardswish")
    pooled = node("add", (node("max_pool", gated, 48), node("avg_pool", mixed, 48, kernel=5)), 48)
    kept = node("add", (pooled, node("skip", gated, 48)), 48)
    zoomed = node("zoomed_conv", kept, 24, repeats=2)
    doubled = node("double_conv", node("shortcut", zoomed, 16), 24)
    joined = node("concat", (kept, doubled, gated), 120)
    sixteenth = node("conv", joined, 64, 2, kernel=1, activation="relu6")
    deep = (
        node("inverted_residual", sixteenth, 40, 2, kernel=5),
        node("skip", sixteenth, 64, 2),
        node("max_pool", sixteenth, 64, 2, kernel=5),
        node("avg_pool", sixteenth, 64, 2),
        node("zoomed_conv", sixteenth, 16, 2, zoom=4),
        node("separable", sixteenth, 24, 2, dilation=(2, 1)),
        node("factorised_reduce", sixteenth, 16, 2),
        node("shortcut", node("double_conv", sixteenth, 16), 16, 2),
    )
    joined = node("concat", deep, 304)
    context = node("aspp", node("concat", (node("pyramid_pool", joined, 64), node("grid_pool", joined, 16)), 80), 80)
    up = node("resize", context, 80, up=4)
    down = node("resize", stem, 32, 2)
    logits = node("classifier", node("concat", (up, down, mixed), 160), 19)
    node("resize", logits, 19, up=8, align_corners=True)
    return Architecture(tuple(nodes))

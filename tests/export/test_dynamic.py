"""Dynamic graphs against static ones and against torch, at sizes of every parity; profiles kept and refused."""

import dataclasses
from contextlib import closing

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas.arch import Architecture, Node
from segnas.errors import InputError
from segnas.export.check import checked_onnx, declared_sizes, parse_sizes, sizes_text
from segnas.export.graph import onnx_from_network
from segnas.export.rounding import rounded_logits
from segnas.kinds import kind
from segnas.report import Sizes
from segnas.runtime.onnxruntime_session import cpu_target, optimised_nodes
from segnas.runtime.session import open_session

SIZES = Sizes((32, 48), (64, 96), (120, 170))
METADATA = {"sizes": sizes_text(SIZES)}
LOGITS = cpu_target(64, 96, output_contract="logits")


@pytest.fixture(scope="module")
def network(lively):
    """Every operation whose graph knows a size: pools to grids, shrinking and enlarging resizes, and the global means."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), 16, 4),
        Node(kind("zoomed_conv", zoom=4), (1,), 16),
        Node(kind("resize"), (2,), 16, 2),
        Node(kind("pyramid_pool", bins=(1, 2, 3, 6)), (3,), 32),
        Node(kind("aspp", rates=(2,)), (4,), 32),
        Node(kind("resize", align_corners=True), (5,), 32, 1, 2),
        Node(kind("add"), (1, 2), 16),
        Node(kind("concat"), (6, 7), 48),
        Node(kind("classifier"), (8,), 5),
        Node(kind("resize"), (9,), 5, 1, 4),
    )
    return lively(Architecture(nodes))


def image(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((1, 3, *size), dtype=np.float32)


def test_a_dynamic_engine_gives_what_static_ones_and_torch_give(network, cache, runs):
    content = onnx_from_network(network, LOGITS, sizes=SIZES, metadata=METADATA, cache=cache)
    model = checked_onnx(content, folder=None)
    assert declared_sizes(model) == SIZES
    sides = [side.dim_param or side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == [1, 3, "height", "width"]
    for size in ((32, 48), (64, 96), (77, 131), (119, 33), (120, 170)):
        x = image(size)
        with torch.no_grad():
            expected = network(torch.from_numpy(x)).numpy()
        assert runs(content, x).shape == expected.shape
        assert np.abs(runs(content, x) - expected).max() < 1e-4
    static = onnx_from_network(network, dataclasses.replace(LOGITS, height=77, width=131), cache=cache)
    assert np.abs(runs(content, image((77, 131))) - runs(static, image((77, 131)))).max() < 1e-5


def test_every_contract_and_precision_may_be_dynamic(network, cache, runs):
    target = cpu_target(64, 96, precision="fp16", input_contract="image")
    content = onnx_from_network(network, target, sizes=SIZES, metadata=METADATA, cache=cache)
    checked_onnx(content, folder=None)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 77, 131, 3), np.uint8)
    static = onnx_from_network(network, dataclasses.replace(target, height=77, width=131), cache=cache)
    labels = runs(content, pixels)
    assert (labels.dtype, labels.shape) == (np.uint8, (1, 77, 131))
    assert (labels == runs(static, pixels)).mean() > 0.999
    gaps = runs(rounded_logits(content), pixels) - runs(rounded_logits(static), pixels)
    assert np.abs(gaps).max() < 0.01 * np.abs(runs(rounded_logits(static), pixels)).max()


def test_a_fixed_output_size_stays_fixed(network, cache, runs):
    content = onnx_from_network(network, LOGITS, sizes=SIZES, metadata=METADATA, output_size=(50, 60), cache=cache)
    checked_onnx(content, folder=None)
    assert {runs(content, image(size)).shape for size in ((32, 48), (77, 131))} == {(1, 5, 50, 60)}
    assert [side.dim_value for side in onnx.load_from_string(content).graph.output[0].type.tensor_type.shape.dim] == [1, 5, 50, 60]


def test_a_session_is_opened_for_a_size_within_the_profile(network, cache):
    content = onnx_from_network(network, cpu_target(64, 96), sizes=SIZES, metadata=METADATA, cache=cache)
    for size in (SIZES.least, (77, 131), SIZES.most):
        with closing(open_session(content, cpu_target(*size))) as session:
            assert session.specification.input.shape == (1, 3, *size)
            assert session.specification.output.shape == (1, *size)
            assert session.run(image(size)).shape == (1, *size)
            assert len(session.sample(2)) == 2
            with pytest.raises(InputError, match="was given"):
                session.run(image((64, 97)))
    for size in ((31, 48), (32, 47), (121, 170), (120, 171)):
        with pytest.raises(InputError, match=rf"takes 32x48 to 120x170; {size[0]}x{size[1]} was asked for"):
            open_session(content, cpu_target(*size))


def test_at_a_size_it_runs_as_fast_a_graph_as_a_static_one(network, cache):
    """ONNX Runtime is told the size, and folds away what computes it, but for the pools that became products."""
    target = cpu_target(77, 131)
    dynamic = optimised_nodes(onnx_from_network(network, target, sizes=SIZES, metadata=METADATA, cache=cache), target)
    static = optimised_nodes(onnx_from_network(network, target, cache=cache), target)
    assert not {"Shape", "Div", "Range", "Gather"} & set(dynamic)
    assert dynamic["Conv"] == static["Conv"]
    assert dynamic["Upsample"] + dynamic["Resize"] == static["Upsample"] + static["Resize"]


def test_the_least_size_must_do(network, cache):
    with pytest.raises(InputError, match="too small"):
        onnx_from_network(network, LOGITS, sizes=Sizes((4, 48), (64, 96), (120, 170)), cache=cache)


sides = st.integers(1, 5000)


@settings(deadline=None)
@given(st.tuples(sides, sides, sides).map(sorted), st.tuples(sides, sides, sides).map(sorted))
def test_sizes_are_read_as_they_are_written(heights, widths):
    made = Sizes(*zip(heights, widths, strict=True))
    assert parse_sizes(sizes_text(made)) == made


@pytest.mark.parametrize("text", ["", "1x1", "8x8:4x4:16x16", "8x8:8x8", "8x8:8x16:16x8", "8x8:9x9:10x10:11x11", "axb:8x8:9x9", "0x8:8x8:9x9"])
def test_damaged_sizes_are_refused(text):
    with pytest.raises(InputError, match="given"):
        parse_sizes(text)

"""The joined graph against torch, against the plain export of the whole network, and against itself."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from segnas.arch import Architecture, Node, Operation, Shape, argmax_operation
from segnas.errors import InputError
from segnas.export import templates as templates_module
from segnas.export.folding import folded_module, folded_state
from segnas.export.graph import graph_sha256, onnx_from_network, whole_onnx_from_network
from segnas.export.rounding import rounded_logits
from segnas.export.templates import forget, templates
from segnas.kinds import SCHEMAS, Kind, kind
from segnas.network import Network, initialised
from segnas.runtime.onnxruntime_session import cpu_target, optimised_nodes
from segnas.runtime.session import open_session

ODD = (37, 61)
SIZE = (75, 109)


def chain(*steps: tuple[Kind, int, int, int], channels: int = 3) -> Architecture:
    """A chain of (kind, channels, stride, up) behind an image."""
    nodes = [Node(kind("image"), (), channels)]
    for index, (kind_, outputs, stride, up) in enumerate(steps):
        nodes.append(Node(kind_, (index,), outputs, stride, up))
    return Architecture(tuple(nodes))


def every_operation() -> Architecture:
    """One segmentation network with every kind of operation in it."""
    nodes: list[Node] = []

    def put(kind_: Kind, inputs: tuple[int, ...], channels: int, stride: int = 1, up: int = 1) -> int:
        nodes.append(Node(kind_, inputs, channels, stride, up))
        return len(nodes) - 1

    put(kind("image"), (), 3)
    stem = put(kind("stem", width=8), (0,), 16, 4)
    first = put(kind("separable", repeats=2), (stem,), 16)
    same = put(kind("skip"), (first,), 16)
    gate = put(kind("inverted_residual", squeeze=4, expansion=2, activation="hardswish"), (same,), 16)
    total = put(kind("add"), (gate, same), 16)
    down = put(kind("conv", dilation=(2, 1), groups=2), (total,), 24, 2)
    pyramid = put(kind("pyramid_pool", bins=(1, 3)), (down,), 16)
    aspp = put(kind("aspp", rates=(2,)), (pyramid,), 16)
    up = put(kind("resize", align_corners=True), (aspp,), 16, 1, 2)
    joined = put(kind("concat"), (up, total, first), 48)
    zoomed = put(kind("zoomed_conv", repeats=2, zoom=4), (joined,), 16)
    most = put(kind("max_pool"), (zoomed,), 16)
    mean = put(kind("avg_pool", kernel=5), (most,), 16)
    strided = put(kind("skip"), (mean,), 16, 2)
    halved = put(kind("factorised_reduce"), (mean,), 16, 2)
    everywhere = put(kind("grid_pool"), (halved,), 16)
    narrowed = put(kind("conv", kernel=1), (put(kind("concat"), (strided, halved, everywhere), 48),), 16)
    back = put(kind("resize"), (narrowed,), 16, 1, 2)
    again = put(kind("skip"), (back,), 16)
    scores = put(kind("classifier"), (again,), 5)
    put(kind("resize"), (scores,), 5, 1, 4)
    return Architecture(tuple(nodes))


def logits_target(size: tuple[int, int], **changes):
    return dataclasses.replace(cpu_target(*size, output_contract="logits"), **changes)


def image(channels: int, size: tuple[int, int], batch: int = 1) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((batch, channels, *size), dtype=np.float32)


def in_torch(network: Network, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


UNUSUAL = (
    (kind("stem", activation="hardswish"), 8),
    (kind("zoomed_conv", activation="hardswish"), 1),
    (kind("inverted_residual", activation="none"), 1),
    (kind("pyramid_pool", activation="relu6"), 1),
    (kind("aspp", activation="hardswish"), 1),
)  # attributes in which no variant of conftest.py differs from the default


@pytest.fixture(scope="module")
def warm(cache, request, placed) -> Path:
    """The cache folder after one export call for all variants that are tested."""
    variants = {
        item.callspec.params["variant"] for item in request.session.items if "variant" in getattr(item, "callspec", item).__dict__.get("params", {})
    }
    architectures = [placed(variant) for variant in sorted(variants, key=str)] + [chain((made, 8, stride, 1), channels=8) for made, stride in UNUSUAL]
    templates([o for architecture in architectures for o in architecture.operations(*ODD)[1:]], cache=cache)
    return cache


def agrees_with_torch(architecture: Architecture, cache: Path, lively: Callable[[Architecture], Network]) -> None:
    network = lively(architecture)
    content = onnx_from_network(network, logits_target(ODD), cache=cache)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    x = image(architecture.nodes[0].channels, ODD)
    with closing(open_session(content, logits_target(ODD))) as session:
        expected = session.run(x)
    assert np.abs(expected - in_torch(network, x)).max() < 1e-4
    agrees_in_half(network, x, expected, cache)


def agrees_in_half(network: Network, x: np.ndarray, expected: np.ndarray, cache: Path) -> None:
    """The graph in half, as executed and with each value rounded: within 1 % of the largest value; a rounding is 0.05 %, and deep chains add up."""
    target = logits_target(ODD, precision="fp16")
    content = onnx_from_network(network, target, cache=cache)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert not [tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    for made in (content, rounded_logits(content)):
        with closing(open_session(made, target)) as session:
            answer = session.run(x)
        assert answer.dtype == np.float32
        assert np.abs(answer - expected).max() <= 0.01 * max(1.0, np.abs(expected).max())


def test_every_operation_gives_what_torch_gives_at_an_odd_size(variant, placed, warm, lively):
    agrees_with_torch(placed(variant), warm, lively)


@pytest.mark.parametrize("case", UNUSUAL, ids=lambda case: str(case[0]))
def test_unusual_attributes_give_what_torch_gives(case, warm, lively):
    agrees_with_torch(chain((case[0], 8, case[1], 1), channels=8), warm, lively)


def test_the_joined_graph_is_the_whole_export(cache, lively):
    network = lively(every_operation())
    x, target = image(3, SIZE), logits_target(SIZE)
    joined, whole = onnx_from_network(network, target, cache=cache), whole_onnx_from_network(network, target)
    answers = [open_session(content, target).run(x) for content in (joined, whole)]
    assert np.abs(answers[0] - answers[1]).max() < 1e-5
    assert np.abs(answers[0] - in_torch(network, x)).max() < 1e-4
    assert optimised_nodes(joined, target) == optimised_nodes(whole, target)


def test_a_labels_engine_is_the_argmax_of_the_logits(cache, lively):
    network = lively(every_operation())
    x = image(3, SIZE)
    content = onnx_from_network(network, cpu_target(*SIZE), cache=cache)
    labels = open_session(content, cpu_target(*SIZE)).run(x)
    logits = open_session(onnx_from_network(network, logits_target(SIZE), cache=cache), logits_target(SIZE)).run(x)
    assert labels.dtype == np.uint8
    assert labels.shape == (1, *SIZE)
    assert np.array_equal(labels, logits.argmax(axis=1))
    assert optimised_nodes(content, cpu_target(*SIZE)) == optimised_nodes(whole_onnx_from_network(network, cpu_target(*SIZE)), cpu_target(*SIZE))


def test_ties_go_to_the_lowest_class(cache):
    network = Network(chain((kind("classifier"), 5, 1, 1)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    content = onnx_from_network(network, cpu_target(8, 8), cache=cache)
    assert not open_session(content, cpu_target(8, 8)).run(image(3, (8, 8))).any()


@pytest.mark.parametrize("batch", [1, 2])
def test_planes_that_alias_in_the_cache_are_compared_instead(batch, cache, lively):
    network, target = lively(chain((kind("classifier"), 19, 1, 1))), cpu_target(32, 64, batch=batch)
    x = image(3, (32, 64), batch).round()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.mul(50).round())  # ties everywhere
    logits = in_torch(network, x)
    content = onnx_from_network(network, target, cache=cache)
    assert optimised_nodes(content, target)["Greater"] == 18
    labels = open_session(content, target).run(x)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, logits.argmax(axis=1))
    assert (np.sort(logits, axis=1)[:, -1] == np.sort(logits, axis=1)[:, -2]).mean() > 0.02
    elsewhere = dataclasses.replace(target, runtime="tensorrt")
    assert b"ArgMax" in onnx_from_network(network, elsewhere, cache=cache)


def test_a_batch_goes_through(cache, lively):
    network, target = lively(every_operation()), logits_target(SIZE, batch=2)
    x = image(3, SIZE, batch=2)
    assert np.abs(open_session(onnx_from_network(network, target, cache=cache), target).run(x) - in_torch(network, x)).max() < 1e-4


def test_a_skip_of_stride_1_leaves_no_node(cache, lively):
    network = lively(chain((kind("conv"), 8, 1, 1), (kind("skip"), 8, 1, 1), (kind("conv"), 8, 1, 1), (kind("skip"), 8, 1, 1)))
    graph = onnx.load_from_string(onnx_from_network(network, logits_target((16, 16)), cache=cache)).graph
    assert [node.op_type for node in graph.node] == ["Conv", "Relu", "Conv", "Relu"]
    assert [node.name for node in graph.node] == ["nodes.1/0.Conv", "nodes.1/1.Relu", "nodes.3/0.Conv", "nodes.3/1.Relu"]
    assert graph.output[0].name == "logits"


def test_a_network_of_nothing_is_an_identity(cache):
    network = Network(chain((kind("skip"), 3, 1, 1), (kind("resize"), 3, 1, 1)))
    x = image(3, (8, 8))
    assert np.array_equal(open_session(onnx_from_network(network, logits_target((8, 8)), cache=cache), logits_target((8, 8))).run(x), x)


def test_names_metadata_and_privacy(cache, lively):
    network = lively(every_operation())
    content = onnx_from_network(network, cpu_target(*SIZE), metadata={"b": "2", "a": "1"}, cache=cache)
    model = onnx.load_from_string(content)
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("a", "1"), ("b", "2")]
    assert model.graph.input[0].name == "input"
    assert (model.ir_version, model.opset_import[0].version) == (10, 18)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert not any(mark in content for mark in (b"/work", b"site-packages", b"stack_trace", os.fsencode(str(Path.home()))))
    for name, parameter in network.named_parameters():
        if name.endswith("0.weight") and parameter.ndim == 4:
            assert any(tensor.name == name for tensor in model.graph.initializer)


def test_same_bytes_in_another_process_with_a_fresh_cache(tmp_path, cache):
    script = """if True:
        import sys
        from pathlib import Path
        from segnas.arch import Architecture, Node
        from segnas.export.graph import onnx_from_network
        from segnas.kinds import kind
        from segnas.network import initialised
        from segnas.runtime.onnxruntime_session import cpu_target

        nodes = (Node(kind("image"), (), 3), Node(kind("stem"), (0,), 16, 4), Node(kind("pyramid_pool"), (1,), 16))
        network = initialised(Architecture(nodes), 3)
        sys.stdout.buffer.write(onnx_from_network(network, cpu_target(75, 109), cache=Path(sys.argv[1])))
    """
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    other = subprocess.run(command, capture_output=True, check=True).stdout
    network = initialised(chain((kind("stem"), 16, 4, 1), (kind("pyramid_pool"), 16, 1, 1)), 3)
    assert onnx_from_network(network, cpu_target(*SIZE), cache=cache) == other
    forget()
    assert onnx_from_network(network, cpu_target(*SIZE), cache=tmp_path) == other
    assert len(list(tmp_path.iterdir())) == 2


def test_the_mode_of_the_network_does_not_matter_and_stays(cache, lively):
    network = lively(every_operation())
    before = onnx_from_network(network, cpu_target(*SIZE), cache=cache)
    network.train()
    assert onnx_from_network(network, cpu_target(*SIZE), cache=cache) == before
    assert network.training
    assert network.nodes["1"].training


def test_a_damaged_cache_file_is_made_again(tmp_path, lively):
    network, target = lively(chain((kind("conv"), 8, 1, 1))), logits_target((16, 16))
    before = onnx_from_network(network, target, cache=tmp_path)
    (stored,) = tmp_path.iterdir()
    good = stored.read_bytes()
    operation = network.architecture.operations(16, 16)[1]
    for damaged in (b"", b"nonsense", good[:-3], good[:40] + b"\xff" + good[41:]):
        stored.write_bytes(damaged)
        assert not templates_module._read(operation, 1, tmp_path)
    forget()
    assert onnx_from_network(network, target, cache=tmp_path) == before
    assert stored.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, lively):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    forget()
    assert onnx_from_network(lively(chain((kind("max_pool"), 3, 1, 1))), logits_target((16, 16)), cache=blocked / "graphs")


def test_the_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNAS_CACHE", str(tmp_path))
    assert templates_module.cache_folder() == tmp_path / "graphs"
    monkeypatch.delenv("SEGNAS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert templates_module.cache_folder() == tmp_path / "home" / ".cache" / "segnas" / "graphs"


def test_progress_counts_what_is_exported_only(tmp_path):
    forget()
    seen: list[tuple[int, int]] = []
    operations = chain((kind("max_pool"), 3, 1, 1), (kind("avg_pool"), 3, 1, 1)).operations(16, 16)
    templates(operations, cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    templates(operations, cache=tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)]


def test_the_hash_of_a_graph_knows_its_structure_alone(cache):
    def operation(width: int, stride: int = 1, kernel: int = 3) -> Operation:
        return chain((kind("conv", kernel=kernel), width, stride, 1)).operations(16, 16)[1]

    wanted = (operation(8), operation(16), operation(8, 2), operation(8, kernel=1))
    templates(wanted, cache=cache)  # one call of the exporter
    digests = [graph_sha256(o, cache=cache) for o in wanted]
    assert len(set(digests)) == 4
    forget()
    assert graph_sha256(operation(8), cache=cache) == digests[0]
    assert graph_sha256(argmax_operation(Shape(5, 8, 8)), cache=cache) != digests[0]


def test_weights_that_are_not_finite_are_refused(cache, lively):
    for value in (float("nan"), float("inf")):
        network = lively(chain((kind("conv"), 8, 1, 1)))
        with torch.no_grad():
            next(network.parameters())[0, 0, 0, 0] = value
        with pytest.raises(InputError, match=r"NaN or infinity \(nodes\.1\.layers\.0\.0\.weight\)"):
            onnx_from_network(network, logits_target((16, 16)), cache=cache)


def test_what_this_exporter_does_not_write_is_refused(cache, lively):
    network = lively(chain((kind("conv"), 8, 1, 1)))
    with pytest.raises(InputError, match=r"'int8'.*fp32 or fp16.*calibration"):
        onnx_from_network(network, dataclasses.replace(cpu_target(16, 16), precision="int8"), cache=cache)
    wide = lively(chain((kind("classifier"), 300, 1, 1)))
    with pytest.raises(InputError, match="300 classes"):
        onnx_from_network(wide, cpu_target(16, 16), cache=cache)
    with pytest.raises(InputError, match="too small"):
        onnx_from_network(lively(every_operation()), cpu_target(4, 4), cache=cache)


def test_folding_keeps_the_function_and_leaves_the_module_alone(lively):
    network = lively(every_operation())
    module = network.nodes["4"]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folded = folded_module(module)
    x = torch.from_numpy(image(16, (9, 7)))
    with torch.no_grad():
        assert torch.allclose(folded([x], (9, 7)), module([x], (9, 7)), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {name: value.shape for name, value in folded_state(module).items()} == {n: tuple(p.shape) for n, p in folded.named_parameters()}


def test_an_export_leaves_the_random_numbers_alone(tmp_path, lively):
    network = lively(chain((kind("conv"), 8, 1, 1)))
    before = torch.random.get_rng_state()
    forget()
    onnx_from_network(network, logits_target((16, 16)), cache=tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_normalisation_that_nothing_folds_is_a_bug_not_a_wrong_graph():
    lonely = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm2d(4))
    with pytest.raises(TypeError, match="BatchNorm2d"):
        folded_state(lonely)


def test_the_order_of_inputs_is_kept(cache, lively):
    nodes = (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 4), Node(kind("conv", kernel=1), (0,), 6), Node(kind("concat"), (2, 1, 2), 16))
    network = lively(Architecture(nodes))
    x = image(3, (12, 12))
    content = onnx_from_network(network, logits_target((12, 12)), cache=cache)
    assert np.abs(open_session(content, logits_target((12, 12))).run(x) - in_torch(network, x)).max() < 1e-4


def test_every_operation_that_a_network_may_hold_is_tested(request):
    items = [item for item in request.session.items if "variant" in getattr(item, "callspec", item).__dict__.get("params", {})]
    if items:
        tested = {item.callspec.params["variant"].kind.op for item in items}
        assert tested == set(SCHEMAS) - {"image", "none", "argmax"}

"""AOTInductor for real, on the CPU: two networks are compiled here, in about 40 s of one core; what is marked slow compiles more."""

import dataclasses
import hashlib
import importlib.util
import io
import json
import types
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from segnas.arch import Architecture, Node
from segnas.benching import bench_engine
from segnas.compiler import cpp_compiler, processor_digest
from segnas.data import Dataset, open_dataset
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export.aotinductor import compile_probes, package_from_network
from segnas.exporting import export_engine
from segnas.files import read_noun
from segnas.kinds import kind
from segnas.latency import LatencyTable, Timed, profile_command, sample_runs
from segnas.latency_tables.profile import profile
from segnas.measuring import here, prepare_probe
from segnas.network import Network, initialised
from segnas.report import Engine, Port
from segnas.runtime import aotinductor_session
from segnas.runtime.aotinductor_session import aotinductor_cuda_target, aotinductor_target, open_on_cuda
from segnas.runtime.bench import bench
from segnas.runtime.processor import available_cores, device_name
from segnas.runtime.session import Session, Specification, open_session
from segnas.streets import write_streets
from segnas.target import Target

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler: AOTInductor cannot compile")

_spec = importlib.util.spec_from_file_location("fake_device", Path(__file__).with_name("fake_device.py"))
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)  # pytest's import mode puts no folder of tests on the path
_spec.loader.exec_module(fake)


class Made(NamedTuple):
    """A package with what it was made from."""

    network: Network
    target: Target
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def open(self) -> Session:
        return open_session(self.content, self.target, sha256=self.sha256)


def architecture(classes: int = 5) -> Architecture:
    """Two scales: what is convolved, gated, resized, added, and brought back to full size."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), 16, 4),
        Node(kind("inverted_residual", expansion=2, squeeze=4, activation="hardswish"), (1,), 16),
        Node(kind("resize"), (2,), 16, 2),
        Node(kind("separable", dilation=2), (3,), 16),
        Node(kind("resize"), (4,), 16, 1, 2),
        Node(kind("add"), (5, 1), 16),
        Node(kind("classifier"), (6,), classes),
        Node(kind("resize"), (7,), classes, 1, 4),
    )
    return Architecture(nodes)


def short(classes: int = 5) -> Architecture:
    """One scale, for what need not be compiled at length."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), 16, 4),
        Node(kind("separable"), (1,), 16),
        Node(kind("classifier"), (2,), classes),
        Node(kind("resize"), (3,), classes, 1, 4),
    )
    return Architecture(nodes)


def trained(made: Architecture, seed: int = 3) -> Network:
    """A network whose normalisations do something."""
    network = initialised(made, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.dim() == 1 and value.is_floating_point():
            value.copy_(
                0.5 + torch.rand(value.shape, generator=generator)
                if "var" in name or "weight" in name
                else torch.randn(value.shape, generator=generator)
            )
    return network


def image(target: Target, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((target.batch, 3, target.height, target.width), dtype=np.float32)


def logits_of(network: Network, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(x)).numpy()


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Made:
    """Compiled in a process of its own, as probes are, and read from the cache."""
    cache, target = tmp_path_factory.mktemp("packages"), aotinductor_target(32, 64)
    seen: list[tuple[int, int]] = []
    assert compile_probes([(architecture(), target)] * 2, cache=cache, progress=lambda done, total: seen.append((done, total))) == 1
    assert seen == [(1, 1)]
    network = initialised(architecture(), 0).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segnas.export.aotinductor._compiled", lambda *_: pytest.fail("it was compiled again"))
        return Made(network, target, package_from_network(network, target, cache=cache))


@pytest.fixture(scope="module")
def logits(tmp_path_factory) -> Made:
    """Compiled here: two images at once, of an odd size, normalisations that matter."""
    network, target = trained(short()), aotinductor_target(23, 37, batch=2, output_contract="logits")
    return Made(network, target, package_from_network(network, target, metadata={"classes": "a,b"}, cache=tmp_path_factory.mktemp("packages")))


def test_labels_are_those_of_the_network(labels):
    session = labels.open()
    assert session.target == labels.target
    assert session.specification == Specification(Port("input", "float32", (1, 3, 32, 64)), Port("labels", "uint8", (1, 32, 64)))
    for seed in range(5):
        x = image(labels.target, seed)
        assert (session.run(x) == logits_of(labels.network, x).argmax(axis=1)).mean() > 0.9999
    session.close()


def test_logits_are_those_of_the_network(logits):
    session = logits.open()
    assert session.specification == Specification(Port("input", "float32", (2, 3, 23, 37)), Port("logits", "float32", (2, 5, 23, 37)))
    x = image(logits.target)
    expected, found = logits_of(logits.network, x), session.run(x)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert found.flags.c_contiguous
    assert np.ptp(expected) > 0.1
    assert not np.allclose(session.run(image(logits.target, 6)), found, atol=1e-2)


def test_a_session_is_deterministic_timed_and_closed(labels):
    session, x = labels.open(), image(labels.target)
    x.flags.writeable = False
    first = session.run(x)
    timed: Timed = session
    times = timed.sample(20)
    assert len(times) == 20
    assert all(0 < ms < 1000 for ms in times)
    assert sample_runs(session) == 1
    session.run(np.zeros_like(x))
    assert np.array_equal(session.run(x), first)
    with pytest.raises(InputError, match=r"the engine reads input float32 1x3x32x64; .* was given"):
        session.run(image(dataclasses.replace(labels.target, height=33)))
    timed.close()
    timed.close()
    for call in (lambda: session.run(x), lambda: session.sample(1)):
        with pytest.raises(InputError, match="closed"):
            call()


def test_several_are_open_at_once(labels, logits):
    sessions = [labels.open(), logits.open(), labels.open()]
    x = image(labels.target)
    assert np.array_equal(sessions[0].run(x), sessions[2].run(x))
    sessions[0].close()
    assert np.array_equal(sessions[2].run(x), logits_of(labels.network, x).argmax(axis=1))
    assert len(sessions[1].sample(2)) == 2


def test_threads_are_the_targets_and_given_back(labels, monkeypatch):
    """torch's own kernels take the process's number, which stays what it was."""
    seen: list[int] = []
    session = labels.open()
    run = session._package.run  # type: ignore[attr-defined]
    monkeypatch.setattr(session, "_package", types.SimpleNamespace(run=lambda x: (seen.append(torch.get_num_threads()), run(x))[1]))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        session.run(image(labels.target))
        session.sample(1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]


def test_bench_says_how_it_was_measured(labels):
    timing = bench(labels.open(), min_seconds=0, min_runs=20, warmup_seconds=0)
    assert timing.scope == "end_to_end"
    assert {"compiler", "device", "isa", "threads"} <= set(dict(timing.conditions))
    with pytest.raises(InputError, match="timed 'end_to_end'"):
        bench(labels.open(), scope="gpu")


def test_nothing_is_loaded_that_nobody_vouched_for(labels, monkeypatch):
    monkeypatch.setattr(aotinductor_session, "load", lambda *_: pytest.fail("native code was loaded"))
    for sha256, error, words in (
        (None, InputError, "without its sha256; it is native code"),
        ("0" * 64, IncompatibleError, "it is not the one that was written"),
    ):
        with pytest.raises(error, match=words):
            open_session(labels.content, labels.target, sha256=sha256)
    changed = bytearray(labels.content)
    changed[len(changed) // 2] ^= 1
    with pytest.raises(IncompatibleError, match="it is not the one that was written"):
        open_session(bytes(changed), labels.target, sha256=labels.sha256)


def test_another_target_is_refused(labels, monkeypatch):
    monkeypatch.setattr(aotinductor_session, "load", lambda *_: pytest.fail("native code was loaded"))
    options = dict(labels.target.options)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"device": "another CPU, 2 cores"}, IncompatibleError, "device: the target has 'another CPU, 2 cores'"),
        ({"runtime_version": "2.11.0"}, IncompatibleError, "runtime_version: the target has '2.11.0'"),
        ({"options": tuple(sorted((options | {"isa": "AVX9"}).items()))}, IncompatibleError, "isa: the target has 'AVX9'"),
        ({"options": (("freezing", "on"),)}, InputError, "aotinductor takes compiler, device, isa"),
        ({"precision": "fp16"}, InputError, "a session of aotinductor takes fp32"),
        ({"scope": "gpu"}, InputError, "takes end_to_end"),
        ({"input_contract": "image"}, InputError, "takes normalised"),
        ({"height": 48}, InputError, "the target is batch 1, 48x64"),
        ({"output_contract": "logits"}, InputError, "the target's output is 'logits'"),
        ({"threads": available_cores() + 1, "options": ()}, RequirementError, "cores can be used here"),
    ]
    for changes, error, words in cases:
        with pytest.raises(error, match=words):
            open_session(labels.content, dataclasses.replace(labels.target, **changes), sha256=labels.sha256)


def test_a_package_that_gives_something_else_is_refused(labels, monkeypatch):
    wrong = types.SimpleNamespace(run=lambda images: [torch.zeros(1, 32, 64, dtype=torch.int64)])
    monkeypatch.setattr(aotinductor_session, "load", lambda *_: wrong)
    with pytest.raises(InputError, match="gives labels uint8 1x32x64, and gave int64 1x32x64"):
        labels.open()


def test_the_target_says_all_that_the_time_depends_on(monkeypatch):
    target = aotinductor_target(32, 64)
    assert (target.device, target.runtime, target.runtime_version, target.precision, target.scope) == (
        device_name(),
        "aotinductor",
        str(torch.__version__),
        "fp32",
        "end_to_end",
    )
    assert dict(target.options) == {"compiler": str(cpp_compiler()), "device": "cpu", "isa": torch.backends.cpu.get_cpu_capability()}
    assert target.backend == "aotinductor"
    assert profile_command("cas", target) == "segnas profile cas --size 32x64 --runtime aotinductor --threads 1"
    assert here(target) == target
    for threads in (0, available_cores() + 1):
        with pytest.raises(InputError, match="threads were asked for"):
            aotinductor_target(32, 64, threads)
    if available_cores() > 1:
        monkeypatch.setenv("GOMP_SPINCOUNT", "77")
        assert dict(aotinductor_target(32, 64, 2).options)["spinning"] == "77"
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(RequirementError, match=r"C\+\+ compiler"):
        aotinductor_target(32, 64)
    assert here(target).runtime == "onnxruntime"  # it cannot be that target: the fields that differ say so


# ---- on a simulated CUDA device, where the package's code is the CPU's


def declared(target: Target, **changes: str) -> bytes:
    """A package without code that says that it was compiled for a CUDA device and that target."""
    shape = f"{target.height}x{target.width}"
    gives = f"labels uint8 1x{shape}" if target.output_contract == "labels" else f"logits float32 1x5x{shape}"
    told = {
        "AOTI_DEVICE_KEY": "cuda",
        "segnas.input": f"input float32 1x3x{shape}",
        "segnas.output": gives,
        "segnas.processor": processor_digest(),
        "segnas.torch": str(torch.__version__),
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(told | changes))
    return stream.getvalue()


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_on_a_cuda_device_it_is_captured_replayed_and_timed(monkeypatch, output):
    device = fake.FakeDevice()
    target = aotinductor_cuda_target(32, 64, precision="fp32", output_contract=output, device=device)
    network = initialised(architecture(), 0).eval()
    asked: list[bool] = []

    def loaded(package: Any, *, single_threaded: bool) -> Any:
        asked.append(single_threaded)
        return types.SimpleNamespace(run=lambda images: [network(*images).argmax(dim=1).to(torch.uint8) if output == "labels" else network(*images)])

    monkeypatch.setattr(aotinductor_session, "load", loaded)
    content = declared(target)
    sha256 = hashlib.sha256(content).hexdigest()
    session = open_on_cuda(content, target, sha256, device)
    assert asked == [True]  # the locks of the loader cannot be captured
    x = image(target)
    expected = logits_of(network, x)
    found = session.run(x)
    if output == "labels":
        assert np.array_equal(found, expected.argmax(axis=1))
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(session.sample(3)) == 3
    assert session.runs_per_sample > 1
    session.close()
    assert device.open_graphs == 0
    with pytest.raises(InputError, match="without its sha256"):
        open_on_cuda(content, target, None, device)
    for_cpu = declared(target, AOTI_DEVICE_KEY="cpu")
    with pytest.raises(IncompatibleError, match=r"compiled for device 'cpu', not 'cuda'.*--runtime aotinductor-cuda"):
        open_on_cuda(for_cpu, target, hashlib.sha256(for_cpu).hexdigest(), device)


def test_the_cuda_target_says_all_that_the_time_depends_on():
    device = fake.FakeDevice()
    target = aotinductor_cuda_target(512, 1024, device=device)
    assert (target.device, target.runtime_version, target.precision, target.scope) == ("Simulated GPU", "2.11.0+cu128", "fp16", "gpu")
    assert dict(target.options) == {
        "benchmark": "on",
        "compiler": str(cpp_compiler()),
        "cuda": "12.8",
        "cudnn": "9.10.2",
        "device": "cuda",
        "graph": "on",
        "layout": "channels_last",
        "tf32": "off",
    }
    assert target.backend == "aotinductor-cuda"
    assert profile_command("cas", target) == "segnas profile cas --size 512x1024 --runtime aotinductor-cuda --precision fp16"
    for changes, error, words in (
        ({"device": "NVIDIA H200"}, IncompatibleError, "device: the target has 'NVIDIA H200'"),
        ({"scope": "pipeline"}, InputError, "a session of aotinductor-cuda takes gpu, end_to_end"),
        ({"options": (("device", "cuda"), ("graph", "off"))}, InputError, "allowed: on"),
    ):
        with pytest.raises(error, match=words):
            open_on_cuda(b"", dataclasses.replace(target, **changes), "", device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_what_to_run(labels):
    options = tuple(sorted((dict(labels.target.options) | {"device": "cuda"}).items()))
    with pytest.raises(RequirementError, match="segnas doctor"):
        open_session(labels.content, dataclasses.replace(labels.target, options=options, scope="gpu"), sha256=labels.sha256)
    with pytest.raises(RequirementError, match="segnas doctor"):
        aotinductor_cuda_target(32, 64)


# ---- more compilations


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, counts={"val": 2}, height=32, width=64, seed=0)
    return open_dataset("cityscapes", root, "val")


@pytest.mark.slow
def test_an_engine_is_exported_proven_and_timed(streets, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGNAS_CACHE", str(tmp_path / "cache"))
    network = trained(architecture(19))
    engine = export_engine(network, aotinductor_target(32, 64), tmp_path / "out", dataset=streets)
    assert (engine.kind, engine.file) == ("aotinductor", "model.pt2")
    assert engine.parity is not None
    assert engine.parity.passed
    assert read_noun(tmp_path / "out" / "model.pt2.json", Engine) == engine
    manifest, timing = bench_engine(tmp_path / "out" / "model.pt2", seconds=0.1)
    assert manifest == engine
    assert timing.median_ms > 0
    content = (tmp_path / "out" / "model.pt2").read_bytes()
    (tmp_path / "out" / "model.pt2").write_bytes(content[:-1] + b"!")
    with pytest.raises(IncompatibleError, match="is not the file that its manifest describes"):
        bench_engine(tmp_path / "out" / "model.pt2", seconds=0.1)


@pytest.mark.slow
def test_every_operation_compiles_and_agrees(every_op, tmp_path):
    network, target = trained(every_op), aotinductor_target(64, 64, output_contract="logits")
    made = Made(network, target, package_from_network(network, target, cache=tmp_path))
    x = image(target)
    expected = logits_of(network, x)
    assert np.abs(made.open().run(x) - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.slow
def test_an_operation_is_priced_by_the_real_thing(tmp_path, monkeypatch):
    """A 3x3 convolution costs more than a 1x1 one, and repeats."""
    monkeypatch.setenv("SEGNAS_CACHE", str(tmp_path / "cache"))
    target = aotinductor_target(64, 128)
    operations = [_chain("conv", kernel).operations(64, 128)[1] for kernel in (3, 1)]

    def made(name: str) -> LatencyTable:
        return profile(
            "tiny", operations, target, prepare=prepare_probe, graph_sha256=lambda o: o.digest, journal=tmp_path / name, provenance={}, repeats=0
        )

    first, second = made("a"), made("b")
    prices = [first.price_ms(operation) for operation in operations]
    assert prices[0] > 2 * prices[1] > 0
    assert second.price_ms(operations[0]) == pytest.approx(prices[0], rel=0.25)


def _chain(op: str, kernel: int) -> Architecture:
    return Architecture((Node(kind("image"), (), 64), Node(kind(op, kernel=kernel), (0,), 64), Node(kind("classifier"), (1,), 5)))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::segnas.runtime.gpu_samples.UnsteadyWarning")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gpu_answers_as_the_cpu_does(precision, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    network, target = trained(architecture()), aotinductor_cuda_target(256, 512, precision=precision, output_contract="logits")
    made = Made(network, target, package_from_network(network, target, cache=tmp_path))
    session, x = made.open(), image(target)
    expected = logits_of(network, x)
    assert np.abs(session.run(x).astype(np.float32) - expected).max() < (1e-3 if precision == "fp32" else 3e-2) * np.abs(expected).max()
    assert len(session.sample(10)) == 10
    session.close()

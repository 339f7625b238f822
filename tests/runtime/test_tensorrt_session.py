"""TensorRT sessions on a simulated GPU with the names of three recorded releases; and, marked tensorrt, on the real library and device."""

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segnas.arch import Architecture, Node
from segnas.errors import IncompatibleError, InputError, RequirementError, VerificationError
from segnas.kinds import kind
from segnas.latency import Timed, priced_operations, sample_runs
from segnas.latency_tables.compose import reference_ms
from segnas.latency_tables.profile import profile
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.report import Port
from segnas.runtime.bench import bench
from segnas.runtime.gpu_samples import UnsteadyWarning
from segnas.runtime.pycuda_device import PycudaDevice
from segnas.runtime.runtime_cache import cache_path
from segnas.runtime.session import Session, Specification, open_session
from segnas.runtime.tensorrt_session import TensorrtSession, open_tensorrt
from segnas.runtime.tensorrt_target import tensorrt_target
from segnas.runtime.trtexec import records
from segnas.target import Target
from segnas.tensorrt_api import open_api


def loaded(name: str) -> Any:
    """A file beside this one: pytest's import mode puts no folder of tests on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake, gpu = loaded("fake_tensorrt"), loaded("fake_device")
FakeDevice = gpu.FakeDevice
RELEASES, TENSORRT, RTX = fake.RELEASES, fake.TENSORRT, fake.RTX
pytestmark = pytest.mark.filterwarnings("ignore::segnas.runtime.gpu_samples.UnsteadyWarning")


class Simulated:
    """Engines and sessions of a simulated world."""

    def __init__(self, release: str, gpu: Any = None, **options: Any) -> None:
        self.world = fake.World(gpu or FakeDevice(), release, **options)

    def device(self) -> PycudaDevice:
        world = self.world
        device = PycudaDevice(driver=world.driver, bindings=world.bindings, host_ms=world.gpu.host_ms)
        device._clocks = world.gpu.clocks
        return device

    def target(self, height: int = 8, width: int = 16, **changes: Any) -> Target:
        device = self.device()
        options = {"output_contract": "logits"} | changes
        found = tensorrt_target(self.world.runtime, height, width, api=self.world.api, device=device, **options)
        device.close()
        return found

    def engine(self, target: Target, **changes: Any) -> bytes:
        reads = (target.batch, target.height, target.width, 3) if target.input_contract == "image" else (target.batch, 3, target.height, target.width)
        reads = changes.pop("reads", reads)
        return fake.plan(self.world, reads, labels=target.output_contract == "labels", as_image=target.input_contract == "image", **changes)

    def open(self, target: Target, kernels: Path | None = None, content: bytes | None = None) -> TensorrtSession:
        content = self.engine(target) if content is None else content
        return TensorrtSession(content, target, api=self.world.api, device=self.device(), kernels=kernels)


class Real:
    """The real library on the GPU here; skipped, with the reason, where either is missing."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        try:
            self.library = open_api(runtime).module
            PycudaDevice().close()
        except RequirementError as error:
            pytest.skip(str(error))

    def target(self, height: int = 8, width: int = 16, **changes: Any) -> Target:
        return tensorrt_target(self.runtime, height, width, **({"output_contract": "logits", "precision": "fp32"} | changes))

    def open(self, target: Target) -> Session:
        content = self._built(target)
        return open_session(content, target, sha256=hashlib.sha256(content).hexdigest())

    def _built(self, target: Target) -> bytes:
        """Twice the image, or its largest channel, by the library's own network API."""
        trt = self.library
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        image = network.add_input("input", trt.DataType.FLOAT, (target.batch, 3, target.height, target.width))
        twice = network.add_elementwise(image, image, trt.ElementWiseOperation.SUM).get_output(0)
        if target.output_contract == "labels":
            chosen = network.add_topk(twice, trt.TopKOperation.MAX, 1, 1 << 1).get_output(1)
            shaped = network.add_shuffle(network.add_cast(chosen, trt.DataType.FLOAT).get_output(0))
            shaped.reshape_dims = (target.batch, target.height, target.width)
            twice = network.add_cast(shaped.get_output(0), trt.DataType.UINT8).get_output(0)
        twice.name = target.output_contract
        network.mark_output(twice)
        built = builder.build_serialized_network(network, builder.create_builder_config())
        assert built is not None
        return bytes(memoryview(built))


@pytest.fixture(params=[*RELEASES, *(pytest.param(f"real {name}", marks=pytest.mark.tensorrt) for name in ("tensorrt", "tensorrt-rtx"))])
def world(request) -> Any:
    """Each recorded release on the simulated GPU, and the real ones."""
    kind, _, name = request.param.partition(" ")
    return Real(name) if kind == "real" else Simulated(request.param)


def image_of(target: Target, seed: int = 5) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if target.input_contract == "image":
        return generator.integers(0, 256, (target.batch, target.height, target.width, 3), np.uint8)
    return generator.standard_normal((target.batch, 3, target.height, target.width), dtype=np.float32)


@pytest.mark.parametrize("scope", ["gpu", "end_to_end"])
@pytest.mark.parametrize("output", ["logits", "labels"])
def test_a_session_answers_is_timed_and_closes(world, output, scope):
    target = world.target(output_contract=output, scope=scope, batch=2)
    session: Session = world.open(target)
    assert session.target == target
    assert session.specification.gives_labels == (output == "labels")
    assert session.specification.input == Port("input", "float32", (2, 3, 8, 16))
    x = image_of(target)
    expected = x.argmax(axis=1) if output == "labels" else 2 * x
    found = session.run(x)
    assert np.array_equal(found, expected)
    session.run(np.zeros_like(x))
    timed: Timed = session
    times = timed.sample(6)
    assert len(times) == 6
    assert all(ms > 0 for ms in times)
    assert sample_runs(session) > 1 or scope == "end_to_end"
    assert np.array_equal(found, expected)  # not overwritten
    assert np.array_equal(session.run(x), expected)  # the fixed image of `sample` is not left there
    with pytest.raises(InputError, match=r"the engine reads input float32 2x3x8x16; float64 .* was given"):
        session.run(x.astype(np.float64))
    session.close()
    session.close()
    for call in (lambda: session.run(x), lambda: session.sample(1)):
        with pytest.raises(InputError, match="closed"):
            call()


@pytest.mark.parametrize("release", RELEASES)
def test_an_engine_that_reads_bytes_is_given_bytes(release):
    made = Simulated(release)
    target = made.target(input_contract="image", output_contract="labels", precision="int8")
    session = made.open(target)
    assert session.specification == Specification(Port("input", "uint8", (1, 8, 16, 3)), Port("labels", "uint8", (1, 8, 16)))
    x = image_of(target)
    assert np.array_equal(session.run(x), x.argmax(axis=3))
    assert len(session.sample(2)) == 2
    with pytest.raises(InputError, match="float32 1x8x16x3 was given"):
        session.run(x.astype(np.float32))


@pytest.mark.parametrize("release", RELEASES)
def test_times_are_those_of_the_device(release):
    """2 ms at least between two events; a query counts the copies; throttled samples are taken again."""
    gpu = FakeDevice()
    made = Simulated(release, gpu, ms=0.4)
    session = made.open(made.target())
    assert session.sample(8) == pytest.approx([0.4] * 8, rel=0.01)
    assert session.runs_per_sample * 0.4 >= 2
    query = made.open(made.target(256, 512, scope="end_to_end")).sample(8)
    copies = 2 * 3 * 256 * 512 * 4 / made.world.gpu_bytes
    assert min(query) >= 0.4 + copies
    assert max(query) <= 0.4 + copies + 0.05
    throttled = FakeDevice(throttle_every_ms=300, throttle_ms=60, drift=0.01, outliers=0.02, seed=3)
    held = Simulated(release, throttled, ms=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsteadyWarning)
        session = held.open(held.target())
        samples = sorted(session.sample(60))
    assert samples[30] == pytest.approx(0.4, rel=0.02)
    conditions = dict(session.conditions)
    assert conditions["throttled"] == "power cap"
    assert int(conditions["samples_retried"]) > 0


@pytest.mark.parametrize("release", TENSORRT)
def test_a_graph_is_recorded_on_the_stream_and_said_to_be(release):
    made = Simulated(release)
    session = made.open(made.target())
    assert dict(session.conditions)["cuda_graph"] == "on, recorded from the stream"
    assert made.world.log.count("executable") == 1
    runs = session._context._runs
    session.sample(3)
    assert session._context._runs == runs  # replays enqueue nothing anew
    off = made.open(dataclasses.replace(made.target(), options=(("graph", "off"),)))
    assert dict(off.conditions)["cuda_graph"] == "off"
    assert made.world.log.count("executable") == 1


@pytest.mark.parametrize("release", TENSORRT)
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("no bindings", "cuda-bindings is not installed"),
        ("refuse recording", r"refused while it was recorded.*enqueueV3: refused"),
        ("begin", r"cuStreamBeginCapture failed \(900\)"),
        ("end", "the recording broke off"),
        ("instantiate", r"cuGraphInstantiate failed \(700\)"),
    ],
)
def test_where_no_graph_can_be_had_that_is_said_or_refused(release, fault, reason):
    made = Simulated(release, fault=fault)
    target = made.target(output_contract="labels")
    session = made.open(target)
    x = image_of(target)
    assert np.array_equal(session.run(x), x.argmax(axis=1))  # the stream is out of its recording state
    assert made.world.recording is None
    assert re.search(f"none: .*{reason}", dict(session.conditions)["cuda_graph"])
    assert any("no CUDA graph was used" in warning for warning in session.warnings)
    assert made.world.log.count("graph") == made.world.log.count("free graph")
    with pytest.raises(RequirementError, match=f"option graph is on, and no CUDA graph can be had: .*{reason}"):
        made.open(dataclasses.replace(target, options=(("graph", "on"),)))


def test_tensorrt_rtx_records_by_itself_or_says_that_it_cannot():
    made = Simulated(RTX)
    session = made.open(made.target())
    assert dict(session.conditions)["cuda_graph"] == "on, TensorRT-RTX's own"
    strategies = made.world.library.CudaGraphStrategy
    assert session._context._config.cuda_graph_strategy == strategies.WHOLE_GRAPH_CAPTURE
    assert session._context._config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
    off = made.open(dataclasses.replace(made.target(), options=(("graph", "off"),)))
    assert off._context._config.cuda_graph_strategy == strategies.DISABLED
    cannot = Simulated(RTX, fault="uncapturable")
    assert "cannot be recorded" in dict(cannot.open(cannot.target()).conditions)["cuda_graph"]
    with pytest.raises(RequirementError, match="option graph is on"):
        cannot.open(dataclasses.replace(cannot.target(), options=(("graph", "on"),)))


@pytest.mark.parametrize("release", RELEASES)
def test_a_replay_that_would_give_stale_answers_is_refused(release):
    made = Simulated(release, fault="stale")
    with pytest.raises(VerificationError, match=r"agrees with a normal run in .* stale"):
        made.open(made.target())
    assert (made.world.memory, made.world.retained, made.world.pinned) == ({}, 0, 0)


@pytest.mark.parametrize("release", RELEASES)
def test_a_run_that_is_refused_gives_no_stale_answer(release):
    made = Simulated(release)
    target = dataclasses.replace(made.target(), options=(("graph", "off"),))
    session = made.open(target)
    made.world.fault = "refuse"
    with pytest.raises(RequirementError, match="TensorRT refused to run the engine: enqueueV3: refused; the answer would be a stale one"):
        session.run(image_of(target))
    if release in TENSORRT:
        made.world.fault = ""
        graph = made.open(made.target())
        made.world.fault = "launch"
        with pytest.raises(RequirementError, match="a CUDA graph could not be launched"):
            graph.run(image_of(target))


@pytest.mark.parametrize("release", RELEASES)
def test_it_is_given_back_in_the_right_order(release):
    made = Simulated(release)
    session = made.open(made.target())
    session.sample(2)
    made.world.log.clear()
    session.close()
    expected = ["free IExecutionContext", "free ICudaEngine", "free Runtime", "free buffer", "free buffer", "free stream"]
    shown = [line for line in made.world.log if line not in ("free IRuntimeConfig", "free IRuntimeCache")]
    assert shown == (["free executable", "free graph", *expected] if release in TENSORRT else expected)
    assert (made.world.memory, made.world.retained, made.world.pinned, made.world.stack) == ({}, 0, 0, [])


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("context", RequirementError, "no execution context could be made: createExecutionContext: out of memory"),
        ("shapes", InputError, "the engine's logits have no shape with an input of 1x3x8x16"),
        ("infer", InputError, "the engine's shapes cannot be told .* Shape inference failed"),
        ("address", RequirementError, "TensorRT did not take the address of 'input'"),
        ("memory", RequirementError, "MiB on the GPU cannot be had: the GPU's memory does not suffice"),
        ("refuse", RequirementError, "refused to run the engine"),
    ],
)
def test_what_fails_on_the_way_says_so_and_leaves_nothing(release, fault, error, words):
    made = Simulated(release)
    target = made.target()
    made.world.fault = fault
    with pytest.raises(error, match=words):
        made.open(target)
    assert (made.world.memory, made.world.retained, made.world.pinned, made.world.stack) == ({}, 0, 0, [])


@pytest.mark.parametrize("release", RELEASES)
def test_engines_that_do_not_serve(release):
    made = Simulated(release)
    target = made.target()
    ports = json.loads(made.engine(target))["ports"]
    cases: list[tuple[bytes, type[Exception], str]] = [
        (b"", InputError, "0 bytes"),
        (b"garbage", InputError, "the file is damaged" if release == RTX else "magicTagRead.* the file is no engine"),
        (made.engine(target, version="9.9.9"), IncompatibleError, "another release" if release == RTX else "Version tag does not match"),
        (made.engine(target, reads=(1, 3, 9, 16)), InputError, "does not take an input|the target is batch 1, 8x16"),
        (made.engine(target, ports=ports | {"more": ["INPUT", "FLOAT", [1], "DEVICE"]}), InputError, "2 inputs and 1 outputs"),
        (made.engine(target, ports=ports | {"input": ["INPUT", "BF16", [1, 3, 8, 16], "DEVICE"]}), InputError, "has type BF16; allowed: FLOAT"),
        (made.engine(target, ports=ports | {"input": ["INPUT", "FLOAT", [1, 3, 8, 16], "HOST"]}), InputError, "in the host's memory"),
        (made.engine(target, ports=ports | {"logits": ["OUTPUT", "UINT8", [1, 8, 16], "DEVICE"]}), InputError, "the target's output is 'logits'"),
    ]
    for content, error, words in cases:
        with pytest.raises(error, match=words):
            made.open(target, content=content)
        assert (made.world.memory, made.world.retained, made.world.stack) == ({}, 0, [])


def test_an_engine_of_tensorrt_rtx_says_for_which_gpus_it_is():
    made, other = Simulated(RTX), Simulated(RTX, capability=(12, 0))
    content = made.engine(made.target())
    with pytest.raises(IncompatibleError, match=r"compute capability 12\.0\) cannot run this engine: it was not built for this compute capability"):
        other.open(other.target(), content=content)
    elsewhere = dataclasses.replace(made.target(), device="compute capability 8.9")
    assert made.open(elsewhere, content=content).target == elsewhere
    slow = Simulated(RTX, fault="suboptimal")
    assert any("suboptimal" in warning for warning in slow.open(slow.target()).warnings)


@pytest.mark.parametrize("release", RELEASES)
def test_a_dynamic_engine_is_opened_at_the_targets_size_within_its_profile(release):
    made = Simulated(release)
    target = made.target(24, 40)
    session = made.open(target, content=made.engine(target, reads=(1, 3, -1, -1), least=[8, 8], most=[32, 64]))
    assert session.specification.output == Port("logits", "float32", (1, 3, 24, 40))
    x = image_of(target)
    assert np.array_equal(session.run(x), 2 * x)
    large = made.target(64, 64)
    with pytest.raises(InputError, match=r"does not take an input of 1x3x64x64: setInputShape: .*outside the profile"):
        made.open(large, content=made.engine(large, reads=(1, 3, -1, -1), least=[8, 8], most=[32, 64]))


@pytest.mark.parametrize("release", RELEASES)
def test_another_target_is_refused_before_anything_is_opened(release):
    made = Simulated(release)
    target = made.target()
    for changes, error, words in (
        ({"runtime_version": "8.6.1"}, IncompatibleError, "runtime_version: the target has '8.6.1'"),
        ({"scope": "pipeline"}, InputError, "takes gpu, end_to_end"),
        ({"options": (("graph", "maybe"),)}, InputError, "allowed: auto, on, off"),
        ({"options": (("grph", "on"),)}, InputError, "takes capability, graph"),
    ):
        with pytest.raises(error, match=words):
            made.open(dataclasses.replace(target, **changes))
    if release != RTX:
        with pytest.raises(IncompatibleError, match="device: the target has 'NVIDIA H200', here is 'Simulated GPU'"):
            made.open(dataclasses.replace(target, device="NVIDIA H200"))
        with pytest.raises(IncompatibleError, match=r"capability: the target has '9\.0', here is '8\.9'"):
            made.open(dataclasses.replace(target, options=(("capability", "9.0"),)))
    assert made.world.retained == 0


def test_compiled_kernels_are_kept_and_told_from_what_is_timed(tmp_path):
    path = tmp_path / "model.engine"
    kernels = cache_path(path)
    first = Simulated(RTX)
    session = first.open(first.target(), kernels)
    conditions = dict(session.conditions)
    assert (conditions["kernels"], first.world.compiled) == ("new", 1)
    assert float(conditions["first_run_ms"]) >= fake.JIT_MS
    assert max(session.sample(5)) < 2 * fake.MS
    assert kernels.read_bytes() == b"kernels of 1.7.1.116"
    again = Simulated(RTX)
    session = again.open(again.target(), kernels)
    assert (dict(session.conditions)["kernels"], again.world.compiled) == ("loaded", 0)
    assert float(dict(session.conditions)["first_run_ms"]) < fake.JIT_MS
    kernels.write_bytes(b"kernels of another release")
    third = Simulated(RTX)
    session = third.open(third.target(), kernels)
    assert (dict(session.conditions)["kernels"], third.world.compiled) == ("refused", 1)
    assert kernels.read_bytes() == b"kernels of 1.7.1.116"
    assert dict(third.open(third.target()).conditions)["kernels"] == "not kept"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("release", RELEASES)
def test_queries_are_told_as_trtexec_tells_them(release):
    made = Simulated(release)
    target = made.target(256, 512, scope="end_to_end")
    found = records(made.open(target).queries(5))
    assert set(found[0]) == {
        *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"),
        *("h2dMs", "computeMs", "d2hMs", "latencyMs"),
    }
    copy = 3 * 256 * 512 * 4 / made.world.gpu_bytes
    for record in found:
        assert record["computeMs"] == pytest.approx(fake.MS, rel=0.02)
        assert (record["h2dMs"], record["d2hMs"]) == (pytest.approx(copy, abs=0.01), pytest.approx(copy, abs=0.01))
        assert record["latencyMs"] == pytest.approx(record["h2dMs"] + record["computeMs"] + record["d2hMs"])
    assert all(a["endD2hMs"] <= b["startH2dMs"] for a, b in pairwise(found))


@pytest.mark.parametrize("release", RELEASES)
def test_bench_reports_what_the_gpu_did(release):
    made = Simulated(release)
    timing = bench(made.open(made.target()), scope="gpu", min_seconds=0, min_runs=20, warmup_seconds=0)
    assert timing.median_ms == pytest.approx(fake.MS, rel=0.01)
    assert {"cuda_graph", "sm_clock_mhz", "temperature_c", "throttled", "first_run_ms", "open_ms", "compute_capability"} <= set(
        dict(timing.conditions)
    )


def test_two_sessions_share_the_primary_context():
    made = Simulated(TENSORRT[1])
    first, second = made.open(made.target()), made.open(made.target())
    assert made.world.retained == 2
    x = image_of(first.target)
    first.close()
    assert np.array_equal(second.run(x), 2 * x)
    second.close()
    assert made.world.retained == 0


@pytest.mark.parametrize(("fault", "words"), [("no driver", "no CUDA-capable device"), ("no device", "the driver sees none")])
def test_a_machine_without_a_gpu(fault, words):
    with pytest.raises(RequirementError, match=words):
        Simulated(TENSORRT[0], fault=fault).device()


def test_an_engine_is_opened_only_by_its_manifest():
    target = Simulated(TENSORRT[0]).target()
    with pytest.raises(InputError, match="was given without its sha256; it holds code for the GPU"):
        open_session(b"engine", target)
    with pytest.raises(IncompatibleError, match="it is not the one that was written"):
        open_session(b"engine", target, sha256="0" * 64)
    with pytest.raises(InputError, match="0 bytes"):
        open_session(b"", target, sha256=hashlib.sha256(b"").hexdigest())


def test_without_pycuda_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    made = Simulated(TENSORRT[1])
    monkeypatch.setattr("segnas.runtime.tensorrt_session.open_api", lambda runtime: made.world.api)
    content, target = b"engine", made.target()
    with pytest.raises(RequirementError, match=r"by way of pycuda, which cannot be imported here .*pip install segnas\[tensorrt\]") as caught:
        open_tensorrt(content, target, hashlib.sha256(content).hexdigest())
    assert caught.value.exit_code == 3


@pytest.mark.slow
@pytest.mark.parametrize("release", [TENSORRT[-1], RTX])
def test_a_table_of_tensorrt_is_true_on_a_gpu_that_drifts(tmp_path, release):
    """Engines that cost what their networks do, on a clock that drifts by 10 %, is held down at times and stalls once in a thousand launches, of
    which a sample has about forty: the network within 1 %."""
    made = Simulated(release, FakeDevice(drift=0.10, noise=0.005, outliers=0.001, throttle_every_ms=1700))
    target = made.target(256, 512, output_contract="labels")

    def prepare(architecture: Architecture, wanted: Target) -> Timed:
        reads = (1, architecture.nodes[0].channels, 8, 16)  # the simulated GPU computes what is asked: little, and only the clock says otherwise
        asked = dataclasses.replace(wanted, height=8, width=16)
        labels = wanted.output_contract == "labels"
        return made.open(asked, content=fake.plan(made.world, reads, labels=labels, ms=gpu.network_ms(architecture, wanted)))

    network = row("conv")
    operations, told = tuple(dict.fromkeys(priced_operations(network, target))), {"journal": tmp_path / "j", "provenance": {}}
    table = profile("tiny", operations, target, prepare=prepare, graph_sha256=lambda o: o.digest, repeats=0, rounds=10, **told)
    unit = (reference_ms(table) or 0) / gpu.network_ms(sentinel_architecture(), sentinel_target(target))
    assert table.estimate(network).total_ms + gpu.CALL_MS * unit == pytest.approx(gpu.network_ms(network, target) * unit, rel=0.01)
    assert made.world.retained == 0


def row(*ops: str) -> Architecture:
    """A stem, operations in a row, a head."""
    nodes = [Node(kind("image"), (), 3), Node(kind("stem", width=32), (0,), 64, 4)]
    nodes += [Node(kind(op), (index,), 64) for index, op in enumerate(ops, 1)]
    nodes.append(Node(kind("classifier"), (len(nodes) - 1,), 19))
    return Architecture((*nodes, Node(kind("resize"), (len(nodes) - 1,), 19, 1, 4)))

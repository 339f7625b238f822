"""ONNX Runtime's CUDA provider, simulated by a module like onnxruntime that computes on the CPU and calls it a GPU; and, marked gpu, the real one."""

import dataclasses
import json
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from segnas.arch import Architecture, Node
from segnas.errors import IncompatibleError, InputError, RequirementError, VerificationError
from segnas.export.graph import graph_sha256, onnx_from_network
from segnas.kinds import kind
from segnas.latency import Timed, profile_command, sample_runs
from segnas.network import initialised
from segnas.runtime.bench import bench
from segnas.runtime.gpu_samples import UnsteadyWarning
from segnas.runtime.onnxruntime_cuda_session import OnnxRuntimeCudaSession, open_onnxruntime_cuda
from segnas.runtime.onnxruntime_cuda_target import CudaFacts, cuda_facts, onnxruntime_cuda_target
from segnas.runtime.onnxruntime_tensorrt_session import TENSORRT, onnxruntime_tensorrt_target, open_onnxruntime_tensorrt
from segnas.runtime.session import Session, open_session
from segnas.target import Target

CUDA, TRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
FACTS = CudaFacts("Simulated GPU", "GPU-0123")
pytestmark = pytest.mark.filterwarnings("ignore::segnas.runtime.gpu_samples.UnsteadyWarning")


class FakeSession:
    """A session of the real runtime that calls itself one on the CUDA provider; `world.fault` is what goes wrong."""

    def __init__(self, world: "FakeOrt", content: bytes, options: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int) -> None:
        assert enable_fallback == 0
        (self.provider, self.asked), self.world = providers[0], world
        self.profiled = options.enable_profiling
        self.real = ort.InferenceSession(content, options, providers=[CPU])
        self.first: np.ndarray | None = None
        world.opened.append(self)

    def get_providers(self) -> list[str]:
        return [CPU] if self.world.fault == "library" else [self.provider, CPU]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        changed = {"tf32": {"use_tf32": "1"}, "fp16": {"trt_fp16_enable": "1"}}.get(self.world.fault, {})
        held = {name: {"True": "1", "False": "0"}.get(value, value) for name, value in (self.asked | changed).items()}  # as the provider tells them
        return {self.provider: held, CPU: {}}

    def get_inputs(self) -> Any:
        return self.real.get_inputs()

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def run(self, names: Any, feeds: Any) -> Any:
        return self.real.run(names, feeds)

    def io_binding(self) -> Any:
        self.real_binding = self.real.io_binding()
        return types.SimpleNamespace(
            bind_ortvalue_input=lambda name, value: self.real_binding.bind_ortvalue_input(name, value.real),
            bind_ortvalue_output=lambda name, value: self._bind_output(name, value),
            synchronize_outputs=lambda: self.world.synchronised.append(self),
        )

    def _bind_output(self, name: str, value: Any) -> None:
        self.output = value
        self.real_binding.bind_ortvalue_output(name, value.real)

    def run_with_iobinding(self, binding: Any) -> None:
        assert not self.profiled
        self.real.run_with_iobinding(self.real_binding)
        graph = self.asked.get("enable_cuda_graph", self.asked.get("trt_cuda_graph_enable"))
        if self.world.fault == "stale" and graph in ("1", "True"):  # what was captured does not read the image again
            self.first = self.output.numpy() if self.first is None else self.first
            self.output.real.update_inplace(self.first)

    def end_profiling(self) -> str:
        path = Path(self.real.end_profiling())
        events = json.loads(path.read_text(encoding="utf-8"))
        for event in events:
            if event["cat"] == "Node" and "provider" in event["args"]:
                event["args"]["provider"] = CPU if event["args"]["op_name"] == self.world.on_cpu else self.provider
        path.write_text(json.dumps(events), encoding="utf-8")
        return str(path)


class FakeOrt:
    """What a session needs of the module onnxruntime, of a build with the CUDA provider."""

    __version__ = "1.31.1"
    cuda_version = "13.0"

    def __init__(self, *, fault: str = "", on_cpu: str = "", providers: tuple[str, ...] = ("TensorrtExecutionProvider", CUDA, CPU)) -> None:
        self.fault, self.on_cpu, self.providers = fault, on_cpu, providers
        self.opened: list[FakeSession] = []
        self.synchronised: list[FakeSession] = []
        self.values: list[tuple[str, int]] = []
        self.OrtValue = types.SimpleNamespace(ortvalue_from_numpy=self._from_numpy, ortvalue_from_shape_and_type=self._from_shape)

    def get_available_providers(self) -> list[str]:
        return list(self.providers)

    def InferenceSession(self, content: bytes, options: Any, *, providers: Any, enable_fallback: int) -> FakeSession:
        return FakeSession(self, content, options, providers, enable_fallback)

    def _value(self, real: Any, device: str, index: int) -> Any:
        self.values.append((device, index))
        return types.SimpleNamespace(real=real, update_inplace=real.update_inplace, numpy=lambda: real.numpy().copy())

    def _from_numpy(self, array: np.ndarray, device: str, index: int) -> Any:
        return self._value(ort.OrtValue.ortvalue_from_numpy(array.copy()), device, index)

    def _from_shape(self, shape: list[int], kind_: Any, device: str, index: int) -> Any:
        return self._value(ort.OrtValue.ortvalue_from_shape_and_type(shape, kind_), device, index)


@pytest.fixture(scope="module")
def network() -> Any:
    """A small network of 9 classes with two scales: at 32x64 its argmax is a chain of comparisons on the CPU."""
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), 16, 4),
        Node(kind("separable"), (1,), 16),
        Node(kind("add"), (2, 1), 16),
        Node(kind("classifier"), (3,), 9),
        Node(kind("resize"), (4,), 9, 1, 4),
    )
    return initialised(Architecture(nodes), 0).eval()


def target_of(world: FakeOrt, **changes: Any) -> Target:
    return onnxruntime_cuda_target(**({"height": 32, "width": 64} | changes), runtime=world, facts=FACTS)


def opened(world: FakeOrt, network: Any, target: Target | None = None) -> OnnxRuntimeCudaSession:
    target = target or target_of(world)
    return OnnxRuntimeCudaSession(onnx_from_network(network, target), target, runtime=world, facts=FACTS)


def image(target: Target, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((target.batch, 3, target.height, target.width), dtype=np.float32)


@pytest.mark.parametrize("scope", ["gpu", "end_to_end"])
@pytest.mark.parametrize("output", ["labels", "logits"])
def test_a_session_answers_as_the_network_does(network, output, scope):
    world = FakeOrt()
    target = target_of(world, output_contract=output, scope=scope)
    session: Session = opened(world, network, target)
    assert session.specification.gives_labels == (output == "labels")
    x = image(target)
    with torch.no_grad():
        logits = network(torch.from_numpy(x)).numpy()
    found = session.run(x)
    if output == "labels":
        assert np.array_equal(found, logits.argmax(axis=1))
    else:
        np.testing.assert_allclose(found, logits, atol=1e-5)
    timed: Timed = session
    times = timed.sample(4)
    assert len(times) == 4
    assert all(0 < ms < 1000 for ms in times)
    batch = sample_runs(session)
    assert batch == 1 or (scope == "gpu" and min(times) * batch >= 2)
    assert np.array_equal(session.run(x), found)  # the fixed image of `sample` is not left there
    session.close()
    for call in (lambda: session.run(x), lambda: session.sample(1)):
        with pytest.raises(InputError, match="closed"):
            call()


def test_image_and_answer_are_bound_on_the_device_and_each_run_is_waited_for(network):
    world = FakeOrt()
    session = opened(world, network)
    assert world.values == [("cuda", 0), ("cuda", 0)]
    before = len(world.synchronised)
    session.run(image(session.target))
    assert len(world.synchronised) == before + 1


def test_the_profiled_session_comes_first_and_without_a_graph(network):
    world = FakeOrt()
    session = opened(world, network)
    profiled, timed = world.opened
    assert (profiled.profiled, profiled.asked["enable_cuda_graph"]) == (True, "0")
    assert (timed.profiled, timed.asked["enable_cuda_graph"]) == (False, "1")
    assert timed.asked == {"cudnn_conv_algo_search": "EXHAUSTIVE", "device_id": "0", "enable_cuda_graph": "1", "use_tf32": "0"}
    assert {node.provider for node in session.placement.nodes} == {CUDA}
    assert dict(session.conditions)["nodes_on_cpu"] == "none"
    assert int(dict(session.conditions)["nodes_on_provider"]) >= 5
    off = opened(world, network, dataclasses.replace(session.target, options=(("graph", "off"), ("provider", CUDA), ("tf32", "on"))))
    assert world.opened[-1].asked["enable_cuda_graph"] == "0"
    assert world.opened[-1].asked["use_tf32"] == "1"
    off.close()


def test_a_node_that_fell_to_the_cpu_is_an_error_that_names_it(network):
    world = FakeOrt(on_cpu="ArgMax")
    with pytest.raises(VerificationError, match=r"argmax/0\.ArgMax.* \(ArgMax\) on CPUExecutionProvider") as caught:
        opened(world, network)
    assert caught.value.exit_code == 5
    assert len(world.opened) == 1  # nothing was opened for timing


def test_a_build_without_the_provider_is_refused_by_name(network):
    content, target = b"never read", target_of(FakeOrt())
    world = FakeOrt(providers=("AzureExecutionProvider", CPU))
    for call in (lambda: OnnxRuntimeCudaSession(content, target, runtime=world, facts=FACTS), lambda: target_of(world)):
        with pytest.raises(RequirementError, match=r"onnxruntime 1\.31\.1 has AzureExecutionProvider, CPUExecutionProvider: .*onnxruntime-gpu"):
            call()
    assert not world.opened


def test_a_provider_whose_libraries_do_not_load_is_no_silent_fall(network):
    with pytest.raises(RequirementError, match="onnxruntime fell back to CPUExecutionProvider"):
        opened(FakeOrt(fault="library"), network)


def test_an_option_that_was_not_taken_is_refused(network):
    with pytest.raises(RequirementError, match="with use_tf32=1 instead of what was asked for"):
        opened(FakeOrt(fault="tf32"), network)


def test_a_graph_that_does_not_read_the_image_again_is_refused(network):
    with pytest.raises(VerificationError, match=r"the timed session \(CUDA graph on\) agrees with the profiled one in"):
        opened(FakeOrt(fault="stale"), network)


def test_the_target_says_all_that_the_time_depends_on():
    target = target_of(FakeOrt())
    assert (target.device, target.runtime, target.runtime_version, target.precision, target.scope) == (
        "Simulated GPU",
        "onnxruntime",
        "1.31.1",
        "fp32",
        "gpu",
    )
    assert target.backend == "onnxruntime-cuda"
    assert dict(target.options) == {
        "cuda": "13.0",
        "graph": "on",
        "optimisation": "all",
        "provider": CUDA,
        "search": "exhaustive",
        "tf32": "off",
    }
    assert profile_command("cas", target) == "segnas profile cas --size 32x64 --runtime onnxruntime-cuda --precision fp32"


def test_another_target_is_refused(network):
    world = FakeOrt()
    target = target_of(world)
    for changes, error, words in (
        ({"device": "NVIDIA H200"}, IncompatibleError, "device: the target has 'NVIDIA H200', here is 'Simulated GPU'"),
        ({"runtime_version": "1.22.0"}, IncompatibleError, "runtime_version"),
        ({"options": (("cuda", "12.8"), ("provider", CUDA))}, IncompatibleError, "cuda: the target has '12.8', here is '13.0'"),
        ({"options": (("provider", CUDA), ("spinning", "off"))}, InputError, "onnxruntime-cuda takes cuda, graph, optimisation"),
        ({"options": (("provider", CUDA), ("search", "lucky"))}, InputError, "allowed: exhaustive, heuristic, default"),
        ({"options": (("provider", CPU),)}, InputError, "allowed: CUDAExecutionProvider"),
        ({"scope": "pipeline"}, InputError, "takes gpu, end_to_end"),
    ):
        with pytest.raises(error, match=words):
            OnnxRuntimeCudaSession(b"never read", dataclasses.replace(target, **changes), runtime=world, facts=FACTS)
    assert target_of(world, precision="fp16").precision == "fp16"
    with pytest.raises(InputError, match="0 bytes"):
        OnnxRuntimeCudaSession(b"", target, runtime=world, facts=FACTS)
    with pytest.raises(InputError, match="the target is batch 1, 48x64"):
        OnnxRuntimeCudaSession(onnx_from_network(network, target), dataclasses.replace(target, height=48), runtime=world, facts=FACTS)


def test_the_argmax_is_one_node_on_a_gpu(network):
    """The chain of comparisons answers the caches of a CPU."""
    world = FakeOrt()
    target = target_of(world)
    on_cpu = dataclasses.replace(target, options=(("provider", CPU),), scope="end_to_end")
    assert b"argmax/0.ArgMax" in onnx_from_network(network, target)
    assert b"argmax/0.ArgMax" not in onnx_from_network(network, on_cpu)
    argmax = network.architecture.operations(32, 64)[-1]
    assert graph_sha256(argmax, runtime=target.backend) == graph_sha256(argmax, runtime=on_cpu.backend)  # a resize: the same everywhere


def test_bench_times_the_scope_that_the_session_has(network):
    session = opened(FakeOrt(), network)
    timing = bench(session, scope="gpu", min_seconds=0, min_runs=5, warmup_seconds=0)
    assert timing.scope == "gpu"
    conditions = dict(timing.conditions)
    assert {"nodes_on_provider", "replays_per_sample", "throttled", "search"} <= set(conditions)
    assert timing.throughput_qps > 0.5 * sample_runs(session) * timing.runs / timing.duration_s
    assert any("clocks cannot be read" in warning for warning in timing.warnings)
    with pytest.raises(InputError, match="timed 'gpu'"):
        bench(session, scope="end_to_end")


def test_a_gpu_is_found_by_its_driver(monkeypatch, tmp_path):
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!{sys.executable}\nimport sys\nassert sys.argv[-2:] == ["-i", "1"], sys.argv\nprint("NVIDIA RTX, 24GB, GPU-77")\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert cuda_facts() == CudaFacts("NVIDIA RTX, 24GB", "GPU-77")
    program.write_text(f"#!{sys.executable}\nraise SystemExit(9)\n")
    with pytest.raises(RequirementError, match="nvidia-smi finds no GPU '1'"):
        cuda_facts()
    program.unlink()
    with pytest.raises(RequirementError, match="nvidia-smi is not here"):
        cuda_facts()


def tensorrt_target(world: FakeOrt, **changes: Any) -> Target:
    return onnxruntime_cuda_target(**({"height": 32, "width": 64} | changes), provider=TENSORRT, runtime=world, facts=FACTS)


def by_tensorrt(world: FakeOrt, network: Any, target: Target | None = None) -> OnnxRuntimeCudaSession:
    target = target or tensorrt_target(world)
    return open_onnxruntime_tensorrt(onnx_from_network(network, target), target, runtime=world, facts=FACTS)


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_the_tensorrt_provider_answers_and_is_proven(network, output):
    world = FakeOrt()
    target = tensorrt_target(world, output_contract=output)
    assert target.backend == "onnxruntime-tensorrt"
    session: Session = by_tensorrt(world, network, target)
    x = image(target)
    with torch.no_grad():
        logits = network(torch.from_numpy(x)).numpy()
    assert np.allclose(session.run(x), logits.argmax(axis=1) if output == "labels" else logits, atol=1e-5)
    assert len(session.sample(3)) == 3
    assert {node.provider for node in session.placement.nodes} == {TRT}  # type: ignore[attr-defined]
    profiled, timed = world.opened
    assert (profiled.asked["trt_cuda_graph_enable"], timed.asked["trt_cuda_graph_enable"]) == ("False", "True")
    assert {
        name: timed.asked[name] for name in ("trt_fp16_enable", "trt_int8_enable", "trt_engine_cache_enable", "trt_builder_optimization_level")
    } == {
        "trt_fp16_enable": "False",
        "trt_int8_enable": "False",
        "trt_engine_cache_enable": "False",
        "trt_builder_optimization_level": "3",
    }
    assert Path(timed.asked["trt_timing_cache_path"]).is_dir()
    session.close()


def test_the_tensorrt_provider_is_told_the_precision(network):
    for precision, flag in (("fp16", "trt_fp16_enable"), ("int8", "trt_int8_enable")):
        world = FakeOrt()
        target = tensorrt_target(world, precision=precision)
        content = onnx_from_network(network, dataclasses.replace(target, precision="fp32"))
        open_onnxruntime_tensorrt(content, target, runtime=world, facts=FACTS).close()
        assert world.opened[1].asked[flag] == "True"


def test_the_tensorrt_provider_is_had_or_refused(network):
    with pytest.raises(RequirementError, match=r"'TensorrtExecutionProvider' was asked for; this build of onnxruntime 1\.31\.1 has CUDA"):
        tensorrt_target(FakeOrt(providers=(CUDA, CPU)))
    with pytest.raises(RequirementError, match=r"fell back to CPUExecutionProvider: .*libnvinfer\.so\.10"):
        by_tensorrt(FakeOrt(fault="library"), network)
    with pytest.raises(VerificationError, match=r"\(ArgMax\) on CPUExecutionProvider"):
        by_tensorrt(FakeOrt(on_cpu="ArgMax"), network)
    with pytest.raises(RequirementError, match="with trt_fp16_enable=1 instead of what was asked for"):
        by_tensorrt(FakeOrt(fault="fp16"), network)
    with pytest.raises(VerificationError, match="agrees with the profiled one in"):
        by_tensorrt(FakeOrt(fault="stale"), network)
    with pytest.raises(InputError, match="onnxruntime-tensorrt takes cuda, graph, level"):
        by_tensorrt(FakeOrt(), network, dataclasses.replace(tensorrt_target(FakeOrt()), options=(("provider", TRT), ("search", "heuristic"))))


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_gpu_answers_as_torch_does_by_the_tensorrt_provider(network):
    try:
        target = onnxruntime_tensorrt_target(32, 64)
    except RequirementError as error:
        pytest.skip(str(error))
    x = image(target)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy().argmax(axis=1)
    session = open_session(onnx_from_network(network, target), target)
    assert (session.run(x) == expected).mean() > 0.999
    assert len(session.sample(20)) == 20
    session.close()


@pytest.fixture
def real_target() -> Callable[..., Target]:
    """The target of the CUDA provider here; skipped, with the reason, where there is none."""
    try:
        onnxruntime_cuda_target(64, 128)
    except RequirementError as error:
        pytest.skip(str(error))
    return onnxruntime_cuda_target


@pytest.mark.gpu
@pytest.mark.parametrize("graph", ["on", "off"])
@pytest.mark.parametrize("output", ["labels", "logits"])
def test_gpu_answers_as_torch_does(real_target, every_op, output, graph):
    made, target = initialised(every_op, 0).eval(), real_target(256, 512, output_contract=output)
    target = dataclasses.replace(target, options=tuple(sorted((dict(target.options) | {"graph": graph}).items())))
    x = image(target)
    with torch.no_grad():
        logits = made(torch.from_numpy(x)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsteadyWarning)
        session = open_session(onnx_from_network(made, target), target)
        found = session.run(x)
        assert len(session.sample(20)) == 20
    if output == "labels":
        assert (found == logits.argmax(axis=1)).mean() > 0.999
    else:
        assert np.abs(found - logits).max() < 5e-4 * np.abs(logits).max()
    assert np.array_equal(session.run(x), found)
    session.close()


@pytest.mark.gpu
def test_gpu_refuses_an_engine_of_another_device(real_target, network):
    target = real_target(32, 64)
    with pytest.raises(IncompatibleError, match="device"):
        open_onnxruntime_cuda(onnx_from_network(network, target), dataclasses.replace(target, device="another"))

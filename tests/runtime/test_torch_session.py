"""The torch runtime on a simulated GPU, whose truth is known; and, under the marker gpu, on the real one."""

import importlib.util
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segnas.arch import Architecture, Node
from segnas.errors import IncompatibleError, InputError, RequirementError, VerificationError
from segnas.kinds import kind
from segnas.latency import LatencyTable, Prepare, Timed, priced_operations, sample_runs
from segnas.latency_tables import profile as profile_module
from segnas.latency_tables.compose import reference_ms
from segnas.latency_tables.measure import measure_all
from segnas.latency_tables.profile import profile
from segnas.latency_tables.sentinel import Interleaver, sentinel_architecture, sentinel_target
from segnas.latency_tables.slope import LEAST_ROUNDS
from segnas.network import initialised
from segnas.report import Port
from segnas.runtime.cuda_device import CudaDevice
from segnas.runtime.session import Session, Specification
from segnas.runtime.torch_session import UnsteadyWarning, folded, open_torch, torch_target
from segnas.target import Target
from segnas.timing import percentile

_spec = importlib.util.spec_from_file_location("fake_device", Path(__file__).with_name("fake_device.py"))
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)  # pytest's import mode puts no folder of tests on the path
_spec.loader.exec_module(fake)
FakeDevice = fake.FakeDevice


def small(width: int = 16, seed: int = 0) -> nn.Module:
    """3 channels to 5 classes at the same size, with normalisations that do something."""
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)),
        nn.Conv2d(width, 5, 1),
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in [*network.parameters(), *network.buffers()]:
        if parameter.is_floating_point():
            parameter.data.copy_(0.5 + torch.rand(parameter.shape, generator=generator) - (parameter.dim() > 1) * 0.9)
    return network


def image(target: Target, channels: int = 3, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((target.batch, channels, target.height, target.width), dtype=np.float32)


def priced(device: Any, ms: float, target: Target, classes: int = 4) -> nn.Module:
    return fake.Priced(device, ms, (target.batch, classes, target.height, target.width))


def target_of(device: Any, **changes: Any) -> Target:
    return torch_target(**({"height": 8, "width": 16, "precision": "fp32", "output_contract": "logits"} | changes), device=device)


def test_a_session_answers_as_the_module_does():
    device = FakeDevice()
    network, target = small().eval(), target_of(device)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    session: Session = open_torch(network, 3, target, device)
    assert session.target == target
    assert session.specification == Specification(Port("input", "float32", (1, 3, 8, 16)), Port("logits", "float32", (1, 5, 8, 16)))
    x = image(target)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    found = session.run(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    session.run(np.zeros_like(x))
    timed: Timed = session
    assert len(timed.sample(5)) == 5
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)  # not overwritten
    np.testing.assert_array_equal(session.run(x), found)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert device.open_graphs == 1
    timed.close()
    timed.close()
    assert device.open_graphs == 0
    for call in (lambda: session.run(x), lambda: session.sample(1)):
        with pytest.raises(InputError, match="closed"):
            call()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labels_are_part_of_what_is_captured(precision):
    device = FakeDevice()
    network, target = small().eval(), target_of(device, precision=precision, output_contract="labels", batch=2)
    session = open_torch(network, 3, target, device)
    assert session.specification.output == Port("labels", "uint8", (2, 8, 16))
    x = image(target)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).argmax(dim=1).numpy()
    found = session.run(x)
    assert found.dtype == np.uint8
    assert (found == expected).mean() > (0.999 if precision == "fp32" else 0.97)
    wrong = image(replace(target, height=9))
    with pytest.raises(InputError, match=r"the engine reads input float32 2x3x8x16; .* was given"):
        session.run(wrong)


def test_half_precision_gives_half_logits_and_any_number_of_input_channels():
    device = FakeDevice()
    target = target_of(device, precision="fp16")
    network = nn.Conv2d(16, 4, 1).eval()
    session = open_torch(network, 16, target, device)
    assert session.specification.input.shape == (1, 16, 8, 16)
    assert session.specification.output.dtype == "float16"
    x = image(target, 16)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(x), expected, atol=0.02)
    assert network.weight.dtype == torch.float32


def test_every_operation_opens(every_op):
    device = FakeDevice()
    network = initialised(every_op, 0).eval()
    target = target_of(device, height=64, width=64)
    session = open_torch(network, 3, target, device)
    x = image(target)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(x), expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


def test_folding_leaves_the_answers_as_they_are():
    network, x = small(), torch.from_numpy(image(Target("d", "torch", "1", "fp32", 8, 16)))
    made = folded(network)
    assert not [part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len([part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]) == 2
    assert network.training
    with torch.no_grad():
        torch.testing.assert_close(made(x), network.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fault", ["stale", "deaf"])
@pytest.mark.parametrize("output", ["labels", "logits"])
def test_a_graph_that_answers_wrongly_is_refused(fault, output):
    device = FakeDevice(fault=fault)
    with pytest.raises(VerificationError, match="first replay of the CUDA graph agrees with a normal run in"):
        open_torch(small(), 3, target_of(device, output_contract=output), device)
    assert device.open_graphs == 0


def test_what_cannot_be_captured_is_told():
    class Broken(FakeDevice):
        def capture(self, function: Callable[[], torch.Tensor]) -> Any:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nlong story")

    class Full(FakeDevice):
        def capture(self, function: Callable[[], torch.Tensor]) -> Any:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nlong story")

    with pytest.raises(InputError, match=r"captured as a CUDA graph: CUDA error: operation not permitted .*capturing; it must"):
        open_torch(small(), 3, target_of(FakeDevice()), Broken())
    with pytest.raises(RequirementError, match=r"memory does not suffice: CUDA out of memory\. Tried to allocate 2 GiB$"):
        open_torch(small(), 3, target_of(FakeDevice()), Full())


def test_networks_of_the_wrong_shape_are_refused():
    device = FakeDevice()
    for network, options in ((nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()), {}), (nn.Conv2d(3, 300, 1), {"output_contract": "labels"})):
        with pytest.raises(InputError, match=r"the network gives .* for input float32 1x3x8x16; \(N, classes, H, W\) is needed"):
            open_torch(network, 3, target_of(device, **options), device)


def test_the_target_says_all_that_the_time_depends_on():
    target = torch_target(512, 1024, device=FakeDevice())
    assert (target.device, target.runtime, target.runtime_version, target.precision) == ("Simulated GPU", "torch", "2.11.0+cu128", "fp16")
    assert (target.height, target.width, target.batch, target.scope, target.output_contract) == (512, 1024, 1, "gpu", "labels")
    assert dict(target.options) == {
        "batchnorm": "folded",
        "benchmark": "on",
        "cuda": "12.8",
        "cudnn": "9.10.2",
        "graph": "on",
        "layout": "channels_last",
        "tf32": "off",
    }
    for changes in ({"precision": "int8"}, {"scope": "pipeline"}):
        with pytest.raises(InputError, match="a session of torch takes"):
            torch_target(512, 1024, **changes, device=FakeDevice())


def test_another_target_is_refused():
    device = FakeDevice()
    target = target_of(device)
    options = dict(target.options)
    for changes, error, words in (
        ({"device": "NVIDIA H200"}, IncompatibleError, "device: the target has 'NVIDIA H200', here is 'Simulated GPU'"),
        ({"runtime_version": "2.12.0"}, IncompatibleError, "runtime_version"),
        ({"options": tuple(sorted((options | {"cudnn": "9.1.0"}).items()))}, IncompatibleError, "cudnn"),
        ({"options": (("layuot", "channels_last"),)}, InputError, "torch takes batchnorm, benchmark, cuda, cudnn, graph, layout, tf32"),
        ({"options": (("tf32", "maybe"),)}, InputError, "allowed: off, on"),
        ({"runtime": "onnxruntime"}, InputError, "a session of torch takes torch"),
        ({"input_contract": "image"}, InputError, "input_contract was given 'image'"),
    ):
        with pytest.raises(error, match=words):
            open_torch(small(), 3, replace(target, **changes), device)
    open_torch(small(), 3, replace(target, options=()), device).close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_gpu_it_says_what_to_run():
    for call in (lambda: torch_target(64, 128), CudaDevice, lambda: open_torch(small(), 3, target_of(FakeDevice()))):
        with pytest.raises(RequirementError, match="segnas doctor"):
            call()


@pytest.mark.parametrize("ms", [0.006, 0.3, 7.0])
def test_a_sample_lasts_two_milliseconds(ms):
    device = FakeDevice()
    target = target_of(device)
    session = open_torch(priced(device, ms, target), 3, target, device)
    session.sample(1)
    replays = device.replays
    times = session.sample(10)
    assert times == pytest.approx([ms] * 10, rel=1e-3)
    found = dict(session.conditions)
    batch = int(found.pop("replays_per_sample"))
    assert 2.0 <= batch * ms <= max(3.0, ms)
    assert device.replays - replays == 10 * (batch + 1)
    assert not session.warnings
    assert found == {
        "memory_clock_mhz": "3201 (3201 to 3201)",
        "samples": "11",
        "samples_retried": "0",
        "samples_unsteady": "0",
        "sm_clock_mhz": "1980 (1980 to 1980)",
        "temperature_c": "55",
        "throttled": "no",
    }


def test_a_cold_device_is_warmed_up():
    device = FakeDevice()
    target = target_of(device)
    session = open_torch(priced(device, 0.5, target), 3, target, device)
    before = device.now_ms
    session.sample(1)
    assert 200 < device.now_ms - before < 250
    before = device.now_ms
    session.sample(1)
    assert device.now_ms - before < 4


def test_end_to_end_counts_the_copies():
    device = FakeDevice()
    target = target_of(device, height=64, width=128, scope="end_to_end", output_contract="labels")
    session = open_torch(priced(device, 0.3, target), 3, target, device)
    copies = (3 * 64 * 128 * 4 + 64 * 128) / fake.BYTES_PER_MS
    replays = device.replays
    times = session.sample(150)  # more than one block
    assert len(times) == 150
    assert times == pytest.approx([0.3 + copies + fake.ENQUEUE_MS] * 150, rel=0.02)
    assert device.replays > replays + 150
    assert "replays_per_sample" not in dict(session.conditions)


def test_samples_under_throttling_are_taken_again():
    device = FakeDevice(throttle_every_ms=400, throttle_ms=12)
    target = target_of(device)
    session = open_torch(priced(device, 0.5, target), 3, target, device)
    times = [ms for _ in range(40) for ms in session.sample(10)]
    assert len(times) == 400
    assert times == pytest.approx([0.5] * 400, rel=0.01)
    found = dict(session.conditions)
    assert int(found["samples_retried"]) > 0
    assert (found["samples_unsteady"], found["throttled"]) == ("0", "power cap")
    assert not session.warnings


def test_a_clock_off_the_median_counts_as_little():
    class Wandering(FakeDevice):
        """One in seven samples runs at a clock 5 % lower, with no reason given."""

        def speed(self, when_ms: float) -> float:
            return 0.95 if self.shots // 2 % 7 == 0 else 1.0  # each sample is two shots: a replay that does not count, and those that do

    device = Wandering()
    target = target_of(device)
    session = open_torch(priced(device, 0.5, target), 3, target, device)
    assert session.sample(40) == pytest.approx([0.5] * 40, rel=1e-3)
    assert int(dict(session.conditions)["samples_retried"]) >= 5


def test_what_stays_unsteady_is_kept_in_bounds_and_told():
    device = FakeDevice(throttle_every_ms=1e9, throttle_ms=1e9 - 1)  # for good
    target = target_of(device)
    session = open_torch(priced(device, 0.5, target), 3, target, device)
    before = device.now_ms
    with pytest.warns(UnsteadyWarning, match="or was held down"):
        session.sample(1)
    assert 700 < device.now_ms - before < 1000  # 200 to warm up, 500 of patience
    before = device.now_ms
    times = session.sample(100)  # told once a session
    assert times == pytest.approx([0.5 / 0.7] * 100, rel=0.01)
    assert device.now_ms - before < 100 * 3 * 4
    assert "held down" in session.warnings[0]
    found = dict(session.conditions)
    assert (found["samples_unsteady"], found["throttled"]) == ("101", "power cap")


def test_a_slow_drift_is_no_reason_to_wait_but_is_told():
    device = FakeDevice(drift=0.10)
    target = target_of(device)
    session = open_torch(priced(device, 0.5, target), 3, target, device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(40):
            session.sample(10)
            device.now_ms += 100
    assert ["in units of a sentinel only" in str(warning.message) for warning in told] == [True]
    found = dict(session.conditions)
    assert found["samples_unsteady"] == "0"
    assert int(found["samples_retried"]) < 0.1 * int(found["samples"])


def test_a_device_that_hides_its_clocks_is_told():
    device = FakeDevice(has_clocks=False)
    target = target_of(device)
    session = open_torch(priced(device, 0.5, target), 3, target, device)
    with pytest.warns(UnsteadyWarning, match="clocks cannot be read"):
        assert session.sample(3) == pytest.approx([0.5] * 3, rel=1e-3)
    assert dict(session.conditions)["throttled"] == "unknown"


def test_a_host_that_sets_the_pace_is_told():
    device = FakeDevice(enqueue_ms=0.02)
    target = target_of(device)
    session = open_torch(priced(device, 0.005, target), 3, target, device)
    with pytest.warns(UnsteadyWarning, match="sets the pace"):
        session.sample(3)


def cell(*ops: str, width: int = 64) -> Architecture:
    """A network of the kind that a table prices: stem, blocks with a junction each, two scales, head."""
    nodes = [Node(kind("image"), (), 3), Node(kind("stem", width=32), (0,), width, 4)]
    for op in ops:
        nodes.append(Node(kind(op), (len(nodes) - 1,), width))
    nodes.append(Node(kind("add"), (len(nodes) - 1, 1), width))
    nodes.append(Node(kind("conv"), (len(nodes) - 1,), 2 * width, 2))
    nodes.append(Node(kind("separable"), (len(nodes) - 1,), 2 * width))
    nodes.append(Node(kind("resize"), (len(nodes) - 1,), 2 * width, 1, 2))
    nodes.append(Node(kind("concat"), (len(nodes) - 1, len(nodes) - 4), 3 * width))
    nodes.append(Node(kind("classifier"), (len(nodes) - 1,), 19))
    nodes.append(Node(kind("resize"), (len(nodes) - 1,), 19, 1, 4))
    return Architecture(tuple(nodes))


NETWORKS = tuple(cell(*ops) for ops in (("conv", "separable"), ("zoomed_conv", "conv", "conv"), ("max_pool", "inverted_residual"), ("separable",)))


def preparing(device: Any) -> Prepare:
    """Sessions of the simulated device for priced networks."""

    def prepare(architecture: Architecture, target: Target) -> Timed:
        network = fake.Priced(device, fake.network_ms(architecture, target), (1, architecture.classes, 1, 1))
        return open_torch(network, architecture.nodes[0].channels, target, device)

    return prepare


def table_of(target: Target, prepare: Prepare, path: Path, networks: tuple[Architecture, ...] = NETWORKS, **options: Any) -> LatencyTable:
    operations = tuple(dict.fromkeys(o for network in networks for o in priced_operations(network, target)))
    return profile("tiny", operations, target, prepare=prepare, graph_sha256=lambda o: o.digest, journal=path / "journal", provenance={}, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_table_protocol_survives_drift_throttling_and_outliers(tmp_path, seed):
    """Clock drift of 10 % to both sides, 250 ms in every 1.7 s at 70 %, 5 % of all samples 1.5 to 6 times too long: within 1 % of the truth."""
    device = FakeDevice(drift=0.10, noise=0.005, outliers=0.05, throttle_every_ms=1700, seed=seed)
    target = torch_target(256, 512, device=device)
    prepare = preparing(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        table = table_of(target, prepare, tmp_path, seed=seed)
        measured = measure_all(NETWORKS, target, prepare=prepare, sentinel_ref_ms=reference_ms(table), seed=seed)
    assert {w.category for w in told} == {UnsteadyWarning}
    assert device.open_graphs == 0
    assert device.stalls > 0.04 * device.shots
    unit = (reference_ms(table) or 0) / fake.network_ms(sentinel_architecture(), sentinel_target(target))
    for network, whole in zip(NETWORKS, measured, strict=True):
        truth = fake.network_ms(network, target) * unit
        assert table.estimate(network).total_ms + fake.CALL_MS * unit == pytest.approx(truth, rel=0.01)  # a sum has no call in it
        assert whole.median_ms == pytest.approx(truth, rel=0.01)


def test_a_turn_counts_all_that_its_samples_took(monkeypatch):
    """Of the device's time, not of the mean replay: a sample of a short network lasts 2 ms."""
    device = FakeDevice()
    target = torch_target(256, 512, device=device)
    prepare = preparing(device)
    sentinel, network = prepare(sentinel_architecture(), sentinel_target(target)), open_torch(priced(device, 0.05, target), 3, target, device)
    interleaver = Interleaver([sentinel], target)
    interleaver.begin()
    network.sample(1)
    assert sample_runs(network) == int(dict(network.conditions)["replays_per_sample"]) >= 40
    monkeypatch.setattr("segnas.latency_tables.sentinel.BETWEEN_MS", math.inf)
    before = device.now_ms
    visit = interleaver.visit(network, 12)
    assert visit.took_ms == pytest.approx(device.now_ms - before, rel=0.1)  # but for the replay before each sample
    assert visit.took_ms > 13 * 2 > 20 * sum(visit.samples_ms)


def test_an_operation_on_a_gpu_is_done_when_its_time_is_up(tmp_path, monkeypatch):
    """So noisy that no interval gets tight: the device's time ends it, after the fewest rounds or at the limit, and not the number of rounds."""
    monkeypatch.setattr(profile_module, "ENTRY_MS", 900.0 / profile_module.GPU_SHARE)
    device = FakeDevice(noise=0.3)
    target = torch_target(256, 512, device=device)
    table_of(target, preparing(device), tmp_path, NETWORKS[3:], repeats=0, rounds=40)
    records = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()[1:]]
    rounds = [len(record["visits"][0]) for record in records]
    took = [[sum(turns[i]["took_ms"] for turns in record["visits"]) for i in range(len(record["visits"][0]))] for record in records]
    assert min(rounds) >= LEAST_ROUNDS
    assert all(sum(each[:-1]) <= 900 or len(each) == LEAST_ROUNDS for each in took)
    assert max(rounds) < 40
    assert sum(sum(each) > 900 for each in took) > len(took) / 2


def test_without_the_protocol_it_would_not():
    """The same device, one network, plain mean of 50 samples, at four moments: off by 5 % and more."""
    device = FakeDevice(drift=0.10, noise=0.005, outliers=0.05, throttle_every_ms=1700)
    target = target_of(device)
    graph = device.capture(lambda: priced(device, 0.5, target)(torch.zeros(1, 3, 8, 16)))
    errors: list[float] = []
    for _ in range(4):
        device.now_ms += 900
        first = device.event()
        for _ in range(50):
            graph.replay(4)
        device.synchronise()
        errors.append(abs(device.elapsed_ms(first, device.event()) / 100 - 1))
    assert max(errors) > 0.05


@pytest.fixture
def gpu_target() -> Callable[..., Target]:
    """The target of the device here; skipped where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch_target


def real_prepare(architecture: Architecture, target: Target) -> Timed:
    return open_torch(initialised(architecture, 0).eval(), architecture.nodes[0].channels, target)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default::segnas.runtime.torch_session.UnsteadyWarning")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gpu_answers_as_the_cpu_does(gpu_target, every_op, precision):
    network, target = initialised(every_op, 0).eval(), gpu_target(256, 512, precision=precision, output_contract="logits")
    x = image(target)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    session = open_torch(network, 3, target)
    scale = float(np.abs(expected).max())
    assert np.abs(session.run(x).astype(np.float32) - expected).max() < (5e-4 if precision == "fp32" else 2e-2) * scale
    session.close()
    session = open_torch(network, 3, gpu_target(256, 512, precision=precision))
    assert (session.run(x) == expected.argmax(axis=1)).mean() > (0.999 if precision == "fp32" else 0.95)
    first = session.run(x)
    assert len(session.sample(5)) == 5
    assert np.array_equal(session.run(x), first)
    session.close()


@pytest.mark.gpu
@pytest.mark.filterwarnings("default::segnas.runtime.torch_session.UnsteadyWarning")
def test_gpu_samples_repeat_and_end_to_end_is_longer(gpu_target, every_op):
    network = initialised(every_op, 0).eval()
    session, whole = (open_torch(network, 3, gpu_target(512, 1024, scope=scope)) for scope in ("gpu", "end_to_end"))
    medians = [percentile(session.sample(30), 50) for _ in range(3)]
    assert max(medians) / min(medians) < 1.03
    assert percentile(whole.sample(100), 50) > min(medians)
    assert dict(session.conditions)["samples"] == "90"
    session.close()
    whole.close()


@pytest.mark.gpu
@pytest.mark.filterwarnings("default::segnas.runtime.torch_session.UnsteadyWarning")
def test_gpu_memory_is_given_back(gpu_target):
    target = gpu_target(512, 1024)
    real_prepare(NETWORKS[0], target).close()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        real_prepare(NETWORKS[0], target).close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before


@pytest.mark.gpu
@pytest.mark.filterwarnings("default::segnas.runtime.torch_session.UnsteadyWarning")
def test_gpu_table_protocol(gpu_target, tmp_path):
    """Two measurements of whole networks agree, and the sum over a table lies near them before any calibration."""
    target = gpu_target(512, 1024)
    table = table_of(target, real_prepare, tmp_path)
    runs = [measure_all(NETWORKS, target, prepare=real_prepare, sentinel_ref_ms=reference_ms(table), seed=seed) for seed in (0, 1)]
    for network, first, second in zip(NETWORKS, *runs, strict=True):
        assert first.median_ms == pytest.approx(second.median_ms, rel=0.03)
        assert table.estimate(network).total_ms == pytest.approx(first.median_ms, rel=0.3)

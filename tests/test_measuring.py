"""Where the parts are joined: which file a target's engine is, what is compiled before the clock runs, and which target this machine is."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from segnas import measuring
from segnas.arch import Architecture
from segnas.latency import LatencyTable
from segnas.latency_tables.sentinel import sentinel_architecture
from segnas.measuring import Services, engine_from_network, gpu_target, here, make_table, processor_target, services_for
from segnas.network import initialised
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.budget import bounds
from segnas.search.spaces import space
from segnas.target import Target
from segnas.timing import Measured


class Constant:
    """A network that takes 1 ms."""

    def sample(self, runs: int) -> tuple[float, ...]:
        return (1.0,) * runs

    def close(self) -> None: ...


@pytest.fixture
def target() -> Target:
    return Target("a CPU", "aotinductor", "2.13.0", "fp32", 64, 128)


def test_what_moments_differ_by_counts_for_networks_and_not_for_the_engine_that_is_judged(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(measuring, "_measured", lambda *given: given[-1](lambda number: Measured((10.0, 10.1, 9.9, 10.05, 9.95)[number], 0.05, 12.0)))
    monkeypatch.setattr(measuring, "read_engine", lambda path: (SimpleNamespace(sha256="a" * 64), path))
    still, moving = services_for(0.02), services_for(0.02, 0.012)
    network, table, path = sentinel_architecture(), cast(LatencyTable, None), tmp_path / "model.onnx"
    alone = still.measure(network, table).relative_sd
    assert alone > 0
    assert moving.measure(network, table) == Measured(10.0, math.hypot(alone, 0.012), still.measure(network, table).raw_ms)
    assert moving.measure_engine(path, network, table, 20.0) == still.measure_engine(path, network, table, 20.0)
    low, high = bounds(moving.measure(network, table).relative_sd)
    assert high < 1 - 2 * 0.012 < bounds(alone)[1]
    assert low < high


@pytest.mark.parametrize("runtime", ["aotinductor", "tensorrt", "onnxruntime"])
def test_everything_that_is_timed_was_compiled_before(monkeypatch, tmp_path: Path, target, runtime):
    """Compilers take the cores that the clock needs: every probe, the sentinel and every calibration network is compiled first, or never."""
    target = replace(target, runtime=runtime)
    compiled: list[tuple[Architecture, Target]] = []
    opened: set[tuple[Architecture, Target]] = set()

    def compile_probes(probes: Any, *given: Any, progress: Any) -> int:
        assert not opened
        compiled.extend(probes)
        progress(len(compiled), len(compiled))
        return len(compiled)

    def prepare(architecture: Architecture, wanted: Target) -> Constant:
        opened.add((architecture, wanted))
        return Constant()

    monkeypatch.setattr(measuring, "templates", lambda *_, **__: [])
    monkeypatch.setattr(measuring, "graph_hashes", lambda _: lambda operation: operation.digest)
    monkeypatch.setattr("segnas.export.aotinductor.compile_probes", compile_probes)
    monkeypatch.setattr("segnas.export.tensorrt_probes.build_probes", compile_probes)
    monkeypatch.setattr("segnas.export.tensorrt_probes.timing_cache_of", lambda *_: b"timed")
    monkeypatch.setattr(measuring, "open_api", lambda _: None)
    monkeypatch.setattr(measuring, "first_device", lambda: object())
    monkeypatch.setattr("segnas.latency_tables.sentinel.clocks_ms", lambda: (0.0, 0.0))
    services = Services(prepare, lambda *_: 1.0, lambda *_: 1.0)
    said: list[str] = []
    table = make_table(
        space("cas-tiny", 19),
        target,
        journal=tmp_path / "j",
        out=tmp_path / "t.json",
        networks=3,
        seed=0,
        services=services,
        progress=lambda done, total, text: said.append(text),
    )
    assert table.calibration.probes
    if runtime != "onnxruntime":
        assert opened <= set(compiled)
        assert any(architecture == sentinel_architecture() for architecture, _ in compiled)
        assert said[0] == {"aotinductor": "compiling networks", "tensorrt": "building engines"}[runtime]
        assert (tmp_path / "t.timing-cache").is_file() == (runtime == "tensorrt")
        assert dict(table.provenance).get("timing_cache", "") == (hashlib.sha256(b"timed").hexdigest() if runtime == "tensorrt" else "")
    else:
        assert not compiled


def test_an_engine_is_the_file_that_its_runtime_runs(monkeypatch, target):
    network = initialised(sentinel_architecture(), 0)
    monkeypatch.setattr("segnas.export.aotinductor.package_from_network", lambda n, t, *, metadata: f"package {metadata}".encode())
    assert engine_from_network(network, target, metadata={"a": "b"}) == b"package {'a': 'b'}"
    onnx = engine_from_network(network, cpu_target(16, 32, output_contract="logits"))
    assert b"segnas" in onnx


def test_this_machine_is_asked_as_the_target_asks():
    target = processor_target("onnxruntime", 16, 32, 1, output_contract="logits")
    assert here(target) == target
    assert target.backend == "onnxruntime"
    for options in ((("provider", "CUDAExecutionProvider"),), (("device", "cuda"),)):
        elsewhere = replace(target, runtime="onnxruntime" if "provider" in options[0] else "aotinductor", options=options, scope="gpu")
        found = here(elsewhere)  # no error where the device is missing: the fields that differ are the answer
        assert (found.height, found.width) == (16, 32)
        assert elsewhere.differences(found)


def test_every_gpu_backend_makes_its_target(monkeypatch):
    for backend, place in (
        ("torch", "torch_session.torch_target"),
        ("aotinductor-cuda", "aotinductor_session.aotinductor_cuda_target"),
        ("onnxruntime-cuda", "onnxruntime_cuda_target.onnxruntime_cuda_target"),
    ):
        monkeypatch.setattr(f"segnas.runtime.{place}", lambda *size, **options: (*size, options["precision"], options["scope"]))
        assert gpu_target(backend, 8, 16, precision="fp16") == (8, 16, "fp16", "gpu")
    for backend in ("tensorrt", "tensorrt-rtx"):
        monkeypatch.setattr(
            "segnas.runtime.tensorrt_target.tensorrt_target", lambda runtime, *size, **options: (runtime, *size, options["precision"])
        )
        assert gpu_target(backend, 8, 16, precision="fp16") == (backend, 8, 16, "fp16")

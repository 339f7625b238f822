"""Engines of probes: one build for each graph, GPU and release, on one timing cache, and none on a machine without the GPU."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from segnas.arch import Architecture, Node
from segnas.cuda_driver import Device
from segnas.errors import RequirementError
from segnas.export.kept import kept
from segnas.export.tensorrt_probes import CACHE_NAME, build_probes, engines_folder, probe_engine, timing_cache_of
from segnas.kinds import kind
from segnas.target import Target
from segnas.tensorrt_api import Api, api_of

_spec = importlib.util.spec_from_file_location("fake_tensorrt", Path(__file__).with_name("fake_tensorrt.py"))
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake)

CARD = Device("NVIDIA GeForce RTX 4090", "8.9", 128, 384, 72 << 20, 24 << 30)
NETWORK = Architecture(
    (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8, 2), Node(kind("classifier"), (1,), 5), Node(kind("resize"), (2,), 5, 1, 2))
)
OTHER = Architecture((*NETWORK.nodes[:1], Node(kind("conv", kernel=5), (0,), 8, 2), *NETWORK.nodes[2:]))


def made(runtime: str, name: str) -> tuple[Api, fake.Script, Target]:
    script = fake.Script(cached=b"timed")
    api = api_of(runtime, fake.fake_tensorrt(name, script))
    return api, script, Target(CARD.name, api.runtime, api.version, "fp32", 16, 32, scope="gpu")


@pytest.mark.parametrize(("runtime", "name"), [("tensorrt", "tensorrt-11.4.0.106"), ("tensorrt-rtx", "tensorrt-rtx-1.7.1.116")])
def test_each_network_is_built_once(runtime: str, name: str, tmp_path: Path) -> None:
    api, script, target = made(runtime, name)
    counted: list[tuple[int, int]] = []
    build_probes([(NETWORK, target), (OTHER, target), (NETWORK, target)], api, CARD, cache=tmp_path, progress=lambda *n: counted.append(n))
    assert counted == [(1, 2), (2, 2)]
    builds = len(script.called("build_serialized_network"))
    build_probes([(OTHER, target), (NETWORK, target)], api, CARD, cache=tmp_path)
    assert len(script.called("build_serialized_network")) == builds
    folder = engines_folder(api, CARD, tmp_path)
    assert len(list(folder.glob("*.engine"))) == 2
    assert timing_cache_of(api, CARD, cache=tmp_path) == (b"" if api.is_rtx else b"timed")
    assert (folder / CACHE_NAME).exists() != api.is_rtx


@pytest.mark.parametrize("changed", [replace(CARD, memory_bytes=16 << 30), replace(CARD, name="NVIDIA L40S"), replace(CARD, processors=142)])
def test_another_gpu_has_engines_of_its_own(changed: Device, tmp_path: Path) -> None:
    api, _, _ = made("tensorrt", "tensorrt-11.4.0.106")
    assert engines_folder(api, changed, tmp_path) != engines_folder(api, CARD, tmp_path)
    other, _, _ = made("tensorrt", "tensorrt-10.16.1.11")
    assert engines_folder(other, CARD, tmp_path) != engines_folder(api, CARD, tmp_path)


def test_a_damaged_engine_is_built_again(tmp_path: Path) -> None:
    api, _, target = made("tensorrt", "tensorrt-11.4.0.106")
    build_probes([(NETWORK, target)], api, CARD, cache=tmp_path)
    (file,) = engines_folder(api, CARD, tmp_path).glob("*.engine")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"!")
    build_probes([(NETWORK, target)], api, CARD, cache=tmp_path)
    assert file.read_bytes() == whole


def test_without_the_gpu_nothing_is_built(tmp_path: Path) -> None:
    api, _, _ = made("tensorrt-rtx", "tensorrt-rtx-1.7.1.116")
    with pytest.raises(RequirementError, match="are built on their GPU, and there is none here"):
        probe_engine(b"", api, None, cache=tmp_path)


def test_what_is_timed_has_one_stream(tmp_path: Path) -> None:
    api, script, target = made("tensorrt", "tensorrt-11.4.0.106")
    build_probes([(NETWORK, target)], api, CARD, cache=tmp_path)
    (file,) = engines_folder(api, CARD, tmp_path).glob("*.engine")
    assert script.calls
    plan = kept(file)
    assert plan is not None
    assert b'"max_aux_streams": "0"' in plan

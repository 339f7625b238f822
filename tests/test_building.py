"""Building from an exported file: names, manifests, what is refused, and what happens where the engine's GPU is here."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from segnas import building, engine_checks
from segnas.building import build_engine, engine_name, layers_path, source_of
from segnas.cuda_driver import Device
from segnas.data import open_dataset
from segnas.errors import InputError, RequirementError, VerificationError
from segnas.export.manifest import manifest_path, read_engine
from segnas.export.tensorrt_settings import BuildSettings
from segnas.exporting import export_engine
from segnas.network import initialised
from segnas.report import Port, Sizes, Unrun
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.search.spaces import space
from segnas.streets import write_streets
from segnas.tensorrt_api import api_of


def _helper(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "export" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engines, fake = _helper("engines"), _helper("fake_tensorrt")
CARD = Device("NVIDIA GeForce RTX 4090", "8.9", 128, 384, 72 << 20, 24 << 30)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a GPU, whatever this one has."""
    monkeypatch.setattr(building, "first_device", lambda: None)


@pytest.fixture(scope="module")
def api() -> Any:
    return engines.rtx()


def rtx(onnx_file: Path, *gpus: str, **given: Any) -> Any:
    return build_engine(onnx_file, runtime="tensorrt-rtx", gpus=gpus or ("rtx4090",), **given)


# ---- without a GPU


def test_a_network_of_a_space_from_its_export_to_its_engine(api: Any, tmp_path: Path) -> None:
    """`segnas export`, then `segnas build`: the file as today's export writes it, with the comparisons of the CPU in it."""
    write_streets(tmp_path / "streets", counts={"train": 1, "val": 2}, height=64, width=128, seed=0)
    tiny = space("cas-tiny", 19)
    network = initialised(tiny.decode(next(tiny.genotypes())).architecture, 0).eval()
    export_engine(network, cpu_target(64, 128), tmp_path / "run", dataset=open_dataset("cityscapes", tmp_path / "streets", "val"))
    shipped = rtx(tmp_path / "run" / "model.onnx", "rtx4090", "A100", "l4")
    assert shipped.path == tmp_path / "run" / "model.sm80-sm89.engine"
    engine, artefact = read_engine(shipped.path)
    assert (engine, artefact) == (shipped.engine, shipped.path)
    source, _ = read_engine(tmp_path / "run" / "model.onnx")
    assert (engine.architecture, engine.weights_sha256, engine.classes) == (source.architecture, source.weights_sha256, source.classes)
    assert (engine.inputs, engine.outputs) == (source.inputs, source.outputs)
    assert engine.precision[0].share("fp32") == 1.0
    assert dict(engine.build)["graph"] == "labels by ArgMax"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "model.onnx",
        "model.onnx.json",
        "model.sm80-sm89.engine",
        "model.sm80-sm89.engine.json",
    ]


def test_the_manifest_says_all_that_a_later_check_asks_for(api: Any, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model("fp16"), "fp16", name="model.fp16.onnx")
    engine = rtx(onnx_file, "8.9", settings=BuildSettings(workspace_mib=256, level=2, tf32=True)).engine
    assert (engine.file, engine.kind, engine.capabilities) == ("model.fp16.sm89.engine", "tensorrt-rtx", ("8.9",))
    target = engine.target
    assert (target.device, target.runtime, target.runtime_version) == ("compute capability 8.9", "tensorrt-rtx", api.version)
    assert (target.precision, target.scope, target.options) == ("fp16", "gpu", ())
    assert engine.source_sha256 == read_engine(onnx_file)[0].sha256
    build = dict(engine.build)
    assert {"os", "machine", "parser", "cuda", "profile", "timing_cache", "external_data", "plugins", "aux_streams", "verbosity"} <= set(build)
    assert (build["builder"], build["onnx"], build["typing"]) == (f"tensorrt-rtx {api.version}", "model.fp16.onnx", "strong")
    assert build["command"] == "segnas build model.fp16.onnx --runtime tensorrt-rtx --gpu 8.9 --workspace 256 --level 2 --tf32"
    assert dict(engine.versions)["tensorrt-rtx"] == api.version
    assert engine.unrun == (
        Unrun("smoke test", "no NVIDIA GPU here to open the engine on"),
        Unrun("parity", "built without its GPU"),
        Unrun("precision", "from the graph, engine not inspected"),
    )
    assert (engine.parity, engine.precision[0].source) == (None, "the graph that it was built from")
    assert str(tmp_path) not in manifest_path(tmp_path / engine.file).read_text()


def test_two_builds_are_the_same_bytes_and_the_same_manifest(api: Any, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model("int8"), "int8")
    first, second = (rtx(onnx_file, out=tmp_path / name) for name in ("a", "b"))
    assert first.engine == second.engine
    assert first.path.read_bytes() == second.path.read_bytes()
    assert rtx(onnx_file, out=tmp_path / "a").engine == first.engine  # over the one that is there


def test_a_dynamic_engine_keeps_its_sizes(api: Any, tmp_path: Path) -> None:
    sizes = Sizes((16, 32), (32, 64), (64, 128))
    onnx_file = engines.written(tmp_path, engines.small_model(dynamic=sizes), sizes=sizes)
    engine = rtx(onnx_file).engine
    assert engine.sizes == sizes
    assert engine.inputs == (Port("input", "float32", (1, 3, -1, -1)),)
    assert dict(engine.build)["profile"] == "16x32:32x64:64x128"


def test_weights_beside_the_file_are_written_down(api: Any, tmp_path: Path) -> None:
    model = engines.small_model()
    onnx.save(model, tmp_path / "whole.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    onnx_file = engines.written(tmp_path, (tmp_path / "whole.onnx").read_bytes())
    inside = engines.written(tmp_path / "inside", engines.small_model())
    outside = rtx(onnx_file)
    assert dict(outside.engine.build)["external_data"].startswith("weights.bin:")
    assert outside.path.read_bytes() == rtx(inside).path.read_bytes()


def test_names_and_sources(tmp_path: Path) -> None:
    assert engine_name(Path("run/model.int8.onnx"), ("7.5", "8.0", "12.0")) == "model.int8.sm75-sm80-sm120.engine"
    onnx_file = engines.written(tmp_path, engines.small_model())
    source = read_engine(onnx_file)[0]
    built = replace(source, source_sha256=source.sha256, build=(("onnx", "model.onnx"),))
    onnx_file.rename(tmp_path / "renamed.onnx")
    assert source_of(tmp_path / "model.sm89.engine", built) == tmp_path / "renamed.onnx"
    assert source_of(tmp_path / "model.sm89.engine", replace(built, source_sha256="2" * 64)) is None


def test_the_name_of_another_runtimes_engine_is_not_taken(api: Any, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model())
    shipped = rtx(onnx_file)
    text = manifest_path(shipped.path).read_text()
    manifest_path(shipped.path).write_text(text.replace('"kind": "tensorrt-rtx"', '"kind": "tensorrt"'))
    with pytest.raises(InputError, match="is there already, an engine of tensorrt; give another folder with --out"):
        rtx(onnx_file)


def test_a_graph_that_is_not_what_it_is_called(api: Any, tmp_path: Path) -> None:
    """fp16 by name and fp32 in fact: what every tool with dead precision flags builds in silence on TensorRT 11."""
    onnx_file = engines.written(tmp_path, engines.small_model("fp32"), "fp16")
    with pytest.raises(VerificationError, match=r"called fp16.*the graph that it was built from: 100\.0 % fp32; export it again"):
        rtx(onnx_file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]
    onnx_file = engines.written(tmp_path, engines.small_model("fp16"), "int8")
    with pytest.raises(VerificationError, match=r"called int8.*100\.0 % fp16"):
        rtx(onnx_file)


def test_hosts_of_another_kind(api: Any, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model())
    with pytest.raises(InputError, match="DGX Spark stands in a machine of kind aarch64, this one is x86_64"):
        rtx(onnx_file, "dgxspark")
    with pytest.raises(InputError, match=r"such as Jetson AGX Orin.*use tensorrt"):
        rtx(onnx_file, "agxorin")
    assert rtx(onnx_file, "12.1").engine.capabilities == ("12.1",)


# ---- with a GPU, simulated


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch, api: Any) -> Any:
    """TensorRT 11 as recorded and a GPU; its sessions answer what ONNX Runtime does on the same file, or the labels that are put into `answers`."""
    return lambda script, device=CARD, runtime="tensorrt": _simulate(monkeypatch, script, device, runtime)


def _simulate(monkeypatch: pytest.MonkeyPatch, script: Any, device: Device, runtime: str) -> None:
    name = "tensorrt-rtx-1.7.1.116" if runtime == "tensorrt-rtx" else "tensorrt-11.4.0.106"
    simulated = api_of(runtime, fake.fake_tensorrt(name, script))
    for module in (building, engine_checks):
        monkeypatch.setattr(module, "open_api", lambda _: simulated)
    monkeypatch.setattr(building, "first_device", lambda: device)
    monkeypatch.setattr(building, "cuda_driver", lambda: None)


def opening(onnx_file: Path, labels: Any = None) -> Any:
    """`open_session` where an engine of TensorRT answers as its ONNX file does, or gives those labels."""

    class Answering:
        def __init__(self) -> None:
            self._session = open_session(onnx_file, cpu_target(*engines.SIZE))
            self.specification = self._session.specification

        def run(self, image: Any) -> Any:
            return self._session.run(image) if labels is None else np.full_like(self._session.run(image), labels)

        def close(self) -> None:
            self._session.close()

    def opened(engine: Any, target: Any, *, sha256: str | None = None) -> Any:
        return Answering() if target.runtime.startswith("tensorrt") else open_session(engine, target, sha256=sha256)

    return opened


def layers_text(dtype: str) -> str:
    """The inspector's JSON, layout of TensorRT 11, of an engine that runs the three convolutions in that type."""
    names = ("nodes.1/0.Conv", "nodes.2/0.Conv", "nodes.3/0.Conv")
    tensor = {"Name": "x", "Dimensions": [1, 8, 16, 32], "Format": "HWC8", "DataType": dtype}
    made = [{"Name": n, "LayerType": "Conv", "Inputs": [tensor], "Outputs": [tensor], "Metadata": f"[ONNX Layer: {n}]"} for n in names]
    return json.dumps({"Layers": made, "I/O Tensors": []})


def test_tensorrt_on_its_gpu_is_run_and_inspected_at_once(with_gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model("fp16"), "fp16")
    with_gpu(fake.Script(layers=layers_text("Half")))
    monkeypatch.setattr(engine_checks, "open_session", opening(onnx_file))
    shipped = build_engine(onnx_file, runtime="tensorrt")
    engine = shipped.engine
    assert shipped.path.name == "model.sm89.engine"
    assert engine.unrun == ()
    assert engine.parity is not None
    assert (engine.parity.passed, engine.parity.argmax_agreement, engine.parity.images) == (True, 1.0, 8)
    assert engine.parity.reference.endswith("on the same ONNX file")
    assert [proof.source for proof in engine.precision] == ["engine inspector of tensorrt 11.4.0.106", "the graph that it was built from"]
    assert [proof.share("fp16") for proof in engine.precision] == [1.0, 1.0]
    assert layers_path(shipped.path).read_text() == layers_text("Half")
    build = dict(engine.build)
    assert (build["gpu"], build["gpu_processors"], build["gpu_bus_bits"]) == (CARD.name, "128", "384")
    assert (engine.target.device, build["command"]) == (CARD.name, "segnas build model.onnx --runtime tensorrt")


def test_an_engine_that_says_something_else_is_kept_apart(with_gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model())
    with_gpu(fake.Script(layers=layers_text("Float")))
    monkeypatch.setattr(engine_checks, "open_session", opening(onnx_file, labels=3))
    with pytest.raises(VerificationError, match="does not agree with onnxruntime"):
        build_engine(onnx_file, runtime="tensorrt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json", "model.sm89.engine.rejected"]


def test_an_engine_that_fell_back_to_fp32_is_refused(with_gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model("fp16"), "fp16")
    with_gpu(fake.Script(layers=layers_text("Float")))
    monkeypatch.setattr(engine_checks, "open_session", opening(onnx_file))
    with pytest.raises(VerificationError, match=r"called fp16.*by engine inspector of tensorrt 11\.4\.0\.106: 100\.0 % fp32"):
        build_engine(onnx_file, runtime="tensorrt")


def test_what_the_inspector_does_not_say_stays_unproven(with_gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model())
    with_gpu(fake.Script(layers='{"Layers": ["conv1"]}'))
    monkeypatch.setattr(engine_checks, "open_session", opening(onnx_file))
    engine = build_engine(onnx_file, runtime="tensorrt").engine
    assert [unrun.check for unrun in engine.unrun] == ["precision"]
    assert "names alone" in engine.unrun[0].reason
    assert [proof.source for proof in engine.precision] == ["the graph that it was built from"]


def test_a_session_that_does_not_open_leaves_parity_unrun(with_gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def closed(engine: Any, target: Any, *, sha256: str | None = None) -> Any:
        raise RequirementError("pycuda is not installed; pip install it")

    onnx_file = engines.written(tmp_path, engines.small_model())
    with_gpu(fake.Script(layers=layers_text("Float")))
    monkeypatch.setattr(engine_checks, "open_session", closed)
    engine = build_engine(onnx_file, runtime="tensorrt").engine
    assert engine.unrun == (Unrun("parity", "pycuda is not installed"),)
    assert engine.parity is None


def test_tensorrt_rtx_takes_the_gpu_here_where_none_is_named(with_gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnx_file = engines.written(tmp_path, engines.small_model())
    with_gpu(fake.Script(layers=layers_text("Float")), runtime="tensorrt-rtx")
    monkeypatch.setattr(engine_checks, "open_session", opening(onnx_file))
    engine = build_engine(onnx_file, runtime="tensorrt-rtx").engine
    assert (engine.capabilities, engine.unrun) == (("8.9",), ())
    assert "gpu" not in dict(engine.build)  # it runs on every GPU of that capability


def test_seeded_images_as_each_contract_reads_them() -> None:
    images = engine_checks.seeded_images(Port("input", "uint8", (1, 20, 40, 3)), 20, 40)
    assert {(image.shape, image.dtype.name) for image in images} == {((1, 20, 40, 3), "uint8")}
    floats = engine_checks.seeded_images(Port("input", "float32", (2, 3, -1, -1)), 20, 40)
    assert {(image.shape, image.dtype.name) for image in floats} == {((2, 3, 20, 40), "float32")}
    assert len({image.tobytes() for image in floats}) == len(floats) == 8
    assert all(np.isfinite(image).all() for image in floats)

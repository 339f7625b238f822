"""Verifying: each field of a manifest against this machine, told apart into passed, failed and not checked; and completing an engine on its GPU."""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas import building, engine_checks, fitting
from segnas.building import build_engine
from segnas.cli import segnas
from segnas.cuda_driver import Device, Driver
from segnas.errors import IncompatibleError, InputError, RequirementError, VerificationError
from segnas.export.manifest import manifest_path, read_engine
from segnas.files import read_noun, write_noun
from segnas.report import Engine
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.tensorrt_api import api_of
from segnas.verifying import require_verified, run_engine, verify_engine


def _helper(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "export" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engines, fake = _helper("engines"), _helper("fake_tensorrt")
CARD = Device("NVIDIA GeForce RTX 4090", "8.9", 128, 384, 72 << 20, 24 << 30)
OTHER = Device("NVIDIA GeForce RTX 3090", "8.6", 82, 384, 6 << 20, 24 << 30)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """No GPU and no driver; called, it puts that GPU and driver here."""

    def has(device: Device | None, cuda: str = "13.1", *, driver: bool = True) -> None:
        found = Driver(cuda, () if device is None else (device,)) if driver else None
        monkeypatch.setattr(building, "first_device", lambda: device)
        monkeypatch.setattr(building, "cuda_driver", lambda: found)
        monkeypatch.setattr(fitting, "cuda_driver", lambda: found)

    has(None, driver=False)
    return has


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file and the engine that TensorRT-RTX built of it for 8.9."""
    engines.rtx()
    folder = tmp_path_factory.mktemp("made")
    build_engine(engines.written(folder, engines.small_model("fp16"), "fp16"), runtime="tensorrt-rtx", gpus=["8.9"])
    return folder


@pytest.fixture
def engine_file(made: Path, tmp_path: Path) -> Path:
    """A copy of all of it."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model.sm89.engine"


def edited(path: Path, **fields: Any) -> Engine:
    """The manifest with other fields; `build` adds pairs."""
    engine = read_engine(path)[0]
    build = tuple(sorted((dict(engine.build) | fields.pop("build", {})).items()))
    target = replace(engine.target, **fields.pop("target", {}))
    changed = replace(engine, build=build, target=target, **fields)
    write_noun(manifest_path(path), changed)
    return changed


def outcomes(path: Path) -> dict[str, tuple[str, str]]:
    return {outcome.check: (outcome.status, outcome.detail) for outcome in verify_engine(path).outcomes}


def simulated(monkeypatch: pytest.MonkeyPatch, script: Any, name: str = "tensorrt-rtx-1.7.1.116") -> None:
    api = api_of("tensorrt-rtx" if "rtx" in name else "tensorrt", fake.fake_tensorrt(name, script))
    monkeypatch.setattr(fitting, "open_api", lambda _: api)
    monkeypatch.setattr(engine_checks, "open_api", lambda _: api)


def saying(validity: str, *bits: str) -> Any:
    """TensorRT-RTX that says this of any engine."""
    script = fake.Script()
    script.validity = lambda module, _: (module.EngineValidity[validity], sum(int(module.EngineInvalidityDiagnostics[bit]) for bit in bits))
    return script


# ---- without a GPU


def test_what_can_be_decided_without_a_gpu_and_what_cannot(engine_file: Path) -> None:
    found = outcomes(engine_file)
    assert {check for check, (status, _) in found.items() if status == "passed"} == {"file", "release", "system", "processor", "source"}
    assert {check: detail for check, (status, detail) in found.items() if status == "not checked"} == {
        "GPU": "no NVIDIA GPU here; the engine is for compute capability 8.9",
        "driver": "no NVIDIA driver here",
        "engine head": "TensorRT-RTX decides it on the GPU only, and there is none here",
        "smoke test": "no NVIDIA GPU here to open the engine on",
        "parity": "built without its GPU",
        "precision": "from the graph, engine not inspected",
    }
    require_verified(verify_engine(engine_file))


@pytest.mark.parametrize(
    ("fields", "check", "detail"),
    [
        ({"target": {"runtime_version": "1.7.0.5"}}, "release", "built with 1.7.0.5, here is 1.7"),
        ({"build": {"machine": "aarch64"}}, "processor", "built with aarch64, here is x86_64"),
        ({"kind": "tensorrt", "build": {"os": "Windows"}}, "system", "built with Windows, here is Linux"),
        ({"build": {"os": "Darwin"}}, "system", "built with Darwin, here is Linux"),
    ],
)
def test_a_mismatch_names_field_built_and_found_and_the_command(engine_file: Path, fields: dict[str, Any], check: str, detail: str) -> None:
    edited(engine_file, **fields)
    found = verify_engine(engine_file)
    assert [outcome.check for outcome in found.failures] == [check]
    assert found.failures[0].detail.startswith(detail)
    with pytest.raises(IncompatibleError) as refused:
        require_verified(found)
    assert f"{check}: {detail}" in str(refused.value)
    assert str(refused.value).endswith("segnas build model.onnx --runtime tensorrt-rtx --gpu 8.9")


def test_engines_of_tensorrt_rtx_run_on_windows_and_linux(engine_file: Path) -> None:
    edited(engine_file, build={"os": "Windows"})
    assert outcomes(engine_file)["system"] == ("passed", "built on Windows, here is Linux; engines of TensorRT-RTX run on both")


def test_a_runtime_that_is_not_installed_is_not_checked(engine_file: Path) -> None:
    edited(engine_file, kind="tensorrt", target={"runtime": "tensorrt"})
    status, detail = outcomes(engine_file)["release"]
    assert status == "not checked"
    assert "TensorRT is not installed here" in detail


def test_another_file_under_the_name_ends_every_other_check(engine_file: Path) -> None:
    content = bytearray(engine_file.read_bytes())
    content[-1] ^= 1
    engine_file.write_bytes(content)
    found = verify_engine(engine_file)
    assert [outcome.status for outcome in found.outcomes] == ["failed", "not checked"]
    assert "sha256 was" in found.failures[0].detail


def test_a_malformed_engine_is_known_without_a_gpu(engine_file: Path) -> None:
    """What TensorRT-RTX says of bytes that are none of its own, for real."""
    engine_file.write_bytes(b"no engine at all")
    engine = read_noun(manifest_path(engine_file), Engine)
    write_noun(manifest_path(engine_file), replace(engine, bytes=16, sha256=hashlib.sha256(b"no engine at all").hexdigest()))
    assert outcomes(engine_file)["engine head"] == ("failed", "TensorRT-RTX calls it malformed")


def test_an_onnx_file_that_moved_is_only_needed_to_run(engine_file: Path) -> None:
    (engine_file.parent / "model.onnx").unlink()
    status, detail = outcomes(engine_file)["source"]
    assert status == "not checked"
    assert "does not lie beside the engine; only --run needs it" in detail


# ---- with a GPU, simulated


def test_the_right_gpu_and_the_wrong_one(engine_file: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    simulated(monkeypatch, saying("VALID"))
    machine(CARD)
    found = outcomes(engine_file)
    assert (found["GPU"], found["driver"]) == (
        ("passed", "NVIDIA GeForce RTX 4090, compute capability 8.9"),
        ("passed", "CUDA 13 or newer is needed, here is 13.1"),
    )
    assert found["engine head"] == ("passed", "valid")
    machine(OTHER, "12.8")
    found = outcomes(engine_file)
    assert found["GPU"] == ("failed", "built with compute capability 8.9, here is 8.6 (NVIDIA GeForce RTX 3090)")
    assert found["driver"] == ("failed", "CUDA 13 or newer is needed, here is 12.8")


@pytest.mark.parametrize(
    ("validity", "bits", "expected"),
    [
        ("SUBOPTIMAL", (), ("passed", "suboptimal")),
        ("INVALID", ("UNSUPPORTED_CC", "OLD_CUDA_DRIVER"), ("failed", "TensorRT-RTX calls it invalid here: OLD_CUDA_DRIVER, UNSUPPORTED_CC")),
        ("INVALID", (), ("failed", "TensorRT-RTX calls it invalid here: it does not say why")),
    ],
)
def test_what_tensorrt_rtx_says_on_the_gpu(
    engine_file: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch, validity: str, bits: tuple[str, ...], expected: tuple[str, str]
) -> None:
    simulated(monkeypatch, saying(validity, *bits))
    machine(CARD)
    assert outcomes(engine_file)["engine head"] == expected


@pytest.fixture
def tuned(engine_file: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine that TensorRT 11.4 tuned on the card that is here."""
    simulated(monkeypatch, fake.Script(), "tensorrt-11.4.0.106")
    machine(CARD)
    pairs = {"gpu": CARD.name, "gpu_bus_bits": "384", "gpu_l2_bytes": str(72 << 20), "gpu_processors": "128", "cuda_driver": "13.1"}
    edited(engine_file, kind="tensorrt", target={"runtime": "tensorrt", "runtime_version": "11.4.0.106", "device": CARD.name}, build=pairs)
    return engine_file


def test_a_tuned_engine_wants_its_gpu_model(tuned: Path, machine: Callable[..., None]) -> None:
    assert {status for status, _ in outcomes(tuned).values()} == {"passed", "not checked"}
    laptop = replace(CARD, name="NVIDIA GeForce RTX 4090 Laptop GPU", processors=76, bus_bits=256)
    machine(laptop, "13.0")
    found = outcomes(tuned)
    assert found["GPU"][0] == "passed"
    assert found["GPU model"][0] == "failed"
    assert "gpu_processors was 128, here is 76" in found["GPU model"][1]
    assert found["driver"] == ("failed", "CUDA 13.1 or newer is needed, here is 13.0")
    edited(tuned, build={"hardware_compatibility": "same-capability"})
    assert outcomes(tuned)["GPU model"][0] == "passed"


@pytest.mark.parametrize(("capability", "status"), [("8.0", "passed"), ("9.0", "passed"), ("12.0", "passed"), ("7.5", "failed")])
def test_an_engine_for_ampere_and_later(tuned: Path, machine: Callable[..., None], capability: str, status: str) -> None:
    edited(tuned, build={"hardware_compatibility": "ampere+"})
    machine(replace(CARD, compute_capability=capability))
    assert outcomes(tuned)["GPU"][0] == status


@pytest.mark.parametrize(("built", "status"), [("11.4.0.106", "passed"), ("11.2.1.2", "passed"), ("11.10.0.1", "failed"), ("10.16.1.11", "failed")])
def test_a_version_compatible_engine_runs_on_later_releases_of_its_major(tuned: Path, built: str, status: str) -> None:
    edited(tuned, target={"runtime_version": built}, build={"version_compatible": "on"})
    assert outcomes(tuned)["release"][0] == status


@settings(max_examples=40, deadline=None)
@given(built=st.tuples(*[st.integers(0, 20)] * 3), found=st.tuples(*[st.integers(0, 20)] * 3))
def test_releases_are_compared_as_numbers(built: tuple[int, ...], found: tuple[int, ...]) -> None:
    """Against the order of tuples: version-compatible means the same major and no later."""
    texts = [".".join(map(str, parts)) for parts in (built, found)]
    module: Any = type("Module", (), {"__version__": texts[1]})
    api = building.Api("tensorrt", texts[1], module, None, None)  # type: ignore[arg-type]
    engine = Engine("a.engine", "tensorrt", "", 0, replace(cpu_target(8, 8), runtime_version=texts[0]), "", "", (), None, ())
    allowed = built[0] == found[0] and built <= found
    assert (fitting._release(engine, api, True).status == "passed") == allowed
    assert (fitting._release(engine, api, False).status == "passed") == (built == found)


# ---- run


def layers_text(dtype: str) -> str:
    tensor = {"Name": "x", "Dimensions": [1, 8, 16, 32], "Format/Datatype": dtype}
    names = ("nodes.1/0.Conv", "nodes.2/0.Conv", "nodes.3/0.Conv")
    made = [{"Name": name, "LayerType": "gemm", "Inputs": [tensor], "Outputs": [tensor], "Metadata": f"[ONNX Layer: {name}]"} for name in names]
    return json.dumps({"Layers": made, "Bindings": ["input", "labels"]})


def answering(monkeypatch: pytest.MonkeyPatch, onnx_file: Path, labels: int | None = None) -> None:
    """Sessions of TensorRT answer as the ONNX file does, or with that label everywhere."""

    class Answering:
        def __init__(self) -> None:
            self._session = open_session(onnx_file, cpu_target(*engines.SIZE))
            self.specification = self._session.specification

        def run(self, image: Any) -> Any:
            answer = self._session.run(image)
            return answer if labels is None else np.full_like(answer, labels)

        def close(self) -> None:
            self._session.close()

    def opened(engine: Any, target: Any, *, sha256: str | None = None) -> Any:
        if not target.runtime.startswith("tensorrt"):
            return open_session(engine, target, sha256=sha256)
        assert sha256 is not None
        return Answering()

    monkeypatch.setattr(engine_checks, "open_session", opened)


def test_the_engine_is_completed_on_its_gpu(engine_file: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    script = saying("VALID")
    script.layers = layers_text("Half")
    simulated(monkeypatch, script)
    machine(CARD)
    answering(monkeypatch, engine_file.parent / "model.onnx")
    before = read_engine(engine_file)[0]
    found = run_engine(engine_file)
    assert {outcome.check: outcome.status for outcome in found.outcomes if outcome.status != "passed"} == {}
    after, _ = read_engine(engine_file)
    assert after.parity is not None
    assert after.parity.passed
    assert [proof.share("fp16") for proof in after.precision] == [1.0, 1.0]
    assert after.unrun == ()
    assert replace(after, parity=None, precision=before.precision, unrun=before.unrun) == before
    again = verify_engine(engine_file)  # without a run: the manifest has it now
    assert next(outcome for outcome in again.outcomes if outcome.check == "parity").status == "passed"


def test_one_that_answers_otherwise_fails_and_says_so_from_then_on(
    engine_file: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = saying("VALID")
    script.layers = layers_text("Half")
    simulated(monkeypatch, script)
    machine(CARD)
    answering(monkeypatch, engine_file.parent / "model.onnx", labels=2)
    with pytest.raises(VerificationError, match=r"99\.90 % are required.*build it again at a higher precision"):
        run_engine(engine_file)
    assert outcomes(engine_file)["parity"][0] == "failed"
    script.layers = layers_text("Float")
    answering(monkeypatch, engine_file.parent / "model.onnx")
    with pytest.raises(VerificationError, match=r"called fp16.*100\.0 % fp32"):
        run_engine(engine_file)
    failed = verify_engine(engine_file)
    assert [outcome.check for outcome in failed.failures] == ["precision"]
    with pytest.raises(VerificationError, match=r"failed: precision: .*make it anew: segnas build model\.onnx"):
        require_verified(failed)


def test_running_needs_the_gpu_and_the_onnx_file(engine_file: Path, machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequirementError, match=r"cannot be run here: no NVIDIA GPU here; the engine is for compute capability 8\.9"):
        run_engine(engine_file)
    simulated(monkeypatch, saying("VALID"))
    machine(CARD)
    (engine_file.parent / "model.onnx").unlink()
    with pytest.raises(InputError, match=r"model\.onnx, sha256 .*does not lie beside it"):
        run_engine(engine_file)
    machine(OTHER)
    assert [outcome.check for outcome in run_engine(engine_file).failures] == ["GPU"]  # and nothing of it was opened


# ---- ONNX files


def test_an_onnx_file_is_checked_and_run(made: Path) -> None:
    found = run_engine(made / "model.onnx")
    assert {outcome.check: outcome.status for outcome in found.outcomes} == dict.fromkeys(
        ("file", "release", "provider", "graph", "parity", "run"), "passed"
    )


def test_an_onnx_file_of_another_release_and_of_a_provider_that_is_not_here(engine_file: Path) -> None:
    onnx_file = engine_file.parent / "model.onnx"
    edited(onnx_file, target={"runtime_version": "1.22.0", "options": (("provider", "CUDAExecutionProvider"),)})
    found = outcomes(onnx_file)
    assert found["release"][0] == "not checked"
    assert found["provider"][0] == "failed"
    assert found["provider"][1].startswith("built with CUDAExecutionProvider, here are ")


def test_a_package_is_checked_by_what_it_says_of_itself(engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTInductor: torch, processor and threads are in the package (`runtime.package`); none of its code is loaded."""

    def read(content: bytes, target: Any, sha256: str | None) -> None:
        assert (content, sha256) == (engine_file.read_bytes(), read_engine(engine_file)[0].sha256)
        if processor != "here":
            raise IncompatibleError("the package was compiled for processor 'there', not 'here'")

    edited(engine_file, kind="aotinductor", target={"runtime": "aotinductor"}, build={"command": ""})
    monkeypatch.setattr("segnas.runtime.package.read_package", read)
    processor = "here"
    assert outcomes(engine_file)["package"][0] == "passed"
    processor = "there"
    found = verify_engine(engine_file)
    assert [outcome.check for outcome in found.misfits] == ["package"]
    assert found.command == "segnas export --runtime aotinductor"


# ---- the command line


def test_build_verify_and_show_from_the_command_line(made: Path, tmp_path: Path) -> None:
    call = CliRunner().invoke
    words = ["build", str(made / "model.onnx"), "--runtime", "tensorrt-rtx", "--gpu", "rtx4090", "--gpu", "a100", "--out", str(tmp_path)]
    built = call(segnas, words)
    assert built.exit_code == 0
    path = tmp_path / "model.sm80-sm89.engine"
    assert built.stdout.startswith(f"{path}: ")
    assert "computes 100.0 % fp16 (the graph that it was built from)" in built.stdout
    assert "not checked: parity: built without its GPU" in built.stdout
    assert json.loads(call(segnas, [*words, "--json"]).stdout)["capabilities"] == ["8.0", "8.9"]
    told = call(segnas, ["verify", str(path)])
    assert (told.exit_code, told.stdout.count("\npassed"), told.stdout.count("\nfailed")) == (0, 4, 0)  # its ONNX file lies elsewhere
    found = json.loads(call(segnas, ["verify", str(path), "--json"]).stdout)
    assert {outcome["status"] for outcome in found["outcomes"]} == {"passed", "not checked"}
    shown = call(segnas, ["show", str(path)])
    assert (shown.exit_code, len(shown.stdout.splitlines())) == (0, 10)
    assert "layers: unknown, as no ONNX file that it was built from lies beside it" in shown.stdout


def test_an_engine_in_ten_lines_and_its_layers(engine_file: Path) -> None:
    call = CliRunner().invoke
    for path in (engine_file, manifest_path(engine_file)):
        lines = call(segnas, ["show", str(path)]).stdout.splitlines()
        assert len(lines) == 10
        assert lines[2] == "reads input float32 1x3x32x64"
        assert lines[4] == "layers: 7 (of the graph in model.onnx)"
        assert lines[5] == "precision: fp16; 100.0 % fp16 (the graph that it was built from)"
    lines = call(segnas, ["show", str(engine_file), "--layers"]).stdout.splitlines()
    assert len(lines) == 10 + 1 + 7
    (engine_file.parent / f"{engine_file.name}.layers.json").write_text(layers_text("Half"))
    shown = call(segnas, ["show", str(engine_file), "--layers", "--json"])
    assert [layer["op"] for layer in json.loads(shown.stdout)["layers"]] == ["gemm"] * 3
    assert "layers: 7" in call(segnas, ["show", str(engine_file.parent / "model.onnx")]).stdout
    refused = call(segnas, ["show", str(Path(__file__).parents[1] / "segnas" / "networks" / "none.json"), "--layers"])
    assert refused.exit_code != 0

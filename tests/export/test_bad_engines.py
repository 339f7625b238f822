"""Bad input to `segnas build` and `segnas verify`: one message that says what was given and what to do, the documented exit code, no traceback, and
nothing half-written.
"""

import errno
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segnas.__main__ import main
from segnas.export.manifest import manifest_path, read_engine
from segnas.files import read_noun, write_noun
from segnas.report import Engine, Sizes

_spec = importlib.util.spec_from_file_location("engines", Path(__file__).with_name("engines.py"))
assert _spec is not None
assert _spec.loader is not None
engines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(engines)

USAGE, REQUIREMENT, INPUT, VERIFICATION, INCOMPATIBLE = 2, 3, 4, 5, 6
BUILD = ("build", "{folder}/model.onnx", "--runtime", "tensorrt-rtx")
FOR_4090 = (*BUILD, "--gpu", "rtx4090")
VERIFY = ("verify", "{folder}/model.sm89.engine")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    message: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the program in this process as `segnas WORDS...`; exactly one message, and never a traceback."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["segnas", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        _, err = capfd.readouterr()
        assert "Traceback" not in err
        assert err.count("Error: ") == 1, err
        return Ended(int(ended.value.code or 0), err[err.index("Error: ") + 7 :].strip())

    return run


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a GPU, whatever this one has."""
    monkeypatch.setattr("segnas.building.first_device", lambda: None)
    monkeypatch.setattr("segnas.fitting.cuda_driver", lambda: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with its manifest, and the engine that TensorRT-RTX built of it."""
    from segnas.building import build_engine

    engines.rtx()
    folder = tmp_path_factory.mktemp("good")
    build_engine(engines.written(folder, engines.small_model()), runtime="tensorrt-rtx", gpus=["8.9"])
    return folder


# ---- what is done to the files


def written(folder: Path, model: onnx.ModelProto | bytes, **given: Any) -> None:
    """That model, with a manifest that vouches for it."""
    content = model if isinstance(model, bytes) else model.SerializeToString()
    if isinstance(model, onnx.ModelProto):
        engines.written(folder, content, **given)
        return
    (folder / "model.onnx").write_bytes(content)
    manifest = manifest_path(folder / "model.onnx")
    write_noun(manifest, replace(read_noun(manifest, Engine), bytes=len(content), sha256=hashlib.sha256(content).hexdigest()))


def one_node(op: str, **attributes: Any) -> onnx.ModelProto:
    """A network of one operator and an ArgMax."""
    nodes = [helper.make_node(op, ["input"], ["x"], "strange", **attributes), helper.make_node("Cast", ["x"], ["labels"], "c", to=TensorProto.UINT8)]
    ports = (
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, 1])],
    )
    return helper.make_model(helper.make_graph(nodes, "g", *ports), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def with_nan() -> onnx.ModelProto:
    model = engines.small_model()
    weights = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weights[0, 0, 0, 0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, model.graph.initializer[0].name))
    return model


def outside(folder: Path, *, cut: int | None = None) -> None:
    """Weights in a file beside, which is not there, or cut short."""
    onnx.save(engines.small_model(), folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    written(folder, (folder / "model.onnx").read_bytes())
    content = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").unlink()
    if cut is not None:
        (folder / "weights.bin").write_bytes(content[:cut])


def manifest_with(name: str = "model.onnx", **fields: Any) -> Callable[[Path], None]:
    """The manifest with other fields; `build` and `target` change some of theirs."""

    def edit(folder: Path) -> None:
        manifest = manifest_path(folder / name)
        engine = read_noun(manifest, Engine)
        build = tuple(sorted((dict(engine.build) | fields.get("build", {})).items()))
        target = replace(engine.target, **fields.get("target", {}))
        rest = {key: value for key, value in fields.items() if key not in ("build", "target")}
        write_noun(manifest, replace(engine, build=build, target=target, **rest))

    return edit


def engine_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.sm89.engine"
        path.write_bytes(change(path.read_bytes()))

    return edit


def dynamic(sizes: Sizes | None) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        model = engines.small_model(dynamic=Sizes((16, 32), (32, 64), (64, 128)))
        if sizes is None:
            del model.metadata_props[:]
        written(folder, model, sizes=sizes)

    return edit


def untouched(folder: Path) -> None:
    """Nothing."""


@dataclass(frozen=True)
class Bad:
    """What is done to good files, what is then called, and how it must end."""

    name: str
    do: Callable[[Path], None]
    words: tuple[str, ...]
    code: int
    says: tuple[str, ...]


CASES = [
    Bad("empty ONNX", lambda f: written(f, b""), FOR_4090, INPUT, ("empty (0 bytes)", "segnas export")),
    Bad("truncated ONNX", lambda f: written(f, (f / "model.onnx").read_bytes()[:-100]), FOR_4090, INPUT, ("cut short",)),
    Bad("garbage ONNX", lambda f: written(f, b"garbage" * 100), FOR_4090, INPUT, ("no ONNX at all",)),
    Bad("no ONNX file", lambda f: (f / "model.onnx").unlink(), FOR_4090, INPUT, ("model.onnx does not exist, but its manifest does",)),
    Bad("no manifest", lambda f: (f / "model.onnx.json").unlink(), FOR_4090, INPUT, ("has no manifest", "`segnas export` again")),
    Bad(
        "ONNX edited by a byte",
        lambda f: (f / "model.onnx").write_bytes((f / "model.onnx").read_bytes()[:-1] + b"x"),
        FOR_4090,
        INCOMPATIBLE,
        ("sha256 was",),
    ),
    Bad("manifest cut short", lambda f: (f / "model.onnx.json").write_text("{"), FOR_4090, INPUT, ("no complete JSON",)),
    Bad("manifest of other ports", manifest_with(inputs=()), FOR_4090, INCOMPATIBLE, ("its manifest promises labels uint8",)),
    Bad(
        "an engine in place of ONNX",
        untouched,
        ("build", "{folder}/model.sm89.engine", *FOR_4090[2:]),
        INPUT,
        ("kind 'tensorrt-rtx'", "segnas export"),
    ),
    Bad("unknown operator", lambda f: written(f, one_node("Nope")), FOR_4090, INPUT, ("'Nope'", "plain operators")),
    Bad(
        "operator that TensorRT lacks",
        lambda f: written(f, one_node("Det")),
        FOR_4090,
        INPUT,
        ("node 'strange' (Det): UNSUPPORTED_NODE", "search space"),
    ),
    Bad("weights' file missing", outside, FOR_4090, INPUT, ("weights.bin", "No such file")),
    Bad("weights' file cut short", lambda f: outside(f, cut=100), FOR_4090, INPUT, ("weights.bin", "cut short")),
    Bad("NaN weights", lambda f: written(f, with_nan()), FOR_4090, INPUT, ("NaN or infinite", "nodes.1/0.Conv.weight")),
    Bad("dynamic without sizes", dynamic(None), FOR_4090, INPUT, ("declares no sizes", "--dynamic")),
    Bad(
        "least size above the most", dynamic(Sizes((64, 32), (32, 64), (64, 128))), FOR_4090, INPUT, ("the heights 64, 32 and 64", "none may be less")
    ),
    Bad("unknown GPU", untouched, (*BUILD, "--gpu", "rtx9090"), INPUT, ("no GPU 'rtx9090'", "RTX 4090 (rtx4090)")),
    Bad("H100", untouched, (*BUILD, "--gpu", "h100"), INPUT, ("9.0 (such as H100)", "use tensorrt, aotinductor-cuda, torch")),
    Bad("B200", untouched, (*BUILD, "--gpu", "8.9", "--gpu", "b200"), INPUT, ("10.0 (such as B200)", "use tensorrt")),
    Bad("TITAN Xp", untouched, (*BUILD, "--gpu", "TITAN Xp"), INPUT, ("6.1 (such as TITAN Xp)", "start at 7.5", "use torch, onnxruntime-cuda")),
    Bad("TITAN Xp by TensorRT", untouched, (*BUILD[:3], "tensorrt", "--gpu", "titanxp"), INPUT, ("start at 7.5", "use torch, onnxruntime-cuda")),
    Bad("Jetson", untouched, (*BUILD, "--gpu", "orinnano"), INPUT, ("8.7", "use tensorrt")),
    Bad("no GPU named", untouched, BUILD, INPUT, ("no GPU was named", "give --gpu")),
    Bad("unknown runtime", untouched, (*BUILD[:3], "openvino"), USAGE, ("'openvino' is not one of 'tensorrt', 'tensorrt-rtx'",)),
    Bad("TensorRT without it", untouched, (*BUILD[:3], "tensorrt"), REQUIREMENT, ("TensorRT is not installed here", "pip install")),
    Bad("workspace of nothing", untouched, (*FOR_4090, "--workspace", "0"), USAGE, ("--workspace",)),
    Bad("level beyond the last", untouched, (*FOR_4090, "--level", "9"), USAGE, ("--level",)),
    Bad(
        "version compatibility of RTX", untouched, (*FOR_4090, "--version-compatible"), INPUT, ("version compatibility was asked for", "build again")
    ),
    Bad("hardware compatibility of RTX", untouched, (*FOR_4090, "--hardware-compatibility", "ampere+"), INPUT, ("name every GPU", "--gpu")),
    Bad("timing cache of RTX", untouched, (*FOR_4090, "--timing-cache", "c"), INPUT, ("a timing cache was asked for", "leave it out")),
    Bad("a stripped plan", untouched, (*FOR_4090, "--strip-plan"), USAGE, ("No such option", "--strip-plan")),
    Bad("fp32 called fp16", manifest_with(target={"precision": "fp16"}), FOR_4090, VERIFICATION, ("called fp16", "100.0 % fp32")),
    Bad(
        "engine edited by a byte", engine_bytes(lambda b: b[:-1] + bytes([b[-1] ^ 1])), VERIFY, INCOMPATIBLE, ("file: ", "sha256 was", "segnas build")
    ),
    Bad("engine truncated", engine_bytes(lambda b: b[:-1]), VERIFY, INCOMPATIBLE, ("bytes was",)),
    Bad("engine emptied", engine_bytes(lambda _: b""), VERIFY, INCOMPATIBLE, ("bytes was",)),
    Bad("engine without manifest", lambda f: (f / "model.sm89.engine.json").unlink(), VERIFY, INPUT, ("has no manifest", "`segnas build` again")),
    Bad("manifest of another engine", manifest_with("model.sm89.engine", sha256="3" * 64), VERIFY, INCOMPATIBLE, ("sha256 was 333",)),
    Bad(
        "engine of another release",
        manifest_with("model.sm89.engine", target={"runtime_version": "1.6.1.19"}),
        VERIFY,
        INCOMPATIBLE,
        ("release: built with 1.6.1.19, here is 1.7", "segnas build model.onnx --runtime tensorrt-rtx --gpu 8.9"),
    ),
    Bad(
        "engine of another processor",
        manifest_with("model.sm89.engine", build={"machine": "aarch64"}),
        VERIFY,
        INCOMPATIBLE,
        ("processor: built with aarch64, here is x86_64",),
    ),
    Bad(
        "engine of another system",
        manifest_with("model.sm89.engine", kind="tensorrt", build={"os": "Windows"}),
        VERIFY,
        INCOMPATIBLE,
        ("system: built with Windows, here is Linux",),
    ),
    Bad("no engine at all", untouched, ("verify", "{folder}/model.onnx.json.txt"), INPUT, ("does not exist",)),
    Bad(
        "some other JSON",
        lambda f: (f / "a.json").write_text('{"schema": "segnas.target/1"}'),
        ("verify", "{folder}/a.json"),
        INPUT,
        ("segnas.engine",),
    ),
    Bad("running without the GPU", untouched, (*VERIFY, "--run"), REQUIREMENT, ("cannot be run here: no NVIDIA GPU here",)),
    Bad("images without a run", untouched, (*VERIFY, "--data-root", "."), USAGE, ("--run",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Bad, good: Path, tmp_path: Path, call: Callable[..., Ended]) -> None:
    for path in good.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    case.do(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    ended = call(*(word.format(folder=tmp_path) for word in case.words))
    for words in case.says:
        assert words in ended.message
    assert ended.code == case.code
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_workspace_too_small_for_the_network(tmp_path: Path, call: Callable[..., Ended]) -> None:
    engines.rtx()
    onnx_file = engines.written(tmp_path, engines.small_model(size=(512, 1024)))
    ended = call("build", onnx_file, "--runtime", "tensorrt-rtx", "--gpu", "8.9", "--workspace", 1)
    assert "give a larger --workspace" in ended.message
    assert (ended.code, sorted(path.name for path in tmp_path.iterdir())) == (INPUT, ["model.onnx", "model.onnx.json"])


def test_a_folder_that_cannot_be_written(good: Path, tmp_path: Path, call: Callable[..., Ended]) -> None:
    (tmp_path / "file").write_text("")
    ended = call(*FOR_4090[:1], good / "model.onnx", *FOR_4090[2:], "--out", tmp_path / "file" / "run")
    assert "could not be written" in ended.message
    assert (ended.code, [path.name for path in tmp_path.iterdir()]) == (REQUIREMENT, ["file"])


def test_a_full_disk(good: Path, tmp_path: Path, call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    ended = call("build", good / "model.onnx", *FOR_4090[2:], "--out", tmp_path / "run")
    assert "the disk is full; nothing was left behind" in ended.message
    assert (ended.code, list((tmp_path / "run").iterdir())) == (REQUIREMENT, [])


def test_a_disk_that_fills_up_before_the_manifest(good: Path, tmp_path: Path, call: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without a manifest is no engine: it is refused as one whose build did not end."""
    plain = os.replace

    def replacing(source: Any, destination: Any) -> None:
        if str(destination).endswith(".json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(source, destination)

    monkeypatch.setattr(os, "replace", replacing)
    ended = call("build", good / "model.onnx", *FOR_4090[2:], "--out", tmp_path)
    assert ended.code == REQUIREMENT
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model.sm89.engine"]


def test_an_interrupted_build_leaves_nothing(good: Path, tmp_path: Path) -> None:
    from segnas.building import build_engine

    def stop(done: int, total: int, phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(good / "model.onnx", runtime="tensorrt-rtx", gpus=["8.9"], out=tmp_path / "run", progress=stop)
    assert list((tmp_path / "run").iterdir()) == []


def test_what_json_is_for_a_failed_check(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for path in good.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest_with("model.sm89.engine", build={"machine": "aarch64"})(tmp_path)
    monkeypatch.setattr(sys, "argv", ["segnas", "verify", str(tmp_path / "model.sm89.engine"), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    found = json.loads(capfd.readouterr().out)
    assert ended.value.code == INCOMPATIBLE
    assert [outcome["check"] for outcome in found["outcomes"] if outcome["status"] == "failed"] == ["processor"]
    assert read_engine(tmp_path / "model.sm89.engine")[0].sha256 in manifest_path(tmp_path / "model.sm89.engine").read_text()

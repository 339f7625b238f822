"""The adapter: for real with TensorRT-RTX, which needs no GPU to build; and against the recorded surfaces of the releases that do."""

import ast
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segnas.cuda_driver import Device
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export import tensorrt_build
from segnas.export.tensorrt_build import SMOKE_TEST, engine_from_onnx
from segnas.export.tensorrt_settings import BuildSettings, buildable_capabilities
from segnas.report import Port, Sizes, Unrun
from segnas.tensorrt_api import Api, api_of


def _helper(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


engines, fake = _helper("engines"), _helper("fake_tensorrt")
ROOT = Path(__file__).parents[2]
SIZES = Sizes((16, 32), (32, 64), (64, 128))
GPU = Device("NVIDIA H200", "9.0", 132, 6144, 52428800, 150 << 30)
SURFACES = fake.surface_names()
LAYERS = '{"Layers": [{"Name": "a", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Half"}]}]}'


def content(precision: str = "fp32", **given: Any) -> bytes:
    return engines.small_model(precision, **given).SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def rtx() -> Api:
    return engines.rtx()


def faked(name: str, script: Any = None) -> Api:
    return api_of("tensorrt-rtx" if "rtx" in name else "tensorrt", fake.fake_tensorrt(name, script))


def build(api: Api, model: bytes | None = None, **given: Any) -> Any:
    """On the GPU at hand, or for two of them with TensorRT-RTX."""
    place = {"capabilities": ("8.6", "8.9")} if api.is_rtx else {"device": GPU}
    return engine_from_onnx(content() if model is None else model, api, **(place | given))


# ---- for real


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_an_engine_of_each_precision_twice_the_same(rtx: Api, precision: str) -> None:
    first, second = (engine_from_onnx(content(precision), rtx, capabilities=("8.9",)) for _ in range(2))
    assert first.content == second.content
    assert len(first.content) > 10_000
    assert first.settings == second.settings
    assert first.unrun == (Unrun(SMOKE_TEST, "no NVIDIA GPU here to open the engine on"),)


def test_every_capability_alone_and_together(rtx: Api) -> None:
    assert buildable_capabilities(rtx) == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    alone = {one: engine_from_onnx(content(), rtx, capabilities=(one,)).content for one in buildable_capabilities(rtx)}
    assert len(set(alone.values())) == len(alone)  # a plan says what it is for
    together = engine_from_onnx(content(), rtx, capabilities=buildable_capabilities(rtx)).content
    assert together not in alone.values()


def test_other_weights_are_another_engine(rtx: Api) -> None:
    ours, other = (engine_from_onnx(content(seed=seed), rtx, capabilities=("8.9",)).content for seed in (0, 1))
    assert ours != other


def test_a_dynamic_graph_gets_a_profile(rtx: Api) -> None:
    model = content(dynamic=SIZES)
    built = engine_from_onnx(model, rtx, capabilities=("8.9",))
    assert built.sizes == SIZES
    other = engine_from_onnx(model, rtx, capabilities=("8.9",), sizes=Sizes((16, 32), (32, 64), (32, 64)))
    assert other.content != built.content


def test_settings_are_read_back(rtx: Api) -> None:
    settings = BuildSettings(workspace_mib=512, level=1, auxiliary_streams=0, tf32=True, verbosity="names")
    taken = dict(engine_from_onnx(content(), rtx, capabilities=("8.9",), settings=settings).settings)
    expected = {"workspace_bytes": str(512 << 20), "level": "1", "aux_streams": "0", "tf32": "on", "verbosity": "names", "timing_cache": "none"}
    assert expected.items() <= taken.items()


def test_a_workspace_that_is_too_small_is_told_as_such(rtx: Api) -> None:
    model = engines.small_model(size=(512, 1024)).SerializeToString()
    with pytest.raises(InputError, match=r"could not build an engine: .*within workspace limit.*give a larger --workspace"):
        engine_from_onnx(model, rtx, capabilities=("8.9",), settings=BuildSettings(workspace_mib=1))


def test_progress_rises_to_the_end_of_the_build(rtx: Api) -> None:
    told: list[tuple[int, int, str]] = []
    engine_from_onnx(content(), rtx, capabilities=("8.9",), progress=lambda *step: told.append(step))
    shares = [done for done, _, _ in told]
    assert len(told) > 10
    assert all(total == 100 for _, total, _ in told)
    assert shares == sorted(shares)
    assert shares[-1] > 50
    assert "building engine" in {phase for _, _, phase in told}


def test_what_progress_raises_ends_the_build_and_is_raised(rtx: Api) -> None:
    def refuse(done: int, total: int, phase: str) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)  # in the background a shell has it ignored
    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(content(), rtx, capabilities=("8.9",), progress=refuse)
    assert signal.getsignal(signal.SIGINT) is before
    assert engine_from_onnx(content(), rtx, capabilities=("8.9",)).content  # the next build is a build again


def test_ctrl_c_within_a_build_raises_keyboard_interrupt() -> None:
    """In a process of its own: the signal comes while TensorRT works. Before the build nothing of TensorRT has been imported."""
    script = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import engines
        from segnas.building import engine_from_onnx
        assert not {{"tensorrt", "tensorrt_rtx"}} & {{*sys.modules}}
        api, model = engines.rtx(), engines.small_model().SerializeToString()
        try:
            engine_from_onnx(model, api, capabilities=("8.9",), progress=lambda *step: os.kill(os.getpid(), signal.SIGINT))
        except KeyboardInterrupt:
            print("interrupted")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert found.stdout == "interrupted\n"


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        (
            "9.0",
            r"9\.0 \(such as H100\) was asked for; TensorRT-RTX 1\.7.* builds for 7\.5, .*: use tensorrt, aotinductor-cuda, torch, onnxruntime-cuda",
        ),
        ("10.0", r"such as B200.*use tensorrt, aotinductor-cuda, torch"),
        ("6.1", r"such as TITAN Xp.*TensorRT 10 and 11 and TensorRT-RTX start at 7\.5: use torch, onnxruntime-cuda on that GPU"),
        ("7.0", r"such as V100.*start at 7\.5: use aotinductor-cuda, torch, onnxruntime-cuda"),
        ("8.7", r"such as Jetson AGX Orin.*use tensorrt"),
        ("99.0", r"builds for 7\.5, 8\.0"),
    ],
)
def test_gpus_that_tensorrt_rtx_has_no_code_for(rtx: Api, capability: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine_from_onnx(content(), rtx, capabilities=(capability,))


def test_no_gpu_and_one_gpu_twice(rtx: Api) -> None:
    with pytest.raises(InputError, match=r"no GPU was named.*give --gpu"):
        engine_from_onnx(content(), rtx)
    with pytest.raises(InputError, match="each once is needed"):
        engine_from_onnx(content(), rtx, capabilities=("8.9", "8.9"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (BuildSettings(version_compatible=True), "version compatibility was asked for; TensorRT-RTX .* has none: .*build again for the other"),
        (BuildSettings(hardware="ampere+"), "hardware compatibility .* name every GPU"),
        (BuildSettings(timing_cache=Path("cache")), "a timing cache .* leave it out"),
    ],
)
def test_what_tensorrt_rtx_would_ignore_or_fail_on_late_is_refused_first(rtx: Api, settings: BuildSettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine_from_onnx(content(), rtx, capabilities=("8.9",), settings=settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"level": 9}, "level was given 9; 0 to 5"),
        ({"workspace_mib": 0}, r"workspace \(MiB\) was given 0"),
        ({"timing_iterations": 0}, "timing iterations was given 0"),
        ({"auxiliary_streams": -1}, "auxiliary streams was given -1"),
        ({"hardware": "all"}, "allowed: none, ampere\\+, same-capability"),
        ({"verbosity": "loud"}, "allowed: detailed, names, none"),
    ],
)
def test_settings_that_do_not_exist(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildSettings(**given)


# ---- against the recorded surfaces


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_whole_way_on_every_surface(name: str, precision: str) -> None:
    """The fake has the names of that release and no other: an engine comes out, so nothing that it lacks was touched."""
    script = fake.Script(layers=LAYERS)
    api = faked(name, script)
    ports = (Port("input", "float32", (1, 3, 32, 64)), Port("labels", "uint8", (1, 32, 64)))
    built = build(api, content(precision), ports=ports, settings=BuildSettings(workspace_mib=64, auxiliary_streams=1))
    assert built.content.startswith(b'{"flags": []')
    (flags,) = script.called("create_network")
    assert flags == ((2,) if name.startswith("tensorrt-10") else (0,))  # STRONGLY_TYPED is bit 1 of TensorRT 10, and ignored later
    assert built.layers == ("" if api.is_rtx else LAYERS)
    assert [each.check for each in built.unrun] == ([SMOKE_TEST] if api.is_rtx else [])


@pytest.mark.parametrize("name", SURFACES)
def test_dynamic_sizes_on_every_surface(name: str) -> None:
    script = fake.Script(layers=LAYERS)
    build(faked(name, script), content(dynamic=SIZES))
    assert script.called("set_shape") == [("input", (1, 3, 16, 32), (1, 3, 32, 64), (1, 3, 64, 128))]
    if "rtx" not in name:
        assert script.called("set_input_shape") == [("input", (1, 3, 32, 64))]


@pytest.mark.parametrize("name", [name for name in SURFACES if "rtx" not in name])
def test_every_setting_of_tensorrt(name: str, tmp_path: Path) -> None:
    cache = tmp_path / "timings.cache"
    settings = BuildSettings(256, 5, 16, 2, True, "ampere+", True, "none", cache)
    script = fake.Script(layers=LAYERS, cached=b"new")
    built = build(faked(name, script), settings=settings)
    assert dict(built.settings) == {
        "aux_streams": "2",
        "graph": "as exported",
        "hardware_compatibility": "ampere+",
        "level": "5",
        "max_tactics": "-1",
        "tf32": "on",
        "tiling": "none",
        "timing_cache": "new",
        "timing_iterations": "16",
        "verbosity": "none",
        "version_compatible": "on",
        "workspace_bytes": str(256 << 20),
    }
    assert b'"flags": ["TF32", "VERSION_COMPATIBLE"]' in built.content
    assert cache.read_bytes() == b"new"


def test_a_gpu_that_is_here_opens_what_tensorrt_rtx_built_for_it() -> None:
    api = faked("tensorrt-rtx-1.7.1.116", fake.Script(layers=LAYERS))
    card = Device("NVIDIA GeForce RTX 4090", "8.9", 128, 384, 1, 1)
    assert (build(api, device=card).layers, build(api, device=card).unrun) == (LAYERS, ())
    other = build(api, device=GPU)
    assert other.unrun == (Unrun(SMOKE_TEST, "the GPU here, NVIDIA H200, has compute capability 9.0; the engine is for 8.6, 8.9"),)


def test_tensorrt_builds_for_the_gpu_at_hand_and_no_other() -> None:
    api = faked("tensorrt-11.4.0.106")
    with pytest.raises(RequirementError, match="builds on the GPU that the engine is for, and there is none here"):
        build(api, device=None)
    with pytest.raises(InputError, match=r"8\.9 was asked for; .*for the GPU at hand alone, NVIDIA H200 \(9\.0\)"):
        build(api, capabilities=("8.9",))
    with pytest.raises(InputError, match=r"6\.1 \(such as TITAN Xp\).*start at 7\.5"):
        build(api, device=Device("NVIDIA TITAN Xp", "6.1", 30, 384, 1, 1))


# ---- what goes wrong in silence


@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ({"gives_nothing": frozenset({"create_network"})}, InputError, "could not make a network: it does not say why"),
        ({"gives_nothing": frozenset({"create_builder_config"})}, InputError, "could not make a configuration"),
        ({"says": {"create_network": ("something broke",)}}, InputError, "could not make a network: something broke"),
        ({"gives_nothing": frozenset({"build_serialized_network"})}, InputError, "could not build an engine: it does not say why"),
        ({"says": {"build_serialized_network": ("Error Code 1: Cuda Runtime (cudaError 35)",)}}, RequirementError, "NVIDIA GPU with a driver"),
        ({"says": {"build_serialized_network": ("Unable to load library: libnvinfer_lean.so.1",)}}, RequirementError, "is not installed"),
        ({"keeps": frozenset({"builder_optimization_level"})}, InputError, "does not take builder_optimization_level 5: it kept 3"),
        (
            {"parser_errors": (("UNSUPPORTED_NODE", "false", 3, "n3", "Det"),)},
            InputError,
            r"node 'n3' \(Det\): UNSUPPORTED_NODE: false; .*search space",
        ),
    ],
)
def test_a_step_that_fails_is_an_error(name: str, script: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build(faked(name, fake.Script(**script)), settings=BuildSettings(level=5))


def test_every_error_of_the_parser_is_shown_once() -> None:
    errors = (
        ("INVALID_NODE", "no such plugin", 0, "a", "Nope"),
        ("INVALID_NODE", "no such plugin", 0, "a", "Nope"),
        ("INVALID_GRAPH", "w", -1, "", ""),
    )
    with pytest.raises(InputError) as refused:
        build(faked("tensorrt-11.4.0.106", fake.Script(parser_errors=errors)))
    assert str(refused.value).count("no such plugin") == 1
    assert "INVALID_GRAPH: w; the graph is damaged" in str(refused.value)


def test_kernels_that_did_not_fit_are_told_and_do_not_spoil_a_plan() -> None:
    line = "Error Code 2: OutOfMemory (Requested size was 34359738368 bytes.)"
    built = build(faked("tensorrt-11.4.0.106", fake.Script(layers=LAYERS, says={"build_serialized_network": (line,)})))
    assert built.warnings == (line,)
    script = fake.Script(gives_nothing=frozenset({"build_serialized_network"}), says={"build_serialized_network": (line,)})
    with pytest.raises(RequirementError, match="memory is full"):
        build(faked("tensorrt-11.4.0.106", script))


def test_an_engine_that_does_not_open_is_no_engine() -> None:
    with pytest.raises(IncompatibleError, match="does not open this engine here"):
        build(faked("tensorrt-11.4.0.106", fake.Script(gives_nothing=frozenset({"deserialize_cuda_engine"}))))


def test_other_ports_than_the_manifest_promises(rtx: Api) -> None:
    with pytest.raises(
        IncompatibleError, match=r"reads and gives input float32 1x3x32x64, labels uint8 1x32x64; its manifest promises input float32 1x3x8x8"
    ):
        engine_from_onnx(content(), rtx, capabilities=("8.9",), ports=(Port("input", "float32", (1, 3, 8, 8)), Port("labels", "uint8", (1, 8, 8))))


@pytest.mark.parametrize("name", SURFACES)
def test_a_build_can_be_stopped_on_every_surface(name: str) -> None:
    def stop(done: int, total: int, phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(faked(name), progress=stop)


# ---- which names are used


def used_names(file: Path) -> set[str]:
    """Every attribute that a file looks up on anything, and every text that it might look up by getattr."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return attributes | {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def surface_words(name: str) -> set[str]:
    """Every name of a surface: classes, functions, members, values."""
    recorded = fake.surface(name)
    words = {*recorded["classes"], *recorded["functions"]}
    for spec in recorded["classes"].values():
        for part in ("methods", "properties", "constants", "values"):
            words |= set(spec.get(part, ()))
    return words


RTX_ALONE = {
    "ComputeCapability",
    "num_compute_capabilities",
    "set_compute_capability",
    "get_engine_validity",
    "EngineInvalidityDiagnostics",
    "INVALID",
    "MALFORMED_ENGINE",
}
PLAIN_WORDS = {"FP16", "type"}  # of the inspector's text, and of Python: no names that are looked up


def test_no_name_is_used_that_one_of_the_releases_lacks() -> None:
    """Independent of what a fake happens to run: every word of the adapter that any release knows, all of them know."""
    files = [
        Path(tensorrt_build.__file__).with_name(f"tensorrt_{part}.py") for part in ("build", "errors", "graph", "inspect", "progress", "settings")
    ]
    files += [Path(tensorrt_build.__file__).with_name("timing_cache.py"), ROOT / "segnas" / "tensorrt_api.py", ROOT / "segnas" / "fitting.py"]
    used = set[str]().union(*(used_names(file) for file in files))
    words: dict[str, set[str]] = {name: surface_words(name) for name in SURFACES}
    known = set[str]().union(*words.values())
    missing = {word: [name for name in SURFACES if word not in words[name]] for word in used & known}
    found = {word: names for word, names in missing.items() if names}
    assert {word for word, names in found.items() if names != [n for n in SURFACES if "rtx" not in n]} <= PLAIN_WORDS
    assert {word for word, names in found.items() if names == [n for n in SURFACES if "rtx" not in n]} == RTX_ALONE
    assert {"STRONGLY_TYPED", "build_serialized_network", "OnnxParser", "IProgressMonitor"} <= used & known  # the search finds what is used


def test_removed_names_are_absent_from_the_fake_of_11() -> None:
    """The fake would catch them: those that TensorRT 11 removed raise."""
    module: Any = fake.fake_tensorrt("tensorrt-11.4.0.106")
    gone: list[Callable[[], object]] = [
        lambda: module.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
        lambda: module.BuilderFlag.FP16,
        lambda: module.IInt8EntropyCalibrator2,
        lambda: module.Builder(None).platform_has_fast_fp16,
        lambda: module.IBuilderConfig().int8_calibrator,
    ]
    for name in gone:
        with pytest.raises(AttributeError):
            name()
    with pytest.raises(AttributeError, match="no attribute"):
        module.IBuilderConfig().int8_calibrator = None
    with pytest.raises(TypeError, match="takes"):
        module.Builder(None).create_network(1, 2)


def test_the_recorded_surface_is_that_of_the_installed_package(tmp_path: Path) -> None:
    """The script that made the recordings, run on what is installed here."""
    engines.rtx()
    script = ROOT / "scripts" / "record_tensorrt_api.py"
    subprocess.run([sys.executable, script, "tensorrt_rtx", tmp_path / "found.json"], check=True, capture_output=True)
    assert (tmp_path / "found.json").read_text() == (fake.SURFACES / "tensorrt-rtx-1.7.1.116.json").read_text()

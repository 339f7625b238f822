"""Building: the engine of an exported ONNX file for GPUs that are here or not, with its manifest; where graphs, builders and GPUs are joined."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto, TensorProto

from segnas.cuda_driver import Device, cuda_driver, first_device
from segnas.data import Dataset
from segnas.engine_checks import PARITY, PRECISION, compared, graph_proof, inspected, reason_of, require_precision
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export.manifest import manifest_path, read_engine, versions, write_engine
from segnas.export.tensorrt_build import Built, engine_from_onnx, require_capabilities, require_recent
from segnas.export.tensorrt_progress import Progress
from segnas.export.tensorrt_settings import BuildSettings, require_settings
from segnas.files import read_noun, require_writable, write_text
from segnas.gpus import Gpu, Runtime, capability_of, version_numbers
from segnas.report import Engine, Sizes, Unrun
from segnas.target import Target
from segnas.tensorrt_api import Api, cuda_major, here, open_api


@dataclass(frozen=True, slots=True)
class Shipped:
    """An engine as it was written, where, and what TensorRT said that does not spoil it."""

    engine: Engine
    path: Path
    warnings: tuple[str, ...]


def build_engine(
    onnx: Path,
    *,
    runtime: Runtime,
    gpus: Sequence[str] = (),
    settings: BuildSettings | None = None,
    out: Path | None = None,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> Shipped:
    """Build `model.sm89.engine` of `model.onnx` (or of its manifest) into the folder `out`, by default where the ONNX file lies.

    `gpus` are product names or compute capabilities; TensorRT-RTX builds one file for all of them, TensorRT for the GPU at hand. Where that GPU is
    here the engine is run and compared at once, else its manifest says what was not run. Errors are those of `engine_from_onnx`; an engine that fails
    its parity check is kept as `.rejected`.
    """
    source, artefact = _source(onnx)
    order = _ordered(source, artefact, runtime, gpus, settings or BuildSettings())
    path = (artefact.parent if out is None else out) / engine_name(artefact, order.capabilities)
    _require_free(path, runtime)
    built = engine_from_onnx(
        artefact.read_bytes(),
        order.api,
        capabilities=order.capabilities,
        settings=order.settings,
        sizes=source.sizes,
        ports=(*source.inputs, *source.outputs),
        folder=artefact.parent,
        device=order.device,
        progress=progress,
    )
    engine = _run_here(_described(order, built, path.name), built, order.device, dataset)
    require_precision(engine.precision[0], engine.target.precision)
    return Shipped(_written(path, built.content, engine, built.layers), path, built.warnings)


def engine_name(onnx: Path, capabilities: Sequence[str]) -> str:
    """`model.sm80-sm89.engine` of `model.onnx`."""
    return f"{onnx.stem}.{'-'.join('sm' + capability.replace('.', '') for capability in capabilities)}.engine"


def fits(engine: Engine, device: Device | None) -> bool:
    """Whether the engine is for the GPU that is here."""
    return device is not None and device.compute_capability in engine.capabilities


def source_of(path: Path, engine: Engine) -> Path | None:
    """The ONNX file that an engine was built from, if it lies beside it: by its sha256, whatever it is called."""
    named = dict(engine.build).get("onnx", "")
    found = sorted(path.parent.glob("*.onnx"), key=lambda file: file.name != named)
    return next((file for file in found if hashlib.sha256(file.read_bytes()).hexdigest() == engine.source_sha256), None)


def layers_path(path: Path) -> Path:
    """Where the inspector's JSON about an engine lies, if it was ever opened."""
    return path.with_name(f"{path.name}.layers.json")


def _source(onnx: Path) -> tuple[Engine, Path]:
    """The ONNX file's manifest and path: only one that was exported, and is byte for byte what was, is built from."""
    source, artefact = read_engine(onnx)
    if source.kind != "onnx":
        raise InputError(f"{artefact} is an engine of kind {source.kind!r}; an exported ONNX file is built from: give model.onnx of `segnas export`")
    return source, artefact


@dataclass(frozen=True)
class _Order:
    """What is to be built: of which file, by which TensorRT, for which GPUs, how; `device` is the GPU here."""

    source: Engine
    artefact: Path
    api: Api
    capabilities: tuple[str, ...]
    device: Device | None
    settings: BuildSettings


def _ordered(source: Engine, artefact: Path, runtime: Runtime, gpus: Sequence[str], settings: BuildSettings) -> _Order:
    """The order, once it is certain that it can be met: GPUs that no TensorRT serves are refused before one is looked for."""
    asked, device = [capability_of(name) for name in gpus], first_device()
    for capability, _ in asked:
        require_recent(runtime, capability)
    api = open_api(runtime)
    require_settings(settings, api)
    for _, gpu in asked:
        if gpu is not None:
            _require_host(api, gpu, here()["machine"])
    wanted = {capability for capability, _ in asked} or ({device.compute_capability} if device is not None else set[str]())
    capabilities = tuple(sorted(wanted, key=version_numbers))
    require_capabilities(api, capabilities, device)
    return _Order(source, artefact, api, capabilities, device, settings)


def _require_host(api: Api, gpu: Gpu, machine: str) -> None:
    """InputError for a GPU whose host has another processor: no engine is known to cross from one to the other."""
    if gpu.machine != machine and api.is_rtx:
        require_capabilities(api, (gpu.compute_capability,), None)
        raise InputError(
            f"{gpu.name} stands in a machine of kind {gpu.machine}, this one is {machine}; engines of {api.title} are portable between Windows and "
            "Linux on x86-64 and nothing is known beyond: build on such a machine"
        )


def _require_free(path: Path, runtime: Runtime) -> None:
    """RequirementError where the file cannot be written, InputError where another runtime's engine has its name."""
    require_writable(path)
    if manifest_path(path).exists():
        try:
            other = read_noun(manifest_path(path), Engine)
        except (InputError, IncompatibleError):
            return
        if other.kind != runtime:
            raise InputError(f"{path} is there already, an engine of {other.kind}; give another folder with --out, or remove it")


def _described(order: _Order, built: Built, name: str) -> Engine:
    """The manifest of what was built, before anything of it was run."""
    source, api = order.source, order.api
    not_here = "not run yet" if order.device is not None and order.device.compute_capability in order.capabilities else "built without its GPU"
    engine = Engine(
        file=name,
        kind=api.runtime,
        sha256=hashlib.sha256(built.content).hexdigest(),
        bytes=len(built.content),
        target=_target(order),
        architecture=source.architecture,
        weights_sha256=source.weights_sha256,
        classes=source.classes,
        parity=None,
        versions=tuple(sorted((dict(versions()) | {api.runtime: api.version}).items())),
        inputs=source.inputs,
        outputs=source.outputs,
        sizes=built.sizes,
        calibrated=source.calibrated,
        source_sha256=source.sha256,
        capabilities=order.capabilities,
        build=_pairs(order, built),
        unrun=(*built.unrun, Unrun(PARITY, not_here), Unrun(PRECISION, "from the graph, engine not inspected")),
    )
    return replace(engine, precision=(graph_proof(built.model, engine),))


def _pairs(order: _Order, built: Built) -> tuple[tuple[str, str], ...]:
    """Every setting of the builder, and what a later check of the engine asks for."""
    api, device = order.api, order.device
    pairs = dict(built.settings) | here()
    pairs |= {
        "builder": f"{api.runtime} {api.version}",
        "command": _command(order),
        "cuda": cuda_major(api.runtime) or "unknown",
        "external_data": _external(order.artefact),
        "onnx": order.artefact.name,
        "parser": str(api.module.get_nv_onnx_parser_version()),
        "plugins": "none",
        "profile": _profile(built.sizes),
        "typing": "strong",
    }
    if not api.is_rtx and device is not None:
        pairs |= gpu_pairs(device)
    return tuple(sorted(pairs.items()))


def gpu_pairs(device: Device) -> dict[str, str]:
    """What of a GPU an engine that was tuned on it depends on, as the manifest has it."""
    driver = cuda_driver()
    return {
        "gpu": device.name,
        "gpu_bus_bits": str(device.bus_bits),
        "gpu_l2_bytes": str(device.l2_bytes),
        "gpu_memory_bytes": str(device.memory_bytes),
        "gpu_processors": str(device.processors),
        "cuda_driver": driver.cuda if driver is not None else "unknown",
    }


def _target(order: _Order) -> Target:
    """Where the engine runs: one for GPUs that need not be here names their compute capabilities as its device. How it was built is in `build`."""
    api, device = order.api, order.device
    name = device.name if device is not None and not api.is_rtx else f"compute capability {', '.join(order.capabilities)}"
    return replace(order.source.target, device=name, runtime=api.runtime, runtime_version=api.version, threads=1, scope="gpu", options=())


def _profile(sizes: Sizes | None) -> str:
    if sizes is None:
        return "static"
    return ":".join(f"{height}x{width}" for height, width in (sizes.least, sizes.best, sizes.most))


def _external(onnx: Path) -> str:
    """The files beside an ONNX file that hold its weights, each with its sha256; `none` where it holds them itself."""
    model = ModelProto.FromString(onnx.read_bytes())
    places = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return " ".join(f"{place}:{hashlib.sha256((onnx.parent / place).read_bytes()).hexdigest()}" for place in sorted(places)) or "none"


def _command(order: _Order) -> str:
    """What was asked for, as it is typed in the folder of the ONNX file."""
    settings, usual = order.settings, BuildSettings()
    words = ["segnas build", order.artefact.name, "--runtime", order.api.runtime]
    words += [word for capability in order.capabilities for word in ("--gpu", capability)] if order.api.is_rtx else []
    for option, value, default in (
        ("--workspace", settings.workspace_mib, usual.workspace_mib),
        ("--level", settings.level, usual.level),
        ("--timing-iterations", settings.timing_iterations, usual.timing_iterations),
        ("--aux-streams", settings.auxiliary_streams, usual.auxiliary_streams),
        ("--hardware-compatibility", settings.hardware, usual.hardware),
        ("--verbosity", settings.verbosity, usual.verbosity),
    ):
        words += [option, str(value)] if value != default else []
    words += [option for option, on in (("--tf32", settings.tf32), ("--version-compatible", settings.version_compatible)) if on]
    return " ".join(words)


def _run_here(engine: Engine, built: Built, device: Device | None, dataset: Dataset | None) -> Engine:
    """Precision and parity where the engine's GPU is here and its session too; else the engine as it is, with the reasons."""
    engine = inspected(engine, built.model, built.layers) if built.layers else engine
    if not fits(engine, device):
        return engine
    try:
        return compared(engine, built.content, built.model, dataset=dataset)
    except RequirementError as error:
        kept = tuple(each for each in engine.unrun if each.check != PARITY)
        return replace(engine, unrun=(*kept, Unrun(PARITY, reason_of(error))))


def _written(path: Path, content: bytes, engine: Engine, layers: str) -> Engine:
    """The engine's file, the inspector's words beside it, and the manifest last; one that failed its parity check is kept apart, and raised."""
    if engine.parity is None or engine.parity.passed:
        layers_path(path).unlink(missing_ok=True)
        if layers:
            write_text(layers_path(path), layers)
    return write_engine(path.parent, content, engine)

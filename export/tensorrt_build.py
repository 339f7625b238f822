"""An engine from an ONNX graph, by TensorRT 10.12 to 11 on the GPU at hand, or by TensorRT-RTX 1.7 for GPUs that need not be there.

Precision lies in the graph and nowhere else: TensorRT 11 has no precision flags, TensorRT 10 is told to type strongly, TensorRT-RTX always does. What
a step returns and what the log has heard since are both looked at, because TensorRT raises next to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from segnas.cuda_driver import Device
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export.check import checked_onnx, declared_sizes
from segnas.export.tensorrt_errors import parser_error, require_built, require_step
from segnas.export.tensorrt_graph import readable_graph
from segnas.export.tensorrt_inspect import opened, told_by_inspector
from segnas.export.tensorrt_progress import Progress, interruptible, progress_monitor
from segnas.export.tensorrt_settings import BuildSettings, buildable_capabilities, configuration, require_settings, settings_taken
from segnas.export.timing_cache import keep_cache, use_cache
from segnas.gpus import LOWEST_OF_TENSORRT, Runtime, find_gpu, instead_of, version_numbers
from segnas.report import Port, Sizes, Unrun
from segnas.tensorrt_api import Api

SMOKE_TEST = "smoke test"
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "BF16": "bfloat16",
}


@dataclass(frozen=True, slots=True)
class Built:
    """An engine's bytes, the model that it was built from as it was read, what was set, the inspector's JSON (empty where nothing could open the
    engine), what was not run, and warnings that do not spoil it.
    """

    content: bytes
    model: ModelProto
    sizes: Sizes | None
    settings: tuple[tuple[str, str], ...]
    layers: str
    unrun: tuple[Unrun, ...]
    warnings: tuple[str, ...]


def engine_from_onnx(
    content: bytes,
    api: Api,
    *,
    capabilities: Sequence[str] = (),
    settings: BuildSettings | None = None,
    sizes: Sizes | None = None,
    ports: Sequence[Port] = (),
    folder: Path | None = None,
    device: Device | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build the engine of an ONNX file, which is checked first; `folder` is where its external weights lie.

    `capabilities` are what TensorRT-RTX builds for; `device` is the GPU here, if there is one: TensorRT builds for it, and an engine that it can run
    is opened at once. `sizes` are those of a dynamic graph (else what it declares); `ports` what it must read and give. Ctrl-C raises
    KeyboardInterrupt. InputError for a graph or a setting that cannot be built, RequirementError for what this machine lacks, IncompatibleError for
    other ports.
    """
    wanted = settings or BuildSettings()
    require_settings(wanted, api)
    require_capabilities(api, capabilities, device)
    model, changed = readable_graph(checked_onnx(content, folder=folder, tensorrt=False))
    sizes = _ordered(sizes or declared_sizes(model))
    builder = _builder(api)
    network = _parsed(api, builder, model)
    _require_ports(network, ports)
    since = api.log.mark()
    config = configuration(api, builder, wanted, capabilities)
    _add_profile(api, builder, config, network, sizes)
    cache = "none" if wanted.timing_cache is None else use_cache(api, config, wanted.timing_cache)
    plan, said = _built(api, builder, network, config, progress)
    if wanted.timing_cache is not None:
        keep_cache(api, config, wanted.timing_cache)
    engine = bytes(plan)
    layers, unrun = _smoke_test(api, engine, capabilities, device, wanted, sizes)
    taken = settings_taken(api, config, wanted) | {"timing_cache": cache, "graph": changed or "as exported"}
    warnings = (*said, *api.log.warnings(since))
    return Built(engine, model, sizes, tuple(sorted(taken.items())), layers, unrun, warnings)


def require_capabilities(api: Api, capabilities: Sequence[str], device: Device | None) -> None:
    """InputError for a compute capability that this builder cannot serve, with what serves it; RequirementError for TensorRT without a GPU."""
    if not api.is_rtx:
        if device is None:
            raise RequirementError(
                f"{api.title} builds on the GPU that the engine is for, and there is none here; build there, or here for an RTX GPU: "
                "`segnas build model.onnx --runtime tensorrt-rtx --gpu rtx4090`"
            )
        for capability in (*capabilities, device.compute_capability):
            require_served(api, capability)
        others = [capability for capability in capabilities if capability != device.compute_capability]
        if others:
            raise InputError(
                f"compute capability {others[0]} was asked for; {api.title} builds for the GPU at hand alone, {device.name} "
                f"({device.compute_capability}): leave --gpu out, build on that GPU, or use --runtime tensorrt-rtx"
            )
        return
    if not capabilities:
        raise InputError(f"no GPU was named; {api.title} builds for compute capabilities {', '.join(buildable_capabilities(api))}: give --gpu")
    if len(set(capabilities)) != len(capabilities):
        raise InputError(f"compute capabilities {', '.join(capabilities)} were given; each once is needed")
    for capability in capabilities:
        require_served(api, capability)


def require_served(api: Api, capability: str) -> None:
    """InputError where this TensorRT has no code for a compute capability, with the runtimes that have."""
    require_recent(api.runtime, capability)
    allowed = buildable_capabilities(api) if api.is_rtx else (capability,)
    if capability not in allowed:
        raise InputError(f"{_asked(capability)}; {api.title} builds for {', '.join(allowed)}: {_instead(api.runtime, capability)} (docs/gpus.md)")


def require_recent(runtime: Runtime, capability: str) -> None:
    """InputError for a GPU that is older than what any TensorRT of today serves, with what serves it; asked before any is looked for."""
    if version_numbers(capability) < version_numbers(LOWEST_OF_TENSORRT):
        raise InputError(
            f"{_asked(capability)}; TensorRT 10 and 11 and TensorRT-RTX start at {LOWEST_OF_TENSORRT}: {_instead(runtime, capability)} (docs/gpus.md)"
        )


def _asked(capability: str) -> str:
    names = _names(capability)
    return f"compute capability {capability}{f' ({names})' if names else ''} was asked for"


def _instead(runtime: Runtime, capability: str) -> str:
    found = instead_of(runtime, capability, "x86_64") or instead_of(runtime, capability, "aarch64")
    return f"use {', '.join(found)} on that GPU" if found else "no runtime of segnas is known to serve it"


def _names(capability: str) -> str:
    try:
        return f"such as {find_gpu(capability).name}"
    except InputError:
        return ""


def _ordered(sizes: Sizes | None) -> Sizes | None:
    if sizes is None:
        return None
    for name, *sides in (("height", sizes.least[0], sizes.best[0], sizes.most[0]), ("width", sizes.least[1], sizes.best[1], sizes.most[1])):
        if not 1 <= sides[0] <= sides[1] <= sides[2]:
            raise InputError(
                f"the {name}s {sides[0]}, {sides[1]} and {sides[2]} were given as least, best and most; none may be less than the one before"
            )
    return sizes


def _builder(api: Api) -> Any:
    since = api.log.mark()
    try:
        return require_step(api, "make a builder", api.module.Builder(api.logger), since)
    except (RuntimeError, TypeError) as error:  # pybind11 raises TypeError where the C++ side returned nothing
        told = "; ".join(api.log.errors(since)) or str(error)
        raise RequirementError(f"{api.title} cannot make a builder: {told}; a driver that is new enough is needed: see `segnas doctor`") from None


def _parsed(api: Api, builder: Any, model: ModelProto) -> Any:
    since = api.log.mark()
    strongly = api.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    flags = 1 << int(strongly) if not api.is_rtx and api.version.startswith("10.") else 0  # ignored from 11 on, where nothing else is left
    network = require_step(api, "make a network", builder.create_network(flags), since)
    parser = api.module.OnnxParser(network, api.logger)
    read = parser.parse(model.SerializeToString(deterministic=True))
    if not read or parser.num_errors:
        raise parser_error(api, parser)
    require_step(api, "read this graph", network.num_outputs > 0, since)
    return network


def _require_ports(network: Any, ports: Sequence[Port]) -> None:
    """What TensorRT read is what the manifest promises: names, types and shapes."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)] + [network.get_output(i) for i in range(network.num_outputs)]
    found = [Port(tensor.name, _DTYPES.get(str(tensor.dtype.name), "unknown"), tuple(tensor.shape)) for tensor in tensors]
    if ports and [str(port) for port in found] != [str(port) for port in ports]:
        raise IncompatibleError(
            f"the graph reads and gives {', '.join(map(str, found))}; its manifest promises {', '.join(map(str, ports))}: run `segnas export` again"
        )


def _add_profile(api: Api, builder: Any, config: Any, network: Any, sizes: Sizes | None) -> None:
    """The optimisation profile of a dynamic input, from its sizes; a static network needs none."""
    image = network.get_input(0)
    shape = tuple(image.shape)
    if all(side >= 0 for side in shape):
        return
    if sizes is None:
        raise InputError(
            f"the input {image.name} is {Port(image.name, '', shape)!s}, and no sizes were declared: export with --dynamic, or for one --size"
        )
    since = api.log.mark()
    profile = require_step(api, "make a profile of sizes", builder.create_optimization_profile(), since)
    try:
        profile.set_shape(image.name, *(_filled(shape, size) for size in (sizes.least, sizes.best, sizes.most)))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{api.title} does not take the sizes {sizes}: {error}; export with other sizes") from None
    added = config.add_optimization_profile(profile)
    require_step(api, f"take the sizes {sizes}", added >= 0 and bool(profile), since)


def _filled(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, ...]:
    """The shape with height and width in the places that vary."""
    places = [index for index, side in enumerate(shape) if side < 0]
    sides = list(size) if len(places) == 2 else [size[0] if places[0] == len(shape) - 2 else size[1]]
    return tuple(sides.pop(0) if side < 0 else side for side in shape)


def _built(api: Api, builder: Any, network: Any, config: Any, progress: Progress | None) -> tuple[Any, tuple[str, ...]]:
    since = api.log.mark()
    with interruptible() as interruption:
        monitor = progress_monitor(api, progress, interruption)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    return require_built(api, plan, since)


def _smoke_test(
    api: Api, engine: bytes, capabilities: Sequence[str], device: Device | None, settings: BuildSettings, sizes: Sizes | None
) -> tuple[str, tuple[Unrun, ...]]:
    """Open the engine at once where its GPU is here, and let the inspector speak."""
    if device is None:
        return "", (Unrun(SMOKE_TEST, "no NVIDIA GPU here to open the engine on"),)
    if api.is_rtx and device.compute_capability not in capabilities:
        here = f"the GPU here, {device.name}, has compute capability {device.compute_capability}"
        return "", (Unrun(SMOKE_TEST, f"{here}; the engine is for {', '.join(capabilities)}"),)
    return told_by_inspector(api, opened(api, engine, host_code=settings.version_compatible), sizes), ()

"""How an engine is built: every setting explicit, set, read back, and written down."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segnas.errors import InputError
from segnas.export.tensorrt_errors import require_step
from segnas.tensorrt_api import Api

HARDWARE = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}
VERBOSITY = {"detailed": "DETAILED", "names": "LAYER_NAMES_ONLY", "none": "NONE"}
MOST_WORKSPACE_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """The settings of a build; the defaults are TensorRT's own but for `tf32` and `timing_iterations`.

    `workspace_mib` and `auxiliary_streams` of None leave the choice to TensorRT. `tf32` lets fp32 convolutions drop to 10 bits of mantissa: off, so
    that fp32 means fp32. `timing_iterations` (TensorRT only) are trtexec's 8: with one, which kernel wins is a matter of luck. `verbosity` detailed
    is what lets the precision of each layer be proven; at run time it costs nothing where the context's own verbosity is off. `timing_cache` is a
    file that builds on one GPU share (TensorRT only).
    """

    workspace_mib: int | None = None
    level: int = 3
    timing_iterations: int = 8
    auxiliary_streams: int | None = None
    tf32: bool = False
    hardware: str = "none"
    version_compatible: bool = False
    verbosity: str = "detailed"
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("workspace (MiB)", self.workspace_mib, 1, MOST_WORKSPACE_MIB),
            ("level", self.level, 0, 5),
            ("timing iterations", self.timing_iterations, 1, 1000),
            ("auxiliary streams", self.auxiliary_streams, 0, 64),
        ):
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} was given {value}; {least} to {most} are allowed")
        for name, text, allowed in (("hardware compatibility", self.hardware, HARDWARE), ("verbosity", self.verbosity, VERBOSITY)):
            if text not in allowed:
                raise InputError(f"{name} was given {text!r}; allowed: {', '.join(allowed)}")


def require_settings(settings: BuildSettings, api: Api) -> None:
    """InputError for a setting that TensorRT-RTX does not have: it would take it and do nothing, or fail at the end of the build."""
    if not api.is_rtx:
        return
    given = {
        "hardware compatibility": settings.hardware != "none",
        "version compatibility": settings.version_compatible,
        "a timing cache": settings.timing_cache is not None,
    }
    reasons = {
        "hardware compatibility": "name every GPU that the engine is for with --gpu instead",
        "version compatibility": "its engines run on the release that built them and no other: build again for the other",
        "a timing cache": "it times nothing when it builds: leave it out",
    }
    for name, asked in given.items():
        if asked:
            raise InputError(f"{name} was asked for; {api.title} has none: {reasons[name]}")


def configuration(api: Api, builder: Any, settings: BuildSettings, capabilities: Sequence[str]) -> Any:
    """The builder's configuration with these settings, each read back; `capabilities` are those of TensorRT-RTX's targets."""
    since = api.log.mark()
    config = require_step(api, "make a configuration", builder.create_builder_config(), since)
    module = api.module
    values: dict[str, Any] = {
        "builder_optimization_level": settings.level,
        "profiling_verbosity": getattr(module.ProfilingVerbosity, VERBOSITY[settings.verbosity]),
    }
    if settings.auxiliary_streams is not None:
        values["max_aux_streams"] = settings.auxiliary_streams
    if not api.is_rtx:
        values["avg_timing_iterations"] = settings.timing_iterations
        values["hardware_compatibility_level"] = getattr(module.HardwareCompatibilityLevel, HARDWARE[settings.hardware])
    for name, value in values.items():
        _put(api, config, name, value)
    _flags(api, config, {"TF32": settings.tf32, "VERSION_COMPATIBLE": settings.version_compatible})
    if settings.workspace_mib is not None:
        _workspace(api, config, settings.workspace_mib << 20)
    if api.is_rtx:
        _capabilities(api, config, capabilities)
    return config


def settings_taken(api: Api, config: Any, settings: BuildSettings) -> dict[str, str]:
    """What the configuration says of itself, as text for the manifest."""
    found = {
        "aux_streams": "automatic" if settings.auxiliary_streams is None else str(config.max_aux_streams),
        "level": str(config.builder_optimization_level),
        "max_tactics": str(config.max_num_tactics),
        "tf32": "on" if config.get_flag(api.module.BuilderFlag.TF32) else "off",
        "tiling": config.tiling_optimization_level.name.lower(),
        "verbosity": settings.verbosity,
        "workspace_bytes": "all" if settings.workspace_mib is None else str(config.get_memory_pool_limit(api.module.MemoryPoolType.WORKSPACE)),
    }
    if not api.is_rtx:
        found |= {
            "hardware_compatibility": settings.hardware,
            "timing_iterations": str(config.avg_timing_iterations),
            "version_compatible": "on" if config.get_flag(api.module.BuilderFlag.VERSION_COMPATIBLE) else "off",
        }
    return found


def _put(api: Api, config: Any, name: str, value: Any) -> None:
    """Set a property and look whether it took: TensorRT clamps some and refuses others, and raises for neither."""
    since = api.log.mark()
    setattr(config, name, value)
    found = getattr(config, name)
    if found != value or api.log.errors(since):
        said = "; ".join(api.log.errors(since)) or f"it kept {found}"
        raise InputError(f"{api.title} does not take {name} {value}: {said}")


def _flags(api: Api, config: Any, wanted: dict[str, bool]) -> None:
    for name, on in wanted.items():
        flag, since = getattr(api.module.BuilderFlag, name), api.log.mark()
        (config.set_flag if on else config.clear_flag)(flag)
        if config.get_flag(flag) != on or api.log.errors(since):
            raise InputError(f"{api.title} does not take {name} {'on' if on else 'off'}: {'; '.join(api.log.errors(since)) or 'it stayed as it was'}")


def _workspace(api: Api, config: Any, size: int) -> None:
    since = api.log.mark()
    pool = api.module.MemoryPoolType.WORKSPACE
    config.set_memory_pool_limit(pool, size)
    if config.get_memory_pool_limit(pool) != size or api.log.errors(since):
        raise InputError(f"{api.title} does not take a workspace of {size} bytes: {'; '.join(api.log.errors(since)) or 'it kept another'}")


def _capabilities(api: Api, config: Any, capabilities: Sequence[str]) -> None:
    since = api.log.mark()
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        wanted = getattr(api.module.ComputeCapability, f"SM{capability.replace('.', '')}")
        require_step(api, f"build for compute capability {capability}", config.set_compute_capability(wanted, index), since)


def buildable_capabilities(api: Api) -> tuple[str, ...]:
    """The compute capabilities that this TensorRT-RTX builds for, `7.5` first."""
    names = [name.removeprefix("SM") for name in api.module.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{name[:-1]}.{name[-1]}" for name in sorted(names, key=int))

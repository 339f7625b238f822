"""A TensorRT that is not there: made from a recorded surface, so that it has every name that the real one has, and no other.

A name, a property or a parameter that the recording lacks raises, as it would in the real package; so does writing a property that can only be read.
What it does is little: it reads the ONNX graph's ports, keeps what is set, tells its progress, and gives a plan that says what it was built from.
"""

import enum
import hashlib
import json
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

SURFACES = Path(__file__).parent / "surfaces"
_DTYPES = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.UINT8: "UINT8", TensorProto.INT64: "INT64"}


@dataclass
class Script:
    """What the fake is to do wrong, and what it was asked."""

    says: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Error lines that the logger hears in `create_network`, `parse`, `build`, `deserialize` and so on."""
    gives_nothing: frozenset[str] = frozenset()
    """Calls that return None or False."""
    keeps: frozenset[str] = frozenset()
    """Properties whose setter does nothing, in silence."""
    parser_errors: tuple[tuple[str, str, int, str, str], ...] = ()
    """code, description, node, its name, its operator."""
    layers: str = ""
    cached: bytes = b""
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    during_build: Callable[[], None] = lambda: None

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of each call of that name."""
        return [arguments for found, arguments in self.calls if found == name]


def surface_names() -> list[str]:
    """The recorded surfaces."""
    return sorted(path.stem for path in SURFACES.glob("*.json"))


def surface(name: str) -> dict[str, Any]:
    """One recorded surface."""
    return json.loads((SURFACES / f"{name}.json").read_text(encoding="utf-8"))


def fake_tensorrt(name: str, script: Script | None = None) -> Any:
    """The module of a recorded surface."""
    recorded, told = surface(name), script or Script()
    module = types.ModuleType("tensorrt_rtx" if "rtx" in name else "tensorrt")
    vars(module).update(__version__=recorded["version"])
    for class_name, spec in recorded["classes"].items():
        made = enum.IntEnum(class_name, spec["values"]) if "values" in spec else _class(module, class_name, spec, told)
        setattr(module, class_name, made)
    for function in recorded["functions"]:
        setattr(module, function, _missing(function))
    module.get_nv_onnx_parser_version = lambda: 101600  # type: ignore[attr-defined]
    return module


def _missing(name: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the fake does not do {name}")

    return call


def _class(module: Any, name: str, spec: dict[str, Any], script: Script) -> type:
    body = _BODIES.get(name, _Body)
    space: dict[str, Any] = {"_module": module, "_script": script, "_surface": name}
    for constant in spec["constants"]:
        if name == "ILogger" and constant != "Severity":
            continue
        space[constant] = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)
    for method, overloads in spec["methods"].items():
        space[method] = _method(method, overloads, getattr(body, method, None))
    for member, access in spec["properties"].items():
        space[member] = _property(member, access, body)
    made = type(name, (_Base,), space)
    made._body = body  # type: ignore[attr-defined]
    made._arity = [len(call) - 1 for call in spec["made"]]  # type: ignore[attr-defined]
    return made


class _Base:
    """What every class of the fake has: its constructor's recorded arity, and no attribute that the recording lacks."""

    _body: Any
    _arity: list[int]
    _script: Script
    _module: Any
    _surface: str

    def __init__(self, *arguments: Any) -> None:
        if type(self).__dict__.get("_surface") == self._surface and arguments and len(arguments) not in self._arity:
            raise TypeError(f"{self._surface} takes {self._arity} arguments, {len(arguments)} were given")
        object.__setattr__(self, "_values", {})
        start = getattr(self._body, "start", None)
        if start is not None:
            start(self, *arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        own = type(self).__dict__.get("_surface") == self._surface
        if own and not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{self._surface} has no attribute {name!r} to be set")
        object.__setattr__(self, name, value)

    def __bytes__(self) -> bytes:
        return self._plan

    def __bool__(self) -> bool:
        return True


class _Body:
    """What a class does; methods without a body raise."""


def _method(name: str, overloads: list[list[str]], does: Callable[..., Any] | None) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        if overloads and not any(_fits(parameters, len(arguments), named) for parameters in overloads):
            raise TypeError(f"{self._surface}.{name} takes {overloads}; {len(arguments)} arguments and {sorted(named)} were given")
        self._script.calls.append((name, arguments))
        for line in self._script.says.get(name, ()):
            _say(self, line)
        if name in self._script.gives_nothing:
            return None
        if does is None:
            raise NotImplementedError(f"the fake does not do {self._surface}.{name}")
        return does(self, *arguments, **named)

    return call


def _fits(parameters: list[str], given: int, named: dict[str, Any]) -> bool:
    expected = parameters[1:] if parameters[:1] == ["self"] else parameters
    left = expected[given:]
    names = {parameter.rstrip("=") for parameter in left}
    return given <= len(expected) and set(named) <= names and all(p.endswith("=") or p in named for p in left)


def _property(name: str, access: str, body: Any) -> property:
    def read(self: Any) -> Any:
        if name in self._values:
            return self._values[name]
        default = getattr(body, name, None)
        return default(self) if callable(default) else default

    def write(self: Any, value: Any) -> None:
        if name not in self._script.keeps:
            self._values[name] = value

    return property(read, write if "write" in access else None)


def _say(owner: Any, line: str) -> None:
    """The logger hears an error, as from within C++."""
    logger = owner._module._logger
    logger.log(owner._module.ILogger.Severity.ERROR, line)


def _made(owner: Any, name: str, *arguments: Any) -> Any:
    return getattr(owner._module, name)(*arguments)


class _Builder(_Body):
    def start(self: Any, logger: Any) -> None:
        self._module._logger = logger

    def create_network(self: Any, flags: int = 0) -> Any:
        return _made(self, "INetworkDefinition")

    def create_builder_config(self: Any) -> Any:
        return _made(self, "IBuilderConfig")

    def create_optimization_profile(self: Any) -> Any:
        return _made(self, "IOptimizationProfile")

    def build_serialized_network(self: Any, network: Any, config: Any) -> Any:
        monitor, go = config.progress_monitor, True
        if monitor is not None:
            monitor.phase_start("Building engine", None, 2)
            for step in range(2):
                self._script.during_build()
                go = go and monitor.step_complete("Building engine", step)
            monitor.phase_finish("Building engine")
        if not go:
            _say(self, "IBuilder::buildSerializedNetwork: Error Code 7: BuildCanceled (Build canceled by user)")
            return None
        flags = sorted(config._flags)
        plan = _made(self, "IHostMemory")
        text = {"model": network._model, "flags": flags, "set": {k: str(v) for k, v in config._values.items() if k != "progress_monitor"}}
        plan._plan = json.dumps(text, sort_keys=True).encode()
        return plan


class _Network(_Body):
    def start(self: Any) -> None:
        self._ports = ([], [])

    def num_inputs(self: Any) -> int:
        return len(self._ports[0])

    def num_outputs(self: Any) -> int:
        return len(self._ports[1])

    def get_input(self: Any, index: int) -> Any:
        return self._ports[0][index]

    def get_output(self: Any, index: int) -> Any:
        return self._ports[1][index]


class _Parser(_Body):
    def start(self: Any, network: Any, logger: Any) -> None:
        self._network = network

    def parse(self: Any, model: bytes, path: str | None = None) -> bool:
        graph = onnx.load_from_string(model).graph
        self._network._model = hashlib.sha256(model).hexdigest()
        self._network._ports = tuple([_tensor(self, value) for value in values] for values in (graph.input, graph.output))
        return not self._script.parser_errors

    def num_errors(self: Any) -> int:
        return len(self._script.parser_errors)

    def get_error(self: Any, index: int) -> Any:
        error = _made(self, "ParserError")
        error._told = self._script.parser_errors[index]
        return error


def _tensor(owner: Any, value: onnx.ValueInfoProto) -> Any:
    tensor = _made(owner, "ITensor")
    kind = value.type.tensor_type
    sides = tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim)
    tensor._values.update(name=value.name, dtype=owner._module.DataType[_DTYPES[kind.elem_type]], shape=sides)
    return tensor


class _ParserError(_Body):
    def code(self: Any) -> Any:
        return self._module.ErrorCode[self._told[0]]

    def desc(self: Any) -> str:
        return self._told[1]

    def node(self: Any) -> int:
        return self._told[2]

    def node_name(self: Any) -> str:
        return self._told[3]

    def node_operator(self: Any) -> str:
        return self._told[4]


class _Config(_Body):
    builder_optimization_level = 3
    avg_timing_iterations = 1
    max_aux_streams = -1
    max_num_tactics = -1

    def start(self: Any) -> None:
        self._flags = {"TF32"}
        self._pool = 1 << 40
        self._capabilities = {}
        self._cache = None

    def profiling_verbosity(self: Any) -> Any:
        return self._module.ProfilingVerbosity.LAYER_NAMES_ONLY

    def tiling_optimization_level(self: Any) -> Any:
        return self._module.TilingOptimizationLevel.NONE

    def set_flag(self: Any, flag: Any) -> None:
        self._flags |= {flag.name}

    def clear_flag(self: Any, flag: Any) -> None:
        self._flags -= {flag.name}

    def get_flag(self: Any, flag: Any) -> bool:
        return flag.name in self._flags

    def set_memory_pool_limit(self: Any, pool: Any, pool_size: int) -> None:
        self._pool = pool_size

    def get_memory_pool_limit(self: Any, pool: Any) -> int:
        return self._pool

    def set_compute_capability(self: Any, compute_capability: Any, index: int) -> bool:
        self._capabilities[index] = compute_capability.name
        return True

    def add_optimization_profile(self: Any, profile: Any) -> int:
        return 0

    def create_timing_cache(self: Any, serialized_timing_cache: bytes) -> Any:
        cache = _made(self, "ITimingCache")
        cache._plan = serialized_timing_cache
        return cache

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return ignore_mismatch or not cache._plan.startswith(b"other GPU")

    def get_timing_cache(self: Any) -> Any:
        self._cache._plan += self._script.cached
        return self._cache


class _Cache(_Body):
    def combine(self: Any, input_cache: Any, ignore_mismatch: bool) -> bool:
        self._plan = bytes(dict.fromkeys(self._plan + input_cache._plan))
        return True

    def serialize(self: Any) -> Any:
        return self


class _Profile(_Body):
    def set_shape(self: Any, input: str, min: Any, opt: Any, max: Any) -> None:
        if any(not a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")


class _Runtime(_Body):
    def start(self: Any, logger: Any) -> None:
        self._module._logger = logger

    def deserialize_cuda_engine(self: Any, serialized_engine: bytes) -> Any:
        return _made(self, "ICudaEngine")

    def get_engine_validity(self: Any, buffer: bytes) -> Any:
        return self._script.validity(self._module, buffer)  # type: ignore[attr-defined]


class _Engine(_Body):
    num_io_tensors = 2

    def create_engine_inspector(self: Any) -> Any:
        return _made(self, "EngineInspector")

    def create_execution_context(self: Any) -> Any:
        return _made(self, "IExecutionContext")

    def get_tensor_name(self: Any, index: int) -> str:
        return ("labels", "input")[index]

    def get_tensor_mode(self: Any, name: str) -> Any:
        return self._module.TensorIOMode["INPUT" if name == "input" else "OUTPUT"]

    def get_tensor_shape(self: Any, name: str) -> Any:
        return (1, 3, -1, -1)


class _Context(_Body):
    def set_input_shape(self: Any, name: str, shape: Any) -> bool:
        return all(side > 0 for side in shape)


class _Inspector(_Body):
    def get_engine_information(self: Any, format: Any) -> str:
        return self._script.layers


_BODIES: dict[str, Any] = {
    "Builder": _Builder,
    "INetworkDefinition": _Network,
    "OnnxParser": _Parser,
    "ParserError": _ParserError,
    "IBuilderConfig": _Config,
    "ITimingCache": _Cache,
    "IOptimizationProfile": _Profile,
    "Runtime": _Runtime,
    "ICudaEngine": _Engine,
    "IExecutionContext": _Context,
    "EngineInspector": _Inspector,
}

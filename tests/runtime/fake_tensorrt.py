"""A simulated GPU under pycuda, cuda-bindings and TensorRT: what is enqueued happens when it is waited for, and not before.

Engines are JSON and compute `logits` as twice the image, or `labels` as its largest channel. The library has the names of a recorded release of the
real one and no others (tests/export/surfaces), so that what calls a name of another release fails here too. `World.fault` is what goes wrong.
"""

import enum
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from segnas.gpus import Runtime
from segnas.tensorrt_api import api_of

RECORDED = Path(__file__).parent.parent / "export" / "surfaces"
TENSORRT = ("tensorrt 10.12.0.36", "tensorrt 10.16.1.11", "tensorrt 11.4.0.106")
RTX = "tensorrt-rtx 1.7.1.116"
RELEASES = (*TENSORRT, RTX)
JIT_MS = 900.0
MS = 0.4


class World:
    """One GPU, its driver and its libraries; `log` tells what was made and given back."""

    def __init__(self, gpu: Any, release: str, *, fault: str = "", capability: tuple[int, int] = (8, 9), ms: float = MS) -> None:
        self.gpu, self.release, self.fault, self.capability, self.ms = gpu, release, fault, capability, ms
        self.runtime, self.version = release.split()
        self.log: list[str] = []
        self.stack: list[str] = []
        self.queue: list[Callable[[], None]] = []
        self.recording: list[Callable[[], None]] | None = None
        self.memory: dict[int, np.ndarray] = {}
        self.retained = self.pinned = self.compiled = 0
        self.driver: Any = driver_of(self)
        self.bindings: Any = None if fault == "no bindings" else bindings_of(self)
        self.library: Any = library_of(self)
        self.api = api_of(cast(Runtime, self.runtime), self.library)

    def require_current(self) -> None:
        assert self.stack[-1:] == ["primary"], "the primary context is not current"

    def enqueue(self, function: Callable[[], None], ms: float) -> None:
        """Put work on the stream; while recording, note it."""
        self.require_current()
        if self.recording is not None:
            self.recording.append(lambda: (self.gpu.launch(ms), self.queue.append(function)))  # type: ignore[arg-type]
            return
        self.gpu.launch(ms)
        self.queue.append(function)

    def wait(self) -> None:
        self.require_current()
        assert self.recording is None, "a stream cannot be waited for while it is recorded"
        waiting, self.queue = self.queue, []
        for function in waiting:
            function()
        self.gpu.synchronise()

    def at(self, address: int, count: int) -> np.ndarray:
        """The bytes at that address."""
        return self.memory[address][:count]


def driver_of(world: World) -> Any:
    """A module like pycuda.driver."""

    class Error(Exception): ...

    class LogicError(Error): ...

    class DriverMemoryError(Error): ...

    class Allocation:
        def __init__(self, count: int) -> None:
            world.require_current()
            if world.fault == "memory":
                raise DriverMemoryError("cuMemAlloc failed: out of memory")
            self.address = 4096 * (len(world.log) + 1 + sum(map(len, world.memory.values())))
            world.memory[self.address] = np.full(count, 17, np.uint8)
            world.log.append("allocate")

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            world.require_current()
            del world.memory[self.address]
            world.log.append("free buffer")

    class Pinned(np.ndarray):
        @property
        def base(self) -> Any:  # type: ignore[override]
            return SimpleNamespace(free=unpin)

    def unpin() -> None:
        world.require_current()
        world.pinned -= 1

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> Any:
        world.require_current()
        world.pinned += 1
        return np.full(shape, 3, dtype).view(Pinned)

    class Context:
        def push(self) -> None:
            world.stack.append("primary")

        @staticmethod
        def pop() -> None:
            world.stack.pop()

        @staticmethod
        def synchronize() -> None:
            world.wait()

        def detach(self) -> None:
            assert not world.stack
            world.retained -= 1

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        @staticmethod
        def count() -> int:
            return 0 if world.fault == "no device" else 1

        def retain_primary_context(self) -> Context:
            world.retained += 1
            return Context()

        def name(self) -> str:
            return "Simulated GPU"

        def compute_capability(self) -> tuple[int, int]:
            return world.capability

        def pci_bus_id(self) -> str:
            return "0000:01:00.0"

    class Stream:
        handle = 77

        def __init__(self, flags: int = 0) -> None:
            world.require_current()
            assert flags == 1, "it would wait for the default stream"

        def synchronize(self) -> None:
            world.wait()

        def __del__(self) -> None:
            world.log.append("free stream")

    class Event:
        def record(self, stream: Stream) -> "Event":
            world.require_current()
            assert isinstance(stream, Stream)
            self.when = world.gpu.event()
            return self

        def time_since(self, first: "Event") -> float:
            return world.gpu.elapsed_ms(first.when, self.when)

    def init() -> None:
        if world.fault == "no driver":
            raise LogicError("cuInit failed: no CUDA-capable device is detected")

    def htod(buffer: Allocation, source: np.ndarray, stream: Stream) -> None:
        world.enqueue(lambda: _put(world.at(int(buffer), source.nbytes), source), source.nbytes / world.gpu_bytes)  # type: ignore[attr-defined]

    def dtoh(destination: np.ndarray, buffer: Allocation, stream: Stream) -> None:
        def copy() -> None:
            destination[...] = world.at(int(buffer), destination.nbytes).view(destination.dtype).reshape(destination.shape)

        world.enqueue(copy, destination.nbytes / world.gpu_bytes)  # type: ignore[attr-defined]

    def memset(buffer: Allocation, value: int, count: int) -> None:
        world.require_current()
        assert not world.queue, "the default stream does not wait for ours"
        world.at(int(buffer), count)[...] = value

    world.gpu_bytes = 2.5e7  # type: ignore[attr-defined]
    return SimpleNamespace(
        Error=Error, LogicError=LogicError, MemoryError=DriverMemoryError, Context=Context, Device=Device, Stream=Stream, Event=Event, init=init,
        mem_alloc=Allocation, pagelocked_empty=pagelocked_empty, memcpy_htod_async=htod, memcpy_dtoh_async=dtoh, memset_d8=memset,
    )  # fmt: skip


def _put(where: np.ndarray, what: np.ndarray) -> None:
    where[...] = np.ascontiguousarray(what).view(np.uint8).reshape(-1)


def bindings_of(world: World) -> Any:
    """A module like cuda.bindings.driver, as far as graphs need it."""

    def cuStreamBeginCapture(stream: int, mode: str) -> tuple[int]:
        assert (stream, mode) == (77, "thread local")
        assert not world.queue, "the first run must be over"
        if world.fault == "begin":
            return (900,)
        world.recording = []
        return (0,)

    def cuStreamEndCapture(stream: int) -> tuple[int, Any]:
        recorded, world.recording = world.recording, None
        if world.fault == "end":
            return 901, None
        world.log.append("graph")
        return 0, recorded

    def cuGraphInstantiate(graph: Any, flags: int) -> tuple[int, Any]:
        if world.fault == "instantiate":
            return 700, None
        world.log.append("executable")
        return 0, list(graph)

    def cuGraphLaunch(executable: Any, stream: int) -> tuple[int]:
        world.require_current()
        if world.fault == "launch":
            return (719,)
        for step in executable if world.fault != "stale" else ():
            step()
        return (0,)

    def free(what: str) -> Callable[[Any], tuple[int]]:
        def destroy(handle: Any) -> tuple[int]:
            world.log.append(f"free {what}")
            return (0,)

        return destroy

    modes = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    return SimpleNamespace(
        CUstreamCaptureMode=modes, cuStreamBeginCapture=cuStreamBeginCapture, cuStreamEndCapture=cuStreamEndCapture,
        cuGraphInstantiate=cuGraphInstantiate, cuGraphLaunch=cuGraphLaunch, cuGraphExecDestroy=free("executable"), cuGraphDestroy=free("graph"),
    )  # fmt: skip


def plan(world: World, reads: tuple[int, ...], *, labels: bool, as_image: bool = False, **changes: Any) -> bytes:
    """An engine for that GPU and release; -1 is a side that may vary between `least` and `most`, `ms` is how long it takes (default: the world's)."""
    size = reads[1:3] if as_image else reads[2:]
    channels = reads[3] if as_image else reads[1]
    gives = [reads[0], *size] if labels else [reads[0], channels, *size]
    told = {
        "version": world.version,
        "capability": list(world.capability),
        "ports": {
            "input": ["INPUT", "UINT8" if as_image else "FLOAT", list(reads), "DEVICE"],
            "labels" if labels else "logits": ["OUTPUT", "UINT8" if labels else "FLOAT", gives, "DEVICE"],
        },
        "least": [1, 1],
        "most": [4096, 4096],
        "as_image": as_image,
    }
    return json.dumps(told | changes).encode()


def _surface(release: str) -> dict[str, set[str]]:
    """The public names of each class of that release; those of the module itself under `module`."""
    recorded = json.loads((RECORDED / f"{release.replace(' ', '-')}.json").read_text(encoding="utf-8"))
    classes = {name: {member for part in spec.values() for member in part if isinstance(member, str)} for name, spec in recorded["classes"].items()}
    return {**classes, "module": {*classes, *recorded["functions"]}}


def library_of(world: World) -> Any:
    """A module like tensorrt or tensorrt_rtx of that release."""
    surface, is_rtx = _surface(world.release), world.runtime == "tensorrt-rtx"

    class Surfaced:
        """Has the public names of the real class, and no others."""

        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("_") and name not in surface.get(type(self).__name__, ()):
                raise AttributeError(f"{type(self).__name__} of {world.release} has no {name!r}")
            return object.__getattribute__(self, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if not name.startswith("_") and name not in surface.get(type(self).__name__, ()):
                raise AttributeError(f"{type(self).__name__} of {world.release} has no {name!r}")
            object.__setattr__(self, name, value)

        def __del__(self) -> None:
            world.log.append(f"free {type(self).__name__}")

    def named(name: str) -> Any:
        values = sorted(value for value in surface.get(name, ()) if value.isupper())
        return enum.IntEnum(name, {value: 2**index for index, value in enumerate(values)}) if values else None

    enums = {
        name: named(name)
        for name in ("TensorIOMode", "TensorLocation", "ProfilingVerbosity", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy")
    }
    enums |= {name: named(name) for name in ("EngineValidity", "EngineInvalidityDiagnostics", "DataType")}

    class ILogger:
        Severity = enum.IntEnum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

        def __init__(self) -> None:
            self.made = True

    class IRuntimeCache(Surfaced):
        def __init__(self) -> None:
            self._content = b""

        def deserialize(self, content: bytes) -> bool:
            world.require_current()
            fits = content == f"kernels of {world.version}".encode()
            self._content = content if fits else b""
            return fits

        def serialize(self) -> Any:
            return memoryview(self._content) if self._content else None

    class IRuntimeConfig(Surfaced):
        def __init__(self) -> None:
            self._cache: Any = None
            if is_rtx:
                self.cuda_graph_strategy = enums["CudaGraphStrategy"].DISABLED
                self.dynamic_shapes_kernel_specialization_strategy = enums["DynamicShapesKernelSpecializationStrategy"].LAZY

        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            self._cache = cache
            return world.fault != "cache"

    class IExecutionContext(Surfaced):
        def __init__(self, engine: Any, config: Any) -> None:
            self._engine, self._config = engine, config
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._runs = 0
            self.nvtx_verbosity = None

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            told, declared = self._engine._told, self._engine._told["ports"][name][2]
            size = shape[1:3] if told["as_image"] else shape[2:]
            fits = all(a in (-1, b) for a, b in zip(declared, shape, strict=True))
            inside = all(low <= side <= high for low, side, high in zip(told["least"], size, told["most"], strict=True))
            if not (fits and inside):
                self._engine._say(f"setInputShape: {shape} is outside the profile")
                return False
            self._shapes[name] = tuple(shape)
            return True

        def infer_shapes(self) -> list[str]:
            if world.fault == "infer":
                raise RuntimeError("Shape inference failed")
            return [] if self._shapes and world.fault != "shapes" else ["logits"]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._shapes:
                return self._shapes[name]
            reads = self._shapes["input"]
            size = reads[1:3] if self._engine._told["as_image"] else reads[2:]
            declared = self._engine._told["ports"][name][2]
            return (declared[0], *size) if len(declared) == 3 else (*declared[:2], *size)

        def set_tensor_address(self, name: str, address: int) -> bool:
            assert address in world.memory
            self._addresses[name] = address
            return world.fault != "address"

        def is_stream_capturable(self, stream: int) -> bool:
            return world.fault != "uncapturable"

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 77, "never the default stream"
            self._runs += 1
            recording = world.recording is not None
            if world.fault == "refuse" or (world.fault == "refuse recording" and recording):
                self._engine._say("enqueueV3: refused")
                return False
            cache = self._config._cache if self._config is not None else None
            if is_rtx and cache is not None and not cache._content:
                world.gpu.now_ms += JIT_MS
                world.compiled += 1
                cache._content = f"kernels of {world.version}".encode()
            own_graph = is_rtx and self._config is not None and self._config.cuda_graph_strategy != enums["CudaGraphStrategy"].DISABLED
            stale = world.fault == "stale" and own_graph and self._runs > 1
            world.enqueue((lambda: None) if stale else self._compute, self._engine._told.get("ms", world.ms))
            return True

        def _compute(self) -> None:
            (reads, given), (gives, _) = ((n, t[0]) for n, t in self._engine._told["ports"].items())
            assert given == "INPUT"
            shape = self._shapes[reads]
            kind = np.uint8 if self._engine._told["as_image"] else np.float32
            image = world.at(self._addresses[reads], int(np.prod(shape)) * np.dtype(kind).itemsize).view(kind).reshape(shape)
            if self._engine._told["as_image"]:
                image = image.transpose(0, 3, 1, 2).astype(np.float32)
            answer = image.argmax(axis=1).astype(np.uint8) if gives == "labels" else 2 * image
            _put(world.at(self._addresses[gives], answer.nbytes), answer)

    class ICudaEngine(Surfaced):
        def __init__(self, told: dict[str, Any], say: Callable[[str], None]) -> None:
            self._told, self._say = told, say
            self._names = list(told["ports"])
            self.num_io_tensors = len(self._names)

        def get_tensor_name(self, index: int) -> str:
            return self._names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return enums["TensorIOMode"][self._told["ports"][name][0]]

        def get_tensor_dtype(self, name: str) -> str:
            return f"DataType.{self._told['ports'][name][1]}"

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self._told["ports"][name][2])

        def get_tensor_location(self, name: str) -> Any:
            return enums["TensorLocation"][self._told["ports"][name][3]]

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

        def create_execution_context(self, runtime_config: Any = None) -> Any:
            if world.fault == "context":
                self._say("createExecutionContext: out of memory")
                return None
            return IExecutionContext(self, runtime_config)

    class Runtime(Surfaced):
        def __init__(self, logger: Any) -> None:
            assert logger.made
            self._logger = logger

        def _say(self, message: str) -> None:
            self._logger.log(ILogger.Severity.WARNING, "not an error")
            self._logger.log(ILogger.Severity.ERROR, message)

        def get_engine_validity(self, content: bytes) -> tuple[Any, int]:
            validity, bits = enums["EngineValidity"], enums["EngineInvalidityDiagnostics"]
            try:
                told = json.loads(content)
            except ValueError:
                return validity.INVALID, int(bits.MALFORMED_ENGINE)
            found = (bits.VERSION_MISMATCH if told["version"] != world.version else 0) | (
                bits.UNSUPPORTED_CC if told["capability"] != list(world.capability) else 0
            )
            return (validity.INVALID, int(found)) if found else (validity.SUBOPTIMAL if world.fault == "suboptimal" else validity.VALID, 0)

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            world.require_current()
            try:
                told = json.loads(content)
            except ValueError:
                self._say("Serialization assertion magicTagRead == kMAGIC_TAG failed")
                return None
            if told["version"] != world.version:
                self._say(f"Version tag does not match: serialized engine version {told['version']}")
                return None
            return ICudaEngine(told, self._say)

    found = {"Runtime": Runtime, "ILogger": ILogger, "__version__": world.version, "__name__": world.runtime.replace("-", "_"), **enums}
    return SimpleNamespace(**{name: value for name, value in found.items() if name.startswith("__") or name in surface["module"]})

"""An engine of TensorRT or TensorRT-RTX, opened: from its bytes to an engine, and from an engine to what it reads and gives at a target's size."""

from typing import Any

from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.report import Port
from segnas.runtime.pycuda_device import PycudaDevice
from segnas.runtime.session import Specification, require_target
from segnas.target import Target
from segnas.tensorrt_api import Api, Log

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
_DIAGNOSTICS = {
    "VERSION_MISMATCH": "it was built by another release",
    "UNSUPPORTED_CC": "it was not built for this compute capability",
    "OLD_CUDA_DRIVER": "the driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "the GPU's memory does not suffice",
    "MALFORMED_ENGINE": "the file is damaged",
    "CUDA_ERROR": "CUDA failed",
}


def made(found: Any, what: str, log: Log) -> Any:
    """What was made; RequirementError, with what TensorRT says, where it made nothing."""
    if found is None:
        raise RequirementError(f"{what}: {log.said() or 'TensorRT does not say why'}; is the GPU's memory free?")
    return found


def deserialised(content: bytes, api: Api, device: PycudaDevice) -> tuple[Any, Any, tuple[str, ...]]:
    """The runtime, the engine, and what must be told of it; both must live as long as what is made of them.

    InputError for what is no engine, IncompatibleError for one of another GPU or release.
    """
    if not content:
        raise InputError("the engine is empty (0 bytes); build it again")
    runtime = made(api.module.Runtime(api.logger), "the runtime could not be made", api.log)
    told = _validity(content, runtime, api, device) if hasattr(runtime, "get_engine_validity") else ()
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        heard = api.log.said() or "it does not say why"
        error, advice = (
            (InputError, "the file is no engine, or damaged: build it again")
            if "magic" in heard.lower()
            else (IncompatibleError, "an engine of TensorRT serves one GPU and one version: build it here")
        )
        raise error(f"{_here(api, device)} cannot open this engine: {heard}; {advice}")
    return runtime, engine, told


def specified(target: Target, api: Api, engine: Any, context: Any) -> Specification:
    """Input and output at the target's size, which the context is set to; InputError where the engine is another one, or does not take that size."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    reads = [name for name in names if engine.get_tensor_mode(name) == api.module.TensorIOMode.INPUT]
    gives = [name for name in names if name not in reads]
    if len(reads) != 1 or len(gives) != 1:
        raise InputError(f"the engine has {len(reads)} inputs and {len(gives)} outputs; one image in and one map out is needed")
    shape = _wanted(tuple(engine.get_tensor_shape(reads[0])), target)
    shown = "x".join(map(str, shape))
    if not context.set_input_shape(reads[0], shape):
        raise InputError(
            f"the engine does not take an input of {shown}: {api.log.said() or 'it is outside its profile'}; give a size that it was built for, or "
            "build it for this one"
        )
    try:
        missing = context.infer_shapes()
    except RuntimeError as error:
        raise InputError(f"the engine's shapes cannot be told for an input of {shown}: {error}; build it again") from None
    if missing:
        raise InputError(f"the engine's {', '.join(missing)} have no shape with an input of {shown}; build it again")
    ports = (Port(name, _dtype(name, api, engine), tuple(context.get_tensor_shape(name))) for name in (reads[0], gives[0]))
    found = Specification(*ports)
    require_target(found, target)
    return found


def _validity(content: bytes, runtime: Any, api: Api, device: PycudaDevice) -> tuple[str, ...]:
    """What TensorRT-RTX says of the engine's header; IncompatibleError, with the reasons, where it cannot run here."""
    validity, bits = runtime.get_engine_validity(content)
    if validity == api.module.EngineValidity.SUBOPTIMAL:
        return ("TensorRT-RTX calls this engine suboptimal on this GPU: build it for this one's compute capability",)
    if validity != api.module.EngineValidity.INVALID:
        return ()
    known = api.module.EngineInvalidityDiagnostics
    reasons = [name for name in _DIAGNOSTICS if hasattr(known, name) and int(bits) & int(getattr(known, name))]
    what = ", ".join(_DIAGNOSTICS[name] for name in reasons) or api.log.said() or "it does not say why"
    error = InputError if reasons == ["MALFORMED_ENGINE"] else IncompatibleError
    raise error(f"{_here(api, device)} cannot run this engine: {what}; build it again for this GPU with this release")


def _here(api: Api, device: PycudaDevice) -> str:
    return f"{api.title} on {device.name} (compute capability {device.capability})"


def _wanted(declared: tuple[int, ...], target: Target) -> tuple[int, ...]:
    """The input's shape at the target's size, where the engine leaves sides open."""
    sides = (target.batch, target.height, target.width)
    if len(declared) != 4:
        return declared
    wanted = (*sides, 3) if target.input_contract == "image" else (sides[0], declared[1], *sides[1:])
    return tuple(mine if side < 0 else side for side, mine in zip(declared, wanted, strict=True))


def _dtype(name: str, api: Api, engine: Any) -> str:
    found = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
    if found not in _DTYPES:
        raise InputError(f"the engine's {name!r} has type {found}; allowed: {', '.join(_DTYPES)}")
    if engine.get_tensor_location(name) != api.module.TensorLocation.DEVICE:
        raise InputError(f"the engine keeps {name!r} in the host's memory; input and output on the device are needed")
    return _DTYPES[found]

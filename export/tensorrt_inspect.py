"""The engine inspector: what an engine that TensorRT has opened says of its own layers, in the JSON of TensorRT 10 and in that of 11.

In 11 the list `Bindings` became the objects `I/O Tensors`, and a tensor's `Format/Datatype` became `Format` and `DataType`
(docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html). Both are read here.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from segnas.errors import IncompatibleError, InputError
from segnas.export.layers import Layer
from segnas.export.tensorrt_errors import require_step
from segnas.report import Sizes
from segnas.tensorrt_api import Api

_WORDS = {
    "FP32": "fp32",
    "FLOAT": "fp32",
    "TF32": "fp32",
    "FP16": "fp16",
    "HALF": "fp16",
    "BF16": "bf16",
    "BFLOAT16": "bf16",
    "FP8": "fp8",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT4": "int4",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_TYPE = re.compile(rf"\b({'|'.join(sorted(_WORDS, key=len, reverse=True))})\b", re.IGNORECASE)
_METADATA = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:\[ONNX Layer: |\x1e|$))")
_INTEGER_KERNEL = re.compile(r"i8i8|s8s8|int8", re.IGNORECASE)
_COPIES = ("Reformat", "NoOp", "Constant")


def opened(api: Api, engine: bytes, *, host_code: bool = False) -> Any:
    """The engine, deserialised on the GPU here; IncompatibleError where TensorRT refuses it. `host_code` lets a version-compatible engine bring the
    runtime that lies in it, which is code that runs in this process.
    """
    since = api.log.mark()
    runtime = require_step(api, "make a runtime", api.module.Runtime(api.logger), since)
    if host_code:
        runtime.engine_host_code_allowed = True
    found = runtime.deserialize_cuda_engine(engine)
    if found is None or api.log.errors(since):
        told = "; ".join(api.log.errors(since)) or "it does not say why"
        raise IncompatibleError(f"{api.title} does not open this engine here: {told}; run `segnas build` again on this machine")
    return found


def told_by_inspector(api: Api, engine: Any, sizes: Sizes | None) -> str:
    """The inspector's JSON about every layer; of a dynamic engine at the best of its sizes, since it has no types without a size."""
    since = api.log.mark()
    inspector = require_step(api, "inspect the engine", engine.create_engine_inspector(), since)
    if sizes is not None:
        context = require_step(api, "make a context", engine.create_execution_context(), since)
        name = next(n for n in map(engine.get_tensor_name, range(engine.num_io_tensors)) if engine.get_tensor_mode(n).name == "INPUT")
        shape, best = tuple(engine.get_tensor_shape(name)), list(sizes.best)
        filled = tuple(best.pop(0) if side < 0 else side for side in shape)
        require_step(api, f"set the size {filled}", context.set_input_shape(name, filled), since)
        inspector.execution_context = context
    return str(inspector.get_engine_information(api.module.LayerInformationFormat.JSON))


def inspected_layers(text: str, graph: Sequence[Layer] = ()) -> tuple[Layer, ...]:
    """The layers of an engine from the inspector's JSON, either layout.

    `graph` are the layers of the ONNX graph: what they cost goes to the engine's layer that names them in its metadata, each once, and what no
    layer of the engine names stays with a last one of type `unknown`, so that nothing is lost. A convolution that names nothing counts what its own
    kernel, weights and output say. InputError where the text is no such JSON, or holds names alone.
    """
    records = _records(text)
    costs = {layer.name: layer for layer in graph}
    layers = [_layer(record, costs) for record in records]
    rest = [layer for layer in costs.values() if layer.macs or layer.parameters]
    if rest:
        parameters, macs = sum(layer.parameters for layer in rest), sum(layer.macs for layer in rest)
        layers.append(Layer("layers of the graph that the engine does not name", "unknown", "unknown", (), parameters, macs))
    return tuple(layers)


def _records(text: str) -> list[Mapping[str, Any]]:
    try:
        data: object = json.loads(text)
    except ValueError as error:
        raise InputError(f"the inspector's text is no JSON ({error}); build the engine again") from None
    layers = cast(dict[str, Any], data).get("Layers") if isinstance(data, dict) else None
    if not isinstance(layers, list) or not layers:
        raise InputError("the inspector's text holds no layers; build the engine again")
    records = [cast(Mapping[str, Any], layer) for layer in cast(list[object], layers) if isinstance(layer, dict)]
    if len(records) < len(cast(list[object], layers)):
        raise InputError("the inspector tells names alone, without types: the engine was not built with --verbosity detailed; build it again")
    return records


def _layer(record: Mapping[str, Any], costs: dict[str, Layer]) -> Layer:
    name, kind = str(record.get("Name", "")), str(record.get("LayerType", ""))
    inputs, outputs = (_tensors(record, key) for key in ("Inputs", "Outputs"))
    output = _sides(outputs[0]) if outputs else ()
    mine = [] if kind in _COPIES else [costs.pop(part) for part in dict.fromkeys(_onnx_names(record)) if part in costs]
    parameters = sum(layer.parameters for layer in mine) or _count(record.get("Weights"))
    macs = sum(layer.macs for layer in mine) if mine else _own_macs(record, output)
    return Layer(name, kind, _dtype(record, inputs, outputs), output, parameters, macs)


def _onnx_names(record: Mapping[str, Any]) -> list[str]:
    """The nodes that a layer was made of: by its metadata, else by its name, which joins theirs."""
    found = _METADATA.findall(str(record.get("Metadata", "")))
    return found or re.split(r" \+ |, ", str(record.get("Name", "")))


def _tensors(record: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = record.get(key)
    return [cast(Mapping[str, Any], item) for item in cast(list[object], found) if isinstance(item, dict)] if isinstance(found, list) else []


def _sides(tensor: Mapping[str, Any]) -> tuple[int, ...]:
    found = tensor.get("Dimensions")
    sides = cast(list[object], found) if isinstance(found, list) else []
    return tuple(side for side in sides if isinstance(side, int))


def _dtype(record: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> str:
    """What a layer computes with: int8 where what it reads is (or its kernel says so), else the type of its weights, else of what it reads."""
    reads = [_tensor_type(tensor) for tensor in inputs]
    weights = _type_in(str(cast(Mapping[str, Any], record["Weights"]).get("Type", ""))) if isinstance(record.get("Weights"), dict) else ""
    kernel = str(record.get("TacticName", ""))
    if record.get("LayerType") not in _COPIES and (weights == "int8" or reads[:1] == ["int8"]):
        if reads[:1] == ["int8"] or _INTEGER_KERNEL.search(kernel):
            return "int8"
        return next((name for name in reads if name), "unknown")
    known = [name for name in (weights, *reads, *map(_tensor_type, outputs)) if name]
    return known[0] if known else "unknown"


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    """The type of a tensor: TensorRT 11 says it in a field of its own, TensorRT 10 within the words about its format."""
    for key in ("DataType", "Datatype", "Format/Datatype"):
        if key in tensor:
            return _type_in(str(tensor[key]))
    return ""


def _type_in(text: str) -> str:
    found = _TYPE.search(text)
    return _WORDS[found[1].upper()] if found else ""


def _count(weights: object) -> int:
    number = cast(Mapping[str, Any], weights).get("Count") if isinstance(weights, dict) else 0
    return number if isinstance(number, int) else 0


def _own_macs(record: Mapping[str, Any], output: tuple[int, ...]) -> int:
    """Of a convolution that names no node of the graph: its weights are used once for each place of its output."""
    if record.get("ParameterType") != "Convolution" or len(output) != 4:
        return 0
    return _count(record.get("Weights")) * output[0] * math.prod(output[2:])

"""Check of ONNX bytes before anything parses them: what other parsers accept in silence is refused here, with one message that says what is wrong.

TensorRT's parser takes an empty file and NaN weights without a word, and tells of a missing side of a shape only when it builds. What is allowed here
is what every runtime that we deploy to reads: operators of the standard domain, opset 9 to 25 (TensorRT 11.4's guide), one image in and one map out,
static or with the sizes that the graph declares. Two forms that we write for ONNX Runtime's CPU are refused as long as nothing says that TensorRT is
not meant: features that are quantised to uint8, which TensorRT takes for int8 with a warning, and labels by comparisons of uint8, which it takes for
int32 and then refuses (measured, TensorRT-RTX 1.7).
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from segnas.errors import InputError
from segnas.report import Sizes
from segnas.target import parse_size

OPSETS = (9, 25)
SIZES_KEY = "sizes"
"""The entry of `metadata_props` in which a graph with dynamic height and width declares its sizes, as `sizes_text` writes them."""

_IMAGE_TYPES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8"}
_DOMAINS = ("", "ai.onnx")
_AGAIN = "run `segnas export` again"
_REAL_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT32), 32),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64), 64),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT16, TensorProto.UINT16), 16),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 8),
}


def checked_onnx(content: bytes, *, folder: Path | None, tensorrt: bool = True) -> ModelProto:
    """The model of those bytes, whole: initialisers that lie in files of `folder` (where the ONNX file lies) are read into it.

    InputError, with one message, where the file is empty, cut short, no ONNX, of another opset, breaks ONNX's own rules (`onnx.checker`, shapes
    inferred), lacks external data, holds weights that are not finite or operators that no runtime knows, has another number of inputs or outputs than
    one image and one map, or sides that are neither static nor declared (`declared_sizes`); with `tensorrt`, also where TensorRT would misread it.
    """
    if not content:
        raise InputError(f"the ONNX file is empty (0 bytes); {_AGAIN}")
    model = _parsed(content)
    _require_opset(model)
    _require_operators(model)
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            _bring_in(tensor, folder)
        _require_finite(tensor)
    _require_valid(model)
    _require_ports(model)
    if tensorrt:
        require_tensorrt(model)
    return model


def declared_sizes(model: ModelProto) -> Sizes | None:
    """The sizes that a dynamic graph declares in its metadata; None where it declares none. InputError where they are damaged."""
    found = {entry.key: entry.value for entry in model.metadata_props}.get(SIZES_KEY)
    return None if found is None else parse_sizes(found)


def parse_sizes(text: str) -> Sizes:
    """The least, best and most from `HxW:HxW:HxW`; InputError where they are not in that order."""
    parts = [parse_size(part) for part in text.split(":")] if text.count(":") == 2 else []
    if len(parts) != 3 or any(sorted(sides) != list(sides) for sides in zip(*parts, strict=True)):
        raise InputError(
            f"sizes {text!r} were given; three sizes, the least, the best and the most, none of whose sides shrinks, are written "
            "HEIGHTxWIDTH:HEIGHTxWIDTH:HEIGHTxWIDTH, such as 256x512:512x1024:1024x2048"
        )
    return Sizes(parts[0], parts[1], parts[2])


def sizes_text(sizes: Sizes) -> str:
    """`HxW:HxW:HxW`, the reverse of `parse_sizes`."""
    return ":".join(f"{height}x{width}" for height, width in (sizes.least, sizes.best, sizes.most))


def _parsed(content: bytes) -> ModelProto:
    try:
        model = ModelProto.FromString(content)
    except DecodeError:
        raise InputError(f"the ONNX file ({len(content)} bytes) is cut short or no ONNX at all; copy it again as binary, or {_AGAIN}") from None
    if not model.graph.node or not model.opset_import:
        lacks = "no node" if not model.graph.node else "no operator set"
        raise InputError(f"the ONNX file ({len(content)} bytes) holds {lacks}: it is cut short or no ONNX at all; {_AGAIN}")
    if not all(isinstance(name, str) for name in _names(model)):  # protobuf gives bytes where a name is no text
        raise InputError(f"the ONNX file ({len(content)} bytes) holds names that are no text: it is damaged; {_AGAIN}")
    return model


def _names(model: ModelProto) -> Iterator[object]:
    yield from (entry.domain for entry in model.opset_import)
    yield from (text for entry in model.metadata_props for text in (entry.key, entry.value))
    yield from (value.name for value in (*model.graph.input, *model.graph.output, *model.graph.value_info))
    for node in _nodes(model.graph):
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output, *(attribute.name for attribute in node.attribute))
    for tensor in _tensors(model.graph):
        yield from (tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value)))


def _require_opset(model: ModelProto) -> None:
    found = [entry.version for entry in model.opset_import if entry.domain in _DOMAINS]
    if len(found) != 1 or not OPSETS[0] <= found[0] <= OPSETS[1]:
        raise InputError(
            f"the ONNX file is of opset {', '.join(map(str, found)) or 'none'}; {OPSETS[0]} to {OPSETS[1]} are allowed, which TensorRT reads: "
            "export at opset 18"
        )


def _require_operators(model: ModelProto) -> None:
    """InputError for what is neither a standard operator at the model's opset; a graph with functions of its own is not one of ours."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in _DOMAINS)
    if model.functions:
        raise InputError(f"the ONNX file defines functions ({model.functions[0].name}); plain operators are needed: export without functions")
    for node in _nodes(model.graph):
        if node.domain not in _DOMAINS or not onnx.defs.has(node.op_type, opset, ""):
            named = f"{node.domain}.{node.op_type}" if node.domain not in _DOMAINS else node.op_type
            raise InputError(
                f"node {node.name!r} is of operator {named!r}, which ONNX's opset {opset} does not have; plain operators are needed: export without "
                "custom ones"
            )


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs included."""
    for node in graph.node:
        yield node
        for inner in _graphs(node.attribute):
            yield from _nodes(inner)


def _graphs(attributes: Iterable[AttributeProto]) -> Iterator[GraphProto]:
    for attribute in attributes:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every initialiser and every constant."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for inner in _graphs(node.attribute):
            yield from _tensors(inner)


def _bring_in(tensor: TensorProto, folder: Path | None) -> None:
    """Read a tensor's external data; InputError where its file is elsewhere, missing or too short."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise InputError(
            f"the weights {tensor.name!r} lie outside the ONNX file, in {location!r}; give the file by its path, with that one beside it"
        )
    path = folder / location
    if not location or Path(location).is_absolute() or ".." in Path(location).parts or path.is_symlink():
        raise InputError(f"the weights {tensor.name!r} are said to lie in {location!r}; only a file in the ONNX file's own folder is read")
    needed = math.prod(tensor.dims) * _BITS.get(tensor.data_type, 0) // 8
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(needed)))
        held = path.stat().st_size
    except ValueError:
        raise InputError(f"the weights {tensor.name!r} have a damaged place in {location!r}: {entries}; {_AGAIN}") from None
    except OSError as error:
        raise InputError(f"the weights {tensor.name!r} lie in {path}, which cannot be read: {error.strerror or error}; copy it beside") from None
    if length < needed or offset < 0 or held < offset + length:
        raise InputError(
            f"the weights {tensor.name!r} need {max(needed, length)} bytes from byte {offset} of {path}, which has {held}: it is cut short; copy it "
            f"again, or {_AGAIN}"
        )
    load_external_data_for_tensor(tensor, str(folder))
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _require_finite(tensor: TensorProto) -> None:
    if tensor.data_type not in _REAL_TYPES:
        return
    try:
        values = numpy_helper.to_array(tensor)
    except (ValueError, TypeError):
        raise InputError(f"the weights {tensor.name!r} do not fill their shape {list(tensor.dims)}: the ONNX file is damaged; {_AGAIN}") from None
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise InputError(f"the weights {tensor.name!r} hold {bad} values that are NaN or infinite; train again or give another checkpoint")


def _require_valid(model: ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"the ONNX file breaks ONNX's own rules: {reason}; {_AGAIN}") from None


def _require_ports(model: ModelProto) -> None:
    known = {tensor.name for tensor in model.graph.initializer}
    reads, gives = [value for value in model.graph.input if value.name not in known], list(model.graph.output)
    if len(reads) != 1 or len(gives) != 1:
        raise InputError(
            f"the ONNX file has {len(reads)} inputs ({', '.join(value.name for value in reads) or 'none'}) and {len(gives)} outputs; "
            "one image in and one map out is needed"
        )
    port, sides = reads[0], _sides(reads[0])
    kind = port.type.tensor_type.elem_type
    if len(sides) != 4 or kind not in _IMAGE_TYPES:
        raise InputError(
            f"the input {port.name!r} is {TensorProto.DataType.Name(kind)} with {len(sides)} sides; an image of 4 sides and one of the types "
            f"{', '.join(_IMAGE_TYPES.values())} is needed"
        )
    if any(isinstance(side, int) and side < 1 for side in sides):
        raise InputError(f"the input {port.name!r} has shape {sides}; every side is at least 1")
    _require_profile(port.name, sides, 1 if kind == TensorProto.UINT8 else 2, declared_sizes(model))


def _require_profile(name: str, sides: list[int | str], height: int, sizes: Sizes | None) -> None:
    """InputError where a side may vary that must not, or without declared sizes; `height` is that side's place, width's is the next."""
    varying = [place for place, side in enumerate(sides) if not isinstance(side, int)]
    shown = "x".join(map(str, sides))
    if set(varying) - {height, height + 1}:
        raise InputError(f"the input {name!r} is {shown}; only its height and width may vary: export with a static batch")
    if varying and sizes is None:
        raise InputError(
            f"the input {name!r} is {shown}, and the file declares no sizes for what varies; export with --dynamic LEAST:BEST:MOST, or for one --size"
        )


def require_tensorrt(model: ModelProto) -> None:
    """InputError for the two forms that are for ONNX Runtime's CPU alone: uint8 features, and labels by comparisons of uint8."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = constants.get(node.input[2]) if len(node.input) > 2 else None
            told = "quantises to other numbers than int8 with zero point 0"
            misread = zero is None or zero.data_type != TensorProto.INT8 or bool(numpy_helper.to_array(zero).any())
        else:
            told = "chooses between labels of uint8"
            misread = node.op_type == "Where" and any(name in constants and constants[name].data_type == TensorProto.UINT8 for name in node.input)
        if misread:
            raise InputError(
                f"node {node.name!r} {told}: such a file is for ONNX Runtime's CPU, and TensorRT misreads it; run `segnas export --for tensorrt`"
            )


def _sides(value: ValueInfoProto) -> list[int | str]:
    """Each side as a number, or as its name where it may vary (`?` without one)."""
    return [side.dim_value if side.HasField("dim_value") else side.dim_param or "?" for side in value.type.tensor_type.shape.dim]

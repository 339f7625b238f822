"""Template: the ONNX graph of one operation without its weights, exported once and kept.

The exporter takes 0.7 s a call and 0.17 s for each operation in it (torch 2.13, measured), joining takes milliseconds: so all operations that are
missing go through **one** call of `torch.onnx.export`, are cut apart, stripped of weights and names, and kept in the process and in a small cache
on disk. It is the dynamo exporter: the older one takes 0.12 s an operation, but is deprecated and leaves Shape, Slice and Identity nodes behind.
"""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from segnas import ops
from segnas.arch import Operation
from segnas.errors import RequirementError
from segnas.export.folding import folded_module
from segnas.files import write_bytes

OPSET = 18
"""The newest whose Resize runs on the device in every runtime that we deploy to (19 and later fell to the CPU in onnxruntime's CUDA provider)."""

IR_VERSION = 10
_FORMAT = 1
_TOGETHER = 48


@dataclass(frozen=True)
class Template:
    """Nodes of one operation: reads values `x0`, `x1`, ...; gives `y`. `graph.initializer` holds constants with data and weights with shapes only.

    `alias` marks an operation that is nothing: `y` is `x0`.
    """

    graph: onnx.GraphProto
    weights: frozenset[str]
    alias: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the structure: operators, attributes, constants and the shapes of the weights, never their values."""
        return hashlib.sha256(_content(self)).hexdigest()


Progress = Callable[[int, int], None]
_known: dict[tuple[Operation, int], Template] = {}


def templates(operations: Iterable[Operation], *, batch: int = 1, cache: Path | None = None, progress: Progress | None = None) -> list[Template]:
    """The template of each operation, in order; what neither the process nor the cache folder has is exported in one go.

    `cache` is the folder (default `graphs` in `SEGNAS_CACHE`, else in ~/.cache/segnas); a damaged file there is made again, and a folder that cannot
    be written is no error, as the cache only saves time. `progress(done, total)` counts the exported operations.
    """
    wanted = list(operations)
    folder = cache or cache_folder()
    missing = [o for o in dict.fromkeys(wanted) if (o, batch) not in _known and not _read(o, batch, folder)]
    for start in range(0, len(missing), _TOGETHER):
        some = missing[start : start + _TOGETHER]
        for operation, template in zip(some, _exported(some, batch), strict=True):
            _known[operation, batch] = template
            _write(operation, batch, folder, template)
        if progress is not None:
            progress(start + len(some), len(missing))
    return [_known[operation, batch] for operation in wanted]


def cache_folder() -> Path:
    """Where templates are kept between processes."""
    root = os.environ.get("SEGNAS_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "segnas") / "graphs"


def forget() -> None:
    """Empty the process's own store; the next call reads the cache folder again (tests)."""
    _known.clear()


class _Several(nn.Module):
    """Independent operations side by side: each with its own inputs and its own output."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.operations = tuple(operations)
        self.several = nn.ModuleList(folded_module(_built(o)) for o in operations)
        for parameter in self.parameters():  # distinct values: the exporter merges initialisers that are equal
            nn.init.uniform_(parameter.requires_grad_(False), 0.5, 1.5)

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        rest = list(features)
        for module, operation in zip(self.several, self.operations, strict=True):
            mine, rest = rest[: len(operation.inputs)], rest[len(operation.inputs) :]
            results.append(module(mine, (operation.output.height, operation.output.width)))
        return tuple(results)


def _built(operation: Operation) -> nn.Module:
    return ops.build(operation.kind, tuple(shape.channels for shape in operation.inputs), operation.output.channels, operation.stride)


def _exported(operations: Sequence[Operation], batch: int) -> list[Template]:
    nothing = Template(onnx.GraphProto(), frozenset(), alias=True)
    made = {o: nothing for o in operations if o.is_free or (o.op == "resize" and o.inputs[0] == o.output)}
    made |= {o: argmax_template() for o in operations if o.op == "argmax"}
    rest = [o for o in operations if o not in made]
    if rest:
        with torch.random.fork_rng(devices=[]):
            module = _Several(rest)
        inputs = tuple(torch.empty(batch, *shape) for o in rest for shape in o.inputs)
        model = plain_export(module, inputs)
        names = iter([value.name for value in model.graph.input])
        by_output = {output: node for node in model.graph.node for output in node.output}
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for index, operation in enumerate(rest):
            mine = [next(names) for _ in operation.inputs]
            made[operation] = _cut(model.graph.output[index].name, mine, by_output, constants, module.several[index], f"several.{index}.")
    return [made[operation] for operation in operations]


def plain_export(module: nn.Module, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """What `torch.onnx.export` makes of a module in evaluation mode, at OPSET; its harmless warnings are kept quiet."""
    with torch.no_grad(), warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
        program = torch.onnx.export(module.eval(), inputs, dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    model = program.model_proto
    if model.functions or [(entry.domain, entry.version) for entry in model.opset_import] != [("", OPSET)]:
        raise RuntimeError(f"the exporter gave functions or operator sets {list(model.opset_import)}; plain operators of opset {OPSET} are needed")
    return model


@contextmanager
def quiet(name: str) -> Generator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _cut(
    output: str, inputs: list[str], by_output: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto], module: nn.Module, prefix: str
) -> Template:
    """The part of the joint graph behind `output` under names of our own: `x0`, ... in, `y` out, `v`s between, weights by the module's parameter."""
    names = {name: f"x{i}" for i, name in enumerate(inputs)}
    graph, weights = onnx.GraphProto(), set[str]()

    def visit(value: str) -> str:
        if value in names or not value:
            return names.get(value, "")
        if value in constants:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(constants[value])
            if value.startswith(prefix):
                tensor.Clear()
                tensor.dims.extend(constants[value].dims)
                tensor.data_type = constants[value].data_type
                weights.add(value.removeprefix(prefix))
            tensor.name = names[value] = value.removeprefix(prefix) if value.startswith(prefix) else f"c{len(graph.initializer)}"
            tensor.doc_string = ""
            graph.initializer.append(tensor)
            return names[value]
        node = by_output[value]
        read = [visit(source) for source in node.input]
        if node.op_type == "Identity":
            names[value] = read[0]
            return read[0]
        for given in node.output:
            names[given] = "y" if given == output else f"v{len(names)}"
        copied = onnx.NodeProto(op_type=node.op_type, name=f"{len(graph.node)}.{node.op_type}", input=read, output=[names[o] for o in node.output])
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            copied.attribute.add().CopyFrom(attribute)
            copied.attribute[-1].doc_string = ""
        graph.node.append(copied)
        return names[value]

    last = visit(output)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.name in weights}
    if wanted != found or last != ("y" if graph.node else "x0"):
        raise RuntimeError(f"the exported graph has weights {found}; the module has {wanted}")
    return Template(graph, frozenset(weights), alias=not graph.node)


def argmax_template() -> Template:
    """Index of the largest channel, the lowest on ties, as uint8: (N, C, H, W) -> (N, H, W)."""
    helper = onnx.helper
    nodes = [
        helper.make_node("ArgMax", ["x0"], ["v0"], "0.ArgMax", axis=1, keepdims=0, select_last_index=0),
        helper.make_node("Cast", ["v0"], ["y"], "1.Cast", to=onnx.TensorProto.UINT8),
    ]
    return Template(onnx.GraphProto(node=nodes), frozenset())


def _content(template: Template) -> bytes:
    model = onnx.ModelProto(ir_version=IR_VERSION, graph=template.graph, opset_import=[onnx.helper.make_opsetid("", OPSET)])
    for name in sorted(template.weights):
        model.metadata_props.add(key="weight", value=name)
    return model.SerializeToString(deterministic=True)


@cache
def _stamp() -> str:
    """What a template depends on besides its operation: exporter, opset, and the definition of the operations."""
    parts = [torch.__version__, version("onnxscript"), str(OPSET), str(_FORMAT)]
    parts += [hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in (ops.__file__, __file__)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _path(operation: Operation, batch: int, folder: Path) -> Path:
    return folder / f"{operation.digest}-{batch}-{_stamp()}.graph"


def _write(operation: Operation, batch: int, folder: Path, template: Template) -> None:
    content = _content(template)
    try:
        write_bytes(_path(operation, batch, folder), hashlib.sha256(content).digest() + content)
    except RequirementError:
        return


def _read(operation: Operation, batch: int, folder: Path) -> bool:
    """Take the template from the cache folder; False where it is not there or damaged."""
    try:
        stored = _path(operation, batch, folder).read_bytes()
        if hashlib.sha256(stored[32:]).digest() != stored[:32]:
            return False
        model = onnx.ModelProto.FromString(stored[32:])
    except (OSError, DecodeError):
        return False
    weights = frozenset(entry.value for entry in model.metadata_props)
    _known[operation, batch] = Template(model.graph, weights, alias=not model.graph.node)
    return True

"""ONNX from a network: templates of its operations joined over the one walk, and filled with its weights.

The graph reads `input` and gives `labels` or `logits` as the target's contracts say (`contracts`). Everything is static, unless sizes are given
(`dynamic`). Of precision fp16, every value between input and output is half, weights, resizes and constants included; the normalisations are folded
before in double precision. Initialisers carry the names of the network's parameters, nodes those of the walk (`nodes.12/0.Conv`), so that a runtime's
profile can be read back. Same network, same target: same bytes, on every machine with the same packages.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from segnas.arch import Operation, Shape, argmax_operation
from segnas.errors import InputError, VerificationError
from segnas.export.argmax import labels_template
from segnas.export.contracts import append_input, append_output, input_shape
from segnas.export.dynamic import free
from segnas.export.folding import folded_module, folded_state
from segnas.export.templates import IR_VERSION, OPSET, Template, argmax_template, plain_export, templates
from segnas.kinds import kind
from segnas.network import Network
from segnas.report import Sizes
from segnas.target import Target

MOST_CLASSES = 256
GRAPH_PRECISIONS = ("fp32", "fp16")


def onnx_from_network(
    network: Network,
    target: Target,
    *,
    metadata: Mapping[str, str] | None = None,
    sizes: Sizes | None = None,
    output_size: tuple[int, int] | None = None,
    cache: Path | None = None,
) -> bytes:
    """The network as one ONNX file for that target, normalisation folded, always with its running statistics (whatever mode it is in).

    `metadata` goes into `metadata_props`. With `sizes`, height and width may vary between the least and the most. `output_size` is (height, width) of
    the answer, by default the input's. `cache` is the folder of `templates`. InputError for weights that are not finite, or a target that this
    exporter does not write; VerificationError for weights that do not fit half.
    """
    _require(network, target, output_size)
    architecture, half = network.architecture, target.precision == "fp16"
    walk = list(architecture.operations(*(sizes.most if sizes is not None else (target.height, target.width))))
    reads = [node.inputs for node in architecture.nodes]
    if output_size is not None:
        _end_at(output_size, walk, reads, sizes)
    parts = templates(walk[1:], batch=target.batch, cache=cache)
    graph = onnx.GraphProto(name="segnas")
    image = append_input(graph, target, architecture.nodes[0].channels, sizes)
    logits = "logits" if target.output_contract == "labels" or not half else "logits.half"
    values = _value_names(reads, parts, image, logits)
    for index, template in enumerate(parts, 1):
        weights = _weights(network.nodes[str(index)], index, half) if template.weights else {}
        _append(graph, _halved(template) if half else template, f"nodes.{index}", [values[s] for s in reads[index]], values[index], weights)
    if values[-1] == image:  # a network of nothing but skips
        graph.node.append(onnx.helper.make_node("Identity", [image], [logits], "identity"))
    shape = _append_answer(graph, walk[-1], target)
    if sizes is not None:
        _free(graph, network, target, sizes, output_size)
        shape = [*shape[:-2], *(output_size or _image_sides(graph, target))]
    append_output(graph, target.output_contract, shape)
    return _bytes(graph, metadata or {})


def graph_sha256(operation: Operation, *, batch: int = 1, runtime: str = "onnxruntime", cache: Path | None = None) -> str:
    """Hash of the operation's exported graph: structure, shapes of the weights and of what it reads and gives, never a weight's value. Only the
    argmax differs between runtimes.
    """
    argmax = operation.op == "argmax"
    template = labels_template(operation, runtime) if argmax else templates([operation], batch=batch, cache=cache)[0]
    ports = [[batch, *shape] for shape in (*operation.inputs, operation.output)]
    return hashlib.sha256(f"{template.sha256} {ports}".encode()).hexdigest()


def whole_onnx_from_network(network: Network, target: Target) -> bytes:
    """The same engine by one plain `torch.onnx.export` of the whole network: slow, and what the joined graph is checked against."""
    _require(network, target, None)
    image = torch.zeros(target.batch, network.architecture.nodes[0].channels, target.height, target.width)
    training = network.training
    module = folded_module(network).half() if target.precision == "fp16" else network
    model = plain_export(_Contract(module, target), (image,))
    network.train(training)
    return model.SerializeToString(deterministic=True)


class _Contract(nn.Module):
    """The network between a normalised image and the target's output; a half network reads and gives float32 all the same."""

    def __init__(self, network: nn.Module, target: Target) -> None:
        super().__init__()
        self.network = network
        self.half_inside, self.labels = target.precision == "fp16", target.output_contract == "labels"

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 -> (N, H, W) uint8, or (N, classes, H, W) float32."""
        logits = self.network(image.half() if self.half_inside else image)
        return logits.argmax(dim=1).to(torch.uint8) if self.labels else logits.float()


def _require(network: Network, target: Target, output_size: tuple[int, int] | None) -> None:
    if target.precision not in GRAPH_PRECISIONS:
        raise InputError(
            f"a graph of precision {target.precision!r} was asked for; a network is written as {' or '.join(GRAPH_PRECISIONS)}, and int8 is made of "
            "its fp32 graph with calibration images: `segnas export --precision int8`"
        )
    channels = network.architecture.nodes[0].channels
    if target.input_contract == "image" and channels != 3:
        raise InputError(f"the network reads {channels} channels; an engine of input 'image' reads 3: ask for input 'normalised'")
    if output_size is not None and min(output_size) < 1:
        raise InputError(f"output size {'x'.join(map(str, output_size))} was given; at least 1x1 is needed")
    if target.output_contract == "labels" and network.architecture.classes > MOST_CLASSES:
        raise InputError(
            f"{network.architecture.classes} classes do not fit the uint8 output `labels`; at most {MOST_CLASSES}, or ask for output 'logits'"
        )


def _end_at(size: tuple[int, int], walk: list[Operation], reads: list[tuple[int, ...]], sizes: Sizes | None) -> None:
    """Let the last resize go to that size, or put one behind where the network does not end in one."""
    shape = Shape(walk[-1].output.channels, *size)
    if walk[-1].op == "resize":
        walk[-1] = replace(walk[-1], output=shape)
    else:
        walk.append(Operation(kind("resize"), 1, (walk[-1].output,), shape))
        reads.append((len(reads) - 1,))
    if sizes is not None and walk[-1].inputs[0] == shape:  # no resize at the largest input, but one below it
        raise InputError(f"output size {size[0]}x{size[1]} is what the largest input gives by itself; give another --output-size, or none")


def _append_answer(graph: onnx.GraphProto, last: Operation, target: Target) -> list[int | str]:
    """Put what turns the network's last value into the engine's answer behind it; the answer's shape."""
    channels, height, width = last.output
    if target.output_contract == "labels":
        template = argmax_template() if target.precision == "fp16" else labels_template(argmax_operation(last.output), target.backend)
        _append(graph, template, "argmax", ["logits"], "labels", {})
        return [target.batch, height, width]
    if target.precision == "fp16":
        graph.node.append(onnx.helper.make_node("Cast", ["logits.half"], ["logits"], "logits/float.Cast", to=TensorProto.FLOAT))
    return [target.batch, channels, height, width]


def _free(graph: onnx.GraphProto, network: Network, target: Target, sizes: Sizes, output_size: tuple[int, int] | None) -> None:
    """Make the graph's height and width vary, but for what leads to a fixed output size."""
    architecture = network.architecture
    architecture.operations(*sizes.least)  # InputError where that is too small
    bins = {index: node.kind.integers("bins") for index, node in enumerate(architecture.nodes) if node.op == "pyramid_pool"}
    last = len(architecture.nodes) - (architecture.nodes[-1].op == "resize")
    free(graph, most=sizes.most, levels=architecture.levels, bins=bins, fixed={f"nodes.{last}/"} if output_size is not None else set())


def _image_sides(graph: onnx.GraphProto, target: Target) -> tuple[int | str, ...]:
    first = 1 if target.input_contract == "image" else 2
    return input_shape(graph.input[0])[first : first + 2]


def _value_names(reads: Sequence[tuple[int, ...]], parts: list[Template], image: str, logits: str) -> list[str]:
    """What each node's feature is called in the graph: its own name, its input's where the node is nothing, that of the logits for the last."""
    values = [image]
    for index, inputs in enumerate(reads[1:], 1):
        values.append(values[inputs[0]] if parts[index - 1].alias else f"nodes.{index}")
    last = values[-1]
    return values if last == image else [logits if value == last else value for value in values]


def _halved(template: Template) -> Template:
    """The template of the same operation in half: the same nodes, real constants and weights as float16."""
    graph = onnx.GraphProto()
    graph.CopyFrom(template.graph)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            if tensor.name in template.weights:
                tensor.data_type = TensorProto.FLOAT16
            else:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return Template(graph, template.weights, template.alias)


def _append(graph: onnx.GraphProto, template: Template, place: str, reads: list[str], gives: str, weights: dict[str, onnx.TensorProto]) -> None:
    """Copy a template into the graph: its values under `place`, its weights filled in."""
    if template.alias:
        return
    names = {f"x{i}": name for i, name in enumerate(reads)} | {"y": gives, "": ""}

    def name_of(value: str) -> str:
        return names.get(value, f"{place}.{value}")

    for tensor in template.graph.initializer:
        filled = graph.initializer.add()
        if tensor.name in template.weights:
            weight = weights[tensor.name]
            if weight.dims != tensor.dims:
                raise RuntimeError(f"{place}.{tensor.name} has shape {list(weight.dims)}; its template has {list(tensor.dims)}")
            filled.CopyFrom(weight)
        else:
            filled.CopyFrom(tensor)
            filled.name = name_of(tensor.name)
    for node in template.graph.node:
        copied = graph.node.add()
        copied.CopyFrom(node)
        copied.name = f"{place}/{node.name}"
        copied.input[:] = [name_of(value) for value in node.input]
        copied.output[:] = [name_of(value) for value in node.output]


def _weights(module: nn.Module, index: int, half: bool) -> dict[str, TensorProto]:
    """Folded weights of one node by their name in its template; InputError names the first parameter that is not finite."""
    tensors: dict[str, TensorProto] = {}
    for name, value in folded_state(module).items():
        if not np.isfinite(value).all():
            raise InputError(
                f"the weights hold NaN or infinity (nodes.{index}.{name}); they cannot be exported: train again or give another checkpoint"
            )
        tensors[name] = numpy_helper.from_array(_as_half(value, f"nodes.{index}.{name}") if half else value, f"nodes.{index}.{name}")
    return tensors


def _as_half(value: NDArray[np.float32], name: str) -> NDArray[np.float16]:
    largest, most = float(np.abs(value).max(initial=0.0)), float(np.finfo(np.float16).max)
    if largest > most:
        raise VerificationError(
            f"the weights {name} reach {largest:.3g}, normalisation folded; half holds {most:.0f} at most: export with --precision fp32"
        )
    return value.astype(np.float16)


def _bytes(graph: onnx.GraphProto, metadata: Mapping[str, str]) -> bytes:
    model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="segnas", graph=graph, opset_import=[onnx.helper.make_opsetid("", OPSET)])
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True)

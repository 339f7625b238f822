"""ONNX from a network: templates of its operations joined over the one walk, and filled with its weights.

The graph reads `input`, float32 (N, C, H, W) normalised, and gives `labels`, uint8 (N, H, W), or `logits`, float32 (N, classes, H, W), as the target
says. Everything is static. Initialisers carry the names of the network's parameters, nodes those of the walk (`nodes.12/0.Conv`), so that a runtime's
profile can be read back. Same network, same target: same bytes, on every machine with the same packages.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from segnas.arch import Operation, argmax_operation
from segnas.errors import InputError
from segnas.export.argmax import labels_template
from segnas.export.folding import folded_state
from segnas.export.templates import IR_VERSION, OPSET, Template, plain_export, templates
from segnas.network import Network
from segnas.target import Target

MOST_CLASSES = 256


def onnx_from_network(network: Network, target: Target, *, metadata: Mapping[str, str] | None = None, cache: Path | None = None) -> bytes:
    """The network as one ONNX file for that target, normalisation folded, always with its running statistics (whatever mode it is in).

    `metadata` goes into `metadata_props`; `cache` is the folder of `templates`. InputError for weights that are not finite, or a target that this
    exporter does not write.
    """
    _require(network, target)
    walk = network.architecture.operations(target.height, target.width)
    parts = templates(walk[1:], batch=target.batch, cache=cache)
    graph = onnx.GraphProto(name="segnas")
    graph.input.append(_float_value("input", target.batch, walk[0]))
    values = _value_names(network, parts)
    for index, template in enumerate(parts, 1):
        reads = [values[source] for source in network.architecture.nodes[index].inputs]
        _append(graph, template, f"nodes.{index}", reads, values[index], _weights(network.nodes[str(index)], index) if template.weights else {})
    if values[-1] == "input":  # a network of nothing but skips
        graph.node.append(onnx.helper.make_node("Identity", ["input"], ["logits"], "identity"))
    if target.output_contract == "labels":
        _append(graph, labels_template(argmax_operation(walk[-1].output), target.backend), "argmax", ["logits"], "labels", {})
        shape = [target.batch, walk[-1].output.height, walk[-1].output.width]
        graph.output.append(onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.UINT8, shape))
    else:
        graph.output.append(_float_value("logits", target.batch, walk[-1]))
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
    _require(network, target)
    image = torch.zeros(target.batch, network.architecture.nodes[0].channels, target.height, target.width)
    training = network.training
    model = plain_export(_Labels(network) if target.output_contract == "labels" else network, (image,))
    network.train(training)
    return model.SerializeToString(deterministic=True)


class _Labels(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, H, W) uint8."""
        return self.network(image).argmax(dim=1).to(torch.uint8)


def _require(network: Network, target: Target) -> None:
    if target.precision != "fp32" or target.input_contract != "normalised":
        raise InputError(
            f"a graph of precision {target.precision!r} and input {target.input_contract!r} was asked for; this exporter writes precision 'fp32' and "
            "input 'normalised'"
        )
    if target.output_contract == "labels" and network.architecture.classes > MOST_CLASSES:
        raise InputError(
            f"{network.architecture.classes} classes do not fit the uint8 output `labels`; at most {MOST_CLASSES}, or ask for output 'logits'"
        )


def _value_names(network: Network, parts: list[Template]) -> list[str]:
    """What each node's feature is called in the graph: its own name, its input's where the node is nothing, `logits` for the last."""
    values = ["input"]
    for index, node in enumerate(network.architecture.nodes[1:], 1):
        values.append(values[node.inputs[0]] if parts[index - 1].alias else f"nodes.{index}")
    last = values[-1]
    return values if last == "input" else ["logits" if value == last else value for value in values]


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


def _weights(module: nn.Module, index: int) -> dict[str, onnx.TensorProto]:
    """Folded weights of one node by their name in its template; InputError names the first parameter that is not finite."""
    tensors: dict[str, onnx.TensorProto] = {}
    for name, value in folded_state(module).items():
        if not np.isfinite(value).all():
            raise InputError(
                f"the weights hold NaN or infinity (nodes.{index}.{name}); they cannot be exported: train again or give another checkpoint"
            )
        tensors[name] = numpy_helper.from_array(value, f"nodes.{index}.{name}")
    return tensors


def _float_value(name: str, batch: int, operation: Operation) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, *operation.output])


def _bytes(graph: onnx.GraphProto, metadata: Mapping[str, str]) -> bytes:
    model = onnx.ModelProto(ir_version=IR_VERSION, producer_name="segnas", graph=graph, opset_import=[onnx.helper.make_opsetid("", OPSET)])
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True)

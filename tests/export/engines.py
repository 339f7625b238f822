"""Small networks as ONNX files with manifests, made by hand in fp32, fp16 and int8; what the tests of engines are built from."""

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from segnas.errors import RequirementError
from segnas.export.manifest import versions, write_engine
from segnas.report import Engine, Parity, Port, Sizes
from segnas.target import Target
from segnas.tensorrt_api import Api, open_api

CLASSES = 19
SIZE = (32, 64)
PROVEN = Parity("torch 2.13", 4, 1e-6, 1e-7, 1.0, 0, 1.0, 0.9999, True)
MACS = 16 * 32 * (8 * 27 + 16 * 72 + CLASSES * 16)  # three convolutions at half of 32x64, by hand
PARAMETERS = 8 * 27 + 8 + 16 * 72 + 16 + CLASSES * 16 + CLASSES


def rtx() -> Api:
    """TensorRT-RTX: on Linux on x86-64, where scripts/test installs it, its absence fails the test; elsewhere the test is skipped."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        try:
            return open_api("tensorrt-rtx")
        except RequirementError as error:
            pytest.skip(str(error))
    return open_api("tensorrt-rtx")


def small_model(
    precision: str = "fp32", *, size: tuple[int, int] = SIZE, dynamic: Sizes | None = None, logits: bool = False, seed: int = 0
) -> ModelProto:
    """Conv stride 2, Conv, 1x1 Conv, Resize, ArgMax: (1, 3, H, W) float32 -> (1, H, W) uint8, or its logits."""
    graph, sides = _Graph(precision, seed), list(size) if dynamic is None else ["height", "width"]
    image = graph.put("Cast", "input/half.Cast", ["input"], to=TensorProto.FLOAT16) if precision == "fp16" else "input"
    value = graph.conv("nodes.1/0.Conv", image, 3, 8, kernel=3, stride=2)
    value = graph.conv("nodes.2/0.Conv", graph.put("Relu", "nodes.1/1.Relu", [value]), 8, 16, kernel=3)
    value = graph.conv("nodes.3/0.Conv", graph.put("Relu", "nodes.2/1.Relu", [value]), 16, CLASSES, kernel=1)
    scales = graph.constant("nodes.4.scales", np.array([1, 1, 2, 2], np.float32))
    graph.put("Resize", "nodes.4/0.Resize", [value, "", scales], "logits", mode="linear", coordinate_transformation_mode="half_pixel")
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    output = helper.make_tensor_value_info("logits", kind, [1, CLASSES, *sides])
    if not logits:
        label = graph.put("ArgMax", "argmax/0.ArgMax", ["logits"], axis=1, keepdims=0, select_last_index=0)
        graph.put("Cast", "argmax/1.Cast", [label], "labels", to=TensorProto.UINT8)
        output = helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, *sides])
    made = helper.make_graph(
        graph.nodes, "segnas", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *sides])], [output], graph.constants
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="segnas")
    if dynamic is not None:
        told = ":".join(f"{height}x{width}" for height, width in (dynamic.least, dynamic.best, dynamic.most))
        model.metadata_props.add(key="sizes", value=told)
    return model


class _Graph:
    def __init__(self, precision: str, seed: int) -> None:
        self.precision, self.draw = precision, np.random.default_rng(seed)
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def put(self, op: str, name: str, reads: list[str], gives: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, reads, [gives or f"{name}.y"], name, **attributes))
        return gives or f"{name}.y"

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def conv(self, name: str, value: str, reads: int, gives: int, *, kernel: int, stride: int = 1) -> str:
        """A convolution; of precision int8 between per-tensor activations and per-channel weights, symmetric both."""
        weights = (self.draw.standard_normal((gives, reads, kernel, kernel)) / (kernel * reads**0.5)).astype(np.float32)
        bias = self.draw.standard_normal(gives).astype(np.float32)
        if self.precision == "fp16":
            weights, bias = weights.astype(np.float16), bias.astype(np.float16)
        if self.precision == "int8":
            scale = (np.abs(weights).max(axis=(1, 2, 3)) / 127).astype(np.float32)
            stored = np.round(weights / scale[:, None, None, None]).astype(np.int8)
            pair = [self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero", np.zeros(gives, np.int8))]
            factor = self.put("DequantizeLinear", f"{name}.w", [self.constant(f"{name}.weight", stored), *pair], axis=0)
            pair = [self.constant(f"{name}.x_scale", np.array(0.04, np.float32)), self.constant(f"{name}.x_zero", np.array(0, np.int8))]
            value = self.put("DequantizeLinear", f"{name}.dq", [self.put("QuantizeLinear", f"{name}.q", [value, *pair]), *pair])
        else:
            factor = self.constant(f"{name}.weight", weights)
        pads = [kernel // 2] * 4
        return self.put("Conv", name, [value, factor, self.constant(f"{name}.bias", bias)], pads=pads, strides=[stride, stride])


def written(folder: Path, model: ModelProto | bytes, precision: str = "fp32", *, name: str = "model.onnx", sizes: Sizes | None = None) -> Path:
    """The ONNX file with the manifest that an export would have given it."""
    content = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
    graph = (onnx.load_from_string(content) if isinstance(model, bytes) else model).graph
    inputs, outputs = (tuple(_port(value) for value in values) for values in (graph.input, graph.output))
    target = Target("a CPU", "onnxruntime", "1.31.1", precision, *SIZE, output_contract=outputs[0].name if outputs[0].name == "logits" else "labels")
    classes = tuple(f"class{index}" for index in range(CLASSES))
    engine = Engine(name, "onnx", "", 0, target, "0" * 12, "1" * 64, classes, PROVEN, versions(), inputs, outputs, sizes)
    write_engine(folder, content, engine)
    return folder / name


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    dtypes = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8"}
    return Port(value.name, dtypes[kind.elem_type], tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim))

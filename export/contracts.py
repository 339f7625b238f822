"""Contracts: the two ends of an engine's graph. In: a normalised image or the camera's own pixels. Out: logits or labels.

`normalised` is float32 (N, C, H, W). `image` is uint8 (N, H, W, 3): changed to float32, moved to (N, 3, H, W), multiplied and shifted in float32 in
the order of `segnas.data.normalise`, so that both contracts give the same numbers to the last bit. The change of type stands first, as TensorRT's
parser refuses a transposition of uint8 (measured, TensorRT-RTX 1.7). Mean and deviation are not folded into the first convolution: its zero padding
means the mean colour, and a folded mean would make it black; a folded deviation would push half weights below what half resolves.
"""

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, TensorShapeProto, ValueInfoProto, helper, numpy_helper

from segnas.data import NORMALISE_MEAN, NORMALISE_STD
from segnas.report import Sizes
from segnas.target import Target

HEIGHT, WIDTH = "height", "width"
"""What the sides that may vary are called in a dynamic graph."""


def append_input(graph: GraphProto, target: Target, channels: int, sizes: Sizes | None) -> str:
    """The graph's input and what turns it into the network's: the name of that value, float32 (N, C, H, W), or float16 where the target is."""
    sides: list[int | str] = [HEIGHT, WIDTH] if sizes is not None else [target.height, target.width]
    if target.input_contract == "image":
        graph.input.append(helper.make_tensor_value_info("input", TensorProto.UINT8, [target.batch, *sides, 3]))
        image = _normalised(graph)
    else:
        graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, [target.batch, channels, *sides]))
        image = "input"
    if target.precision != "fp16":
        return image
    graph.node.append(helper.make_node("Cast", [image], ["input.half"], "input/half.Cast", to=TensorProto.FLOAT16))
    return "input.half"


def append_output(graph: GraphProto, contract: str, shape: list[int | str]) -> None:
    """The graph's output: `labels` uint8 (N, H, W), or `logits` float32 (N, classes, H, W)."""
    kind = TensorProto.UINT8 if contract == "labels" else TensorProto.FLOAT
    graph.output.append(helper.make_tensor_value_info(contract, kind, shape))


def normalisation() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Factor and shift of R, G, B, as `segnas.data.normalise` uses them: `pixel * factor - shift`."""
    pairs = list(zip(NORMALISE_MEAN, NORMALISE_STD, strict=True))
    return np.array([1 / (255 * std) for _, std in pairs], np.float32), np.array([mean / std for mean, std in pairs], np.float32)


def input_shape(value: ValueInfoProto) -> tuple[int | str, ...]:
    """The sides of an input or output, by number or by name."""
    return tuple(_side(side) for side in value.type.tensor_type.shape.dim)


def _side(side: TensorShapeProto.Dimension) -> int | str:
    return side.dim_value if side.HasField("dim_value") else side.dim_param


def _normalised(graph: GraphProto) -> str:
    factor, shift = normalisation()
    graph.initializer.append(numpy_helper.from_array(factor.reshape(1, 3, 1, 1), "input.factor"))
    graph.initializer.append(numpy_helper.from_array(shift.reshape(1, 3, 1, 1), "input.shift"))
    graph.node.extend(
        [
            helper.make_node("Cast", ["input"], ["input.float"], "input/0.Cast", to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["input.float"], ["input.planes"], "input/1.Transpose", perm=[0, 3, 1, 2]),
            helper.make_node("Mul", ["input.planes", "input.factor"], ["input.scaled"], "input/2.Mul"),
            helper.make_node("Sub", ["input.scaled", "input.shift"], ["input.normalised"], "input/3.Sub"),
        ]
    )
    return "input.normalised"

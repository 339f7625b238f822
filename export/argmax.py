"""The tail of a `labels` engine: index of the largest channel, the lowest on ties, as uint8.

ArgMax reads one value of each channel in turn. Where a channel's plane is a multiple of 4096 bytes, as at every usual Cityscapes size, all of them
fall on the same set of the first-level cache, which holds 8: with 19 classes each read misses. There ONNX Runtime's CPU gets a chain of comparisons
over whole planes instead. Head (1x1 convolution, resize, argmax) with 19 classes, ORT 1.31 on an AMD EPYC, ArgMax against chain, one thread:
512x1024 34.2 -> 24.7 ms, 768x1536 73 -> 53 ms, 1024x2048 133 -> 98 ms; two threads: 18.5 -> 17.4, 43 -> 38, 78 -> 70 ms. At 520x1040 ArgMax is the
faster one (23.4 against 24.9 ms).
"""

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from segnas.arch import Operation
from segnas.export.templates import Template, argmax_template

CACHE_WAYS = 8
ALIASED_BYTES = 4096


def labels_template(operation: Operation, runtime: str) -> Template:
    """What turns logits (N, C, H, W) into labels (N, H, W) fastest on that `Target.backend`; the same labels, whichever it is."""
    logits = operation.inputs[0]
    aliased = 4 * logits.height * logits.width % ALIASED_BYTES == 0
    return _comparisons(logits.channels) if runtime == "onnxruntime" and aliased and logits.channels > CACHE_WAYS else argmax_template()


def _comparisons(classes: int) -> Template:
    """The largest so far and its index, one plane at a time; a later plane wins only where it is greater, so the lowest index stays on ties."""
    planes = [f"p{i}" for i in range(classes)]
    nodes = [helper.make_node("Split", ["x0"], planes, "0.Split", axis=1, num_outputs=classes)]
    constants = [numpy_helper.from_array(np.full((1, 1, 1, 1), i, np.uint8), f"c{i}") for i in range(classes)]
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))

    def put(op: str, *reads: str) -> str:
        nodes.append(_node(op, len(nodes), *reads))
        return nodes[-1].output[0]

    largest, label = planes[0], "c0"
    for index in range(1, classes):
        label = put("Where", put("Greater", planes[index], largest), f"c{index}", label)
        if index < classes - 1:
            largest = put("Max", largest, planes[index])
    nodes.append(helper.make_node("Squeeze", [label, "axis"], ["y"], f"{len(nodes)}.Squeeze"))
    return Template(GraphProto(node=nodes, initializer=constants), frozenset[str]())


def _node(op: str, index: int, *reads: str) -> NodeProto:
    return helper.make_node(op, list(reads), [f"v{index}"], f"{index}.{op}")

"""Ranges: how large the features of a network get on real images, found by running its float32 graph in ONNX Runtime with them as outputs.

Of each image the 99.99th percentile of the magnitudes is taken, of all images the largest of these. On a CAS network that was trained on CamVid (64
images of train; the 101 of val, 60.91 % mIoU in float32) mIoU and the share of pixels that keep their class were, unsigned and signed:

    largest value of all     60.91 %  0.9953    60.64 %  0.9891
    mean of the largest      60.77 %  0.9932    60.64 %  0.9934
    largest 99.99th          60.81 %  0.9962    60.74 %  0.9935
    mean of the 99.99th      60.55 %  0.9922    60.59 %  0.9933
    largest 99.9th           60.41 %  0.9927    60.38 %  0.9919
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

PERCENTILE = 99.99


def feature_ranges(model: ModelProto, features: Sequence[str], images: Iterable[NDArray[Any]], *, threads: int = 1) -> dict[str, float]:
    """The range of each named value of a float32 graph over the images, each what the graph reads. All features of one image are held at once."""
    session = _session(model, features, threads)
    found = dict.fromkeys(features, 0.0)
    for image in images:
        for name, value in zip(features, session.run(list(features), {"input": image}), strict=True):
            found[name] = max(found[name], magnitude(np.asarray(value)))
    return found


def magnitude(values: NDArray[Any]) -> float:
    """The 99.99th percentile of the magnitudes, the next larger of two: the largest where there are few."""
    return float(np.percentile(np.abs(values), PERCENTILE, method="higher"))


def _session(model: ModelProto, features: Sequence[str], threads: int) -> ort.InferenceSession:
    copied = ModelProto()
    copied.CopyFrom(model)
    known = {value.name for value in copied.graph.output}
    copied.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in features if name not in known)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    return ort.InferenceSession(copied.SerializeToString(), options, providers=["CPUExecutionProvider"])

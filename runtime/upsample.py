"""From what an engine gives to labels at the size of an image: logits bilinearly before the argmax, labels by nearest neighbour."""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_STRIP = 1 << 17
"""Values of a plane that the argmax takes at a time, so that its buffers stay in the cache: 64 rows of 2048 (our choice, by measurement)."""


def argmax_at(logits: NDArray[Any], size: tuple[int, int], *, align_corners: bool = False) -> Bytes:
    """(C, h, w) logits, C at most 256 -> labels (H, W) at `size`: each plane bilinearly to it, then the index of the largest, the lowest on ties.

    One plane at a time, so that nothing of (C, H, W) is made. InputError where a logit is no number.
    """
    if logits.shape[1:] != size:
        return _argmax((bilinear(plane, size, align_corners=align_corners) for plane in logits), size)
    labels, rows = np.empty(size, np.uint8), max(1, _STRIP // size[1])
    for start in range(0, size[0], rows):
        strip = logits[:, start : start + rows]
        labels[start : start + rows] = _argmax((np.asarray(plane, np.float32) for plane in strip), (strip.shape[1], strip.shape[2]))
    return labels


def bilinear(plane: NDArray[Any], size: tuple[int, int], *, align_corners: bool = False) -> Floats:
    """(h, w) -> (H, W) float32, at half-pixel centres or, with `align_corners`, corner on corner; not smoothed where it shrinks (as PyTorch)."""
    values = np.asarray(plane, np.float32)
    if values.shape == size:
        return values
    if not align_corners:
        return np.asarray(cv2.resize(np.ascontiguousarray(values), (size[1], size[0]), interpolation=cv2.INTER_LINEAR), np.float32)
    left, right, across = _corners(values.shape[1], size[1])
    wide = values[:, left] * (1 - across) + values[:, right] * across  # (h, W)
    upper, lower, down = _corners(values.shape[0], size[0])
    result = wide[lower] - wide[upper]  # (H, W)
    result *= down[:, None]
    return np.add(result, wide[upper], out=result).astype(np.float32, copy=False)


def nearest(labels: Bytes, size: tuple[int, int]) -> Bytes:
    """(h, w) -> (H, W) labels: the one whose pixel centre is next."""
    (height, width), (rows, columns) = labels.shape, size
    return labels[((2 * np.arange(rows) + 1) * height // (2 * rows))[:, None], (2 * np.arange(columns) + 1) * width // (2 * columns)]


def _argmax(planes: Iterable[Floats], size: tuple[int, int]) -> Bytes:
    """Running maximum over planes (H, W): 10 times as fast as `np.argmax` over the first axis, which walks across the planes."""
    labels, raised, greater = np.zeros(size, np.uint8), np.empty(size, np.uint8), np.empty(size, np.bool_)
    largest: Floats | None = None
    for index, plane in enumerate(planes):
        if largest is None:
            largest = plane.copy()
            continue
        np.greater(plane, largest, out=greater)
        np.multiply(greater.view(np.uint8), np.uint8(index), out=raised)
        np.maximum(labels, raised, out=labels)  # a later index is always the larger
        np.maximum(largest, plane, out=largest)
    if largest is not None and bool(np.isnan(largest).any()):
        raise InputError("the engine gives logits that are no numbers (NaN); its file or its weights are damaged: run `segnas export` again")
    return labels


def _corners(count: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """For each of `wanted` places: the two of `count` between which it lies, and the weight of the second."""
    places = np.arange(wanted) * ((count - 1) / (wanted - 1) if wanted > 1 else 0.0)
    before = np.minimum(places.astype(np.intp), count - 1)
    return before, np.minimum(before + 1, count - 1), (places - before).astype(np.float32)

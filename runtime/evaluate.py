"""Evaluate: mean IoU of an open engine over a data set, whole images, single scale, no flip, in raw label ids as the official evaluation counts."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.data import Dataset, network_input
from segnas.errors import InputError
from segnas.metrics import ConfusionMatrix
from segnas.report import Accuracy, ClassScore
from segnas.runtime.session import Session

Bytes = NDArray[np.uint8]
Seen = Callable[[int, Bytes, Bytes, Bytes], None]
"""Told the index, the image (H, W, 3), its truth and its prediction (H, W), both in raw ids."""


def evaluate(
    session: Session,
    dataset: Dataset,
    *,
    progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    upsample: Literal["nearest"] | None = None,
    predictions: Seen | None = None,
) -> Accuracy:
    """Score the engine on the first `limit` samples (all by default) at the ground truth's own size.

    Logits of another size are resized bilinearly before the argmax. Labels cannot be: InputError, unless `upsample` says "nearest". `predictions` is
    called with each sample, for pictures; `progress(done, total)` after each. InputError where the engine and the data set have different classes.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 1:
        raise InputError(f"{count} images of {dataset.name} {dataset.split} were asked for; at least 1 is needed")
    _require(session, dataset)
    matrix = ConfusionMatrix(dataset.labels)
    for index, (image, truth, tensor) in enumerate(_ahead(dataset, count, session.specification.input.shape[2:])):
        answer = session.run(tensor)[0]
        predicted = dataset.labels.ids(_train_ids(answer, truth.shape, upsample))
        matrix.add(truth, predicted)
        if predictions is not None:
            predictions(index, image, truth, predicted)
        if progress is not None:
            progress(index + 1, count)
    miou, pixel_accuracy = matrix.miou, matrix.pixel_accuracy
    if miou is None or pixel_accuracy is None:
        raise InputError(f"none of the {count} images of {dataset.name} {dataset.split} has a pixel of a scored class; give another split or limit")
    return Accuracy(
        dataset=dataset.name,
        split=dataset.split,
        images=count,
        miou=miou,
        pixel_accuracy=pixel_accuracy,
        classes=tuple(ClassScore(name, iou) for name, iou in matrix.iou().items()),
        protocol=protocol(session, count, len(dataset), upsample),
        matrix=tuple(tuple(int(n) for n in row) for row in matrix.counts),
    )


def protocol(session: Session, count: int, available: int, upsample: Literal["nearest"] | None = None) -> str:
    """How the number was made, in a sentence."""
    reads, gives = session.specification.input, session.specification.output
    size = f"{reads.shape[2]}x{reads.shape[3]}"
    if session.specification.gives_labels:
        answer = f"argmax in the engine, labels at {gives.shape[1]}x{gives.shape[2]}"
        answer += ", nearest-neighbour to the ground truth's size where it differs" if upsample else ""
    else:
        answer = "logits bilinear (half-pixel centres) to the ground truth's size where it differs, then argmax"
    part = f"all {count} images" if count == available else f"the first {count} of {available} images"
    return (
        f"{part}, whole image, single scale, no flip; image bilinear to {size} where it differs, normalised; {answer}; "
        "raw label ids, official Cityscapes semantics: void truth ignored, mean over classes that occur"
    )


def _require(session: Session, dataset: Dataset) -> None:
    spec, classes = session.specification, len(dataset.labels.classes)
    if spec.input.shape[:2] != (1, 3):
        raise InputError(f"the engine reads {spec.input}; an evaluation needs batch 1 and 3 channels: run `segnas export` with batch 1")
    if not spec.gives_labels and spec.output.shape[1] != classes:
        raise InputError(f"the engine gives {spec.output.shape[1]} classes; {dataset.name} has {classes}: give the data set that it was trained on")


def _ahead(dataset: Dataset, count: int, size: tuple[int, ...]) -> Iterator[tuple[Bytes, Bytes, NDArray[np.float32]]]:
    """Image, truth and input tensor of each sample; the next is decoded while this one is at work."""

    def prepared(index: int) -> tuple[Bytes, Bytes, NDArray[np.float32]]:
        image, truth = dataset.read(index)
        return image, truth, network_input(image, size[0], size[1])

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(prepared, 0)
        for index in range(count):
            current = following.result()
            if index + 1 < count:
                following = pool.submit(prepared, index + 1)
            yield current


def _train_ids(answer: NDArray[Any], size: tuple[int, ...], upsample: str | None) -> Bytes:
    """Train ids (H, W) at the truth's size, from labels (h, w) or logits (C, h, w)."""
    if answer.ndim == 3:
        if answer.shape[1:] != size:
            answer = np.stack([cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR) for plane in answer])
        return answer.argmax(axis=0).astype(np.uint8)
    if answer.shape == size:
        return answer
    given, wanted = ("x".join(map(str, sides)) for sides in (answer.shape, size))
    if upsample != "nearest":
        raise InputError(
            f"the engine gives labels at {given}, the ground truth is {wanted}; labels are not resized silently: export with output 'logits', "
            "export for the ground truth's size, or ask for upsample 'nearest'"
        )
    (height, width), (rows, columns) = answer.shape, size
    return answer[((2 * np.arange(rows) + 1) * height // (2 * rows))[:, None], (2 * np.arange(columns) + 1) * width // (2 * columns)]

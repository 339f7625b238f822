"""Evaluate: mean IoU of an open engine over a data set, in raw label ids as the official evaluation counts.

Whole images, single scale, no flip, unless the protocol says otherwise. Reading, inference and counting overlap, and memory does not grow with the
images.
"""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnas.data import Dataset, Decoded
from segnas.errors import InputError
from segnas.metrics import ConfusionMatrix
from segnas.report import Accuracy, ClassScore, ScoringProtocol, Sizes
from segnas.runtime.asking import answers, labels_at, labels_of_views, tensor_of
from segnas.runtime.counting import Counted, Tally, counted
from segnas.runtime.pipeline import Unreadable, overlapped
from segnas.runtime.protocol import batch_of, described, scaled, settled
from segnas.runtime.session import Session

Bytes = NDArray[np.uint8]
DATA_CHECK = "`segnas data check` lists all that is wrong"
Seen = Callable[[int, Bytes, Bytes, Bytes], None]
"""Told the index, the image (H, W, 3), its truth and its prediction (H, W), both in raw ids."""


def evaluate(
    session: Session,
    dataset: Dataset,
    *,
    protocol: ScoringProtocol | None = None,
    sizes: Sizes | None = None,
    limit: int | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    predictions: Seen | None = None,
) -> Accuracy:
    """Score the engine on the first `limit` samples (all by default) at the ground truth's own size.

    `predictions` is called with each sample, for pictures, and `progress(done, total)` after each. InputError where the engine and the data set have
    different classes, the protocol is not for this engine (`sizes`: of a dynamic one), or a sample cannot be read.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 1:
        raise InputError(f"{count} images of {dataset.name} {dataset.split} were asked for; at least 1 is needed")
    chosen = settled(session, protocol or ScoringProtocol(), sizes)
    tally = Tally(dataset.labels, instances=False)

    def keep(found: Counted) -> None:
        tally.add(found)
        if progress is not None:
            progress(len(tally.indices), count)

    unreadable = count_images(session, dataset, range(count), protocol=chosen, keep=keep, workers=workers, predictions=predictions)
    require_readable(unreadable, len(tally.indices), f"; {DATA_CHECK}")
    return accuracy_of(dataset.name, dataset.split, tally.matrix, spans=tally.spans, available=len(dataset), how=described(session, chosen))


def count_images(
    session: Session,
    dataset: Dataset,
    indices: Sequence[int],
    *,
    protocol: ScoringProtocol,
    keep: Callable[[Counted], None],
    workers: int = 1,
    instances: bool = False,
    predictions: Seen | None = None,
) -> Unreadable[int]:
    """Count those samples by a settled protocol, and give each to `keep`: one at a time, as they are done, from any thread.

    `predictions` is called before it, likewise; with one worker both are in order. Returns the samples that could not be read; all others are kept.
    """
    require_classes(session, dataset)
    first, *others = protocol.scales
    size, several, lock = scaled(protocol, first), protocol.flip or bool(others), Lock()

    def read(index: int) -> tuple[Decoded, NDArray[Any] | None]:
        decoded = dataset.decode(index, instances=instances)
        return decoded, None if several else tensor_of(session, decoded.image, size)

    def infer(group: Sequence[tuple[Decoded, NDArray[Any] | None]]) -> Sequence[NDArray[Any]]:
        tensors = [tensor for _, tensor in group if tensor is not None]
        if tensors:
            return answers(session, tensors)
        return [labels_of_views(session, decoded.image, _size(decoded.truth), protocol) for decoded, _ in group]

    def count(index: int, found: tuple[Decoded, NDArray[Any] | None], answer: NDArray[Any]) -> None:
        decoded = found[0]
        predicted = dataset.labels.ids(labels_at(answer, _size(decoded.truth), protocol))
        one = counted(index, decoded.truth, predicted, dataset.labels, decoded.instances)
        with lock:
            if predictions is not None:
                predictions(index, decoded.image, decoded.truth, predicted)
            keep(one)

    return overlapped(indices, read=read, infer=infer, count=count, batch=batch_of(session), workers=workers)


def accuracy_of(dataset: str, split: str, matrix: ConfusionMatrix, *, spans: Sequence[tuple[int, int]], available: int, how: str) -> Accuracy:
    """The accuracy of the images counted, `spans` of `available`; `how` is the protocol in words. InputError where none has a pixel of a scored
    class.
    """
    miou, pixel_accuracy = matrix.miou, matrix.pixel_accuracy
    images = sum(after - first for first, after in spans)
    if miou is None or pixel_accuracy is None:
        raise InputError(f"none of the {images} images of {dataset} {split} has a pixel of a scored class; give another split or limit")
    first = "the first " if len(spans) == 1 and spans[0][0] == 0 else ""
    part = f"all {images} images" if images == available else f"{first}{images} of {available} images"
    return Accuracy(
        dataset=dataset,
        split=split,
        images=images,
        miou=miou,
        pixel_accuracy=pixel_accuracy,
        classes=tuple(ClassScore(name, iou) for name, iou in matrix.iou().items()),
        protocol=f"{part}, {how}",
        matrix=tuple(tuple(int(n) for n in row) for row in matrix.counts),
    )


def require_readable(unreadable: Unreadable[int], done: int, note: str) -> None:
    """InputError naming the first samples that could not be read, after `done` others were counted; `note` is what to do next."""
    if unreadable:
        head = f"{len(unreadable)} images could not be scored: " if len(unreadable) > 1 else ""
        more = f"; and {len(unreadable) - 10} more" if len(unreadable) > 10 else ""
        told = "; ".join(str(error) for _, error in unreadable[:10])
        raise InputError(f"{head}{told}{more} ({done} other images were scored{note})")


def require_classes(session: Session, dataset: Dataset) -> None:
    """InputError where the engine gives another number of classes than the data set has."""
    spec, classes = session.specification, len(dataset.labels.classes)
    if not spec.gives_labels and spec.output.shape[1] not in (classes, -1):
        raise InputError(f"the engine gives {spec.output.shape[1]} classes; {dataset.name} has {classes}: give the data set that it was trained on")


def _size(pixels: Bytes) -> tuple[int, int]:
    return pixels.shape[0], pixels.shape[1]

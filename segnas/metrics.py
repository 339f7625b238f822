"""Confusion matrices over raw ids, and the scores of the official Cityscapes evaluation.

The rules are those of `evalPixelLevelSemanticLabeling.py` in cityscapesScripts (see `ConfusionMatrix.iou`). Every score is a fraction, 0..1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError
from segnas.labels import LABEL_SETS, LabelSet

Ids = NDArray[np.integer[Any]]
GRID_PIXELS = 1 << 18
"""At most so many positions are counted by `floors`: a larger label map is sampled (our choice; 360x480 fits whole)."""

_EXACT_PIXELS = 1 << 24
"""OpenCV gives a histogram's counts as float32, which holds every whole number up to here."""


class ConfusionMatrix:
    """Counted pixels: `counts[ground truth raw id, predicted raw id]`, int64, exact; void rows and columns included."""

    def __init__(self, labels: LabelSet, counts: NDArray[np.int64] | None = None) -> None:
        side = labels.size
        self.labels = labels
        self.counts: NDArray[np.int64] = np.zeros((side, side), np.int64) if counts is None else counts.astype(np.int64)
        if self.counts.shape != (side, side) or self.counts.min() < 0:
            raise InputError(f"a {labels.name} confusion matrix is {side}x{side} counts >= 0; got shape {self.counts.shape}.")

    def add(self, ground_truth_ids: Ids, predicted_ids: Ids) -> None:
        """Count one image: two maps (H, W) of raw ids; InputError when their sizes differ or an id is unknown."""
        if ground_truth_ids.shape != predicted_ids.shape:
            raise InputError(
                f"ground truth is {_size(ground_truth_ids)} but the prediction is {_size(predicted_ids)}; "
                "resize the scores of the network to the ground truth before the argmax, never the ground truth."
            )
        side = self.labels.size
        self._check("ground truth", ground_truth_ids)
        self._check("prediction", predicted_ids)
        self.counts += pair_counts(ground_truth_ids, predicted_ids, side)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """The exact sum of two matrices over the same labels."""
        if not isinstance(other, ConfusionMatrix):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        if self.labels != other.labels:
            raise InputError(f"cannot add a {other.labels.name} matrix to a {self.labels.name} one; evaluate each data set apart.")
        return ConfusionMatrix(self.labels, self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfusionMatrix) and self.labels == other.labels and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # it counts in place

    def __repr__(self) -> str:
        return f"ConfusionMatrix({self.labels.name}, {self.pixels} pixels, miou={self.miou})"

    def iou(self) -> dict[str, float | None]:
        """Intersection over union of each scored class by name, in train-id order; None where it has no meaning.

        FN = every prediction but the class on its pixels, void included; FP = the class on pixels of *other scored* classes, so that
        predictions on ignored ground truth are free. A class that is neither there nor predicted there is None; one that is only
        predicted is 0.0 and counts.
        """
        scored = [label.id for label in self.labels.classes]
        rows = self.counts[scored]
        on_truth, predicted = rows.sum(axis=1), rows[:, scored].sum(axis=0)
        values: dict[str, float | None] = {}
        for k, label in enumerate(self.labels.classes):
            hits = int(rows[k, label.id])
            union = int(on_truth[k]) + int(predicted[k]) - hits
            values[label.name] = hits / union if union else None
        return values

    @property
    def miou(self) -> float | None:
        """The mean of the IoUs that are not None; None when no class has one."""
        return mean(self.iou().values())

    @property
    def pixel_accuracy(self) -> float | None:
        """The right share of the pixels whose ground truth is scored; a void prediction there is wrong; None without such pixels."""
        scored = [label.id for label in self.labels.classes]
        return int(self.counts[scored, scored].sum()) / self.valid_pixels if self.valid_pixels else None

    @property
    def pixels(self) -> int:
        """All pixels counted."""
        return int(self.counts.sum())

    @property
    def valid_pixels(self) -> int:
        """The pixels counted whose ground truth is scored; the rest of `pixels` was ignored."""
        return int(self.counts[[label.id for label in self.labels.classes]].sum())

    def to_json(self) -> dict[str, Any]:
        """A plain dict: the name of the label set and the counts, row by row."""
        return {"labels": self.labels.name, "counts": self.counts.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ConfusionMatrix":
        """The matrix of `to_json`; InputError when the label set is unknown or the counts are not a matrix of its size."""
        name, rows = value.get("labels"), value.get("counts")
        if name not in LABEL_SETS:
            raise InputError(f"a confusion matrix over labels {name!r}; known are {', '.join(LABEL_SETS)}.")
        try:
            counts = np.array(rows, dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"the counts of a confusion matrix must be rows of whole numbers: {error}.") from error
        return cls(LABEL_SETS[name], counts)

    def _check(self, what: str, ids: Ids) -> None:
        side = self.labels.size
        if ids.dtype.kind not in "iu":
            raise InputError(f"the {what} must be a map of whole numbers, {self.labels.name} raw ids; got {ids.dtype}.")
        if ids.size and (int(ids.max()) >= side or int(ids.min()) < 0):
            illegal = [int(value) for value in np.unique(ids) if not 0 <= value < side][:10]
            raise InputError(
                f"the {what} holds {illegal}, which are not {self.labels.name} raw ids 0..{side - 1}; convert train ids with LabelSet.ids() first."
            )


def pair_counts(ground_truth_ids: Ids, predicted_ids: Ids, side: int) -> NDArray[np.int64]:
    """How often each pair of values stands at one place: (side, side), of two maps of one size with values 0..side-1, side at most 256.

    A histogram of `side * truth + prediction`, exact. OpenCV makes it without the interpreter's lock; 1024x2048 takes 2 to 3 ms on one core, a third
    of `np.bincount`. RuntimeError where pixels are lost, which only values beyond `side` can cause: the check of the official evaluation.
    """
    pairs = ground_truth_ids.astype(np.uint16) * np.uint16(side)  # 255 * 256 + 255 fits
    pairs += predicted_ids.astype(np.uint16)
    bins, flat = side * side, pairs.reshape(1, -1)
    counts = np.zeros(bins, np.int64)
    for start in range(0, flat.shape[1], _EXACT_PIXELS):
        counts += cv2.calcHist([flat[:, start : start + _EXACT_PIXELS]], [0], None, [bins], [0, bins]).ravel().astype(np.int64)
    if int(counts.sum()) != flat.shape[1]:
        raise RuntimeError(f"{flat.shape[1]} pixels were given and {int(counts.sum())} counted")
    return counts.reshape(side, side)


def mean(scores: Iterable[float | None]) -> float | None:
    """The mean of the scores that are not None, added one by one as the official evaluation does; None where there is none.

    `sum` gives another last bit from Python 3.12 on: it makes up for the rounding.
    """
    total, number = 0.0, 0
    for score in scores:
        if score is not None:
            total, number = total + score, number + 1
    return total / number if number else None


@dataclass(frozen=True)
class Floors:
    """What needs no network: any trained model must beat both. `majority_class` is the name of the most frequent class of train."""

    majority_class: str
    majority: ConfusionMatrix
    position: ConfusionMatrix


def floors(labels: LabelSet, train: Iterable[Ids], evaluation: Iterable[Ids]) -> Floors:
    """The two trivial baselines of a data set, scored on `evaluation`; both arguments are maps (H, W) of raw ids.

    `majority` predicts everywhere the class most frequent in train; `position` predicts at each place the class most frequent at that
    (relative) place in train, counted on one grid and spread to each image by nearest neighbour; a place that was ignored in all of
    train gets the majority class. InputError when train is empty.
    """
    counts = _position_counts(labels, train)  # (K, h, w)
    majority = int(counts.sum(axis=(1, 2)).argmax())
    best = np.where(counts.any(axis=0), counts.argmax(axis=0), majority)
    ids = np.array([label.id for label in labels.classes], np.uint8)
    by_majority, by_position = ConfusionMatrix(labels), ConfusionMatrix(labels)
    for truth in evaluation:
        by_majority.add(truth, np.full_like(truth, ids[majority]))
        by_position.add(truth, _resampled(ids[best], (truth.shape[0], truth.shape[1])))
    return Floors(labels.classes[majority].name, by_majority, by_position)


def _position_counts(labels: LabelSet, maps: Iterable[Ids]) -> NDArray[np.int64]:
    """How often each scored class stands at each place: (K, h, w), on the size of the first map halved until small."""
    classes = len(labels.classes)
    counts: NDArray[np.int64] | None = None
    for ids in maps:
        if counts is None:
            height, width = ids.shape[0], ids.shape[1]
            while height * width > GRID_PIXELS:
                height, width = (height + 1) // 2, (width + 1) // 2
            counts = np.zeros((classes + 1, height, width), np.int64)
        small = np.minimum(
            labels.train_ids(_resampled(ids, (counts.shape[1], counts.shape[2])).astype(np.uint8)), classes
        )  # ignored -> the last plane
        rows, columns = np.ogrid[: small.shape[0], : small.shape[1]]
        counts[small, rows, columns] += 1
    if counts is None:
        raise InputError("floors need at least one label map of train; got none.")
    return counts[:classes]


def _resampled(ids: Ids, size: tuple[int, int]) -> Ids:
    """Nearest neighbour at pixel centres: (H, W) -> size."""
    height, width = ids.shape[0], ids.shape[1]
    rows, columns = size
    return ids[((2 * np.arange(rows) + 1) * height // (2 * rows))[:, None], (2 * np.arange(columns) + 1) * width // (2 * columns)]


def _size(ids: Ids) -> str:
    return "x".join(str(side) for side in ids.shape)

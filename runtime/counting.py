"""Counting: one image's confusion counts and objects, and their exact sum over images in whatever order they come."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segnas.labels import LabelSet
from segnas.metrics import ConfusionMatrix
from segnas.official import instance_counts
from segnas.report import InstanceCount

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Counted:
    """What image `index` of a split adds: counts [truth raw id, predicted raw id], and its objects, None where the truth has no instances."""

    index: int
    counts: NDArray[np.int64]
    instances: tuple[InstanceCount, ...] | None = None


class Tally:
    """The sum over images: integers only, so that neither order nor number of workers nor a pause in between changes it."""

    def __init__(self, labels: LabelSet, *, instances: bool) -> None:
        self.matrix = ConfusionMatrix(labels)
        self.indices: set[int] = set()
        self._instances: list[InstanceCount] | None = [] if instances else None

    def add(self, counted: Counted) -> None:
        """One more image; ValueError for one that is already there."""
        if counted.index in self.indices:
            raise ValueError(f"image {counted.index} was counted already")
        self.indices.add(counted.index)
        self.matrix.counts += counted.counts
        if self._instances is not None and counted.instances is not None:
            self._instances += counted.instances

    @property
    def instances(self) -> tuple[InstanceCount, ...] | None:
        """All objects in the order of the images and of their ids, which stays that of the truth; None where the truth has none."""
        return None if self._instances is None else tuple(sorted(self._instances, key=lambda count: count.image))

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The indices counted, as [first, next) spans in order."""
        return spans_of(self.indices)


def spans_of(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """A set of indices as [first, next) spans in order."""
    found: list[tuple[int, int]] = []
    for index in sorted(indices):
        if found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        else:
            found.append((index, index + 1))
    return tuple(found)


def counted(index: int, truth: Bytes, predicted_ids: Bytes, labels: LabelSet, instances: NDArray[np.uint16] | None = None) -> Counted:
    """The counts of one image: truth and prediction (H, W) in raw ids, and the truth's instance ids where it has them; all of one size."""
    matrix = ConfusionMatrix(labels)
    matrix.add(truth, predicted_ids)
    return Counted(index, matrix.counts, None if instances is None else instance_counts(index, instances, predicted_ids, labels))

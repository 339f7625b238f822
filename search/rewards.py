"""Fast-NAS's reward of a candidate: the geometric mean of mean IoU, mean class accuracy and frequency-weighted IoU, the background left out."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segnas.labels import LabelSet
from segnas.metrics import ConfusionMatrix, mean

Ids = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Qualities:
    """What a candidate reaches, 0 to 1 each."""

    mean_iou: float
    mean_accuracy: float
    weighted_iou: float

    @property
    def reward(self) -> float:
        """Their geometric mean; 0 where one of them is."""
        return (self.mean_iou * self.mean_accuracy * self.weighted_iou) ** (1 / 3)


def qualities(matrix: ConfusionMatrix, background: Collection[str] = ()) -> Qualities:
    """Of a confusion matrix, over the scored classes but those named `background` (what our label sets ignore is left out anyway).

    A class accuracy is the share of the class's pixels that are right; IoUs are the official ones, weighted by their class's pixels. A class that is
    neither there nor predicted there counts nowhere; 0 where no class is left.
    """
    ious = {name: iou for name, iou in matrix.iou().items() if name not in background}
    there: dict[str, int] = {}
    accuracies: list[float] = []
    for label in matrix.labels.classes:
        pixels = int(matrix.counts[label.id].sum())
        if label.name in ious and pixels:
            there[label.name] = pixels
            accuracies.append(int(matrix.counts[label.id, label.id]) / pixels)
    weighted = sum(pixels * (ious[name] or 0.0) for name, pixels in there.items()) / max(1, sum(there.values()))
    return Qualities(mean(ious.values()) or 0.0, mean(accuracies) or 0.0, weighted)


def confusion(predict: Callable[[int], Tensor], truths: Sequence[Ids], labels: LabelSet) -> ConfusionMatrix:
    """The counts over images: `predict` gives logits (1, classes, h, w) of each by its place, truths are (H, W) raw ids.

    Logits are resized bilinearly to the truth's size before the argmax, as in `segnas.search.scoring.score`.
    """
    matrix = ConfusionMatrix(labels)
    with torch.inference_mode():
        for place, truth in enumerate(truths):
            logits = predict(place)
            if logits.shape[-2:] != truth.shape:
                logits = F.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)
            predicted = logits[0].argmax(0).to(torch.uint8).cpu().numpy()  # (H, W) train ids
            matrix.add(truth, labels.ids(np.asarray(predicted, np.uint8)))
    return matrix

"""Parity: whether an engine says what it was made from, image by image; the step that most export tools skip."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError, VerificationError
from segnas.labels import LabelSet
from segnas.metrics import ConfusionMatrix
from segnas.report import Parity

Bytes = NDArray[np.uint8]
Run = Callable[[Any], NDArray[Any]]

MOST_MIOU_LOSS = 0.01
"""An engine that loses more mIoU than this (one point) against its reference is rejected, where there are labels to say so."""


@dataclass(frozen=True)
class Truths:
    """The ground truth of parity images: raw ids (H, W) of each, None where one has none, and what the ids mean."""

    labels: LabelSet
    ids: Sequence[Bytes | None]


def parity(
    reference: Run,
    candidate: Run,
    images: Sequence[NDArray[Any]],
    *,
    output_contract: str,
    required_agreement: float = 0.9999,
    reference_name: str,
    truths: Truths | None = None,
) -> Parity:
    """Both on each image, of batch 1 where there are truths; the reference gives logits (N, C, H, W), the candidate what its contract says.

    With `logits` the differences are those of the logits. With `labels` (N, H, W) the engine shows none: each pixel's difference is then how much the
    reference prefers its own class to the engine's, in units of the reference's logits, 0 where both agree; the cosine is between those two logits.
    Passed when everything is finite, the share of pixels with the same class is at least `required_agreement`, and over the images with truth the
    mIoU (official semantics; labels brought to the truth's size by nearest neighbour) falls by no more than `MOST_MIOU_LOSS`.
    """
    if not images:
        raise InputError("a parity check was asked for over 0 images; at least 1 is needed")
    sums, scores = _Sums(), None if truths is None else _Scores(truths.labels)
    for index, image in enumerate(images):
        winner, classes = sums.add(reference(image), candidate(image), output_contract)
        truth = None if truths is None else truths.ids[index]
        if scores is not None and truth is not None:
            scores.add(truth, winner[0], classes[0])
    agreement = sums.same / sums.pixels
    cosine = sums.product / math.sqrt(sums.squares[0] * sums.squares[1]) if min(sums.squares) > 0 else float(sums.squares[0] == sums.squares[1])
    change = None if scores is None else scores.change
    passed = sums.non_finite == 0 and agreement >= required_agreement and (change is None or change >= -MOST_MIOU_LOSS)
    largest, mean = float(np.nan_to_num(sums.largest)), sums.total / max(1, sums.compared)
    return Parity(reference_name, len(images), largest, mean, cosine, sums.non_finite, agreement, required_agreement, passed, change)


def require_parity(found: Parity) -> Parity:
    """The same parity if it passed; VerificationError with its figures otherwise."""
    if found.passed:
        return found
    raise VerificationError(
        f"the engine does not agree with {found.reference}: {100 * found.argmax_agreement:.4f} % of the pixels have the same class, "
        f"{100 * found.required_agreement:.4f} % are required{_lost(found)}; {found.non_finite} values are not finite, largest difference "
        f"{found.max_abs:.3g}, mean {found.mean_abs:.3g}, cosine {found.cosine:.6f}, over {found.images} images. The artefact is kept as .rejected; "
        "export at a higher precision, or check that engine and weights belong together"
    )


def _lost(found: Parity) -> str:
    if found.miou_change is None:
        return ""
    return f"; its mIoU differs by {100 * found.miou_change:+.2f} points, of which {-100 * MOST_MIOU_LOSS:.2f} are allowed"


class _Scores:
    """The mIoU of both over the images that have a ground truth."""

    def __init__(self, labels: LabelSet) -> None:
        self._labels = labels
        self._matrices = (ConfusionMatrix(labels), ConfusionMatrix(labels))

    def add(self, truth: Bytes, *answers: NDArray[Any]) -> None:
        """Train ids (h, w) of the reference and of the candidate beside raw ids (H, W)."""
        height, width = truth.shape
        for matrix, answer in zip(self._matrices, answers, strict=True):
            fitting = cv2.resize(answer.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            matrix.add(truth, self._labels.ids(np.asarray(fitting, np.uint8)))

    @property
    def change(self) -> float | None:
        """The candidate's mIoU less the reference's; None where no pixel has a scored class."""
        ours, theirs = (matrix.miou for matrix in self._matrices)
        return None if ours is None or theirs is None else theirs - ours


class _Sums:
    """What is added up over the images, so that none needs to be kept."""

    def __init__(self) -> None:
        self.pixels = self.same = self.compared = self.non_finite = 0
        self.largest = self.total = self.product = 0.0
        self.squares = [0.0, 0.0]

    def add(self, logits: NDArray[Any], answer: NDArray[Any], output_contract: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Logits (N, C, H, W) of the reference beside the answer of the candidate; the classes (N, H, W) of both."""
        winner = logits.argmax(axis=1)  # (N, H, W), the lowest class on ties
        expected = logits.shape if output_contract == "logits" else winner.shape
        if answer.shape != expected:
            raise VerificationError(f"the engine gives {output_contract} of shape {answer.shape}; {expected} is expected from {logits.shape} logits")
        if output_contract == "logits":
            self.non_finite += int(answer.size - np.isfinite(answer).sum())
            classes, ours, theirs = answer.argmax(axis=1), logits, answer
        else:
            if int(answer.max()) >= logits.shape[1]:
                raise VerificationError(
                    f"the engine gives label {int(answer.max())}; the network has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}"
                )
            classes = answer
            ours, theirs = (np.take_along_axis(logits, index[:, None].astype(np.int64), axis=1) for index in (winner, answer))
        self.non_finite += int(logits.size - np.isfinite(logits).sum())
        self.pixels += winner.size
        self.same += int((winner == classes).sum())
        self._differences(ours, theirs)
        return winner, classes

    def _differences(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        finite = np.isfinite(ours) & np.isfinite(theirs)
        a, b = (ours, theirs) if finite.all() else (ours[finite], theirs[finite])
        self.compared += a.size
        if a.size:
            gaps = np.abs(a - b)
            self.largest = max(self.largest, float(gaps.max()))
            self.total += float(gaps.sum(dtype=np.float64))
            self.product += float(np.multiply(a, b).sum(dtype=np.float64))
            for index, values in enumerate((a, b)):
                self.squares[index] += float(np.square(values).sum(dtype=np.float64))

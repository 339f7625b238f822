"""Parity: whether an engine says what it was made from, image by image; the step that most export tools skip."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError, VerificationError
from segnas.report import Parity

Floats = NDArray[np.float32]
Run = Callable[[Floats], NDArray[Any]]


def parity(
    reference: Run, candidate: Run, images: Sequence[Floats], *, output_contract: str, required_agreement: float = 0.9999, reference_name: str
) -> Parity:
    """Both on each image, (N, 3, H, W) float32 normalised; the reference gives logits (N, C, H, W), the candidate what its contract says.

    With `logits` the differences are those of the logits. With `labels` (N, H, W) the engine shows none: each pixel's difference is then how much the
    reference prefers its own class to the engine's, in units of the reference's logits, 0 where both agree; the cosine is between those two logits.
    Passed when everything is finite and the share of pixels with the same class is at least `required_agreement`.
    """
    if not images:
        raise InputError("a parity check was asked for over 0 images; at least 1 is needed")
    sums = _Sums()
    for image in images:
        sums.add(reference(image), candidate(image), output_contract)
    agreement = sums.same / sums.pixels
    cosine = sums.product / math.sqrt(sums.squares[0] * sums.squares[1]) if min(sums.squares) > 0 else float(sums.squares[0] == sums.squares[1])
    passed = sums.non_finite == 0 and agreement >= required_agreement
    largest, mean = float(np.nan_to_num(sums.largest)), sums.total / max(1, sums.compared)
    return Parity(reference_name, len(images), largest, mean, cosine, sums.non_finite, agreement, required_agreement, passed)


def require_parity(found: Parity) -> Parity:
    """The same parity if it passed; VerificationError with its figures otherwise."""
    if found.passed:
        return found
    raise VerificationError(
        f"the engine does not agree with {found.reference}: {100 * found.argmax_agreement:.4f} % of the pixels have the same class, "
        f"{100 * found.required_agreement:.4f} % are required; {found.non_finite} values are not finite, largest difference {found.max_abs:.3g}, "
        f"mean {found.mean_abs:.3g}, cosine {found.cosine:.6f}, over {found.images} images. The artefact is kept as .rejected; export at a higher "
        "precision, or check that engine and weights belong together"
    )


class _Sums:
    """What is added up over the images, so that none needs to be kept."""

    def __init__(self) -> None:
        self.pixels = self.same = self.compared = self.non_finite = 0
        self.largest = self.total = self.product = 0.0
        self.squares = [0.0, 0.0]

    def add(self, logits: NDArray[Any], answer: NDArray[Any], output_contract: str) -> None:
        """Logits (N, C, H, W) of the reference beside the answer of the candidate."""
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

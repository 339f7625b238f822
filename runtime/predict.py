"""Predict: what an engine sees in a picture, and that as a picture: colours laid over it, colours alone, both side by side, or raw label ids."""

import colorsys
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from segnas.labels import LabelSet
from segnas.report import ScoringProtocol
from segnas.runtime.asking import answers, labels_at, tensor_of
from segnas.runtime.protocol import scaled
from segnas.runtime.session import Session

Bytes = NDArray[np.uint8]
Kind = Literal["overlay", "labels", "colours", "side-by-side"]
KINDS: tuple[Kind, ...] = ("overlay", "labels", "colours", "side-by-side")
SCOPE = "pipeline: decode, resize, normalise, infer, argmax; one frame at a time"
"""What the latency of a prediction is made of; drawing and writing go on beside it."""

_GOLDEN = 0.618033988749895
"""The golden ratio less 1: hues that far apart never come close to one another."""


def predicted(session: Session, image: Bytes, protocol: ScoringProtocol) -> Bytes:
    """Train ids (H, W) of a picture (H, W, 3) RGB at its own size, by a settled protocol of one view."""
    tensor = tensor_of(session, image, scaled(protocol, protocol.scales[0]))
    return labels_at(answers(session, [tensor])[0], (image.shape[0], image.shape[1]), protocol)


@dataclass(frozen=True, eq=False)
class Look:
    """How train ids are shown: as what, in which colours (256, 3), as which raw ids (256), and how much of the picture the colours hide, 0 to 1."""

    kind: Kind
    colours: Bytes
    ids: Bytes
    opacity: float = 0.5

    def __call__(self, image: Bytes, train_ids: Bytes) -> Bytes:
        """The picture (H, W, 3) RGB, or (H, W) raw ids, of an image (H, W, 3) and its train ids (H, W); side by side, (H, 2 W, 3)."""
        if self.kind == "labels":
            return np.asarray(cv2.LUT(train_ids, self.ids), np.uint8)
        colours = np.asarray(cv2.LUT(cv2.merge([train_ids] * 3), self.colours[None]), np.uint8)
        if self.kind == "colours":
            return colours
        if self.kind == "side-by-side":
            return np.concatenate([image, colours], axis=1)
        return np.asarray(cv2.addWeighted(image, 1 - self.opacity, colours, self.opacity, 0), np.uint8)


def look(kind: Kind, labels: LabelSet | None, opacity: float = 0.5) -> Look:
    """The look of a label set; of classes that belong to none, colours are made up, and ids are train ids."""
    if labels is None:
        return Look(kind, palette(256), np.arange(256, dtype=np.uint8), opacity)
    known = np.array([*range(len(labels.classes)), 255], np.uint8)
    colours, ids = np.tile(labels.colours(known[-1:]), (256, 1)), np.full(256, labels.void.id, np.uint8)
    colours[known], ids[known] = labels.colours(known), labels.ids(known)
    return Look(kind, colours, ids, opacity)


def palette(count: int) -> Bytes:
    """That many colours (count, 3) RGB, each far from those before it: hues by the golden ratio, three brightnesses in turn (our choice)."""
    rows = [colorsys.hsv_to_rgb(index * _GOLDEN % 1, 0.75, (0.95, 0.7, 0.5)[index % 3]) for index in range(count)]
    return (np.array(rows) * 255).round().astype(np.uint8)

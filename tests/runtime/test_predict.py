"""What is seen, drawn: colours and ids against the label set, one pixel at a time."""

import cv2
import numpy as np
import pytest

from segnas.labels import CAMVID, CITYSCAPES, LabelSet
from segnas.report import Port, ScoringProtocol
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.predict import KINDS, look, palette, predicted
from segnas.runtime.protocol import settled
from segnas.runtime.session import Specification

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)


@pytest.mark.parametrize("labels", [CITYSCAPES, CAMVID])
def test_looks_are_those_of_the_label_set(labels: LabelSet) -> None:
    classes = len(labels.classes)
    train_ids = np.arange(9 * 13).reshape(9, 13) % (classes + 1)
    train_ids = np.where(train_ids == classes, 255, train_ids).astype(np.uint8)
    pictures = {kind: look(kind, labels, 0.25)(IMAGE, train_ids) for kind in KINDS}
    assert np.array_equal(pictures["labels"], labels.ids(train_ids))
    assert np.array_equal(pictures["colours"], labels.colours(train_ids))
    assert np.array_equal(pictures["side-by-side"], np.concatenate([IMAGE, labels.colours(train_ids)], axis=1))
    blended = 0.75 * IMAGE + 0.25 * labels.colours(train_ids)
    assert np.abs(pictures["overlay"] - blended).max() <= 0.5
    assert all(picture.dtype == np.uint8 for picture in pictures.values())


def test_made_up_colours_are_told_apart() -> None:
    colours = palette(256).astype(int)
    assert len({tuple(colour) for colour in colours.tolist()}) > 250
    distances = np.abs(colours[:20, None] - colours[None, :20]).sum(axis=2) + 1000 * np.eye(20)
    assert distances.min() > 40
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(look("colours", None)(np.zeros((16, 16, 3), np.uint8), ids), palette(256)[ids])


class Fixed:
    """A session of half the size that gives labels, or scores that say the same."""

    def __init__(self, labels: np.ndarray, *, scores: bool) -> None:
        height, width = labels.shape
        self.target = cpu_target(height, width)
        self._answer = (np.eye(11, dtype=np.float32)[labels].transpose(2, 0, 1) if scores else labels)[None]
        output = Port("o", str(self._answer.dtype), self._answer.shape)
        self.specification = Specification(Port("input", "float32", (1, 3, height, width)), output)

    def run(self, image: np.ndarray) -> np.ndarray:
        assert image.shape == self.specification.input.shape
        return self._answer

    def sample(self, runs: int) -> tuple[float, ...]:
        return (1.0,) * runs

    def close(self) -> None: ...


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_come_back_at_the_size_of_the_picture(dtype: type) -> None:
    labels = np.random.default_rng(2).integers(0, 11, (4, 6))
    image = cv2.resize(IMAGE, (12, 8)).astype(np.uint8)
    session = Fixed(labels.astype(dtype), scores=False)
    assert np.array_equal(predicted(session, image, settled(session, ScoringProtocol(upsample="nearest"))), labels.repeat(2, 0).repeat(2, 1))
    scores = Fixed(labels, scores=True)
    found = predicted(scores, image, settled(scores, ScoringProtocol()))
    assert found.shape == (8, 12)
    assert (found[1::2, 1::2] == labels).mean() > 0.5

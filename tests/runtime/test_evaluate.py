"""Evaluate over folders of our own, with sessions that we script."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segnas.data import Dataset, normalise, open_dataset
from segnas.errors import InputError
from segnas.labels import CAMVID
from segnas.metrics import ConfusionMatrix
from segnas.report import Port
from segnas.runtime.evaluate import evaluate
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import Specification

CLASSES = len(CAMVID.classes)
Answer = Callable[[np.ndarray], np.ndarray]


class Scripted:
    """A session that answers with a function of the input."""

    def __init__(
        self, size: tuple[int, int], answer: Callable[[np.ndarray], np.ndarray], *, labels: bool, classes: int = CLASSES, batch: int = 1
    ) -> None:
        self.target = cpu_target(*size)
        shape = (batch, *size) if labels else (batch, classes, *size)
        output = Port("labels", "uint8", shape) if labels else Port("logits", "float32", shape)
        self.specification = Specification(Port("input", "float32", (batch, 3, *size)), output)
        self.answer = answer
        self.inputs: list[np.ndarray] = []

    def run(self, image: np.ndarray) -> np.ndarray:
        assert image.shape == self.specification.input.shape
        assert image.dtype == np.float32
        self.inputs.append(image)
        return self.answer(image)[None]

    def sample(self, runs: int) -> tuple[float, ...]:
        return (1.0,) * runs

    def close(self) -> None: ...


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Four images of 8x12 in CamVid's layout, noise and labels drawn from a seed."""
    random = np.random.default_rng(0)
    for index in range(4):
        for folder, values in (("images", random.integers(0, 256, (8, 12, 3))), ("labels", random.integers(0, 12, (8, 12)))):
            path = tmp_path / "val" / folder / f"{index}.{'jpg' if folder == 'images' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), values.astype(np.uint8))
    return open_dataset("camvid", tmp_path, "val")


def truths(dataset: Dataset) -> list[np.ndarray]:
    return [dataset.read(index)[1] for index in range(len(dataset))]


def test_a_perfect_engine_scores_one_and_void_is_not_counted(dataset):
    answers = iter(truths(dataset))
    accuracy = evaluate(Scripted((8, 12), lambda x: CAMVID.train_ids(next(answers)) % CLASSES, labels=True), dataset)
    assert accuracy.miou == 1
    assert accuracy.pixel_accuracy == 1
    assert (accuracy.dataset, accuracy.split, accuracy.images) == ("camvid", "val", 4)
    assert [score.name for score in accuracy.classes] == [label.name for label in CAMVID.classes]
    assert sum(map(sum, accuracy.matrix)) == 4 * 8 * 12


def test_the_score_is_that_of_the_confusion_matrix(dataset):
    random = np.random.default_rng(1)
    maps = [random.integers(0, CLASSES, (8, 12)).astype(np.uint8) for _ in range(4)]
    matrix = ConfusionMatrix(CAMVID)
    for truth, train_ids in zip(truths(dataset), maps, strict=True):
        matrix.add(truth, CAMVID.ids(train_ids))
    answers = iter(maps)
    accuracy = evaluate(Scripted((8, 12), lambda x: next(answers), labels=True), dataset)
    assert accuracy.miou == matrix.miou
    assert np.array_equal(np.array(accuracy.matrix), matrix.counts)


def test_the_engine_sees_the_image_normalised_and_in_order(dataset):
    session = Scripted((8, 12), lambda x: np.zeros((8, 12), np.uint8), labels=True)
    evaluate(session, dataset)
    for index, seen in enumerate(session.inputs):
        assert np.array_equal(seen, normalise(dataset.read(index)[0][None]))


def test_logits_are_resized_before_the_argmax_as_torch_does(dataset):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    logits = [random.standard_normal((CLASSES, 4, 6)).astype(np.float32) for _ in range(4)]
    answers, seen = iter(logits), list[Any]()
    session = Scripted((4, 6), lambda x: next(answers), labels=False)
    accuracy = evaluate(session, dataset, predictions=lambda index, image, truth, predicted: seen.append((index, image, truth, predicted)))
    for (index, image, truth, predicted), scores in zip(seen, logits, strict=True):
        large = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size=(8, 12), mode="bilinear", align_corners=False)[0]
        assert (CAMVID.ids(large.argmax(dim=0).numpy().astype(np.uint8)) == predicted).mean() > 0.98
        assert image.shape == (8, 12, 3)
        assert np.array_equal(truth, dataset.read(index)[1])
    assert [entry[0] for entry in seen] == [0, 1, 2, 3]
    assert "logits bilinear" in accuracy.protocol
    assert "4x6" in accuracy.protocol


def test_labels_of_another_size_need_a_word(dataset):
    session = Scripted((4, 6), lambda x: np.arange(24).reshape(4, 6).astype(np.uint8) % CLASSES, labels=True)
    with pytest.raises(InputError, match=r"labels at 4x6, the ground truth is 8x12.*output 'logits'"):
        evaluate(session, dataset)
    seen: list[np.ndarray] = []
    accuracy = evaluate(session, dataset, upsample="nearest", predictions=lambda i, image, truth, predicted: seen.append(predicted))
    assert np.array_equal(CAMVID.train_ids(seen[0]), (np.arange(24).reshape(4, 6) % CLASSES).repeat(2, axis=0).repeat(2, axis=1))
    assert "nearest" in accuracy.protocol


def test_a_limit_takes_the_first_and_says_so(dataset):
    session, told = Scripted((8, 12), lambda x: np.zeros((8, 12), np.uint8), labels=True), list[tuple[int, int]]()
    accuracy = evaluate(session, dataset, limit=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert accuracy.images == 2
    assert "the first 2 of 4 images" in accuracy.protocol
    assert "all 4 images" in evaluate(session, dataset).protocol
    with pytest.raises(InputError, match="at least 1"):
        evaluate(session, dataset, limit=0)


def test_engines_that_do_not_fit_the_data_are_refused(dataset):
    with pytest.raises(InputError, match="19 classes; camvid has 11"):
        evaluate(Scripted((8, 12), lambda x: np.zeros((19, 8, 12), np.float32), labels=False, classes=19), dataset)
    with pytest.raises(InputError, match="batch 1"):
        evaluate(Scripted((8, 12), lambda x: np.zeros((8, 12), np.uint8), labels=True, batch=2), dataset)
    with pytest.raises(InputError, match="train ids"):
        evaluate(Scripted((8, 12), lambda x: np.full((8, 12), 18, np.uint8), labels=True), dataset)


def test_a_file_that_cannot_be_read_is_named(dataset, tmp_path: Path):
    (tmp_path / "val" / "images" / "2.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2\.jpg"):
        evaluate(Scripted((8, 12), lambda x: np.zeros((8, 12), np.uint8), labels=True), dataset)

"""Evaluate over folders of our own, with sessions that we script."""

import threading
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
from segnas.report import Port, ScoringProtocol, Sizes
from segnas.runtime.evaluate import evaluate
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import Specification

CLASSES = len(CAMVID.classes)
Answer = Callable[[np.ndarray], np.ndarray]
NEAREST = ScoringProtocol(upsample="nearest")


class Scripted:
    """A session that answers each image of a batch with a function of it; it notes what it was given, and refuses a second caller."""

    def __init__(self, size: tuple[int, int], answer: Answer, *, labels: bool, classes: int = CLASSES, batch: int = 1, image: bool = False) -> None:
        self.target = cpu_target(*size)
        shape = (batch, *size) if labels else (batch, classes, *size)
        output = Port("labels", "uint8", shape) if labels else Port("logits", "float32", shape)
        port = Port("input", "uint8", (batch, *size, 3)) if image else Port("input", "float32", (batch, 3, *size))
        self.specification = Specification(port, output)
        self.answer = answer
        self.inputs: list[np.ndarray] = []
        self._caller: int | None = None

    def run(self, image: np.ndarray) -> np.ndarray:
        assert self._caller in (None, threading.get_ident())
        self._caller = threading.get_ident()
        assert image.shape == self.specification.input.shape
        assert image.dtype == np.dtype(self.specification.input.dtype)
        self.inputs.append(image)
        return np.stack([self.answer(one[None]) for one in image])

    def sample(self, runs: int) -> tuple[float, ...]:
        return (1.0,) * runs

    def close(self) -> None: ...


class Dynamic(Scripted):
    """One that takes any size and gives logits of half of it: planes that depend on the pixels, so that views differ."""

    def __init__(self) -> None:
        super().__init__((8, 12), self._logits, labels=False)
        self.specification = Specification(Port("input", "float32", (1, 3, -1, -1)), Port("logits", "float32", (1, CLASSES, -1, -1)))
        self.sizes: list[tuple[int, int]] = []

    def run(self, image: np.ndarray) -> np.ndarray:
        self.sizes.append(image.shape[2:])
        return np.stack([self._logits(one[None]) for one in image])

    def _logits(self, image: np.ndarray) -> np.ndarray:
        weights = np.random.default_rng(4).standard_normal((CLASSES, 3)).astype(np.float32)
        return np.tensordot(weights, image[0, :, ::2, ::2], 1)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Four images of 8x12 in CamVid's layout, noise and labels drawn from a seed."""
    return made(tmp_path, 4)


def made(root: Path, count: int) -> Dataset:
    random = np.random.default_rng(0)
    for index in range(count):
        for folder, values in (("images", random.integers(0, 256, (8, 12, 3))), ("labels", random.integers(0, 12, (8, 12)))):
            path = root / "val" / folder / f"{index:03}.{'jpg' if folder == 'images' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), values.astype(np.uint8))
    return open_dataset("camvid", root, "val")


def truths(dataset: Dataset) -> list[np.ndarray]:
    return [dataset.read(index)[1] for index in range(len(dataset))]


def by_brightness(image: np.ndarray) -> np.ndarray:
    """Labels that depend on the pixels alone."""
    return (np.abs(image[0].sum(axis=0)) * 3).astype(np.uint8) % CLASSES


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
    evaluate(session, dataset, workers=3)
    for index, seen in enumerate(session.inputs):
        assert np.array_equal(seen, normalise(dataset.read(index)[0][None]))


def test_an_engine_that_normalises_by_itself_sees_the_pixels(dataset):
    session = Scripted((4, 6), lambda x: np.zeros((4, 6), np.uint8), labels=True, image=True)
    evaluate(session, dataset, protocol=NEAREST)
    for index, seen in enumerate(session.inputs):
        assert np.array_equal(seen[0], cv2.resize(dataset.read(index)[0], (6, 4)))


@pytest.mark.parametrize("align", [False, True])
def test_logits_are_resized_before_the_argmax_as_torch_does(dataset, align: bool):
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(2)
    logits = [random.standard_normal((CLASSES, 4, 6)).astype(np.float32) for _ in range(4)]
    answers, seen = iter(logits), list[Any]()
    session = Scripted((4, 6), lambda x: next(answers), labels=False)
    wish = ScoringProtocol(align_corners=align)
    accuracy = evaluate(session, dataset, protocol=wish, predictions=lambda *sample: seen.append(sample))
    for (index, image, truth, predicted), scores in zip(seen, logits, strict=True):
        large = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size=(8, 12), mode="bilinear", align_corners=align)[0]
        assert np.array_equal(CAMVID.ids(large.argmax(dim=0).numpy().astype(np.uint8)), predicted)
        assert image.shape == (8, 12, 3)
        assert np.array_equal(truth, dataset.read(index)[1])
    assert [entry[0] for entry in seen] == [0, 1, 2, 3]
    assert f"logits bilinear ({'corners aligned' if align else 'half-pixel centres'})" in accuracy.protocol
    assert "4x6" in accuracy.protocol


def test_labels_of_another_size_need_a_word(dataset):
    session = Scripted((4, 6), lambda x: np.arange(24).reshape(4, 6).astype(np.uint8) % CLASSES, labels=True)
    with pytest.raises(InputError, match=r"labels at 4x6, and 8x12 is needed.*--output logits.*--upsample nearest"):
        evaluate(session, dataset)
    seen: list[np.ndarray] = []
    accuracy = evaluate(session, dataset, protocol=NEAREST, predictions=lambda i, image, truth, predicted: seen.append(predicted))
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


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("workers", [1, 3])
def test_neither_batch_nor_workers_change_the_counts(dataset, batch: int, workers: int):
    """An engine of batch 3 sees four images as two batches, the second filled up, and what comes of the filling is not counted."""
    alone = evaluate(Scripted((8, 12), by_brightness, labels=True), dataset)
    session = Scripted((8, 12), by_brightness, labels=True, batch=batch)
    together = evaluate(session, dataset, workers=workers)
    assert together.matrix == alone.matrix
    assert len(session.inputs) == -(-4 // batch)
    if batch == 3:
        assert np.array_equal(session.inputs[1][1], session.inputs[1][0])


def test_views_are_averaged_as_probabilities(dataset):
    """Against softmax and interpolation by torch, over three scales and the mirror image."""
    torch = pytest.importorskip("torch")
    session, seen = Dynamic(), list[np.ndarray]()
    wish = ScoringProtocol(flip=True, scales=(0.5, 1.0, 1.5))
    accuracy = evaluate(session, dataset, protocol=wish, predictions=lambda *sample: seen.append(sample[3]))
    assert session.sizes[:6] == [(4, 6), (4, 6), (8, 12), (8, 12), (12, 18), (12, 18)]
    total = torch.zeros(CLASSES, 8, 12)
    for size in ((4, 6), (8, 12), (12, 18)):
        tensor = normalise(np.asarray(cv2.resize(dataset.read(0)[0], size[::-1]), np.uint8)[None])
        for flip in (False, True):
            logits = torch.from_numpy(session._logits(tensor[..., ::-1] if flip else tensor).copy())
            logits = logits.flip(-1) if flip else logits
            total += torch.nn.functional.interpolate(logits[None], size=(8, 12), mode="bilinear").softmax(dim=1)[0]
    assert np.array_equal(CAMVID.train_ids(seen[0]), total.argmax(dim=0).numpy())
    assert "scales 0.5, 1, 1.5, with flip, mean probabilities of all views" in accuracy.protocol
    alone = evaluate(Dynamic(), dataset)
    assert alone.matrix != accuracy.matrix
    assert "single scale, no flip; image bilinear to 8x12" in alone.protocol


def test_what_an_engine_cannot_be_asked_is_refused(dataset):
    labels, logits = Scripted((8, 12), by_brightness, labels=True), Scripted((8, 12), by_brightness, labels=False)
    for session, wish, message in (
        (labels, ScoringProtocol(flip=True), "flipping cannot be had of an engine that gives labels.*--output logits"),
        (labels, ScoringProtocol(scales=(1.0, 2.0)), "several scales cannot be had"),
        (labels, ScoringProtocol(align_corners=True), "aligned corners cannot be had"),
        (labels, ScoringProtocol(upsample="bilinear"), "upsample 'bilinear' was asked for; this engine gives labels"),
        (logits, ScoringProtocol(upsample="nearest"), "upsample 'nearest' was asked for; this engine gives logits"),
        (logits, ScoringProtocol(scales=(1.0, 0.5)), "4x6 was asked for; other scales and sizes need a dynamic engine"),
        (logits, ScoringProtocol(size=(16, 24)), "16x24 was asked for; other scales and sizes need a dynamic engine"),
        (logits, ScoringProtocol(scales=()), "different ones from 0.1 to 4"),
        (logits, ScoringProtocol(scales=(1.0, 1.0)), "different ones from 0.1 to 4"),
        (logits, ScoringProtocol(scales=(float("nan"),)), "different ones from 0.1 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(session, dataset, protocol=wish)
    with pytest.raises(InputError, match="16x24 was asked for; this dynamic engine takes 4x6 to 12x18"):
        evaluate(Dynamic(), dataset, protocol=ScoringProtocol(scales=(1.0, 2.0)), sizes=Sizes((4, 6), (8, 12), (12, 18)))
    assert evaluate(Dynamic(), dataset, protocol=ScoringProtocol(size=(16, 24)), sizes=Sizes((4, 6), (8, 12), (16, 24))).images == 4


def test_engines_that_do_not_fit_the_data_are_refused(dataset):
    with pytest.raises(InputError, match="19 classes; camvid has 11"):
        evaluate(Scripted((8, 12), lambda x: np.zeros((19, 8, 12), np.float32), labels=False, classes=19), dataset)
    with pytest.raises(InputError, match="train ids"):
        evaluate(Scripted((8, 12), lambda x: np.full((8, 12), 18, np.uint8), labels=True), dataset)
    odd = Scripted((8, 12), by_brightness, labels=True)
    odd.specification = Specification(Port("input", "float32", (1, 1, 8, 12)), odd.specification.output)
    with pytest.raises(InputError, match="3 channels is needed"):
        evaluate(odd, dataset)


def test_logits_that_are_no_numbers_are_no_class(dataset):
    with pytest.raises(InputError, match="no numbers"):
        evaluate(Scripted((8, 12), lambda x: np.full((CLASSES, 8, 12), np.nan, np.float32), labels=False), dataset)


def test_a_file_that_cannot_be_read_is_named_after_the_others_were_counted(dataset, tmp_path: Path):
    (tmp_path / "val" / "images" / "002.jpg").write_bytes(b"no image")
    done: list[int] = []
    with pytest.raises(InputError, match=r"002\.jpg: damaged.*3 other images were scored"):
        evaluate(Scripted((8, 12), lambda x: np.zeros((8, 12), np.uint8), labels=True), dataset, predictions=lambda index, *rest: done.append(index))
    assert done == [0, 1, 3]


def test_many_images_are_never_in_memory_at_once(tmp_path: Path):
    """The number decoded and not yet counted, with a slow engine, on three workers."""
    dataset, lock = made(tmp_path, 40), threading.Lock()
    alive, most = 0, 0
    decode = Dataset.decode

    class Counting(Dataset):
        def decode(self, index: int, *, instances: bool = False) -> Any:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)
            return decode(self, index, instances=instances)

    def seen(*sample: Any) -> None:
        nonlocal alive
        with lock:
            alive -= 1

    counting = Counting(dataset.name, dataset.root, dataset.split, dataset.labels, dataset.samples)
    evaluate(Scripted((8, 12), by_brightness, labels=True), counting, workers=3, predictions=seen)
    assert alive == 0
    assert most <= (3 + 1 + 1) + 1 + (3 + 2)  # read ahead, at the engine, waiting to be counted

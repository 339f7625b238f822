"""Folders of predictions scored as the benchmark server would, with its checks; each classic error, and the hint that goes with it."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segnas.data import Dataset, open_dataset
from segnas.errors import InputError
from segnas.evaluating import Part, merged
from segnas.labels import CITYSCAPES
from segnas.metrics import ConfusionMatrix
from segnas.submissions import submission_evaluation

Pixels = NDArray[np.uint8]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three images of 6x8 in the layout of Cityscapes, in two cities."""
    rng = np.random.default_rng(0)
    for name in ("aachen_000000_000019", "aachen_000001_000019", "zurich_000000_000294"):
        for kind, suffix, shape, most in (("leftImg8bit", "leftImg8bit", (6, 8, 3), 256), ("gtFine", "gtFine_labelIds", (6, 8), 34)):
            path = tmp_path / "data" / kind / "val" / name.partition("_")[0] / f"{name}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), rng.integers(0, most, shape).astype(np.uint8))
    return open_dataset("cityscapes", tmp_path / "data", "val")


@pytest.fixture
def written(dataset: Dataset, tmp_path: Path) -> Callable[..., Path]:
    """Writes a prediction for each image, changed by a function, into folders that differ."""

    def write(change: Callable[[Pixels], Pixels] = lambda ids: ids, only: str = "") -> Path:
        rng, folder = np.random.default_rng(1), tmp_path / "predictions"
        for index, sample in enumerate(dataset.samples):
            ids = np.where(rng.random((6, 8)) < 0.7, dataset.read(index)[1], rng.integers(0, 34, (6, 8))).astype(np.uint8)
            path = folder / ("deep/er" if index == 1 else ".") / f"{sample.name}{('_pred', '', '_labelIds')[index]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), change(ids) if only in sample.name else ids)
        return folder

    return write


def test_the_score_is_that_of_the_matrix(dataset: Dataset, written: Callable[..., Path]) -> None:
    folder = written()
    found, matrix = submission_evaluation(folder, dataset, workers=2), ConfusionMatrix(CITYSCAPES)
    for index, sample in enumerate(dataset.samples):
        path = next(folder.rglob(f"{sample.name}*.png"))
        matrix.add(dataset.read(index)[1], cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint8))
    assert np.array_equal(np.array(found.accuracy.matrix), matrix.counts)
    assert (found.accuracy.miou, found.engine_sha256, found.protocol) == (matrix.miou, "", None)
    assert "label images scored as they are" in found.accuracy.protocol
    parts = [(str(k), submission_evaluation(folder, dataset, part=Part(None, k, 2))) for k in (1, 2)]
    assert merged(parts) == found


def test_exactly_one_prediction_for_each_image(dataset: Dataset, written: Callable[..., Path], tmp_path: Path) -> None:
    folder = written()
    (folder / "deep" / "zurich_000000_000294_again.png").write_bytes((folder / "zurich_000000_000294_labelIds.png").read_bytes())
    (folder / "other_000000_000000.png").write_bytes(b"of no image: the server does not look at it either")
    with pytest.raises(InputError, match=r"2 predictions were found for one image: .*zurich_000000_000294.* and .*leave exactly one"):
        submission_evaluation(folder, dataset)
    (folder / "deep" / "er" / "aachen_000001_000019.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 images have no prediction aachen_000001_000019\*\.png under .*`segnas predict"):
        submission_evaluation(folder, dataset)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"3 of 3 images have no prediction.*holds no PNG at all"):
        submission_evaluation(tmp_path / "empty", dataset)
    with pytest.raises(InputError, match="is not a folder"):
        submission_evaluation(tmp_path / "nowhere", dataset)


def train_ids(ids: Pixels) -> Pixels:
    return CITYSCAPES.train_ids(ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[:-1], r"zurich.*: 5x8 where the ground truth is 6x8; predict at the size of the images"),
        (lambda ids: CITYSCAPES.colours(train_ids(ids)), r"3 channels of uint8.*not a colour picture.*--as labels"),
        (train_ids, r"label values \[255\] are not cityscapes ids.*255 is a train id"),
        (lambda ids: ids + np.uint8(3), r"label values \[34.*are not cityscapes ids; allowed are 0..33"),
        (lambda ids: ids.astype(np.uint16), "1 channel of uint16"),
    ],
)
def test_each_classic_error_is_recognised(dataset: Dataset, written: Callable[..., Path], change: Callable[[Pixels], Pixels], message: str) -> None:
    with pytest.raises(InputError, match=f"{message}.*2 other images were scored"):
        submission_evaluation(written(change, "zurich"), dataset)


def test_a_truth_with_an_unknown_id_is_refused(dataset: Dataset, written: Callable[..., Path]) -> None:
    folder, label = written(), dataset.samples[0].label
    assert cv2.imwrite(str(label), np.full((6, 8), 34, np.uint8))
    with pytest.raises(InputError, match=r"aachen_000000_000019_gtFine_labelIds\.png: label values \[34\] are not cityscapes ids"):
        submission_evaluation(folder, dataset)


def test_a_palette_and_a_torn_file(dataset: Dataset, written: Callable[..., Path]) -> None:
    from PIL import Image

    folder = written()
    path = folder / "zurich_000000_000294_labelIds.png"
    image = Image.fromarray(np.zeros((6, 8), np.uint8), mode=None).convert("P")
    image.putpalette([1, 2, 3] * 256)
    image.save(path)
    with pytest.raises(InputError, match="values are of a palette; write the ids themselves, in grey"):
        submission_evaluation(folder, dataset)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"zurich.*damaged, cut short"):
        submission_evaluation(folder, dataset)


def test_train_ids_without_void_are_recognised(dataset: Dataset, written: Callable[..., Path]) -> None:
    """Every value is an id, so that the server would score it, near zero."""
    folder = written(lambda ids: np.minimum(train_ids(ids), 18) * (ids != 0) // 2 * 2)
    with pytest.raises(InputError, match=r"nothing but 0..18, and most of that are ids of ignored labels: these are train ids"):
        submission_evaluation(folder, dataset)


def test_a_poor_prediction_is_no_mistake(dataset: Dataset, written: Callable[..., Path]) -> None:
    assert submission_evaluation(written(lambda ids: np.full_like(ids, 7)), dataset).accuracy.miou < 0.1

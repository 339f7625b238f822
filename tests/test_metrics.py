"""The confusion matrix against a slow reading of the official rules, the official tool itself, and the floors that CamVid's notes give."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from segnas.data import open_dataset, read_label
from segnas.errors import InputError
from segnas.labels import CAMVID, CITYSCAPES
from segnas.metrics import ConfusionMatrix, floors, mean, pair_counts

# Few values, so that classes are absent now and then: three void ids and five scored ones.
MAPS = arrays.arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 9, 7, 8, 23, 26, 33]))


def slow_ious(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> dict[str, float]:
    """The rules of evalPixelLevelSemanticLabeling.py pixel by pixel, NaN included."""
    ignored = {label.id for label in CITYSCAPES.labels if label.ignore}
    scores: dict[str, float] = {}
    for label in CITYSCAPES.classes:
        hits = missed = wrong = 0
        for truth, guess in pairs:
            for t, g in zip(truth.ravel().tolist(), guess.ravel().tolist(), strict=True):
                hits += t == label.id and g == label.id
                missed += t == label.id and g != label.id
                wrong += t != label.id and g == label.id and t not in ignored
        total = hits + missed + wrong
        scores[label.name] = hits / total if total else math.nan
    return scores


def matrix_of(*pairs: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> ConfusionMatrix:
    matrix = ConfusionMatrix(CITYSCAPES)
    for truth, guess in pairs:
        matrix.add(truth, guess)
    return matrix


@given(st.lists(st.tuples(MAPS, MAPS), min_size=1, max_size=3))
def test_scores_agree_with_a_slow_reading_of_the_rules(pairs) -> None:
    matrix, expected = matrix_of(*pairs), slow_ious(pairs)
    assert matrix.iou() == {name: None if math.isnan(value) else value for name, value in expected.items()}
    there = [value for value in expected.values() if not math.isnan(value)]
    assert matrix.miou == (sum(there) / len(there) if there else None)
    valid = [(t, g) for truth, guess in pairs for t, g in zip(truth.ravel(), guess.ravel(), strict=True) if t in (7, 8, 23, 26, 33)]
    assert matrix.valid_pixels == len(valid)
    assert matrix.pixels == 20 * len(pairs)
    assert matrix.pixel_accuracy == (sum(t == g for t, g in valid) / len(valid) if valid else None)


@given(st.lists(st.tuples(MAPS, MAPS), min_size=2, max_size=4))
def test_a_sum_of_matrices_is_the_matrix_of_all(pairs) -> None:
    total = sum((matrix_of(pair) for pair in pairs), ConfusionMatrix(CITYSCAPES))
    assert total == matrix_of(*pairs)
    assert ConfusionMatrix.from_json(json.loads(json.dumps(total.to_json()))) == total


def golden_maps() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Ground truth and prediction with void in both; ids 31 and 32 are not in the truth, and 32 is never predicted."""
    i = np.arange(64 * 128, dtype=np.int64)
    noise = (i * 1103515245 + 12345) // 65536 % 32768
    truth = (i // 97 * 7 + i % 128 // 16) % 34
    guess = np.where(noise % 5 == 0, noise // 5 % 34, truth)
    truth[truth == 31] = 7
    truth[truth == 32] = 33
    guess[guess == 32] = 33
    return truth.astype(np.uint8).reshape(64, 128), guess.astype(np.uint8).reshape(64, 128)


def test_the_golden_case_of_the_official_tool() -> None:
    # Obtained once with cityscapesscripts 2.3.0 (numpy 2.3.5): the two maps saved as PNG, evaluatePair() on generateMatrix(),
    # then getIouScoreForLabel() of each label and getScoreAverage().
    matrix = matrix_of(golden_maps())
    assert matrix.miou == 0.6750793328311152
    iou = matrix.iou()
    assert (iou["road"], iou["bicycle"], iou["sky"]) == (0.4601449275362319, 0.7126168224299065, 0.7068403908794788)
    assert iou["train"] == 0.0
    assert iou["motorcycle"] is None
    # The common 19x19 matrix that drops void predictions flatters the same maps.
    truth, guess = (CITYSCAPES.train_ids(ids).astype(int) for ids in golden_maps())
    kept = (truth != 255) & (guess != 255)
    small = np.bincount(truth[kept] * 19 + guess[kept], minlength=361).reshape(19, 19)
    union = small.sum(0) + small.sum(1) - small.diagonal()
    assert np.mean(small.diagonal()[union > 0] / union[union > 0]) == pytest.approx(0.7294771480154657)


def test_void_rules_one_by_one() -> None:
    road, void, sky = np.full((1, 4), 7, np.uint8), np.full((1, 4), 0, np.uint8), np.full((1, 4), 23, np.uint8)
    assert matrix_of((road, road), (void, sky)).iou()["sky"] is None  # free on ignored ground truth
    assert matrix_of((road, road), (road, void)).iou()["road"] == 0.5  # a void prediction is a miss
    assert matrix_of((road, sky)).iou()["sky"] == 0.0  # absent, but predicted on a valid pixel
    assert matrix_of((road, sky)).miou == 0.0
    assert matrix_of((void, road)).miou is None
    assert matrix_of((void, road)).pixel_accuracy is None


def test_any_integer_type_counts_alike() -> None:
    truth, guess = golden_maps()
    matrix = ConfusionMatrix(CITYSCAPES)
    matrix.add(truth.astype(np.int64), guess.astype(np.int32))
    assert matrix == matrix_of((truth, guess))


def test_what_cannot_be_counted_is_refused() -> None:
    matrix, road = ConfusionMatrix(CITYSCAPES), np.full((2, 2), 7, np.uint8)
    with pytest.raises(InputError, match="2x2 but the prediction is 2x3"):
        matrix.add(road, np.full((2, 3), 7, np.uint8))
    with pytest.raises(InputError, match=r"prediction holds \[255\].*LabelSet.ids"):
        matrix.add(road, np.full((2, 2), 255, np.uint8))
    with pytest.raises(InputError, match=r"ground truth holds \[-1\]"):
        matrix.add(np.full((2, 2), -1), road)
    with pytest.raises(InputError, match="float32"):
        matrix.add(road, np.zeros((2, 2), np.float32))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="evaluate each data set apart"):
        _ = matrix + ConfusionMatrix(CAMVID)
    assert matrix.pixels == 0


@given(st.integers(1, 256), st.integers(0, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_pairs_are_counted_as_numpy_does(side: int, height: int, width: int, seed: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, side, (2, height, width)).astype(np.uint8)
    expected = np.bincount(first.ravel().astype(int) * side + second.ravel(), minlength=side * side).reshape(side, side)
    assert np.array_equal(pair_counts(first, second, side), expected)


def test_more_pixels_than_a_float_counts() -> None:
    """2^24 + 1 is the first whole number that float32, in which OpenCV gives its histograms, does not have."""
    many = np.full((1 << 12, (1 << 12) + 1), 33, np.uint8)
    many[0, 0] = 7
    counts = pair_counts(many, many, 34)
    assert (int(counts[33, 33]), int(counts[7, 7]), int(counts.sum())) == (many.size - 1, 1, many.size)
    with pytest.raises(RuntimeError, match="pixels were given"):
        pair_counts(np.full((2, 2), 34, np.uint8), np.zeros((2, 2), np.uint8), 34)


def test_the_mean_rounds_as_the_official_loop() -> None:
    assert mean([0.1] * 10) == 0.9999999999999999 / 10  # math.fsum, and sum from Python 3.12 on, make 1.0 of ten tenths
    assert mean([None, 0.5, None, 1.0]) == 0.75
    assert mean([None]) is None
    assert mean([]) is None


@pytest.mark.parametrize(
    "value", [{}, {"labels": "ade20k", "counts": []}, {"labels": "camvid", "counts": [[1]]}, {"labels": "camvid", "counts": [["a"]]}]
)
def test_a_damaged_record_is_refused(value) -> None:
    with pytest.raises(InputError):
        ConfusionMatrix.from_json(value)


def test_floors_by_hand() -> None:
    train = [np.array([[7, 7], [8, 0]], np.uint8), np.array([[7, 23], [8, 0]], np.uint8)]
    found = floors(CITYSCAPES, train, [np.array([[7, 7, 23, 23], [8, 8, 7, 0]], np.uint8)])
    assert found.majority_class == "road"
    # position: top left road, top right road (1 against 1: the lower id), bottom left sidewalk, bottom right unseen -> road
    assert found.position.iou() == found.position.iou() | {"road": 3 / 5, "sidewalk": 1.0, "sky": 0.0}
    assert found.majority.iou() == found.majority.iou() | {"road": 3 / 7, "sidewalk": 0.0, "sky": 0.0}
    with pytest.raises(InputError, match="at least one"):
        floors(CITYSCAPES, [], [])


def test_floors_of_large_maps_are_counted_on_a_smaller_grid() -> None:
    large = np.repeat(np.repeat(np.array([[23, 23], [7, 8]], np.uint8), 400, 0), 600, 1)  # (800, 1200)
    assert floors(CITYSCAPES, [large], [large]).position.miou == 1.0


@pytest.mark.parametrize(("split", "position", "accuracy", "road"), [("val", 16.69, 59.0, 2.68), ("test", 17.03, 61.5, 2.44)])
def test_floors_of_camvid_are_those_of_its_notes(camvid_root, split: str, position: float, accuracy: float, road: float) -> None:
    train, evaluation = open_dataset("camvid", camvid_root, "train"), open_dataset("camvid", camvid_root, split)
    found = floors(CAMVID, *((read_label(sample, CAMVID) for sample in data.samples) for data in (train, evaluation)))
    assert found.majority_class == "road"
    assert found.position.miou == pytest.approx(position / 100, abs=5e-5)
    assert found.position.pixel_accuracy == pytest.approx(accuracy / 100, abs=5e-4)
    assert found.majority.miou == pytest.approx(road / 100, abs=5e-5)

"""Label sets: the tables against the official lists, and what is refused."""

import json

import numpy as np
import pytest

from segnas.errors import InputError
from segnas.labels import CAMVID, CITYSCAPES, LABEL_SETS, Label, LabelSet

# Copied from cityscapesScripts 2.3.0, helpers/labels.py: the ids of train ids 0..18.
OFFICIAL_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_cityscapes_train_ids_are_the_official_ones() -> None:
    expected = [OFFICIAL_IDS.index(i) if i in OFFICIAL_IDS else 255 for i in range(34)]
    ids = np.arange(34, dtype=np.uint8)
    assert CITYSCAPES.train_ids(ids).tolist() == expected
    assert [label.id for label in CITYSCAPES.classes] == OFFICIAL_IDS
    assert CITYSCAPES.size == 34


def test_ids_are_the_inverse_of_train_ids_and_255_becomes_unlabeled() -> None:
    train_ids = np.array([[*range(19), 255]], np.uint8)
    ids = CITYSCAPES.ids(train_ids)
    assert ids.tolist() == [[*OFFICIAL_IDS, 0]]
    assert np.array_equal(CITYSCAPES.train_ids(ids), train_ids)


@pytest.mark.parametrize(
    ("name", "train_id", "colour"),
    [("road", 0, (128, 64, 128)), ("sky", 10, (70, 130, 180)), ("car", 13, (0, 0, 142)), ("bicycle", 18, (119, 11, 32))],
)
def test_cityscapes_names_and_colours(name: str, train_id: int, colour: tuple[int, int, int]) -> None:
    assert CITYSCAPES.classes[train_id].name == name
    picture = CITYSCAPES.colours(np.full((2, 3), train_id, np.uint8))
    assert picture.shape == (2, 3, 3)
    assert picture[1, 2].tolist() == list(colour)


def test_colours_are_distinct_and_names_are_unique() -> None:
    for labels in LABEL_SETS.values():
        assert len({label.colour for label in labels.classes}) == len(labels.classes)
        assert len({label.name for label in labels.labels}) == labels.size


def test_camvid_agrees_with_the_file_beside_the_images(camvid_root) -> None:
    classes = json.loads((camvid_root / "classes.json").read_text())["classes"]
    ours = [(x.train_id, x.name.replace(" ", ""), list(x.colour)) for x in CAMVID.classes]
    assert ours == [(x["train_id"], x["name"].lower(), x["color"]) for x in classes]


def test_camvid_void_is_255_or_11_in_files() -> None:
    assert CAMVID.raw_ids(np.array([0, 10, 11, 255], np.uint8)).tolist() == [0, 10, 11, 11]
    assert CAMVID.train_ids(np.array([10, 11], np.uint8)).tolist() == [10, 255]
    assert CAMVID.ids(np.array([10, 255], np.uint8)).tolist() == [10, 11]
    assert len(CAMVID.classes) == 11
    assert CAMVID.size == 12


@pytest.mark.parametrize(
    ("call", "values", "named"),
    [
        (CITYSCAPES.train_ids, [7, 34, 200], r"\[34, 200\]"),
        (CITYSCAPES.ids, [3, 19, 255], r"\[19\]"),
        (CITYSCAPES.colours, [20], r"\[20\]"),
        (CITYSCAPES.raw_ids, [33, 255], r"\[255\].*labelTrainIds"),
        (CAMVID.raw_ids, [12, 255], r"\[12\].*0\.\.11 and 255 for void"),
    ],
)
def test_unknown_values_are_named(call, values, named: str) -> None:
    with pytest.raises(InputError, match=named):
        call(np.array(values, np.uint8))


def test_empty_maps_pass() -> None:
    empty = np.zeros((0, 4), np.uint8)
    assert CITYSCAPES.train_ids(empty).shape == CITYSCAPES.ids(empty).shape == CITYSCAPES.raw_ids(empty).shape == (0, 4)


def test_a_label_set_is_checked_when_made() -> None:
    road, void = Label(0, 0, "road", (1, 2, 3), "flat", False), Label(1, 255, "void", (0, 0, 0), "void", True)
    assert LabelSet("tiny", (road, void)).void is void
    for wrong in ((void, road), (road,), (road, Label(1, 2, "sky", (1, 1, 1), "sky", False)), (road, Label(1, 3, "x", (0, 0, 0), "x", True))):
        with pytest.raises(ValueError, match="tiny"):
            LabelSet("tiny", wrong)

"""The synthetic streets: repeatable, in the genuine layout, with the classes of a street, and not to be told by colour alone."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from segnas.data import check_dataset, open_dataset
from segnas.errors import InputError
from segnas.labels import CITYSCAPES
from segnas.streets import street, write_streets

COUNTS = {"train": 3, "val": 2}


def digests(root) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*.png"))}


@pytest.mark.parametrize("size", [(128, 256), (90, 120), (33, 64), (360, 480)])
def test_a_scene_is_a_function_of_its_seed_and_size(size: tuple[int, int]) -> None:
    image, ids = street(5, *size)
    assert (image.shape, image.dtype, ids.shape, ids.dtype) == ((*size, 3), np.uint8, size, np.uint8)
    again, same_ids = street(5, *size)
    assert np.array_equal(image, again)
    assert np.array_equal(ids, same_ids)
    assert not np.array_equal(image, street(6, *size)[0])


def test_a_scene_may_be_as_large_as_cityscapes() -> None:
    image, ids = street(1, 1024, 2048)
    assert image.shape == (1024, 2048, 3)
    assert ids.max() < CITYSCAPES.size


def test_the_scenes_show_the_classes_of_a_street() -> None:
    scenes = [street(seed, 128, 256)[1] for seed in range(60)]
    share = np.bincount(np.concatenate([ids.ravel() for ids in scenes]), minlength=CITYSCAPES.size) / (60 * 128 * 256)
    assert share.sum() == pytest.approx(1)
    by_name = {label.name: share[label.id] for label in CITYSCAPES.labels}
    assert all(by_name[label.name] > 0.0005 for label in CITYSCAPES.classes), by_name
    assert 0.15 < by_name["road"] < 0.5
    assert 0.1 < by_name["building"] < 0.5
    assert 0 < by_name["ego vehicle"] < 0.05
    assert all((ids == 7).any() for ids in scenes)


def test_colour_alone_does_not_tell_the_class() -> None:
    """The best guess from a pixel's colour, by a table of 16 x 16 x 16 colours, stays well below what a network reaches."""
    tables = np.zeros((16**3, 19), np.int64)
    hits = total = 0
    for seed in range(40):
        image, ids = street(seed, 128, 256)
        train_ids = CITYSCAPES.train_ids(ids)
        valid = train_ids != 255
        cell = (image[valid].astype(np.int64) // 16) @ np.array([256, 16, 1])
        if seed < 30:
            np.add.at(tables, (cell, train_ids[valid]), 1)
        else:
            hits += int((tables.argmax(axis=1)[cell] == train_ids[valid]).sum())
            total += int(valid.sum())
    assert hits / total < 0.65


def test_written_sets_open_as_cityscapes_and_share_no_scene(tmp_path) -> None:
    seen: list[tuple[int, int]] = []
    root = write_streets(tmp_path / "streets", counts=COUNTS, height=64, width=128, seed=3, progress=lambda *at: seen.append(at))
    assert seen == [(k, 5) for k in range(1, 6)]
    assert check_dataset("cityscapes", root).problems == ()
    train, val = (open_dataset("cityscapes", root, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (3, 2)
    assert train.samples[0].image.relative_to(root).as_posix() == "leftImg8bit/train/syntrain/syntrain_000000_000019_leftImg8bit.png"
    image, ids = train.read(0)
    assert (image.shape, ids.shape) == ((64, 128, 3), (64, 128))
    assert len(set(digests(root).values())) == 10
    assert not [path for path in root.rglob("*") if path.name.startswith(".")]


def test_writing_goes_on_where_it_stopped(tmp_path) -> None:
    whole = digests(write_streets(tmp_path / "a", counts=COUNTS, height=64, width=128, seed=3))
    root = write_streets(tmp_path / "b", counts=COUNTS, height=64, width=128, seed=3, workers=1)
    assert digests(root) == whole
    lost, kept = sorted(root.rglob("*.png"))[0], sorted(root.rglob("*.png"))[-1]
    lost.unlink()
    before = kept.stat().st_mtime_ns
    write_streets(root, counts=COUNTS, height=64, width=128, seed=3)
    assert digests(root) == whole
    assert kept.stat().st_mtime_ns == before


def test_streets_are_never_called_cityscapes(tmp_path) -> None:
    root = write_streets(tmp_path / "streets", counts={"train": 1, "val": 1}, height=64, width=128, seed=3)
    assert {open_dataset(name, root, "val").name for name in ("cityscapes", "synthetic-streets")} == {"synthetic-streets"}
    assert check_dataset("cityscapes", root).name == "synthetic-streets"
    (root / "streets.json").unlink()
    assert open_dataset("cityscapes", root, "val").name == "cityscapes"
    with pytest.raises(InputError, match=r"holds no streets\.json.*open them as cityscapes"):
        open_dataset("synthetic-streets", root, "val")


def test_other_parameters_or_foreign_images_are_refused(tmp_path) -> None:
    root = write_streets(tmp_path / "streets", counts={"val": 1}, height=64, width=128, seed=3)
    assert json.loads((root / "streets.json").read_text())["seed"] == 3
    with pytest.raises(InputError, match=r"streets\.json.*another folder"):
        write_streets(root, counts={"val": 1}, height=64, width=128, seed=4)
    (tmp_path / "real" / "leftImg8bit").mkdir(parents=True)
    with pytest.raises(InputError, match="not drawn here"):
        write_streets(tmp_path / "real", counts={"val": 1}, height=64, width=128, seed=4)


def test_an_error_stops_the_writing(tmp_path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_streets(tmp_path, counts={"train": 30}, height=64, width=128, seed=0, progress=stop)
    assert len(list(tmp_path.rglob("*_leftImg8bit.png"))) < 30


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"counts": {"dev": 1}}, "train, val, test"),
        ({"counts": {}}, "at least 1"),
        ({"counts": {"train": 0}}, "at least 1"),
        ({"seed": -1}, "seed -1"),
        ({"height": 8}, "8x128"),
    ],
)
def test_nonsense_is_refused(tmp_path, change, named: str) -> None:
    arguments = {"counts": {"train": 1}, "height": 64, "width": 128, "seed": 0} | change
    with pytest.raises(InputError, match=named):
        write_streets(tmp_path, **arguments)


def test_the_core_variety_holds_ten_classes_and_no_rare_one() -> None:
    found: set[int] = set()
    for seed in range(12):
        found |= set(np.unique(CITYSCAPES.train_ids(street(seed, 128, 256, "core")[1])).tolist())
    names = {label.name for label in CITYSCAPES.classes if label.train_id in found}
    assert names == {"road", "sidewalk", "building", "pole", "traffic sign", "vegetation", "terrain", "sky", "person", "car"}


def test_an_unknown_variety_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="full or core"):
        write_streets(tmp_path / "s", counts={"train": 1}, height=64, width=128, seed=0, variety="some")  # type: ignore[arg-type]

"""Opening, reading and checking data sets; every fault is found and names its file."""

import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segnas.data import (
    NORMALISE_MEAN,
    NORMALISE_STD,
    Sample,
    check_dataset,
    halves,
    normalise,
    open_dataset,
    read_image,
    read_instances,
    read_label,
)
from segnas.errors import InputError, UsageError
from segnas.labels import CAMVID, CITYSCAPES
from segnas.streets import write_streets


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A good set of 4 + 2 small streets."""
    return write_streets(tmp_path_factory.mktemp("drawn"), counts={"train": 4, "val": 2}, height=64, width=128, seed=1)


@pytest.fixture
def streets(drawn, tmp_path) -> Path:
    """A copy of `drawn` to spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "streets"))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def camvid_like(root: Path) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        for k in range(count):
            write(root / split / "images" / f"{k}.jpg", np.full((6, 8, 3), 90, np.uint8))
            write(root / split / "labels" / f"{k}.png", np.array([[k] * 7 + [255]] * 6, np.uint8))
    return root


def test_cityscapes_samples_in_order(drawn) -> None:
    dataset = open_dataset("cityscapes", drawn, "train")
    assert [sample.name for sample in dataset.samples] == [f"syntrain_{k:06}_000019" for k in range(4)]
    assert (dataset.labels, dataset.split, len(dataset)) == (CITYSCAPES, "train", 4)
    image, ids = dataset.read(2)
    sample = dataset.samples[2]
    assert sample.label is not None
    assert np.array_equal(image, np.array(Image.open(sample.image)))  # an independent decoder agrees, channel order included
    assert np.array_equal(ids, np.array(Image.open(sample.label)))


def test_instances_lie_beside_the_labels(streets) -> None:
    dataset = open_dataset("cityscapes", streets, "val")
    assert not dataset.has_instances
    assert dataset.decode(0).instances is None
    places = [Path(str(sample.label).replace("_labelIds", "_instanceIds")) for sample in dataset.samples]
    ids = np.arange(64 * 128, dtype=np.uint16).reshape(64, 128) * 4
    write(places[0], ids)
    assert not dataset.has_instances  # all or none
    write(places[1], ids)
    assert dataset.has_instances
    assert np.array_equal(dataset.decode(0, instances=True).instances, ids)
    write(places[1], np.zeros((64, 128, 3), np.uint8))
    with pytest.raises(InputError, match=r"_instanceIds\.png: 3 channels of uint8; expected a greyscale image of instance ids"):
        read_instances(dataset.samples[1], (64, 128))
    write(places[1], ids[:-1])
    with pytest.raises(InputError, match=r"_instanceIds\.png: 63x128, but its labels are 64x128"):
        dataset.decode(1, instances=True)
    with pytest.raises(InputError, match=r"not named \*_labelIds\.png"):
        read_instances(Sample("a", places[0], places[0].with_name("a.png")), (64, 128))


def test_camvid_layout_and_void(tmp_path) -> None:
    dataset = open_dataset("camvid", camvid_like(tmp_path), "train")
    assert [sample.name for sample in dataset.samples] == ["0", "1"]
    _, ids = dataset.read(1)
    assert ids[0].tolist() == [1] * 7 + [11]
    assert dataset.labels.train_ids(ids)[0].tolist() == [1] * 7 + [255]


def test_the_real_camvid(camvid_root) -> None:
    assert [len(open_dataset("camvid", camvid_root, split)) for split in ("train", "val", "test")] == [367, 101, 233]
    dataset = open_dataset("camvid", camvid_root, "val")
    image, ids = dataset.read(50)
    assert (image.shape, ids.shape) == ((360, 480, 3), (360, 480))
    assert ids.max() <= 11


@pytest.mark.parametrize(
    ("name", "split", "named"),
    [("ade20k", "train", "cityscapes, camvid"), ("camvid", "dev", "train, val, test"), ("cityscapes", "train_extra", "train, val, test")],
)
def test_unknown_names(tmp_path, name: str, split: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        open_dataset(name, tmp_path, split)


def test_missing_and_empty_folders_name_path_and_layout(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nowhere is not a folder.*leftImg8bit/SPLIT.*segnas data make"):
        open_dataset("cityscapes", tmp_path / "nowhere", "val")
    with pytest.raises(InputError, match=r"leftImg8bit/val does not exist.*gtFine/SPLIT.*segnas data make"):
        open_dataset("cityscapes", tmp_path, "val")
    (tmp_path / "val" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match=r"val/images holds no image.*SPLIT/labels"):
        open_dataset("camvid", tmp_path, "val")


def test_an_image_without_label_is_named(streets) -> None:
    label = open_dataset("cityscapes", streets, "train").samples[1].label
    assert label is not None
    label.unlink()
    with pytest.raises(InputError, match=r"1 of 4 images.*syntrain_000001_000019_leftImg8bit\.png.*segnas data check"):
        open_dataset("cityscapes", streets, "train")


def test_a_test_split_may_have_no_labels(streets) -> None:
    shutil.copytree(streets / "leftImg8bit" / "val", streets / "leftImg8bit" / "test")
    dataset = open_dataset("cityscapes", streets, "test")
    assert [sample.label for sample in dataset.samples] == [None, None]
    with pytest.raises(InputError, match="no label"):
        dataset.read(0)
    assert check_dataset("cityscapes", streets).problems == ()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    whole = write(tmp_path / f"whole{suffix}", noise).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in [*range(0, len(whole) - 1, 37), len(whole) - 3]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"cut\{suffix}: damaged, cut short"):
            read_image(path)


def test_images_of_another_kind_are_refused(tmp_path) -> None:
    grey = write(tmp_path / "grey.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(InputError, match=r"grey\.png: 1 channel of uint8; expected an 8-bit RGB"):
        read_image(grey)
    with pytest.raises(InputError, match="4 channels"):
        read_image(write(tmp_path / "alpha.png", np.zeros((4, 5, 4), np.uint8)))
    with pytest.raises(InputError, match=r"gone\.png: cannot be read"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(InputError, match="not a PNG or JPEG"):
        read_image(tmp_path / "text.png")


def test_labels_of_another_kind_are_refused(tmp_path) -> None:
    colour = write(tmp_path / "colour.png", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(InputError, match=r"colour\.png: 3 channels.*not a colour picture"):
        read_label(Sample("x", colour, colour), CITYSCAPES)
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.zeros((4, 5), np.uint16))
    with pytest.raises(InputError, match="uint16"):
        read_label(Sample("x", deep, deep), CITYSCAPES)
    illegal = write(tmp_path / "illegal.png", np.array([[7, 34, 40]], np.uint8))
    with pytest.raises(InputError, match=r"illegal\.png: label values \[34, 40\].*0\.\.33"):
        read_label(Sample("x", illegal, illegal), CITYSCAPES)


def test_sizes_must_agree(tmp_path) -> None:
    camvid_like(tmp_path)
    write(tmp_path / "val" / "labels" / "0.png", np.zeros((6, 9), np.uint8))
    with pytest.raises(InputError, match=r"0\.png: 6x9, but its image .*0\.jpg is 6x8"):
        open_dataset("camvid", tmp_path, "val").read(0)


def test_the_check_finds_every_fault_and_names_its_file(streets) -> None:
    samples = open_dataset("cityscapes", streets, "train").samples
    labels = [sample.label for sample in samples if sample.label is not None]
    labels[0].unlink()
    samples[1].image.write_bytes(samples[1].image.read_bytes()[:500])
    write(labels[2], np.full((64, 128), 99, np.uint8))
    write(labels[3], np.full((32, 128), 7, np.uint8))
    orphan = write(labels[3].with_name("orphan_000000_000019_gtFine_labelIds.png"), np.zeros((64, 128), np.uint8))
    seen: list[tuple[int, int]] = []
    train, val = check_dataset("cityscapes", streets, progress=lambda *at: seen.append(at)).splits
    assert (val.problems, val.pairs, val.sizes) == ((), 2, (((64, 128), 2),))
    assert (train.pairs, train.sizes) == (3, (((64, 128), 3),))
    for path, text in (
        (samples[0].image, "without label"),
        (samples[1].image, "cut short"),
        (labels[2], "[99]"),
        (labels[3], "32x128"),
        (orphan, "without image"),
    ):
        assert [problem for problem in train.problems if problem.startswith(str(path)) and text in problem], (path, train.problems)
    assert len(train.problems) == 5
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4), (1, 2), (2, 2)]


def test_the_check_misses_an_absent_split(tmp_path) -> None:
    camvid_like(tmp_path)
    shutil.rmtree(tmp_path / "val")
    assert "val/images: no image here" in check_dataset("camvid", tmp_path).problems[0]


def test_halves_are_disjoint_and_cover() -> None:
    first, second = halves(11, 4)
    assert (len(first), len(second)) == (6, 5)
    assert sorted(first + second) == list(range(11))
    assert first == tuple(sorted(first))
    assert halves(11, 4) == (first, second) != halves(11, 5)
    with pytest.raises(InputError, match="at least 2"):
        halves(1, 0)


def test_normalise_follows_its_formula() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    expected = ((images / 255 - np.array(NORMALISE_MEAN)) / np.array(NORMALISE_STD)).transpose(0, 3, 1, 2)
    result = normalise(images)
    assert (result.shape, result.dtype) == ((2, 3, 5, 7), np.float32)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_jpeg_keeps_its_channel_order(tmp_path) -> None:
    red = io.BytesIO()
    Image.new("RGB", (16, 16), (250, 10, 20)).save(red, "JPEG", quality=95)
    (tmp_path / "red.jpg").write_bytes(red.getvalue())
    assert read_image(tmp_path / "red.jpg")[8, 8].tolist() == pytest.approx([250, 10, 20], abs=4)


def test_camvid_void_is_the_last_id() -> None:
    assert CAMVID.void.id == CAMVID.size - 1

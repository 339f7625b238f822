"""Random crops: image and label stay together; batches depend on seed, epoch and index, never on threads or restarts."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segnas.augment import FILL, Augmentation, ImageCache, augment, batch_count, batches, sample_rng
from segnas.data import Dataset, normalise, open_dataset
from segnas.errors import InputError
from segnas.streets import street, write_streets

PLAIN = Augmentation((64, 96), scale=(1.0, 1.0), flip=False, brightness=0, contrast=0, saturation=0)
FULL = Augmentation((32, 48))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 11}, height=48, width=80, seed=2)
    return open_dataset("cityscapes", root, "train")


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A picture whose every channel is its label, in blocks of 16 pixels."""
    label = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 19, (10, 14)), 16, 0), 16, 1).astype(np.uint8)
    return np.repeat(label[..., None], 3, 2), label


def run(dataset: Dataset, **options) -> list[tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]]:
    arguments: dict[str, Any] = {"seed": 1, "epoch": 2, "batch_size": 3, "augmentation": FULL} | options
    return [(batch.images, batch.labels, batch.indices) for batch in batches(dataset, arguments.pop("indices", range(11)), **arguments)]


def same(first: list[tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]], second: list[tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, x) and torch.equal(b, y) and c == z for (a, b, c), (x, y, z) in zip(first, second, strict=True)
    )


def test_at_scale_1_a_crop_is_a_part_of_the_image(pair) -> None:
    image, label = pair
    crop, ids = augment(image, label, PLAIN, np.random.default_rng(3))
    places = [(y, x) for y in range(97) for x in range(129) if np.array_equal(label[y : y + 64, x : x + 96], ids)]
    assert len(places) == 1
    (y, x) = places[0]
    assert np.array_equal(image[y : y + 64, x : x + 96], crop)


def test_a_flip_mirrors_both_about_the_crop(pair) -> None:
    image, label = pair
    whole = Augmentation(label.shape, scale=(1.0, 1.0), brightness=0, contrast=0, saturation=0)
    results = [augment(image, label, whole, np.random.default_rng(k)) for k in range(40)]
    flipped = [np.array_equal(ids, label[:, ::-1]) for _, ids in results]
    assert all(mirrored or np.array_equal(ids, label) for mirrored, (_, ids) in zip(flipped, results, strict=True))
    assert 8 < sum(flipped) < 32
    assert all(np.array_equal(crop[..., 0], ids) for crop, ids in results)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3, 2.0])
def test_image_and_label_stay_together_at_every_scale(pair, scale: float) -> None:
    image, label = pair
    crop, ids = augment(image, label, Augmentation((64, 96), (scale, scale), True, 0, 0, 0), np.random.default_rng(1))
    assert (crop.shape, ids.shape, crop.dtype, ids.dtype) == ((64, 96, 3), (64, 96), np.uint8, np.uint8)
    inside = ids != 255
    assert (crop[inside][:, 0] == ids[inside]).mean() > 0.75  # bilinear pixels differ along the edges of blocks
    steps = np.flatnonzero(np.abs(np.diff(ids[inside.all(axis=1)].astype(int), axis=1)).any(axis=0))
    assert np.diff(steps).max() == pytest.approx(16 * scale, abs=1) or len(steps) < 2


def test_a_small_image_is_padded_with_ignored_pixels(pair) -> None:
    image, label = pair
    wide = Augmentation((200, 300), (1.0, 1.0), False, 0, 0, 0)
    corners = set()
    for k in range(20):
        crop, ids = augment(image, label, wide, np.random.default_rng(k))
        rows, columns = np.flatnonzero((ids != 255).any(axis=1)), np.flatnonzero((ids != 255).any(axis=0))
        assert (len(rows), len(columns)) == label.shape
        assert np.array_equal(ids[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], label)
        assert (crop[ids == 255] == FILL).all()
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 15


def test_colours_follow_the_formula() -> None:
    image, ids = street(0, 64, 128)
    strong = Augmentation((64, 128), (1.0, 1.0), False, 0.5, 0.5, 0.5)
    crop, _ = augment(image, ids, strong, np.random.default_rng(9))
    rng = np.random.default_rng(9)
    rng.uniform(size=3)  # scale, top, left
    brightness, contrast, saturation = 1 + 0.5 * rng.uniform(-1, 1, 3)
    grey = image @ np.array([0.299, 0.587, 0.114])
    colours = grey[..., None] + (image - grey[..., None]) * saturation
    expected = ((colours - grey.mean()) * contrast + grey.mean()) * brightness
    assert np.abs(crop - np.clip(expected, 0, 255)).max() < 1


def test_randomness_depends_on_seed_epoch_index_and_copy() -> None:
    draws = {(s, e, i, c): sample_rng(s, e, i, c).random() for s in (0, 1) for e in (0, 1) for i in (0, 1) for c in (0, 1)}
    assert len(set(draws.values())) == 16
    assert sample_rng(1, 0, 1).random() == draws[1, 0, 1, 0]


def test_batches_are_the_same_for_any_number_of_workers(dataset) -> None:
    inline = run(dataset, workers=0)
    assert len(inline) == 3
    assert same(inline, run(dataset, workers=1))
    assert same(inline, run(dataset, workers=2, cache=ImageCache(1 << 20)))


def test_a_restart_within_an_epoch_yields_the_rest(dataset) -> None:
    whole = run(dataset)
    for start in range(5):
        assert same(run(dataset, start=start), whole[start:])


def test_epochs_and_seeds_differ_and_each_sample_comes_once(dataset) -> None:
    order = [i for _, _, indices in run(dataset) for i in indices]
    assert len(set(order)) == len(order) == 9
    assert order != [i for _, _, indices in run(dataset, epoch=3) for i in indices]
    assert order != [i for _, _, indices in run(dataset, seed=2) for i in indices]


def test_the_augmentation_of_a_sample_does_not_depend_on_its_batch(dataset) -> None:
    one = {i: images[k] for images, _, indices in run(dataset, batch_size=1) for k, i in enumerate(indices)}
    for images, _, indices in run(dataset, indices=[7, 3, 5, 1], batch_size=2):
        assert all(torch.equal(images[k], one[i]) for k, i in enumerate(indices))


def test_batches_hold_normalised_images_and_train_ids(dataset) -> None:
    batch = next(batches(dataset, [4], seed=0, epoch=0, batch_size=1, augmentation=PLAIN))
    image, ids = dataset.read(4)
    crop, labels = augment(image, dataset.labels.train_ids(ids), PLAIN, sample_rng(0, 0, 4))
    assert (batch.images.dtype, batch.images.shape) == (torch.float32, (1, 3, 64, 96))
    assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (1, 64, 96))
    assert torch.equal(batch.images, torch.from_numpy(normalise(crop[None])))
    assert np.array_equal(batch.labels[0].numpy(), labels)
    assert set(batch.labels.unique().tolist()) <= {*range(19), 255}


def test_few_samples_come_round_again_augmented_otherwise(dataset) -> None:
    ((images, _, indices),) = run(dataset, indices=[2, 8], batch_size=5)
    assert sorted(indices) in ([2, 2, 2, 8, 8], [2, 2, 8, 8, 8])
    assert len({image.numpy().tobytes() for image in images}) == 5


def test_closing_the_iterator_ends_its_threads(dataset) -> None:
    iterator = batches(dataset, range(11), seed=0, epoch=0, batch_size=1, augmentation=FULL, workers=2)
    next(iterator)
    assert any(thread.name.startswith("segnas-batch") for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name.startswith("segnas-batch") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_epoch_by_name(dataset, tmp_path, workers: int) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG")
    samples = (*dataset.samples[:3], type(dataset.samples[0])("broken", broken, dataset.samples[0].label))
    spoilt = Dataset("cityscapes", Path(tmp_path), "train", dataset.labels, samples)
    with pytest.raises(InputError, match=r"broken\.png"):
        list(batches(spoilt, range(4), seed=0, epoch=0, batch_size=2, augmentation=FULL, workers=workers))
    assert not any(thread.name.startswith("segnas-batch") for thread in threading.enumerate())


def test_the_cache_loads_once_and_keeps_to_its_limit() -> None:
    loads: list[int] = []

    def load(k: int):
        loads.append(k)
        return np.full((10, 10, 3), k, np.uint8), np.full((10, 10), k, np.uint8)

    cache = ImageCache(1000)  # two pairs of 400 bytes
    for _ in range(3):
        for k in range(3):
            assert cache.get(k, lambda k=k: load(k))[0][0, 0, 0] == k
    assert (len(cache), cache.used_bytes) == (2, 800)
    assert loads == [0, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="read-only"):
        cache.get(0, lambda: load(0))[0][0, 0, 0] = 9


def test_nonsense_is_refused(dataset) -> None:
    settings: list[dict[str, Any]] = [{"crop": (0, 5)}, {"crop": (4, 4), "scale": (2.0, 1.0)}, {"crop": (4, 4), "contrast": 1.0}]
    for wrong in settings:
        with pytest.raises(InputError):
            Augmentation(**wrong)
    for wrong in ({"batch_size": 0}, {"indices": []}, {"start": -1}, {"workers": -1}):
        with pytest.raises(InputError):
            run(dataset, **wrong)
    assert [batch_count(n, 4) for n in (1, 4, 7, 8)] == [1, 1, 1, 2]

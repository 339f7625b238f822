"""Random crops of training images, and the batches of an epoch in an order and with a randomness that depend on nothing but (seed, epoch, index)."""

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from segnas.data import NORMALISE_MEAN, Dataset, normalise
from segnas.errors import InputError
from segnas.labels import IGNORE

Bytes = NDArray[np.uint8]
Pair = tuple[Bytes, Bytes]
FILL = tuple(round(255 * mean) for mean in NORMALISE_MEAN)
"""The colour (R, G, B) of what lies outside the image; its label is 255."""
_GREY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image. The strengths are our choice, those usual for street scenes.

    `crop` is (HEIGHT, WIDTH) in pixels; `scale` the range of the zoom, drawn log-uniformly; `flip` mirrors every second image.
    `brightness`, `contrast` and `saturation` of strength s multiply by a factor drawn from 1-s..1+s, contrast about the image's mean
    grey, saturation about each pixel's own grey. InputError for a value that makes no sense.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4

    def __post_init__(self) -> None:
        if min(self.crop) < 1:
            raise InputError(f"crop {self.crop} is no size; give HEIGHT and WIDTH of at least 1 pixel.")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise InputError(f"scale {self.scale} is no range; give two factors above 0, the smaller first.")
        if not all(0 <= strength < 1 for strength in (self.brightness, self.contrast, self.saturation)):
            raise InputError("brightness, contrast and saturation are strengths from 0 (off) to below 1.")


@dataclass(frozen=True)
class Batch:
    """Normalised images (N, 3, H, W) float32, train ids (N, H, W) int64 with 255 for ignored, and the samples that they came from."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: tuple[int, ...]


def sample_rng(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """The randomness of one sample in one epoch; `copy` counts up when an epoch must show a sample more than once."""
    return np.random.default_rng((seed, 1, epoch, index, copy))


def augment(image: Bytes, label: Bytes, augmentation: Augmentation, rng: np.random.Generator) -> Pair:
    """A random crop: image (H, W, 3) and train ids (H, W) -> the same at the size of the crop.

    One affine map takes each pixel of the crop to the source, so the cost is that of the crop whatever the scale: bilinear for the
    image, nearest for the label. Outside the source lie `FILL` and 255. An image smaller than the crop is placed at random in it.
    """
    height, width = augmentation.crop
    scale = math.exp(rng.uniform(*np.log(augmentation.scale)))
    top, left = (_offset(side * scale - wanted, rng) for side, wanted in zip(label.shape, augmentation.crop, strict=True))
    matrix = np.array([[1 / scale, 0, (left + 0.5) / scale - 0.5], [0, 1 / scale, (top + 0.5) / scale - 0.5]])
    if augmentation.flip and rng.random() < 0.5:
        matrix = np.array([[-matrix[0, 0], 0, matrix[0, 2] + matrix[0, 0] * (width - 1)], matrix[1]])
    mode = cv2.WARP_INVERSE_MAP
    cropped = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR | mode, borderValue=FILL)
    ids = cv2.warpAffine(label, matrix, (width, height), flags=cv2.INTER_NEAREST | mode, borderValue=IGNORE)
    return _jittered(cropped.astype(np.uint8, copy=False), augmentation, rng), ids.astype(np.uint8, copy=False)


def _offset(room: float, rng: np.random.Generator) -> int:
    """Where a crop starts, in pixels of the scaled image: 0..room, or room..0 (padding before) when the image is the smaller."""
    return round(rng.uniform(min(room, 0.0), max(room, 0.0)))


def _jittered(image: Bytes, augmentation: Augmentation, rng: np.random.Generator) -> Bytes:
    """Brightness, contrast and saturation as one affine map of the colours, rounded and clipped once."""
    strengths = np.array([augmentation.brightness, augmentation.contrast, augmentation.saturation])
    brightness, contrast, saturation = 1 + strengths * rng.uniform(-1, 1, 3)
    if not strengths.any():
        return image
    mean = float(_GREY @ cv2.mean(image)[:3])
    colours = np.eye(3) * saturation + np.outer(np.ones(3), _GREY) * (1 - saturation)
    offset = np.full((3, 1), (1 - contrast) * mean * brightness)
    return cv2.transform(image, np.hstack([colours * brightness * contrast, offset])).astype(np.uint8, copy=False)


class ImageCache:
    """Decoded pairs kept in memory up to `limit_bytes`, then no more (an epoch visits each once, so dropping old ones would gain nothing)."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._pairs: dict[object, Pair] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, key: object, load: Callable[[], Pair]) -> Pair:
        """The pair kept under `key`, else the one that `load` returns; read-only arrays. Any thread may ask."""
        with self._lock:
            if key in self._pairs:
                return self._pairs[key]
        pair = load()
        size = sum(array.nbytes for array in pair)
        for array in pair:
            array.setflags(write=False)
        with self._lock:
            if key not in self._pairs and self.used_bytes + size <= self.limit_bytes:
                self._pairs[key] = pair
                self.used_bytes += size
        return pair


def batch_count(samples: int, batch_size: int) -> int:
    """The batches of an epoch: the last incomplete one is dropped, and fewer samples than a batch still make one."""
    if samples < 1 or batch_size < 1:
        raise InputError(f"{samples} samples in batches of {batch_size}: both must be at least 1.")
    return max(1, samples // batch_size)


def batches(
    dataset: Dataset,
    indices: Sequence[int],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    augmentation: Augmentation,
    start: int = 0,
    workers: int = 1,
    cache: ImageCache | None = None,
) -> Generator[Batch, None, None]:
    """The batches of one epoch over the samples `indices`, from number `start` on; the same ones for any `workers`.

    The order is a permutation drawn from (seed, epoch). When there are fewer samples than a batch, they come round again, augmented
    otherwise. `workers` threads prepare up to `workers + 1` batches ahead (0: in the caller's thread); closing the iterator or an error
    in it ends them. InputError for numbers that make no sense, and from reading the files.
    """
    if start < 0 or workers < 0:
        raise InputError(f"start {start} and workers {workers} must be 0 or more.")
    total = batch_count(len(indices), batch_size)
    order = np.random.default_rng((seed, 0, epoch)).permutation(np.asarray(indices, np.int64)).tolist()
    draws = [(order[k % len(order)], k // len(order)) for k in range(total * batch_size)]  # (index, copy)
    cv2.setNumThreads(1)  # the parallelism is over batches

    def build(number: int) -> Batch:
        chosen = draws[number * batch_size : (number + 1) * batch_size]
        pairs = [augment(*_pair(dataset, i, cache), augmentation, sample_rng(seed, epoch, i, copy)) for i, copy in chosen]
        images = normalise(np.stack([image for image, _ in pairs]))  # (N, 3, H, W)
        labels = np.stack([label for _, label in pairs])  # (N, H, W)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels).long(), tuple(i for i, _ in chosen))

    return _in_order(build, range(start, total), workers)


def _pair(dataset: Dataset, index: int, cache: ImageCache | None) -> Pair:
    """Image (H, W, 3) and train ids (H, W) of a sample."""

    def load() -> Pair:
        image, ids = dataset.read(index)
        return image, dataset.labels.train_ids(ids)

    return load() if cache is None else cache.get(dataset.samples[index], load)


def _in_order(build: Callable[[int], Batch], numbers: range, workers: int) -> Generator[Batch, None, None]:
    if workers == 0:
        yield from map(build, numbers)
        return
    remaining = iter(numbers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="segnas-batch")
    try:
        pending: deque[Future[Batch]] = deque(pool.submit(build, number) for number in islice(remaining, workers + 1))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(build, number) for number in islice(remaining, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)

"""What goes into a search and what comes out: batches without end, and curves thinned to what a page can show."""

import math
from collections.abc import Generator

from segnas.augment import Augmentation, Batch, ImageCache, batch_count, batches
from segnas.data import Dataset
from segnas.report import Curve
from segnas.search.settings import SearchSettings


def stream(
    dataset: Dataset, indices: tuple[int, ...], settings: SearchSettings, seed: int, done: int, workers: int, cache: ImageCache
) -> Generator[Batch, None, None]:
    """Batches without end over these samples, from batch number `done` on."""
    augmentation = Augmentation(settings.crop, settings.scale)
    per_epoch = batch_count(len(indices), settings.batch)
    while True:
        epoch, offset = divmod(done, per_epoch)
        for batch in batches(
            dataset, indices, seed=seed, epoch=epoch, batch_size=settings.batch, augmentation=augmentation, start=offset, workers=workers, cache=cache
        ):
            yield batch
            done += 1


def thinned(name: str, steps: list[int], values: list[float], most: int = 200) -> Curve:
    """The curve of means over equal stretches, of at most so many points."""
    width = max(1, math.ceil(len(steps) / most))
    starts = range(0, len(steps), width)
    means = tuple(round(sum(values[i : i + width]) / len(values[i : i + width]), 6) for i in starts)
    return Curve(name, tuple(steps[min(i + width, len(steps)) - 1] for i in starts), means)

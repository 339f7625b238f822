"""What goes into a search and what comes out: batches without end, and curves thinned to what a page can show."""

import math
from collections.abc import Generator, Sequence

from segnas.augment import Augmentation, Batch, ImageCache, batch_count, batches
from segnas.data import Dataset
from segnas.report import Curve


def stream(
    dataset: Dataset, indices: Sequence[int], augmentation: Augmentation, batch: int, *, seed: int, done: int = 0, workers: int = 0, cache: ImageCache
) -> Generator[Batch, None, None]:
    """Batches of so many images without end over these samples, from batch number `done` on."""
    per_epoch = batch_count(len(indices), batch)
    while True:
        epoch, offset = divmod(done, per_epoch)
        for found in batches(
            dataset, indices, seed=seed, epoch=epoch, batch_size=batch, augmentation=augmentation, start=offset, workers=workers, cache=cache
        ):
            yield found
            done += 1


def thinned(name: str, steps: list[int], values: list[float], most: int = 200) -> Curve:
    """The curve of means over equal stretches, of at most so many points."""
    width = max(1, math.ceil(len(steps) / most))
    starts = range(0, len(steps), width)
    means = tuple(round(sum(values[i : i + width]) / len(values[i : i + width]), 6) for i in starts)
    return Curve(name, tuple(steps[min(i + width, len(steps)) - 1] for i in starts), means)

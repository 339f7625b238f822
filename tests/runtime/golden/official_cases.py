"""Label maps drawn from seeds by arithmetic alone, the same under every version of numpy: what the official script was run on, and what segnas is.

It imports nothing but numpy: `record.py` uses it in an environment of its own.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Image = tuple[Bytes, Bytes, NDArray[np.uint16]]
"""Truth (H, W) raw ids, prediction (H, W) raw ids, instance ids (H, W)."""

LABELS = 34
SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
FIRST_WITH_INSTANCES = 24
GAP = (0.3128, 0.3306)
"""The official mean IoU of `gap`, and that of the common 19x19 matrix, which drops predictions of void, to four digits: the figures of the project's
notes, whose maps were not kept; the seed of these was looked for.
"""

GAP_SEED, GAP_RIGHT, GAP_MISTAKES = 112, 460, (*SCORED, 0, 1, 2)


def draws(seed: int, count: int, most: int) -> NDArray[np.int64]:
    """`count` numbers 0..most-1 of SplitMix64 (Steele, Lea and Flood 2014)."""
    with np.errstate(over="ignore"):
        state = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed) * np.uint64(1 << 32)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state % np.uint64(most)).astype(np.int64)


def drawn(
    seed: int, height: int, width: int, *, block: int, right: int, labels: Sequence[int] = range(LABELS), mistakes: Sequence[int] = ()
) -> Image:
    """Truth in blocks of `labels`, and a prediction that is right at `right` of 1000 pixels and else one of `mistakes` (of `labels`).

    Each block is an instance, or part of a group of objects, which has none.
    """
    rows, columns = -(-height // block), -(-width // block)
    tiles = np.array(labels)[draws(seed, rows * columns, len(labels))].reshape(rows, columns)
    numbers = np.arange(rows * columns).reshape(rows, columns) % 1000
    groups = draws(seed + 1, rows * columns, 4).reshape(rows, columns) == 0  # a group of objects has no instances
    objects = np.where((tiles >= FIRST_WITH_INSTANCES) & ~groups, tiles * 1000 + numbers, tiles)
    truth, instances = (np.kron(grid, np.ones((block, block), np.int64))[:height, :width] for grid in (tiles, objects))
    wrong = np.array(mistakes or labels)
    others = wrong[draws(seed + 2, height * width, len(wrong))].reshape(height, width)
    hit = draws(seed + 3, height * width, 1000).reshape(height, width) < right
    return truth.astype(np.uint8), np.where(hit, truth, others).astype(np.uint8), instances.astype(np.uint16)


def random_case(seed: int) -> list[Image]:
    """One to three images of any kind: sizes, blocks, rightness and labels follow from the seed."""
    images: list[Image] = []
    for number in range(1 + seed % 3):
        own = 1000 * seed + 10 * number
        height, width, block, right, most = (int(draws(own + i, 1, n)[0]) for i, n in enumerate((30, 40, 7, 1001, LABELS)))
        labels = sorted(set(draws(own + 5, 1 + most, LABELS).tolist()))
        images.append(drawn(own + 6, 1 + height, 1 + width, block=1 + block, right=right, labels=labels))
    return images


def cases() -> dict[str, list[Image]]:
    """The recorded cases by name."""
    return {
        "gap": [drawn(GAP_SEED, 64, 128, block=8, right=GAP_RIGHT, mistakes=GAP_MISTAKES)],
        "noise": [drawn(7, 48, 96, block=1, right=0)],
        "perfect": [drawn(11, 48, 96, block=6, right=1000)],
        "few labels": [drawn(13, 32, 64, block=5, right=600, labels=(0, 3, 7, 23, 26, 29))],
        "nothing scored": [drawn(17, 16, 16, block=4, right=500, labels=(0, 1, 9, 29))],
        "several images": [drawn(23 + 10 * i, 40 + 8 * i, 90 - 10 * i, block=9, right=700) for i in range(4)],
        **{f"random {seed}": random_case(seed) for seed in range(12)},
    }

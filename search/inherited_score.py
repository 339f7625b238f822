"""Scores by a supernet: each genotype's network with the weights of a search, its normalisations estimated anew; a second or two a network."""

from dataclasses import replace
from pathlib import Path

from segnas.data import Dataset, halves
from segnas.files import sha256_of
from segnas.search.sampled import Scoring
from segnas.search.scoring import Scorer, StatisticsBatches, load_supernet, supernet_score
from segnas.search.space import Genotype, Space

BATCHES, BATCH = 20, 8
"""Training batches on which a network's statistics are estimated anew; our choice."""


def inherited_score(space: Space, checkpoint: Path, dataset: Dataset, *, height: int, width: int, seed: int, images: int = 64) -> Scoring:
    """Mean IoU with inherited weights on at most `images` of the second half of the dataset (`halves`), statistics from the first, at that size.

    Give the training split. InputError where the space's networks cannot inherit (a search with partial channels).
    """
    supernet = load_supernet(space, checkpoint)
    first, second = halves(len(dataset), seed)
    scorer = Scorer(dataset, tuple(second[:images]), (height, width))
    learning = replace(dataset, samples=tuple(dataset.samples[index] for index in first))
    batches = StatisticsBatches(learning, count=BATCHES, batch=BATCH, size=(height, width), seed=seed)
    schedule = {
        "score": "mean IoU on the second half of the images, with the supernet's weights and statistics from the first",
        "data": f"{dataset.name} {dataset.split}, {len(dataset)} samples",
        "size": f"{height}x{width}",
        "images": len(scorer.indices),
        "supernet_sha256": sha256_of(checkpoint),
    }

    def score(genotype: Genotype) -> float:
        return supernet_score(supernet, genotype, scorer, batches)

    return Scoring(score, schedule)

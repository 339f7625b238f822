"""Scores by stand-alone training: each genotype's network is trained for a short while on one half of the training images and scored on the other."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from segnas.arch import canonical_json
from segnas.data import Dataset, halves
from segnas.errors import VerificationError
from segnas.network import Network
from segnas.search.checkpoint import plain_settings
from segnas.search.sampled import Scoring
from segnas.search.scoring import score
from segnas.search.settings import TrainSettings
from segnas.search.space import Genotype, Space
from segnas.search.train import train


class Start(Protocol):
    """Where the training of each genotype's network begins."""

    @property
    def digest(self) -> str:
        """Says what the weights come from."""
        ...

    def weights(self, genotype: Genotype) -> dict[str, Tensor]:
        """Initial weights by name, the same whenever they are asked for."""
        ...


def trained_score(
    space: Space,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    height: int,
    width: int,
    seed: int,
    folder: Path,
    device: str = "cpu",
    start: Start | None = None,
) -> Scoring:
    """The mean IoU on the second half of the dataset (`halves`) after training on the first; `height` x `width` is the size that is deployed.

    Give the training split: what the result is evaluated on is never looked at in a search. An evaluation that was killed goes on from its checkpoint
    in `folder`. `start` gives the weights that a genotype's training begins with, which are random without it. A loss that is not finite raises
    VerificationError, too little memory MemoryError.
    """
    learning, held_out = (replace(dataset, samples=tuple(dataset.samples[i] for i in half)) for half in halves(len(dataset), seed))
    schedule = {
        "score": "mean IoU on the second half of the images, after training on the first",
        "data": f"{dataset.name} {dataset.split}, {len(dataset)} samples",
        "size": f"{height}x{width}",
        "device": torch.device(device).type,
        "train": plain_settings(settings),
    }
    if start is not None:
        schedule["start"] = start.digest
    mark = hashlib.sha256(canonical_json([schedule, seed]).encode()).hexdigest()[:8]

    def trained_miou(genotype: Genotype) -> float:
        architecture = space.decode(genotype).architecture
        checkpoint = folder / f"{architecture.digest}-{mark}.checkpoint.safetensors"
        try:
            with memory_errors():
                begin = None if start is None else start.weights(genotype)
                trained = train(architecture, learning, settings, seed=seed, checkpoint=checkpoint, device=device, start=begin)
                network = Network(architecture)
                network.load_state_dict(trained.weights)
                value = score(network, held_out, range(len(held_out)), (height, width), device=device)
        except (VerificationError, MemoryError):
            checkpoint.unlink(missing_ok=True)
            raise
        checkpoint.unlink(missing_ok=True)
        return value

    return Scoring(trained_miou, schedule)


@contextmanager
def memory_errors() -> Generator[None]:
    """What torch raises when the memory does not do, as Python's own error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error).splitlines()[0]) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error).splitlines()[0]) from error

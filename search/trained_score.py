"""Scores by stand-alone training: each genotype's network is trained for a short while on one half of the training images and scored on the other."""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from segnas.arch import canonical_json
from segnas.data import Dataset, halves, network_input
from segnas.errors import InputError, VerificationError
from segnas.metrics import ConfusionMatrix
from segnas.network import Network
from segnas.search.checkpoint import plain_settings
from segnas.search.sampled import Scoring
from segnas.search.space import Genotype, Space
from segnas.search.train import TrainSettings, train


def trained_score(
    space: Space, dataset: Dataset, settings: TrainSettings, *, height: int, width: int, seed: int, folder: Path, device: str = "cpu"
) -> Scoring:
    """The mean IoU on the second half of the dataset (`halves`) after training on the first; `height` x `width` is the size that is deployed.

    Give the training split: what the result is evaluated on is never looked at in a search. An evaluation that was killed goes on from its checkpoint
    in `folder`; a loss that is not finite raises VerificationError, too little memory MemoryError.
    """
    learning, held_out = (replace(dataset, samples=tuple(dataset.samples[i] for i in half)) for half in halves(len(dataset), seed))
    schedule = {
        "score": "mean IoU on the second half of the images, after training on the first",
        "data": f"{dataset.name} {dataset.split}, {len(dataset)} samples",
        "size": f"{height}x{width}",
        "device": torch.device(device).type,
        "train": plain_settings(settings),
    }
    mark = hashlib.sha256(canonical_json([schedule, seed]).encode()).hexdigest()[:8]

    def score(genotype: Genotype) -> float:
        architecture = space.decode(genotype).architecture
        checkpoint = folder / f"{architecture.digest}-{mark}.checkpoint.safetensors"
        try:
            with _memory_errors():
                trained = train(architecture, learning, settings, seed=seed, checkpoint=checkpoint, device=device)
                network = Network(architecture)
                network.load_state_dict(trained.weights)
                value = held_out_miou(network, held_out, height, width, device=device)
        except (VerificationError, MemoryError):
            checkpoint.unlink(missing_ok=True)
            raise
        checkpoint.unlink(missing_ok=True)
        return value

    return Scoring(score, schedule)


def held_out_miou(network: nn.Module, dataset: Dataset, height: int, width: int, *, device: str = "cpu") -> float:
    """Mean IoU of a network over whole images, by the official Cityscapes rules: what `runtime.evaluate` computes of an engine that gives logits.

    Images are resized bilinearly to `height` x `width`, logits bilinearly to the truth's size, then argmax. InputError where no pixel is scored.
    """
    network = network.to(device).eval()
    matrix = ConfusionMatrix(dataset.labels)
    for index in range(len(dataset)):
        image, truth = dataset.read(index)
        with torch.inference_mode():
            logits = network(torch.from_numpy(network_input(image, height, width)).to(device))  # (1, classes, height, width)
            if logits.shape[2:] != truth.shape:
                logits = F.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)
            predicted = logits[0].argmax(0).to(torch.uint8).cpu().numpy()  # (H, W) train ids
        matrix.add(truth, dataset.labels.ids(np.asarray(predicted, np.uint8)))
    if matrix.miou is None:
        raise InputError(f"none of the {len(dataset)} held-out images of {dataset.name} {dataset.split} has a pixel of a scored class")
    return matrix.miou


@contextmanager
def _memory_errors() -> Generator[None]:
    """What torch raises when the memory does not do, as Python's own error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error).splitlines()[0]) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error).splitlines()[0]) from error

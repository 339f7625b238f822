"""Scoring: what a network of a space reaches with the weights of its supernet, with and without normalisation statistics of its own.

A normalisation in a supernet has seen the mixture of all networks, so its running statistics fit none of them; they are estimated anew for each, on
training images, without a step of the weights. (That they must be is known of one-shot searches: Guo et al., ECCV 2020, section 3.4, recalled.)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from segnas.data import Dataset, network_input, normalise, read_image
from segnas.errors import IncompatibleError, InputError
from segnas.metrics import ConfusionMatrix
from segnas.network import Network
from segnas.search.checkpoint import load_tensors, unprefixed
from segnas.search.polyak import re_estimated
from segnas.search.space import Genotype, Space
from segnas.search.supernet import Supernet, inherit

Bytes = NDArray[np.uint8]
Size = tuple[int, int]
CACHE_BYTES = 1 << 30


def load_supernet(space: Space, checkpoint: Path) -> Supernet:
    """The supernet of a search's checkpoint, in evaluation mode.

    InputError where the file is no checkpoint of a search; IncompatibleError where it is one of another space, or of other classes.
    """
    tensors, state = load_tensors(checkpoint)
    identity, weights = state.get("identity"), unprefixed("supernet", tensors)
    if not isinstance(identity, dict) or not weights:
        raise InputError(f"{checkpoint} is no checkpoint of a search; give the search.checkpoint.safetensors that `segnas search` left")
    found = str(identity.get("space"))  # pyright: ignore[reportUnknownArgumentType]
    if found != space.name:
        raise IncompatibleError(f"{checkpoint} is a supernet of {found!r}; {space.name!r} is asked for: give the space that was searched")
    supernet = Supernet(space, parts=int(identity.get("settings", {}).get("parts", 1)))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    try:
        supernet.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise IncompatibleError(
            f"{checkpoint} is a supernet of another {space.name!r} than the one with {space.classes} classes: {reason}; search it again"
        ) from None
    return supernet.eval()


def inherited(supernet: Supernet, genotype: Genotype) -> Network:
    """The network of a genotype with the supernet's weights and statistics, in evaluation mode; InputError, with the space's name, where it cannot
    have them.
    """
    derived = supernet.space.decode(genotype)
    network = Network(derived.architecture)
    try:
        inherit(network, supernet, derived)
    except InputError as error:
        raise InputError(f"no network of {supernet.space.name!r} can be scored with the weights of its supernet: {error}") from None
    return network.eval()


def re_estimate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Forget every running statistic and take the mean of those of the batches, (N, 3, H, W) each, N at least 2; weights stay as they are.

    The network is left in evaluation mode. InputError for no batch, and for one of a single image: a pooled feature then has no variance.
    """

    def run(batch: Tensor) -> None:
        if len(batch) < 2:
            raise InputError(f"a batch of {len(batch)} image was given to estimate statistics on; at least 2 are needed")
        network(batch)

    re_estimated(network, run, batches)


def score(network: nn.Module, dataset: Dataset, indices: Sequence[int], size: Size, *, device: str = "cpu") -> float:
    """Mean IoU, 0 to 1, over these samples by the official Cityscapes rules: what `runtime.evaluate` computes of an engine that gives logits.

    Images are resized bilinearly to `size` (HEIGHT, WIDTH), logits bilinearly to the truth's size, then argmax, all by torch on `device`, where the
    network is left, in evaluation mode. What is shipped is judged by `segnas bench`. InputError where no pixel is of a scored class.
    """
    network = network.to(device).eval()
    return scored_by(lambda index, image: network(torch.from_numpy(network_input(image, *size)).to(device)), dataset, indices)


def scored_by(predict: Callable[[int, Bytes], Tensor], dataset: Dataset, indices: Sequence[int]) -> float:
    """As `score`, of whatever gives logits (1, classes, h, w) of a sample's index and image (H, W, 3)."""
    matrix = ConfusionMatrix(dataset.labels)
    with torch.inference_mode():
        for index in indices:
            image, truth = dataset.read(index)
            logits = predict(index, image)
            if logits.shape[-2:] != truth.shape:
                logits = F.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)
            predicted = logits[0].argmax(0).to(torch.uint8).cpu().numpy()  # (H, W) train ids
            matrix.add(truth, dataset.labels.ids(np.asarray(predicted, np.uint8)))
    if matrix.miou is None:
        raise InputError(
            f"{len(indices)} images of {dataset.name} {dataset.split} were given, and no pixel of a scored class is in them; give others"
        )
    return matrix.miou


@dataclass(frozen=True, slots=True)
class Scorer:
    """What networks are scored on: samples `indices` of a dataset at `size` (HEIGHT, WIDTH)."""

    dataset: Dataset
    indices: tuple[int, ...]
    size: Size


def supernet_score(supernet: Supernet, genotype: Genotype, scorer: Scorer, batches: Iterable[Tensor] | None) -> float:
    """Mean IoU of a genotype's network with the supernet's weights; statistics are estimated anew on the batches, or inherited too where None.

    InputError where the space's networks cannot inherit from its supernet.
    """
    network = inherited(supernet, genotype)
    if batches is not None:
        re_estimate(network, batches)
    return score(network, scorer.dataset, scorer.indices, scorer.size)


class StatisticsBatches:
    """`count` batches of whole images at `size`, normalised, (batch, 3, H, W) each, for `re_estimate`; the same ones whenever they are gone through.

    Not augmented, as in evaluation (our choice); drawn without repetition until all have come. Images are kept in memory up to `CACHE_BYTES`.
    """

    def __init__(self, dataset: Dataset, *, count: int, batch: int, size: Size, seed: int) -> None:
        if count < 1 or batch < 2:
            raise InputError(f"{count} batches of {batch} images were asked for; at least 1 batch of 2 is needed")
        rng = np.random.default_rng((seed, 2))
        rounds = -(-count * batch // len(dataset))
        order = np.concatenate([rng.permutation(len(dataset)) for _ in range(rounds)])[: count * batch]
        self.order: list[list[int]] = order.reshape(count, batch).tolist()
        self._dataset, self._size, self._kept, self._used = dataset, size, dict[int, Bytes](), 0

    def __iter__(self) -> Iterator[Tensor]:
        for indices in self.order:
            yield torch.from_numpy(normalise(np.stack([self._image(index) for index in indices])))

    def _image(self, index: int) -> Bytes:
        if index in self._kept:
            return self._kept[index]
        image = read_image(self._dataset.samples[index].image)
        if image.shape[:2] != self._size:
            image = np.asarray(cv2.resize(image, self._size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
        if self._used + image.nbytes <= CACHE_BYTES:
            self._kept[index] = image
            self._used += image.nbytes
        return image


def spread_indices(count: int, most: int | None) -> tuple[int, ...]:
    """At most `most` of so many samples, evenly spread; all without a limit. InputError below 1."""
    if count < 1 or (most is not None and most < 1):
        raise InputError(f"{most} of {count} samples were asked for; at least 1 is needed")
    if most is None or most >= count:
        return tuple(range(count))
    return tuple(index * count // most for index in range(most))

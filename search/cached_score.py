"""Scores on cached features (DPC, section 4.1): a frozen backbone's features of fixed crops are computed once; only what stands behind is trained."""

import hashlib
import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segnas.arch import canonical_json
from segnas.augment import Augmentation, Batch, ImageCache, batch_count, batches
from segnas.data import Dataset, halves, network_input
from segnas.errors import VerificationError
from segnas.network import Network, initialised
from segnas.search.checkpoint import load_tensors, plain_settings, prefixed, save_tensors, unprefixed
from segnas.search.frozen import Backbone, Tail
from segnas.search.objective import ohem_cross_entropy
from segnas.search.sampled import Scoring
from segnas.search.scoring import scored_by
from segnas.search.settings import TrainSettings
from segnas.search.space import Genotype
from segnas.search.train import learning_rate, optimiser_of

IMAGES = 500
"""At most so many held-out images score; our choice."""
CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class CachedScore:
    """How a genotype's network does when its backbone is frozen: its other layers learn from `crops` fixed crops of one half of the dataset, and the
    mean IoU on the other half, whole images of `size` (HEIGHT, WIDTH), counts.

    Give the training split. The features lie in `folder` under a digest of all that they depend on, so that workers share them.
    """

    backbone: Backbone
    dataset: Dataset
    settings: TrainSettings
    crops: int
    size: tuple[int, int]
    seed: int
    folder: Path
    device: str = "cpu"

    @property
    def scoring(self) -> Scoring:
        """For `sample`."""
        return Scoring(self.score, self.schedule)

    @property
    def schedule(self) -> dict[str, object]:
        """Everything that a score depends on but the genotype."""
        return {
            "score": "mean IoU on the second half of the images, the backbone frozen, the rest trained on cached features of crops of the first",
            "data": f"{self.dataset.name} {self.dataset.split}, {len(self.dataset)} samples",
            "size": "x".join(map(str, self.size)),
            "crops": self.crops,
            "backbone": self.backbone.digest,
            "device": torch.device(self.device).type,
            "train": plain_settings(self.settings),
        }

    @property
    def digest(self) -> str:
        """Of the schedule: where a fine-tuning starts from."""
        return hashlib.sha256(canonical_json([self.schedule, self.seed]).encode()).hexdigest()[:16]

    def score(self, genotype: Genotype) -> float:
        """Mean IoU of the genotype's network. VerificationError where its loss is not finite."""
        tail = Tail(self.fitted(genotype)).to(self.device).eval()
        places = {index: place for place, index in enumerate(self.held_out)}
        features = unprefixed("held_out", self._cached)

        def predict(index: int, image: object) -> Tensor:
            place = places[index]
            return tail({label: values[place : place + 1].to(self.device) for label, values in features.items()}, self.size)

        return scored_by(predict, self.dataset, self.held_out)

    def weights(self, genotype: Genotype) -> dict[str, Tensor]:
        """The weights of the genotype's network, backbone included, after its proxy training."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.fitted(genotype).state_dict().items()}

    def fitted(self, genotype: Genotype) -> Network:
        """The genotype's network with the frozen backbone, all else trained on the cached crops; the same whenever it is asked for."""
        network = initialised(self.backbone.space.decode(genotype).architecture, self.seed)
        network.load_state_dict({**network.state_dict(), **self.backbone.placed(network.architecture)})
        tail = Tail(network).to(self.device).train()
        optimiser = optimiser_of(tail, self.settings)
        for step, (features, labels) in zip(range(self.settings.steps), self._batches(), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(self.settings, step)
            loss = ohem_cross_entropy(tail(features, self.settings.crop), labels, threshold=self.settings.ohem_threshold)
            if not math.isfinite(float(loss.detach())):
                raise VerificationError(f"the loss is {float(loss.detach())} at step {step} of a proxy training")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        return network

    @property
    def held_out(self) -> tuple[int, ...]:
        """The images that score, by index."""
        return halves(len(self.dataset), self.seed)[1][:IMAGES]

    def crop_batches(self) -> Generator[Batch, None, None]:
        """The fixed crops, in batches: those of as many epochs as they take."""
        settings, learning = self.settings, halves(len(self.dataset), self.seed)[0]
        augmentation = Augmentation(settings.crop, settings.scale, brightness=settings.colour, contrast=settings.colour, saturation=settings.colour)
        cache, left, epoch = ImageCache(CACHE_BYTES), self.crops, 0
        while left > 0:
            size = min(settings.batch, left)
            for batch in batches(
                self.dataset, learning, seed=self.seed, epoch=epoch, batch_size=size, augmentation=augmentation, workers=0, cache=cache
            ):
                yield Batch(batch.images[:left], batch.labels[:left], batch.indices[:left])
                left -= size
                if left < size:
                    break
            epoch += 1

    @cached_property
    def _cached(self) -> dict[str, Tensor]:
        """Features of the crops and of the held-out images, and the crops' labels: from the file where it is there, else computed and written."""
        settings = {name: value for name, value in plain_settings(self.settings).items() if name in ("crop", "scale", "colour", "batch")}
        names = [sample.name for sample in self.dataset.samples]
        depends = [self.schedule["data"], names, self.schedule["size"], self.crops, self.backbone.digest, self.seed, settings]
        path = self.folder / f"features-{hashlib.sha256(canonical_json(depends).encode()).hexdigest()[:16]}.safetensors"
        if not path.is_file():
            save_tensors(path, self._computed())
        return load_tensors(path)[0]

    def _computed(self) -> dict[str, Tensor]:
        network = self.backbone.network().to(self.device)
        crops: list[dict[str, Tensor]] = []
        labels: list[Tensor] = []
        for batch in self.crop_batches():
            crops.append({label: f.cpu() for label, f in self.backbone.features(network, batch.images.to(self.device)).items()})
            labels.append(batch.labels.to(torch.uint8))
        whole = [
            {label: f.cpu() for label, f in self.backbone.features(network, self._image(index).to(self.device)).items()} for index in self.held_out
        ]
        return {
            **prefixed("crops", {label: torch.cat([f[label] for f in crops]) for label in self.backbone.taps}),
            **prefixed("held_out", {label: torch.cat([f[label] for f in whole]) for label in self.backbone.taps}),
            "labels": torch.cat(labels),
        }

    def _image(self, index: int) -> Tensor:
        return torch.from_numpy(network_input(self.dataset.read(index)[0], *self.size))

    def _batches(self) -> Generator[tuple[dict[str, Tensor], Tensor], None, None]:
        """Cached crops without end, in an order drawn for each round: features by label, and labels (N, H, W)."""
        features, labels, epoch = unprefixed("crops", self._cached), self._cached["labels"], 0
        size = min(self.settings.batch, len(labels))
        while True:
            order = np.random.default_rng((self.seed, 3, epoch)).permutation(len(labels))
            for start in range(batch_count(len(labels), size)):
                chosen = torch.from_numpy(order[start * size : (start + 1) * size])
                yield {label: f[chosen].to(self.device) for label, f in features.items()}, labels[chosen].long().to(self.device)
            epoch += 1


def without_auxiliary(settings: TrainSettings, steps: int) -> TrainSettings:
    """The settings for so many steps, without the auxiliary head and with no more warm-up than a quarter of them."""
    return replace(settings, steps=steps, warmup=min(settings.warmup, steps // 4), auxiliary=0.0)

"""Two-stage scores (Fast-NAS, section 3.3; engine/trainer.py of its released code): first the decoder alone, on cached features of a frozen backbone;
where that promises enough, all of it end to end.

Mended here: normalisations are estimated anew for averaged weights, a candidate that fails raises and has no reward, and the reward of one that was
stopped early says so.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segnas.augment import Augmentation, ImageCache, batch_count
from segnas.data import Dataset, halves, network_input, read_image
from segnas.errors import VerificationError
from segnas.metrics import ConfusionMatrix
from segnas.network import Network, initialise, initialised
from segnas.search.auxiliary_cells import AuxiliaryCells
from segnas.search.checkpoint import plain_settings
from segnas.search.distil import mse
from segnas.search.frozen import Backbone, Tail
from segnas.search.objective import cross_entropy
from segnas.search.polyak import PolyakAverage, re_estimated
from segnas.search.rewards import Ids, Qualities, confusion, qualities
from segnas.search.sampled import Noted, Scoring
from segnas.search.settings import SearchSettings
from segnas.search.space import Genotype, Space
from segnas.search.streams import stream
from segnas.search.trained_score import memory_errors
from segnas.search.trials import SampledTrial

Size = tuple[int, int]
Features = Mapping[str, Tensor]
CACHE_BYTES = 2 << 30
SCHEDULE = ((100, 0.9), (200, 0.8), (300, 0.7), (400, 0.6))
"""From so many candidates on, the gate's tolerance is multiplied by this too (helpers/utils.py of the released code)."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Which candidates go on to the second stage: those above a moving average of the first stage's rewards, and by chance some below it.

    The average is corrected for its beginning, as Adam's are (ours: the released one starts at 0.01, and hundreds of candidates pass before it is any
    hurdle). A threshold of the schedule counts from its candidate on; released, a counter that jumps over it never meets it.
    """

    decay: float
    tolerance: float

    def level(self, earlier: Sequence[float]) -> float:
        """The moving average of earlier rewards; 0 without any."""
        average = 0.0
        for reward in earlier:
            average = self.decay * average + (1 - self.decay) * reward
        return average / (1 - self.decay ** len(earlier)) if earlier else 0.0

    def share(self, candidates: int) -> float:
        """The largest share of the average that a candidate may lie below it, after so many."""
        return self.tolerance * math.prod(factor for start, factor in SCHEDULE if candidates >= start)

    def passes(self, reward: float, earlier: Sequence[float], rng: Random) -> bool:
        """Whether a candidate of that reward goes on, given those of the candidates before."""
        level = self.level(earlier)
        return reward > level or reward > level * (1 - rng.uniform(0, self.share(len(earlier))))


@dataclass(frozen=True, slots=True)
class CachedCrops:
    """What stage 0 sees of its crops: the backbone's features (N, C, h, w) by label, train ids (N, H, W) uint8, and a teacher's logits, if any."""

    features: Features
    labels: Tensor
    logits: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class TwoStageScore:
    """The reward of a genotype of `space`: its network learns from one half of the dataset (`halves`), the other judges at `size` (HEIGHT, WIDTH).

    Give the training split. `teacher` gives logits of normalised images, to be matched in stage 0. A loss that is not finite raises
    VerificationError, too little memory MemoryError: both are failures, not rewards. A score is `Noted` with `stage0`, and with
    `truncated` where the gate stopped it.
    """

    space: Space
    backbone: Backbone
    teacher: Network | None
    dataset: Dataset
    settings: SearchSettings
    size: Size
    seed: int
    device: str = "cpu"

    @property
    def scoring(self) -> Scoring:
        """For `segnas.search.sampled.sample`."""
        return Scoring(self.score, self.schedule, self.hear)

    @property
    def schedule(self) -> dict[str, Any]:
        """Everything that a score depends on but the genotype and the gate's earlier rewards."""
        names = ("batch", "crop", "scale", "sampled", "staged")
        return {
            "score": "geometric mean of mean IoU, mean class accuracy and weighted IoU on one half of the images, after two stages on the other",
            "data": f"{self.dataset.name} {self.dataset.split}, {len(self.dataset)} samples",
            "size": "x".join(map(str, self.size)),
            "networks": self.space.name,
            "backbone": self.backbone.digest,
            "device": torch.device(self.device).type,
            "settings": {name: value for name, value in plain_settings(self.settings).items() if name in names},
        }

    def hear(self, trials: Sequence[SampledTrial]) -> None:
        """Remember the first stage's rewards so far: the gate goes by them."""
        self._earlier[:] = [t.notes["stage0"] for t in trials if t.score is not None and "stage0" in t.notes]

    def score(self, genotype: Genotype) -> float:
        """The reward of stage 1, or of stage 0 where the gate stopped it."""
        with memory_errors():
            candidate = Candidate(self, genotype)
            first = candidate.stage_0().reward
            if self.settings.staged.gate and not self._gate.passes(first, self._earlier, Random(f"{self.seed} {sorted(genotype.items())}")):
                return Noted(first, stage0=first, truncated=1.0)
            return Noted(candidate.stage_1().reward if self.settings.staged.steps else first, stage0=first)

    @cached_property
    def crops(self) -> CachedCrops:
        """Stage 0's crops of the half that is learned from, their augmentation frozen; computed once."""
        found: list[tuple[Features, Tensor, Tensor | None]] = []
        network, left = self.backbone.network().to(self.device), self.settings.sampled.crops
        augmentation = Augmentation(self.settings.crop, self.settings.scale)
        endless = stream(
            self.learning, range(len(self.learning)), augmentation, min(self.settings.batch, left), seed=self.seed, cache=ImageCache(CACHE_BYTES)
        )
        for batch in endless:
            images, labels = batch.images[:left], batch.labels[:left]
            features = self.backbone.features(network, images.to(self.device))
            found.append((features, labels.to(torch.uint8), None if self.teacher is None else self._taught(images, features)))
            left -= len(labels)
            if not left:
                break
        joined = {label: torch.cat([features[label] for features, _, _ in found]) for label in found[0][0]}
        logits = [taught for _, _, taught in found if taught is not None]
        return CachedCrops(joined, torch.cat([labels for _, labels, _ in found]), torch.cat(logits) if logits else None)

    @cached_property
    def learning(self) -> Dataset:
        """The half that is learned from."""
        return replace(self.dataset, samples=tuple(self.dataset.samples[index] for index in halves(len(self.dataset), self.seed)[0]))

    @cached_property
    def judging(self) -> tuple[int, ...]:
        """The samples that judge."""
        return halves(len(self.dataset), self.seed)[1][: self.settings.staged.images]

    @cached_property
    def truths(self) -> tuple[Ids, ...]:
        """Their raw ids, (H, W) each."""
        return tuple(self.dataset.read(index)[1] for index in self.judging)

    @cached_property
    def held_out(self) -> Features:
        """The backbone's features of the images that judge, (N, C, h, w) by label; computed once."""
        network = self.backbone.network().to(self.device)
        found = [self.backbone.features(network, self.image(index)) for index in self.judging]
        return {label: torch.cat([features[label] for features in found]) for label in found[0]}

    def image(self, index: int) -> Tensor:
        """A sample's image as networks read it, (1, 3, *size)."""
        return torch.from_numpy(network_input(read_image(self.dataset.samples[index].image), *self.size)).to(self.device)

    def _taught(self, images: Tensor, features: Features) -> Tensor:
        """The teacher's logits at the size of the finest feature (the released code keeps them so)."""
        assert self.teacher is not None
        finest = max(tuple(feature.shape[-2:]) for feature in features.values())
        with torch.no_grad():
            return F.interpolate(self.teacher.to(self.device).eval()(images.to(self.device)), size=finest, mode="bilinear", align_corners=False)

    @cached_property
    def _gate(self) -> Gate:
        return Gate(self.settings.staged.gate_decay, self.settings.staged.tolerance)

    @cached_property
    def _earlier(self) -> list[float]:
        return []


class Candidate:
    """A genotype's network on its way through the two stages, with auxiliary cells beside it."""

    def __init__(self, work: TwoStageScore, genotype: Genotype) -> None:
        self.work, self.settings = work, work.settings.staged
        architecture = work.space.decode(genotype).architecture
        self.network = initialised(architecture, work.seed)
        self.network.load_state_dict({**self.network.state_dict(), **work.backbone.placed(architecture)})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed + 1)
            self.auxiliary = AuxiliaryCells(work.space, genotype, self.network)
            initialise(self.auxiliary)
        self.network, self.auxiliary = self.network.to(work.device), self.auxiliary.to(work.device)
        self.tail = Tail(self.network)

    def stage_0(self) -> Qualities:
        """Train the decoder on the cached crops, average, and judge it on the cached features of the images that judge."""
        work, settings, crops = self.work, self.settings, self.work.crops
        trained = nn.ModuleList([self.tail, self.auxiliary])
        optimiser = torch.optim.Adam(trained.parameters(), lr=settings.rate, weight_decay=settings.decay)
        average = PolyakAverage(dict(self.tail.named_parameters()), settings.polyak)
        for chosen in self._epochs(len(crops), settings.epochs):
            self.tail.train()
            logits, blocks = self._decoded({label: f[chosen] for label, f in crops.features.items()}, work.settings.crop)
            loss = self._loss(logits, blocks, crops.labels[chosen].long().to(logits.device))
            if crops.logits is not None and settings.distil:
                loss = loss + settings.distil * mse(logits, crops.logits[chosen])
            self._advance(loss, [(optimiser, list(trained.parameters()))])
            average.update()
        average.swap_in()
        statistics = list(self._epochs(len(crops), 1))[: settings.statistics]
        re_estimated(self.tail, lambda part: self.tail({label: f[part] for label, f in crops.features.items()}, work.settings.crop), statistics)
        held_out = work.held_out
        return self._judged(lambda place: self.tail({label: f[place : place + 1] for label, f in held_out.items()}, work.size))

    def stage_1(self) -> Qualities:
        """Train everything end to end, average, and judge the whole network."""
        work, settings = self.work, self.settings
        tail = [*self.tail.parameters(), *self.auxiliary.parameters()]
        own = {id(parameter) for parameter in tail}
        encoder = [parameter for parameter in self.network.parameters() if id(parameter) not in own]
        pairs: list[tuple[torch.optim.Optimizer, list[nn.Parameter]]] = [
            (torch.optim.SGD(encoder, lr=settings.encoder_rate, momentum=settings.momentum), encoder),
            (torch.optim.Adam(tail, lr=settings.rate, weight_decay=settings.decay), tail),
        ]
        average = PolyakAverage(dict(self.network.named_parameters()), settings.final_polyak)
        self.network.train()
        augmentation, learning = Augmentation(settings.crop, settings.scale), work.learning
        endless = stream(learning, range(len(learning)), augmentation, settings.batch, seed=work.seed + 1, cache=ImageCache(CACHE_BYTES))
        with closing(endless):
            for _, batch in zip(range(settings.steps), endless, strict=False):
                logits, features = self.network.features(batch.images.to(work.device), self.auxiliary.taps)
                self._advance(self._loss(logits, features, batch.labels.to(work.device)), pairs)
                average.update()
        average.swap_in()
        re_estimated(self.network, self.network, self._whole_images())
        return self._judged(lambda place: self.network(work.image(work.judging[place])))

    def _decoded(self, features: Features, size: Size) -> tuple[Tensor, dict[int, Tensor]]:
        """Logits of cached features, and the blocks' sums by node."""
        alive = self.tail.walk(features, size)
        return alive[len(self.tail.inputs) - 1], {tap: alive[tap] for tap in self.auxiliary.taps}

    def _loss(self, logits: Tensor, blocks: Mapping[int, Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy of the logits, and of the auxiliary ones at the labels' size."""
        loss = cross_entropy(logits, labels)
        if not self.settings.auxiliary:
            return loss
        size = (int(labels.shape[-2]), int(labels.shape[-1]))
        found = [F.interpolate(auxiliary, size=size, mode="bilinear", align_corners=False) for auxiliary in self.auxiliary(blocks)]
        return loss + self.settings.auxiliary * sum((cross_entropy(auxiliary, labels) for auxiliary in found), start=torch.zeros_like(loss))

    def _advance(self, loss: Tensor, pairs: Sequence[tuple[torch.optim.Optimizer, list[nn.Parameter]]]) -> None:
        """One step of each optimiser, the gradients of each clipped on their own. VerificationError where the loss is not finite."""
        if not math.isfinite(float(loss.detach())):
            raise VerificationError(f"the loss of a candidate is {float(loss.detach())}")
        for optimiser, _ in pairs:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser, parameters in pairs:
            nn.utils.clip_grad_norm_(parameters, self.settings.clip)
            optimiser.step()

    def _epochs(self, count: int, epochs: int) -> Iterator[Tensor]:
        """Places of the crops of each batch, in an order of the epoch's own."""
        size = min(self.work.settings.batch, count)
        for epoch in range(epochs):
            order = np.random.default_rng((self.work.seed, 3, epoch)).permutation(count)
            for start in range(batch_count(count, size)):
                yield torch.from_numpy(order[start * size : (start + 1) * size])

    def _whole_images(self) -> Iterator[Tensor]:
        """Batches of whole images of the half that is learned from, at the size that is deployed."""
        learning, size = self.work.learning, max(2, min(self.settings.batch, 8))
        images = [network_input(read_image(sample.image), *self.work.size) for sample in learning.samples[: self.settings.statistics * size]]
        for start in range(0, max(1, len(images) - size + 1), size):
            yield torch.from_numpy(np.concatenate(images[start : start + size])).to(self.work.device)

    def _judged(self, predict: Callable[[int], Tensor]) -> Qualities:
        self.network.eval()
        found: ConfusionMatrix = confusion(predict, self.work.truths, self.work.dataset.labels)
        return qualities(found)

"""Training of a derived network: poly schedule, hard-example loss, an auxiliary head that leaves at the end, averaged weights, exact resume."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segnas.arch import Architecture
from segnas.augment import Augmentation, Batch, ImageCache, batch_count, batches
from segnas.data import Dataset, class_shares
from segnas.errors import IncompatibleError, InputError, VerificationError
from segnas.network import Network, initialise, initialised, weights_digest
from segnas.ops import Unit
from segnas.report import Curve
from segnas.search.checkpoint import (
    load_tensors,
    optimiser_tensors,
    plain_settings,
    prefixed,
    require_identity,
    restore_optimiser,
    save_tensors,
    unprefixed,
)
from segnas.search.distil import Distillation, distillation
from segnas.search.objective import ohem_cross_entropy
from segnas.search.settings import TrainSettings

Progress = Callable[[int, int, str], None]
CACHE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Trained:
    """The averaged weights, without the auxiliary head, and how the loss fell."""

    weights: dict[str, Tensor]
    curves: tuple[Curve, ...]


class AuxiliaryNetwork(nn.Module):
    """A network with a second classifier on an inner feature, in training only."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.tap = auxiliary_node(network.architecture)
        channels = network.architecture.nodes[self.tap].channels
        self.head = nn.Sequential(Unit(channels, 64, 3), nn.Conv2d(64, network.architecture.classes, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> logits (N, classes, H, W) and auxiliary logits (N, classes, h, w) at the inner feature's size."""
        logits, features = self.network.features(image, (self.tap,))
        return logits, self.head(features[self.tap])


def auxiliary_node(architecture: Architecture) -> int:
    """The last node one level above the deepest, before the deepest is first reached: the usual place, a stage before the end (our choice)."""
    levels = architecture.levels
    deepest = max(levels)
    first = levels.index(deepest)
    return max((i for i in range(1, first) if levels[i] == deepest - 1), default=first)


def train(
    architecture: Architecture,
    dataset: Dataset,
    settings: TrainSettings,
    *,
    seed: int,
    checkpoint: Path,
    device: str = "cpu",
    start: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    teacher: Network | None = None,
) -> Trained:
    """Train on every sample of the dataset and return the averaged weights; from a trained `teacher` too, where the settings distil.

    Resumes from `checkpoint` where it is there, to the same bytes as an undisturbed run with the same number of threads. `start` replaces initial
    weights by name. Under torchrun each process takes its share of every batch. `workers` threads prepare batches: by default none on a CPU, where
    they would take the cores from the arithmetic (0.38 s a step became 0.45), and 4 beside a GPU. VerificationError where the loss is not finite.
    """
    if architecture.classes != len(dataset.labels.classes):
        raise IncompatibleError(f"the architecture has {architecture.classes} classes, {dataset.name} has {len(dataset.labels.classes)}")
    weights = class_weights(class_shares(dataset), settings.class_weights) if settings.class_weights else None
    told = distillation(settings, teacher, architecture.classes, torch.device(device))
    run = _Run(architecture, settings, seed, device, start, weights, told)
    data = f"{dataset.name} {dataset.split}, {len(dataset)} samples"
    origin = weights_digest(start) if start else "none"
    identity = {"architecture": architecture.digest, "seed": seed, "data": data, "start": origin, "settings": plain_settings(settings)}
    if teacher is not None:
        identity["teacher"] = weights_digest(teacher.state_dict())
    if checkpoint.is_file():
        run.restore(checkpoint, identity)
    per_epoch = batch_count(len(dataset), settings.batch)
    augmentation = Augmentation(settings.crop, settings.scale, brightness=settings.colour, contrast=settings.colour, saturation=settings.colour)
    cache, saved = ImageCache(CACHE_BYTES), time.monotonic()
    workers = (0 if run.device.type == "cpu" else 4) if workers is None else workers
    while run.step < settings.steps:
        epoch, offset = divmod(run.step, per_epoch)
        stream = batches(
            dataset,
            range(len(dataset)),
            seed=seed,
            epoch=epoch,
            batch_size=settings.batch,
            augmentation=augmentation,
            start=offset,
            workers=workers,
            cache=cache,
        )
        with closing(stream):
            for batch in stream:
                loss = run.advance(batch)
                if progress:
                    progress(run.step, settings.steps, f"loss {loss:.3f}")
                if run.step >= settings.steps:
                    break
                if time.monotonic() - saved > settings.checkpoint_s:
                    run.save(checkpoint, identity)
                    saved = time.monotonic()
    run.save(checkpoint, identity)
    return Trained(run.averaged(), (Curve("train/loss", tuple(run.curve_steps), tuple(run.curve_losses)),))


class _Run:
    """Everything that changes while training, in one place, so that a checkpoint can hold all of it."""

    def __init__(
        self,
        architecture: Architecture,
        settings: TrainSettings,
        seed: int,
        device: str,
        start: Mapping[str, Tensor] | None,
        class_weights: Tensor | None,
        told: Distillation | None,
    ) -> None:
        network = initialised(architecture, seed)
        if start:
            missing = network.load_state_dict(dict(start), strict=False)
            if missing.unexpected_keys:
                raise InputError(f"the starting weights hold {missing.unexpected_keys[0]}, which this architecture has not")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1)
            self.model = AuxiliaryNetwork(network)
            initialise(self.model.head)
        self.model.head.requires_grad_(settings.auxiliary > 0)  # DistributedDataParallel waits for the gradient of whatever may have one
        self.settings, self.device = settings, torch.device(device)
        self.told = told
        self.class_weights = None if class_weights is None else class_weights.to(self.device)
        self.model = self.model.to(self.device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        self.optimiser = optimiser_of(self.model, settings)
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.network.state_dict().items()}
        self.step, self.smooth = 0, 0.0
        self.curve_steps, self.curve_losses = list[int](), list[float]()
        self.world, self.rank = _world()
        self.parallel: nn.Module = DistributedDataParallel(self.model) if self.world > 1 else self.model

    def advance(self, batch: Batch) -> float:
        """One optimiser step; the smoothed loss."""
        images = batch.images[self.rank :: self.world].to(self.device, memory_format=torch.channels_last)
        labels = batch.labels[self.rank :: self.world].to(self.device)
        rate = learning_rate(self.settings, self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        with _mixed_precision(self.device):
            logits, auxiliary = self.parallel(images)
        threshold, weights = self.settings.ohem_threshold, self.class_weights
        loss = ohem_cross_entropy(logits.float(), labels, threshold=threshold, weights=weights)
        if self.settings.auxiliary:
            small = nearest_labels(labels, (int(auxiliary.shape[-2]), int(auxiliary.shape[-1])))
            loss = loss + self.settings.auxiliary * ohem_cross_entropy(auxiliary.float(), small, threshold=threshold, weights=weights)
        if self.told is not None:
            loss = loss + self.told(images, logits.float())
        value = float(loss.detach())
        if not math.isfinite(value):
            raise VerificationError(
                f"training diverged at step {self.step}: the loss is {value}. The last checkpoint is kept; start again in another folder with a "
                f"train.learning_rate below {self.settings.learning_rate} in the recipe"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self._share_statistics()
        self.step += 1
        self._average()
        self.smooth = value if self.step == 1 else 0.95 * self.smooth + 0.05 * value
        if self.step % max(1, self.settings.steps // 200) == 0:
            self.curve_steps.append(self.step)
            self.curve_losses.append(round(self.smooth, 5))
        return self.smooth

    def _share_statistics(self) -> None:
        """Average the normalisations' running statistics over the processes: each saw its share of the batch, and all must end alike."""
        if self.world == 1:
            return
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        flat = torch.cat([buffer.flatten() for buffer in statistics])
        torch.distributed.all_reduce(flat)
        for buffer, mean in zip(statistics, (flat / self.world).split([b.numel() for b in statistics]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def _average(self) -> None:
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))  # short memory first, as in TensorFlow's ExponentialMovingAverage
        with torch.no_grad():
            for name, tensor in self.model.network.state_dict().items():
                if tensor.dtype.is_floating_point:
                    self.ema[name].lerp_(tensor, 1 - decay)
                else:
                    self.ema[name].copy_(tensor)

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, on the CPU."""
        return {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in self.ema.items()}

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Write all that the next step depends on. Batches need no state: they are a function of (seed, epoch, index)."""
        if self.rank:
            return
        tensors = {
            **prefixed("model", self.model.state_dict()),
            **prefixed("ema", self.ema),
            **prefixed("optimiser", optimiser_tensors(self.optimiser, self.names)),
            "random": torch.get_rng_state(),
        }
        curve = [self.curve_steps, self.curve_losses]
        save_tensors(path, tensors, {"identity": identity, "step": self.step, "smooth": self.smooth, "curve": curve})

    def restore(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of the same run; IncompatibleError names what differs."""
        tensors, state = load_tensors(path)
        require_identity(path, state, identity, "run")
        self.model.load_state_dict(unprefixed("model", tensors))
        self.ema = {name: tensor.to(self.device) for name, tensor in unprefixed("ema", tensors).items()}
        restore_optimiser(self.optimiser, self.names, unprefixed("optimiser", tensors))
        torch.set_rng_state(tensors["random"])
        self.step, self.smooth = int(state["step"]), float(state["smooth"])
        self.curve_steps, self.curve_losses = list(state["curve"][0]), list(state["curve"][1])


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Poly schedule, base * (1 - step / steps)^power, after a linear warm-up."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.learning_rate * warm * (1 - step / settings.steps) ** settings.power


def nearest_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (N, H, W) at a smaller size by nearest neighbour, so that the auxiliary loss needs no enlarged logits (our choice)."""
    small = nn.functional.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")
    return small[:, 0].long()


def class_weights(shares: Sequence[float], c: float) -> Tensor:
    """ENet's weights 1 / ln(c + share), float32, one a class (section 5 of its paper, recalled)."""
    return torch.tensor([1 / math.log(c + share) for share in shares])


def optimiser_of(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over a model's parameters; normalisations and biases do not decay."""
    groups = _groups(model, settings.weight_decay)
    if settings.optimiser == "adamw":
        on_cpu = next(model.parameters()).device.type == "cpu"
        return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=on_cpu)  # on a GPU its step counts would have to lie there
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]  # normalisation and biases: no decay
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def _world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0

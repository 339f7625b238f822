"""Trainings: networks trained under one stated schedule and judged as they would be shipped, each once, in a folder that belongs to that schedule.

architecture -> networks/DIGEST-SEED/{weights.safetensors, model.onnx} -> a line of trained.jsonl
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

from segnas.arch import Architecture
from segnas.data import Dataset, read_image
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.evaluating import evaluate_engine
from segnas.exporting import export_engine
from segnas.files import plain, unplain
from segnas.journals import Journal, differences
from segnas.measuring import Progress
from segnas.search.checkpoint import plain_settings
from segnas.search.settings import TrainSettings
from segnas.steps import load_network, train_network
from segnas.target import Target


@dataclass(frozen=True)
class Schedule:
    """How every network is trained, and on what it is judged: the size, runtime and threads of `target`."""

    settings: TrainSettings
    train: Dataset
    evaluation: Dataset
    target: Target
    device: str = "cpu"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What two trainings must share to be compared, as JSON values."""
        return {
            "train": plain_settings(self.settings),
            "learned": f"{self.train.name} {self.train.split}, {len(self.train)} samples",
            "judged": f"{self.evaluation.name} {self.evaluation.split}, {len(self.evaluation)} samples",
            "size": f"{self.target.height}x{self.target.width}",
            "device": self.device.partition(":")[0],
        }

    @cached_property
    def judged_target(self) -> Target:
        """What the judged engine is exported for: labels where the images have the engine's size, else logits, which can be enlarged."""
        size = read_image(self.evaluation.samples[0].image).shape[:2]
        return replace(self.target, output_contract="labels" if size == (self.target.height, self.target.width) else "logits")

    def require(self, architecture: Architecture) -> None:
        """IncompatibleError for a network of other classes, RequirementError for a target that no engine is exported for: before time is spent."""
        architecture.require_segmentation()
        classes = len(self.train.labels.classes)
        if architecture.classes != classes:
            raise IncompatibleError(f"architecture {architecture.digest} has {architecture.classes} classes, {self.train.name} has {classes}")
        architecture.operations(self.target.height, self.target.width)
        if self.target.runtime != "onnxruntime":
            raise RequirementError(
                f"the target's runtime is {self.target.runtime!r}; engines are judged on 'onnxruntime': give a table of that runtime"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to: mean IoU, 0 to 1, of the engine with that sha256, and the last smoothed loss."""

    digest: str
    seed: int
    miou: float
    loss: float
    engine_sha256: str


class Learn(Protocol):
    """Trains a network in a folder of its own and judges it; continues what was interrupted there."""

    def __call__(self, schedule: Schedule, architecture: Architecture, *, seed: int, folder: Path, progress: Progress) -> Outcome: ...


def learn(schedule: Schedule, architecture: Architecture, *, seed: int, folder: Path, progress: Progress) -> Outcome:
    """Train from scratch, export, check parity, and evaluate the exported file."""
    weights = folder / "weights.safetensors"
    loss = train_network(
        architecture, schedule.train, schedule.settings, out=weights, pretrained=None, device=schedule.device, seed=seed, progress=progress
    )
    network, _ = load_network(architecture, weights)
    engine = export_engine(network, schedule.judged_target, folder, dataset=schedule.evaluation)
    accuracy = evaluate_engine(folder / engine.file, schedule.evaluation, progress=progress)
    return Outcome(architecture.digest, seed, accuracy.miou, loss, engine.sha256)


class Trainings:
    """The networks of a folder, all of one schedule: IncompatibleError names what differs where the folder holds another one's."""

    def __init__(self, folder: Path, schedule: Schedule, by: Learn = learn) -> None:
        self.folder, self.schedule, self._learn = folder, schedule, by
        self._journal = Journal(folder / "trained.jsonl")
        held = self._journal.begin({"schedule": schedule.identity}).get("schedule")
        if not isinstance(held, dict):
            raise self._journal.damaged(1)
        differing = differences(cast(dict[str, Any], held), schedule.identity)
        if differing:
            raise IncompatibleError(f"{folder} holds networks of another schedule ({'; '.join(differing)}); choose another --out")
        self.known = {(found.digest, found.seed): found for found in map(self._outcome, range(2, len(self._journal.entries) + 1))}

    def outcome(self, architecture: Architecture, seed: int, progress: Progress) -> Outcome:
        """What that network came to: from the journal where it is there, else by training it."""
        key = (architecture.digest, seed)
        if key not in self.known:
            folder = self.folder / "networks" / f"{architecture.digest}-{seed}"
            found = self._learn(self.schedule, architecture, seed=seed, folder=folder, progress=progress)
            self._journal.add(cast(dict[str, Any], plain(found)))
            self.known[key] = found
            (folder / "weights.checkpoint.safetensors").unlink(missing_ok=True)  # several times the weights, and of no more use
        return self.known[key]

    def outcomes(self, architectures: Mapping[str, Architecture], seed: int, progress: Progress) -> dict[str, Outcome]:
        """What each network came to, by the names they are given; progress counts networks."""
        found: dict[str, Outcome] = {}
        for number, (name, architecture) in enumerate(architectures.items()):
            done, total = number, len(architectures)
            progress(done, total, name)

            def told(part: int, parts: int, text: str, at: tuple[int, int, str] = (done, total, name)) -> None:
                progress(*at[:2], f"{at[2]}: {part} of {parts} {text}")

            found[name] = self.outcome(architecture, seed, told)
        progress(len(architectures), len(architectures), "")
        return found

    def _outcome(self, number: int) -> Outcome:
        try:
            return unplain(Outcome, self._journal.entries[number - 1])
        except InputError:
            raise self._journal.damaged(number) from None

"""Scores by training: which images they look at, that they agree with the evaluation of an engine, and what a failure leaves behind."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segnas.data import Dataset, halves, open_dataset
from segnas.errors import InputError, VerificationError
from segnas.network import Network
from segnas.report import Port
from segnas.runtime.evaluate import evaluate
from segnas.runtime.session import Specification
from segnas.search import trained_score as scoring
from segnas.search.sampled import Scoring
from segnas.search.scoring import score
from segnas.search.space import Space
from segnas.search.spaces import space as named_space
from segnas.search.train import TrainSettings, train
from segnas.search.trained_score import trained_score
from segnas.streets import write_streets

SHORT = TrainSettings(steps=3, batch=2, crop=(32, 64), warmup=1, checkpoint_s=0.0)


@pytest.fixture(scope="module")
def space() -> Space:
    return named_space("cas-tiny", 19)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, counts={"train": 5, "val": 1}, height=64, width=128, seed=0)
    return root


@pytest.fixture
def dataset(streets: Path) -> Dataset:
    return open_dataset("cityscapes", streets, "train")


@pytest.fixture
def made(space: Space, dataset: Dataset, tmp_path: Path) -> Callable[..., Scoring]:
    def make(**words: Any) -> Scoring:
        given: dict[str, Any] = {"settings": SHORT, "height": 64, "width": 128, "seed": 3, "folder": tmp_path / "training", **words}
        return trained_score(space, dataset, given.pop("settings"), **given)

    return make


class Engine:
    """A network as an engine that gives logits."""

    def __init__(self, network: torch.nn.Module, height: int, width: int) -> None:
        self.network = network.eval()
        self.specification = Specification(Port("image", "float32", (1, 3, height, width)), Port("logits", "float32", (1, 19, height, width)))

    def run(self, image: NDArray[np.float32]) -> NDArray[Any]:
        with torch.inference_mode():
            return self.network(torch.from_numpy(image)).numpy()


@pytest.mark.parametrize("size", [(64, 128), (32, 64)])
def test_the_mean_iou_is_that_of_the_evaluation_of_an_engine(dataset: Dataset, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    network = torch.nn.Conv2d(3, 19, 1)  # tells pixels apart by their colours
    engine: Any = Engine(network, *size)
    expected = evaluate(engine, dataset)
    assert len([score for score in expected.classes if score.iou]) > 3
    assert score(network, dataset, range(len(dataset)), size) == pytest.approx(expected.miou, abs=1e-4)


def test_training_and_scoring_look_at_disjoint_halves_of_the_split(made, dataset: Dataset, space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt, held_out = list[Dataset](), list[Dataset]()

    def noted_train(architecture: Any, part: Dataset, *rest: Any, **words: Any) -> Any:
        learnt.append(part)
        return train(architecture, part, *rest, **words)

    def noted_score(network: Network, part: Dataset, indices: Sequence[int], *rest: Any, **words: Any) -> float:
        held_out.append(replace(part, samples=tuple(part.samples[i] for i in indices)))
        return score(network, part, indices, *rest, **words)

    monkeypatch.setattr(scoring, "train", noted_train)
    monkeypatch.setattr(scoring, "score", noted_score)
    value = made().score(next(space.genotypes()))
    first, second = halves(5, 3)
    assert [learnt[0].samples, held_out[0].samples] == [tuple(dataset.samples[i] for i in half) for half in (first, second)]
    assert not {*learnt[0].samples} & {*held_out[0].samples}
    assert 0 < value < 1


def test_a_score_depends_on_nothing_but_genotype_and_schedule(made, space: Space, tmp_path: Path) -> None:
    one, other = (genotype for genotype, _ in zip(space.genotypes(), range(2), strict=False))
    first = made()
    values = [first.score(one), first.score(other), first.score(one)]
    assert values[0] == values[2] == made(folder=tmp_path / "elsewhere").score(one)
    assert values[1] != values[0]
    assert not list((tmp_path / "training").iterdir())


def test_schedules_say_what_scores_depend_on(made) -> None:
    first = made().schedule
    assert first == made().schedule
    assert first["data"] == "synthetic-streets train, 5 samples"
    for words in ({"settings": replace(SHORT, steps=4)}, {"height": 32}):
        assert made(**words).schedule != first
    assert made(settings=replace(SHORT, checkpoint_s=9.0)).schedule == first


def test_an_evaluation_that_was_killed_goes_on(made, space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genotype = next(space.genotypes())
    undisturbed = made(folder=tmp_path / "undisturbed").score(genotype)
    steps = list[int]()

    class Killed(BaseException):
        pass

    def until(most: int) -> Callable[..., Any]:
        def noted(*rest: Any, **words: Any) -> Any:
            def progress(step: int, total: int, text: str) -> None:
                steps.append(step)
                if step > most:
                    raise Killed

            return train(*rest, **words, progress=progress)

        return noted

    monkeypatch.setattr(scoring, "train", until(1))
    with pytest.raises(Killed):
        made().score(genotype)
    assert len(list((tmp_path / "training").glob("*.safetensors"))) == 1
    monkeypatch.setattr(scoring, "train", until(9))
    assert made(settings=replace(SHORT, steps=1)).score(genotype) != undisturbed  # another schedule has another checkpoint
    steps.clear()
    assert made().score(genotype) == undisturbed
    assert steps == [2, 3]
    assert not list((tmp_path / "training").iterdir())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (VerificationError("training diverged at step 3"), VerificationError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError),
        (RuntimeError("shape mismatch"), RuntimeError),
    ],
)
def test_what_a_failed_training_raises(made, space: Space, raised: Exception, expected: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **words: Any) -> Any:
        words["checkpoint"].parent.mkdir(parents=True)
        words["checkpoint"].touch()
        raise raised

    monkeypatch.setattr(scoring, "train", failing)
    scored = made()
    with pytest.raises(expected) as found:
        scored.score(next(space.genotypes()))
    assert type(found.value) is expected


def test_memory_that_torch_cannot_get_is_recognised() -> None:
    with pytest.raises(MemoryError, match="can't allocate memory"), scoring.memory_errors():
        torch.empty(2**50)


def test_a_real_divergence_is_a_failure(made, space: Space, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="training diverged"):
        made(settings=replace(SHORT, learning_rate=1e30, steps=9, warmup=0)).score(next(space.genotypes()))
    assert not list((tmp_path / "training").iterdir())


def test_one_image_cannot_be_halved(space: Space, dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 samples cannot be split into two halves"):
        trained_score(space, replace(dataset, samples=dataset.samples[:1]), SHORT, height=64, width=128, seed=0, folder=tmp_path)

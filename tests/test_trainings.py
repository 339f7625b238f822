"""Networks trained under one schedule: really once, and then with a trainer that counts; another schedule is refused by what differs."""

from dataclasses import replace
from pathlib import Path

import pytest

from segnas.arch import Architecture, Node
from segnas.data import Dataset, open_dataset
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.evaluating import evaluate_engine
from segnas.export.manifest import read_engine
from segnas.files import sha256_of
from segnas.kinds import kind
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search import train as training
from segnas.search.train import TrainSettings
from segnas.steps import load_network
from segnas.streets import write_streets
from segnas.target import Target
from segnas.trainings import Outcome, Schedule, Trainings, differences, learn

SETTINGS = TrainSettings(steps=3, batch=2, crop=(32, 64), warmup=1, checkpoint_s=0.0)


def network(width: int, classes: int = 19) -> Architecture:
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem"), (0,), width, 4),
        Node(kind("conv"), (1,), width, 2),
        Node(kind("classifier"), (2,), classes),
        Node(kind("resize"), (3,), classes, up=8),
    )
    return Architecture(nodes)


def silent(done: int, total: int, text: str) -> None:
    pass


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 4, "val": 2}, height=64, width=128, seed=0)
    return {split: open_dataset("cityscapes", root, split) for split in ("train", "val")}


@pytest.fixture
def schedule(datasets: dict[str, Dataset]) -> Schedule:
    return Schedule(SETTINGS, datasets["train"], datasets["val"], cpu_target(64, 128))


class Counting:
    """Trains nothing: mIoU is a function of the width; it counts, and is killed at training number `last`."""

    def __init__(self, last: int = 99) -> None:
        self.trained, self.last = list[tuple[str, int]](), last

    def __call__(self, schedule: Schedule, architecture: Architecture, *, seed: int, folder: Path, progress) -> Outcome:
        if len(self.trained) >= self.last:
            raise KeyboardInterrupt
        self.trained.append((architecture.digest, seed))
        progress(1, 2, "loss 1.0")
        return Outcome(architecture.digest, seed, 0.01 * architecture.nodes[1].channels + 0.001 * seed, 1.0, "0" * 64)


def test_a_training_is_exported_and_judged_as_shipped(schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    found = Trainings(tmp_path, schedule).outcomes({"one": network(8)}, 7, lambda done, total, text: said.append(text))["one"]
    folder = tmp_path / "networks" / f"{network(8).digest}-7"
    engine, artefact = read_engine(folder / "model.onnx")
    assert (found.digest, found.seed) == (network(8).digest, 7) == (engine.architecture, 7)
    assert found.engine_sha256 == engine.sha256 == sha256_of(artefact)
    assert found.miou == evaluate_engine(folder / "model.onnx", schedule.evaluation).miou
    load_network(network(8), folder / "weights.safetensors")
    assert (engine.target.height, engine.target.width, engine.target.output_contract) == (64, 128, "labels")
    assert {file.name for file in folder.iterdir()} == {"weights.safetensors", "weights.json", "model.onnx", "model.onnx.json"}
    assert any(text.startswith("one: 3 of 3 loss") for text in said)
    monkeypatch.setattr("segnas.trainings.train_network", None)  # nothing is trained again
    assert Trainings(tmp_path, schedule).outcome(network(8), 7, silent) == found


def test_a_killed_training_goes_on_where_it_was(schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learn(schedule, network(8), seed=0, folder=tmp_path / "whole", progress=silent)
    steps: list[int] = []
    advance = training._Run.advance

    def counted(self, batch):
        if len(steps) == 2:
            steps.append(-1)
            raise KeyboardInterrupt
        steps.append(self.step)
        return advance(self, batch)

    monkeypatch.setattr(training._Run, "advance", counted)
    trainings = Trainings(tmp_path / "killed", schedule)
    with pytest.raises(KeyboardInterrupt):
        trainings.outcome(network(8), 0, silent)
    assert Trainings(tmp_path / "killed", schedule).outcome(network(8), 0, silent) == whole
    assert steps == [0, 1, -1, 2]


def test_each_network_and_seed_is_trained_once_whenever_it_is_killed(schedule: Schedule, tmp_path: Path) -> None:
    networks = {f"n{width}": network(width) for width in (8, 16, 24, 32)}
    first = Counting(last=2)
    with pytest.raises(KeyboardInterrupt):
        Trainings(tmp_path, schedule, first).outcomes(networks, 0, silent)
    with (tmp_path / "trained.jsonl").open("a") as stream:
        stream.write('{"digest":"abc","mi')  # a line that was being written
    second = Counting()
    found = Trainings(tmp_path, schedule, second).outcomes(networks, 0, silent)
    assert {name: outcome.miou for name, outcome in found.items()} == {f"n{width}": 0.01 * width for width in (8, 16, 24, 32)}
    assert (len(first.trained), len(second.trained)) == (2, 2)
    assert not set(first.trained) & set(second.trained)
    third = Counting()
    again = Trainings(tmp_path, schedule, third).outcomes(networks, 0, silent)
    other = Trainings(tmp_path, schedule, third).outcomes({"n8": network(8)}, 1, silent)
    assert (again, third.trained) == (found, [(network(8).digest, 1)])
    assert other["n8"].miou == pytest.approx(0.081)


def test_progress_counts_networks(schedule: Schedule, tmp_path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    Trainings(tmp_path, schedule, Counting()).outcomes({"a": network(8), "b": network(16)}, 0, lambda *at: said.append(at))
    assert said == [(0, 2, "a"), (0, 2, "a: 1 of 2 loss 1.0"), (1, 2, "b"), (1, 2, "b: 1 of 2 loss 1.0"), (2, 2, "")]


def test_another_schedule_is_refused_by_what_differs(schedule: Schedule, tmp_path: Path) -> None:
    Trainings(tmp_path, schedule, Counting())
    others = {
        r"train\.steps: the folder has 3, asked for is 9": replace(schedule, settings=replace(SETTINGS, steps=9)),
        r"train\.batch: the folder has 2, asked for is 4; train\.steps: the folder has 3, asked for is 9": replace(
            schedule, settings=replace(SETTINGS, steps=9, batch=4)
        ),
        r"judged: the folder has synthetic-streets val, 2 samples, asked for is synthetic-streets train": replace(
            schedule, evaluation=schedule.train
        ),
        r"size: the folder has 64x128, asked for is 32x64": replace(schedule, target=cpu_target(32, 64)),
        r"device: the folder has cpu, asked for is cuda\)": replace(schedule, device="cuda:1"),
    }
    for message, other in others.items():
        with pytest.raises(IncompatibleError, match=rf"holds networks of another schedule \({message}.*choose another --out"):
            Trainings(tmp_path, other, Counting())
    when = replace(schedule, settings=replace(SETTINGS, checkpoint_s=99.0))  # when to save changes nothing that is computed
    threads = replace(schedule, target=replace(schedule.target, device="another cpu"))
    for same in (schedule, when, threads):
        Trainings(tmp_path, same, Counting())


@pytest.mark.parametrize("line", ['{"digest":"a"}', '{"digest":"a","seed":0,"miou":"high","loss":1.0,"engine_sha256":""}', "{}"])
def test_a_damaged_line_is_named(schedule: Schedule, tmp_path: Path, line: str) -> None:
    Trainings(tmp_path, schedule, Counting())
    with (tmp_path / "trained.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match=r"trained\.jsonl is damaged in line 2"):
        Trainings(tmp_path, schedule, Counting())
    (tmp_path / "trained.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=r"trained\.jsonl is damaged in line 1"):
        Trainings(tmp_path, schedule, Counting())


def test_what_cannot_be_trained_is_refused_before_time_is_spent(schedule: Schedule) -> None:
    schedule.require(network(8))
    with pytest.raises(IncompatibleError, match="has 11 classes, synthetic-streets has 19"):
        schedule.require(network(8, 11))
    with pytest.raises(InputError, match="must be resized to the image's size"):
        schedule.require(Architecture(network(8).nodes[:-1]))
    with pytest.raises(InputError, match="input size 4x8 is too small"):
        replace(schedule, target=replace(schedule.target, height=4, width=8)).require(network(8))
    gpu = Target("gpu", "torch", "2", "fp16", 64, 128, scope="gpu")
    with pytest.raises(RequirementError, match="runtime is 'torch'; engines are judged on 'onnxruntime'"):
        replace(schedule, target=gpu).require(network(8))


def test_an_engine_of_another_size_than_the_images_gives_logits(schedule: Schedule, tmp_path: Path) -> None:
    small = replace(schedule, target=cpu_target(32, 64))
    assert (schedule.judged_target.output_contract, small.judged_target.output_contract) == ("labels", "logits")
    found = learn(replace(small, settings=replace(SETTINGS, steps=1)), network(8), seed=0, folder=tmp_path, progress=silent)
    assert 0 <= found.miou <= 1


def test_differences_name_what_only_one_side_has() -> None:
    assert differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"d": 3}}) == [
        "b.c: the folder has 2, asked for is None",
        "b.d: the folder has None, asked for is 3",
    ]

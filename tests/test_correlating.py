"""Correlation studies: who is drawn, that nothing is scored or trained twice, and correlations whose answer is known."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import correlation as stdlib_correlation

import pytest

from segnas import supernet_scores
from segnas.arch import Architecture
from segnas.correlating import MACS, PARAMETERS, Study, correlate, study_lines, write_study
from segnas.cost import network_cost
from segnas.data import open_dataset
from segnas.errors import IncompatibleError, InputError
from segnas.latency import Calibration, Entry, LatencyTable
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.correlation import kendall, pearson, spearman
from segnas.search.loop import SearchSettings
from segnas.search.scoring import Scorer, StatisticsBatches, load_supernet, supernet_score
from segnas.search.spaces import space as named_space
from segnas.search.supernet import untrained_supernet
from segnas.search.train import TrainSettings
from segnas.steps import search_space
from segnas.streets import write_streets
from segnas.supernet_scores import COMPARED, FROM_SEARCH, UNIFORM, Scoring, SearchedRun, compared_networks, draw, searched_run
from segnas.trainings import Outcome, Schedule, Trainings

SPACE, TARGET = named_space("cas-tiny", 19), cpu_target(64, 128)
SCORING = Scoring(batches=2, batch=2, images=2)


def silent(done: int, total: int, text: str) -> None:
    pass


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 4, "val": 3}, height=64, width=128, seed=0)
    data = {split: open_dataset("cityscapes", root, split) for split in ("train", "val")}
    return Schedule(TrainSettings(steps=3, batch=2), data["train"], data["val"], TARGET)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, schedule: Schedule) -> Path:
    """What a search of two steps leaves."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    entries = tuple(Entry(o, "block", 0.1, 0.0, 1, "made up", "") for o in SPACE.all_operations(TARGET))
    table = LatencyTable(SPACE.name, TARGET, entries, 0.3, Calibration(0.9))
    settings = SearchSettings(steps=2, warmup=1, batch=2, crop=(32, 32))
    search_space(SPACE, table, schedule.train, settings, budget=4.2, out=folder / "search.json", device="cpu", seed=3, progress=silent)
    return folder


@pytest.fixture(scope="module")
def run(run_folder: Path) -> SearchedRun:
    return searched_run(SPACE, run_folder)


class Trainer:
    """mIoU by a function of the network; it counts, and is killed at training number `last`."""

    def __init__(self, miou: Callable[[Architecture], float], last: int = 999) -> None:
        self.miou, self.last, self.trained = miou, last, list[str]()

    def __call__(self, schedule: Schedule, architecture: Architecture, *, seed: int, folder: Path, progress) -> Outcome:
        if len(self.trained) >= self.last:
            raise KeyboardInterrupt
        self.trained.append(architecture.digest)
        return Outcome(architecture.digest, seed, self.miou(architecture), 1.0, "0" * 64)


def by_macs(architecture: Architecture) -> float:
    return network_cost(architecture, 64, 128).macs / 1e8


def by_digest(architecture: Architecture) -> float:
    return int(architecture.digest, 16) / 16**12


class Scored:
    """Stands in for the scoring of one network: a score by a function of network and supernet; it counts."""

    def __init__(self, score: Callable[[Architecture, bool], float], last: int = 9999) -> None:
        self.score, self.last, self.calls = score, last, 0

    def __call__(self, supernet, genotype, scorer, batches) -> float:
        if self.calls >= self.last:
            raise KeyboardInterrupt
        self.calls += 1
        return self.score(SPACE.decode(genotype).architecture, batches is not None)


@pytest.fixture
def studied(run: SearchedRun, schedule: Schedule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """A study of six networks, with what is given in place of the usual; `scored` stands in for the scoring."""

    def made(*, trainer: Trainer | None = None, scored: Scored | None = None, folder: Path = tmp_path, **given) -> Study:
        if scored is not None:
            monkeypatch.setattr(supernet_scores, "supernet_score", scored)
        trainings = Trainings(folder, schedule, trainer or Trainer(by_macs))
        arguments = {"runs": [run], "networks": 6, "scoring": SCORING, "seed": 0, "progress": silent, **given}
        return correlate(SPACE, arguments.pop("runs"), arguments.pop("networks"), trainings, arguments.pop("scoring"), **arguments)

    return made


def test_scores_are_those_of_the_supernet(studied, run: SearchedRun, schedule: Schedule) -> None:
    study = studied(networks=4)
    scorer = Scorer(schedule.evaluation, (0, 1), (64, 128))
    batches = StatisticsBatches(schedule.train, count=2, batch=2, size=(64, 128), seed=0)
    supernet, untrained = load_supernet(SPACE, run.checkpoint), untrained_supernet(SPACE, 0)
    for network in study.networks:
        architecture = SPACE.decode(network.genotype).architecture
        assert network.digest == architecture.digest
        cost = network_cost(architecture, 64, 128)
        assert network.predictions == {
            "supernet": supernet_score(supernet, network.genotype, scorer, batches),
            "supernet, not re-estimated": supernet_score(supernet, network.genotype, scorer, None),
            "untrained supernet": supernet_score(untrained, network.genotype, scorer, batches),
            MACS: cost.macs,
            PARAMETERS: cost.parameters,
        }
        assert network.miou == by_macs(architecture)
    assert study.runs == (("mine", run.digest),)


def test_half_is_drawn_by_the_search_and_half_uniformly() -> None:
    last = {name: size - 1 for name, size in SPACE.decisions.items()}
    likely = {name: [*[0.1 / size] * (size - 1), 1.0] for name, size in SPACE.decisions.items()}
    drawn = draw(SPACE, likely, 21, 0)
    assert [network.drawn for network in drawn] == [FROM_SEARCH] * 11 + [UNIFORM] * 10
    assert len({network.architecture.digest for network in drawn}) == 21
    assert drawn == draw(SPACE, likely, 21, 0) != draw(SPACE, likely, 21, 1)

    def share(kind: str) -> float:
        chosen = [network.genotype[name] == last[name] for network in drawn if network.drawn == kind for name in last if network.genotype[name]]
        return sum(chosen) / len(chosen)

    assert share(FROM_SEARCH) > 0.7 > 0.35 > share(UNIFORM)


def test_a_search_that_is_sure_leaves_the_rest_to_uniform_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segnas.search.draws.REJECTED", 50)
    genotype = SPACE.random(Random(5))
    sure = {name: [float(option == genotype[name]) for option in range(size)] for name, size in SPACE.decisions.items()}
    assert [network.drawn for network in draw(SPACE, sure, 8, 0)] == [FROM_SEARCH] + [UNIFORM] * 7


def test_a_space_of_too_few_networks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segnas.supernet_scores.distinct", lambda *_: iter([]))
    with pytest.raises(InputError, match="8 networks of 'cas-tiny' were asked for, and 0 could be drawn"):
        draw(SPACE, {}, 8, 0)


def test_a_supernet_that_tells_the_truth_and_one_that_does_not(studied) -> None:
    def score(architecture: Architecture, re_estimated: bool) -> float:
        return by_digest(architecture) if re_estimated else -by_digest(architecture)

    study = studied(networks=16, scored=Scored(score), trainer=Trainer(lambda a: 0.1 + by_digest(a) ** 3))
    by_name = {predictor.name: predictor for predictor in study.predictors}
    assert list(by_name) == ["supernet", "supernet, not re-estimated", "untrained supernet", MACS, PARAMETERS]
    assert by_name["supernet"].correlations["kendall"].value == pytest.approx(1)
    assert by_name["supernet"].verdict == "positive"
    assert by_name["supernet, not re-estimated"].correlations["spearman"].value == pytest.approx(-1)
    assert by_name["supernet, not re-estimated"].verdict == "negative"
    assert by_name[MACS].verdict == "undecided"
    assert by_name["supernet"].over_macs_verdict == "positive"
    assert (by_name[MACS].over_macs, by_name[MACS].over_macs_verdict) == (None, None)


def test_where_size_is_all_that_counts_no_supernet_beats_it(studied) -> None:
    study = studied(networks=16, scored=Scored(lambda architecture, _: by_digest(architecture)))
    by_name = {predictor.name: predictor for predictor in study.predictors}
    assert by_name[MACS].correlations["kendall"].value == pytest.approx(1)
    assert by_name["supernet"].over_macs_verdict == "negative"


def test_correlations_are_of_the_figures_that_are_shown(studied) -> None:
    study = studied(scored=Scored(lambda architecture, _: by_digest(architecture)), trainer=Trainer(lambda a: by_digest(a) + by_macs(a)))
    truth = [network.miou for network in study.networks]
    for predictor in study.predictors:
        x = [network.predictions[predictor.name] for network in study.networks]
        expected = {"pearson": pearson(x, truth), "spearman": spearman(x, truth), "kendall": kendall(x, truth)}
        assert {name: interval.value for name, interval in predictor.correlations.items()} == expected
        for interval in predictor.correlations.values():
            assert interval.low <= interval.value <= interval.high


def test_every_correlation_is_told_with_n_and_an_interval_as_a_bootstrap_of_its_rows_gives_it(studied, tmp_path: Path) -> None:
    """From what was written: Spearman's and Pearson's of the proxy by the standard library, on rows drawn by another generator."""
    scored, trainer = Scored(lambda a, re_estimated: by_digest(a) if re_estimated else 0.5), Trainer(lambda a: by_digest(a) + 0.3 * by_macs(a))
    study = studied(networks=16, scored=scored, trainer=trainer)
    write_study(study, tmp_path)
    content, rng = json.loads((tmp_path / "correlate.json").read_text()), Random(2)
    rows = [(network["predictions"]["supernet"], network["miou"]) for network in content["networks"]]
    (told,) = (found["correlations"] for found in content["predictors"] if found["name"] == "supernet")
    assert len({x for x, _ in rows}) == len(rows) == 16
    for name in ("pearson", "spearman"):
        values: list[float] = []
        for _ in range(2000):
            columns = [list(column) for column in zip(*rng.choices(rows, k=16), strict=True)]
            if name == "spearman":  # twice the mean rank, less one: who is smaller and who is not larger
                columns = [[float(sum((v < w) + (v <= w) for v in column)) for w in column] for column in columns]
            values.append(stdlib_correlation(*columns))
        values.sort()
        assert (told[name]["low"], told[name]["high"]) == pytest.approx((values[50], values[1950]), abs=0.06)
    lines = study_lines(study)
    assert lines[0].startswith("16 networks of cas-tiny")
    assert "bootstrap intervals, 95 %" in lines[2]
    (line,) = (line for line in lines if line.startswith("supernet "))
    for name in ("pearson", "spearman", "kendall"):
        assert "{value:+.2f} [{low:+.2f}, {high:+.2f}]".format(**told[name]) in line


@pytest.mark.parametrize(("scores", "trainings"), [(0, 999), (15, 999), (999, 4)])
def test_a_killed_study_repeats_nothing(studied, tmp_path: Path, scores: int, trainings: int) -> None:
    def score(architecture: Architecture, re_estimated: bool) -> float:
        return by_digest(architecture) + re_estimated

    whole = studied(folder=tmp_path / "whole", scored=Scored(score))
    first, trainer = Scored(score, scores), Trainer(by_macs, trainings)
    with pytest.raises(KeyboardInterrupt):
        studied(folder=tmp_path / "killed", scored=first, trainer=trainer)
    with (tmp_path / "killed" / "scores.jsonl").open("a") as stream:
        stream.write('{"genotype":"abc","mi')  # a line that was being written
    again, last = Scored(score), Trainer(by_macs)
    study = studied(folder=tmp_path / "killed", scored=again, trainer=last)
    assert (study.networks, study.predictors) == (whole.networks, whole.predictors)
    assert first.calls + again.calls == 18
    assert sorted(trainer.trained + last.trained) == sorted(n.digest for n in whole.networks)


def test_a_score_of_other_conditions_is_not_taken_over(studied, run: SearchedRun) -> None:
    counted = Scored(lambda architecture, _: by_digest(architecture))
    studied(networks=4, scored=counted)
    assert counted.calls == 12
    studied(networks=4, scored=counted, scoring=replace(SCORING, batches=3))
    studied(networks=4, scored=counted, scoring=replace(SCORING, images=None))
    assert counted.calls == 36
    studied(networks=4, scored=counted)
    assert counted.calls == 36


def test_several_searches_are_told_apart(studied, run: SearchedRun, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(run.checkpoint.read_bytes() + b"")
    study = studied(networks=4, scored=Scored(lambda a, _: by_digest(a)), runs=[run, SearchedRun("other", copy, run.probabilities)])
    names = [predictor.name for predictor in study.predictors]
    assert names[:4] == ["supernet 1 (mine)", "supernet 1 (mine), not re-estimated", "supernet 2 (other)", "supernet 2 (other), not re-estimated"]


def test_trainings_of_a_comparison_are_taken_over(studied, schedule: Schedule, tmp_path: Path, run: SearchedRun) -> None:
    known = draw(SPACE, run.probabilities, 6, 0)[:2]
    Trainings(tmp_path, schedule, Trainer(by_macs)).outcomes({n.architecture.digest: n.architecture for n in known}, 0, silent)
    trainer = Trainer(by_macs)
    studied(trainer=trainer, scored=Scored(lambda a, _: by_digest(a)))
    assert len(trainer.trained) == 4


def comparison_of(*genotypes: dict[str, int], path: Path) -> Path:
    """A compare.json of these networks of the space, and of one that is of no space."""
    known = [{"source": "random", "genotype": g, "digest": SPACE.decode(g).architecture.digest} for g in genotypes]
    path.write_text(json.dumps({"networks": [*known, {"source": "given", "genotype": None, "digest": "0" * 12}]}))
    return path


def test_networks_of_a_comparison_are_studied_first(studied, run: SearchedRun, tmp_path: Path) -> None:
    mine = SPACE.random(Random(7))
    drawn = draw(SPACE, run.probabilities, 6, 0)
    known = compared_networks(SPACE, comparison_of(mine, mine, drawn[0].genotype, path=tmp_path / "compare.json"))
    assert [n.genotype for n in known] == [mine, drawn[0].genotype]
    study = studied(compared=known, scored=Scored(lambda a, _: by_digest(a)))
    assert [n.drawn for n in study.networks] == [COMPARED] * 2 + [FROM_SEARCH] * 2 + [UNIFORM] * 2
    assert [n.genotype for n in study.networks[:2]] == [n.genotype for n in known]
    assert len({n.digest for n in study.networks}) == 6
    assert study_lines(study)[0] == "6 networks of cas-tiny: 2 drawn by the search, 2 drawn uniformly, 2 of a comparison"
    assert draw(SPACE, run.probabilities, 1, 0, known) == known  # all of them, though fewer were asked for


def test_a_comparison_of_other_networks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no network of 'cas-tiny'.*run `segnas compare`"):
        compared_networks(SPACE, comparison_of(path=tmp_path / "none.json"))
    path = comparison_of(SPACE.random(Random(7)), path=tmp_path / "edited.json")
    path.write_text(path.read_text().replace('"digest": "', '"digest": "f', 1))
    with pytest.raises(InputError, match=r"edited.json: networks\[0\] is 'f.*its genotype is network"):
        compared_networks(SPACE, path)
    with pytest.raises(InputError, match="does not exist"):
        compared_networks(SPACE, tmp_path / "absent.json")


def test_what_is_written_is_what_was_found(studied, tmp_path: Path) -> None:
    study = studied(scored=Scored(lambda a, _: 0.5), trainer=Trainer(by_digest))
    write_study(study, tmp_path)
    content = json.loads((tmp_path / "correlate.json").read_text())
    assert content["schema"] == "segnas.correlation/1"
    assert [n["miou"] for n in content["networks"]] == [n.miou for n in study.networks]
    assert content["predictors"][0]["correlations"]["kendall"] == {"value": None, "low": None, "high": None}
    assert content["scoring"] == {
        "learned": "synthetic-streets train, 4 samples", "judged": "synthetic-streets val, 3 samples", "size": "64x128",
        "batches": 2, "batch": 2, "images": 2, "seed": 0,
    }  # fmt: skip
    assert (tmp_path / "correlate.png").read_bytes().startswith(b"\x89PNG")
    lines = study_lines(study)
    assert lines[0] == "6 networks of cas-tiny: 3 drawn by the search, 3 drawn uniformly, 0 of a comparison"
    assert any(line.startswith("supernet ") and "undefined" in line and "undecided" in line for line in lines)
    assert any(line.startswith(MACS) and line.endswith("-") for line in lines)


def test_too_few_networks_and_no_search_are_refused(studied) -> None:
    for given in ({"networks": 3}, {"runs": []}):
        with pytest.raises(InputError, match="at least 4 networks"):
            studied(**given)


def test_a_run_of_another_space_or_without_checkpoint_is_refused(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="is a search of 'cas-tiny'; 'cas' is asked for"):
        searched_run(named_space("cas", 19), run_folder)
    with pytest.raises(IncompatibleError, match="another 'cas-tiny' than the one with 11 classes"):
        searched_run(named_space("cas-tiny", 11), run_folder)
    (tmp_path / "search.json").write_bytes((run_folder / "search.json").read_bytes())
    with pytest.raises(InputError, match=r"search\.checkpoint\.safetensors does not exist"):
        searched_run(SPACE, tmp_path)


def test_a_damaged_score_is_named(studied, tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text('{"genotype":"a"}\n')
    with pytest.raises(InputError, match=r"scores\.jsonl is damaged in line 1"):
        studied()

"""Comparisons with a made-up table, a clock that is a function of the network, and a trainer whose truth is known."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from segnas.arch import Architecture
from segnas.campaign import (
    GIVEN,
    RANDOM,
    SEARCHED,
    Campaign,
    Candidate,
    RandomDraws,
    campaign_table,
    given_candidate,
    merged,
    searched_candidate,
)
from segnas.comparing import Comparison, compare, comparison_lines, write_comparison
from segnas.cost import network_cost
from segnas.data import Dataset, open_dataset
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.files import write_noun, write_text
from segnas.latency import Calibration, Entry, LatencyTable
from segnas.latency_tables.compose import reference_ms
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.measuring import Services
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.references import fast_scnn
from segnas.search.space import Space
from segnas.search.spaces import space as named_space
from segnas.search.train import TrainSettings
from segnas.streets import write_streets
from segnas.timing import Measured
from segnas.trainings import Outcome, Schedule, Trainings

SPACE, TARGET = named_space("cas-tiny", 19), cpu_target(64, 128)
WITHIN = 0.03


def digits(architecture: Architecture, seed: int = 0) -> float:
    """A number from 0 to 1 that is as good as random, by the digest."""
    return Random(f"{architecture.digest} {seed}").random()


def silent(done: int, total: int, text: str) -> None:
    pass


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    priced = [(o, 0.05 + 2 * int(o.digest, 16) / 16**12) for o in SPACE.all_operations(TARGET) if not o.is_free]
    entries = tuple(Entry(o, "block", ms, 0.0, 1, "made up", "") for o, ms in priced)
    return LatencyTable(SPACE.name, TARGET, entries, 0.3, Calibration(0.9))


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 2, "val": 2}, height=64, width=128, seed=0)
    data: dict[str, Dataset] = {split: open_dataset("cityscapes", root, split) for split in ("train", "val")}
    return Schedule(TrainSettings(steps=3, batch=2), data["train"], data["val"], TARGET)


class Clock:
    """1.1 times the table's word, up to 2 % more or less by the digest (a given network: 5 ms); it counts what it measured, and may be killed."""

    def __init__(self, most: int = 999) -> None:
        self.measured, self.most = list[str](), most

    def measure(self, architecture: Architecture, table: LatencyTable) -> Measured:
        if len(self.measured) >= self.most:
            raise KeyboardInterrupt
        self.measured.append(architecture.digest)
        try:
            return Measured(1.1 * table.estimate(architecture).total_ms * (0.98 + 0.04 * digits(architecture)), 0.004)
        except IncompatibleError:
            return Measured(5.0, 0.004)

    def services(self) -> Services:
        def never(*_: object):
            raise AssertionError("not to be called here")

        return Services(never, self.measure, never)


class Trainer:
    """mIoU 0.4, 0.05 more for the networks that are `good`, and up to 0.01 by digest and seed; it counts, and is killed at training number `last`."""

    def __init__(self, good: tuple[str, ...] = (), last: int = 999) -> None:
        self.good, self.last, self.trained = good, last, list[str]()

    def __call__(self, schedule: Schedule, architecture: Architecture, *, seed: int, folder: Path, progress) -> Outcome:
        if len(self.trained) >= self.last:
            raise KeyboardInterrupt
        self.trained.append(architecture.digest)
        miou = 0.4 + 0.05 * (architecture.digest in self.good) + 0.01 * digits(architecture, seed + 1)
        return Outcome(architecture.digest, seed, miou, 1.0, "0" * 64)


@pytest.fixture(scope="module")
def searched(table: LatencyTable) -> list[Candidate]:
    """Three networks near the middle of the space's latencies."""
    drawn = [SPACE.decode(SPACE.random(Random(seed))).architecture for seed in range(60)]
    ordered = sorted(drawn, key=lambda a: table.estimate(a).total_ms)
    return [Candidate(SEARCHED, f"run{i}", a) for i, a in enumerate(ordered[29:32])]


@pytest.fixture
def compared(table: LatencyTable, schedule: Schedule, searched: list[Candidate], tmp_path: Path) -> Callable[..., Comparison]:
    """A comparison of the searched networks with six random ones and Fast-SCNN, with what is given in place of the usual."""

    def run(*, clock: Clock | None = None, trainer: Trainer | None = None, folder: Path = tmp_path, random: int = 6, **given) -> Comparison:
        usual = {"candidates": [*searched, given_candidate("fast-scnn", 19)], "table": table, "within": WITHIN, "seed": 0, "progress": silent}
        arguments = {**usual, **given}
        trainings = Trainings(folder, schedule, trainer or Trainer())
        draws = RandomDraws(SPACE, random) if random else None
        services = (clock or Clock()).services()
        return compare(arguments.pop("candidates"), draws, arguments.pop("table"), trainings, services=services, **arguments)

    return run


def of(found: Comparison, source: str):
    return [network for network in found.networks if network.source == source]


def test_every_figure_is_of_its_network(compared, table: LatencyTable, searched: list[Candidate], schedule: Schedule) -> None:
    clock, trainer = Clock(), Trainer()
    found = compared(clock=clock, trainer=trainer)
    by_digest = {c.digest: c.architecture for c in searched} | {fast_scnn(19).digest: fast_scnn(19)}
    assert [len(of(found, source)) for source in (SEARCHED, RANDOM, GIVEN)] == [3, 6, 1]
    assert [n.name for n in of(found, SEARCHED)] == ["run0", "run1", "run2"]
    assert len({n.digest for n in found.networks}) == 10
    for network in (*of(found, SEARCHED), *of(found, GIVEN)):
        architecture = by_digest[network.digest]
        cost = network_cost(architecture, 64, 128)
        assert (network.macs, network.parameters) == (cost.macs, cost.parameters)
        assert network.measured_ms == Clock().measure(architecture, table).median_ms
        assert network.miou == pytest.approx(0.4 + 0.01 * digits(architecture, 1))
        assert network.predicted_ms == (None if network.source == GIVEN else table.estimate(architecture).total_ms)
    assert sorted(trainer.trained) == sorted(n.digest for n in found.networks)
    assert (found.schedule, found.target, found.within, found.random_asked) == (schedule.identity, TARGET, WITHIN, 6)


def test_random_networks_have_the_latency_of_a_searched_one_by_table_and_clock(compared, table: LatencyTable) -> None:
    clock = Clock()
    found = compared(clock=clock)
    anchors = of(found, SEARCHED)
    for number, network in enumerate(of(found, RANDOM)):
        anchor = anchors[number % 3]
        assert abs(network.measured_ms / anchor.measured_ms - 1) <= WITHIN
        assert abs(1.1 * network.predicted_ms / anchor.measured_ms - 1) <= WITHIN + 0.02  # the clock's factor, known to 2 % from any network
    assert len(clock.measured) == len(set(clock.measured)) > 10  # some that the table took for equal were not


def test_a_comparison_follows_from_its_seed(compared, tmp_path: Path) -> None:
    one, same = compared(folder=tmp_path / "a"), compared(folder=tmp_path / "b")
    other = compared(folder=tmp_path / "c", seed=1)
    assert one.networks == same.networks
    assert one.differences == same.differences
    assert {n.digest for n in of(one, RANDOM)} != {n.digest for n in of(other, RANDOM)}


def test_a_searched_network_that_is_better_is_found_so(compared, searched: list[Candidate]) -> None:
    found = compared(trainer=Trainer(good=tuple(c.digest for c in searched)))
    random, given = found.differences
    assert (random.first, random.second, random.verdict) == (SEARCHED, RANDOM, "searched is better")
    assert random.paired.pairs == 3
    means = {s.name: s.mean_miou for s in found.sources}
    assert random.paired.mean.value == pytest.approx(means[SEARCHED] - means[RANDOM], abs=0.005)
    assert random.paired.mean.low > 0
    assert (given.verdict, given.paired.mean.value) == ("undecided", None)  # 5 ms is nobody's latency here
    assert any(line.endswith("searched is better") for line in comparison_lines(found))


def test_a_searched_network_that_is_worse_is_found_so(compared, tmp_path: Path) -> None:
    drawn = of(compared(folder=tmp_path / "first"), RANDOM)
    found = compared(folder=tmp_path / "second", trainer=Trainer(good=tuple(n.digest for n in drawn)))
    assert found.differences[0].verdict == "random is better"


def test_equal_sources_are_undecided(compared) -> None:
    found = compared()
    assert found.differences[0].verdict == "undecided"
    mean = found.differences[0].paired.mean
    assert mean.low < 0 < mean.high
    assert any("points of mIoU, 95 %" in line and line.endswith("undecided") for line in comparison_lines(found))


def test_one_searched_network_is_undecided_however_good(compared, searched: list[Candidate]) -> None:
    found = compared(candidates=searched[:1], trainer=Trainer(good=(searched[0].digest,)), random=4)
    assert found.differences[0].verdict == "undecided"
    assert found.differences[0].paired.mean.value == pytest.approx(0.05, abs=0.01)
    assert found.sources[0].sd_miou is None
    text = "\n".join(comparison_lines(found))
    assert "no interval below 2 networks a side" in text
    assert "searched: 1 networks, mean mIoU 45" in text
    assert "spread unknown" in text


def test_the_spread_is_of_the_sources_networks(compared) -> None:
    found = compared()
    for source in found.sources:
        values = [n.miou for n in of(found, source.name)]
        mean = sum(values) / len(values)
        assert source.mean_miou == pytest.approx(mean)
        if len(values) > 1:
            assert source.sd_miou == pytest.approx((sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5)


@pytest.mark.parametrize(("measurements", "trainings"), [(1, 999), (5, 999), (999, 0), (999, 3), (999, 9)])
def test_a_killed_comparison_repeats_nothing(compared, tmp_path: Path, measurements: int, trainings: int) -> None:
    whole = compared(folder=tmp_path / "whole")
    clock, trainer = Clock(measurements), Trainer(last=trainings)
    with pytest.raises(KeyboardInterrupt):
        compared(folder=tmp_path / "killed", clock=clock, trainer=trainer)
    again, last = Clock(), Trainer()
    found = compared(folder=tmp_path / "killed", clock=again, trainer=last)
    assert (found.networks, found.differences) == (whole.networks, whole.differences)
    assert not set(clock.measured) & set(again.measured)
    assert not set(trainer.trained) & set(last.trained)
    assert sorted(trainer.trained + last.trained) == sorted(n.digest for n in whole.networks)
    third, idle = Clock(), Trainer()
    compared(folder=tmp_path / "killed", clock=third, trainer=idle)
    assert (third.measured, idle.trained) == ([], [])


def test_more_random_networks_reuse_what_is_there(compared, tmp_path: Path) -> None:
    few = compared(random=3)
    trainer = Trainer()
    more = compared(random=6, trainer=trainer)
    assert {n.digest for n in of(few, RANDOM)} < {n.digest for n in of(more, RANDOM)}
    assert len(trainer.trained) == 3


def test_another_schedule_in_the_folder_is_refused(compared, schedule: Schedule, tmp_path: Path) -> None:
    compared(random=0)
    with pytest.raises(IncompatibleError, match=r"train\.steps: the folder has 3, asked for is 4"):
        Trainings(tmp_path, replace(schedule, settings=TrainSettings(steps=4, batch=2)))


def test_a_window_without_random_networks_is_refused(compared, table: LatencyTable, searched: list[Candidate]) -> None:
    far = replace(table, calibration=Calibration(0.9))
    clock = Clock()
    clock.measure = lambda architecture, table: Measured(100.0 if architecture.digest == searched[0].digest else 1.0, 0.004)  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"no random network of 'cas-tiny' was found within 3 % of the 100\.000 ms .*widen --within"):
        compared(candidates=searched[:1], clock=clock, table=far)


def test_a_table_that_does_not_price_the_space_is_refused(compared, table: LatencyTable) -> None:
    with pytest.raises(IncompatibleError, match="has no entry for"):
        compared(table=replace(table, entries=table.entries[1:]))


def test_networks_of_other_classes_and_nothing_at_all_are_refused(compared) -> None:
    clock = Clock()
    with pytest.raises(IncompatibleError, match="has 11 classes, synthetic-streets has 19"):
        compared(candidates=[given_candidate("fast-scnn", 11)], clock=clock)
    with pytest.raises(InputError, match="nothing was given to compare"):
        compared(candidates=[], random=0, clock=clock)
    assert clock.measured == []


def test_without_prices_random_networks_are_uniform(compared, searched: list[Candidate], table: LatencyTable) -> None:
    found = compared(table=replace(table, entries=()), random=4)
    assert [n.predicted_ms for n in found.networks] == [None] * 8
    assert len(of(found, RANDOM)) == 4
    alone = compared(candidates=[], random=4)
    assert [n.source for n in alone.networks] == [RANDOM] * 4
    assert alone.differences == ()


def test_two_searches_that_end_at_one_network_count_once(searched: list[Candidate]) -> None:
    again = Candidate(SEARCHED, "run9", searched[1].architecture)
    given = Candidate(GIVEN, "mine", searched[1].architecture)
    assert merged([*searched, again, given]) == (searched[0], replace(searched[1], name="run1, run9"), searched[2], given)


def test_what_is_written_is_what_was_found(compared, searched: list[Candidate], tmp_path: Path) -> None:
    found = compared(trainer=Trainer(good=tuple(c.digest for c in searched)))
    write_comparison(found, tmp_path)
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["schema"] == "segnas.comparison/1"
    assert [n["digest"] for n in content["networks"]] == [n.digest for n in found.networks]
    assert content["differences"][0]["verdict"] == "searched is better"
    assert content["differences"][0]["paired"]["mean"]["low"] == found.differences[0].paired.mean.low
    assert content["schedule"]["train"]["steps"] == 3
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    lines = comparison_lines(found)
    rows = [line for line in lines if line.split()[0] in (SEARCHED, RANDOM, GIVEN) and ":" not in line.split()[0] and "less" not in line]
    assert len(rows) == 10
    best = max(found.networks, key=lambda n: n.miou)
    assert best.digest in rows[0]
    assert rows[0].endswith(f"{100 * best.miou:.2f}")


def test_fewer_random_networks_than_asked_for_are_said(compared, searched: list[Candidate], monkeypatch: pytest.MonkeyPatch) -> None:
    genotype = SPACE.random(Random(101))
    monkeypatch.setattr("segnas.campaign.between", lambda *_: iter([(genotype, SPACE.decode(genotype).architecture)]))
    clock = Clock()
    clock.measure = lambda architecture, table: Measured(5.0, 0.004)  # type: ignore[method-assign]
    found = compared(candidates=searched[:1], clock=clock, random=6)
    assert any(line.startswith("random: 1 networks of 6 asked for") for line in comparison_lines(found))


def test_overlapping_windows_give_no_network_twice(compared, searched: list[Candidate], monkeypatch: pytest.MonkeyPatch) -> None:
    few = [(genotype, SPACE.decode(genotype).architecture) for genotype in (SPACE.random(Random(seed)) for seed in (101, 102, 103))]
    monkeypatch.setattr("segnas.campaign.between", lambda *_: iter(few))
    clock = Clock()
    clock.measure = lambda architecture, table: Measured(5.0, 0.004)  # type: ignore[method-assign]
    found = compared(candidates=searched[:2], clock=clock, random=3)
    assert [n.digest for n in of(found, RANDOM)] == [a.digest for _, a in few]
    assert [n.genotype for n in of(found, RANDOM)] == [genotype for genotype, _ in few]


def test_a_network_that_two_searches_found_is_one_of_the_comparison(compared, searched: list[Candidate]) -> None:
    found = compared(candidates=[*searched, replace(searched[0], name="run9")], random=0)
    assert [n.name for n in found.networks] == ["run0, run9", "run1", "run2"]


def test_candidates_come_from_runs_files_and_names(searched: list[Candidate], tmp_path: Path) -> None:
    architecture = searched[0].architecture
    write_noun(tmp_path / "arch.json", architecture)
    write_noun(tmp_path / "mine.json", architecture)
    assert searched_candidate(tmp_path) == Candidate(SEARCHED, tmp_path.name, architecture)
    write_text(tmp_path / "derive.json", '{"genotype": {"a": 1}}')
    assert searched_candidate(tmp_path) == Candidate(SEARCHED, tmp_path.name, architecture, {"a": 1})
    assert searched_candidate(tmp_path / "mine.json") == Candidate(SEARCHED, "mine", architecture)
    assert given_candidate(str(tmp_path / "mine.json"), 19) == Candidate(GIVEN, "mine", architecture)
    assert given_candidate("fast-scnn", 19) == Candidate(GIVEN, "fast-scnn", fast_scnn(19))
    with pytest.raises(UsageError, match=r"known networks: .*fast-scnn"):
        given_candidate("fast_scnn", 19)
    with pytest.raises(InputError, match="does not exist"):
        searched_candidate(tmp_path / "none.json")


class Ticking:
    """A sentinel of 2 ms whose first runs are cold."""

    def __init__(self) -> None:
        self.runs, self.closed = 0, False

    def sample(self, runs: int) -> tuple[float, ...]:
        self.runs += runs
        return (9.0,) * runs if self.runs <= 3 else (2.0,) * runs

    def close(self) -> None:
        self.closed = True


def test_a_campaign_without_a_table_keeps_the_speed_that_it_began_with(tmp_path: Path) -> None:
    sentinel, asked = Ticking(), []

    def prepare(architecture, target):
        asked.append((architecture, target))
        return sentinel

    table = campaign_table(TARGET, tmp_path / "campaign.json", prepare)
    assert asked == [(sentinel_architecture(), sentinel_target(TARGET))]
    assert (reference_ms(table), table.entries, table.target, sentinel.closed) == (2.0, (), TARGET, True)
    assert campaign_table(TARGET, tmp_path / "campaign.json", prepare) == table
    assert len(asked) == 1
    with pytest.raises(IncompatibleError, match=r"campaign\.json was begun on another target \(height: .*choose another --out"):
        campaign_table(replace(TARGET, height=128), tmp_path / "campaign.json", prepare)


def test_a_measurement_of_another_table_is_not_taken_over(table: LatencyTable, searched: list[Candidate], tmp_path: Path) -> None:
    clock = Clock()
    for prices in (table, replace(table, overhead_ms=0.5), table):
        Campaign(prices, tmp_path / "m.jsonl", clock.services(), silent).ms(searched[0].architecture)
    assert len(clock.measured) == 2


def test_a_space_of_another_table_names_the_command(table: LatencyTable, schedule: Schedule, tmp_path: Path, searched: list[Candidate]) -> None:
    other: Space = named_space("cas-fast", 19)
    campaign = Campaign(table, tmp_path / "m.jsonl", Clock().services(), silent)
    with pytest.raises(IncompatibleError, match="segnas profile cas-fast"):
        list(campaign.random(RandomDraws(other, 1), searched, within=WITHIN, seed=0))

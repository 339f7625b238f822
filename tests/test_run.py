"""The whole run, small: on synthetic streets, with a table of made-up prices and a clock that is a function of the network."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import segnas.run
import segnas.run_steps
from segnas import benching, evaluating
from segnas.arch import Architecture
from segnas.benching import bench_engine
from segnas.benchmark import benchmark_of
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.export.manifest import read_engine
from segnas.files import read_json, read_noun, sha256_of
from segnas.latency import Calibration, Entry, LatencyTable
from segnas.latency_tables.store import load_table, save_table
from segnas.measuring import Services
from segnas.network import weights_digest
from segnas.page import text_summary
from segnas.recipe import Recipe, recipe_from_toml
from segnas.report import Report
from segnas.run_context import Run, SilentScreen
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import Session, open_session
from segnas.search.budget import bounds
from segnas.search.checkpoint import load_tensors
from segnas.search.spaces import space as named_space
from segnas.search.trace import TRACE_NAME
from segnas.target import Target
from segnas.timing import Measured

RECIPE = """
name = "tiny"
space = "cas-tiny"
budget = "p50"
seed = 3

[data.streets]
height = 64
width = 128
train = 8
val = 4

[target]
height = 64
width = 128
threads = 1

[search]
steps = 4
warmup = 1
batch = 2
crop = [64, 64]

[train]
steps = 4
batch = 2
crop = [64, 128]
warmup = 1
"""
PRODUCTS = (
    *("table.json", "budget.json", "search.json", "derive.json", "arch.json", "weights.json", "weights.safetensors", "model.onnx", "model.onnx.json"),
    *("timing.json", "measured.json", "accuracy.json", "floors.json", "report.html", "report.json"),
)
"""In the order in which they are written."""


class Clock:
    """1.1 times the table's word, and up to 1 % more by the network's digest; it counts what it measured."""

    def __init__(self) -> None:
        self.networks: list[str] = []

    def measure(self, architecture: Architecture, table: LatencyTable) -> Measured:
        self.networks.append(architecture.digest)
        return Measured(1.1 * table.estimate(architecture).total_ms * (1 + 0.01 * int(architecture.digest, 16) / 16**12), 0.004)

    def engine(self, path: Path, architecture: Architecture, table: LatencyTable, budget_ms: float) -> Measured:
        assert budget_ms == json.loads((path.parent / "budget.json").read_text())["budget_ms"]
        return Measured(1.1 * table.estimate(architecture).total_ms, 0.004)

    def services(self) -> Services:
        def prepare(architecture: Architecture, target: Target):
            raise AssertionError("a table is given: no operation is to be measured")

        return Services(prepare, self.measure, self.engine)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_from_toml(RECIPE, "tiny")


@pytest.fixture(scope="module")
def table_file(tmp_path_factory, recipe: Recipe) -> Path:
    space, target = named_space("cas-tiny", 19), cpu_target(64, 128, threads=1)
    priced = [(o, 0.05 + 2 * int(o.digest, 16) / 16**12) for o in space.all_operations(target) if not o.is_free]
    entries = tuple(Entry(o, "block", ms, 0.0, 1, "made up", "") for o, ms in priced)
    path = tmp_path_factory.mktemp("table") / "table.json"
    save_table(path, LatencyTable(space.name, target, entries, 0.3, Calibration(0.9)))
    return path


@pytest.fixture(scope="module", autouse=True)
def short_timing():
    """Less than five seconds of timing: its numbers are not looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segnas.run_steps, "bench_engine", lambda path, *, seconds, progress: bench_engine(path, seconds=0.05, progress=progress))
        yield


def made(recipe: Recipe, folder: Path, table_file: Path, clock: Clock | None = None) -> Run:
    return Run(recipe, folder, SilentScreen(), services=(clock or Clock()).services(), table_file=table_file)


@pytest.fixture(scope="module")
def opened() -> dict[str, list[str]]:
    """The sha256 of each engine that the finished run opened to time it (`benching`) and to score it (`evaluating`), read from what was opened."""
    return {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, recipe: Recipe, table_file: Path, opened: dict[str, list[str]]) -> tuple[Path, Report, Clock]:
    folder, clock = tmp_path_factory.mktemp("runs") / "tiny", Clock()

    def watched(name: str, engine: Path, *given: Any, **named: Any) -> Session:
        opened.setdefault(name, []).append(sha256_of(engine))
        return open_session(engine, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        for module in (benching, evaluating):
            patch.setattr(module, "open_session", partial(watched, module.__name__.rpartition(".")[2]))
        return folder, segnas.run.run(made(recipe, folder, table_file, clock)), clock


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in PRODUCTS}


def stamps(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in PRODUCTS}


def test_several_budgets_share_one_search(tmp_path: Path, recipe: Recipe, table_file: Path) -> None:
    folder, both = tmp_path / "several", replace(recipe, budget="p40,p65")
    reports = segnas.run.run_several(made(both, folder, table_file))
    assert [report.budget.asked for report in reports] == ["p40", "p65"]
    assert reports[0].budget.budget_ms < reports[1].budget.budget_ms
    asked = read_json(folder / "budget.json")
    assert asked["budget_ms"] == pytest.approx((reports[0].budget.budget_ms * reports[1].budget.budget_ms) ** 0.5)
    for report in reports:
        own = folder / report.budget.asked
        assert (own / "search.json").read_bytes() == (folder / "search.json").read_bytes()
        low, high = bounds(0.004)
        within = {digest: ms for digest, _, ms in report.budget.measurements}[report.architecture_digest]
        assert low * report.budget.budget_ms <= within <= high * report.budget.budget_ms
        assert read_noun(own / "report.json", Report) == report
    assert not (folder / "arch.json").exists()
    (folder / "p65" / "derive.json").unlink()
    before = (folder / "p40" / "report.json").stat().st_mtime_ns
    again = segnas.run.run_several(made(both, folder, table_file), resume=True)
    assert (folder / "p40" / "report.json").stat().st_mtime_ns == before
    assert again[1].architecture == reports[1].architecture
    with pytest.raises(UsageError, match="already holds a run"):
        segnas.run.run_several(made(both, folder, table_file))


@pytest.mark.parametrize("other_is_there", [True, False])
def test_an_engine_over_its_budget_is_followed_by_another_where_the_recipe_says_so(
    recipe: Recipe, table_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_is_there: bool
) -> None:
    """The first engine reads 3 % over the budget. Where another network is found it is aimed lower and trained, else the first one stays."""
    folder, clock, said, shipped = tmp_path / "run", Clock(), list[str](), list[str]()

    def slow_at_first(path: Path, architecture: Architecture, table: LatencyTable, budget_ms: float) -> Measured:
        shipped.append(architecture.digest)
        return Measured(1.03 * budget_ms, 0.004) if shipped[0] == architecture.digest else clock.engine(path, architecture, table, budget_ms)

    work = made(replace(recipe, measure=replace(recipe.measure, retrain=1)), folder, table_file)
    monkeypatch.setattr(work.screen, "say", said.append)
    if not other_is_there:
        derive = segnas.run_steps.derive_network

        def once(*given: Any, **named: Any):
            if shipped:
                raise InputError("the fastest took 9 ms")
            return derive(*given, **named)

        monkeypatch.setattr(segnas.run_steps, "derive_network", once)
    report = segnas.run.run(replace(work, services=replace(clock.services(), measure_engine=slow_at_first)))
    asked = read_json(folder / "budget.json")["budget_ms"]
    assert report.architecture_digest == report.engine.architecture == shipped[-1]
    assert len(set(shipped)) == len(shipped) == 1 + other_is_there
    if other_is_there:
        first = read_json(folder / "missed-1" / "derive.json")
        derived = {digest: ms for digest, _, ms in report.budget.measurements}[shipped[1]]
        assert derived <= bounds(0.004)[1] * asked * first["measured_ms"] / (1.03 * asked)
        assert report.budget.missed_ms == (1.03 * asked,)
        assert report.budget.ratio < 1
        assert f"Trained before it and set aside: {1.03 * asked:.2f} ms." in text_summary(report)
    else:
        assert report.budget.missed_ms == ()
        assert report.budget.measured_ms == 1.03 * asked
        assert f"(the fastest took 9 ms): that of {shipped[0]} stays" in said[-1]
    assert any("another network is derived and trained" in line for line in said)
    assert segnas.run.run(work, resume=True) == report


def test_everything_in_the_report_is_of_the_same_network(finished: tuple[Path, Report, Clock], table_file: Path) -> None:
    folder, report, clock = finished
    assert read_noun(folder / "report.json", Report) == report
    assert (folder / "report.html").read_text().lstrip().startswith("<!")
    architecture = read_noun(folder / "arch.json", Architecture)
    assert report.architecture == architecture
    assert report.architecture_digest == report.engine.architecture == architecture.digest
    engine, artefact = read_engine(folder / "model.onnx")
    assert engine == report.engine
    assert sha256_of(artefact) == engine.sha256 == report.engine.sha256
    tensors, state = load_tensors(folder / "weights.safetensors")
    assert weights_digest(tensors) == engine.weights_sha256
    assert state == {"architecture": architecture.digest, "pretraining": "none"}
    assert report.pretraining == "none"
    assert engine.target == report.engine.target == load_table(table_file).target
    assert engine.parity is not None
    assert engine.parity.passed
    assert clock.networks


def test_the_engine_that_was_scored_has_the_sha256_of_the_one_that_was_timed(
    finished: tuple[Path, Report, Clock], opened: dict[str, list[str]]
) -> None:
    shipped = sha256_of(finished[0] / "model.onnx")
    assert opened == {"benching": [shipped], "evaluating": [shipped]}
    assert finished[1].engine.sha256 == shipped
    assert benchmark_of(finished[1]).engine.sha256 == shipped


def test_the_report_says_what_was_asked_and_what_was_measured(finished: tuple[Path, Report, Clock], table_file: Path) -> None:
    folder, report, clock = finished
    budget, table = report.budget, load_table(table_file)
    assert budget.asked == "p50"
    assert [digest for digest, _, _ in budget.measurements] == clock.networks
    within = {digest: ms for digest, _, ms in budget.measurements}[report.architecture_digest]
    low, high = bounds(0.004)
    assert low * budget.budget_ms <= within <= high * budget.budget_ms
    assert budget.measured_ms == 1.1 * table.estimate(report.architecture).total_ms == read_json(folder / "measured.json")["measured_ms"]
    assert budget.predicted_low_ms < budget.predicted_ms < budget.predicted_high_ms
    assert budget.predicted_ms == pytest.approx(budget.measured_ms, rel=0.02)
    assert sum(share.total_ms for share in report.shares) < budget.predicted_ms
    assert {curve.name for curve in report.curves} >= {"search/decoded latency, ms", "train/loss"}
    assert {name for name, _ in report.seconds} == {"streets", "profile", "budget", "search", "derive", "train", "export", "bench"}
    assert len(report.floors) == 2
    assert not [path for path in folder.rglob("*") if path.suffix == ".partial"]


def test_a_second_run_in_the_same_folder_is_refused(finished: tuple[Path, Report, Clock], recipe: Recipe, table_file: Path, tmp_path: Path) -> None:
    folder, before = finished[0], content(finished[0])
    with pytest.raises(UsageError, match="already holds a run; continue it with --resume"):
        segnas.run.run(made(recipe, folder, table_file))
    with pytest.raises(IncompatibleError, match=r"another recipe \(it differs in budget, train\.steps\)"):
        segnas.run.run(made(replace(recipe, budget="p60", train=replace(recipe.train, steps=5)), folder, table_file), resume=True)
    with pytest.raises(IncompatibleError, match=r"it differs in table or weights"):
        segnas.run.run(made(recipe, folder, tmp_path / "other.json"), resume=True)
    assert content(folder) == before
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "thesis.tex").write_text("")
    for resume in (False, True):
        with pytest.raises(UsageError, match="is not empty and holds no run"):
            segnas.run.run(made(recipe, tmp_path / "held", table_file), resume=resume)


def test_bad_input_leaves_no_folder(recipe: Recipe, table_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for work in (
        made(replace(recipe, space="nowhere"), folder, table_file),
        made(replace(recipe, target=replace(recipe.target, runtime="tensorrt")), folder, table_file),
        made(
            replace(recipe, data=replace(recipe.data, root=str(tmp_path / "none"), streets=replace(recipe.data.streets, train=0))), folder, table_file
        ),
        made(replace(recipe, target=replace(recipe.target, width=192)), folder, table_file),
    ):
        with pytest.raises((UsageError, IncompatibleError, segnas.errors.InputError)):
            segnas.run.run(work)
        assert not folder.exists()


def test_a_finished_run_resumed_gives_the_same_report(finished: tuple[Path, Report, Clock], recipe: Recipe, table_file: Path) -> None:
    folder, report, _ = finished
    before, clock = (content(folder), stamps(folder)), Clock()
    assert segnas.run.run(made(recipe, folder, table_file, clock), resume=True) == report
    assert (content(folder), stamps(folder)) == before
    assert clock.networks == []


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_deleted_product_is_made_again_with_what_follows_from_it(
    finished: tuple[Path, Report, Clock], recipe: Recipe, table_file: Path, name: str
) -> None:
    folder, report, _ = finished
    before, stamped, clock = content(folder), stamps(folder), Clock()
    (folder / name).unlink()
    again = segnas.run.run(made(recipe, folder, table_file, clock), resume=True)
    changed = {product for product, stamp in stamps(folder).items() if stamp != stamped[product]}
    same_step = {
        "arch.json": {"derive.json"},
        "weights.safetensors": {"weights.json"},
        "model.onnx.json": {"model.onnx"},
        "report.json": {"report.html"},
    }
    assert changed == {*PRODUCTS[PRODUCTS.index(name) :], *same_step.get(name, ())}
    after = content(folder)
    for product in PRODUCTS[: PRODUCTS.index("timing.json")]:
        assert after[product] == before[product], product  # to the byte: all of it follows from the recipe and the clock
    assert again.budget == report.budget
    assert again.engine == report.engine
    assert again.accuracy == report.accuracy
    assert clock.networks == ([] if name != "table.json" else finished[2].networks)


def test_the_trace_of_a_search_goes_with_what_it_fits_to(tmp_path: Path) -> None:
    def left_without(product: str) -> bool:
        for name in (*PRODUCTS, TRACE_NAME):
            (tmp_path / name).touch()
        (tmp_path / product).unlink()
        segnas.run._forget(tmp_path)
        return (tmp_path / TRACE_NAME).is_file()

    assert not left_without("table.json")
    assert not left_without("budget.json")
    assert left_without("search.json")  # the search goes on from its checkpoint, and so does its trace
    assert left_without("report.json")


def test_a_partial_file_is_not_trusted_and_goes(finished: tuple[Path, Report, Clock], recipe: Recipe, table_file: Path) -> None:
    folder = finished[0]
    torn = folder / ".report.json.abc123.partial"
    torn.write_text(json.dumps({"schema": "segnas.report/1"}))
    segnas.run.run(made(recipe, folder, table_file), resume=True)
    assert not torn.exists()


def test_a_run_that_was_killed_before_its_first_file_starts_anew(recipe: Recipe, table_file: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".recipe.json.abc123.partial").write_text("{")

    class Reached(Exception):
        pass

    def stop(*_: object, **__: object):
        raise Reached

    monkeypatch.setattr(segnas.run_steps, "write_streets", stop)
    with pytest.raises(Reached):
        segnas.run.run(made(recipe, tmp_path / "run", table_file), resume=True)
    assert (tmp_path / "run" / "recipe.json").is_file()

"""The systems of the literature, each from its recipe to an engine and a report: small, with made-up prices and a clock that follows them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import segnas.run
import segnas.run_steps
from segnas import measuring
from segnas.arch import Architecture
from segnas.benching import bench_engine
from segnas.files import read_json
from segnas.latency import Calibration, Entry, LatencyTable
from segnas.latency_tables.check import check_coverage
from segnas.latency_tables.store import save_table
from segnas.measuring import Services, make_table
from segnas.recipe import Recipe, read_recipe
from segnas.run_context import Run, SilentScreen
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.budget import read_budget
from segnas.search.settings import METHODS
from segnas.search.spaces import space as named_space
from segnas.search.systems import SYSTEMS, System
from segnas.target import Target
from segnas.timing import Measured

QUICK = {
    "CAS": "cas-tiny",
    "GAS": "gas-fast",
    "DCNAS": "dcnas-small",
    "DARTS": "darts-tiny",
    "Auto-DeepLab": "auto-deeplab-small",
    "FasterSeg": "fasterseg-small",
    "SparseMask": "sparsemask-small",
    "DPC": "dpc-small",
    "Fast-NAS": "fast-nas-small",
}
"""The space of each system's quick recipe."""

PACES = {"FasterSeg": ("multiplier_rate",)}
"""Settings of full recipes that are a matter of how many steps there are."""

QUICKEST = ("DARTS", "DPC")
"""One of each family of methods; the runs of the others are slow tests: what they are made of is run in other default tests."""


class Constant:
    """A network that takes 1 ms."""

    def sample(self, runs: int) -> tuple[float, ...]:
        return (1.0,) * runs

    def close(self) -> None: ...


def never(architecture: Architecture, target: Target) -> Constant:
    raise AssertionError("a table is given: no operation is to be measured")


def told(architecture: Architecture, table: LatencyTable) -> Measured:
    return Measured(1.02 * table.estimate(architecture).total_ms, 0.004)


def shrunk(recipe: Recipe) -> Recipe:
    """The same run in seconds: images of 64x128, a few steps."""
    streets = replace(recipe.data.streets, height=64, width=128, train=8, val=4)
    warmup = 4 * recipe.search.warmup // recipe.search.steps
    sampled = replace(recipe.search.sampled, trials=3, crops=4, backbone_steps=2, rerank=min(2, recipe.search.sampled.rerank), rerank_steps=2)
    staged = replace(recipe.search.staged, epochs=1, steps=2, batch=2, crop=(64, 64), images=2)
    return replace(
        recipe,
        data=replace(recipe.data, streets=streets),
        target=replace(recipe.target, height=64, width=128),
        search=replace(recipe.search, steps=4, warmup=warmup, batch=2, crop=(64, 64), sampled=sampled, staged=staged),
        train=replace(recipe.train, steps=3, warmup=0, batch=2, crop=(64, 128)),
    )


def made_up(recipe: Recipe, path: Path) -> Path:
    space, target = named_space(recipe.space, 19), cpu_target(recipe.target.height, recipe.target.width, threads=recipe.target.threads)
    priced = [(o, 0.05 + 2 * int(o.digest, 16) / 16**12) for o in space.all_operations(target) if not o.is_free]
    entries = tuple(Entry(o, "block", ms, 0.0, 1, "made up", "") for o, ms in priced)
    save_table(path, LatencyTable(space.name, target, entries, 0.3, Calibration(0.9)))
    return path


@pytest.mark.parametrize("system", SYSTEMS, ids=[system.recipe for system in SYSTEMS])
def test_every_system_has_a_page_and_two_recipes_of_its_own_space_and_method(system: System) -> None:
    """The full one keeps every setting of its method, the quick one all but how fast the decisions move."""
    assert (Path(__file__).parent.parent / "docs" / system.page).is_file()
    full, quick = read_recipe(system.recipe), read_recipe(f"{system.recipe}-quick")
    assert (full.space, quick.space) == (system.spaces[0], QUICK[system.name])
    assert quick.space in system.spaces
    method = METHODS[system.method]
    for recipe, free in ((full, PACES.get(system.name, ())), (quick, ("decision_rate",))):
        settings = {key: getattr(recipe.search, key) for key in method.settings}
        assert recipe.search.method == system.method
        assert settings == {**method.settings, **{key: settings[key] for key in free if key in settings}}
        assert method.warmup is None or recipe.search.warmup == int(method.warmup * recipe.search.steps)
        assert read_budget(recipe.budget) == (35.0, True)
    assert quick.data.streets.train
    assert not full.data.streets.train


@pytest.mark.parametrize("system", [pytest.param(s, id=s.recipe, marks=() if s.name in QUICKEST else pytest.mark.slow) for s in SYSTEMS])
def test_a_systems_recipe_ends_in_an_engine_and_a_report(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = shrunk(read_recipe(f"{system.recipe}-quick")), tmp_path / "run"
    monkeypatch.setattr(segnas.run_steps, "bench_engine", lambda path, *, seconds, progress: bench_engine(path, seconds=0.05, progress=progress))
    services = Services(never, told, lambda path, architecture, table, budget: told(architecture, table))
    table = made_up(recipe, tmp_path / "table.json")
    report = segnas.run.run(Run(recipe, folder, SilentScreen(), services=services, table_file=table))
    assert report.space == recipe.space
    assert report.method.startswith(f"{recipe.search.method}: ")
    assert report.budget.measured_ms <= report.budget.budget_ms
    assert (folder / "model.onnx").stat().st_size == report.engine.bytes
    assert (folder / "report.html").is_file()
    searched = read_json(folder / "search.json")
    assert searched["ranking"] == recipe.search.ranking
    made = named_space(recipe.space, 19)
    assert (folder / "teacher.safetensors").is_file() == recipe.search.teacher == ("teacher" in searched)
    genotype = read_json(folder / "derive.json")["genotype"]
    assert made.decode(genotype).architecture.digest == report.architecture_digest


@pytest.mark.parametrize("name", QUICK.values())
def test_every_operation_of_a_system_has_a_probe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`segnas profile NAME --size 256x512`, on a clock that says 1 ms: the table prices the space and nothing else."""
    prepared: list[Architecture] = []

    def prepare(architecture: Architecture, target: Target) -> Constant:
        prepared.append(architecture)
        return Constant()

    monkeypatch.setattr(measuring, "templates", lambda *_, **__: [])
    monkeypatch.setattr(measuring, "graph_hashes", lambda _: lambda operation: operation.digest)
    monkeypatch.setattr("segnas.latency_tables.sentinel.clocks_ms", lambda: (0.0, 0.0))
    made, target = named_space(name, 19), cpu_target(256, 512, threads=1)
    services: Any = Services(prepare, lambda *_: 1.0, lambda *_: 1.0)
    table = make_table(
        made, target, journal=tmp_path / "j", out=tmp_path / "t.json", networks=2, seed=0, services=services, progress=lambda done, total, text: None
    )
    coverage = check_coverage(table, made.all_operations(target))
    assert (coverage.missing, coverage.unreachable) == ((), ())
    assert len(prepared) > len(table.entries)

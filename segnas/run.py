"""`segnas run`: every step in a row, each reading files and writing files in one folder, resumable at every step.

recipe.json -> [streets/] -> table.json -> budget.json -> search.json -> arch.json, derive.json -> [teacher.arch.json, teacher.safetensors]
            -> weights.safetensors, weights.json
            -> model.onnx, model.onnx.json -> timing.json, measured.json, accuracy.json, floors.json -> report.json, report.html
"""

import json
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import geometric_mean
from typing import Any, Protocol

from segnas.arch import Architecture
from segnas.benching import bench_engine, examples
from segnas.cost import network_cost
from segnas.data import Dataset, layout_of, open_dataset
from segnas.errors import IncompatibleError, UsageError
from segnas.evaluating import evaluate_engine
from segnas.export.manifest import versions
from segnas.exporting import export_engine
from segnas.files import plain, read_json, read_noun, unplain, write_noun, write_text
from segnas.latency import Calibration, LatencyTable
from segnas.latency_tables.store import load_table, save_table
from segnas.measuring import SERVICES, Progress, Services, make_table, require_entries
from segnas.recipe import Recipe, flattened
from segnas.report import Accuracy, Budget, Engine, Floor, Report, Timing
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import open_session
from segnas.sampled_methods import require_sampled, search_by_sampling
from segnas.search.budget import Measurement, budget_ms, budget_texts, read_budget
from segnas.search.checkpoint import CHECKPOINT_NAME
from segnas.search.frozen import BACKBONE_CHECKPOINT, BACKBONE_NAME
from segnas.search.pretrained import require_known
from segnas.search.ranked import Surroundings
from segnas.search.settings import METHODS
from segnas.search.space import Space
from segnas.search.spaces import space as named_space
from segnas.search.trace import TRACE_NAME
from segnas.steps import (
    dataset_floors,
    derive_network,
    load_network,
    read_curves,
    read_notes,
    require_device,
    search_space,
    shares,
    train_network,
    write_report,
)
from segnas.streets import require_street_size, write_streets
from segnas.target import Target
from segnas.teaching import TEACHING, WEIGHTS, require_teacher, teach, teacher_of

_PRODUCTS = (
    *("table.json", "budget.json", "search.json", "derive.json", "arch.json", "weights.json", "weights.safetensors", "model.onnx", "model.onnx.json"),
    *("timing.json", "measured.json", "accuracy.json", "floors.json", "report.html", "report.json"),
)
"""What the steps write, in the order in which they write it."""

_UNFINISHED = {
    "measurements.jsonl": "table.json",
    CHECKPOINT_NAME: "budget.json",
    TRACE_NAME: "budget.json",
    **dict.fromkeys(("study.db", BACKBONE_NAME, BACKBONE_CHECKPOINT), "budget.json"),
    "weights.checkpoint.safetensors": "arch.json",
    **dict.fromkeys(TEACHING, "arch.json"),
}
"""Files that a step continues from, and the product that they fit to."""


class Screen(Protocol):
    """What the user sees while a run is under way."""

    def step(self, title: str) -> AbstractContextManager[Progress]:
        """A step with a progress bar; the callable takes done, total and a short text."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


class SilentScreen:
    """A screen for tests and for `--json`."""

    @contextmanager
    def step(self, title: str) -> Generator[Progress]:
        """Nothing is shown."""
        yield lambda done, total, text="": None

    def say(self, text: str) -> None:
        """Nothing is shown."""


@dataclass(frozen=True)
class Run:
    """A run's recipe, folder and surroundings; every product is a file whose presence says that its step is done."""

    recipe: Recipe
    folder: Path
    screen: Screen
    services: Services = SERVICES
    table_file: Path | None = None
    allow: tuple[str, ...] = ()
    """Fields of the target in which the given table may differ."""

    pretrained: Path | None = None
    device: str = "cpu"
    streets_folder: Path | None = None
    """Where the synthetic streets lie, if not in the run's own folder."""

    def dataset(self, split: str) -> Dataset:
        """A split of the recipe's dataset."""
        data = self.recipe.data
        root = Path(data.root) if data.root else self.streets_folder or self.folder / "streets"
        return open_dataset(data.name, root, split)

    def target(self) -> Target:
        """What is deployed on."""
        wanted = self.recipe.target
        if wanted.runtime != "onnxruntime":
            raise UsageError(f"target runtime {wanted.runtime!r} was given; this version deploys on: onnxruntime (CPU)")
        return cpu_target(wanted.height, wanted.width, threads=wanted.threads)

    def space(self) -> Space:
        """The recipe's space for the dataset's classes."""
        return named_space(self.recipe.space, len(layout_of(self.recipe.data.name).labels.classes))

    def given_table(self) -> LatencyTable | None:
        """The table that is to be used instead of profiling, if there is one, checked against target and space."""
        if self.table_file is None:
            return None
        table = load_table(self.table_file).for_target(self.target(), self.allow)
        require_entries(self.space(), table)
        return table


def run(work: Run, *, resume: bool = False) -> Report:
    """All the steps; UsageError where the folder holds another run, or one that `resume` was not asked for."""
    _claim(work, resume)
    for step in (_streets, _profile, _budget, _search, _derive, _train, _export, _bench):
        _timed(work, step)
    return _report(work)


def run_several(work: Run, *, resume: bool = False) -> tuple[Report, ...]:
    """One profile and one search for several budgets, written with commas; each is then derived, trained and measured in a folder of its own.

    The search is steered by the geometric mean of the budgets. UsageError as for `run`.
    """
    texts = budget_texts(work.recipe.budget)
    if len(texts) == 1:
        return (run(work, resume=resume),)
    _claim(work, resume)
    for step in (_streets, _profile, _budget, _search):
        _timed(work, step)
    reports: list[Report] = []
    for text in texts:
        folder = work.folder / text
        part = replace(work, recipe=replace(work.recipe, budget=text), folder=folder, streets_folder=work.streets_folder or work.folder / "streets")
        _claim(part, (folder / "recipe.json").is_file())
        for name in ("table.json", "search.json", TRACE_NAME):
            if not (folder / name).is_file():
                write_text(folder / name, (work.folder / name).read_text(encoding="utf-8"))
        for step in (_budget, _derive, _train, _export, _bench):
            _timed(part, step)
        reports.append(_report(part))
    return tuple(reports)


def _claim(work: Run, resume: bool) -> None:
    """Refuse bad input before anything is spent, then write down whose folder this is."""
    path = work.folder / "recipe.json"
    mine = {"recipe": dict(flattened(work.recipe)), "pretrained": str(work.pretrained or ""), "table": str(work.table_file or "")}
    if path.is_file():
        theirs = read_json(path)
        if not resume:
            raise UsageError(f"{work.folder} already holds a run; continue it with --resume or choose another --out")
        if theirs != mine:
            old, new = theirs.get("recipe", {}), mine["recipe"]
            changed = sorted(k for k in {*old, *new} if old.get(k) != new.get(k)) if isinstance(new, dict) else []
            raise IncompatibleError(
                f"{work.folder} holds a run of another recipe (it differs in {', '.join(changed) or 'table or weights'}); choose another --out"
            )
        _forget(work.folder)
        return
    if work.folder.is_dir() and not all(_is_partial(held) for held in work.folder.iterdir()):
        raise UsageError(f"{work.folder} is not empty and holds no run; choose another --out")
    _check(work)
    write_text(path, json.dumps(mine, indent=1) + "\n")


def _check(work: Run) -> None:
    """Everything about the input that can be told before the first step."""
    data, streets = work.recipe.data, work.recipe.data.streets
    work.space().all_operations(work.target())
    for text in budget_texts(work.recipe.budget):
        read_budget(text)
    require_device(work.device)
    if not streets.train:
        for split in (data.train_split, data.eval_split):
            work.dataset(split)
    elif work.streets_folder is None and (data.name != "cityscapes" or data.root):
        raise UsageError(
            f"recipe {work.recipe.name} draws streets, which lie in its folder and in the layout of cityscapes; it also gives data.name "
            f"{data.name!r} and data.root {data.root!r}: remove [data.streets] or those"
        )
    elif not streets.val:
        raise UsageError(f"recipe {work.recipe.name} draws {streets.train} streets to train on and none to evaluate on: give data.streets.val")
    else:
        require_street_size(streets.height, streets.width)
    if work.pretrained is not None:
        require_known(work.pretrained)
    if METHODS[work.recipe.search.method].family == "sampled":
        require_sampled(work.recipe.search, work.recipe.budget, has_weights=work.pretrained is not None)
    work.given_table()
    require_teacher(work.recipe, work.space().classes)


def _forget(folder: Path) -> None:
    """Remove what follows from a product that is missing, which need not fit to the one made in its place, and what a killed process left half
    written.
    """
    first = next((index for index, name in enumerate(_PRODUCTS) if not (folder / name).is_file()), len(_PRODUCTS))
    missing = _PRODUCTS[first:]
    for name in (*missing, *(name for name, source in _UNFINISHED.items() if source in missing)):
        (folder / name).unlink(missing_ok=True)
    for path in [path for path in folder.rglob(".*") if _is_partial(path)]:
        path.unlink(missing_ok=True)


def _is_partial(path: Path) -> bool:
    """Whether this is a file that `atomic_path` had not finished."""
    return path.name.startswith(".") and path.suffix == ".partial"


def _timed(work: Run, step: Callable[[Run], None]) -> None:
    """Run a step and add the seconds it took to those of earlier attempts."""
    begun = time.monotonic()
    try:
        step(work)
    finally:
        path, name = work.folder / "seconds.json", step.__name__.removeprefix("_")
        seconds: dict[str, Any] = read_json(path) if path.is_file() else {}
        seconds[name] = round(float(seconds.get(name, 0.0)) + time.monotonic() - begun, 2)
        write_text(path, json.dumps(seconds, indent=1) + "\n")


def _streets(work: Run) -> None:
    wanted = work.recipe.data.streets
    if not wanted.train:
        return
    with work.screen.step("making synthetic streets") as progress:
        counts = {work.recipe.data.train_split: wanted.train, work.recipe.data.eval_split: wanted.val}
        write_streets(
            work.folder / "streets",
            counts=counts,
            height=wanted.height,
            width=wanted.width,
            seed=wanted.seed,
            variety=wanted.variety,
            progress=lambda done, total: progress(done, total, ""),
        )


def _profile(work: Run) -> None:
    out, space, target = work.folder / "table.json", work.space(), work.target()
    if out.is_file():
        return
    table = work.given_table()
    if table is not None:
        if work.services.require_live:
            with work.screen.step("measuring some entries of the given table again") as progress:
                work.services.require_live(table, progress)
        save_table(out, table)
        return
    with work.screen.step(f"measuring the operations of {space.name} on {target.runtime}") as progress:
        settings, journal = work.recipe.profile, work.folder / "table.jsonl"
        make_table(
            space, target, journal=journal, out=out, networks=settings.networks, seed=work.recipe.seed, services=work.services, progress=progress
        )


def _table(work: Run) -> LatencyTable:
    return load_table(work.folder / "table.json")


def _budget(work: Run) -> None:
    path, table = work.folder / "budget.json", _table(work)
    if not path.is_file():
        values = [budget_ms(text, work.space(), table, work.recipe.seed) for text in budget_texts(work.recipe.budget)]
        value = geometric_mean(values)
        write_text(path, json.dumps({"asked": work.recipe.budget, "budget_ms": value}, indent=1) + "\n")
    work.screen.say(f"budget {work.recipe.budget}: {read_json(path)['budget_ms']:.3f} ms on {table.target}")


def _search(work: Run) -> None:
    out = work.folder / "search.json"
    if out.is_file():
        return
    recipe, budget = work.recipe, float(read_json(work.folder / "budget.json")["budget_ms"])
    dataset = work.dataset(recipe.data.train_split)
    with work.screen.step(f"searching {recipe.space}") as progress:
        if METHODS[recipe.search.method].family == "sampled":
            surroundings = Surroundings(work.folder, work.pretrained, work.device, recipe.seed, progress)
            search_by_sampling(work.space(), _table(work), dataset, recipe.search, recipe.train, budget=budget, out=out, around=surroundings)
        else:
            search_space(
                work.space(),
                _table(work),
                dataset,
                recipe.search,
                budget=budget,
                out=out,
                device=work.device,
                seed=recipe.seed,
                progress=progress,
                pretrained=work.pretrained,
            )
    for note in read_notes(out):
        work.screen.say(note)


def _derive(work: Run) -> None:
    out, budget = work.folder / "arch.json", float(read_json(work.folder / "budget.json")["budget_ms"])
    if out.is_file():
        return
    with work.screen.step("deriving the network and measuring it") as progress:
        met = derive_network(
            work.space(), work.folder / "search.json", _table(work), budget, out=out, seed=work.recipe.seed, services=work.services, progress=progress
        )
    work.screen.say(f"network {met.derived.architecture.digest}: measured {met.measured_ms:.3f} ms of {budget:.3f} ms")


def _teach(work: Run) -> None:
    if work.recipe.train.distil == "none" or (work.folder / WEIGHTS).is_file():
        return
    with work.screen.step("training the teacher") as progress:
        teach(work.recipe, work.folder, work.dataset(work.recipe.data.train_split), device=work.device, progress=progress)


def _train(work: Run) -> None:
    out = work.folder / "weights.safetensors"
    if out.is_file():
        return
    _teach(work)
    architecture, recipe = read_noun(work.folder / "arch.json", Architecture), work.recipe
    trained_first = work.folder / BACKBONE_NAME
    start = work.pretrained or (trained_first if trained_first.is_file() else None)
    dataset, told = work.dataset(recipe.data.train_split), teacher_of(recipe, work.folder)
    with work.screen.step("training the network") as progress:
        train_network(
            architecture,
            dataset,
            recipe.train,
            out=out,
            pretrained=start,
            device=work.device,
            seed=recipe.seed,
            progress=progress,
            teacher=told,
        )


def _export(work: Run) -> None:
    if (work.folder / "model.onnx.json").is_file():
        return
    architecture = read_noun(work.folder / "arch.json", Architecture)
    with work.screen.step("exporting to ONNX and checking parity"):
        network, _ = load_network(architecture, work.folder / "weights.safetensors")
        export_engine(network, _table(work).target, work.folder, dataset=work.dataset(work.recipe.data.eval_split))


def _bench(work: Run) -> None:
    folder, model = work.folder, work.folder / "model.onnx"
    if not (folder / "timing.json").is_file():
        with work.screen.step("timing the engine") as progress:
            write_noun(folder / "timing.json", bench_engine(model, seconds=5.0, progress=progress)[1])
    if not (folder / "measured.json").is_file():
        with work.screen.step("measuring the engine against its budget"):
            measured = work.services.measure_engine(model, read_noun(folder / "arch.json", Architecture), _table(work))
        write_text(folder / "measured.json", json.dumps({"measured_ms": measured.median_ms, "relative_sd": measured.relative_sd}, indent=1) + "\n")
    evaluation = work.dataset(work.recipe.data.eval_split)
    if not (folder / "accuracy.json").is_file():
        with work.screen.step(f"evaluating the engine on {work.recipe.data.eval_split}") as progress:
            write_noun(folder / "accuracy.json", evaluate_engine(model, evaluation, progress=progress))
    if not (folder / "floors.json").is_file():
        found = dataset_floors(work.dataset(work.recipe.data.train_split), evaluation)
        write_text(folder / "floors.json", json.dumps({"floors": plain(found)}, indent=1) + "\n")


def _report(work: Run) -> Report:
    from segnas.figures import triptych

    folder = work.folder
    if (folder / "report.json").is_file():
        return read_noun(folder / "report.json", Report)
    architecture, table = read_noun(folder / "arch.json", Architecture), _table(work)
    derived, asked = read_json(folder / "derive.json"), read_json(folder / "budget.json")
    table = replace(table, calibration=unplain(Calibration, derived["calibration"], "derive.json: calibration"))
    engine, timing = read_noun(folder / "model.onnx.json", Engine), read_noun(folder / "timing.json", Timing)
    timing = replace(timing, conditions=tuple(sorted((*timing.conditions, *table.mismatch))))
    estimate = table.estimate(architecture)
    measurements = unplain(tuple[Measurement, ...], derived["measurements"], "measurements")
    report = Report(
        name=work.recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        space=work.recipe.space,
        method=f"{work.recipe.search.method}: {METHODS[work.recipe.search.method].summary}",
        architecture=architecture,
        architecture_digest=architecture.digest,
        engine=engine,
        budget=Budget(
            asked["asked"],
            asked["budget_ms"],
            derived["predicted_ms"],
            derived["low_ms"],
            derived["high_ms"],
            float(read_json(folder / "measured.json")["measured_ms"]),
            tuple((m.digest, m.predicted_ms, m.measured_ms) for m in measurements),
        ),
        timing=timing,
        accuracy=read_noun(folder / "accuracy.json", Accuracy),
        floors=unplain(tuple[Floor, ...], read_json(folder / "floors.json")["floors"], "floors"),
        cost=network_cost(architecture, engine.target.height, engine.target.width),
        shares=shares(estimate),
        pretraining=load_network(architecture, folder / "weights.safetensors")[1],
        recipe=flattened(work.recipe),
        seconds=tuple((k, float(v)) for k, v in read_json(folder / "seconds.json").items()),
        versions=versions(),
        curves=(*read_curves(folder / "search.json"), *read_curves(folder / "weights.json")),
    )
    with closing(open_session((folder / "model.onnx").read_bytes(), engine.target)) as session:
        shown = examples(session, work.dataset(work.recipe.data.eval_split), 4)
    write_report(report, folder, [(name, triptych(*images)) for name, *images in shown], estimate)
    return report

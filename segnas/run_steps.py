"""The steps of a run: each reads the files of those before it and writes its own, unless they are there."""

import json
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from statistics import geometric_mean

from segnas.arch import Architecture
from segnas.benching import bench_engine, examples
from segnas.cost import network_cost
from segnas.errors import InputError
from segnas.evaluating import evaluate_engine
from segnas.export.manifest import versions
from segnas.exporting import export_engine
from segnas.files import plain, read_json, read_noun, unplain, write_noun, write_text
from segnas.latency import Calibration, LatencyTable
from segnas.latency_tables.store import load_table, save_table
from segnas.measuring import make_table
from segnas.missed import aimed_ms, keep_last, read_misses
from segnas.recipe import flattened
from segnas.report import Accuracy, Budget, Engine, Floor, Report, Timing
from segnas.run_context import Run
from segnas.runtime.session import open_session
from segnas.sampled_methods import search_by_sampling
from segnas.search.budget import Measurement, budget_ms, budget_texts
from segnas.search.frozen import BACKBONE_NAME
from segnas.search.ranked import Surroundings
from segnas.search.settings import METHODS
from segnas.steps import (
    dataset_floors,
    derive_network,
    load_network,
    read_curves,
    read_notes,
    search_space,
    shares,
    train_network,
    write_report,
)
from segnas.streets import write_streets
from segnas.teaching import WEIGHTS, teach, teacher_of


def streets(work: Run) -> None:
    """Synthetic streets, where the recipe asks for them."""
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


def profile(work: Run) -> None:
    """`table.json`: the given table, or a new one."""
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
            space,
            target,
            journal=journal,
            out=out,
            networks=settings.networks,
            seed=work.recipe.seed,
            services=work.services,
            progress=progress,
            rounds=settings.rounds,
            repeats=settings.repeats,
        )


def _table(work: Run) -> LatencyTable:
    return load_table(work.folder / "table.json")


def budget(work: Run) -> None:
    """`budget.json`: what the recipe asks for, in ms."""
    path, table = work.folder / "budget.json", _table(work)
    if not path.is_file():
        values = [budget_ms(text, work.space(), table, work.recipe.seed) for text in budget_texts(work.recipe.budget)]
        value = geometric_mean(values)
        write_text(path, json.dumps({"asked": work.recipe.budget, "budget_ms": value}, indent=1) + "\n")
    work.screen.say(f"budget {work.recipe.budget}: {read_json(path)['budget_ms']:.3f} ms on {table.target}")


def search(work: Run) -> None:
    """`search.json`, by gradients or by sampling."""
    out = work.folder / "search.json"
    if out.is_file():
        return
    recipe, budget = work.recipe, float(read_json(work.folder / "budget.json")["budget_ms"])
    dataset = work.dataset(recipe.data.train_split)
    with work.screen.step(f"searching {recipe.space}") as progress:
        if METHODS[recipe.search.method].family == "sampled":
            surroundings = Surroundings(work.folder, work.pretrained, work.device, recipe.seed, progress)
            search_by_sampling(
                work.space(),
                _table(work),
                dataset,
                recipe.search,
                recipe.train,
                budget=budget,
                drift=recipe.measure.drift,
                out=out,
                around=surroundings,
            )
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


def derive(work: Run) -> None:
    """`arch.json` and `derive.json`: the network that meets the budget when measured."""
    out, misses = work.folder / "arch.json", read_misses(work.folder)
    if out.is_file():
        return
    budget = aimed_ms(float(read_json(work.folder / "budget.json")["budget_ms"]), misses)
    try:
        with work.screen.step("deriving the network and measuring it") as progress:
            met = derive_network(
                work.space(),
                work.folder / "search.json",
                _table(work),
                budget,
                out=out,
                seed=work.recipe.seed,
                services=work.services,
                progress=progress,
            )
    except InputError as error:
        if not misses:
            raise
        kept = keep_last(work.folder)
        work.screen.say(f"no other network was found within {budget:.3f} ms ({error}): that of {kept.architecture} stays")
        return
    work.screen.say(f"network {met.derived.architecture.digest}: measured {met.measured_ms:.3f} ms of {budget:.3f} ms")


def _teach(work: Run) -> None:
    if work.recipe.train.distil == "none" or (work.folder / WEIGHTS).is_file():
        return
    with work.screen.step("training the teacher") as progress:
        teach(work.recipe, work.folder, work.dataset(work.recipe.data.train_split), device=work.device, progress=progress)


def train(work: Run) -> None:
    """`weights.safetensors`, of the teacher first where there is one."""
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


def export(work: Run) -> None:
    """`model.onnx` with its manifest."""
    if (work.folder / "model.onnx.json").is_file():
        return
    architecture = read_noun(work.folder / "arch.json", Architecture)
    with work.screen.step("exporting to ONNX and checking parity"):
        network, _ = load_network(architecture, work.folder / "weights.safetensors")
        export_engine(network, _table(work).target, work.folder, dataset=work.dataset(work.recipe.data.eval_split))


def bench(work: Run) -> None:
    """`timing.json`, `measured.json`, `accuracy.json` and `floors.json`."""
    folder, model = work.folder, work.folder / "model.onnx"
    if not (folder / "timing.json").is_file():
        with work.screen.step("timing the engine") as progress:
            write_noun(folder / "timing.json", bench_engine(model, seconds=5.0, progress=progress)[1])
    if not (folder / "measured.json").is_file():
        with work.screen.step("measuring the engine against its budget"):
            budget = float(read_json(folder / "budget.json")["budget_ms"])
            measured = work.services.measure_engine(model, read_noun(folder / "arch.json", Architecture), _table(work), budget)
        write_text(folder / "measured.json", json.dumps({"measured_ms": measured.median_ms, "relative_sd": measured.relative_sd}, indent=1) + "\n")
    evaluation = work.dataset(work.recipe.data.eval_split)
    if not (folder / "accuracy.json").is_file():
        with work.screen.step(f"evaluating the engine on {work.recipe.data.eval_split}") as progress:
            write_noun(folder / "accuracy.json", evaluate_engine(model, evaluation, progress=progress))
    if not (folder / "floors.json").is_file():
        found = dataset_floors(work.dataset(work.recipe.data.train_split), evaluation)
        write_text(folder / "floors.json", json.dumps({"floors": plain(found)}, indent=1) + "\n")


def report_of(work: Run) -> Report:
    """`report.json` and `report.html` of all that the steps wrote."""
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
            tuple(miss.measured_ms for miss in read_misses(folder) if not miss.is_final),
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

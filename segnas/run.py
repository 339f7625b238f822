"""`segnas run`: every step in a row, each reading files and writing files in one folder, resumable at every step.

recipe.json -> [streets/] -> table.json -> budget.json -> search.json -> arch.json, derive.json -> [teacher.arch.json, teacher.safetensors]
            -> weights.safetensors, weights.json
            -> model.onnx, model.onnx.json -> timing.json, measured.json, accuracy.json, floors.json
            -> [missed.json, missed-1/, and once more from arch.json on] -> report.json, report.html
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from segnas.errors import IncompatibleError, UsageError
from segnas.files import read_json, write_text
from segnas.missed import MISSED_NAME, NETWORK_FILES, set_aside, settle
from segnas.recipe import flattened
from segnas.report import Report
from segnas.run_context import Run
from segnas.run_steps import bench, budget, derive, export, profile, report_of, search, streets, train
from segnas.sampled_methods import require_sampled
from segnas.search.budget import budget_texts, read_budget
from segnas.search.checkpoint import CHECKPOINT_NAME
from segnas.search.frozen import BACKBONE_CHECKPOINT, BACKBONE_NAME
from segnas.search.pretrained import require_known
from segnas.search.settings import METHODS
from segnas.search.trace import TRACE_NAME
from segnas.steps import require_device
from segnas.streets import require_street_size
from segnas.teaching import TEACHING, require_teacher

_PRODUCTS = ("table.json", "budget.json", "search.json", *NETWORK_FILES, "floors.json", "report.html", "report.json")
"""What the steps write, in the order in which they write it."""

_UNFINISHED = {
    "measurements.jsonl": "table.json",
    MISSED_NAME: "search.json",
    CHECKPOINT_NAME: "budget.json",
    TRACE_NAME: "budget.json",
    **dict.fromkeys(("study.db", BACKBONE_NAME, BACKBONE_CHECKPOINT), "budget.json"),
    "weights.checkpoint.safetensors": "arch.json",
    **dict.fromkeys(TEACHING, "arch.json"),
}
"""Files that a step continues from, and the product that they fit to."""


def run(work: Run, *, resume: bool = False) -> Report:
    """All the steps; UsageError where the folder holds another run, or one that `resume` was not asked for."""
    _claim(work, resume)
    for step in (streets, profile, budget, search):
        _timed(work, step)
    return _met(work)


def _met(work: Run) -> Report:
    """From the search to the report; again with another network, as often as the recipe allows, where the engine is over its budget."""
    while True:
        for step in (derive, train, export, bench):
            _timed(work, step)
        miss = set_aside(work.folder, work.recipe.measure.retrain)
        if miss is None:
            return report_of(work)
        work.screen.say(f"the engine of {miss.architecture} took {miss.measured_ms:.3f} ms, over its budget: another network is derived and trained")


def run_several(work: Run, *, resume: bool = False) -> tuple[Report, ...]:
    """One profile and one search for several budgets, written with commas; each is then derived, trained and measured in a folder of its own.

    The search is steered by the geometric mean of the budgets. UsageError as for `run`.
    """
    texts = budget_texts(work.recipe.budget)
    if len(texts) == 1:
        return (run(work, resume=resume),)
    _claim(work, resume)
    for step in (streets, profile, budget, search):
        _timed(work, step)
    reports: list[Report] = []
    for text in texts:
        folder = work.folder / text
        part = replace(work, recipe=replace(work.recipe, budget=text), folder=folder, streets_folder=work.streets_folder or work.folder / "streets")
        _claim(part, (folder / "recipe.json").is_file())
        for name in ("table.json", "search.json", TRACE_NAME):
            if not (folder / name).is_file():
                write_text(folder / name, (work.folder / name).read_text(encoding="utf-8"))
        _timed(part, budget)
        reports.append(_met(part))
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
        settle(work.folder)
        _forget(work.folder)
        return
    if work.folder.is_dir() and not all(_is_partial(held) for held in work.folder.iterdir()):
        raise UsageError(f"{work.folder} is not empty and holds no run; choose another --out")
    _check(work)
    write_text(path, json.dumps(mine, indent=1) + "\n")


def _check(work: Run) -> None:
    """Everything about the input that can be told before the first step."""
    data, drawn = work.recipe.data, work.recipe.data.streets
    work.space().all_operations(work.target())
    for text in budget_texts(work.recipe.budget):
        read_budget(text)
    require_device(work.device)
    if not drawn.train:
        for split in (data.train_split, data.eval_split):
            work.dataset(split)
    elif work.streets_folder is None and (data.name != "cityscapes" or data.root):
        raise UsageError(
            f"recipe {work.recipe.name} draws streets, which lie in its folder and in the layout of cityscapes; it also gives data.name "
            f"{data.name!r} and data.root {data.root!r}: remove [data.streets] or those"
        )
    elif not drawn.val:
        raise UsageError(f"recipe {work.recipe.name} draws {drawn.train} streets to train on and none to evaluate on: give data.streets.val")
    else:
        require_street_size(drawn.height, drawn.width)
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

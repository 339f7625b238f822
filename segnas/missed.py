"""Missed budgets: an engine that is over its budget when it is measured is set aside, and another network, aimed lower, is derived and trained.

The same engine reads differently at different moments of a machine, and of the networks that were derived the one that was chosen is the one that
read within: so now and then a budget that was met before the training is missed after it. What was set aside stays, in `missed-1`, `missed-2`, ...
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from segnas.arch import Architecture
from segnas.files import plain, read_json, read_noun, unplain, write_text

MISSED_NAME = "missed.json"
"""In a run's folder: the engines that were set aside, in order."""

NETWORK_FILES = (
    *("derive.json", "arch.json", "weights.json", "weights.safetensors", "model.onnx", "model.onnx.json"),
    *("timing.json", "measured.json", "accuracy.json"),
)
"""What the steps write of one network, in the order in which they write it."""

MOVED = ("weights.checkpoint.safetensors", *(name for name in NETWORK_FILES if name != "arch.json"), "arch.json")
"""What is set aside; `arch.json` last, since it says whether there is something left to move."""


@dataclass(frozen=True, slots=True)
class Miss:
    """An engine that was over its budget: its architecture's digest, and its latency when it was derived and as shipped, in ms.

    `is_final` where no other network was found within what is left of the budget, so that it is the run's result all the same.
    """

    architecture: str
    derived_ms: float
    measured_ms: float
    is_final: bool = False


def read_misses(folder: Path) -> tuple[Miss, ...]:
    """Those of a run's folder, in order."""
    path = folder / MISSED_NAME
    return unplain(tuple[Miss, ...], read_json(path).get("missed"), f"{path}: missed") if path.is_file() else ()


def aimed_ms(budget_ms: float, misses: Sequence[Miss]) -> float:
    """The budget that the next network is derived for: as much lower as the worst of them took longer than when it was derived."""
    return budget_ms * min((miss.derived_ms / miss.measured_ms for miss in misses), default=1.0)


def set_aside(folder: Path, most: int) -> Miss | None:
    """Set the engine of this folder aside if it was measured over its budget, unless `most` were before; what was set aside, if anything.

    A process that is killed meanwhile leaves a folder that `settle` finishes.
    """
    misses = read_misses(folder)
    if len(misses) >= most or any(miss.is_final for miss in misses):
        return None
    derived, measured = (float(read_json(folder / name)["measured_ms"]) for name in ("derive.json", "measured.json"))
    if measured <= float(read_json(folder / "budget.json")["budget_ms"]):
        return None
    architecture = read_noun(folder / "arch.json", Architecture).digest
    miss = Miss(architecture, derived, measured)
    _write(folder, (*misses, miss))
    settle(folder)
    return miss


def keep_last(folder: Path) -> Miss:
    """Bring back what was set aside last, and let it be the result."""
    *earlier, missed = read_misses(folder)
    last = replace(missed, is_final=True)
    _write(folder, (*earlier, last))
    settle(folder)
    return last


def settle(folder: Path) -> None:
    """Finish what `set_aside` or `keep_last` had begun when the process was killed; nothing where nothing was begun."""
    misses = read_misses(folder)
    if not misses:
        return
    aside, last = folder / f"missed-{len(misses)}", misses[-1]
    if last.is_final:
        _move(aside, folder)
        if aside.is_dir():
            aside.rmdir()
    elif (folder / "arch.json").is_file() and read_noun(folder / "arch.json", Architecture).digest == last.architecture:
        aside.mkdir(exist_ok=True)
        _move(folder, aside)


def _move(source: Path, target: Path) -> None:
    for name in MOVED:
        if (source / name).is_file():
            os.replace(source / name, target / name)


def _write(folder: Path, misses: Sequence[Miss]) -> None:
    write_text(folder / MISSED_NAME, json.dumps({"missed": [plain(miss) for miss in misses]}, indent=1) + "\n")

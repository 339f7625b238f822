"""Repeated: an engine's normalised latency over several processes.

Where a process's memory lies moves what it times, the engine by other than the sentinel: readings of one process agree, those of two differ by 4 % on
a shared machine (docs/results.md). Opening anew within a process does not take that away, so each further reading is a new call of `segnas bench`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from segnas.apart import answer_of
from segnas.report import Timing


def repeated(timing: Timing, words: Sequence[str], processes: int, progress: Callable[[float], None] | None = None) -> Timing:
    """The timing with the mean of its normalised median and those of `processes` - 1 new ones; each of them is among its conditions.

    `words` are those of `segnas bench` that time the same once. RequirementError, with what it said, where a process fails.
    """
    assert timing.normalised_median_ms is not None
    found = [timing.normalised_median_ms]
    while len(found) < processes:
        if progress is not None:
            progress(len(found) / processes)
        found.append(_elsewhere(words))
    told = {"processes": str(processes), "normalised_ms_of_each": " ".join(f"{ms:.4f}" for ms in found)}
    return replace(timing, normalised_median_ms=fmean(found), conditions=tuple(sorted({**dict(timing.conditions), **told}.items())))


def _elsewhere(words: Sequence[str]) -> float:
    printed = answer_of("the process that times the engine once more", "segnas", "bench", *words, "--processes", "1", "--json")
    return float(json.loads(printed)["timings"][0]["normalised_median_ms"])

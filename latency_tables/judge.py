"""Judge: how far a table's estimates lie from networks that were never used for fitting, level by level, beside the noise of the labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from segnas.arch import Architecture
from segnas.errors import InputError
from segnas.latency import Calibration, LatencyTable
from segnas.latency_tables.labels import Label, process_sd
from segnas.target import Target

JUDGED = ".judged.json"
"""What takes the place of a table's `.json` in the name of its judgement."""
BAND = 0.10
CALIBRATIONS = ((0, "sum"), (10, "scale"), (40, "scale"), (40, "kinds"), (40, "entries"))
"""(networks, level) that are reported side by side."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Estimates against labels, in percent where not said otherwise.

    `mape`, `rmspe`, `bias` and `worst` are of estimate over label less 1; `hit5` and `hit10` the share of networks within 5 and 10 %; `tau` is
    Kendall's, `band_tau` over the pairs whose labels lie within 10 % of each other (None where there are none); `covered` the share of labels inside
    the 90 % interval.
    """

    networks: int
    mape: float
    rmspe: float
    bias: float
    worst: float
    hit5: float
    hit10: float
    tau: float
    band_tau: float | None
    covered: float


@dataclass(frozen=True, slots=True)
class Row:
    """One set of held-out networks under one calibration: `fitted_on` networks at `level`."""

    networks: str
    fitted_on: int
    level: str
    figures: Figures


@dataclass(frozen=True, slots=True)
class Judgement:
    """A table's held-out figures, with everything that they were computed from.

    `sets` names the held-out networks by digest; `label_noise` is, a set, the mean relative standard deviation of its labels in percent; `spread` the
    coefficient of variation of the labels in percent, what a constant guess would be off by. `together` says, for each process, whether its networks
    were fitted on ("fit") or held out ("held") and which of them were open together, so that every label can be computed anew (`labels`); it is empty
    where labels are plain means, as they were at first.
    """

    space: str
    target: Target
    created: str
    processes: int
    calibration: tuple[Label, ...]
    sets: tuple[tuple[str, tuple[Label, ...]], ...]
    label_noise: tuple[tuple[str, float], ...]
    spread: tuple[tuple[str, float], ...]
    rows: tuple[Row, ...]
    corners: tuple[tuple[str, float], ...]
    conditions: tuple[tuple[str, str], ...]
    together: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]


def figures(table: LatencyTable, architectures: Mapping[str, Architecture], labels: Sequence[Label]) -> Figures:
    """How far the table's estimates lie from these labels; InputError below two networks."""
    if len(labels) < 2:
        raise InputError(f"{len(labels)} networks were given; at least 2 are needed to judge a table")
    estimates = [table.estimate(architectures[label.digest]) for label in labels]
    errors = [100 * (e.total_ms / label.ms - 1) for e, label in zip(estimates, labels, strict=True)]
    pairs = [(e.total_ms, label.ms) for e, label in zip(estimates, labels, strict=True)]
    return Figures(
        networks=len(labels),
        mape=fmean(map(abs, errors)),
        rmspe=math.sqrt(fmean(error**2 for error in errors)),
        bias=fmean(errors),
        worst=max(errors, key=abs),
        hit5=100 * fmean(abs(error) <= 5 for error in errors),
        hit10=100 * fmean(abs(error) <= 10 for error in errors),
        tau=kendall(pairs) or 0.0,
        band_tau=kendall(pairs, BAND),
        covered=100 * fmean(e.low_ms <= label.ms <= e.high_ms for e, label in zip(estimates, labels, strict=True)),
    )


def kendall(pairs: Sequence[tuple[float, float]], band: float = math.inf) -> float | None:
    """Kendall's tau-a of (estimate, label), over the pairs of networks whose labels differ by at most `band` of the smaller; None where none do."""
    concordance: list[int] = []
    for index, (estimate, label) in enumerate(pairs):
        for other_estimate, other_label in pairs[:index]:
            if abs(label - other_label) <= band * min(label, other_label):
                product = (estimate - other_estimate) * (label - other_label)
                concordance.append((product > 0) - (product < 0))
    return fmean(concordance) if concordance else None


def rows(
    table: LatencyTable,
    architectures: Mapping[str, Architecture],
    calibration: Sequence[Label],
    sets: Mapping[str, Sequence[Label]],
) -> tuple[Row, ...]:
    """Every set under every calibration of `CALIBRATIONS` that there are networks for; InputError where a held-out network was fitted on."""
    leaked = {label.digest for label in calibration} & {label.digest for labels in sets.values() for label in labels}
    if leaked:
        raise InputError(f"network {min(leaked)} is held out and was used for fitting; draw the sets again")
    probes = [table.probe(architectures[label.digest], label.ms) for label in calibration]
    apart = process_sd(calibration, list({label.digest: label for labels in sets.values() for label in labels}.values()))
    found: list[Row] = []
    for count, level in CALIBRATIONS:
        if count > len(probes):
            continue
        fitted = table.calibrated(probes[:count], level, process_sd=apart) if count else bare(table)
        found += [Row(name, count, level, figures(fitted, architectures, labels)) for name, labels in sets.items()]
    return tuple(found)


def bare(table: LatencyTable) -> LatencyTable:
    """The table as the sum of its entries."""
    return replace(table, calibration=Calibration())


def spread(labels: Sequence[Label]) -> float:
    """Coefficient of variation of the labels, in percent."""
    return 100 * stdev(label.ms for label in labels) / fmean(label.ms for label in labels)

"""Correlating: does what a supernet says of a network tell how it does when trained alone? Beside rankings that need no supernet.

search checkpoint -> scores.jsonl (a network with inherited weights each) -> trained.jsonl (each alone) -> correlate.json, correlate.png
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from segnas.cost import network_cost
from segnas.errors import InputError
from segnas.export.manifest import versions
from segnas.files import plain, write_bytes, write_text
from segnas.measuring import Progress
from segnas.scatter_figures import Cloud, Panel, panels_picture
from segnas.search.correlation import Interval, Verdict, advantage, correlations
from segnas.search.space import Space
from segnas.supernet_scores import COMPARED, FROM_SEARCH, UNIFORM, Drawn, Scoring, SearchedRun, draw, scored_on, supernet_scores
from segnas.trainings import Trainings

MACS, PARAMETERS = "multiply-accumulates", "parameters"
LEAST_NETWORKS = 4
DRAWN = {FROM_SEARCH: "drawn by the search", UNIFORM: "drawn uniformly", COMPARED: "of a comparison"}
"""Where a network comes from, for people."""


@dataclass(frozen=True, slots=True)
class Studied:
    """One network: what each predictor says of it, and its mIoU, 0 to 1, when trained alone."""

    drawn: str
    digest: str
    genotype: dict[str, int]
    predictions: dict[str, float]
    miou: float


@dataclass(frozen=True, slots=True)
class Predictor:
    """How well one predictor ranks the networks: three correlations, and by how much its Kendall's tau exceeds that of the multiply-accumulates."""

    name: str
    correlations: dict[str, Interval]
    verdict: Verdict
    over_macs: Interval | None
    over_macs_verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Study:
    """What was correlated, under which conditions, and what came of it."""

    created: str
    space: str
    runs: tuple[tuple[str, str], ...]
    schedule: dict[str, Any]
    scoring: dict[str, Any]
    seed: int
    networks: tuple[Studied, ...]
    predictors: tuple[Predictor, ...]
    conditions: tuple[tuple[str, str], ...]


def correlate(
    space: Space,
    runs: Sequence[SearchedRun],
    networks: int,
    trainings: Trainings,
    scoring: Scoring,
    *,
    seed: int,
    progress: Progress,
    compared: Sequence[Drawn] = (),
) -> Study:
    """Draw networks, score each with every supernet, train each alone; a finished score or training is never repeated.

    Those that were `compared` are among them. Of the others half are drawn by the probabilities of the first run, half uniformly; fewer of the first
    half where the search is so sure that it has no more, then uniform ones take their place. InputError below 4 networks, and where the space's
    networks cannot inherit.
    """
    if networks < LEAST_NETWORKS or not runs:
        raise InputError(
            f"{networks} networks and {len(runs)} searches were given; at least {LEAST_NETWORKS} networks (50 are advised) and 1 are needed"
        )
    drawn = draw(space, runs[0].probabilities, networks, seed, compared)
    for network in drawn:
        trainings.schedule.require(network.architecture)
    predictions = supernet_scores(
        space, runs, drawn, trainings.schedule, scoring, path=trainings.folder / "scores.jsonl", seed=seed, progress=progress
    )
    target = trainings.schedule.target
    costs = [network_cost(network.architecture, target.height, target.width) for network in drawn]
    predictions |= {MACS: [float(c.macs) for c in costs], PARAMETERS: [float(c.parameters) for c in costs]}
    outcomes = trainings.outcomes({network.architecture.digest: network.architecture for network in drawn}, seed, progress)
    truth = [outcomes[network.architecture.digest].miou for network in drawn]
    said = [{name: values[i] for name, values in predictions.items()} for i in range(len(drawn))]
    return Study(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        space=space.name,
        runs=tuple((run.name, run.digest) for run in runs),
        schedule=trainings.schedule.identity,
        scoring=scored_on(trainings.schedule, scoring, seed),
        seed=seed,
        networks=tuple(Studied(n.drawn, n.architecture.digest, n.genotype, p, y) for n, p, y in zip(drawn, said, truth, strict=True)),
        predictors=tuple(_predictor(name, predictions, truth, seed) for name in predictions),
        conditions=versions(),
    )


def write_study(study: Study, folder: Path) -> None:
    """`correlate.json` and `correlate.png`."""
    panels = [
        Panel(
            f"{p.name}: tau {p.correlations['kendall']}",
            _axis(p.name)[1],
            tuple(_cloud(study, p.name, drawn) for drawn in DRAWN if _drawn(study, drawn)),
        )
        for p in study.predictors
    ]
    write_bytes(folder / "correlate.png", panels_picture(panels, "mIoU trained alone, %"))
    content = {"schema": "segnas.correlation/1", **cast(dict[str, Any], plain(study))}
    write_text(folder / "correlate.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def study_lines(study: Study) -> list[str]:
    """The figures as a table for people."""
    counts = ", ".join(f"{len(_drawn(study, drawn))} {told}" for drawn, told in DRAWN.items())
    lines = [
        f"{len(study.networks)} networks of {study.space}: {counts}",
        f"truth: {study.schedule['train']['steps']} steps from scratch, seed {study.seed}; judged on {study.schedule['judged']}",
        f"in brackets: bootstrap intervals, 95 %; undecided where Kendall's contains 0; over MACs: Kendall's tau less that of {MACS}",
        f"{'predictor':<44} {'Pearson':<21} {'Spearman':<21} {'Kendall':<21} {'verdict':<9} over MACs",
    ]
    for p in study.predictors:
        shown = " ".join(f"{p.correlations[name]!s:<21}" for name in ("pearson", "spearman", "kendall"))
        over = "-" if p.over_macs is None else f"{p.over_macs} {p.over_macs_verdict}"
        lines.append(f"{p.name[:44]:<44} {shown} {p.verdict:<9} {over}")
    return lines


def _predictor(name: str, predictions: Mapping[str, Sequence[float]], truth: Sequence[float], seed: int) -> Predictor:
    found = correlations(predictions[name], truth, seed)
    over = None if name == MACS else advantage(predictions[name], predictions[MACS], truth, seed)
    return Predictor(name, found, found["kendall"].verdict, over, over.verdict if over else None)


def _axis(predictor: str) -> tuple[float, str]:
    """What a predictor is multiplied by in the figure, and the axis's label."""
    return (1e-6, f"{predictor}, millions") if predictor in (MACS, PARAMETERS) else (100.0, "mIoU with inherited weights, %")


def _cloud(study: Study, predictor: str, drawn: str) -> Cloud:
    networks = _drawn(study, drawn)
    scale, _ = _axis(predictor)
    x, y = (scale * network.predictions[predictor] for network in networks), (100 * network.miou for network in networks)
    return Cloud(DRAWN[drawn], tuple(x), tuple(y))


def _drawn(study: Study, drawn: str) -> list[Studied]:
    return [network for network in study.networks if network.drawn == drawn]

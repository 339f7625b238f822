"""Comparing: searched networks beside random ones of the same measured latency and beside given ones, all trained under one schedule.

networks -> measurements.jsonl (every latency, in one campaign) -> trained.jsonl (each training) -> compare.json, compare.png
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

from segnas.arch import Architecture
from segnas.campaign import GIVEN, RANDOM, SEARCHED, SOURCES, Campaign, Candidate, RandomDraws, by_digest, merged
from segnas.cost import network_cost
from segnas.errors import InputError
from segnas.export.manifest import versions
from segnas.files import plain, write_bytes, write_text
from segnas.latency import LatencyTable, priced_operations
from segnas.measuring import Progress, Services
from segnas.scatter_figures import Cloud, Panel, panels_picture
from segnas.search.pairing import Paired, Points, paired
from segnas.target import Target
from segnas.trainings import Outcome, Trainings


@dataclass(frozen=True, slots=True)
class Compared:
    """One network's figures: measured latency in ms at the speed of the table's sentinel, the table's where it prices the network; mIoU, 0 to 1; by
    which genotype its space has it, where that is known.
    """

    source: str
    name: str
    digest: str
    measured_ms: float
    predicted_ms: float | None
    macs: int
    parameters: int
    miou: float
    engine_sha256: str
    genotype: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Source:
    """All networks of a source: means, and standard deviation of the mIoU (None for a single network)."""

    name: str
    networks: int
    mean_miou: float
    sd_miou: float | None
    mean_ms: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean IoU of one source less that of another at equal latency; `verdict` is "undecided" where the interval contains 0 or there is none."""

    first: str
    second: str
    paired: Paired
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, under which conditions, and what came of it; `within` is the share by which paired latencies may differ."""

    created: str
    schedule: dict[str, Any]
    seed: int
    target: Target
    within: float
    random_asked: int
    networks: tuple[Compared, ...]
    sources: tuple[Source, ...]
    differences: tuple[Difference, ...]
    conditions: tuple[tuple[str, str], ...]


def compare(
    candidates: Sequence[Candidate],
    draws: RandomDraws | None,
    table: LatencyTable,
    trainings: Trainings,
    *,
    within: float,
    seed: int,
    services: Services,
    progress: Progress,
) -> Comparison:
    """Measure everything, then train everything, then pair by measured latency; a finished measurement or training is never repeated.

    InputError where nothing is to be compared, or a searched network finds no random one of its latency.
    """
    given = merged(candidates)
    if not given and draws is None:
        raise InputError("nothing was given to compare; give searched networks, random ones or given ones")
    for candidate in given:
        trainings.schedule.require(candidate.architecture)
    campaign = Campaign(table, trainings.folder / "measurements.jsonl", services, progress)
    latencies = {candidate.digest: campaign.ms(candidate.architecture) for candidate in given}
    drawn = tuple(campaign.random(draws, given, within=within, seed=seed)) if draws else ()
    found = sorted((*given, *drawn), key=lambda candidate: SOURCES.index(candidate.source))
    latencies |= {candidate.digest: campaign.ms(candidate.architecture) for candidate in found}
    outcomes = trainings.outcomes(by_digest(found), seed, progress)
    networks = tuple(_compared(candidate, table, latencies[candidate.digest], outcomes[candidate.digest]) for candidate in found)
    return Comparison(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        schedule=trainings.schedule.identity,
        seed=seed,
        target=table.target,
        within=within,
        random_asked=draws.count if draws else 0,
        networks=networks,
        sources=sources(networks),
        differences=differences(networks, within, seed),
        conditions=(*versions(), ("load", " ".join(f"{value:.2f}" for value in os.getloadavg())), ("table", table.prices_digest), *table.mismatch),
    )


def sources(networks: Sequence[Compared]) -> tuple[Source, ...]:
    """Each source that has networks."""
    return tuple(_summed(name, held) for name in SOURCES if (held := _of(networks, name)))


def differences(networks: Sequence[Compared], within: float, seed: int) -> tuple[Difference, ...]:
    """The searched networks less each other source's; none where nothing was searched."""
    searched = _of(networks, SEARCHED)
    rest = [(name, _of(networks, name)) for name in (RANDOM, GIVEN)]
    return tuple(_difference(name, paired(_points(searched), _points(held), within, seed)) for name, held in rest if searched and held)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """`compare.json` and `compare.png`."""
    clouds = tuple(_cloud(source.name, _of(comparison.networks, source.name)) for source in comparison.sources)
    panel = Panel("One schedule for all", "measured latency, ms", clouds)
    write_bytes(folder / "compare.png", panels_picture([panel], "mIoU, %"))
    content = {"schema": "segnas.comparison/1", **cast(dict[str, Any], plain(comparison))}
    write_text(folder / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def comparison_lines(comparison: Comparison) -> list[str]:
    """The figures as a table for people, the best network first."""
    steps, judged = comparison.schedule["train"]["steps"], comparison.schedule["judged"]
    lines = [f"{comparison.target}", f"each network: {steps} steps from scratch, seed {comparison.seed}; judged on {judged}"]
    lines.append(f"{'source':<9} {'network':<20} {'digest':<12} {'ms':>8} {'table ms':>8} {'M MACs':>8} {'k params':>8} {'mIoU %':>7}")
    for n in sorted(comparison.networks, key=lambda n: (-n.miou, n.name)):
        predicted = "-" if n.predicted_ms is None else f"{n.predicted_ms:.3f}"
        costs = f"{n.macs / 1e6:>8.0f} {n.parameters / 1e3:>8.0f}"
        lines.append(f"{n.source:<9} {n.name[:20]:<20} {n.digest:<12} {n.measured_ms:>8.3f} {predicted:>8} {costs} {100 * n.miou:>7.2f}")
    for s in comparison.sources:
        asked = f" of {comparison.random_asked} asked for" if s.name == RANDOM and s.networks < comparison.random_asked else ""
        spread = "spread unknown" if s.sd_miou is None else f"sd {100 * s.sd_miou:.2f}"
        lines.append(f"{s.name}: {s.networks} networks{asked}, mean mIoU {100 * s.mean_miou:.2f} %, {spread}, mean {s.mean_ms:.3f} ms")
    return lines + [_difference_line(difference, comparison.within) for difference in comparison.differences]


def _difference_line(difference: Difference, within: float) -> str:
    pairs, mean = difference.paired, difference.paired.mean
    head = f"{difference.first} less {difference.second} within {100 * within:g} % of latency"
    if mean.value is None:
        return f"{head}: no network has a partner: {difference.verdict}"
    ends = "no interval below 2 networks a side" if mean.low is None or mean.high is None else f"95 % {100 * mean.low:+.2f} to {100 * mean.high:+.2f}"
    partners = {number for found in pairs.partners for number in found}
    of = f"{pairs.pairs} of {len(pairs.partners)} paired with {len(partners)}"
    return f"{head}: {100 * mean.value:+.2f} points of mIoU, {ends}; {of}: {difference.verdict}"


def _compared(candidate: Candidate, table: LatencyTable, ms: float, outcome: Outcome) -> Compared:
    cost = network_cost(candidate.architecture, table.target.height, table.target.width)
    predicted = _predicted(table, candidate.architecture)
    costs, found = (cost.macs, cost.parameters), (outcome.miou, outcome.engine_sha256)
    return Compared(candidate.source, candidate.name, candidate.digest, ms, predicted, *costs, *found, candidate.genotype)


def _predicted(table: LatencyTable, architecture: Architecture) -> float | None:
    return None if table.missing(priced_operations(architecture, table.target)) else table.estimate(architecture).total_ms


def _difference(name: str, pairs: Paired) -> Difference:
    sides = {"positive": f"{SEARCHED} is better", "negative": f"{name} is better"}
    return Difference(SEARCHED, name, pairs, sides.get(pairs.mean.verdict, "undecided"))


def _of(networks: Sequence[Compared], source: str) -> tuple[Compared, ...]:
    return tuple(network for network in networks if network.source == source)


def _points(networks: Sequence[Compared]) -> Points:
    return Points(tuple(n.measured_ms for n in networks), tuple(n.miou for n in networks))


def _cloud(name: str, networks: Sequence[Compared]) -> Cloud:
    names = tuple("" if name == RANDOM else n.name for n in networks)
    return Cloud(name, tuple(n.measured_ms for n in networks), tuple(100 * n.miou for n in networks), names)


def _summed(name: str, networks: Sequence[Compared]) -> Source:
    mious = [network.miou for network in networks]
    return Source(name, len(networks), fmean(mious), stdev(mious) if len(mious) > 1 else None, fmean(n.measured_ms for n in networks))

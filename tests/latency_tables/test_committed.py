"""The tables that come with segnas: whole, complete for their space, still exported as the graphs that were measured, and as good as they say."""

import math
from pathlib import Path
from statistics import correlation

import pytest

from segnas.arch import Architecture
from segnas.cli_tables import packaged_folder
from segnas.export.graph import graph_sha256
from segnas.judging import draw, read_judgement
from segnas.latency import LatencyTable
from segnas.latency_tables.check import check_coverage
from segnas.latency_tables.compose import PROTOCOL
from segnas.latency_tables.judge import JUDGED, Judgement, bare, figures
from segnas.latency_tables.labels import Label, labels, process_sd
from segnas.latency_tables.store import load_table
from segnas.search.spaces import space

TABLES = sorted(path for path in packaged_folder().glob("*.json") if not path.name.endswith(JUDGED))
CLASSES = 19  # of all that are committed
LEAST_PEARSON = 0.95  # additivity, as CAS and GAS take it for granted: of estimates and latencies, without the labels' noise
WITH_JUDGEMENT = [path for path in TABLES if path.with_suffix(JUDGED).is_file()]


def test_there_are_tables_of_the_spaces() -> None:
    systems = {"auto-deeplab-small", "darts-tiny", "dpc-small", "fast-nas-small", "fasterseg-small", "sparsemask-small"}
    judged = {"cas-fast", "cas-tiny", "dcnas-small", "gas-fast"} | systems
    assert {load_table(path).space for path in TABLES} >= {"cas", "gas"} | judged
    assert {load_table(path).space for path in WITH_JUDGEMENT} >= judged


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_prices_its_space_and_nothing_else(path: Path) -> None:
    table = load_table(path)
    coverage = check_coverage(table, space(table.space, CLASSES).all_operations(table.target))
    assert (coverage.missing, coverage.unreachable) == ((), ())
    assert {entry.source for entry in table.entries} == {"measured"}
    assert {"created", "sentinel_ms"} <= set(dict(table.provenance))
    assert table.provenance_of("protocol") == PROTOCOL


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem.startswith(("cas-fast", "fasterseg-small")) else pytest.mark.slow)
        for path in WITH_JUDGEMENT
    ],
)
def test_the_figures_beside_a_table_follow_from_its_labels(path: Path) -> None:
    table = load_table(path)
    judgement, networks = read_judgement(path), draw(space(table.space, CLASSES), table, 0).by_digest
    sets = dict(judgement.sets)
    held = {label.digest: label for labelled in sets.values() for label in labelled}
    probes = [table.probe(networks[label.digest], label.ms) for label in judgement.calibration]
    fitted = bare(table).calibrated(probes, "entries", process_sd=process_sd(judgement.calibration, [*held.values()]))
    for role, kept in (("fit", judgement.calibration), ("held", tuple(held.values()))):
        read = {label.digest: label.sessions_ms for label in kept}
        processes = [groups for name, groups in judgement.together if name == role]
        again = [[{digest: read[digest][number] for digest in group} for group in groups] for number, groups in enumerate(processes)]
        assert not again or [labels(again)[label.digest].ms for label in kept] == pytest.approx([label.ms for label in kept], rel=1e-9)
    for row in judgement.rows:
        if (row.fitted_on, row.level) == (40, "entries"):
            found = figures(fitted, networks, sets[row.networks])
            assert (found.mape, found.tau, found.covered) == pytest.approx((row.figures.mape, row.figures.tau, row.figures.covered), rel=1e-3)
            best = best_pearson(judgement, row.networks)
            if best and len(sets[row.networks]) > 2:
                assert pearson(fitted, networks, sets[row.networks]) > LEAST_PEARSON * best
    assert table.calibration.scale == pytest.approx(fitted.calibration.scale, rel=1e-9)


def best_pearson(judgement: Judgement, name: str) -> float:
    """What the labels' noise leaves of a correlation of 1 (Spearman's attenuation); 0 where the set spreads by no more than that noise."""
    return math.sqrt(max(0.0, 1 - (dict(judgement.label_noise)[name] / dict(judgement.spread)[name]) ** 2))


def pearson(table: LatencyTable, networks: dict[str, Architecture], labels: tuple[Label, ...]) -> float:
    """Correlation of estimates and labels."""
    return correlation([table.estimate(networks[label.digest]).total_ms for label in labels], [label.ms for label in labels])


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_operations_are_still_exported_as_they_were_measured(path: Path) -> None:
    table = load_table(path)
    for entry in table.entries:
        assert entry.graph_sha256 == graph_sha256(entry.operation, batch=table.target.batch, runtime=table.target.runtime), str(entry.operation)

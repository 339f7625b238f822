"""The tables that come with segnas: whole, complete for their space, still exported as the graphs that were measured, and as good as they say."""

import json
from pathlib import Path
from statistics import correlation

import pytest

from segnas.arch import Architecture
from segnas.cli_tables import packaged_folder
from segnas.export.graph import graph_sha256
from segnas.files import unplain
from segnas.judging import draw
from segnas.latency import LatencyTable
from segnas.latency_tables.check import check_coverage
from segnas.latency_tables.compose import PROTOCOL
from segnas.latency_tables.judge import Judgement, Label, bare, figures, process_sd
from segnas.latency_tables.store import load_table
from segnas.search.spaces import space

TABLES = sorted(path for path in packaged_folder().glob("*.json") if not path.name.endswith(".judged.json"))
CLASSES = 19  # of all that are committed
JUDGED = [path for path in TABLES if path.with_suffix(".judged.json").is_file()]


def test_there_are_tables_of_the_spaces() -> None:
    """None has been judged since the second protocol (docs/results.md); those that are have their figures checked below."""
    systems = {"auto-deeplab-small", "darts-tiny", "dpc-small", "fast-nas-small", "sparsemask-small"}
    assert {load_table(path).space for path in TABLES} >= {"cas", "cas-fast", "cas-tiny", "dcnas-small", "gas", "gas-fast"} | systems


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_prices_its_space_and_nothing_else(path: Path) -> None:
    table = load_table(path)
    coverage = check_coverage(table, space(table.space, CLASSES).all_operations(table.target))
    assert (coverage.missing, coverage.unreachable) == ((), ())
    assert {entry.source for entry in table.entries} == {"measured"}
    assert {"created", "sentinel_ms"} <= set(dict(table.provenance))
    assert table.provenance_of("protocol") == PROTOCOL


@pytest.mark.parametrize("path", JUDGED, ids=lambda path: path.stem)
def test_the_figures_beside_a_table_follow_from_its_labels(path: Path) -> None:
    table = load_table(path)
    data = json.loads(path.with_suffix(".judged.json").read_text(encoding="utf-8"))
    assert data.pop("schema") == "segnas.judgement/1"
    judgement = unplain(Judgement, data)
    drawn = draw(space(table.space, CLASSES), table, 0)
    networks = {a.digest: a for a in (*drawn.calibration, *drawn.uniform, *drawn.stratified, *drawn.corners.values())}
    fitted = bare(table).calibrated(
        [table.probe(networks[label.digest], label.ms) for label in judgement.calibration], "entries", process_sd=process_sd(judgement.calibration)
    )
    sets = dict(judgement.sets)
    for row in judgement.rows:
        if (row.fitted_on, row.level) == (40, "entries"):
            found = figures(fitted, networks, sets[row.networks])
            assert (found.mape, found.tau, found.covered) == pytest.approx((row.figures.mape, row.figures.tau, row.figures.covered), rel=1e-3)
            assert pearson(fitted, networks, sets[row.networks]) > 0.95  # additivity, as CAS and GAS take it for granted
    assert table.calibration.scale == pytest.approx(fitted.calibration.scale, rel=1e-9)


def pearson(table: LatencyTable, networks: dict[str, Architecture], labels: tuple[Label, ...]) -> float:
    """Correlation of estimates and labels."""
    return correlation([table.estimate(networks[label.digest]).total_ms for label in labels], [label.ms for label in labels])


@pytest.mark.slow
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_operations_are_still_exported_as_they_were_measured(path: Path) -> None:
    table = load_table(path)
    for entry in table.entries:
        assert entry.graph_sha256 == graph_sha256(entry.operation, batch=table.target.batch, runtime=table.target.runtime), str(entry.operation)

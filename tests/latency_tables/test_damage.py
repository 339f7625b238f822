"""What a damaged or foreign table or journal must not get through: each of these once did."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from segnas.arch import Operation, Shape
from segnas.errors import IncompatibleError, InputError
from segnas.export.graph import graph_sha256
from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable, priced_operations
from segnas.latency_tables import profile as module
from segnas.latency_tables.compose import reference_ms
from segnas.latency_tables.journal import SCHEMA, ProfileJournal, header_of
from segnas.latency_tables.profile import profile
from segnas.latency_tables.store import load_table, save_table
from segnas.measuring import Services, for_this_machine
from segnas.report import Curve
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.processor import available_cores
from segnas.search.spaces import space
from segnas.steps import derive_network, write_curves
from segnas.timing import Measured


@pytest.fixture
def small(target):
    return replace(target, height=32, width=64)


@pytest.fixture
def few(small_network, small):
    return priced_operations(small_network("separable", "zoomed_conv"), small)


def run(machine, few, small, path, sha=lambda operation: operation.digest, **options):
    return profile("tiny", few, small, prepare=machine.prepare, graph_sha256=sha, journal=path, provenance={}, **options)


def changed(path: Path, change) -> None:
    lines = path.read_text().splitlines(keepends=True)
    record = json.loads(lines[1])
    change(record)
    path.write_text("".join([lines[0], json.dumps(record) + "\n", *lines[2:]]))


# A. the measurements of another table
def test_a_networks_measurement_is_not_taken_over_by_another_table(tmp_path):
    tiny = space("cas-tiny", 19)
    even = {name: [1 / n] * n for name, n in tiny.decisions.items()}
    write_curves(tmp_path / "search.json", [Curve("c", (1,), (1.0,))], space="cas-tiny", probabilities=even)

    def derived(height: int, ms: float) -> float:
        target = cpu_target(height, 128)
        entries = tuple(Entry(o, "block", 0.02, 0.0, 1, "made up", "") for o in sorted(tiny.all_operations(target)))
        services = Services(None, lambda a, t: Measured(ms, 0.004), None)  # type: ignore[arg-type]
        table = LatencyTable("cas-tiny", target, entries)
        return derive_network(
            tiny, tmp_path / "search.json", table, 8.0, out=tmp_path / "arch.json", seed=0, services=services, progress=lambda *_: None
        ).measured_ms

    assert derived(64, 7.5) == 7.5
    assert derived(96, 7.6) == 7.6  # 7.5: another resolution's


# B. graphs
def test_the_journal_of_other_graphs_is_refused(make_machine, few, small, tmp_path):
    run(make_machine(), few, small, tmp_path / "j", lambda operation: f"old {operation.digest}")
    with pytest.raises(IncompatibleError, match="graph"):
        run(make_machine(), few, small, tmp_path / "j", lambda operation: f"new {operation.digest}")


def test_graphs_of_other_shapes_are_other_graphs():
    def add(channels: int, height: int) -> Operation:
        shape = Shape(channels, height, 16)
        return Operation(kind("add"), 1, (shape, shape), shape)

    found = [graph_sha256(add(8, 8)), graph_sha256(add(16, 8)), graph_sha256(add(8, 16)), graph_sha256(add(8, 8), batch=2)]
    assert len(set(found)) == 4


# C. the journal
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_recorded_sample_that_is_no_time_is_refused(make_machine, few, small, tmp_path, number):
    run(make_machine(), few, small, tmp_path / "j")
    changed(tmp_path / "j", lambda record: record["visits"][0][0].update(samples_ms=[number]))
    with pytest.raises(InputError, match="line 2"):
        run(make_machine(), few, small, tmp_path / "j")


def test_a_record_without_its_turns_is_refused(make_machine, few, small, tmp_path):
    run(make_machine(), few, small, tmp_path / "j")
    for change in (lambda r: r["visits"].pop(), lambda r: r["visits"][0].pop(), lambda r: r["visits"][0][0].update(samples_ms=[])):
        run(make_machine(), few, small, tmp_path / "k")
        changed(tmp_path / "k", change)
        with pytest.raises(InputError, match="line 2"):
            run(make_machine(), few, small, tmp_path / "k")
        (tmp_path / "k").unlink()


def test_a_header_whose_target_is_no_object(small, tmp_path):
    (tmp_path / "j").write_text(json.dumps({"schema": SCHEMA, **header_of("tiny", small, "p"), "target": "a cpu"}) + "\n")
    with pytest.raises((InputError, IncompatibleError)):
        ProfileJournal(tmp_path / "j", header_of("tiny", small, "p"))


def test_another_version_of_the_journal_is_incompatible(small, tmp_path):
    (tmp_path / "j").write_text(json.dumps({"schema": SCHEMA + "0", **header_of("tiny", small, "p")}) + "\n")
    with pytest.raises(IncompatibleError):
        ProfileJournal(tmp_path / "j", header_of("tiny", small, "p"))


def test_the_time_for_measuring_again_is_bounded_over_interruptions(make_machine, few, small, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPEATED_MS", 110.0)
    path = tmp_path / "j"
    run(make_machine(noise=0.3), few, small, path, repeats=1)
    lines = path.read_text().splitlines(keepends=True)
    repeated = sum('"attempt":1' in line for line in lines)
    path.write_text("".join(lines[:-1]))  # killed before the last
    run(make_machine(noise=0.3, seed=1), few, small, path, repeats=1)
    assert sum('"attempt":1' in line for line in path.read_text().splitlines()) <= repeated


# D. the table's file
@pytest.fixture
def table(target):
    shape = Shape(32, 64, 128)
    return LatencyTable("tiny", target, (Entry(Operation(kind("conv"), 1, (shape,), shape), "block", 1.25, 0.01, 90, "m", "a" * 64),))


@pytest.mark.parametrize(
    "change",
    [
        {"overhead_ms": -1.0},
        {"calibration": Calibration(scale=0.0)},
        {"calibration": Calibration(scale=-1.0)},
        {"calibration": Calibration(relative_sd=-0.1)},
        {"calibration": Calibration(level="scales")},
        {"calibration": Calibration(level="kinds", corrections=(("block", -1.0),))},
    ],
)
def test_a_table_that_prices_at_nothing_or_less(table, tmp_path, change):
    save_table(tmp_path / "t", replace(table, **change))
    with pytest.raises(InputError):
        load_table(tmp_path / "t")


@pytest.mark.parametrize("change", [{"spread": -1.0}, {"samples": 0}, {"kind": "blok"}, {"source": "guessed"}])
def test_an_entry_that_cannot_be(table, tmp_path, change):
    save_table(tmp_path / "t", replace(table, entries=(replace(table.entries[0], **change),)))
    with pytest.raises(InputError):
        load_table(tmp_path / "t")


def test_infinity_does_not_pass_for_a_digest(table, tmp_path):
    save_table(tmp_path / "t", table)
    content = json.loads((tmp_path / "t").read_text())
    del content["content_sha256"]
    (tmp_path / "t").write_text(json.dumps({**content, "overhead_ms": "X"}).replace('"X"', "1e400"))
    with pytest.raises(InputError):
        load_table(tmp_path / "t")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "abc"])
def test_a_sentinel_that_is_no_time(table, text):
    with pytest.raises(InputError, match="sentinel_ms"):
        reference_ms(replace(table, provenance=(("sentinel_ms", text),)))


# E. lookups
def test_the_table_of_a_machine_with_more_cores_is_incompatible(table):
    target = replace(cpu_target(64, 128), device="a larger machine", threads=available_cores() + 1)
    with pytest.raises(IncompatibleError, match="device"):
        for_this_machine(replace(table, target=target))


def test_how_sure_an_estimate_is_needs_its_entries(table, small_network):
    for ask in (table.model_sd, table.prediction_sd):
        with pytest.raises(IncompatibleError):
            ask(small_network("conv"))

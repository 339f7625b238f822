"""Judging a table with a simulated machine: what is fitted is never judged, a finished process is never repeated."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import pytest

from segnas.errors import IncompatibleError, InputError
from segnas.judging import FITTED, STRATIFIED, UNIFORM, draw, judge_table
from segnas.latency import Entry, LatencyTable
from segnas.latency_tables.compose import SENTINEL_KEY
from segnas.latency_tables.measure import TOGETHER, Measured
from segnas.search.draws import stratified
from segnas.search.expected import ExpectedLatency
from segnas.search.spaces.cas import cas_tiny
from segnas.target import Target

SPACE = cas_tiny(5)
TARGET = Target("test cpu", "onnxruntime", "1.0", "fp32", 64, 128)


def price(operation) -> float:
    return 0.05 + int(operation.digest[:4], 16) / 65536


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    entries = tuple(sorted((Entry(o, "block", price(o), 0.01, 9, "series", "") for o in SPACE.all_operations(TARGET)), key=lambda e: e.operation))
    return LatencyTable(SPACE.name, TARGET, entries, provenance=((SENTINEL_KEY, "2.5"),))


class Machine:
    """10 % slower than the table says, with a wobble of 1 % that depends on the process."""

    def __init__(self, table: LatencyTable, most: int = 99) -> None:
        self.table, self.calls, self.most = table, [], most

    def __call__(self, architectures, target, sentinel_ref_ms, seed):
        assert (target, sentinel_ref_ms) == (TARGET, 2.5)
        if len(self.calls) >= self.most:
            raise KeyboardInterrupt
        self.calls.append([a.digest for a in architectures])
        wobble = [((int(a.digest, 16) + 37 * seed) % 201 - 100) / 10000 for a in architectures]
        return tuple(Measured(1.1 * self.table.raw_sum_ms(a) * (1 + w), 0.01) for a, w in zip(architectures, wobble, strict=True))


def judged(table: LatencyTable, machine: Machine, journal: Path):
    return judge_table(SPACE, table, journal=journal, processes=3, seed=0, progress=lambda *at: None, measure=machine)


def test_the_sets_are_distinct_and_of_the_stated_sizes(table: LatencyTable) -> None:
    drawn = draw(SPACE, table, 0)
    sets = [drawn.calibration, drawn.uniform, drawn.stratified, tuple(dict.fromkeys(drawn.corners.values()))]
    assert [len(s) for s in sets[:3]] == [FITTED, UNIFORM, STRATIFIED]
    digests = [a.digest for s in sets for a in s]
    assert len(set(digests)) == len(digests)
    assert draw(SPACE, table, 0) == drawn != draw(SPACE, table, 1)


def test_stratified_networks_lie_all_over_the_range_that_can_be_drawn(table: LatencyTable) -> None:
    """Those that are held out, those that are fitted on, and the five of these that come among the first ten."""
    drawn = draw(SPACE, table, 0)
    ranged = [table.raw_sum_ms(a) for a in drawn.stratified]
    low, high = min(ranged), max(ranged)
    wide = [table.raw_sum_ms(a) for a in stratified(SPACE, 300, ExpectedLatency(SPACE, table).exact, Random(9))]
    assert high - low > 0.85 * (max(wide) - min(wide))
    for networks, halves in ((drawn.stratified, 30), (drawn.calibration[1::2], 20), (drawn.calibration[1:10:2], 5)):
        prices = [table.raw_sum_ms(a) for a in networks]
        assert len(prices) == halves
        assert fmean(prices) == pytest.approx((low + high) / 2, abs=0.12 * (high - low))
        assert max(prices) - min(prices) > 0.6 * (high - low)


def test_a_judgement_of_a_table_that_is_ten_percent_low(table: LatencyTable, tmp_path: Path) -> None:
    machine = Machine(table)
    found, fitted = judged(table, machine, tmp_path / "j.jsonl")
    by = {(row.networks, row.fitted_on, row.level): row.figures for row in found.rows}
    assert by["uniform", 0, "sum"].mape == pytest.approx(100 * (1 - 1 / 1.1), abs=0.5)
    for name in ("uniform", "stratified"):
        assert by[name, 10, "scale"].mape < 1.0
        assert by[name, 40, "entries"].mape < 1.0
        assert by[name, 40, "entries"].hit5 == 100
    assert fitted.calibration.level == "entries"
    assert len(fitted.calibration.probes) == FITTED
    assert len(machine.calls) == 2 * 3
    assert {label.digest for label in found.calibration} == set(machine.calls[0])
    assert machine.calls[0] != machine.calls[2], "in another order, so that others are open together"
    assert sorted(machine.calls[0]) == sorted(machine.calls[2])
    assert not set(machine.calls[0]) & set(machine.calls[-1])
    assert 0 < dict(found.label_noise)["uniform"] < 1.0
    assert [role for role, _ in found.together] == ["fit"] * 3 + ["held"] * 3
    assert [[digest for group in groups for digest in group] for _, groups in found.together] == machine.calls[::2] + machine.calls[1::2]
    assert dict(found.spread)["stratified"] > dict(found.spread)["uniform"]
    assert "allowed_mismatch" not in dict(found.conditions)


def test_a_judgement_names_the_mismatch_that_was_allowed(table: LatencyTable, tmp_path: Path) -> None:
    used = replace(table, target=replace(TARGET, device="another")).for_target(TARGET, ["device"])
    found, fitted = judged(used, Machine(table), tmp_path / "j.jsonl")
    mismatch = "device: the table has 'another', asked for is 'test cpu'"
    assert dict(found.conditions)["allowed_mismatch"] == fitted.allowed_mismatch == mismatch


def test_an_interrupted_judging_repeats_no_process(table: LatencyTable, tmp_path: Path) -> None:
    whole, _ = judged(table, Machine(table), tmp_path / "whole.jsonl")
    for most in (1, 2, 1):
        with pytest.raises(KeyboardInterrupt):
            judged(table, Machine(table, most), tmp_path / "j.jsonl")
    with (tmp_path / "j.jsonl").open("a") as stream:
        stream.write('{"process":9,"ro')  # a line that was being written
    last = Machine(table)
    found, _ = judged(table, last, tmp_path / "j.jsonl")
    assert len(last.calls) == 2 * 3 - 4
    assert (found.rows, found.sets) == (whole.rows, whole.sets)


def test_a_journal_holds_its_networks_and_then_a_line_a_process(table: LatencyTable, tmp_path: Path) -> None:
    machine = Machine(table, most=2)
    with pytest.raises(KeyboardInterrupt):
        judged(table, machine, tmp_path / "j.jsonl")
    header, *lines = map(json.loads, (tmp_path / "j.jsonl").read_text().splitlines())
    assert (header["space"], header["prices"]) == ("cas-tiny", table.prices_digest)
    assert sorted(header["networks"]) == sorted(machine.calls[0] + machine.calls[1])
    assert [(line["role"], line["process"]) for line in lines] == [("fit", 0), ("held", 0)]
    for line, called in zip(lines, machine.calls, strict=True):
        groups = [called[first : first + TOGETHER] for first in range(0, len(called), TOGETHER)]
        assert [sorted(group) for group in line["groups"]] == [sorted(group) for group in groups]
    for damage in (
        "{",
        '{"role":"fit","process":1}',
        '{"role":"fit","process":1,"groups":[{"a":"fast"}]}',
        '{"role":"fit","process":1,"groups":[1]}',
    ):
        path = tmp_path / "damaged.jsonl"
        path.write_text((tmp_path / "j.jsonl").read_text() + damage + "\n")
        with pytest.raises(InputError, match=r"damaged\.jsonl is damaged in line 4"):
            judged(table, Machine(table), path)


def test_a_journal_of_another_table_is_refused(table: LatencyTable, tmp_path: Path) -> None:
    judged(table, Machine(table), tmp_path / "j.jsonl")
    dearer = LatencyTable(table.space, TARGET, table.entries, overhead_ms=0.5, provenance=table.provenance)
    with pytest.raises(IncompatibleError, match="another table or other networks"):
        judged(dearer, Machine(dearer), tmp_path / "j.jsonl")

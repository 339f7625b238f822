"""Profiling against a clock whose truth is known: accuracy, resuming, and nothing lost or counted twice."""

import errno
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from segnas.arch import Operation
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.files import unplain
from segnas.latency import LatencyTable, priced_operations
from segnas.latency_tables.compose import PROTOCOL, reference_ms
from segnas.latency_tables.journal import ProfileJournal, header_of
from segnas.latency_tables.probes import designs
from segnas.latency_tables.profile import profile
from segnas.latency_tables.sentinel import SENTINELS, sentinel_architecture, sentinel_target


@pytest.fixture
def operations(small_network, target) -> tuple[Operation, ...]:
    return priced_operations(small_network("separable", "max_pool", "zoomed_conv"), target)


@pytest.fixture
def few(small_network, target) -> tuple[Operation, ...]:
    """The cheapest space: a stem, a block, an addition, a head."""
    return priced_operations(small_network("separable"), replace(target, height=32, width=64))


def run(machine, operations, target, path, **options) -> LatencyTable:
    asked: list[Operation] = []

    def graph_sha256(operation: Operation) -> str:
        asked.append(operation)
        return operation.digest

    provenance: Mapping[str, str] = {"cpu": "made up"}
    return profile("tiny", operations, target, prepare=machine.prepare, graph_sha256=graph_sha256, journal=path, provenance=provenance, **options)


def errors(table: LatencyTable, machine, target) -> dict[str, float]:
    """Relative error of each price, told at the speed at which the table's sentinel ran."""
    scale = (reference_ms(table) or 0) / machine.true_ms(sentinel_architecture(), sentinel_target(target))
    return {str(e.operation): e.median_ms / (machine.price(e.operation) * scale) - 1 for e in table.entries}


def test_prices_are_exact_on_a_quiet_machine(machine, operations, target, tmp_path):
    table = run(machine, operations, target, tmp_path / "j")
    assert max(map(abs, errors(table, machine, target).values())) < 2e-3  # samples are kept to the nanosecond
    assert not table.missing(operations)
    assert {e.operation for e in table.entries} == {o for o in operations if not o.is_free}
    assert machine.opened == machine.closed


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_prices_on_a_noisy_machine(make_machine, operations, target, tmp_path, seed):
    machine = make_machine(noise=0.02, drift=0.08, stalls=0.02, seed=seed)
    table = run(machine, operations, target, tmp_path / "j", seed=seed)
    found = errors(table, machine, target)
    dear = [abs(found[str(e.operation)]) for e in table.entries if machine.price(e.operation) >= 0.05]
    assert sum(dear) / len(dear) < 0.03
    assert max(dear) < 0.08
    total = sum(e.median_ms for e in table.entries) / sum(machine.price(e.operation) for e in table.entries)
    assert total * machine.true_ms(sentinel_architecture(), sentinel_target(target)) / (reference_ms(table) or 0) == pytest.approx(1, abs=0.03)
    assert machine.now_ms / len(table.entries) < 2500


def test_what_stays_unsure_is_repeated_a_bounded_number_of_times(make_machine, few, target, tmp_path, monkeypatch):
    monkeypatch.setattr("segnas.latency_tables.profile.REPEATED_MS", 10_000.0)  # time is not the bound here
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    run(make_machine(noise=0.3), few, small, path, repeats=2)
    attempts = [json.loads(line)["attempt"] for line in path.read_text().splitlines()[1:]]
    assert set(attempts) == {0, 1, 2}
    assert len(attempts) <= 3 * len(designs(few, small))


def test_every_sample_is_in_the_journal_once(make_machine, few, target, tmp_path):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    machine = make_machine(noise=0.05)
    table = run(machine, few, small, path)
    records = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    written = [ms for record in records for turns in record["visits"] for visit in turns for ms in visit["samples_ms"]]
    given = Counter(round(ms, 6) for ms in machine.given)
    assert not Counter(written) - given
    counted = sum(e.samples for e in table.entries)
    companions = [r for r in records if unplain(Operation, r["operation"]) not in {e.operation for e in table.entries}]
    assert counted + sum(len(v["samples_ms"]) for r in companions for turns in r["visits"] for v in turns) == len(written)


def test_resume_at_every_byte_of_the_last_line(make_machine, few, target, tmp_path):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    whole = run(make_machine(), few, small, path)
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    finished = content[:last].count(b"\n") - 1
    header, plan = header_of("tiny", small, PROTOCOL), designs(few, small)
    lines = content.splitlines(keepends=True)
    before, end = lines[0], lines[-1]
    for cut in range(len(end) + 1):
        path.write_bytes(before + end[:cut])
        journal = ProfileJournal(path, header)
        assert sum(len(journal.records(d.operation)) for d in plan) == (cut == len(end))
        assert path.read_bytes() == (before + end if cut == len(end) else before)
    for cut in (last, last + 1, (last + len(content)) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        machine = make_machine()
        table = run(machine, few, small, path)
        assert machine.opened <= SENTINELS + 3, "the sentinels and the probes of one operation"
        assert path.read_bytes()[:last] == content[:last]
        assert path.read_bytes().count(b"\n") - 1 == finished + 1
        assert [e.operation for e in table.entries] == [e.operation for e in whole.entries]


def test_a_torn_header_is_an_empty_journal(make_machine, few, target, tmp_path):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    header = header_of("tiny", small, PROTOCOL)
    ProfileJournal(path, header)
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        ProfileJournal(path, header)
        assert path.read_bytes() == content


def test_a_full_disk_is_told(machine, few, target, tmp_path, monkeypatch):
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("segnas.journals.os.fsync", refuse)
    with pytest.raises(RequirementError, match="disk is full"):
        run(machine, few, replace(target, height=32, width=64), tmp_path / "j")


def test_a_finished_profile_measures_nothing_again(make_machine, few, target, tmp_path):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    first = run(make_machine(noise=0.01), few, small, path)
    content = path.read_bytes()
    machine = make_machine()
    assert run(machine, few, small, path) == first
    assert (machine.opened, path.read_bytes()) == (0, content)


@pytest.mark.parametrize("fail_at", [1, 2, 17, 40, 90, 150, 222, 333])
def test_killed_at_any_sample_it_goes_on(make_machine, few, target, tmp_path, fail_at):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    broken = make_machine(fail_at=fail_at)
    with pytest.raises(KeyboardInterrupt):
        run(broken, few, small, path)
    assert broken.opened == broken.closed
    kept = path.read_bytes()
    machine = make_machine()
    table = run(machine, few, small, path)
    assert path.read_bytes().startswith(kept)
    assert max(map(abs, errors(table, machine, small).values())) < 2e-3
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    keys = [(json.dumps(line["operation"]), line["attempt"]) for line in lines]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(("field", "value"), [("threads", 2), ("device", "another"), ("width", 96), ("options", (("spinning", "0"),))])
def test_the_journal_of_another_target_is_refused(make_machine, few, target, tmp_path, field, value):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    run(make_machine(), few, small, path)
    with pytest.raises(IncompatibleError, match=field):
        run(make_machine(), few, replace(small, **{field: value}), path)


def test_the_journal_of_another_space_is_refused(machine, few, target, tmp_path):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    run(machine, few, small, path)
    with pytest.raises(IncompatibleError, match="space: the journal has 'tiny', asked for is 'other'"):
        profile("other", few, small, prepare=machine.prepare, graph_sha256=str, journal=path, provenance={})


def test_a_damaged_line_names_its_place(machine, few, target, tmp_path):
    small, path = replace(target, height=32, width=64), tmp_path / "j"
    run(machine, few, small, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{nonsense\n", *lines[2:]]))
    with pytest.raises(InputError, match="damaged in line 2: it is no JSON"):
        run(machine, few, small, path)


def test_a_file_that_is_no_journal_is_left_alone(machine, few, target, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text('{"schema": "something else"}\n')
    with pytest.raises(InputError, match="schema"):
        run(machine, few, target, path)
    assert path.read_text() == '{"schema": "something else"}\n'


def test_progress_counts_to_the_end(machine, few, target, tmp_path):
    small = replace(target, height=32, width=64)
    seen: list[tuple[int, int]] = []
    run(machine, few, small, tmp_path / "j", progress=lambda done, total, operation: seen.append((done, total)))
    planned = len(designs(few, small))
    assert [done for done, _ in seen][:planned] == list(range(1, planned + 1))
    assert {total for _, total in seen} == {planned}


def test_a_price_below_the_clock_is_floored_and_flagged(make_machine, few, target, tmp_path):
    small = replace(target, height=32, width=64)
    machine = make_machine(price=lambda operation: 1.0 if operation.op == "conv" and operation.stride == 1 else 0.0)
    table = run(machine, few, small, tmp_path / "j")
    addition = next(e for e in table.entries if e.operation.op == "add")
    assert addition.median_ms == pytest.approx(0.0002)
    assert addition.spread >= 1


def test_missing_entries_name_the_command(machine, few, target, tmp_path, small_network):
    small = replace(target, height=32, width=64)
    table = run(machine, few, small, tmp_path / "j")
    with pytest.raises(IncompatibleError, match=r"segnas profile tiny --size 32x64"):
        table.estimate(small_network("inverted_residual"))


def test_provenance_is_kept(machine, few, target, tmp_path):
    table = run(machine, few, replace(target, height=32, width=64), tmp_path / "j")
    assert dict(table.provenance)["cpu"] == "made up"
    assert dict(table.provenance)["protocol"] == "segnas.slope/2"


def test_an_empty_space_gives_an_empty_table(machine, target, tmp_path):
    assert run(machine, (), target, tmp_path / "j").entries == ()

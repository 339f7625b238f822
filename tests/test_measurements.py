"""The journal of measured networks: nothing twice, and nothing that was half written."""

from pathlib import Path

import pytest

from segnas.arch import Architecture, Node
from segnas.errors import InputError
from segnas.kinds import kind
from segnas.measurements import MeasurementJournal
from segnas.timing import Measured

CONTENT = '{"digest":"aaaaaaaaaaaa","measured_ms":1.5,"table":"t"}\n{"digest":"bbbbbbbbbbbb","measured_ms":2,"table":"t"}\n'


def network(width: int) -> Architecture:
    return Architecture((Node(kind("image"), (), 3), Node(kind("conv"), (0,), width)))


class Clock:
    """Counts what it measures: 1 ms a channel."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, architecture: Architecture) -> Measured:
        self.asked.append(architecture.digest)
        return Measured(architecture.nodes[-1].channels + 0.1, 0.01)


def never(architecture: Architecture) -> Measured:
    raise AssertionError("it is in the journal")


def test_nothing_is_measured_twice_in_one_process_or_the_next(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "m.jsonl"
    journal = MeasurementJournal(path, "t")
    assert [journal.measure(network(width), clock).median_ms for width in (8, 16, 8, 16)] == [8.1, 16.1, 8.1, 16.1]
    assert clock.asked == [network(8).digest, network(16).digest]
    again = MeasurementJournal(path, "t")
    assert [again.measure(network(width), never).median_ms for width in (16, 8)] == [16.1, 8.1]
    assert len(path.read_text().splitlines()) == 2


def test_measurements_of_another_table_are_kept_and_not_used(tmp_path: Path) -> None:
    path, clock = tmp_path / "m.jsonl", Clock()
    MeasurementJournal(path, "t").measure(network(8), clock)
    MeasurementJournal(path, "other").measure(network(8), clock)
    assert len(clock.asked) == 2
    assert MeasurementJournal(path, "t").measure(network(8), never)[:2] == (8.1, 0.01)


def test_a_measurement_is_on_the_disk_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    MeasurementJournal(path, "t").measure(network(8), Clock())
    assert path.read_text() == f'{{"digest":"{network(8).digest}","measured_ms":8.1,"relative_sd":0.01,"table":"t"}}\n'


@pytest.mark.parametrize("kept", range(len(CONTENT) + 1))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(CONTENT[:kept])
    whole = CONTENT[:kept].count("\n")
    journal = MeasurementJournal(path, "t")
    assert journal.known == dict([("aaaaaaaaaaaa", 1.5), ("bbbbbbbbbbbb", 2.0)][:whole])
    journal.measure(network(8), Clock())
    lines = path.read_text().splitlines(keepends=True)
    assert "".join(lines[:-1]) == "".join(CONTENT.splitlines(keepends=True)[:whole])
    assert MeasurementJournal(path, "t").measure(network(8), never)[:2] == (8.1, 0.01)


def test_a_failed_measurement_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with pytest.raises(AssertionError):
        MeasurementJournal(path, "t").measure(network(8), never)
    assert not path.exists()
    assert MeasurementJournal(path, "t").measure(network(8), Clock())[:2] == (8.1, 0.01)


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"digest":"a"}', '{"digest":"a","measured_ms":1}', '{"digest":"a","measured_ms":"fast","table":"t"}', ""]
)
def test_a_damaged_line_within_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f"{CONTENT}{line}\n")
    with pytest.raises(InputError, match=r"m\.jsonl is damaged in line 3: .*remove that line"):
        MeasurementJournal(path, "t")
    assert path.read_text() == f"{CONTENT}{line}\n"

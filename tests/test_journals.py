"""Journals of JSON objects: on the disk at once, torn lines dropped, damaged ones named."""

from pathlib import Path

import pytest

from segnas.errors import InputError, RequirementError
from segnas.journals import Journal

CONTENT = '{"a":1}\n{"b":[2,3]}\n'


def test_an_object_is_on_the_disk_before_add_returns_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "j.jsonl"
    journal = Journal(path)
    assert (journal.entries, path.exists()) == ([], False)
    journal.add({"a": 1})
    assert path.read_text() == '{"a":1}\n'
    journal.add({"b": [2, 3]})
    assert path.read_text() == CONTENT
    assert Journal(path).entries == journal.entries == [{"a": 1}, {"b": [2, 3]}]


@pytest.mark.parametrize("kept", range(len(CONTENT) + 1))
def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(CONTENT[:kept])
    whole = [{"a": 1}, {"b": [2, 3]}][: CONTENT[:kept].count("\n")]
    journal = Journal(path)
    assert journal.entries == whole
    journal.add({"c": 4})
    assert Journal(path).entries == [*whole, {"c": 4}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b"", b"null", b'{"a":"\xff"}', b"[" * 100_000])
def test_a_damaged_line_is_named_and_the_file_left_alone(tmp_path: Path, line: bytes) -> None:
    path, content = tmp_path / "j.jsonl", CONTENT.encode() + line + b"\n" + CONTENT.encode() + b'{"torn'
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"j\.jsonl is damaged in line 3: it is no JSON.*; remove that line"):
        Journal(path)
    assert path.read_bytes() == content


def test_a_journal_begins_with_its_header_once(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    assert Journal(path).begin({"a": 1}) == Journal(path).begin({"b": 2}) == {"a": 1}
    path.write_text('{"a":1}\n{"b"')
    assert Journal(path).begin({"b": 2}) == {"a": 1}
    assert path.read_text() == '{"a":1}\n'
    path.write_text('{"a":')
    assert Journal(path).begin({"b": 2}) == {"b": 2}
    assert path.read_text() == '{"b":2}\n'


def test_what_is_only_read_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text(CONTENT + '{"c"')
    assert Journal(path).entries == [{"a": 1}, {"b": [2, 3]}]
    assert path.read_text() == CONTENT + '{"c"'


def test_a_file_that_cannot_be_written_is_an_error_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").mkdir()
    with pytest.raises(RequirementError, match="could not be written"):
        Journal(tmp_path / "j.jsonl").add({"a": 1})

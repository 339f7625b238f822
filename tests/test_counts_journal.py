"""The journal of an evaluation: whole lines or none, checked to the pixel, and its owner's alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from segnas.counts_journal import CountsJournal
from segnas.errors import IncompatibleError, InputError, RequirementError, UsageError
from segnas.labels import CAMVID, CITYSCAPES
from segnas.report import InstanceCount
from segnas.runtime.counting import Counted

BELONGS = {"engine_sha256": "ab", "protocol": {"flip": False, "scales": (1.0, 0.5)}}


def counts_of(index: int) -> Counted:
    """The counts of an image that was never there."""
    counts = np.random.default_rng(index).integers(0, 50, (34, 34)) * (np.random.default_rng(index + 1).random((34, 34)) < 0.1)
    return Counted(index, counts.astype(np.int64), (InstanceCount(index, 26, 90, 80, 85), InstanceCount(index, 24, 7, 0, 7)))


def opened(path: Path, **belongs: object) -> tuple[CountsJournal, list[Counted]]:
    found: list[Counted] = []
    return CountsJournal(path, {**BELONGS, **belongs}, CITYSCAPES, found.append), found


def held(path: Path) -> list[Counted]:
    journal, found = opened(path)
    journal.close()
    return found


def equal(ours: Counted, theirs: Counted) -> bool:
    return (ours.index, ours.instances) == (theirs.index, theirs.instances) and np.array_equal(ours.counts, theirs.counts)


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    journal, found = opened(tmp_path / "deep" / "j.jsonl")
    assert found == []
    for index in (3, 0, 7):
        journal.add(counts_of(index))
    journal.close()
    journal, found = opened(tmp_path / "deep" / "j.jsonl")
    assert [counted.index for counted in found] == [3, 0, 7]
    assert all(equal(counted, counts_of(counted.index)) for counted in found)
    journal.add(Counted(9, np.ones((34, 34), np.int64)))
    journal.close()
    journal.close()
    assert held(tmp_path / "deep" / "j.jsonl")[3].instances is None


def test_every_torn_end_is_dropped(tmp_path: Path) -> None:
    """Cut at each byte of the last line: the lines before are there, and the next goes behind them."""
    whole = tmp_path / "whole.jsonl"
    journal, _ = opened(whole)
    for index in range(3):
        journal.add(counts_of(index))
    journal.close()
    content = whole.read_bytes()
    last = content[:-1].rindex(b"\n") + 1
    for cut in (0, 1, last, last + 1, (last + len(content)) // 2, len(content) - 1):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(content[:cut])
        journal, found = opened(path)
        kept = 0 if cut < last else 2
        assert [counted.index for counted in found] == list(range(kept))
        for index in range(kept, 3):
            journal.add(counts_of(index))
        journal.close()
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine_sha256": "cd"}, "engine_sha256: the folder has ab, asked for is cd"),
        ({"protocol": {"flip": True, "scales": (1.0, 0.5)}}, "protocol.flip: the folder has False, asked for is True"),
        ({"protocol": {"flip": False, "scales": (1.0,)}}, r"protocol.scales: the folder has \[1.0, 0.5\], asked for is \[1.0\]"),
        ({"split": "test"}, "split: the folder has None, asked for is test"),
    ],
)
def test_the_journal_of_something_else_is_refused_by_name(tmp_path: Path, change: dict[str, object], message: str) -> None:
    journal, _ = opened(tmp_path / "j.jsonl")
    journal.add(counts_of(0))
    journal.close()
    before = (tmp_path / "j.jsonl").read_bytes()
    with pytest.raises(IncompatibleError, match=f"another evaluation.*{message}.*--out"):
        opened(tmp_path / "j.jsonl", **change)
    assert (tmp_path / "j.jsonl").read_bytes() == before
    assert len(held(tmp_path / "j.jsonl")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "{}",
        '{"image":0,"counts":[[0,0,5]],"pixels":6}',
        '{"image":0,"counts":[[0,34,5]],"pixels":5}',
        '{"image":0,"counts":[[-1,0,5]],"pixels":5}',
        '{"image":-1,"counts":[[0,0,5]],"pixels":5}',
        '{"image":"a","counts":[[0,0,5]],"pixels":5}',
        '{"image":0,"counts":[[0,0,-5]],"pixels":-5}',
        '{"image":0,"counts":[[0,0]],"pixels":5}',
        '{"image":0,"counts":[[0,0,5]],"pixels":5,"instances":[[26,4]]}',
        "\xff",
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "j.jsonl"
    opened(path)[0].close()
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(InputError, match="damaged in line 2; remove that line"):
        opened(path)
    path.write_text('{"other":1}\n')
    with pytest.raises(InputError, match="line 1; remove the file"):
        opened(path)


def test_an_image_that_is_refused_is_a_damaged_line(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "j.jsonl")
    journal.add(counts_of(4))
    journal.close()

    def refuse(counted: Counted) -> None:
        raise ValueError("twice")

    with pytest.raises(InputError, match="line 2"):
        CountsJournal(tmp_path / "j.jsonl", BELONGS, CITYSCAPES, refuse)


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "j.jsonl")
    with pytest.raises(UsageError, match=r"another process.*--out, then merge"):
        opened(tmp_path / "j.jsonl")
    journal.close()
    opened(tmp_path / "j.jsonl")[0].close()


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequirementError, match="could not be written"):
        opened(tmp_path / "file" / "j.jsonl")
    with pytest.raises(RequirementError, match="could not be written"):
        opened(tmp_path)


def test_lines_are_plain_json(tmp_path: Path) -> None:
    journal = CountsJournal(tmp_path / "j.jsonl", BELONGS, CAMVID, lambda counted: None)
    counts = np.zeros((12, 12), np.int64)
    counts[3, 4] = 5
    journal.add(Counted(2, counts))
    journal.close()
    lines = (tmp_path / "j.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"belongs": {"engine_sha256": "ab", "protocol": {"flip": False, "scales": [1.0, 0.5]}}},
        {"counts": [[3, 4, 5]], "image": 2, "pixels": 5},
    ]

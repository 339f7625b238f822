"""Missed budgets: what is set aside, what is aimed at then, and that a process killed at any moment of it loses nothing."""

import json
import os
from pathlib import Path

import pytest

from segnas.arch import Architecture, Node
from segnas.files import write_noun
from segnas.kinds import kind
from segnas.missed import MISSED_NAME, MOVED, Miss, aimed_ms, keep_last, read_misses, set_aside, settle


def network(width: int) -> Architecture:
    return Architecture((Node(kind("image"), (), 3), Node(kind("conv", kernel=1), (0,), width)))


def written(folder: Path, *, width: int = 8, derived_ms: float = 9.8, measured_ms: float = 10.5) -> Path:
    folder.mkdir(exist_ok=True)
    for name in MOVED:
        (folder / name).write_text(f"{name} of {width}")
    for name, content in {
        "budget.json": {"budget_ms": 10.0},
        "derive.json": {"measured_ms": derived_ms},
        "measured.json": {"measured_ms": measured_ms},
    }.items():
        (folder / name).write_text(json.dumps(content))
    write_noun(folder / "arch.json", network(width))
    return folder


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_engine_over_its_budget_is_set_aside_and_the_next_is_aimed_as_much_lower(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    before = held(folder)
    assert set_aside(folder, 1) == Miss(network(8).digest, 9.8, 10.5)
    after = held(folder)
    assert after.pop(MISSED_NAME)
    assert after == {(f"missed-1/{name}" if name in MOVED else name): content for name, content in before.items()}
    assert aimed_ms(10.0, read_misses(folder)) == pytest.approx(10.0 * 9.8 / 10.5)
    written(folder, width=16, derived_ms=9.0, measured_ms=10.1)
    assert set_aside(folder, 1) is None  # as often as was allowed
    assert set_aside(folder, 2) is not None
    assert [miss.architecture for miss in read_misses(folder)] == [network(8).digest, network(16).digest]
    assert aimed_ms(10.0, read_misses(folder)) == pytest.approx(10.0 * 9.0 / 10.1)
    assert (folder / "missed-1" / "model.onnx").read_text() == "model.onnx of 8"
    assert (folder / "missed-2" / "model.onnx").read_text() == "model.onnx of 16"


def test_an_engine_within_its_budget_stays(tmp_path: Path) -> None:
    folder = written(tmp_path / "run", measured_ms=10.0)
    before = held(folder)
    assert set_aside(folder, 3) is None
    settle(folder)
    assert held(folder) == before
    assert (read_misses(folder), aimed_ms(10.0, ())) == ((), 10.0)


def test_what_was_set_aside_last_comes_back_for_good(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    before = held(folder)
    set_aside(folder, 2)
    assert keep_last(folder).is_final
    after = held(folder)
    assert after.pop(MISSED_NAME)
    assert after == before
    assert not (folder / "missed-1").exists()
    assert set_aside(folder, 2) is None


@pytest.mark.parametrize("moves", range(len(MOVED) + 1))
def test_a_process_that_is_killed_meanwhile_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    class Killed(BaseException):
        pass

    replace, left = os.replace, [0]

    def dying(source: Path, target: Path) -> None:
        if Path(source).suffix != ".partial":  # what `write_text` renames
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        replace(source, target)

    whole, folder = written(tmp_path / "whole"), written(tmp_path / "run")
    for step in (lambda where: set_aside(where, 1), keep_last):
        step(whole)
        with monkeypatch.context() as patch:
            patch.setattr("segnas.missed.os.replace", dying)
            left[0] = moves
            try:
                step(folder)
            except Killed:
                assert moves < len(MOVED)
        settle(folder)
        assert held(folder) == held(whole)

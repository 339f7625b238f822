"""The trace of a search: it reads as it was written, a kill at any byte leaves no trace in it, and damage is named by its line."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas.errors import IncompatibleError, InputError, RequirementError, SegnasError
from segnas.report import Curve
from segnas.search.trace import COLUMNS, SCHEMA, History, Trace, TraceHeader, TraceStep, read_trace

HEADER = TraceHeader("cas-tiny", 19, {"b": 2, "a": 3}, 40, 8.5, {"seed": 3, "settings": {"crop": [64, 64]}})
EVEN = {"b": (0.5, 0.5), "a": (0.25, 0.25, 0.5)}
STEPS = (
    TraceStep(1, {"loss": 2.5}, EVEN),
    TraceStep(2, {"loss": 2.25, "expected latency, ms": 9.0}),
    TraceStep(5, {"loss": 1.0, "expected latency, ms": 8.75, "naïve \u2028": -1e-300}, {"b": (0.0, 1.0), "a": (0.1, 0.2, 0.7)}),
)


def write(path: Path, header: TraceHeader = HEADER, steps: tuple[TraceStep, ...] = STEPS) -> bytes:
    with Trace.start(path, header) as trace:
        for line in steps:
            trace.append(line.step, line.values, line.probabilities)
    return path.read_bytes()


# ---- round trips


def test_what_was_written_is_read(tmp_path: Path) -> None:
    content = write(tmp_path / "t.jsonl")
    found = read_trace(tmp_path / "t.jsonl")
    assert found == History(HEADER, STEPS)
    assert list(found.header.decisions) == ["b", "a"]  # their order is the space's
    identity = {"seed": 3, "settings": {"crop": [64, 64]}}
    own = {"schema": SCHEMA, "space": "cas-tiny", "classes": 19, "decisions": {"b": 2, "a": 3}, "steps": 40, "budget_ms": 8.5}
    assert json.loads(content.split(b"\n")[0]) == {**own, **identity}
    assert content == write(tmp_path / "t.jsonl")


def test_curves_and_kept_probabilities(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl")
    found = read_trace(tmp_path / "t.jsonl")
    assert found.curves[:2] == (Curve("loss", (1, 2, 5), (2.5, 2.25, 1.0)), Curve("expected latency, ms", (2, 5), (9.0, 8.75)))
    assert [step for step, _ in found.kept] == [1, 5]
    assert found.kept[0][1] == EVEN


@st.composite
def histories(draw: st.DrawFn) -> History:
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    decisions = draw(st.dictionaries(names, st.integers(1, 4), max_size=3))
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    identity = draw(
        st.dictionaries(names.filter(lambda n: n not in HEADER.values()), st.recursive(numbers | names, st.lists, max_leaves=3), max_size=2)
    )
    header = TraceHeader(draw(names), draw(st.integers(1, 300)), decisions, draw(st.integers(1, 10**6)), draw(st.none() | numbers), identity)
    steps = sorted(draw(st.sets(st.integers(0, 10**9), max_size=5)))

    def probabilities() -> dict[str, tuple[float, ...]]:
        weights = {name: [draw(st.floats(0.01, 1)) for _ in range(size)] for name, size in decisions.items()}
        return {name: tuple(w / math.fsum(given) for w in given) for name, given in weights.items()}

    lines = [TraceStep(step, draw(st.dictionaries(names, numbers, max_size=3)), probabilities() if draw(st.booleans()) else None) for step in steps]
    return History(header, tuple(lines))


@settings(deadline=None, max_examples=60)
@given(histories())
def test_any_history_comes_back(history: History) -> None:
    with TemporaryDirectory() as folder:
        write(Path(folder) / "t.jsonl", history.header, history.steps)
        assert read_trace(Path(folder) / "t.jsonl") == history


def test_a_picture_has_columns_enough_and_not_too_many() -> None:
    for steps in (1, 2, 40, 199, 200, 201, 4321, 100_000):
        header = replace(HEADER, steps=steps)
        due = [step for step in range(1, steps + 1) if header.is_due(step)]
        assert {1, steps} <= set(due)
        assert min(steps, COLUMNS) / 2 <= len(due) <= COLUMNS + 2


# ---- kills


def prefixes(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Every way in which a file may end early, with its whole lines."""
    for size in range(len(content) + 1):
        yield content[:size].count(b"\n"), content[:size]


def test_cut_at_every_byte_it_reads_as_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for lines, content in prefixes(write(path)):
        path.write_bytes(content)
        if lines:
            assert read_trace(path) == History(HEADER, STEPS[: lines - 1])
        else:
            with pytest.raises(InputError, match=r"t\.jsonl holds no whole line"):
                read_trace(path)


def test_cut_at_every_byte_and_resumed_it_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Whatever checkpoint the search has: lines beyond it are written again."""
    path = tmp_path / "t.jsonl"
    whole = write(path)
    for lines, content in prefixes(whole):
        for checkpoint in [0, *(line.step for line in STEPS[: max(0, lines - 1)])]:
            path.write_bytes(content)
            with Trace.resume(path, HEADER, step=checkpoint) as trace:
                assert read_trace(path).steps == tuple(line for line in STEPS if line.step <= checkpoint)
                for line in STEPS:
                    if line.step > checkpoint:
                        trace.append(line.step, line.values, line.probabilities)
            assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_lost_trace_begins_anew_and_a_lost_stretch_stays_lost(tmp_path: Path) -> None:
    with Trace.resume(tmp_path / "t.jsonl", HEADER, step=4) as trace:
        trace.append(5, {"loss": 1.0})
    assert read_trace(tmp_path / "t.jsonl") == History(HEADER, (TraceStep(5, {"loss": 1.0}),))
    with Trace.resume(tmp_path / "t.jsonl", HEADER, step=9) as trace:
        trace.append(10, {})
    assert [line.step for line in read_trace(tmp_path / "t.jsonl").steps] == [5, 10]


def test_a_line_is_there_before_append_returns_even_if_the_process_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from segnas.search.trace import Trace, TraceHeader
trace = Trace.start(Path({str(tmp_path / "t.jsonl")!r}), TraceHeader("s", 2, {{}}, 9))
for step in range(1, 6):
    trace.append(step, {{"loss": 1 / step}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode < 0
    assert [line.values["loss"] for line in read_trace(tmp_path / "t.jsonl").steps] == [1 / step for step in range(1, 6)]


# ---- damage


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_changed_byte_is_read_strictly_or_refused(data: st.DataObject) -> None:
    """Never another exception, and never a history that breaks a rule of the format."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        content = bytearray(write(path))
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content))
        try:
            found = read_trace(path)
        except SegnasError as error:
            found = error
        if isinstance(found, SegnasError):
            assert str(path) in str(found)
            return
        steps = [line.step for line in found.steps]
        assert steps == sorted(set(steps))
        assert all(math.isfinite(value) for line in found.steps for value in line.values.values())
        for _, probabilities in found.kept:
            assert {name: len(options) for name, options in probabilities.items()} == found.header.decisions
            assert all(min(options) >= 0 and math.fsum(options) == pytest.approx(1, abs=2e-3) for options in probabilities.values())


GOOD = {"step": 7, "values": {"loss": 1.0}, "probabilities": {"b": [0.5, 0.5], "a": [0.25, 0.25, 0.5]}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[1]", "it is [1]; dict is needed"),
        (b"\xff{}", "it is no JSON"),
        (json.dumps({**GOOD, "step": 5}), "step 5 comes after step 5"),
        (json.dumps({**GOOD, "step": True}), "step is True; int is needed"),
        (json.dumps({**GOOD, "step": -1}), "step is -1; at least 0 is needed"),
        (json.dumps({"values": {}}), "step is None; int is needed"),
        (json.dumps({**GOOD, "note": ""}), "unknown keys note; known: step, values, probabilities"),
        (json.dumps({"step": 7}), "values is None; dict is needed"),
        (json.dumps({**GOOD, "values": {"loss": "1"}}), "values.loss is '1'; float is needed"),
        (json.dumps({**GOOD, "values": {"loss": None}}), "values.loss is None; float is needed"),
        ('{"step": 7, "values": {"loss": NaN}}', "values.loss is nan; a finite number is needed"),
        ('{"step": 7, "values": {"loss": 1e999}}', "values.loss is inf; a finite number is needed"),
        ('{"step": 7, "values": {"loss": ' + "9" * 400 + "}}", "values.loss is an integer of 400 digits"),
        (json.dumps({**GOOD, "probabilities": {"b": [0.5, 0.5]}}), "probabilities of a are missing or unknown"),
        (json.dumps({**GOOD, "probabilities": {**GOOD["probabilities"], "c": [1]}}), "probabilities of c are missing or unknown"),
        (json.dumps({**GOOD, "probabilities": {**GOOD["probabilities"], "b": [1.0]}}), "probabilities.b is [1.0]; 2 numbers from 0 on"),
        (json.dumps({**GOOD, "probabilities": {**GOOD["probabilities"], "b": [0.5, 0.6]}}), "2 numbers from 0 on that sum up to 1"),
        (json.dumps({**GOOD, "probabilities": {**GOOD["probabilities"], "b": [-0.5, 1.5]}}), "2 numbers from 0 on that sum up to 1"),
        ('{"step": 7, "values": {}, "probabilities": {"b": [NaN, 1], "a": [1, 0, 0]}}', "2 numbers from 0 on that sum up to 1"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = tmp_path / "t.jsonl"
    content = write(path) + (line.encode() if isinstance(line, str) else line) + b"\n"
    path.write_bytes(content)
    for ask in (lambda: read_trace(path), lambda: Trace.resume(path, HEADER, step=9)):
        with pytest.raises(InputError) as caught:
            ask()
        assert f"{path}, line 5: " in str(caught.value)
        assert message in str(caught.value)
        assert "remove that line, or the file" in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"schema": "segnas.trace/2"}, IncompatibleError, "has schema 'segnas.trace/2'; the trace of a search, of schema segnas.trace/1, is needed"),
        ({"schema": "segnas.report/1"}, InputError, "has schema 'segnas.report/1'"),
        ({"schema": None}, InputError, "has schema None"),
        ({"space": 3}, InputError, "line 1: space is 3; str is needed"),
        ({"classes": 0}, InputError, "line 1: classes is 0; at least 1 is needed"),
        ({"steps": "40"}, InputError, "line 1: steps is '40'; int is needed"),
        ({"decisions": ["a"]}, InputError, "line 1: decisions is ['a']; dict is needed"),
        ({"decisions": {"a": 0}}, InputError, "line 1: decisions.a is 0; at least 1 is needed"),
        ({"budget_ms": "8"}, InputError, "line 1: budget_ms is '8'; float is needed"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, change: dict[str, object], error: type[SegnasError], message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({**HEADER.values(), **change}) + "\n")
    with pytest.raises(error) as caught:
        read_trace(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


# ---- what is refused


def test_the_trace_of_another_search_is_not_gone_on_with(tmp_path: Path) -> None:
    content = write(tmp_path / "t.jsonl")
    for other, message in (
        (replace(HEADER, space="cas"), "its space is 'cas-tiny', not 'cas'"),
        (replace(HEADER, budget_ms=None), "its budget_ms is 8.5, not None"),
        (replace(HEADER, identity={**HEADER.identity, "seed": 4}), "its seed is 3, not 4"),
        (replace(HEADER, identity={}), "its seed is 3, not None"),
    ):
        with pytest.raises(IncompatibleError) as caught:
            Trace.resume(tmp_path / "t.jsonl", other, step=9)
        assert message in str(caught.value)
        assert "remove it or choose another --out" in str(caught.value)
    assert (tmp_path / "t.jsonl").read_bytes() == content
    Trace.resume(
        tmp_path / "t.jsonl", replace(HEADER, identity={"settings": {"crop": (64, 64)}, "seed": 3}), step=9
    ).close()  # a tuple is a list there
    assert (tmp_path / "t.jsonl").read_bytes() == content


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with Trace.start(tmp_path / "t.jsonl", HEADER) as trace:
        trace.append(3, {"loss": 1.0}, EVEN)
        before = (tmp_path / "t.jsonl").read_bytes()
        for step, values, probabilities in (
            (3, {}, None),
            (4, {"loss": math.nan}, None),
            (4, {}, {"b": (0.5, 0.5)}),
            (4, {}, {**EVEN, "b": (1.0, 1.0)}),
        ):
            with pytest.raises(ValueError, match=r"traced after|not JSON compliant|missing or unknown|sum up to 1"):
                trace.append(step, values, probabilities)
        assert (tmp_path / "t.jsonl").read_bytes() == before


def test_a_trace_that_is_not_there_or_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl does not exist; a search leaves its trace there"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path)
    (tmp_path / "t.jsonl").mkdir()
    with pytest.raises(RequirementError, match="could not be written"):
        Trace.start(tmp_path / "t.jsonl", HEADER)


def test_the_trace_needs_no_torch() -> None:
    code = "import sys, segnas.search.trace; print([name for name in ('torch', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"

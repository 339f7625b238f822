"""`segnas show` of a search: under way from its trace, finished from its probabilities, and what it says where there is too little."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from segnas.arch import Architecture
from segnas.cli import segnas
from segnas.errors import IncompatibleError, InputError, SegnasError, UsageError
from segnas.files import read_json, unplain, write_noun, write_text
from segnas.latency import Entry, LatencyTable
from segnas.latency_tables.store import save_table
from segnas.report import Curve, Timing
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.spaces import space
from segnas.search.trace import TRACE_NAME, Trace, TraceHeader
from segnas.search_view import view_of
from segnas.steps import search_drawings, write_curves

TINY = space("cas-tiny", 19)
HEADER = TraceHeader("cas-tiny", 19, TINY.decisions, 40, 8.5)
Probabilities = dict[str, tuple[float, ...]]


def sharp(genotype: dict[str, int], height: float) -> Probabilities:
    """Probabilities of that height at a genotype, the rest shared."""
    return {
        name: tuple(height if option == genotype[name] else (1 - height) / (size - 1) for option in range(size))
        for name, size in TINY.decisions.items()
    }


EARLY, LATE = (TINY.random(Random(seed)) for seed in (1, 2))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A search that is at step 31 of 40, its decisions kept last at step 30; no table."""
    folder = tmp_path / "run"
    with Trace.start(folder / TRACE_NAME, HEADER) as trace:
        trace.append(1, {"loss": 3.0}, sharp(EARLY, 0.6))
        trace.append(30, {"loss": 2.0}, sharp(LATE, 0.8))
        trace.append(31, {"loss": 1.5})
    return folder


def add_table(folder: Path, classes: int = 19, name: str = "cas-tiny") -> LatencyTable:
    target = cpu_target(64, 128, threads=1)
    entries = tuple(Entry(o, "block", 0.05 + int(o.digest, 16) / 16**12, 0.0, 1, "made up", "") for o in space(name, classes).all_operations(target))
    table = LatencyTable(name, target, entries, 0.3)
    save_table(folder / "table.json", table)
    return table


def finish(folder: Path, probabilities: Probabilities, name: str = "cas-tiny") -> None:
    content = {decision: list(options) for decision, options in probabilities.items()}
    write_curves(folder / "search.json", [Curve("search/loss", (0,), (1.0,))], space=name, probabilities=content)


def said(*words: object) -> str:
    result = CliRunner().invoke(segnas, ["show", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(error: type[SegnasError], *words: object) -> str:
    with pytest.raises(error) as caught:
        segnas.main(["show", *map(str, words)], standalone_mode=False)
    assert type(caught.value) is error
    return str(caught.value)


# ---- what is shown


def test_a_search_under_way_shows_the_network_that_it_is_at(run: Path) -> None:
    shown = said(run)
    architecture = TINY.decode(LATE).architecture
    assert "search of cas-tiny, 19 classes: step 31 of 40, its decisions as of step 30 (search.trace.jsonl)" in shown
    assert "not known without a table.json in its folder; the budget is 8.500 ms" in shown
    assert re.search(r"1\.5 +loss", shown)
    assert f"architecture {architecture.digest}: {len(architecture.nodes)} nodes, 19 classes" in shown
    assert shown.count("  0.800  ") == len(TINY.decisions)
    assert said(run / TRACE_NAME) == shown


def test_a_torn_last_line_is_no_matter(run: Path) -> None:
    before = said(run)
    with (run / TRACE_NAME).open("ab") as stream:
        stream.write(b'{"step":32,"values":{"lo')
    assert said(run) == before


def test_a_finished_search_shows_its_probabilities_not_the_traces(run: Path) -> None:
    finish(run, sharp(EARLY, 0.9))
    digest = TINY.decode(EARLY).architecture.digest
    assert "search of cas-tiny, 19 classes: finished, 40 steps (search.json)" in said(run)
    assert f"architecture {digest}" in said(run)
    assert said(run / "search.json") == said(run)
    assert f"architecture {TINY.decode(LATE).architecture.digest}" in said(run / TRACE_NAME)
    (run / TRACE_NAME).unlink()
    assert "search of cas-tiny, 7 classes: finished (search.json)" in said(run, "--classes", 7)
    add_table(run, classes=11)
    assert "search of cas-tiny, 11 classes: finished (search.json)" in said(run)  # the table's classifier tells
    write_text(run / "budget.json", json.dumps({"asked": "p50", "budget_ms": 7.25}))
    assert "the budget is 7.250 ms" in said(run)


def test_latencies_are_the_tables(run: Path) -> None:
    """Decoded: the table's estimate. Expected: the mean over many draws by the probabilities, given the rules."""
    table = add_table(run)
    probabilities = sharp(LATE, 0.8)
    found = json.loads(said(run, "--json"))
    assert found["decoded_ms"] == pytest.approx(table.estimate(TINY.decode(LATE).architecture).total_ms, rel=1e-12)
    rng = Random(0)
    drawn = [table.additive_ms(TINY.decode(TINY.random(rng, probabilities)).architecture) for _ in range(400)]
    mean = math.fsum(drawn) / len(drawn)
    error = math.sqrt(math.fsum((ms - mean) ** 2 for ms in drawn)) / len(drawn)
    assert found["expected_ms"] == pytest.approx(mean, abs=4 * error)
    assert f"expected {found['expected_ms']:.3f} ms, decoded {found['decoded_ms']:.3f} ms; the budget is 8.500 ms; {table.target}" in said(run)


def test_json_of_a_search(run: Path) -> None:
    found = json.loads(said(run, "--json"))
    assert found["source"] == str(run / TRACE_NAME)
    assert (found["space"], found["classes"], found["finished"], found["step"], found["steps"]) == ("cas-tiny", 19, False, 30, 40)
    assert (found["budget_ms"], found["expected_ms"], found["decoded_ms"]) == (8.5, None, None)
    assert found["genotype"] == LATE
    assert found["probabilities"] == {name: list(options) for name, options in sharp(LATE, 0.8).items()}
    assert unplain(Architecture, found["architecture"]) == TINY.decode(LATE).architecture
    rest = 0.2 / 7
    assert found["entropy"] == pytest.approx((-0.8 * math.log(0.8) - 7 * rest * math.log(rest)) / math.log(8))


def test_entropy_is_one_where_nothing_is_decided_and_zero_where_everything_is(run: Path) -> None:
    finish(run, {name: (1 / size,) * size for name, size in TINY.decisions.items()})
    assert view_of(run).entropy == pytest.approx(1)
    finish(run, sharp(LATE, 1.0))
    assert view_of(run).entropy == 0


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_picture_is_the_networks(run: Path, tmp_path: Path, form: str) -> None:
    picture = tmp_path / f"new/now.{form}"
    said(run, "--picture", picture)
    bare = picture.read_bytes()
    table = add_table(run)
    said(run, "--picture", picture)
    if form == "png":
        assert cv2.imdecode(np.frombuffer(bare, np.uint8), cv2.IMREAD_COLOR) is not None
        return
    ms = table.price_ms(next(o for o in TINY.decode(LATE).architecture.operations(64, 128) if not o.is_free))
    assert f" · {ms:.2f}" in picture.read_text()
    assert " · " not in re.sub(r"pyramid[^<]*", "", bare.decode())
    assert "512×1024" in bare.decode()
    assert "64×128" in picture.read_text()


def test_an_architecture_is_drawn_too_and_nothing_else(run: Path, tmp_path: Path) -> None:
    write_noun(run / "arch.json", TINY.decode(EARLY).architecture)
    said(run / "arch.json", "--picture", tmp_path / "arch.svg")
    assert (tmp_path / "arch.svg").read_text().startswith("<?xml")
    write_noun(run / "timing.json", Timing("end_to_end", *(1,) * 2, *(1.0,) * 10))
    assert "neither an architecture nor a search" in refused(UsageError, run / "timing.json", "--picture", tmp_path / "t.svg")
    assert "--picture t.gif was given; the name of a .svg or .png file is needed, such as t.svg" in refused(UsageError, run, "--picture", "t.gif")
    assert "--classes was given" in refused(UsageError, run / "arch.json", "--classes", 19)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["arch.svg", "run"]


# ---- what is refused


def test_a_folder_without_a_search_says_what_to_run(tmp_path: Path) -> None:
    message = refused(InputError, tmp_path)
    assert f"{tmp_path} holds no search: neither search.json nor search.trace.jsonl is there" in message
    assert f"`segnas search SPACE ... --out {tmp_path}`" in message
    assert "does not exist" in refused(InputError, tmp_path / "none")


def test_a_search_without_probabilities_yet(run: Path) -> None:
    lines = (run / TRACE_NAME).read_bytes().splitlines(keepends=True)
    (run / TRACE_NAME).write_bytes(lines[0] + b'{"step":1,"values":{"loss":3.0}}\n')
    assert "holds no probabilities yet; look again" in refused(InputError, run)


def test_classes_that_nothing_tells_or_that_contradict(run: Path) -> None:
    assert "--classes 11 was given" in refused(UsageError, run, "--classes", 11)
    assert "step 31 of 40" in said(run, "--classes", 19)
    finish(run, sharp(LATE, 0.8))
    (run / TRACE_NAME).unlink()
    message = refused(InputError, run)
    assert "search.json does not say how many classes its dataset has" in message
    assert "give --classes" in message


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda run: add_table(run, name="cas-fast"), IncompatibleError, "table.json is of 'cas-fast': they do not belong together"),
        (lambda run: finish(run, sharp(LATE, 0.8), name="cas-fast"), IncompatibleError, "search.trace.jsonl is of 'cas-tiny'"),
        (lambda run: (run / "search.json").write_text("{"), InputError, "search.json is no complete JSON file"),
        (lambda run: write_text(run / "search.json", '{"space": "cas-tiny", "probabilities": [1]}'), InputError, "probabilities is [1]"),
        (lambda run: write_text(run / "search.json", '{"space": "cas-tiny", "probabilities": {"a": [1]}}'), InputError, "holds other decisions than"),
        (lambda run: (run / TRACE_NAME).write_bytes((run / TRACE_NAME).read_bytes() + b"[]\n"), InputError, "line 5: it is []; dict is needed"),
        (
            lambda run: (run / TRACE_NAME).write_text(json.dumps({**HEADER.values(), "decisions": {"a": 2}}) + "\n"),
            IncompatibleError,
            "holds other decisions than those of 'cas-tiny'; run `segnas search cas-tiny` again",
        ),
        (lambda run: (run / TRACE_NAME).write_text(json.dumps({**HEADER.values(), "space": "mine"}) + "\n"), UsageError, "no search space is called"),
    ],
)  # fmt: skip
def test_a_search_that_does_not_serve(run: Path, spoil: Callable[[Path], object], error: type[SegnasError], message: str) -> None:
    spoil(run)
    assert message in refused(error, run)


# ---- the report


def test_the_report_draws_the_search_from_its_trace(run: Path) -> None:
    write_text(run / "derive.json", json.dumps({"genotype": EARLY}))
    drawings, notes = search_drawings(run)
    assert notes == []
    assert [description for description, _ in drawings] == ["how the search came to its decisions", "losses and latency over the search"]
    assert drawings[0][1].decode().count(">0.03<") == len([name for name in EARLY if EARLY[name] != LATE[name]])  # 0.2 / 7, of what was derived
    (run / TRACE_NAME).unlink()
    assert search_drawings(run) == ([], [])


@pytest.mark.parametrize(
    ("genotype", "message"),
    [
        (None, "derive.json: genotype is None; dict is needed"),
        ({"a": 1}, "this genotype is none of space 'cas-tiny'"),
        ({**EARLY, "normal.0.0": "skip"}, "derive.json: genotype.normal.0.0 is 'skip'; int is needed"),
        ({**EARLY, "normal.0.0": 8}, "decision 'normal.0.0' was given option 8"),
    ],
)
def test_a_report_says_why_its_search_is_not_drawn(run: Path, genotype: object, message: str) -> None:
    write_text(run / "derive.json", json.dumps({"genotype": genotype}))
    drawings, (note,) = search_drawings(run)
    assert drawings == []
    assert note.startswith("The search is not drawn from its trace: ")
    assert message in note


def test_a_report_without_probabilities_or_with_a_damaged_trace_says_so(run: Path) -> None:
    write_text(run / "derive.json", json.dumps({"genotype": EARLY}))
    lines = (run / TRACE_NAME).read_bytes().splitlines(keepends=True)
    (run / TRACE_NAME).write_bytes(lines[0])
    assert "its trace holds no probabilities" in search_drawings(run)[1][0]
    (run / TRACE_NAME).write_bytes(lines[0] + b"{\n")
    assert "line 2: it is no JSON" in search_drawings(run)[1][0]
    assert read_json(run / "derive.json")["genotype"] == EARLY

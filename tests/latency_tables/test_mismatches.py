"""Planted mismatches: whatever does not belong is refused where it is first read, and the message names the field that differs."""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from segnas.__main__ import main
from segnas.arch import Architecture, canonical_json
from segnas.errors import IncompatibleError, InputError, SegnasError
from segnas.files import read_json, write_noun
from segnas.latency import Calibration, Entry, LatencyTable, Timed
from segnas.latency_tables.compose import PROTOCOL
from segnas.latency_tables.interpolate import interpolate
from segnas.latency_tables.journal import ProfileJournal, header_of
from segnas.latency_tables.merge import merge
from segnas.latency_tables.store import SCHEMA, load_table, save_table
from segnas.measuring import Services, for_this_machine, require_entries, require_live
from segnas.recipe import DataSettings, recipe_from_toml
from segnas.report import Curve
from segnas.run import run
from segnas.run_context import Run, SilentScreen
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.processor import available_cores
from segnas.search.spaces import space
from segnas.steps import write_curves
from segnas.streets import write_streets
from segnas.target import Target
from segnas.timing import Measured

Change = Callable[[Any], object]

RECIPE = """
name = "short"
space = "cas-tiny"
budget = "8ms"
target = { height = 64, width = 128, threads = 1 }
search = { steps = 2, warmup = 1, batch = 2, crop = [32, 64] }
train = { steps = 1, batch = 2, crop = [32, 64] }
"""


def table_of(name: str = "cas-tiny", classes: int = 19, **changes: object) -> LatencyTable:
    """A complete table of this machine with made-up prices; `changes` go to its target, and its operations follow."""
    target = replace(cpu_target(64, 128, threads=1), **changes)
    operations = sorted(space(name, classes).all_operations(target))
    entries = tuple(Entry(o, "block", 0.02, 0.01, 90, "made up", "a" * 64) for o in operations)
    provenance = (("created", "2025-01-31"), ("sentinel_ms", "2.5"))
    return LatencyTable(name, target, entries, calibration=Calibration(1.05, 0.02), provenance=provenance)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return table_of()


def refused(act: Callable[[], object], error: type[SegnasError], *named: str) -> None:
    """The act raises exactly that error, and its message holds each of these words."""
    with pytest.raises(error) as caught:
        act()
    assert type(caught.value) is error
    for words in named:
        assert words in str(caught.value)


# ---- the table of another target

OTHER: dict[str, object] = {
    "device": "a toaster, 1 core",
    "runtime": "torch",
    "runtime_version": "0.0.1",
    "precision": "fp16",
    "batch": 2,
    "input_contract": "image",
    "scope": "pipeline",
    "options": (("optimisation", "basic"), ("provider", "CPUExecutionProvider"), ("spinning", "off")),
}
ASKED: dict[str, object] = {"height": 96, "width": 160, "output_contract": "logits"}
SPINNING = (("optimisation", "all"), ("provider", "CPUExecutionProvider"), ("spinning", "on"))


def test_the_fields_below_are_all_that_a_target_has() -> None:
    assert {*OTHER, *ASKED, "threads"} == {field.name for field in fields(Target)}


@pytest.mark.parametrize(("field", "value"), [*OTHER.items(), ("options", SPINNING)], ids=[*OTHER, "spinning"])
def test_a_table_that_another_machine_measured(table: LatencyTable, field: str, value: object) -> None:
    other = replace(table, target=replace(table.target, **{field: value}))
    here = getattr(table.target, field)
    difference = f"{field}: the table has {value!r}, asked for is {here!r}"
    refused(lambda: for_this_machine(other), IncompatibleError, f"({difference})")
    refused(lambda: for_this_machine(other, [name for name in OTHER if name != field]), IncompatibleError, f"({difference})")
    assert for_this_machine(other, [field]) == replace(table, provenance=(("allowed_mismatch", difference), *table.provenance))


def run_with(table: LatencyTable, folder: Path, allow: tuple[str, ...] = ()) -> Run:
    """A run of the recipe that is given this table."""
    save_table(folder / "given.json", table)
    return Run(recipe_from_toml(RECIPE, "short"), folder / "out", SilentScreen(), table_file=folder / "given.json", allow=allow)


@pytest.mark.parametrize(("field", "value"), [*OTHER.items(), *ASKED.items(), ("threads", available_cores() + 1)], ids=[*OTHER, *ASKED, "threads"])
def test_a_run_that_is_given_a_table_of_another_target(tmp_path: Path, field: str, value: object) -> None:
    run = run_with(table_of(**{field: value}), tmp_path)
    refused(run.given_table, IncompatibleError, f"({field}: the table has {value!r}, asked for is ")
    allowed = replace(run, allow=(field,))
    if field in ("height", "width", "output_contract"):  # other operations, or more of them, than the table prices
        if field != "output_contract":
            refused(allowed.given_table, IncompatibleError, "latency table of 'cas-tiny' has no entry for ")
        return
    used = allowed.given_table()
    assert used is not None
    assert used.target == run.target()
    assert used.allowed_mismatch.startswith(f"{field}: the table has {value!r}, asked for is ")


@pytest.mark.parametrize(
    ("made", "named"),
    [
        pytest.param(lambda: table_of("cas"), "latency table of 'cas' has no entry for ", id="space"),
        pytest.param(lambda: table_of(classes=11), "with 19 classes, first classifier 48x8x16 -> 19x8x16", id="classes"),
        pytest.param(lambda: replace(table_of(), entries=table_of().entries[1:]), "for 1 operations of 'cas-tiny' with ", id="one-less"),
        pytest.param(lambda: replace(table_of(), entries=()), "no entry for 68 operations of 'cas-tiny'", id="empty"),
    ],
)
def test_a_table_of_something_else(tmp_path: Path, made: Callable[[], LatencyTable], named: str) -> None:
    tiny = space("cas-tiny", 19)
    refused(lambda: require_entries(tiny, made()), IncompatibleError, named, "`segnas profile cas-tiny --size 64x128 --threads 1 --classes 19 ")
    refused(run_with(made(), tmp_path).given_table, IncompatibleError, named)


def test_a_table_of_a_smaller_space_for_a_larger_one(table: LatencyTable) -> None:
    refused(lambda: require_entries(space("cas-fast", 19), table), IncompatibleError, "table of 'cas-tiny' has no entry for ", "of 'cas-fast'")


# ---- the table's file


def written(table: LatencyTable, path: Path, change: Change, *, sealed: bool) -> Path:
    """The table's file with a change to its content; `sealed` says whether the sha256 in it is then made to fit."""
    save_table(path, table)
    content = json.loads(path.read_text())
    change(content)
    if sealed:
        inner = {key: value for key, value in content.items() if key not in ("schema", "content_sha256")}
        content["content_sha256"] = hashlib.sha256(canonical_json(inner).encode()).hexdigest()
    path.write_text(json.dumps(content))
    return path


def entry(**values: object) -> Change:
    """Change the first entry."""
    return lambda content: content["entries"][0].update(values)


def scaled(content: Any) -> None:
    for made in content["entries"]:
        made["median_ms"] *= 1000


EDITED: dict[str, Change] = {
    "price": entry(median_ms=0.0199),
    "microseconds": scaled,
    "spread": entry(spread=0.0),
    "samples": entry(samples=900),
    "graph": entry(graph_sha256="b" * 64),
    "source": entry(source="transferred"),
    "operation": lambda content: content["entries"][0]["operation"]["output"].__setitem__(0, 49),
    "entry-removed": lambda content: content["entries"].pop(),
    "entry-twice": lambda content: content["entries"].append(content["entries"][0]),
    "order": lambda content: content["entries"].reverse(),
    "space": lambda content: content.update(space="cas"),
    "threads": lambda content: content["target"].update(threads=2),
    "overhead": lambda content: content.update(overhead_ms=0.1),
    "scale": lambda content: content["calibration"].update(scale=1.0),
    "provenance": lambda content: content["provenance"][0].__setitem__(1, "2026-01-31"),
    "sentinel": lambda content: content["provenance"][1].__setitem__(1, "2.4"),
    "digest": lambda content: content.update(content_sha256="c" * 64),
    "digest-removed": lambda content: content.pop("content_sha256"),
}


@pytest.mark.parametrize("what", EDITED)
def test_a_table_that_was_edited(table: LatencyTable, tmp_path: Path, what: str) -> None:
    path = written(table, tmp_path / "t.json", EDITED[what], sealed=False)
    refused(lambda: load_table(path), InputError, f"{path} was changed after it was written", "does not match its content_sha256", "profile again")


SEALED: dict[str, tuple[Change, str]] = {
    "negative": (entry(median_ms=-0.02), "prices add 48x4x8+48x4x8 -> 48x4x8 at -0.02 ms; a positive number is needed"),
    "zero": (entry(median_ms=0), "prices add 48x4x8+48x4x8 -> 48x4x8 at 0.0 ms; a positive number is needed"),
    "text": (entry(median_ms="0.02"), "entries[0].median_ms is '0.02'; float is needed"),
    "nothing": (entry(median_ms=None), "entries[0].median_ms is None; float is needed"),
    "unit": (lambda content: content["entries"][0].update(median_us=content["entries"][0].pop("median_ms")), "entries[0] has unknown keys median_us"),
    "no-samples": (lambda content: content["entries"][0].pop("samples"), "entries[0] lacks samples"),
    "twice": (EDITED["entry-twice"], "prices add 48x4x8+48x4x8 -> 48x4x8 twice"),
    "no-target": (lambda content: content.pop("target"), "lacks target"),
    "height": (lambda content: content["target"].update(height=0), "target height was given 0; at least 1 is needed"),
    "precision": (lambda content: content["target"].update(precision="bf16"), "target precision was given 'bf16'; allowed: fp32, fp16, int8"),
    "attribute": (lambda content: content["entries"][0]["operation"]["kind"].update(op="conv"), "operation 'conv' was given attributes []"),
}
"""Changed by hand and sealed again: what can be told all the same."""


@pytest.mark.parametrize("what", SEALED)
def test_a_table_that_cannot_be(table: LatencyTable, tmp_path: Path, what: str) -> None:
    change, named = SEALED[what]
    path = written(table, tmp_path / "t.json", change, sealed=True)
    refused(lambda: load_table(path), InputError, str(path), named)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_price_that_is_no_number(table: LatencyTable, tmp_path: Path, number: str) -> None:
    path = written(table, tmp_path / "t.json", lambda content: None, sealed=True)
    path.write_text(re.sub(r'"median_ms": [0-9.]+', f'"median_ms": {number}', path.read_text(), count=1))
    refused(lambda: load_table(path), InputError, f"{path} holds {number}, which is no JSON number")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_table_that_was_cut_short(table: LatencyTable, tmp_path: Path, share: float) -> None:
    path = tmp_path / "t.json"
    save_table(path, table)
    content = path.read_bytes().rstrip()
    path.write_bytes(content[: int(share * len(content))])
    refused(lambda: load_table(path), InputError, f"{path} is no complete JSON file")


def test_files_of_another_schema(table: LatencyTable, tmp_path: Path) -> None:
    needed = f"; a latency table of schema {SCHEMA} is needed"
    path = written(table, tmp_path / "t.json", lambda content: content.update(schema=f"{SCHEMA}0"), sealed=False)
    refused(lambda: load_table(path), IncompatibleError, f"schema '{SCHEMA}0'{needed}")
    write_noun(path, space("cas-tiny", 19).decode(next(space("cas-tiny", 19).genotypes())).architecture)
    refused(lambda: load_table(path), InputError, f"schema 'segnas.architecture/1'{needed}")
    path.write_text("{}")
    refused(lambda: load_table(path), InputError, f"schema None{needed}")


# ---- the journal of an interrupted profile

JOURNALS: dict[str, tuple[str, Target | None, str]] = {
    "space": ("cas", None, PROTOCOL),
    "protocol": ("cas-tiny", None, "segnas.slope/0"),
    **{
        field: ("cas-tiny", replace(cpu_target(64, 128, threads=1), **{field: value}), PROTOCOL)
        for field, value in {**OTHER, **ASKED, "threads": available_cores() + 1}.items()
    },
}


@pytest.mark.parametrize("field", JOURNALS)
def test_the_journal_of_another_profile(table: LatencyTable, tmp_path: Path, field: str) -> None:
    path, (name, target, protocol) = tmp_path / "t.jsonl", JOURNALS[field]
    ProfileJournal(path, header_of(name, target or table.target, protocol))
    held = path.read_bytes()
    refused(
        lambda: ProfileJournal(path, header_of("cas-tiny", table.target, PROTOCOL)),
        IncompatibleError,
        f"{path} belongs to another profile ({field}: the journal has ",
        ", asked for is ",
        "remove it or choose another --out",
    )
    assert path.read_bytes() == held


# ---- exit codes, and that the refusals above are not for another reason


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Streets, a recipe and a search of cas-tiny."""
    folder = tmp_path_factory.mktemp("made")
    write_streets(folder / "streets", counts={"train": 2, "val": 1}, height=64, width=128, seed=0)
    (folder / "short.toml").write_text(RECIPE)
    even = {name: [1 / options] * options for name, options in space("cas-tiny", 19).decisions.items()}
    write_curves(folder / "run" / "search.json", [Curve("c", (1,), (1.0,))], space="cas-tiny", probabilities=even)
    return folder


def derive(made: Path, path: Path, *more: str) -> list[object]:
    return ["derive", made / "run", "--space", "cas-tiny", "--table", path, "--budget", "8ms", *more]


def search(made: Path, path: Path, *more: str) -> list[object]:
    words = ["search", "cas-tiny", "--table", path, "--data-root", made / "streets", "--recipe", made / "short.toml"]
    return [*words, "--budget", "8ms", "--out", path.parent / "out", *more]


def whole(made: Path, path: Path, *more: str) -> list[object]:
    return ["run", "--recipe", made / "short.toml", "--data-root", made / "streets", "--table", path, "--out", path.parent / "out", *more]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace("0.02", "0.03", 1))


COMMANDS: dict[str, tuple[Callable[..., list[object]], Callable[[], LatencyTable], Callable[[Path], object], int, str]] = {
    "search-device": (search, lambda: table_of(device="a toaster"), str, 6, "(device: the table has 'a toaster', asked for is "),
    "derive-device": (derive, lambda: table_of(device="a toaster"), str, 6, "(device: the table has 'a toaster', asked for is "),
    "derive-version": (derive, lambda: table_of(runtime_version="0.1"), str, 6, "(runtime_version: the table has '0.1', asked for is "),
    "derive-space": (derive, lambda: table_of("cas-fast"), str, 6, "latency table of 'cas-fast' has no entry for "),
    "derive-classes": (derive, lambda: table_of(classes=11), str, 6, "of 'cas-tiny' with 19 classes, first classifier "),
    "derive-cut": (derive, table_of, cut, 4, "t.json is no complete JSON file"),
    "derive-edited": (derive, table_of, edited, 4, "t.json was changed after it was written"),
    "search-space": (search, lambda: table_of("cas"), str, 6, "latency table of 'cas' has no entry for "),
    "search-classes": (search, lambda: table_of(classes=2), str, 6, "of 'cas-tiny' with 19 classes, first classifier "),
    "search-edited": (search, table_of, edited, 4, "t.json was changed after it was written"),
    "run-height": (whole, lambda: table_of(height=96), str, 6, "(height: the table has 96, asked for is 64)"),
    "run-output": (whole, lambda: table_of(output_contract="logits"), str, 6, "(output_contract: the table has 'logits', asked for is 'labels')"),
    "run-edited": (whole, table_of, edited, 4, "t.json was changed after it was written"),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_what_the_commands_say(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str) -> None:
    words, table, damage, code, message = COMMANDS[what]
    save_table(tmp_path / "t.json", table())
    damage(tmp_path / "t.json")
    monkeypatch.setattr(sys, "argv", ["segnas", *map(str, words(made, tmp_path / "t.json"))])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert message in error
    assert error.count("Error: ") == 1
    assert ended.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    assert [path.name for path in (made / "run").iterdir()] == ["search.json"]


def never(*_: object) -> Timed:
    raise AssertionError("something was to be measured")


def as_predicted(architecture: Architecture, table: LatencyTable) -> Measured:
    return Measured(table.estimate(architecture).total_ms, 0.001)


TRUE = Services(never, as_predicted, lambda _, architecture, table, budget: as_predicted(architecture, table), require_live)
"""A machine on which a table's estimates are true."""


def ended(monkeypatch: pytest.MonkeyPatch, words: list[object]) -> int:
    monkeypatch.setattr(sys, "argv", ["segnas", *map(str, words)])
    with pytest.raises(SystemExit) as found:
        main()
    return int(found.value.code or 0)


def test_what_is_written_names_the_mismatch_that_was_allowed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table of another device and version: both are named, or it is refused; nothing is measured again to check it."""
    toaster = table_of(device="a toaster", runtime_version="0.1")
    path, run = tmp_path / "t.json", tmp_path / "out"
    save_table(path, toaster)
    monkeypatch.setattr("segnas.measuring.check_table_live", lambda *_: pytest.fail("a table whose mismatch was allowed was checked"))
    monkeypatch.setattr("segnas.measuring.SERVICES", TRUE)
    allow = ("--allow-mismatch", "device", "--allow-mismatch", "runtime_version", "--budget", "p50")
    assert ended(monkeypatch, search(made, path, *allow[:2], *allow[4:])) == 6
    assert ended(monkeypatch, search(made, path, *allow)) == 0
    wanted = toaster.differing(table_of().target)
    assert wanted.count("; ") == 1
    assert read_json(run / "search.json")["allowed_mismatch"] == wanted
    words = ["derive", run, "--space", "cas-tiny", "--table", path, "--budget", "8ms"]
    assert ended(monkeypatch, words) == 6
    assert ended(monkeypatch, [*words, *allow]) == 0
    assert read_json(run / "derive.json")["allowed_mismatch"] == wanted
    words = ["sample", "cas-tiny", "--table", path, "--data-root", made / "streets", "--recipe", made / "short.toml", "--budget", "8ms"]
    words += ["--trials", 1, "--supernet", run, "--strategy", "random", "--out", tmp_path / "sampled"]
    assert ended(monkeypatch, words) == 6
    assert ended(monkeypatch, [*words, *allow]) == 0
    assert read_json(tmp_path / "sampled" / "sampled.json")["allowed_mismatch"] == wanted


def test_what_was_allowed_of_a_run_is_in_its_report(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_table(tmp_path / "t.json", table_of(device="a toaster"))
    monkeypatch.setattr("segnas.measuring.check_table_live", lambda *_: pytest.fail("a table whose mismatch was allowed was checked"))
    recipe = replace(recipe_from_toml(RECIPE, "short"), budget="p50", data=DataSettings(root=str(made / "streets")))
    work = Run(recipe, tmp_path / "out", SilentScreen(), services=TRUE, table_file=tmp_path / "t.json", allow=("device",))
    report = run(work)
    wanted = f"device: the table has 'a toaster', asked for is {cpu_target(64, 128).device!r}"
    assert dict(report.timing.conditions)["allowed_mismatch"] == wanted
    assert report.engine.target == work.target()
    assert load_table(tmp_path / "out" / "table.json").allowed_mismatch == wanted
    assert read_json(tmp_path / "out" / "search.json")["allowed_mismatch"] == wanted
    assert wanted.replace("'", "&#39;") in (tmp_path / "out" / "report.html").read_text()


def test_what_was_allowed_of_two_tables_is_in_the_one_that_is_made(table: LatencyTable) -> None:
    newer = replace(table, target=replace(table.target, runtime_version="9.9"))
    refused(lambda: merge(table, newer), IncompatibleError, "(runtime_version: ")
    merged = merge(table, newer, allow=("runtime_version",))
    assert merged.target == table.target
    assert merged.allowed_mismatch == f"runtime_version: the table has '9.9', asked for is {table.target.runtime_version!r}"
    assert merge(merged, table).allowed_mismatch == merged.allowed_mismatch
    large, between = table_of(height=128, width=256, runtime_version="9.9"), replace(table.target, height=96, width=192)
    operations = space("cas-tiny", 19).all_operations(between)
    refused(lambda: interpolate(table, large, operations, between, graph_sha256=str), IncompatibleError, "(runtime_version: ")
    made = interpolate(table, large, operations, between, graph_sha256=str, allow=("runtime_version",))
    assert (made.target, made.allowed_mismatch) == (between, merged.allowed_mismatch)


def test_a_field_that_no_target_has(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(monkeypatch, derive(made, tmp_path / "t.json", "--allow-mismatch", "colour")) == 2


def test_nothing_is_refused_that_belongs(table: LatencyTable, tmp_path: Path) -> None:
    for_this_machine(table)
    require_entries(space("cas-tiny", 19), table)
    assert run_with(table, tmp_path).given_table() == table
    path = written(table, tmp_path / "t.json", lambda content: None, sealed=True)
    assert load_table(path) == load_table(written(table, path, lambda content: None, sealed=False)) == table
    for _ in range(2):
        ProfileJournal(tmp_path / "t.jsonl", header_of("cas-tiny", table.target, PROTOCOL))

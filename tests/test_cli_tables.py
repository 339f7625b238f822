"""`segnas tables`: what each command prints, writes and refuses, on tables with made-up prices."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import click
import cv2
import pytest
from click.testing import CliRunner, Result

from segnas.arch import Operation, Shape
from segnas.cli_new_tables import tables
from segnas.cli_tables import packaged_folder
from segnas.errors import IncompatibleError, InputError, SegnasError, UsageError
from segnas.export.graph import graph_sha256
from segnas.export.templates import templates
from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable, priced_operations
from segnas.latency_tables.interpolate import level_of
from segnas.latency_tables.store import load_table, save_table, table_text
from segnas.search.spaces import space
from segnas.table_figures import Priced, table_picture
from segnas.target import Target

TINY = space("cas-tiny", 11)
STRANGER = Operation(kind("aspp"), 1, (Shape(8, 8, 16),), Shape(8, 8, 16))


def at(height: int, width: int) -> Target:
    return Target("test cpu", "onnxruntime", "1.0", "fp32", height, width, options=(("spinning", "off"),))


def price(operation: Operation) -> float:
    """Affine in pixels: 4 us and some 0.1 us a pixel, more for wider outputs."""
    pixels = sum(shape.height * shape.width for shape in (*operation.inputs, operation.output))
    return 0.004 + 4e-6 * (10 + operation.output.channels) * pixels


def made(height: int = 64, width: int = 128, factor: float = 1.0, *, sentinel_ms: float = 2.0, without: Sequence[int] = ()) -> LatencyTable:
    target = at(height, width)
    operations = [o for place, o in enumerate(TINY.all_operations(target)) if place not in without]
    entries = tuple(Entry(o, "block", factor * price(o), 0.02, 90, "series 1,2,4", "a" * 64) for o in operations)
    return LatencyTable("cas-tiny", target, entries, provenance=(("created", "monday"), ("sentinel_ms", f"{sentinel_ms:.6f}")))


def calibrated(table: LatencyTable, networks: int = 6) -> LatencyTable:
    rng = Random(1)
    drawn = [TINY.decode(TINY.random(rng)).architecture for _ in range(networks)]
    return table.calibrated([table.probe(a, table.raw_sum_ms(a) * (1.2 + 0.01 * i)) for i, a in enumerate(drawn)])


Saved = Callable[[str, LatencyTable], Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    def save(name: str, table: LatencyTable) -> Path:
        save_table(tmp_path / name, table)
        return tmp_path / name

    return save


def run(*words: object) -> Result:
    return CliRunner().invoke(tables, list(map(str, words)))


def printed(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.exception
    return result.stdout


def values(*words: object) -> dict[str, object]:
    found = json.loads(printed(*words, "--json"))
    assert isinstance(found, dict)
    return found


def refused(error: type[SegnasError], *words: object) -> str:
    result = run(*words)
    assert type(result.exception) is error
    return str(result.exception)


@pytest.mark.parametrize("name", tables.commands)
def test_every_command_has_help_json_and_options_with_help(name: str) -> None:
    command = tables.commands[name]
    assert command.help
    assert "Example: segnas tables " in command.help
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []
    assert any("--json" in option.opts for option in options)


def test_the_commands_are_those_of_the_issue() -> None:
    assert sorted(tables.commands) == ["check", "diff", "interpolate", "judge", "list", "merge", "plot", "rescale", "show", "transfer"]


def test_help_loads_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "cv2", "rich", "matplotlib", "numpy")
    code = "import sys; from segnas.cli_new_tables import tables; tables(['plot', '--help'], standalone_mode=False)\n"
    code += f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"
    assert "--against" in found.stdout


def test_list_names_each_table_and_says_which_cannot_be_used(saved: Saved, tmp_path: Path) -> None:
    saved("a.json", calibrated(made()))
    (tmp_path / "b.json").write_text(table_text(made()).replace("monday", "sunday"))
    lines = printed("list", tmp_path).splitlines()
    assert len(lines) == 2
    for text in ("a.json", "cas-tiny", "64x128", "1 threads", f"{len(made().entries)} entries", "scale 1.225", "test cpu, onnxruntime 1.0 fp32"):
        assert text in lines[0]
    assert lines[1].startswith("b.json: not usable: ")
    assert "was changed after it was written" in lines[1]
    first, second = values("list", tmp_path)["tables"]  # type: ignore[misc]
    assert (first["file"], first["threads"], first["entries"], first["scale"]) == ("a.json", 1, len(made().entries), pytest.approx(1.225))
    assert set(second) == {"file", "error"}


def test_list_without_a_folder_shows_what_comes_with_segnas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packaged_folder().parent.joinpath("store.py").is_file()
    assert values("list")["folder"] == str(packaged_folder())
    monkeypatch.setattr("segnas.cli_tables.packaged_folder", lambda: tmp_path / "absent")
    assert "segnas profile SPACE --size HxW --out TABLE.json" in printed("list")
    assert values("list")["tables"] == []
    assert "no folder" in refused(InputError, "list", tmp_path / "absent")


def test_show_lists_the_dearest_or_all(saved: Saved) -> None:
    table = replace(calibrated(made()), overhead_ms=0.25)
    path = saved("t.json", table)
    shown = printed("show", path)
    for text in (str(table.target), "normalised -> labels", "spinning off", "created", "monday", "scale 1.225 from 6 networks", "0.2500 ms"):
        assert text in shown
    assert f"{len(table.entries)} entries ({len(table.entries)} measured)" in shown
    dearest = sorted(table.entries, key=lambda e: -e.median_ms)
    assert shown.count(" -> ") == 10 + 1  # one line is the contracts'
    assert str(dearest[0].operation) in shown
    assert str(dearest[-1].operation) not in shown
    assert printed("show", path, "--entries").count(" -> ") == len(table.entries) + 1
    found = values("show", path, "--entries")
    assert [e["median_ms"] for e in found["entries"]] == [e.median_ms for e in dearest]  # type: ignore[union-attr]
    assert found["provenance"] == dict(table.provenance)
    assert str(found["content_sha256"]) in path.read_text()
    assert "does not exist" in refused(InputError, "show", path.with_name("none.json"))


def test_check_of_a_whole_table_passes(saved: Saved) -> None:
    found = values("check", saved("t.json", made()))
    assert found == {"entries": len(made().entries), "missing": [], "unreachable": [], "unsure": [], "inverted": [], "at_floor": []}


def test_check_names_all_that_is_wrong(saved: Saved) -> None:
    table = made(without=(0, 3))
    unsure, cheap = replace(table.entries[0], spread=1.5), replace(table.entries[1], median_ms=0.0001)
    path = saved("t.json", replace(table, entries=(unsure, cheap, *table.entries[2:], replace(table.entries[2], operation=STRANGER))))
    result = run("check", path, "--json")
    assert isinstance(result.exception, IncompatibleError)
    assert result.exception.exit_code == 6
    everything = TINY.all_operations(table.target)
    missing = sorted((everything[0], everything[3]))
    narrow = next(e for e in table.entries if str(e.operation) == "conv 48x4x8 -> 48x4x8")
    assert "has no entry for 2 operations of 'cas-tiny' with 11 classes" in str(result.exception)
    assert json.loads(result.stdout) == {
        "entries": len(table.entries) + 1,
        "missing": [str(o) for o in missing],
        "unreachable": [str(STRANGER)],
        "unsure": [str(unsure.operation)],
        "inverted": [f"conv 48x4x8 -> 48x4x8 {narrow.median_ms:.4f} ms, {cheap.operation} 0.0001 ms"],
        "at_floor": [str(cheap.operation)],
    }
    lines = run("check", path).stdout
    assert all(str(o) in lines for o in (*missing, STRANGER, unsure.operation, cheap.operation))


def test_check_takes_the_classes_from_the_table_or_from_the_user(saved: Saved) -> None:
    path = saved("t.json", made())
    assert "of 'cas-tiny' with 19 classes" in refused(IncompatibleError, "check", path, "--classes", 19)
    headless = replace(made(), entries=tuple(e for e in made().entries if e.operation.op != "classifier"))
    assert "--classes" in refused(UsageError, "check", saved("headless.json", headless))
    assert "no entry for 1 operations" in refused(IncompatibleError, "check", saved("headless.json", headless), "--classes", 11)
    assert "known spaces: auto-deeplab, " in refused(UsageError, "check", saved("other.json", replace(made(), space="mine")))


def test_check_refuses_an_edited_table(saved: Saved) -> None:
    path = saved("t.json", made())
    path.write_text(path.read_text().replace("monday", "sunday"))
    assert "does not match its content_sha256" in refused(InputError, "check", path)


def test_diff_of_equal_tables_is_nothing(saved: Saved) -> None:
    path = saved("t.json", made())
    found = values("diff", path, path)
    assert (found["target"], found["only_before"], found["only_after"], found["changed"], found["largest"]) == ({}, [], [], 0, [])
    medians = found["median_absolute_relative"]
    assert [part["median"] for part in medians.values()] == [0.0, 0.0]  # type: ignore[union-attr]
    assert "the same target" in printed("diff", path, path)


def test_diff_publishes_the_median_of_dear_and_of_cheap_entries(saved: Saved) -> None:
    table = made()
    dear = [e.operation for e in table.entries if e.median_ms >= 0.05]
    cheap = [e.operation for e in table.entries if e.median_ms < 0.05]
    assert len(dear) > 2 < len(cheap)
    entries = tuple(replace(e, median_ms=e.median_ms * (1.04 if e.operation in dear else 0.9)) for e in table.entries)
    first, second = saved("a.json", table), saved("b.json", replace(table, entries=entries, calibration=Calibration(scale=2.0)))
    found = values("diff", first, second)
    assert found["median_absolute_relative"] == {
        "from_50us": {"entries": len(dear), "median": pytest.approx(0.04)},
        "below_50us": {"entries": len(cheap), "median": pytest.approx(0.1)},
    }
    assert found["changed"] == len(table.entries)
    assert found["largest"][0]["relative"] == pytest.approx(-0.1)  # type: ignore[index]
    assert found["scale"] == [1.0, 2.0]
    lines = printed("diff", first, second)
    assert f"entries of 50 us and more: {len(dear)}, median difference 4.00%" in lines
    assert f"entries below 50 us: {len(cheap)}, median difference 10.00%" in lines
    assert "scale              1.0 -> 2.0" in lines


def test_diff_brings_two_profiles_of_one_target_to_one_speed(saved: Saved) -> None:
    first, second = saved("a.json", made()), saved("b.json", made(factor=1.5, sentinel_ms=3.0))
    found = values("diff", first, second)
    assert found["one_speed"] is True
    assert found["sentinel_ms"] == [2.0, 3.0]
    medians = [part["median"] for part in found["median_absolute_relative"].values()]  # type: ignore[union-attr]
    assert medians == pytest.approx([0.0, 0.0], abs=1e-8)
    other = replace(made(factor=1.5, sentinel_ms=3.0), target=replace(at(64, 128), device="slow cpu"))
    found = values("diff", first, saved("c.json", other))
    assert found["one_speed"] is False
    assert found["target"] == {"device": ["test cpu", "slow cpu"]}
    medians = [part["median"] for part in found["median_absolute_relative"].values()]  # type: ignore[union-attr]
    assert medians == pytest.approx([0.5, 0.5])


def test_diff_names_what_only_one_table_has(saved: Saved) -> None:
    whole, part = made(), made(without=(0, 1))
    found = values("diff", saved("a.json", whole), saved("b.json", replace(part, space="other")))
    assert found["only_before"] == sorted(map(str, sorted(TINY.all_operations(at(64, 128))[:2])))
    assert (found["only_after"], found["space"]) == ([], ["cas-tiny", "other"])
    apart = values("diff", saved("a.json", whole), saved("c.json", made(128, 256)))
    assert apart["target"] == {"height": [64, 128], "width": [128, 256]}
    lines = printed("diff", saved("d.json", replace(whole, entries=())), saved("a.json", whole))
    assert "entries of 50 us and more: 0, none" in lines
    assert f"only in the second: {len(whole.entries)}" in lines


def test_merge_writes_the_union_and_asks_who_counts(saved: Saved, tmp_path: Path) -> None:
    first, second, out = saved("a.json", made(without=(0,))), saved("b.json", made(without=(1,))), tmp_path / "out.json"
    assert values("merge", first, second, "--out", out) == {
        "table": str(out),
        "entries": len(made().entries),
        "merged": [len(made().entries) - 1] * 2,
    }
    assert {e.operation: e.median_ms for e in load_table(out).entries} == {e.operation: e.median_ms for e in made().entries}
    other, again = saved("c.json", made(factor=2.0)), tmp_path / "again.json"
    assert "--prefer first or --prefer second" in refused(IncompatibleError, "merge", first, other, "--out", again)
    assert not again.exists()
    printed("merge", first, other, "--out", again, "--prefer", "second")
    assert {e.median_ms for e in load_table(again).entries} == {e.median_ms for e in made(factor=2.0).entries}
    assert run("merge", first, other, "--out", again, "--prefer", "third").exit_code == 2
    assert "height" in refused(IncompatibleError, "merge", first, saved("d.json", made(128, 128)), "--out", again)
    assert ".json" in refused(UsageError, "merge", first, second, "--out", tmp_path / "out.txt")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    """No graph is exported, though the exporter's signatures hold: an operation's hash is its digest. What was to be exported."""
    asked: list[Operation] = []
    made_by, hashed_by = inspect.signature(templates), inspect.signature(graph_sha256)

    def no_templates(*words: Any, **options: Any) -> None:
        asked.extend(made_by.bind(*words, **options).arguments["operations"])

    def no_hash(*words: Any, **options: Any) -> str:
        return hashed_by.bind(*words, **options).arguments["operation"].digest.rjust(64, "0")

    monkeypatch.setattr("segnas.measuring.templates", no_templates)
    monkeypatch.setattr("segnas.measuring.graph_sha256", no_hash)
    return asked


def test_interpolate_writes_a_table_that_covers_the_space_and_says_what_it_is(saved: Saved, tmp_path: Path, exported: list[Operation]) -> None:
    first, second, out = saved("a.json", calibrated(made(64, 128))), saved("b.json", calibrated(made(128, 256))), tmp_path / "out.json"
    found = values("interpolate", first, second, "--size", "96x192", "--out", out)
    table = load_table(out)
    assert found["entries"] == len(table.entries)
    assert tuple(exported) == TINY.all_operations(at(96, 192))
    assert {e.operation for e in table.entries} == set(exported)
    for entry in table.entries:
        assert (entry.source, entry.graph_sha256) == ("interpolated", entry.operation.digest.rjust(64, "0"))
        assert entry.median_ms == pytest.approx(price(entry.operation), rel=1e-6)
    assert table.calibration.scale == pytest.approx(1.225)
    assert values("check", out)["missing"] == []
    assert f"({len(table.entries)} interpolated)" in printed("show", out)


def test_interpolate_refuses_before_it_exports(saved: Saved, tmp_path: Path, exported: list[Operation]) -> None:
    first, second = saved("a.json", made(64, 128)), saved("b.json", made(128, 256, without=(2,)))
    out = tmp_path / "out.json"
    assert "size 256x512 was given" in refused(InputError, "interpolate", first, second, "--size", "256x512", "--out", out)
    assert "HEIGHTxWIDTH" in refused(InputError, "interpolate", first, second, "--size", "96", "--out", out)
    assert "segnas profile cas-tiny --size 128x256" in refused(IncompatibleError, "interpolate", first, second, "--size", "96x192", "--out", out)
    lacking = refused(IncompatibleError, "interpolate", first, second, "--size", "96x192", "--out", out, "--classes", 19)
    assert "segnas profile cas-tiny --size 64x128" in lacking  # the first has no classifier of 19
    assert ".json" in refused(UsageError, "interpolate", first, second, "--size", "96x192", "--out", tmp_path / "out")
    assert not out.exists()
    assert exported == []


def test_a_figure_is_drawn_as_its_name_says(saved: Saved, tmp_path: Path) -> None:
    path, other = saved("t.json", calibrated(made())), saved("u.json", made(96, 192))
    svg, png = tmp_path / "t.svg", tmp_path / "t.png"
    found = values("plot", path, "--out", svg)
    assert (found["figure"], found["networks"]) == (str(svg), 50)
    shares = found["shares"]
    assert isinstance(shares, list)
    assert sum(shares[0].values()) == pytest.approx(1.0)
    text = "\n".join("".join(e.itertext()) for e in ElementTree.fromstring(svg.read_bytes()).iter("{http://www.w3.org/2000/svg}text"))
    for words in (
        "cas-tiny on test cpu",
        "1/8: 8x16",
        "Where the time of 50 random networks goes",
        "% of the time",
        "90 % interval",
        "resize to full size",
    ):
        assert words in text
    printed("plot", path, "--out", png, "--against", other)
    assert cv2.imread(str(png)) is not None
    assert ".png or .svg" in refused(UsageError, "plot", path, "--out", tmp_path / "t.jpg")
    incomplete = saved("v.json", made(without=(0,)))
    assert "no entry" in refused(IncompatibleError, "plot", incomplete, "--out", tmp_path / "v.svg")
    assert not (tmp_path / "v.svg").exists()


def drawn(table: LatencyTable, count: int = 5) -> Priced:
    rng = Random(0)
    return Priced(table, tuple(TINY.decode(TINY.random(rng)).architecture for _ in range(count)))


def test_the_shares_are_the_hand_sums() -> None:
    table = replace(made(), overhead_ms=0.5)
    priced = drawn(table)
    sums: dict[str, float] = {"call": 5 * 0.5}
    for operation in (o for network in priced.networks for o in priced_operations(network, table.target) if not o.is_free):
        name = str(operation.kind) + (" to full size" if operation.op == "resize" and operation.output.height == 64 else "")
        sums[name] = sums.get(name, 0.0) + price(operation)
    total = sum(sums.values())
    assert priced.shares == {name: pytest.approx(ms / total) for name, ms in sums.items()}
    assert list(priced.shares.values()) == sorted(priced.shares.values(), reverse=True)


@pytest.mark.parametrize("level", ["sum", "scale", "kinds", "entries"])
def test_the_fitted_networks_are_predicted_as_the_table_predicts_them(level: str) -> None:
    rng, table = Random(1), made()
    networks = [TINY.decode(TINY.random(rng)).architecture for _ in range(8)]
    table = table.calibrated([table.probe(a, table.raw_sum_ms(a) * (1.2 + 0.01 * i)) for i, a in enumerate(networks)], level)
    predicted = [ms for ms, _ in drawn(table).fitted]
    assert predicted == pytest.approx([table.estimate(network).total_ms for network in {a.digest: a for a in networks}.values()])


def test_a_figure_is_the_same_twice_and_stands_with_little_to_show() -> None:
    whole = drawn(calibrated(made()))
    assert table_picture(whole) == table_picture(whole)
    assert b"no calibration networks" in table_picture(drawn(made()))
    odd = replace(made(), entries=(*made().entries, Entry(replace(STRANGER, output=Shape(8, 5, 7)), "block", 0.5, 0.0, 1, "x", "0" * 64)))
    assert level_of(Shape(8, 5, 7), odd.target) is None
    assert b"other sizes" in table_picture(drawn(odd))
    with pytest.raises(InputError, match="at least 1"):
        drawn(made(), 0)

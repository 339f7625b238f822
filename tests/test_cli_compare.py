"""`segnas reference`, `compare` and `correlate` from the command line: what they print, leave behind and refuse."""

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from segnas import measuring
from segnas.arch import Architecture
from segnas.cli import segnas
from segnas.errors import IncompatibleError, InputError, SegnasError, UsageError
from segnas.files import read_noun, write_noun
from segnas.latency import Calibration, Entry, LatencyTable
from segnas.latency_tables.compose import PROTOCOL
from segnas.latency_tables.store import save_table
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.references import fast_scnn
from segnas.search.spaces import space
from segnas.streets import write_streets
from segnas.timing import Measured

RECIPE = """
name = "short"
space = "cas-tiny"
budget = "8ms"
target = { height = 64, width = 128, threads = 1 }
search = { steps = 2, warmup = 1, batch = 2, crop = [32, 64] }
train = { steps = 1, batch = 2, crop = [32, 64], warmup = 1 }
"""


class Sentinel:
    """Takes 2 ms."""

    def sample(self, runs: int) -> tuple[float, ...]:
        return (2.0,) * runs

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny streets, a table, two architectures, a recipe and a search."""
    folder = tmp_path_factory.mktemp("made")
    write_streets(folder / "streets", counts={"train": 4, "val": 2}, height=64, width=128, seed=0)
    tiny, target = space("cas-tiny", 19), cpu_target(64, 128)
    entries = tuple(Entry(o, "block", 0.05 + int(o.digest, 16) / 16**12, 0.0, 1, "made up", "") for o in tiny.all_operations(target))
    save_table(folder / "table.json", LatencyTable(tiny.name, target, entries, 0.3, Calibration(0.9)))
    for index, (_, architecture) in enumerate(zip(range(2), (tiny.decode(g).architecture for g in tiny.genotypes()), strict=False)):
        (folder / f"run{index}").mkdir()
        write_noun(folder / f"run{index}" / "arch.json", architecture)
    (folder / "short.toml").write_text(RECIPE)
    words = ["search", "cas-tiny", "--table", folder / "table.json", "--data-root", folder / "streets", "--budget", "p50"]
    result = CliRunner().invoke(segnas, [*map(str, words), "--recipe", str(folder / "short.toml"), "--out", str(folder / "search")])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine on which every network takes what the table says, or 5 ms; the digests that were measured."""
    measured: list[str] = []

    def measure(architecture: Architecture, table: LatencyTable) -> Measured:
        measured.append(architecture.digest)
        try:
            return Measured(table.estimate(architecture).total_ms, 0.004)
        except IncompatibleError:
            return Measured(5.0, 0.004)

    monkeypatch.setattr(measuring, "SERVICES", measuring.Services(lambda *_: Sentinel(), measure, lambda *_: 5.0))
    return measured


def printed(*words: object) -> dict:
    """What a command prints with `--json`: exactly one JSON object on stdout."""
    result = CliRunner().invoke(segnas, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def data(made: Path) -> tuple[object, ...]:
    return ("--data-root", made / "streets", "--recipe", made / "short.toml")


def test_a_reference_is_written_as_an_architecture(tmp_path: Path) -> None:
    found = printed("reference", "fast-scnn", "--classes", "11", "--out", tmp_path / "a.json")
    assert read_noun(tmp_path / "a.json", Architecture) == fast_scnn(11)
    assert found["architecture"] == fast_scnn(11).digest
    assert found["parameters"] == 1_137_795 - 8 * 129
    result = CliRunner().invoke(segnas, ["reference", "fast-scnn", "--out", str(tmp_path / "a.json")], catch_exceptions=False)
    assert "1.14 M parameters, 6.71 G multiply-accumulates at 1024x2048" in result.output


def test_a_comparison_from_the_command_line(made: Path, tmp_path: Path, clock: list[str]) -> None:
    words = ("compare", "--searched", made / "run0", "--searched", made / "run1", "--random", 2, "--space", "cas-tiny", "--given", "fast-scnn")
    found = printed(*words, "--table", made / "table.json", *data(made), "--within", 20, "--out", tmp_path / "c")
    assert [n["source"] for n in found["networks"]] == ["searched"] * 2 + ["random"] * 2 + ["given"]
    assert found["within"] == 0.2
    assert all(abs(n["measured_ms"] / n["predicted_ms"] - 1) < 1e-9 for n in found["networks"][:4])
    assert json.loads((tmp_path / "c" / "compare.json").read_text())["networks"] == found["networks"]
    assert (tmp_path / "c" / "compare.png").is_file()
    before = len(clock)
    again = CliRunner().invoke(segnas, [*map(str, (*words, "--table", made / "table.json", *data(made), "--within", 20, "--out", tmp_path / "c"))])
    assert again.exit_code == 0, again.output
    assert len(clock) == before
    assert "searched less random within 20 % of latency" in again.stdout
    assert again.stdout.count("\n") > 10


def test_a_comparison_without_a_table_measures_at_one_kept_speed(made: Path, tmp_path: Path) -> None:
    words = ("compare", "--given", "fast-scnn", "--given", made / "run0" / "arch.json", *data(made), "--steps", 2, "--out", tmp_path / "c")
    found = printed(*words)
    assert [n["name"] for n in found["networks"]] == ["fast-scnn", "arch"]
    assert found["schedule"]["train"]["steps"] == 2
    assert (found["target"]["height"], found["target"]["width"], found["target"]["threads"]) == (64, 128, 1)
    assert json.loads((tmp_path / "c" / "campaign.json").read_text())["provenance"] == [["protocol", PROTOCOL], ["sentinel_ms", "2.000000"]]


def test_a_study_from_the_command_line_shares_the_trainings(made: Path, tmp_path: Path) -> None:
    words = ("correlate", "cas-tiny", "--run", made / "search", "--networks", 5, "--batches", 1, "--images", 1, *data(made), "--out", tmp_path)
    found = printed(*words)
    assert [n["drawn"] for n in found["networks"]] == ["search"] * 3 + ["uniform"] * 2
    assert [p["name"] for p in found["predictors"]][:3] == ["supernet", "supernet, not re-estimated", "untrained supernet"]
    assert (tmp_path / "correlate.png").is_file()
    trained = (tmp_path / "trained.jsonl").read_text()
    assert len(trained.splitlines()) == 1 + 5
    again = CliRunner().invoke(segnas, [*map(str, words)])
    assert again.exit_code == 0, again.output
    assert "5 networks of cas-tiny: 3 drawn by the search, 2 drawn uniformly, 0 of a comparison" in again.stdout
    assert (tmp_path / "trained.jsonl").read_text() == trained


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("reference", "pidnet", "--out", "OUT/a.json"), UsageError, "known networks: .*fast-scnn"),
        (("reference", "fast-scnn", "--out", "OUT/a.onnx"), UsageError, "name of a .json file"),
        (("compare", "--random", "2"), UsageError, "--random 2 was given without --space"),
        (("compare", "--given", "fast-scnn", "--table", "MADE/table.json", "--size", "64x128"), UsageError, "leave --size out"),
        (("compare",), UsageError, "nothing was given to compare; give --searched"),
        (("compare", "--random", "1", "--space", "cas", "--table", "MADE/table.json"), IncompatibleError, "segnas profile cas "),
        (("compare", "--searched", "OUT/none"), InputError, "does not exist"),
        (("compare", "--given", "fast_scnn"), UsageError, "known networks"),
        (("compare", "--given", "fast-scnn", "--device", "tpu"), UsageError, "device 'tpu'"),
        (("compare", "--random", "1", "--space", "nowhere"), UsageError, "no search space is called"),
        (("compare", "--given", "fast-scnn", "--size", "16x16"), InputError, "too small"),
        (("correlate", "cas", "--run", "MADE/search"), IncompatibleError, "'cas' is asked for"),
        (("correlate", "cas-tiny", "--run", "OUT/none"), InputError, "does not exist"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    made: Path, tmp_path: Path, words: tuple[str, ...], error: type[SegnasError], message: str, clock: list[str]
) -> None:
    placed = [word.replace("MADE", str(made)).replace("OUT", str(tmp_path)) for word in words]
    rest = [] if words[0] == "reference" else [*map(str, data(made)), "--out", str(tmp_path / "out")]
    with pytest.raises(error, match=message):
        segnas.main([*placed, *rest], standalone_mode=False)
    assert not list(tmp_path.iterdir())
    assert clock == []


def test_the_commands_of_the_documentation_parse() -> None:
    text = (Path(__file__).parent.parent / "docs" / "comparing.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(segnas reference [^`]+)`", text)
    assert [line.split()[1] for line in lines] == ["compare", "correlate", "reference"]
    for line in lines:
        _, name, *words = shlex.split(line)
        segnas.commands[name].make_context(name, words).close()


def test_a_table_of_another_machine_is_refused(made: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from segnas.latency_tables.store import load_table

    table = load_table(made / "table.json")
    save_table(tmp_path / "t.json", replace(table, target=replace(table.target, device="another")))
    words = ("compare", "--given", "fast-scnn", "--table", tmp_path / "t.json", *data(made), "--out", tmp_path / "out")
    with pytest.raises(IncompatibleError, match="belongs to another target"):
        segnas.main([*map(str, words)], standalone_mode=False)
    found = printed(*words, "--allow-mismatch", "device")
    assert dict(found["conditions"])["allowed_mismatch"] == f"device: the table has 'another', asked for is {table.target.device!r}"
    assert found["target"]["device"] == table.target.device

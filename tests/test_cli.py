"""The command line: what `--help` costs and says, `--json` of every verb that prints a result, and that the README tells the truth."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from segnas import __version__, measuring
from segnas.arch import Architecture
from segnas.cli import segnas
from segnas.errors import RequirementError, SegnasError, UsageError
from segnas.files import read_noun, write_noun
from segnas.latency import Entry, LatencyTable
from segnas.latency_tables.store import save_table
from segnas.network import initialised
from segnas.recipe import recipe_names
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.spaces import SPACES, space
from segnas.steps import save_weights
from segnas.streets import write_streets
from segnas.timing import Measured

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
HEAVY = ("torch", "onnx", "onnxruntime", "cv2", "rich", "matplotlib", "optuna")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its full name."""
    for name, command in segnas.commands.items():
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", made) for inner, made in command.commands.items())
        else:
            yield name, command


COMMANDS = dict(commands())


def blocks(language: str) -> list[str]:
    """The README's code blocks in that language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def lines_of(block: str) -> list[list[str]]:
    """The words of each command in a block of shell."""
    return [words for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("words", ["--help", "search --help", "spaces", "recipes", "methods"])
def test_what_only_lists_imports_nothing_heavy(words: str) -> None:
    code = f"import sys, segnas.__main__ as m; sys.argv = ['segnas', *{words.split()}]\ntry: m.main()\nexcept SystemExit: pass\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "[]"
    assert ("Usage: segnas" if "--help" in words else "cas") in found.stdout


def test_help_is_quick() -> None:
    """By the processor's time, which others on the machine do not take."""

    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "segnas", "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(5)) < 0.3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [o.name for o in options if not o.help] == []
    shown = CliRunner().invoke(segnas, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert all(option.opts[0] in shown.output for option in options)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json(name: str) -> None:
    assert any("--json" in p.opts for p in COMMANDS[name].params)


def test_version() -> None:
    shown = CliRunner().invoke(segnas, ["--version"])
    assert (shown.exit_code, shown.output.split()[-1]) == (0, __version__)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny streets, a table, an architecture, weights and a search, none of them measured or learned."""
    folder = tmp_path_factory.mktemp("made")
    write_streets(folder / "streets", counts={"train": 4, "val": 2}, height=64, width=128, seed=0)
    tiny, target = space("cas-tiny", 19), cpu_target(64, 128)
    entries = tuple(Entry(o, "block", 0.02, 0.0, 1, "made up", "0" * 64) for o in tiny.all_operations(target))
    save_table(folder / "table.json", LatencyTable(tiny.name, target, entries))
    architecture = tiny.decode(next(tiny.genotypes())).architecture
    write_noun(folder / "arch.json", architecture)
    save_weights(folder / "weights.safetensors", initialised(architecture, 0).state_dict(), architecture, "none")
    short = "[{}]\nsteps = {}\nwarmup = 1\nbatch = 2\ncrop = [32, 64]\n"
    recipe = 'name = "short"\nspace = "cas-tiny"\nbudget = "8ms"\n' + short.format("search", 2) + short.format("train", 1)
    (folder / "short.toml").write_text(recipe)
    return folder


def printed(*words: object) -> dict[str, object]:
    """What a command prints with `--json`: exactly one JSON object on stdout."""
    result = CliRunner().invoke(segnas, [*map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict | list)
    return found if isinstance(found, dict) else {"rows": found}


def test_json_of_the_lists() -> None:
    assert {row["name"] for row in printed("doctor")["rows"]} >= {
        "python",
        "torch",
        "onnxruntime",
        "aotinductor",
        "onnxruntime-cuda",
        "pycuda",
        "cuda-bindings",
    }  # type: ignore[attr-defined]
    assert set(printed("recipes")) == set(recipe_names())
    assert set(printed("spaces")) == set(SPACES)


def test_json_of_the_steps_in_a_row(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ("--data-root", made / "streets")
    assert printed("data", "check", *data) == {"problems": [], "splits": {"train": 4, "val": 2}}
    priced = ("--table", made / "table.json", "--budget", "0.9ms")
    found = printed("search", "cas-tiny", *priced, *data, "--recipe", made / "short.toml", "--out", tmp_path)
    assert found == {"search": str(tmp_path / "search.json"), "budget_ms": 0.9}
    monkeypatch.setattr("segnas.measuring.SERVICES", measuring.Services(*[lambda *_: Measured(0.88, 0.004)] * 3))
    found = printed("derive", tmp_path, "--space", "cas-tiny", *priced)
    assert (found["measured_ms"], found["budget_ms"]) == (0.88, 0.9)
    assert (tmp_path / "arch.json").is_file()
    weights = tmp_path / "weights.safetensors"
    found = printed("train", "--arch", tmp_path / "arch.json", *data, "--recipe", made / "short.toml", "--out", weights)
    assert found["weights"] == str(weights)
    size = ("--size", "64x128", "--threads", "1")
    found = printed("export", "--arch", tmp_path / "arch.json", "--weights", weights, *size, *data, "--out", tmp_path)
    assert found["file"] == "model.onnx"
    words = ("bench", tmp_path / "model.onnx", "--seconds", "0", *data)
    found = printed(*words, "--rigor", "quick", "--out", tmp_path / "b", "--trtexec-json", tmp_path / "t.json")
    assert set(found) == {"name", "created", "engine", "target", "timings", "accuracy", "pretraining", "mismatches", "versions"}
    assert [timing["scope"] for timing in found["timings"]] == ["end_to_end", "pipeline"]  # type: ignore[index]
    assert (tmp_path / "b" / "report.html").is_file()
    assert set(json.loads((tmp_path / "t.json").read_text())[0]) >= {"startH2dMs", "computeMs", "latencyMs"}
    found = printed("report", tmp_path / "b", tmp_path / "b" / "bench.json", "--out", tmp_path / "side")
    assert [run["name"] for run in found["runs"]] == [f"{tmp_path.name}/model.onnx", f"{tmp_path.name}/model.onnx (2)"]  # type: ignore[index]
    found = printed("bench", tmp_path / "model.onnx", "--compare", tmp_path / "model.onnx", "--rigor", "quick")
    assert found["verdict"] in ("faster", "slower", "undecided")
    for file in ("arch.json", "model.onnx.json"):
        assert str(printed("show", tmp_path / file)["schema"]).startswith("segnas.")
    assert printed("show", made / "table.json")["schema"] == "segnas.latency_table/2"
    assert not list(tmp_path.rglob("*.partial"))


def test_json_of_a_profile_and_of_made_data(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segnas.latency_tables.store import load_table

    monkeypatch.setattr("segnas.measuring.make_table", lambda *_, **__: load_table(made / "table.json"))
    found = printed("profile", "cas-tiny", "--size", "64x128", "--out", tmp_path / "t.json")
    assert found["scale"] == 1.0
    found = printed("data", "make", "--out", tmp_path / "streets", "--size", "32x64", "--train", "1", "--val", "1")
    assert found == {"data": str(tmp_path / "streets"), "train": 1, "val": 1, "height": 32, "width": 64}


def test_show_says_what_a_file_is(made: Path) -> None:
    shown = CliRunner().invoke(segnas, ["show", str(made / "arch.json")], catch_exceptions=False)
    digest = read_noun(made / "arch.json", Architecture).digest
    assert f"architecture {digest}" in shown.output


def test_the_readme_names_commands_and_options_that_exist() -> None:
    root = Path(__file__).parent.parent
    seen = 0
    for words in (words for block in blocks("sh") for words in lines_of(block)):
        if words[0] != "segnas":
            assert (root / words[0]).is_file(), words[0]
            continue
        name = next(n for n in COMMANDS if words[1 : 1 + len(n.split())] == n.split())
        with COMMANDS[name].make_context(name, words[1 + len(name.split()) :]) as context:  # parses, does nothing
            seen += 1
            if "recipe" in context.params:
                assert context.params["recipe"] in recipe_names()
    assert seen >= 4


def test_the_readme_names_every_command_in_its_table() -> None:
    named = re.findall(r"^\| `segnas ([a-z ]+?)(?: [A-Z]+)?` \|", README, re.M)
    assert len(named) >= 7
    assert set(named) <= set(COMMANDS)
    assert {c.split()[0] for c in re.findall(r"`segnas ([a-z]+(?: [a-z]+)?)", README)} <= set(segnas.commands)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_readmes_python_runs(block: str) -> None:
    result = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip()


def test_every_example_in_a_help_text_parses() -> None:
    examples = [(name, line.split("Example: ")[1]) for name, c in COMMANDS.items() for line in (c.help or "").splitlines() if "Example: " in line]
    assert len(examples) >= 5
    for name, line in examples:
        words = shlex.split(line)
        assert words[: 1 + len(name.split())] == ["segnas", *name.split()]
        COMMANDS[name].make_context(name, words[1 + len(name.split()) :]).close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--runtime", "torch", "--precision", "fp16"), RequirementError, "segnas doctor"),
        (("--runtime", "aotinductor-cuda"), RequirementError, "segnas doctor"),
        (("--runtime", "onnxruntime-cuda"), RequirementError, "CUDAExecutionProvider.* has .*onnxruntime-gpu"),
        (("--precision", "fp16"), UsageError, "add --runtime torch"),
        (("--runtime", "onnxruntime-cuda", "--precision", "fp16"), UsageError, "a table of onnxruntime-cuda is fp32"),
        (("--runtime", "aotinductor", "--precision", "fp16"), UsageError, "a table of aotinductor is fp32"),
    ],
)
def test_profiling_on_a_gpu_that_is_not_here(tmp_path: Path, options: tuple[str, ...], error: type[SegnasError], message: str) -> None:
    with pytest.raises(error, match=message):
        segnas.main(["profile", "cas-tiny", "--size", "64x128", "--out", str(tmp_path / "t.json"), *options], standalone_mode=False)
    assert not list(tmp_path.iterdir())

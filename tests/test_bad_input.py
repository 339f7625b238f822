"""Bad input: each ends in one message that says what was given and what to do, the documented exit code, no traceback, and nothing half-written."""

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import cv2
import numpy as np
import pytest
import torch

from segnas.__main__ import main
from segnas.arch import Architecture
from segnas.cli import segnas
from segnas.data import Dataset, open_dataset
from segnas.exporting import export_engine
from segnas.files import read_json, read_noun, write_noun
from segnas.latency import Entry, LatencyTable
from segnas.latency_tables.store import load_table, save_table
from segnas.network import initialised
from segnas.recipe import read_recipe, recipe_names
from segnas.report import Curve
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.checkpoint import save_tensors
from segnas.search.spaces import SPACES, space
from segnas.steps import save_weights, write_curves
from segnas.streets import write_streets

USAGE, REQUIREMENT, INPUT, INCOMPATIBLE = 2, 3, 4, 6

RECIPE = """
name = "short"
space = "cas-tiny"
budget = "8ms"
[target]
height = 64
width = 128
threads = 1
[search]
steps = 2
warmup = 1
batch = 2
crop = [32, 64]
[train]
steps = 1
batch = 2
crop = [32, 64]
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    message: str


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run the program in this process as `segnas WORDS...`; exactly one message, and never a traceback."""

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["segnas", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert err.count("Error: ") == 1, err
        return Ended(int(ended.value.code or 0), out, err[err.index("Error: ") + 7 :].strip())

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny streets, CamVid-like images, a recipe, a table, two architectures, weights, a search and an engine; nothing measured or learned."""
    folder = tmp_path_factory.mktemp("made")
    write_streets(folder / "streets", counts={"train": 4, "val": 2}, height=64, width=128, seed=0)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (folder / "camvid" / split / part).mkdir(parents=True)
        for index in range(4):
            cv2.imwrite(str(folder / f"camvid/{split}/images/{index}.jpg"), np.full((64, 96, 3), 40 * index, np.uint8))
            cv2.imwrite(str(folder / f"camvid/{split}/labels/{index}.png"), np.full((64, 96), index, np.uint8))
    (folder / "short.toml").write_text(RECIPE)
    tiny, target = space("cas-tiny", 19), cpu_target(64, 128)
    save_table(folder / "table.json", table_of("cas-tiny", 64))
    genotypes = tiny.genotypes()
    architecture, other = (tiny.decode(next(genotypes)).architecture for _ in range(2))
    write_noun(folder / "arch.json", architecture)
    write_noun(folder / "other.json", other)
    network = initialised(architecture, 0).eval()
    save_weights(folder / "weights.safetensors", network.state_dict(), architecture, "none")
    write_noun(folder / "arch11.json", space("cas-tiny", 11).decode(next(space("cas-tiny", 11).genotypes())).architecture)
    even = {name: [1 / n] * n for name, n in tiny.decisions.items()}
    write_curves(folder / "run" / "search.json", [Curve("c", (1,), (1.0,))], space=tiny.name, probabilities=even)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_engine(network, target, folder / "engine", dataset=open_dataset("cityscapes", folder / "streets", "val"))
    return folder


def table_of(name: str, height: int, classes: int = 19) -> LatencyTable:
    target = cpu_target(height, 2 * height)
    entries = tuple(Entry(o, "block", 0.02, 0.0, 1, "made up", "0" * 64) for o in space(name, classes).all_operations(target))
    return LatencyTable(name, target, entries)


def tree(folder: Path) -> set[str]:
    """Every file under the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def cut(path: Path, share: float = 0.6) -> Path:
    """The file without its end."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def copied(source: Path, to: Path) -> Path:
    to.write_bytes(source.read_bytes())
    return to


def run_words(made: Path, tmp_path: Path, **changes: object) -> list[object]:
    """`segnas run` that would go well, with some options changed; None leaves one out."""
    options: dict[str, object] = {
        "recipe": made / "short.toml",
        "data-root": made / "streets",
        "table": made / "table.json",
        "out": tmp_path / "out",
    }
    options |= {name.replace("_", "-"): value for name, value in changes.items()}
    return ["run", *(word for name, value in options.items() if value is not None for word in (f"--{name}", value))]


def recipe_file(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "changed.toml"
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"recipe": "quikstart"}, USAGE, f"recipe 'quikstart' was given; known recipes: {recipe_names()[0]}, "),
        ({"recipe": "none.toml"}, INPUT, "recipe none.toml cannot be read"),
        ({"space": "cas-slow"}, USAGE, f"no search space is called 'cas-slow'; known spaces: {', '.join(sorted(SPACES))}, or "),
        ({"target": "tensorflow"}, USAGE, "target runtime 'tensorflow' was given; this version deploys on: onnxruntime"),
        ({"data": "ade20k"}, USAGE, "unknown data set 'ade20k'; allowed are cityscapes, camvid"),
        ({"data_root": None}, USAGE, "recipe short needs images: give their folder with --data-root"),
        ({"data_root": "/nowhere"}, INPUT, "/nowhere is not a folder; a cityscapes set is expected there"),
        ({"budget_ms": -1}, USAGE, "budget '-1ms' was given; it must be above 0"),
        ({"budget_ms": 0}, USAGE, "budget '0ms' was given; it must be above 0"),
        ({"budget_ms": "nan"}, USAGE, "budget 'nanms' was given"),
        ({"budget_ms": "inf"}, USAGE, "budget 'infms' was given"),
        ({"budget_ms": "fast"}, USAGE, "budget 'fastms' was given; write milliseconds"),
        ({"fps": 0}, USAGE, "budget '0fps' was given; write milliseconds"),
        ({"fps": -30}, USAGE, "budget '-30fps' was given; it must be above 0"),
        ({"fps": 30, "budget_ms": 8}, USAGE, "--budget-ms and --fps were both given; give one of them"),
        ({"device": "gpu"}, USAGE, "device 'gpu' was given; allowed: cpu, cuda"),
        ({"seed": -1}, USAGE, "Invalid value for '--seed': -1 is not in the range"),
        ({"table": "none.json"}, INPUT, "none.json does not exist"),
        ({"pretrained": "none.safetensors"}, INPUT, "none.safetensors does not exist; a safetensors file is needed"),
        ({"colour": "red"}, USAGE, "No such option '--colour'"),
    ],
)
def test_a_run_that_cannot_begin(made: Path, tmp_path: Path, call: Call, changes: dict[str, object], code: int, message: str) -> None:
    ended = call(*run_words(made, tmp_path, **changes))
    assert message in ended.message
    assert ended.code == code
    assert tree(tmp_path) == set()  # so that the same command, mended, needs neither --resume nor another folder


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ('name = "short"', 'name = "short"\nsed = 1', USAGE, "has an unknown option sed; known here: name, space, budget, seed"),
        ("[train]", "[trian]", USAGE, "has an unknown option trian; known here: "),
        ("steps = 2", "stpes = 2", USAGE, "has an unknown option search.stpes; known here: search.method, search.steps"),
        ("steps = 2", 'steps = "two"', USAGE, "search.steps is 'two'; int is needed"),
        ("steps = 2", "steps = 0", USAGE, "search.steps 0, search.warmup 1 and search.batch 2 were given; more steps than warm-up steps"),
        ("crop = [32, 64]", "crop = [0, 64]", USAGE, "search.crop is 0x64; at least 1 is needed"),
        ("[train]\nsteps = 1", "[train]\nsteps = 0", USAGE, "train.steps 0, train.batch 2 and train.learning_rate 0.05 were given; at least 1 step"),
        ("[train]", "[train]\nlearning_rate = nan", USAGE, "train.learning_rate is nan; a finite number is needed"),
        ("[train]", "[train]\nlearning_rate = 0", USAGE, "train.learning_rate 0.0 were given; at least 1 step, "),
        ("[search]", "[search]\nlearning_rate = 0", USAGE, "search.learning_rate is 0.0; more than 0 is needed"),
        ('name = "short"', 'name = "short"\nseed = -1', USAGE, "seed is -1; at least 0 is needed"),
        ("height = 64", "height = 8", INPUT, "input size 8x128 is too small: this network shrinks by 32, so at least 32x32 is needed"),
        ("height = 64", "height = -8", INPUT, "target height was given -8; at least 1 is needed"),
        ("threads = 1", "threads = 4096", INPUT, "4096 threads were asked for; 1 to "),
        ('budget = "8ms"', 'budget = "soon"', USAGE, "budget 'soon' was given; write milliseconds (8 or 8ms), frames per second (120fps)"),
        ('budget = "8ms"', 'budget = "p101"', USAGE, "budget 'p101' was given; write milliseconds"),
        ('"short"', "short", INPUT, "changed.toml is no TOML: "),
    ],
)
def test_a_recipe_that_is_wrong(made: Path, tmp_path: Path, call: Call, old: str, new: str, code: int, message: str) -> None:
    ended = call(*run_words(made, tmp_path, recipe=recipe_file(tmp_path, old, new)))
    assert message in ended.message
    assert ended.code == code
    assert tree(tmp_path) == {"changed.toml"}


@pytest.mark.parametrize(
    ("section", "code", "message"),
    [
        ('[data]\nname = "camvid"\n[data.streets]\ntrain = 2\nval = 1', USAGE, "in the layout of cityscapes; it also gives data.name 'camvid'"),
        ("[data.streets]\ntrain = 2\nval = 1\nheight = 8", INPUT, "a street of 8x256 cannot be drawn; allowed are 32x64 to 2048x4096"),
        ("[data.streets]\ntrain = 2", USAGE, "draws 2 streets to train on and none to evaluate on: give data.streets.val"),
    ],
)
def test_streets_that_cannot_be_drawn(made: Path, tmp_path: Path, call: Call, section: str, code: int, message: str) -> None:
    ended = call(*run_words(made, tmp_path, recipe=recipe_file(tmp_path, "[search]", f"{section}\n[search]"), data_root=None))
    assert message in ended.message
    assert ended.code == code
    assert tree(tmp_path) == {"changed.toml"}


def test_a_dataset_or_a_split_that_does_not_exist(made: Path, tmp_path: Path, call: Call) -> None:
    """Wherever its name is given: each command that has an option for it."""
    data, out = ("--data-root", made / "streets"), ("--out", tmp_path / "out")
    priced, engine = ("--table", made / "table.json", "--budget", "0.9ms"), made / "engine" / "model.onnx"
    commands: dict[str, list[object]] = {
        "search": ["search", "cas-tiny", *priced, *data, *out],
        "sample": ["sample", "cas-tiny", *priced, "--trials", 1, *data, *out],
        "train": ["train", "--arch", made / "arch.json", *data, "--out", tmp_path / "w.safetensors"],
        "export": ["export", "--arch", made / "arch.json", "--weights", made / "weights.safetensors", "--size", "64x128", *data, *out],
        "bench": ["bench", engine, *data],
        "eval": ["eval", engine, *data],
        "build": ["build", engine, "--runtime", "tensorrt-rtx", "--gpu", "8.9", *data],
        "verify": ["verify", engine, "--run", *data],
        "compare": ["compare", "--given", "fast-scnn", *data, *out],
        "correlate": ["correlate", "cas-tiny", "--run", made / "run", *data, *out],
        "run": run_words(made, tmp_path),
        "data check": ["data", "check", *data],
    }
    having = {name for name, command in segnas.commands.items() if any("--data" in p.opts for p in command.params)}
    assert having == {*commands} - {"data check"}
    for name, words in commands.items():
        ended = call(*words, "--data", "ade20k")
        assert (name, ended.code) == (name, USAGE)
        assert "unknown data set 'ade20k'; allowed are cityscapes, camvid" in ended.message
        options = segnas.commands[words[0]].params if name != "data check" else []
        for option in ("--split", "--eval-split"):
            if any(option in p.opts for p in options):
                ended = call(*words, option, "dev")
                assert (name, ended.code, ended.message) == (name, USAGE, "cityscapes has no split 'dev'; allowed are train, val, test.")
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("name", ["cityscapes", "camvid"])
def test_an_empty_data_folder(made: Path, tmp_path: Path, call: Call, name: str) -> None:
    (tmp_path / "data").mkdir()
    ended = call(*run_words(made, tmp_path, data=name, data_root=tmp_path / "data"))
    assert "does not exist: a " in ended.message
    assert "`segnas data make` draws a synthetic set" in ended.message
    assert (ended.code, tree(tmp_path)) == (INPUT, set())
    ended = call("data", "check", "--data", name, "--data-root", tmp_path / "data", "--json")
    assert len(json.loads(ended.out)["problems"]) == 2
    assert ended.code == INPUT


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(made: Path, tmp_path: Path, call: Call) -> None:
    data = ("--data-root", made / "streets")
    for words in (
        run_words(made, tmp_path, device="cuda"),
        ["train", "--arch", made / "arch.json", *data, "--out", tmp_path / "w.safetensors", "--device", "cuda:1"],
        ["search", "cas-tiny", "--table", made / "table.json", *data, "--budget", "0.9ms", "--out", tmp_path / "s", "--device", "cuda"],
    ):
        ended = call(*words)
        assert "0 CUDA devices can be used here: give --device cpu, or see `segnas doctor`" in ended.message
        assert (ended.code, tree(tmp_path)) == (REQUIREMENT, set())


def wrong_tables(made: Path, tmp_path: Path, which: str) -> Path:
    path = copied(made / "table.json", tmp_path / "bad.json")
    match which:
        case "truncated":
            return cut(path)
        case "edited":
            path.write_text(path.read_text().replace('"median_ms":0.02', '"median_ms":0.01', 1))
        case "size":
            save_table(path, table_of("cas-tiny", 96))
        case "space":
            save_table(path, table_of("cas-fast", 64))
        case "classes":
            save_table(path, table_of("cas-tiny", 64, 11))
        case _:
            return copied(made / "arch.json", path)
    return path


@pytest.mark.parametrize(
    ("which", "code", "message"),
    [
        ("truncated", INPUT, "bad.json is no complete JSON file: "),
        ("edited", INPUT, "bad.json was changed after it was written"),
        ("size", INCOMPATIBLE, "height: the table has 96, asked for is 64; width: the table has 192, asked for is 128); run `segnas profile"),
        ("space", INCOMPATIBLE, "the latency table of 'cas-fast' has no entry for "),
        ("classes", INCOMPATIBLE, "run `segnas profile cas-tiny --size 64x128 --threads 1 --classes 19 --out TABLE.json`"),
        ("architecture", INPUT, "bad.json has schema 'segnas.architecture/1'; a latency table of schema segnas.latency_table/2 is needed"),
    ],
)
def test_a_table_that_does_not_serve(made: Path, tmp_path: Path, call: Call, which: str, code: int, message: str) -> None:
    table = wrong_tables(made, tmp_path, which)
    ended = call(*run_words(made, tmp_path, table=table))
    assert message in ended.message
    assert (ended.code, tree(tmp_path)) == (code, {"bad.json"})
    if which != "size":  # a search is of the table's own size
        data = ("--data-root", made / "streets")
        ended = call("search", "cas-tiny", "--table", table, *data, "--budget", "0.9ms", "--out", tmp_path / "out")
        assert message in ended.message
        assert (ended.code, tree(tmp_path)) == (code, {"bad.json"})
    if which in ("truncated", "edited"):
        assert call("show", table, "--json").code == code


def test_a_budget_that_nothing_can_meet(made: Path, tmp_path: Path, call: Call) -> None:
    ended = call(*run_words(made, tmp_path, budget_ms=0.0001))
    assert "a budget of 0.000 ms was given; by its latency table the networks of 'cas-tiny' take" in ended.message
    assert "raise the budget" in ended.message
    assert ended.code == INPUT
    assert tree(tmp_path / "out") == {"recipe.json", "seconds.json", "table.json", "budget.json"}  # before anything is searched
    data = ("--data-root", made / "streets")
    ended = call("search", "cas-tiny", "--table", made / "table.json", *data, "--budget", "0.0001ms", "--out", tmp_path / "s")
    assert (ended.code, tree(tmp_path / "s")) == (INPUT, set())
    ended = call("search", "cas-tiny", "--table", made / "table.json", *data, "--budget", "1e6ms", "--out", tmp_path / "s")
    assert "ask for less, or choose a larger space" in ended.message
    ended = call("derive", made / "run", "--space", "cas-tiny", "--table", made / "table.json", "--budget", "0.0001")
    assert (ended.code, tree(made / "run")) == (INPUT, {"search.json"})


def test_a_folder_that_holds_a_run(made: Path, tmp_path: Path, call: Call) -> None:
    call(*run_words(made, tmp_path, budget_ms=0.0001))
    before = {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")}
    ended = call(*run_words(made, tmp_path, budget_ms=0.0001))
    assert ended.message.endswith("already holds a run; continue it with --resume or choose another --out")
    assert ended.code == USAGE
    ended = call(*run_words(made, tmp_path, budget_ms=9, seed=3), "--resume")
    assert "holds a run of another recipe (it differs in budget, seed); choose another --out" in ended.message
    assert ended.code == INCOMPATIBLE
    assert {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")} == before
    cut(tmp_path / "out" / "recipe.json")
    ended = call(*run_words(made, tmp_path, budget_ms=9), "--resume")
    assert "recipe.json is no complete JSON file" in ended.message
    assert ended.code == INPUT


def test_a_folder_that_holds_something_else(made: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    ended = call(*run_words(made, tmp_path))
    assert "is not empty and holds no run; choose another --out" in ended.message
    assert (ended.code, tree(tmp_path)) == (USAGE, {"out/thesis.tex"})


def test_an_out_that_cannot_be_written(made: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("")
    inside, data = tmp_path / "file" / "out", ("--data-root", made / "streets")
    for words in (
        run_words(made, tmp_path, out=inside),
        ["profile", "cas-tiny", "--size", "64x128", "--threads", "1", "--out", inside / "t.json"],
        ["search", "cas-tiny", "--table", made / "table.json", *data, "--budget", "0.9ms", "--out", inside],
        ["train", "--arch", made / "arch.json", *data, "--out", inside / "w.safetensors"],
        export_words(made, inside),
        ["data", "make", "--out", inside, "--size", "64x128"],
    ):
        ended = call(*words)
        assert "could not be written: Not a directory; nothing was left behind" in ended.message
        assert ended.code == REQUIREMENT, words
    (tmp_path / "w.safetensors").mkdir()
    ended = call("train", "--arch", made / "arch.json", *data, "--out", tmp_path / "w.safetensors")
    assert "w.safetensors could not be written: it is a folder" in ended.message
    assert tree(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("command", "suffix"),
    [(["profile", "cas-tiny", "--size", "64x128"], ".json"), (["train", "--arch", "a.json", "--data-root", "."], ".safetensors")],
)
def test_an_out_whose_name_would_collide(tmp_path: Path, call: Call, command: list[str], suffix: str) -> None:
    ended = call(*command, "--out", tmp_path / "x.jsonl")
    assert f"x.jsonl was given; the name of a {suffix} file is needed, such as {tmp_path / 'x'}{suffix}" in ended.message
    assert ended.code == USAGE


@pytest.mark.parametrize("size", ["8x8", "16x4096"])
def test_an_input_that_is_too_small(made: Path, tmp_path: Path, call: Call, size: str) -> None:
    data = ("--data-root", made / "streets")
    for words in (
        ["profile", "cas-tiny", "--size", size, "--out", tmp_path / "t.json"],
        ["export", "--arch", made / "arch.json", "--weights", made / "weights.safetensors", "--size", size, *data, "--out", tmp_path / "e"],
    ):
        ended = call(*words, "--threads", "1")
        assert ended.message == f"input size {size} is too small: this network shrinks by 32, so at least 32x32 is needed"
        assert (ended.code, tree(tmp_path)) == (INPUT, set())


@pytest.mark.parametrize("size", ["8", "8x", "0x8", "axb", "-8x8", "8.5x8"])
def test_a_size_that_is_none(tmp_path: Path, call: Call, size: str) -> None:
    ended = call("profile", "cas-tiny", f"--size={size}", "--out", tmp_path / "t.json")
    assert ended.message == f"size {size!r} was given; it is written HEIGHTxWIDTH, such as 512x1024"
    assert ended.code == INPUT
    ended = call("data", "make", "--out", tmp_path / "d", f"--size={size}")
    assert (ended.code, tree(tmp_path)) == (INPUT, set())


def test_streets_too_small_to_draw_leave_the_folder_free(tmp_path: Path, call: Call) -> None:
    ended = call("data", "make", "--out", tmp_path / "d", "--size", "8x8")
    assert ended.message == "a street of 8x8 cannot be drawn; allowed are 32x64 to 2048x4096."
    assert (ended.code, tree(tmp_path)) == (INPUT, set())


def test_more_threads_than_cores(made: Path, tmp_path: Path, call: Call) -> None:
    cores = len(os.sched_getaffinity(0))
    ended = call("profile", "cas-tiny", "--size", "64x128", "--threads", cores + 1, "--out", tmp_path / "t.json")
    assert ended.message.startswith(f"{cores + 1} threads were asked for; 1 to {cores} are allowed here")
    assert (ended.code, tree(tmp_path)) == (INPUT, set())


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("image", "damaged, cut short or not a PNG or JPEG"),
        ("label", "0.png: "),
    ],
)
def test_a_damaged_image(made: Path, tmp_path: Path, call: Call, which: str, message: str) -> None:
    root = copytree(made / "camvid", tmp_path / "camvid")
    for split in ("train", "val"):
        if which == "image":
            cut(root / split / "images" / "0.jpg")
        else:
            cv2.imwrite(str(root / split / "labels" / "0.png"), np.full((64, 96), 77, np.uint8))
    before, data = tree(tmp_path), ("--data", "camvid", "--data-root", root)
    ended = call("data", "check", *data)
    assert ended.message == f"{root} has 2 problems, listed above"
    assert ended.code == INPUT
    assert ended.out.count(message) == 2
    assert which != "label" or "77" in ended.out
    out = tmp_path / "w.safetensors"
    ended = call("train", "--arch", made / "arch11.json", *data, "--recipe", made / "short.toml", "--steps", 2, "--out", out)
    assert message in ended.message
    assert "/0." in ended.message
    assert (ended.code, tree(tmp_path)) == (INPUT, before)


def test_a_damaged_image_at_evaluation(made: Path, tmp_path: Path, call: Call) -> None:
    root = copytree(made / "streets", tmp_path / "streets")
    image = cut(sorted(root.glob("leftImg8bit/val/*/*.png"))[0])
    before, data = tree(tmp_path), ("--data-root", root)
    arch = ("--arch", made / "arch.json", "--weights", made / "weights.safetensors", "--size", "64x128", "--threads", "1")
    for words in (["export", *arch, *data, "--out", tmp_path / "e"], ["bench", made / "engine" / "model.onnx", "--seconds", 0, *data]):
        ended = call(*words)
        assert ended.message.startswith(f"{image}: damaged, cut short or not a PNG or JPEG")
        assert ended.code == INPUT
        assert tree(tmp_path) == before


def test_data_is_looked_at_before_an_engine_is_timed(made: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segnas.benching.bench_run", lambda *_, **__: pytest.fail("timed"))
    assert call("bench", made / "engine" / "model.onnx", "--data-root", "/nowhere").code == INPUT


def export_words(made: Path, out: Path, arch: Path | None = None, weights: Path | None = None) -> list[object]:
    files = ("--arch", arch or made / "arch.json", "--weights", weights or made / "weights.safetensors")
    return ["export", *files, "--size", "64x128", "--threads", "1", "--data-root", made / "streets", "--out", out]


def test_architectures_that_do_not_serve(made: Path, tmp_path: Path, call: Call) -> None:
    broken = cut(copied(made / "arch.json", tmp_path / "broken.json"))
    for words in (["show", broken], export_words(made, tmp_path / "e", arch=broken)):
        ended = call(*words)
        assert "broken.json is no complete JSON file: " in ended.message
        assert ended.code == INPUT
    ended = call(*export_words(made, tmp_path / "e", arch=made / "table.json"))
    assert "a file of schema segnas.architecture/1 is needed" in ended.message
    ended = call("train", "--arch", made / "arch11.json", "--data-root", made / "streets", "--out", tmp_path / "w.safetensors")
    assert ended.message == "the architecture has 11 classes, synthetic-streets has 19"
    assert (ended.code, tree(tmp_path)) == (INCOMPATIBLE, {"broken.json"})
    content = read_json(made / "arch.json")
    content["nodes"][1]["channels"] = 0
    broken.write_text(json.dumps(content))
    ended = call("show", broken)
    assert "0 channels were given; at least 1 is needed" in ended.message
    assert ended.code == INPUT


@pytest.mark.parametrize("file", ["short.toml", "weights.safetensors", "none.json", "run/search.json", "streets"])
def test_files_that_cannot_be_shown(made: Path, call: Call, file: str) -> None:
    for extra in ([], ["--json"]):
        ended = call("show", made / file, *extra)
        assert file in ended.message
        assert (ended.code, ended.out) == (INPUT, "")


def test_weights_that_do_not_serve(made: Path, tmp_path: Path, call: Call) -> None:
    ended = call(*export_words(made, tmp_path / "e", arch=made / "other.json"))
    assert "weights.safetensors holds weights of architecture " in ended.message
    assert "train it with `segnas train`" in ended.message
    assert ended.code == INCOMPATIBLE
    path = tmp_path / "w.safetensors"
    for content in (b"", b"garbage" * 100, (made / "weights.safetensors").read_bytes()[:-9]):
        path.write_bytes(content)
        ended = call(*export_words(made, tmp_path / "e", weights=path))
        assert "w.safetensors is no complete safetensors file: " in ended.message
        assert ended.code == INPUT
    save_tensors(path, {"nodes.1.weight": torch.zeros(2)}, {"architecture": read_noun(made / "arch.json", Architecture).digest})
    ended = call(*export_words(made, tmp_path / "e", weights=path))
    assert "w.safetensors does not hold the weights that it says it holds: " in ended.message
    assert (ended.code, tree(tmp_path)) == (INPUT, {"w.safetensors"})


@pytest.mark.parametrize("state", [None, [], {"other": 1}])
def test_starting_weights_of_an_unknown_kind(made: Path, tmp_path: Path, call: Call, state: object) -> None:
    path = tmp_path / "resnet.safetensors"
    save_tensors(path, {"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(3)}, state)  # type: ignore[arg-type]
    train = ["train", "--arch", made / "arch.json", "--data-root", made / "streets", "--out", tmp_path / "w.safetensors", "--pretrained", path]
    for words in (run_words(made, tmp_path, pretrained=path), train):
        ended = call(*words)
        assert "resnet.safetensors holds conv1.weight, fc.bias, ...; known are weights of segnas, and MobileNet-v2" in ended.message
        assert (ended.code, tree(tmp_path)) == (INPUT, {"resnet.safetensors"})


def test_engines_that_are_not_what_was_written(made: Path, tmp_path: Path, call: Call) -> None:
    folder = copytree(made / "engine", tmp_path / "engine")
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    ended = call("bench", path)
    assert "is not the file that its manifest describes: sha256 was " in ended.message
    assert ended.code == INCOMPATIBLE
    (folder / "model.onnx.json").unlink()
    ended = call("bench", path)
    assert "model.onnx has no manifest, so its export did not end; run `segnas export` again" in ended.message
    assert ended.code == INPUT
    path.unlink()
    ended = call("bench", path)
    assert "model.onnx does not exist; give an engine" in ended.message
    assert ended.code == INPUT
    ended = call("bench", made / "engine" / "model.onnx", "--seconds", "0", "--data", "camvid", "--data-root", made / "camvid")
    assert "model.onnx has classes road, " in ended.message
    assert ended.code == INCOMPATIBLE


def retold(made: Path, to: Path, **changes: object) -> Path:
    """A copy of the engine whose manifest says something else, of its target where it has no such field itself."""
    folder = copytree(made / "engine", to)
    manifest = folder / "model.onnx.json"
    content = read_json(manifest)
    for name, value in changes.items():
        (content if name in content else content["target"])[name] = value
    manifest.write_text(json.dumps(content))
    return folder / "model.onnx"


def test_engines_of_another_machine_are_not_timed(made: Path, tmp_path: Path, call: Call) -> None:
    other = retold(made, tmp_path / "other", device="a toaster", threads=64)
    ended = call("bench", other, "--seconds", 0, "--out", tmp_path / "out")
    assert "was made for another machine (device: the engine has 'a toaster', here is " in ended.message
    assert "threads: the engine has '64'" in ended.message
    assert "--allow-mismatch device --allow-mismatch threads" in ended.message
    assert (ended.code, (tmp_path / "out" / "bench.json").exists()) == (INCOMPATIBLE, False)
    ended = call("bench", other, "--seconds", 0, "--compare", made / "engine" / "model.onnx")
    assert ended.code == INCOMPATIBLE
    ended = call("bench", other, "--seconds", 0, "--allow-mismatch", "colour")
    assert (
        "--allow-mismatch colour was given; fields of this engine that depend on the machine are device, runtime_version, huge_pages, threads"
        in ended.message
    )
    assert ended.code == USAGE


def test_engines_whose_runtime_is_not_here(made: Path, tmp_path: Path, call: Call) -> None:
    cuda = retold(made, tmp_path / "cuda", options=[["provider", "CUDAExecutionProvider"]], scope="gpu")
    ended = call("bench", cuda, "--seconds", 0)
    assert "provider 'CUDAExecutionProvider' was asked for; this build of onnxruntime" in ended.message
    assert ended.code == REQUIREMENT
    ended = call("bench", made / "engine" / "model.onnx", "--seconds", 0, "--runtime", "onnxruntime-tensorrt")
    assert "provider 'TensorrtExecutionProvider' was asked for; this build of onnxruntime" in ended.message
    assert ended.code == REQUIREMENT
    native = retold(made, tmp_path / "native", runtime="tensorrt", options=[], scope="gpu")
    ended = call("bench", native, "--seconds", 0)
    assert "TensorRT is not installed here" in ended.message
    assert ended.code == REQUIREMENT
    ended = call("bench", native, "--seconds", 0, "--runtime", "tensorrt-rtx")
    assert "runtime 'tensorrt-rtx' was asked for" in ended.message
    assert ended.code == INCOMPATIBLE


@pytest.mark.parametrize("content", [b"", b"no engine at all"])
def test_engines_that_hold_nothing(made: Path, tmp_path: Path, call: Call, content: bytes) -> None:
    """Their manifest is in order: it describes these very bytes."""
    path = retold(made, tmp_path / "engine", sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    path.write_bytes(content)
    ended = call("bench", path, "--seconds", 0)
    assert ("the engine is empty (0 bytes)" if not content else "onnxruntime cannot open this engine") in ended.message
    assert ended.code == INPUT


def test_wishes_that_bench_does_not_grant(made: Path, tmp_path: Path, call: Call) -> None:
    engine = made / "engine" / "model.onnx"
    ended = call("bench", engine, "--seconds", 0, "--scope", "gpu")
    assert ended.message == "scope 'gpu' was asked for; 'onnxruntime' is timed end_to_end, pipeline"
    assert ended.code == INPUT
    ended = call("bench", engine, "--seconds", 0, "--compare", tmp_path / "none.onnx")
    assert "none.onnx does not exist" in ended.message
    assert ended.code == INPUT
    (tmp_path / "file").write_text("")
    for option in ("--out", "--trtexec-json"):
        ended = call("bench", engine, "--seconds", 0, option, tmp_path / "file" / "out")
        assert "could not be written: " in ended.message
        assert ended.code == REQUIREMENT


def test_runs_that_cannot_be_laid_side_by_side(made: Path, tmp_path: Path, call: Call) -> None:
    ended = call("report", made / "streets", "--out", tmp_path / "side")
    assert "holds no bench.json and no report.json; make one with `segnas bench ENGINE --out" in ended.message
    assert ended.code == INPUT
    ended = call("report", made / "arch.json", "--out", tmp_path / "side")
    assert "has schema 'segnas.architecture'; a bench.json" in ended.message
    assert ended.code == INPUT
    (tmp_path / "bench.json").write_text("{")
    ended = call("report", tmp_path, "--out", tmp_path / "side")
    assert "bench.json is no complete JSON file" in ended.message
    assert (ended.code, tree(tmp_path)) == (INPUT, {"bench.json"})


def test_searches_that_do_not_serve(made: Path, tmp_path: Path, call: Call) -> None:
    words = ["derive", tmp_path, "--space", "cas-tiny", "--table", made / "table.json", "--budget", "0.9ms"]
    search = tmp_path / "search.json"
    ended = call(*words)
    assert "search.json does not exist" in ended.message
    assert ended.code == INPUT
    cut(copied(made / "run" / "search.json", search))
    assert "search.json is no complete JSON file" in call(*words).message
    content = read_json(made / "run" / "search.json")
    for probabilities in (None, [], {"x": 1}, {"x": [1.0]}, {name: [1.0] for name in content["probabilities"]}):
        search.write_text(json.dumps({**content, "probabilities": probabilities}))
        ended = call(*words)
        assert "search.json" in ended.message
        assert ended.code == INPUT
    search.write_text(json.dumps({**content, "space": "cas"}))
    ended = call(*words)
    assert "is a search of 'cas'; 'cas-tiny' is asked for" in ended.message
    assert ended.code == INCOMPATIBLE
    copied(made / "run" / "search.json", search)
    (tmp_path / "measurements.jsonl").write_text("garbage\n")
    ended = call(*words)
    assert "measurements.jsonl is damaged" in ended.message
    assert (ended.code, tree(tmp_path)) == (INPUT, {"search.json", "measurements.jsonl"})


def test_a_table_of_another_machine_cannot_derive(made: Path, tmp_path: Path, call: Call) -> None:
    from dataclasses import replace

    table = load_table(made / "table.json")
    save_table(tmp_path / "t.json", replace(table, target=replace(table.target, device="a toaster")))
    ended = call("derive", made / "run", "--space", "cas-tiny", "--table", tmp_path / "t.json", "--budget", "0.9ms")
    assert "device: the table has 'a toaster', asked for is " in ended.message
    assert (ended.code, tree(made / "run")) == (INCOMPATIBLE, {"search.json"})


FULL = """
import resource, sys
from segnas.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv = ["segnas", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize("command", ["train", "export", "make", "run"])
def test_a_disk_that_fills_up(made: Path, tmp_path: Path, command: str) -> None:
    """Simulated by the kernel: no file may grow beyond a limit, and a write that would is refused half-way."""
    data = ("--data-root", made / "streets")
    words: dict[str, tuple[int, list[object]]] = {
        "train": (9000, ["train", "--arch", made / "arch.json", *data, "--recipe", made / "short.toml", "--out", tmp_path / "w.safetensors"]),
        "export": (20_000, export_words(made, tmp_path / "e")),
        "make": (2000, ["data", "make", "--out", tmp_path / "d", "--size", "64x128", "--train", "1", "--val", "1"]),
        "run": (2000, run_words(made, tmp_path)),
    }
    limit, chosen = words[command]
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", FULL, str(limit), *map(str, chosen)], capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("Error: ") == 1
    assert "could not be written: File too large; nothing was left behind, free the space" in ended.stderr
    assert ended.returncode == REQUIREMENT
    left = [tmp_path / name for name in tree(tmp_path)]
    assert all(cv2.imread(str(path)) is not None for path in left if path.suffix == ".png")  # whole labels, which a second call need not draw
    assert {path.name for path in left if path.suffix != ".png"} <= {"recipe.json", "seconds.json", "streets.json"}


def test_the_made_data_is_good(made: Path) -> None:
    """Else the tests above would pass for the wrong reason."""
    assert isinstance(open_dataset("camvid", made / "camvid", "train"), Dataset)
    assert read_recipe(str(made / "short.toml")).train.steps == 1
    load_table(made / "table.json")

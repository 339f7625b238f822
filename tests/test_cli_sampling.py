"""`segnas sample` on tiny streets with made-up prices, and the commands of its page."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner, Result

from segnas.arch import Architecture
from segnas.cli import segnas
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.files import read_json, read_noun
from segnas.latency import Entry, LatencyTable
from segnas.latency_tables.store import load_table, save_table
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.spaces import space
from segnas.streets import write_streets

PAGE = (Path(__file__).parent.parent / "docs" / "sampling.md").read_text(encoding="utf-8")
TINY = space("cas-tiny", 19)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny streets (whose evaluation split cannot be read), a table and a schedule of one step."""
    folder, target = tmp_path_factory.mktemp("made"), cpu_target(64, 128)
    write_streets(folder / "streets", counts={"train": 4, "val": 1}, height=64, width=128, seed=0)
    for path in folder.rglob("val/**/*.png"):
        path.write_bytes(b"")
    entries = tuple(Entry(o, "block", 0.05 + 2 * int(o.digest, 16) / 16**12, 0.0, 1, "made up", "") for o in TINY.all_operations(target))
    save_table(folder / "table.json", LatencyTable(TINY.name, target, entries))
    (folder / "short.toml").write_text(
        'name = "short"\nspace = "cas-tiny"\nbudget = "8ms"\n'
        "[search]\nsteps = 2\nwarmup = 1\nbatch = 2\ncrop = [64, 64]\n"
        "[train]\nsteps = 9\nwarmup = 1\nbatch = 2\ncrop = [32, 64]\n"
    )
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Callable[..., Result]:
    def invoke(*words: object) -> Result:
        given = ["sample", "cas-tiny", "--table", made / "table.json", "--data-root", made / "streets", "--recipe", made / "short.toml"]
        given += ["--steps", 1, "--budget", "p40", "--trials", 3, "--out", tmp_path / "out", "--json"]
        return CliRunner().invoke(segnas, [*map(str, given), *map(str, words)])

    return invoke


def test_a_supernet_scores_in_place_of_a_training(run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segnas.measuring.require_live", lambda *_: None)
    words = ["search", "cas-tiny", "--table", made / "table.json", "--data-root", made / "streets", "--recipe", made / "short.toml"]
    found = CliRunner().invoke(segnas, [*map(str, words), "--budget", "p40", "--out", str(tmp_path / "searched")])
    assert found.exit_code == 0, found.exception
    result = run("--strategy", "random", "--supernet", tmp_path / "searched")
    assert result.exit_code == 0, result.exception
    sampled = read_json(tmp_path / "out" / "sampled.json")
    assert "the supernet's weights" in sampled["asked"]["schedule"]["score"]
    assert sampled["best"]["score"] == json.loads(result.stdout)["score"] >= 0
    assert not (tmp_path / "out" / "training").exists()
    refused = run("--strategy", "random")  # the same study, scored otherwise
    assert isinstance(refused.exception, IncompatibleError)


def test_fast_nas_is_sampled_by_its_controller_and_scored_in_two_stages(made: Path, tmp_path: Path) -> None:
    small, target, out = space("fast-nas-small", 19), cpu_target(64, 128), tmp_path / "out"
    entries = tuple(Entry(o, "block", 0.05 + 2 * int(o.digest, 16) / 16**12, 0.0, 1, "made up", "") for o in small.all_operations(target))
    save_table(tmp_path / "table.json", LatencyTable(small.name, target, entries))
    (tmp_path / "r.toml").write_text(
        'name = "r"\nspace = "fast-nas-small"\nbudget = "p60"\n[search]\nmethod = "fast-nas"\nbatch = 2\ncrop = [64, 64]\n'
        "[search.sampled]\ncrops = 2\nbackbone_steps = 1\n[search.staged]\nepochs = 1\nsteps = 1\nbatch = 2\ncrop = [64, 64]\nimages = 1\n"
        "[train]\nbatch = 2\ncrop = [64, 64]\n"
    )
    words = [
        "sample",
        "fast-nas-small",
        "--table",
        tmp_path / "table.json",
        "--data-root",
        made / "streets",
        "--recipe",
        tmp_path / "r.toml",
        "--json",
    ]
    words += ["--budget", "p60", "--trials", 2, "--out", out, "--strategy", "controller", "--two-stage"]
    result = CliRunner().invoke(segnas, [*map(str, words)])
    assert result.exit_code == 0, result.exception
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [t["state"] for t in trials] == ["complete"] * 2
    assert all("stage0" in t["notes"] and t["price_ms"] <= json.loads(result.stdout)["budget_ms"] for t in trials)
    assert read_json(out / "sampled.json")["asked"]["strategy"].startswith("controller {")
    assert (out / "controller.safetensors").is_file()
    both = CliRunner().invoke(segnas, [*map(str, words), "--supernet", str(tmp_path)])
    assert isinstance(both.exception, UsageError)
    without = CliRunner().invoke(segnas, [*map(str, words[:-1]), "--pretrained", str(tmp_path / "w")])
    assert isinstance(without.exception, UsageError)


@pytest.mark.parametrize("strategy", ["random", "evolution", "controller"])
def test_the_best_of_a_study_is_written_with_all_that_was_tried(run, made: Path, tmp_path: Path, strategy: str) -> None:
    result = run("--strategy", strategy, "--population", 2, "--sample", 1)
    assert result.exit_code == 0, result.exception
    printed, out = json.loads(result.stdout), tmp_path / "out"
    architecture, sampled = read_noun(out / "arch.json", Architecture), read_json(out / "sampled.json")
    trials = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    table = load_table(made / "table.json")
    assert [(t["number"], t["state"]) for t in trials] == [(0, "complete"), (1, "complete"), (2, "complete")]
    assert printed["trials"] == sampled["trials"] == {"complete": 3}
    best = max(trials, key=lambda t: t["score"])
    assert TINY.decode(best["genotype"]).architecture == architecture
    assert (sampled["best"]["genotype"], sampled["best"]["score"]) == (best["genotype"], best["score"])
    assert printed["architecture"] == sampled["best"]["architecture"] == architecture.digest
    estimate = table.estimate(architecture)
    assert printed["predicted_ms"] == sampled["best"]["predicted_ms"] == estimate.total_ms <= printed["budget_ms"]
    assert sampled["best"]["low_ms"] == estimate.low_ms
    for trial in trials:
        assert 0 <= trial["score"] <= 1
        assert trial["price_ms"] == pytest.approx(table.additive_ms(TINY.decode(trial["genotype"]).architecture))
    asked = sampled["asked"]
    assert (asked["space"], asked["table"], asked["budget_ms"]) == ("cas-tiny", table.prices_digest, printed["budget_ms"])
    assert asked["schedule"]["train"]["steps"] == 1
    assert sampled["study"] == f"cas-tiny-{strategy}"
    study = optuna.load_study(storage=f"sqlite:///{out / 'study.db'}", study_name=f"cas-tiny-{strategy}")
    assert study.user_attrs["identity"] == asked
    study._storage.remove_session()
    assert not [p for p in out.rglob("*") if p.suffix in (".partial", ".safetensors") and p.name != "controller.safetensors"]


def test_a_finished_study_is_not_worked_on_again_and_a_longer_one_goes_on(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ("--storage", f"journal:{tmp_path / 'shared' / 'study.log'}", "--study", "ours")
    assert run(*storage, "--trials", 2).exit_code == 0
    written = (tmp_path / "out" / "trials.jsonl").read_bytes()
    assert run(*storage, "--trials", 3, "--out", tmp_path / "second").exit_code == 0
    assert (tmp_path / "second" / "trials.jsonl").read_bytes().startswith(written)
    monkeypatch.setattr("segnas.search.trained_score.train", lambda *_, **__: pytest.fail("nothing is left to do"))
    assert run(*storage, "--trials", 3).exit_code == 0
    assert (tmp_path / "out" / "trials.jsonl").read_bytes() == (tmp_path / "second" / "trials.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (("--budget", "0.01ms"), InputError, "the cheapest takes [0-9.]+ ms and the dearest [0-9.]+ ms"),
        (("--sample", "30"), UsageError, "1 <= sample <= population"),
        (("--storage", "study.db"), UsageError, "write sqlite:///FILE, journal:FILE"),
        (("--device", "tpu"), UsageError, "allowed: cpu, cuda"),
        (("--seed", "1"), IncompatibleError, "seed: it has 0, asked for is 1"),
        (("--steps", "2"), IncompatibleError, "schedule: it has .*; choose another --study"),
        (("--budget", "p50"), IncompatibleError, "budget_ms: it has [0-9.]+, asked for is [0-9.]+"),
    ],
)
def test_refusals(run, words: tuple[str, str], error: type[Exception], message: str, tmp_path: Path) -> None:
    if error is IncompatibleError:
        assert run("--trials", 1).exit_code == 0
    result = run("--trials", 1, *words)
    assert type(result.exception) is error
    assert re.search(message, str(result.exception))
    assert (tmp_path / "out" / "arch.json").is_file() == (error is IncompatibleError)


def test_the_page_shows_commands_that_parse() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    assert sum(line.startswith("segnas sample") for line in lines) >= 2
    for line in lines:
        words = shlex.split(line)
        segnas.commands[words[1]].make_context(words[1], words[2:]).close()


def test_a_frozen_backbone_scores_on_cached_features_and_the_best_are_ranked_anew(made: Path, tmp_path: Path) -> None:
    small, target = space("dpc-small", 19), cpu_target(64, 128)
    entries = tuple(Entry(o, "block", 0.05 + 2 * int(o.digest, 16) / 16**12, 0.0, 1, "made up", "") for o in small.all_operations(target))
    save_table(tmp_path / "table.json", LatencyTable(small.name, target, entries))
    words = ["sample", "dpc-small", "--strategy", "local", "--table", tmp_path / "table.json", "--data-root", made / "streets", "--steps", 1]
    words += ["--recipe", made / "short.toml", "--budget", "p60", "--trials", 3, "--out", tmp_path / "out", "--json", "--rerank", 2]

    def invoke(*more: object) -> Result:
        return CliRunner().invoke(segnas, [*map(str, words), *map(str, more)])

    alone = invoke()
    assert isinstance(alone.exception, UsageError)
    assert "belong to a frozen backbone with cached features: give --crops too" in str(alone.exception)
    random_weights = invoke("--crops", 2)
    assert isinstance(random_weights.exception, UsageError)
    assert "the backbone would be frozen at random weights" in str(random_weights.exception)
    assert not (tmp_path / "out").exists()
    result = invoke("--crops", 2, "--backbone-steps", 1, "--rerank-steps", 1)
    assert result.exit_code == 0, result.exception
    sampled = read_json(tmp_path / "out" / "sampled.json")
    ranked = [candidate["reranked"] for candidate in sampled["candidates"]]
    assert len(ranked) == sampled["agreement"]["networks"] == 2
    assert json.loads(result.stdout)["score"] == sampled["best"]["score"] == max(ranked)
    assert sampled["note"].startswith("re-ranking of 2 networks: Spearman ")
    assert small.decode(sampled["best"]["genotype"]).architecture == read_noun(tmp_path / "out" / "arch.json", Architecture)
    assert sampled["asked"]["strategy"] == "local, near the best 5"
    again = invoke("--crops", 2, "--backbone-steps", 1, "--rerank-steps", 1)
    assert json.loads(again.stdout) == json.loads(result.stdout)

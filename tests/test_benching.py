"""Engines on disk, timed: scopes, sentinel, other machines, other runtimes, two in turns."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segnas import benching, evaluating, yardstick
from segnas.arch import Architecture, Node
from segnas.bench_page import timing_text
from segnas.benching import Wish, bench_engine, bench_run, compare_engines, evaluate_run, pretraining_of
from segnas.data import Dataset, open_dataset
from segnas.errors import IncompatibleError, InputError, RequirementError, UsageError
from segnas.export.manifest import read_engine, write_engine
from segnas.exporting import export_engine
from segnas.files import sha256_of
from segnas.kinds import kind
from segnas.network import initialised
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.session import Session, open_session
from segnas.runtime.trtexec import Query
from segnas.steps import save_weights
from segnas.streets import write_streets
from segnas.target import Target
from segnas.timing import CpuTimes

SHORT = Wish(rigor="quick", seconds=0.0)


def architecture(width: int) -> Architecture:
    nodes = (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=8), (0,), width, 4),
        Node(kind("classifier"), (1,), 19),
        Node(kind("resize"), (2,), 19, 1, 4),
    )
    return Architecture(nodes)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, counts={"val": 3}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "val")


@pytest.fixture(scope="module")
def engines(tmp_path_factory, streets: Dataset) -> tuple[Path, Path]:
    """A small network and one that costs several times as much."""
    folder = tmp_path_factory.mktemp("engines")
    for name, width in (("small", 8), ("large", 128)):
        made = architecture(width)
        network = initialised(made, 0).eval()
        export_engine(network, cpu_target(64, 128), folder / name, dataset=streets)
        save_weights(folder / name / "weights.safetensors", network.state_dict(), made, "ImageNet")
    return folder / "small" / "model.onnx", folder / "large" / "model.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """References of the sentinel, of this test alone."""
    monkeypatch.setenv("SEGNAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sentinels"


def altered(path: Path, to: Path, **changes: object) -> Path:
    """A copy of an engine whose manifest says something else of its target."""
    engine, artefact = read_engine(path)
    write_engine(to, artefact.read_bytes(), replace(engine, target=replace(engine.target, **changes)))  # type: ignore[arg-type]
    return to / artefact.name


def test_all_scopes_are_timed_of_the_same_bytes(engines, streets):
    seen: list[tuple[int, int]] = []
    queries: list[Query] = []
    run = bench_run(engines[0], SHORT, pictures=streets, queries=queries, progress=lambda done, total, text: seen.append((done, total)))
    assert [timing.scope for timing in run.timings] == ["end_to_end", "pipeline"]
    ours, pipeline = run.timings
    assert float(dict(pipeline.conditions)["infer_ms"]) < pipeline.median_ms
    assert ours.runs >= 30
    assert run.engine == read_engine(engines[0])[0]
    assert (run.target, run.mismatches, run.name) == (run.engine.target, (), "small/model.onnx")
    assert run.pretraining == "ImageNet"
    assert dict(pipeline.conditions)["pictures"] == "3: PNG files of synthetic-streets val"
    assert {"decode_ms", "prepare_ms", "infer_ms", "sentinel_ms", "machine_idle"} <= set(dict(pipeline.conditions))
    assert len(queries) == ours.runs
    assert seen == sorted(seen)
    assert seen[-1] == (100, 100)
    drawn = bench_run(engines[0], replace(SHORT, scopes=("pipeline",), sentinel=False))
    assert dict(drawn.timing.conditions)["pictures"] == "4: drawn streets of 64x128, JPEG in memory"
    assert drawn.timing.normalised_median_ms is None
    assert dict(drawn.timing.conditions)["sentinel"] == "none: not wanted"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sha256 of every engine that is opened to be timed or scored, read anew from what is opened."""
    found: list[str] = []

    def watched(engine: bytes | Path, *given: Any, **named: Any) -> Session:
        found.append(hashlib.sha256(engine if isinstance(engine, bytes) else engine.read_bytes()).hexdigest())
        return open_session(engine, *given, **named)

    for module in (benching, evaluating):
        monkeypatch.setattr(module, "open_session", watched)
    return found


def test_what_is_scored_has_the_sha256_of_what_is_timed_and_other_bytes_are_refused(engines, streets, tmp_path, opened):
    short = replace(SHORT, scopes=("end_to_end",), sentinel=False)
    record = bench_run(engines[0], short)
    evaluate_run(engines[0], short, streets)
    assert opened == [sha256_of(engines[0])] * 2 == [record.engine.sha256] * 2
    swapped = tmp_path / "swapped" / "model.onnx"
    shutil.copytree(engines[0].parent, swapped.parent)
    content = bytearray(swapped.read_bytes())
    content[-1] ^= 1
    swapped.write_bytes(content)
    for use in (lambda: bench_run(swapped, short), lambda: evaluate_run(swapped, short, streets), lambda: bench_engine(swapped, seconds=0)):
        with pytest.raises(IncompatibleError, match=f"sha256 was {record.engine.sha256} .*, {sha256_of(swapped)} was found"):
            use()


def test_accuracy_is_of_the_engine_that_was_timed(engines, streets):
    found = evaluate_run(engines[0], SHORT, streets)
    assert found == evaluate_run(engines[0], replace(SHORT, runtime="onnxruntime"), streets)
    assert found.images == 3


def test_the_sentinels_reference_is_kept_from_an_idle_machine_only(engines, cache, monkeypatch):
    busy = iter([CpuTimes(0, 0, 0, 0.0, 0.0), CpuTimes(900, 50, 1000, 1.0, 10.0)] * 4)
    monkeypatch.setattr(yardstick, "cpu_times", lambda: next(busy))
    for _ in range(2):  # the first reading serves until the machine is idle
        conditions = dict(bench_run(engines[0], replace(SHORT, scopes=("end_to_end",))).timing.conditions)
        (kept,) = cache.glob("*.json")
        content = json.loads(kept.read_text())
        assert conditions["sentinel_reference_of"] == f"{content['since']}, when the machine was not idle"
        assert conditions["sentinel_reference_ms"] == f"{content['sentinel_ms']:.4f}"
    idle = iter([CpuTimes(0, 0, 0, 0.0, 0.0), CpuTimes(100, 0, 1000, 10.0, 10.0)] * 4)
    monkeypatch.setattr(yardstick, "cpu_times", lambda: next(idle))
    first = bench_run(engines[0], replace(SHORT, scopes=("end_to_end",))).timing
    (kept,) = cache.glob("*.json")
    content = json.loads(kept.read_text())
    assert content["idle"] is True
    assert content["target"]["device"] == cpu_target(64, 128).device
    assert dict(first.conditions)["sentinel_reference_of"] == content["since"]
    # from now on the unit is fixed, whatever it is
    kept.write_text(json.dumps(content | {"sentinel_ms": 1000.0}))
    second = bench_run(engines[0], replace(SHORT, scopes=("end_to_end",))).timing
    told = dict(second.conditions)
    assert told["sentinel_reference_ms"] == "1000.0000"
    assert second.normalised_median_ms is not None
    assert second.normalised_median_ms > 20 * second.median_ms
    kept.write_text("{damaged")
    assert float(dict(bench_run(engines[0], replace(SHORT, scopes=("end_to_end",))).timing.conditions)["sentinel_reference_ms"]) < 500


def test_a_cache_that_cannot_be_written_does_not_stop_the_timing(engines, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGNAS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(yardstick, "cpu_times", lambda: None)
    assert bench_run(engines[0], replace(SHORT, scopes=("end_to_end",))).timing.normalised_median_ms is not None


def test_an_engine_of_another_machine_is_refused_or_said(engines, tmp_path):
    other = altered(engines[0], tmp_path / "other", device="a toaster", runtime_version="1.2.3")
    with pytest.raises(IncompatibleError, match=r"device: the engine has 'a toaster', here is .*; runtime_version: .*--allow-mismatch device"):
        bench_run(other, SHORT)
    with pytest.raises(IncompatibleError, match="a toaster"):
        bench_engine(other, seconds=0)
    with pytest.raises(UsageError, match="--allow-mismatch colour was given"):
        bench_run(other, replace(SHORT, allowed=("colour",)))
    run = bench_run(other, replace(SHORT, allowed=("device", "runtime_version"), scopes=("end_to_end",), sentinel=False))
    assert run.target == cpu_target(64, 128)
    assert [name for name, _, _ in run.mismatches] == ["device", "runtime_version"]
    assert any("timed on another machine" in warning for warning in run.warnings)


def test_wishes_that_cannot_be_had(engines, tmp_path):
    with pytest.raises(InputError, match="scope 'gpu' was asked for; 'onnxruntime' is timed end_to_end, pipeline"):
        bench_run(engines[0], replace(SHORT, scopes=("gpu",)))
    with pytest.raises(InputError, match="rigor 'lax'"):
        bench_run(engines[0], replace(SHORT, rigor="lax", scopes=("end_to_end",)))
    with pytest.raises(RequirementError, match="this build of onnxruntime"):
        bench_run(engines[0], replace(SHORT, runtime="onnxruntime-tensorrt"))
    with pytest.raises(IncompatibleError, match=r"runs on onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt: export or build"):
        bench_run(engines[0], replace(SHORT, runtime="tensorrt"))
    gpu = altered(engines[0], tmp_path / "gpu", runtime="tensorrt", runtime_version="11.4.0.106", options=())
    with pytest.raises(RequirementError, match="TensorRT is not installed here"):
        bench_run(gpu, SHORT)
    rtx = altered(engines[0], tmp_path / "rtx", runtime="tensorrt-rtx", runtime_version="1.7.1.116", options=())
    with pytest.raises(RequirementError, match=r"tensorrt_rtx|pycuda"):
        bench_run(rtx, SHORT)


def test_mlperf_times_queries_one_by_one(monkeypatch):
    target = cpu_target(64, 128)
    assert benching._scopes(target, Wish(rigor="mlperf")) == ("end_to_end",)
    assert benching._scopes(target, Wish()) == ("end_to_end", "pipeline")
    assert benching._scopes(replace(target, batch=2), Wish()) == ("end_to_end",)
    gpu = Target("GPU", "tensorrt", "11.4.0.106", "fp16", 64, 128, scope="gpu")
    assert benching._scopes(gpu, Wish()) == ("gpu", "end_to_end", "pipeline")
    with pytest.raises(InputError, match="'mlperf' was asked for with scope 'gpu'"):
        benching._scopes(gpu, Wish(rigor="mlperf", scopes=("gpu",)))


def test_two_engines_in_turns(engines):
    told: list[int] = []
    found = compare_engines(engines[0], engines[1], SHORT, progress=lambda done, total, text: told.append(done))
    assert found.verdict != "slower"  # what is made of known samples is tested with runtime.versus
    assert found.ratio < 1
    assert told[-1] == 100
    assert compare_engines(engines[1], engines[0], replace(SHORT, scopes=("pipeline",))).scope == "pipeline"


def test_pretraining_is_that_of_the_weights_beside_it(engines, tmp_path):
    engine, artefact = read_engine(engines[0])
    assert pretraining_of(engine, artefact) == "ImageNet"
    assert pretraining_of(replace(engine, weights_sha256="0" * 64), artefact) == "not stated"
    assert pretraining_of(engine, tmp_path / "model.onnx") == "not stated"
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    assert pretraining_of(engine, tmp_path / "model.onnx") == "not stated"


def test_an_empty_engine_is_refused(engines, tmp_path):
    engine, _ = read_engine(engines[0])
    write_engine(tmp_path / "empty", b"", engine)
    with pytest.raises(InputError, match="the engine is empty"):
        bench_run(tmp_path / "empty" / "model.onnx", SHORT)
    write_engine(tmp_path / "garbage", b"no engine at all", engine)
    with pytest.raises(InputError, match="onnxruntime cannot open this engine"):
        bench_run(tmp_path / "garbage" / "model.onnx", SHORT)


def test_the_normalised_latency_is_the_mean_over_processes(engines):
    wish = Wish(seconds=0.05, scopes=("end_to_end",), processes=3)
    (timing,) = bench_run(engines[0], wish).timings
    each = [float(text) for text in dict(timing.conditions)["normalised_ms_of_each"].split()]
    assert dict(timing.conditions)["processes"] == "3"
    assert len(set(each)) == 3  # no two clocks say the same
    assert timing.normalised_median_ms == pytest.approx(sum(each) / 3, rel=1e-3)
    assert f"(mean of 3 processes, {min(each):.3f} to {max(each):.3f})" in timing_text(timing)
    alone = bench_run(engines[0], replace(wish, processes=1)).timings[0]
    assert "processes" not in dict(alone.conditions)
    assert "processes" not in timing_text(alone)
    assert "processes" not in dict(bench_run(engines[0], replace(wish, sentinel=False)).timings[0].conditions)  # nothing to take the mean of


def test_further_processes_time_the_same_and_their_errors_are_told(engines, monkeypatch):
    asked: list[list[str]] = []

    def called(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        if len(asked) > 1:
            return subprocess.CompletedProcess(words, 1, "", "a\nError: no such luck")
        return subprocess.CompletedProcess(words, 0, json.dumps({"timings": [{"normalised_median_ms": 5.0}]}), "")

    monkeypatch.setattr("segnas.apart.subprocess.run", called)
    wish = Wish("quick", 0.05, ("end_to_end",), "onnxruntime", ("device",), processes=2)
    (timing,) = bench_run(engines[0], wish).timings
    assert dict(timing.conditions)["normalised_ms_of_each"].endswith(" 5.0000")
    same = ["--scope", "end_to_end", "--rigor", "quick", "--allow-mismatch", "device", "--seconds", "0.05", "--runtime", "onnxruntime"]
    assert asked[0][1:] == ["-m", "segnas", "bench", str(engines[0]), *same, "--processes", "1", "--json"]
    with pytest.raises(RequirementError, match="ended with 1 and said: Error: no such luck"):
        bench_run(engines[0], wish)

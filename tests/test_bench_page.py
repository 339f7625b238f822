"""The report of a benchmark: every condition is in text and page, nothing is markup, several runs share one page."""

import html
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from segnas.bench_page import (
    benchmark_text,
    benchmarks_page,
    conditions_of,
    fronts_picture,
    read_benchmark,
    side_by_side_text,
    versus_text,
    write_benchmark,
    write_side_by_side,
)
from segnas.benchmark import Benchmark, SideBySide, side_by_side
from segnas.errors import InputError
from segnas.files import read_noun, write_noun
from segnas.report import Accuracy, ClassScore, Engine, Timing
from segnas.runtime.versus import Versus
from segnas.show import shown
from segnas.target import Target

EVIL = '<script>alert("it\'s")</script> & $x$'
CPU = Target("AMD EPYC, 2 cores", "onnxruntime", "1.31.1", "int8", 360, 480, threads=2, options=(("optimisation", "all"), ("spinning", "on")))
GPU = Target("NVIDIA RTX 4090", "tensorrt", "11.4.0.106", "fp16", 1024, 2048, scope="gpu", options=(("graph", "auto"),))
CPU_TOLD = {"load_before": "0.10", "load_after": "0.20", "stolen": "0.0000", "machine_idle": "yes", "spinning": "on", "rigor": "standard"}
CPU_TOLD |= {"sentinel_ms": "2.5000 (2.4 to 2.6)", "sentinel_reference_ms": "2.4000", "sentinel_reference_of": "2026-11-21"}
GPU_TOLD = {"sm_clock_mhz": "2520 (2500 to 2535)", "memory_clock_mhz": "10501 (10501 to 10501)", "temperature_c": "61", "throttled": "power cap"}
GPU_TOLD |= {"cuda_graph": "none: cuda-bindings is not installed", "machine_idle": "no", "rigor": "mlperf"}


def made(name: str, target: Target, told: dict[str, str], ms: float, miou: float | None, warnings: tuple[str, ...] = ()) -> Benchmark:
    conditions = tuple(sorted(told.items()))
    timing = Timing(
        target.scope, 412, 57, 3.1, ms, ms * 1.01, ms, ms * 1.1, ms * 1.2, ms * 1.3, ms * 2, 0.021, 999 / ms, warnings, conditions, ms * 0.99
    )
    pipeline = tuple(
        sorted((told | {"decode_ms": "1.1", "prepare_ms": "0.5", "infer_ms": "4.0", "argmax_ms": "0.0", "pictures": "4: drawn"}).items())
    )
    second = replace(timing, scope="pipeline", median_ms=ms * 3, conditions=pipeline, warnings=())
    classes = (ClassScore("road", 0.9), ClassScore(EVIL, None))
    accuracy = None if miou is None else Accuracy("camvid", "test", 233, miou, 0.93, classes, "one scale", ((1,),))
    engine = Engine("model.onnx", "onnx", "9f2c" * 16, 14_532_112, target, "0123", "ab12" * 16, ("road", EVIL), None, ())
    return Benchmark(name, "2026-11-21T12:00:00+00:00", engine, target, (timing, second), accuracy, "ImageNet", (), (("segnas", "0.1.0"),))


CPU_RUN, GPU_RUN = made("int8", CPU, CPU_TOLD, 8.0, 0.5123), made(EVIL, GPU, GPU_TOLD, 1.25, 0.7)


@pytest.mark.parametrize(("run", "expected"), [(CPU_RUN, CPU_TOLD), (GPU_RUN, GPU_TOLD)])
def test_every_condition_is_in_text_and_page(run, expected):
    text, whole = benchmark_text(run), html.unescape(benchmarks_page(SideBySide("now", (run,), ())))
    shown = dict(conditions_of(run))
    assert set(shown) == {
        *("device", "runtime", "precision", "input", "batch", "scopes", "threads", "spinning", "huge pages", "graph", "clocks", "throttled"),
        *("machine idle", "rigor", "pretraining", "split"),
    }
    for value in shown.values():
        assert value in text
        assert value in whole
    for words in (run.target.device, run.target.runtime_version, run.target.precision, "ImageNet", "camvid test", "ab12"):
        assert words in whole or words == "ab12"
    for name, value in expected.items():
        assert value in whole, name
    timing, accuracy = run.timing, run.accuracy
    assert accuracy is not None
    for number in (timing.median_ms, timing.p99_ms, timing.normalised_median_ms, 3 * timing.min_ms):
        assert f"{number:.3f}" in text
        assert f"{number:.3f}" in whole
    assert f"{timing.fps:.1f}" in text
    assert f"{timing.fps:.1f}" in whole
    assert f"{100 * accuracy.miou:.2f} %" in text
    assert "decode 1.100, prepare 0.500, infer 4.000, argmax 0.000 ms; pictures: 4: drawn" in text
    assert run.engine.sha256 in whole


def test_clocks_graph_and_idleness_are_said_for_both_kinds_of_device():
    cpu, gpu = dict(conditions_of(CPU_RUN)), dict(conditions_of(GPU_RUN))
    assert cpu["clocks"].startswith("not read; the sentinel tells")
    assert "reference 2.4000 ms of 2026-11-21" in cpu["clocks"]
    assert (cpu["graph"], cpu["spinning"], cpu["threads"]) == ("none: on the CPU", "on", "2")
    assert (cpu["huge pages"], gpu["huge pages"]) == ("off", "not applicable")
    assert cpu["machine idle"].startswith("yes (load 0.10 to 0.20")
    assert gpu["clocks"] == "SM 2520 (2500 to 2535) MHz, memory 10501 (10501 to 10501) MHz, 61 °C"
    assert (gpu["graph"], gpu["throttled"]) == ("none: cuda-bindings is not installed", "power cap")
    assert gpu["machine idle"].startswith("NO, see the warnings")


def test_mlperf_names_its_percentile():
    assert f"90 % percentile {GPU_RUN.timing.p90_ms:.3f} ms (MLPerf SingleStream), median" in benchmark_text(GPU_RUN)
    assert "MLPerf" not in benchmark_text(CPU_RUN)


def test_without_accuracy_or_sentinel_the_page_says_so():
    bare = replace(CPU_RUN, accuracy=None, timings=(replace(CPU_RUN.timing, normalised_median_ms=None, conditions=()),))
    text, whole = benchmark_text(bare), benchmarks_page(SideBySide("now", (bare,), ()))
    assert "accuracy      not measured" in text
    assert "normalised" not in text.splitlines()[1]
    assert "not measured: give --data-root" in whole
    assert "idle unknown" in whole


def test_nothing_is_loaded_and_nothing_is_markup():
    found = side_by_side([CPU_RUN, GPU_RUN], "now")
    for whole in (benchmarks_page(found), benchmarks_page(SideBySide("now", (GPU_RUN,), ()))):
        assert "<script" not in whole
        assert not re.findall(r'(?:src|href)="(?!data:|#)', whole)
        ids = re.findall(r'\bid="([^"]+)"', whole)
        assert len(ids) == len(set(ids))


def test_a_benchmark_comes_back_from_its_folder(tmp_path):
    write_benchmark(CPU_RUN, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"bench.json", "report.html", "report.txt"}
    assert read_benchmark(tmp_path / "run") == read_benchmark(tmp_path / "run" / "bench.json") == CPU_RUN
    assert shown(tmp_path / "run" / "bench.json").lines == [benchmark_text(CPU_RUN)]
    assert (tmp_path / "run" / "report.txt").read_text() == benchmark_text(CPU_RUN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no bench\.json and no report\.json; make one with `segnas bench ENGINE --out"):
        read_benchmark(tmp_path / "empty")
    write_noun(tmp_path / "target.json", CPU)
    with pytest.raises(InputError, match=r"has schema 'segnas.target'; a bench\.json"):
        read_benchmark(tmp_path / "target.json")


def test_several_runs_share_a_page_a_table_and_a_picture(tmp_path):
    slower = made("fp32", replace(CPU, precision="fp32"), CPU_TOLD, 12.0, 0.53, ("unsteady",))
    faster = made("int8 again", CPU, CPU_TOLD, 7.0, 0.40)
    found = write_side_by_side([CPU_RUN, slower, faster, GPU_RUN], tmp_path)
    assert read_noun(tmp_path / "report.json", SideBySide) == found
    assert len(found.fronts) == 4  # a CPU with engines of two precisions and a GPU, two scopes each
    text = (tmp_path / "report.txt").read_text()
    assert text == side_by_side_text(found)
    assert text.count("\n") > 8
    assert "on the front int8 again (7.070 ms, 40.00 %), int8 (8.080 ms, 51.23 %)" in text
    assert "warning: fp32: end_to_end: unsteady" in text
    whole = html.unescape((tmp_path / "report.html").read_text())
    for run in (CPU_RUN, slower, faster):
        assert whole.count(run.name) > 2
    image = cv2.imdecode(np.fromfile(tmp_path / "report.png", np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert image.std() > 5


def test_a_picture_has_a_panel_for_each_target():
    found = side_by_side([CPU_RUN, made("b", CPU, CPU_TOLD, 9.0, 0.6), GPU_RUN], "now")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", fronts_picture(found.fronts).decode())
    assert sum("NVIDIA RTX 4090" in text for text in words) == 2
    assert sum("AMD EPYC" in text for text in words) == 2
    assert {"on the front", "median latency, ms", "mIoU, %", "int8", "b"} <= set(words)
    assert fronts_picture(found.fronts, form="png") == fronts_picture(found.fronts, form="png")


def test_runs_without_accuracy_stand_in_the_table_alone(tmp_path):
    found = write_side_by_side([replace(CPU_RUN, accuracy=None)] * 2, tmp_path)
    assert found.fronts == ()
    assert not (tmp_path / "report.png").exists()
    assert "No run has an accuracy" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("verdict", ["faster", "slower", "undecided"])
def test_the_verdict_of_two_engines_is_said_first(verdict):
    found = Versus("end_to_end", 5.0, 5.5, 0.909, 0.89, 0.93, 0.95, verdict, 8, 640, ((5.0, 5.5),) * 40)
    lines = versus_text(found, "a.onnx", "b.onnx")
    assert ("undecided" in lines[0]) if verdict == "undecided" else (lines[0] == f"a.onnx is {verdict}, end_to_end")
    assert "ratio   0.9090, 95 % interval 0.8900 to 0.9300; 40 pairs" in lines[3]

"""Benchmarks side by side: fronts by brute force, and that different targets never share one."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from segnas.benchmark import Benchmark, front, side_by_side
from segnas.report import Accuracy, Engine, Timing
from segnas.target import Target

TARGET = Target("CPU", "onnxruntime", "1.31.1", "fp32", 64, 128)
ENGINE = Engine("model.onnx", "onnx", "ab" * 32, 1000, TARGET, "0123", "cd" * 32, ("road", "sky"), None, ())


def run(
    name: str, ms: float, miou: float | None, target: Target = TARGET, scopes: tuple[str, ...] = ("end_to_end",), split: str = "val"
) -> Benchmark:
    timings = tuple(Timing(scope, 100, 10, 3.0, ms, ms, ms, ms, ms, ms, ms, 0.01, 1000 / ms) for scope in scopes)
    accuracy = None if miou is None else Accuracy("camvid", split, 10, miou, 0.9, (), "whole", ((1,),))
    return Benchmark(name, "2026-11-21T12:00:00+00:00", replace(ENGINE, target=target), target, timings, accuracy, "none", (), ())


points = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([1.0, 2.0, 3.0, 4.0]), st.sampled_from([0.1, 0.2, 0.3, 0.4])), max_size=9)


@given(points)
def test_the_front_is_what_nothing_dominates(given_points):
    found = front(given_points)
    assert sorted((s.name, s.ms, s.miou) for s in found) == sorted(given_points)
    for spot in found:
        better = [(ms, miou) for _, ms, miou in given_points if (ms < spot.ms and miou >= spot.miou) or (ms <= spot.ms and miou > spot.miou)]
        assert spot.on_front == (not better)
    best = [spot for spot in found if spot.on_front]
    assert [spot.ms for spot in best] == sorted(spot.ms for spot in best)
    assert [spot.miou for spot in best] == sorted(spot.miou for spot in best)


def test_each_target_scope_and_split_has_a_front_of_its_own():
    other = replace(TARGET, threads=2)
    runs = [
        run("a", 5.0, 0.5, scopes=("end_to_end", "pipeline")),
        run("b", 6.0, 0.4),
        run("c", 1.0, 0.9, other),
        run("d", 2.0, 0.7, split="test"),
        run("e", 0.1, None),
    ]
    found = side_by_side(runs, "now")
    assert [(f.target.threads, f.target.scope, f.split, [s.name for s in f.spots]) for f in found.fronts] == [
        (1, "end_to_end", "val", ["a", "b"]),
        (1, "pipeline", "val", ["a"]),
        (2, "end_to_end", "val", ["c"]),
        (1, "end_to_end", "test", ["d"]),
    ]
    assert [s.on_front for s in found.fronts[0].spots] == [True, False]
    of_int8 = run("f", 4.0, 0.45, replace(TARGET, precision="int8"))
    (first, *_) = side_by_side([*runs, of_int8], "now").fronts
    assert [(s.name, s.on_front) for s in first.spots] == [("f", True), ("a", True), ("b", False)]
    assert [r.name for r in found.runs] == ["a", "b", "c", "d", "e"]


def test_runs_of_one_name_are_told_apart():
    assert [r.name for r in side_by_side([run("a", 1.0, 0.5)] * 3, "now").runs] == ["a", "a (2)", "a (3)"]


def test_warnings_name_the_scope_and_what_was_allowed():
    plain = run("a", 1.0, None, scopes=("end_to_end", "pipeline"))
    warned = replace(plain, timings=(plain.timings[0], replace(plain.timings[1], warnings=("unsteady",))), mismatches=(("device", "X", "Y"),))
    assert warned.warnings == ("pipeline: unsteady", "timed on another machine than it was made for: device is 'Y', not 'X'")

"""Benchmark: FPS and mIoU of one engine in one record, with every condition that they depend on; and several of them side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from segnas.report import Accuracy, Engine, Report, Timing
from segnas.target import Target

NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What one call of bench found, all of the same bytes.

    `target` is the engine's, as it is on the machine that timed it; `timings` has one for each scope, first the target's own; `mismatches` are the
    fields (name, the engine's, here) in which that machine is not the one that the engine was made for, and which were allowed to differ.
    `pretraining` says on what the weights were trained before, where that is known.
    """

    name: str
    created: str
    engine: Engine
    target: Target
    timings: tuple[Timing, ...]
    accuracy: Accuracy | None
    pretraining: str
    mismatches: tuple[tuple[str, str, str], ...]
    versions: tuple[tuple[str, str], ...]

    @property
    def timing(self) -> Timing:
        """That of the target's own scope."""
        return self.timings[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before quoting a figure."""
        found = [f"{t.scope}: {warning}" if len(self.timings) > 1 else warning for t in self.timings for warning in t.warnings]
        found += [f"timed on another machine than it was made for: {name} is {here!r}, not {there!r}" for name, there, here in self.mismatches]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Spot:
    """A benchmark in the plane of latency (ms) and mIoU (0 to 1), and whether none is both as fast and as right, and better in one."""

    name: str
    ms: float
    miou: float
    on_front: bool


@dataclass(frozen=True, slots=True)
class Front:
    """Benchmarks of one target, in one scope, on one split, in whatever precision: what may be compared. `target` is the first one's."""

    target: Target
    dataset: str
    split: str
    spots: tuple[Spot, ...]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Several benchmarks, and the front of each target among them."""

    created: str
    runs: tuple[Benchmark, ...]
    fronts: tuple[Front, ...]


def benchmark_of(report: Report) -> Benchmark:
    """What a report of `segnas run` says of its engine."""
    return Benchmark(
        name=report.name,
        created=report.created,
        engine=report.engine,
        target=report.engine.target,
        timings=(report.timing,),
        accuracy=report.accuracy,
        pretraining=report.pretraining,
        mismatches=(),
        versions=report.versions,
    )


def side_by_side(runs: Sequence[Benchmark], created: str) -> SideBySide:
    """The benchmarks as given, each under a name of its own, and the fronts of those with an accuracy: one for each target, scope and split,
    in which engines of several precisions compete.
    """
    named = _distinct(runs)
    groups: dict[tuple[Target, str, str], tuple[Target, list[tuple[str, float, float]]]] = {}
    for run in named:
        if run.accuracy is None:
            continue
        for timing in run.timings:
            target = replace(run.target, scope=timing.scope)
            key = (replace(target, precision="fp32"), run.accuracy.dataset, run.accuracy.split)
            groups.setdefault(key, (target, []))[1].append((run.name, timing.median_ms, run.accuracy.miou))
    fronts = tuple(Front(target, dataset, split, front(points)) for (_, dataset, split), (target, points) in groups.items())
    return SideBySide(created, named, fronts)


def front(points: Sequence[tuple[str, float, float]]) -> tuple[Spot, ...]:
    """(name, ms, mIoU) as spots, fastest first; on the front is what no other beats in one and equals in the other."""
    return tuple(
        Spot(name, ms, miou, not any(a <= ms and b >= miou and (a, b) != (ms, miou) for _, a, b in points))
        for name, ms, miou in sorted(points, key=lambda point: (point[1], -point[2], point[0]))
    )


def _distinct(runs: Sequence[Benchmark]) -> tuple[Benchmark, ...]:
    seen: dict[str, int] = {}
    found: list[Benchmark] = []
    for run in runs:
        seen[run.name] = seen.get(run.name, 0) + 1
        found.append(run if seen[run.name] == 1 else replace(run, name=f"{run.name} ({seen[run.name]})"))
    return tuple(found)

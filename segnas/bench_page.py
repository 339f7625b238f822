"""Benchmarks as text, as JSON and as a page: one alone, or several side by side with the front of each target."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segnas.benchmark import Benchmark, Front, SideBySide, benchmark_of, side_by_side
from segnas.errors import InputError
from segnas.figures import class_picture
from segnas.files import read_json, read_noun, require_writable, write_bytes, write_noun, write_text
from segnas.page import Pairs, binary_bytes, inline_svg, percent, target_pairs, template
from segnas.report import Report, Timing
from segnas.runtime.scopes import STEPS
from segnas.runtime.versus import Versus
from segnas.scatter_figures import Cloud, Panel, panels_picture

NAME = "bench.json"
MOST_TITLE = 44
NO_CLOCKS = "not read; the sentinel tells the speed of a CPU"
ON_CPU = "none: on the CPU"


def write_benchmark(run: Benchmark, folder: Path) -> None:
    """`bench.json`, `report.html` and `report.txt` in the folder."""
    require_writable(folder / NAME)
    write_text(folder / "report.html", benchmarks_page(SideBySide(run.created, (run,), ())))
    write_text(folder / "report.txt", benchmark_text(run))
    write_noun(folder / NAME, run)


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark in a folder of `segnas bench --out` or `segnas run`, or in one of their JSON files; InputError where there is none."""
    if path.is_dir():
        file = next((path / name for name in (NAME, "report.json") if (path / name).is_file()), None)
        if file is None:
            raise InputError(f"{path} holds no {NAME} and no report.json; make one with `segnas bench ENGINE --out {path}`")
        path = file
    schema = str(read_json(path).get("schema", "")).partition("/")[0]
    if schema == "segnas.report":
        return benchmark_of(read_noun(path, Report))
    if schema != "segnas.benchmark":
        raise InputError(f"{path} has schema {schema or 'none'!r}; a {NAME} of `segnas bench --out` or a report.json of `segnas run` is needed")
    return read_noun(path, Benchmark)


def write_side_by_side(runs: Sequence[Benchmark], folder: Path) -> SideBySide:
    """`report.html`, `report.png`, `report.json` and `report.txt` in the folder; without an accuracy in any run there is no picture."""
    found = side_by_side(runs, datetime.now(UTC).isoformat(timespec="seconds"))
    if found.fronts:
        write_bytes(folder / "report.png", fronts_picture(found.fronts, form="png"))
    write_text(folder / "report.html", benchmarks_page(found))
    write_text(folder / "report.txt", side_by_side_text(found))
    write_noun(folder / "report.json", found)
    return found


def benchmark_text(run: Benchmark) -> str:
    """The benchmark in about twenty lines of plain text."""
    accuracy, engine = run.accuracy, run.engine
    lines = [
        ("benchmark", f"{run.name}; {run.created}"),
        *((timing.scope, timing_text(timing)) for timing in run.timings),
        *(("steps", steps_text(timing)) for timing in run.timings if steps_text(timing)),
        (
            "accuracy",
            f"mIoU {percent_2(accuracy.miou)} on {accuracy.dataset} {accuracy.split}, {accuracy.images} images" if accuracy else "not measured",
        ),
        ("engine", f"{engine.file} ({engine.kind}), {binary_bytes(engine.bytes)}, sha256 {engine.sha256[:16]}…"),
        *conditions_of(run),
        *(("warning", warning) for warning in run.warnings),
    ]
    return "\n".join(f"{name:<13} {text}" for name, text in lines) + "\n"


def timing_text(timing: Timing) -> str:
    """One scope in a line; under MLPerf's rules the 90 % percentile comes first, as there."""
    normalised = "" if timing.normalised_median_ms is None else f", normalised {timing.normalised_median_ms:.3f} ms{_of_processes(timing)}"
    judged = f"90 % percentile {timing.p90_ms:.3f} ms (MLPerf SingleStream), " if dict(timing.conditions).get("rigor") == "mlperf" else ""
    return (
        f"{judged}median {timing.median_ms:.3f} ms ({timing.fps:.1f} FPS){normalised}; p90 {timing.p90_ms:.3f}, p95 {timing.p95_ms:.3f}, p99 "
        f"{timing.p99_ms:.3f} ms; {timing.throughput_qps:.1f} queries/s; variation {percent(timing.coefficient_of_variation)}; {timing.runs} runs in "
        f"{timing.duration_s:.1f} s after {timing.warmup_runs}"
    )


def _of_processes(timing: Timing) -> str:
    """How far the processes lie apart that the normalised latency is the mean of; empty for a single one."""
    each = [float(text) for text in dict(timing.conditions).get("normalised_ms_of_each", "").split()]
    return f" (mean of {len(each)} processes, {min(each):.3f} to {max(each):.3f})" if each else ""


def steps_text(timing: Timing) -> str:
    """The medians of a pipeline's steps; empty for another scope."""
    told = dict(timing.conditions)
    steps = [f"{step} {float(told[f'{step}_ms']):.3f}" for step in STEPS if timing.scope == "pipeline" and f"{step}_ms" in told]
    return f"{', '.join(steps)} ms; pictures: {told.get('pictures', 'unknown')}" if steps else ""


def conditions_of(run: Benchmark) -> Pairs:
    """Every condition that the figures depend on, by name, whatever the runtime."""
    target, timing = run.target, run.timing
    told, options = dict(timing.conditions), dict(target.options)
    clocks = NO_CLOCKS
    if "sm_clock_mhz" in told:
        clocks = f"SM {told['sm_clock_mhz']} MHz, memory {told['memory_clock_mhz']} MHz, {told['temperature_c']} °C"
    elif "sentinel_ms" in told:
        clocks += f" ({told['sentinel_ms']} ms; reference {told['sentinel_reference_ms']} ms of {told['sentinel_reference_of']})"
    idle = {"yes": "yes", "no": "NO, see the warnings"}.get(told.get("machine_idle", ""), "unknown")
    load = f"load {told.get('load_before', '?')} to {told.get('load_after', '?')}, stolen {told.get('stolen', 'unknown')}"
    return (
        ("device", target.device),
        ("runtime", f"{target.runtime} {target.runtime_version}"),
        ("precision", target.precision),
        ("input", f"{target.input_contract}, {target.height}x{target.width}, to {target.output_contract}"),
        ("batch", str(target.batch)),
        ("scopes", ", ".join(each.scope for each in run.timings)),
        ("threads", str(target.threads)),
        ("spinning", options.get("spinning", told.get("spinning", "not applicable"))),
        ("huge pages", options.get("huge_pages", "off") if target.backend == "onnxruntime" else "not applicable"),
        ("graph", told.get("cuda_graph", options.get("graph", ON_CPU))),
        ("clocks", clocks),
        ("throttled", told.get("throttled", "not applicable")),
        ("machine idle", f"{idle} ({load})"),
        ("rigor", told.get("rigor", "not recorded")),
        ("pretraining", run.pretraining),
        ("split", f"{run.accuracy.dataset} {run.accuracy.split}" if run.accuracy else "none"),
    )


def versus_text(found: Versus, first: str, second: str) -> list[str]:
    """Which of two engines is faster, in four lines."""
    said = {"faster": f"{first} is faster", "slower": f"{first} is slower", "undecided": "undecided: the interval holds 1"}[found.verdict]
    return [
        f"{said}, {found.scope}",
        f"first   median {found.first_ms:.3f} ms  {first}",
        f"second  median {found.second_ms:.3f} ms  {second}",
        f"ratio   {found.ratio:.4f}, {100 * found.confidence:.0f} % interval {found.low:.4f} to {found.high:.4f}; {len(found.pairs)} pairs of "
        f"blocks, opened {found.openings} times, {found.runs} runs",
    ]


def side_by_side_text(found: SideBySide) -> str:
    """A table of the runs, one line for each scope, and the front of each target."""
    rows = [("run", "scope", "median ms", "FPS", "normalised", "p99 ms", "mIoU", "precision", "size", "target")]
    for run in found.runs:
        for timing in run.timings:
            normalised = "-" if timing.normalised_median_ms is None else f"{timing.normalised_median_ms:.3f}"
            miou = "-" if run.accuracy is None else percent_2(run.accuracy.miou)
            target = run.target
            size, where = f"{target.height}x{target.width}", f"{target.device}, {target.runtime} {target.runtime_version}"
            numbers = (f"{timing.median_ms:.3f}", f"{timing.fps:.1f}", normalised, f"{timing.p99_ms:.3f}")
            rows.append((run.name, timing.scope, *numbers, miou, target.precision, size, where))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for front in found.fronts:
        best = ", ".join(f"{spot.name} ({spot.ms:.3f} ms, {percent_2(spot.miou)})" for spot in front.spots if spot.on_front)
        lines += ["", f"{front_title(front)}: on the front {best}"]
    lines += [f"warning: {run.name}: {warning}" for run in found.runs for warning in run.warnings]
    return "\n".join(lines) + "\n"


def front_title(front: Front) -> str:
    """What all runs of a panel have in common."""
    target = front.target
    what = f"{target.device}, {target.runtime}, {target.height}x{target.width}, {target.scope}"
    threads = "" if target.scope == "gpu" else f", {target.threads} thread{'s' if target.threads > 1 else ''}"
    return f"{what}{threads}, {front.dataset} {front.split}"


def fronts_picture(fronts: Sequence[Front], *, form: Any = "svg") -> bytes:
    """Accuracy against latency: one panel a target, its front joined by a line."""
    panels: list[Panel] = []
    for front in fronts:
        best, rest = ([s for s in front.spots if s.on_front is which] for which in (True, False))
        clouds = [
            Cloud(label, tuple(s.ms for s in spots), tuple(100 * s.miou for s in spots), tuple(s.name for s in spots))
            for label, spots in (("on the front", best), ("behind it", rest))
            if spots
        ]
        line = tuple((spot.ms, 100 * spot.miou) for spot in best) if len(best) > 1 else ()
        panels.append(Panel(_wrapped(front_title(front)), "median latency, ms", tuple(clouds), line))
    return panels_picture(panels, "mIoU, %", form=form)


def benchmarks_page(found: SideBySide) -> str:
    """The runs as HTML: one alone with its cards, several as a table with the fronts; every condition of each."""
    drawn = {run.name: inline_svg(class_picture(run.accuracy), f"classes-{i}", "IoU by class") for i, run in enumerate(found.runs) if run.accuracy}
    return template("bench.html.j2").render(
        found=found,
        alone=found.runs[0] if len(found.runs) == 1 else None,
        fronts_svg=inline_svg(fronts_picture(found.fronts), "fronts", "accuracy against latency") if found.fronts else None,
        titles=[front_title(front) for front in found.fronts],
        classes=drawn,
        conditions={run.name: conditions_of(run) for run in found.runs},
        targets={run.name: target_pairs(run.target) for run in found.runs},
        idle={run.name: [dict(timing.conditions).get("machine_idle", "unknown") for timing in run.timings] for run in found.runs},
        steps={run.name: [text for timing in run.timings if (text := steps_text(timing))] for run in found.runs},
    )


def percent_2(part: float) -> str:
    """A fraction in per cent, two decimals, as benchmarks print mIoU."""
    return f"{100 * part:.2f} %"


def _wrapped(title: str) -> str:
    """A panel's title in lines that fit above it."""
    lines = [""]
    for word in title.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > MOST_TITLE:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)

"""`segnas bench`: how fast an engine is, and how right the same file is; `segnas report`: several of these side by side."""

from pathlib import Path
from typing import Any

import click

from segnas.cli_options import DATASET, FILE, JSON, emit
from segnas.target import SCOPES


@click.command("bench")
@click.argument("engine", type=FILE)
@click.option("--rigor", type=click.Choice(["quick", "standard", "mlperf"]), default="standard", show_default=True, help="How long: 1 s, 3 s, 600 s.")
@click.option("--seconds", type=click.FloatRange(0), help="Least duration of each timing, in place of the rigor's.")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, help="What is timed; may be repeated.  [default: all that there are]")
@click.option("--runtime", default="", help="Time an ONNX engine on another runtime: onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt.")
@click.option("--compare", "other", type=FILE, help="Another engine: time both in turns, and say which is faster. Nothing else is measured.")
@DATASET
@click.option("--data-root", type=FILE, help="Folder of the dataset; without it only the latency is measured.")
@click.option("--split", default="val", show_default=True, help="Split that is evaluated.")
@click.option("--out", type=FILE, help="Folder for bench.json, report.html and report.txt.")
@click.option("--trtexec-json", type=FILE, help="Write the single queries of the first scope as trtexec's --exportTimes does.")
@click.option("--allow-mismatch", "allowed", multiple=True, metavar="FIELD", help="Time it though this field is another machine's; may be repeated.")
@click.option("--sentinel/--no-sentinel", default=True, show_default=True, help="Measure the CPU's own speed in between.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="How many processes a CPU's normalised latency is the mean of, end to end.  [default: 4 at rigor standard, else 1, and 1 with --seconds]",
)
@JSON
def bench(
    engine: Path,
    rigor: str,
    seconds: float | None,
    scopes: tuple[str, ...],
    runtime: str,
    other: Path | None,
    name: str,
    data_root: Path | None,
    split: str,
    out: Path | None,
    trtexec_json: Path | None,
    allowed: tuple[str, ...],
    sentinel: bool,
    processes: int | None,
    as_json: bool,
) -> None:
    """Time an engine, and measure the mIoU of the same file.

    Example: segnas bench runs/quickstart/model.onnx --data-root runs/quickstart/streets --out bench
    """
    from segnas.bench_page import benchmark_text, versus_text, write_benchmark
    from segnas.benching import Wish, bench_run, compare_engines, evaluate_run
    from segnas.data import open_dataset
    from segnas.files import plain, require_writable, write_text
    from segnas.runtime.rigor import rigor_named
    from segnas.runtime.trtexec import Query, records_text
    from segnas.screen import RichScreen

    usual = rigor_named(rigor, "").processes if seconds is None else 1
    wish = Wish(rigor, seconds, scopes, runtime, allowed, sentinel, usual if processes is None else processes)
    dataset = None if data_root is None else open_dataset(name, data_root, split)
    for path in (None if out is None else out / "bench.json", trtexec_json):
        if path is not None:
            require_writable(path)
    screen = RichScreen()
    if other is not None:
        with screen.step("timing both engines in turns") as progress:
            found = compare_engines(engine, other, wish, pictures=dataset, progress=progress)
        emit(plain(found), as_json, versus_text(found, str(engine), str(other)))
        return
    queries: list[Query] | None = None if trtexec_json is None else []
    with screen.step("timing the engine") as progress:
        benchmark = bench_run(engine, wish, pictures=dataset, queries=queries, progress=progress)
    if dataset is not None:
        from dataclasses import replace

        with screen.step("evaluating the engine") as progress:
            benchmark = replace(benchmark, accuracy=evaluate_run(engine, wish, dataset, progress=progress))
    if trtexec_json is not None and queries is not None:
        write_text(trtexec_json, records_text(queries))
    if out is not None:
        write_benchmark(benchmark, out)
    lines = benchmark_text(benchmark).splitlines()
    emit(plain(benchmark), as_json, [*lines, *([] if out is None else [f"\nreport: {out / 'report.html'}"])])


@click.command("report")
@click.argument("runs", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="Folder for report.html, report.png, report.json and report.txt.")
@JSON
def report(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Lay runs side by side: a table, and accuracy against latency, a panel for each target.

    RUNS are folders of `segnas bench --out` or `segnas run`, or the JSON files in them.

    Example: segnas report bench/fp32 bench/int8 --out side-by-side
    """
    from segnas.bench_page import read_benchmark, side_by_side_text, write_side_by_side
    from segnas.files import plain, require_writable

    require_writable(out / "report.json")
    found: Any = write_side_by_side([read_benchmark(path) for path in runs], out)
    emit(plain(found), as_json, [*side_by_side_text(found).splitlines(), "", f"report: {out / 'report.html'}"])

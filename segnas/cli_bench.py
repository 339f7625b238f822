"""`segnas bench`: how fast an engine is, and how right the same file is."""

from pathlib import Path
from typing import Any

import click

from segnas.cli_options import FILE, JSON, emit


@click.command("bench")
@click.argument("engine", type=FILE)
@click.option("--seconds", type=click.FloatRange(0), default=3.0, show_default=True, help="Least duration of the timing.")
@click.option("--data", "name", default="cityscapes", show_default=True, help="Dataset: cityscapes or camvid.")
@click.option("--data-root", type=FILE, help="Folder of the dataset; without it only the latency is measured.")
@click.option("--split", default="val", show_default=True, help="Split that is evaluated.")
@JSON
def bench(engine: Path, seconds: float, name: str, data_root: Path | None, split: str, as_json: bool) -> None:
    """Time an engine, and measure the mIoU of the same file.

    Example: segnas bench runs/quickstart/model.onnx
    """
    from segnas.benching import bench_engine
    from segnas.data import open_dataset
    from segnas.evaluating import evaluate_engine
    from segnas.files import plain
    from segnas.screen import RichScreen

    dataset = None if data_root is None else open_dataset(name, data_root, split)
    manifest, timing = bench_engine(engine, seconds=seconds)
    lines = [
        f"{manifest.target}",
        f"median {timing.median_ms:.3f} ms ({timing.fps:.1f} FPS), p90 {timing.p90_ms:.3f}, p99 {timing.p99_ms:.3f} ms, {timing.scope}",
    ]
    lines += [f"warning: {warning}" for warning in timing.warnings]
    found: dict[str, Any] = {"engine": plain(manifest), "timing": plain(timing)}
    if dataset is not None:
        with RichScreen().step("evaluating the engine") as progress:
            accuracy = evaluate_engine(engine, dataset, progress=progress)
        lines.append(f"mIoU {100 * accuracy.miou:.2f} % on {accuracy.images} images of {name} {split}")
        found["accuracy"] = plain(accuracy)
    emit(found, as_json, lines)

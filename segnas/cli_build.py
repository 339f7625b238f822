"""`segnas build`: an engine of TensorRT or TensorRT-RTX from an exported ONNX file; `segnas verify`: whether an engine fits this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segnas.cli_options import FILE, JSON, emit
from segnas.errors import UsageError

if TYPE_CHECKING:
    from segnas.gpus import Runtime

IMAGES = (
    click.option("--data", "name", default="cityscapes", show_default=True, help="Dataset of real images to compare on: cityscapes or camvid."),
    click.option("--data-root", type=FILE, help="Folder of that dataset; without it only seeded images are compared."),
    click.option("--split", default="val", show_default=True, help="Split whose first images are compared."),
)


def _images(command: Any) -> Any:
    for option in reversed(IMAGES):
        command = option(command)
    return command


@click.command("build")
@click.argument("onnx", type=FILE)
@click.option(
    "--runtime", type=click.Choice(["tensorrt", "tensorrt-rtx"]), required=True, help="TensorRT builds on the GPU at hand, TensorRT-RTX anywhere."
)
@click.option(
    "--gpu", "gpus", multiple=True, metavar="NAME", help="Product or compute capability (rtx4090, 8.9) that it is for; several make one file."
)
@click.option("--out", type=FILE, help="Folder of the engine and its manifest.  [default: that of the ONNX file]")
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Most memory that a kernel may take beside its tensors.  [default: all]")
@click.option("--level", type=click.IntRange(0, 5), default=3, show_default=True, help="How long to look for fast kernels.")
@click.option("--timing-iterations", type=click.IntRange(1, 1000), default=8, show_default=True, help="How often TensorRT times each kernel.")
@click.option("--aux-streams", type=click.IntRange(0, 64), help="Streams beside the main one; 0 for none.  [default: TensorRT's choice]")
@click.option("--tf32", is_flag=True, help="Let fp32 convolutions drop to 10 bits of mantissa.")
@click.option(
    "--hardware-compatibility",
    "hardware",
    type=click.Choice(["none", "ampere+", "same-capability"]),
    default="none",
    show_default=True,
    help="GPUs that an engine of TensorRT also runs on, slower.",
)
@click.option("--version-compatible", is_flag=True, help="An engine that later releases of TensorRT's major version open too.")
@click.option(
    "--verbosity", type=click.Choice(["detailed", "names", "none"]), default="detailed", show_default=True, help="What the inspector can tell."
)
@click.option("--timing-cache", type=FILE, help="File in which TensorRT's builds on one GPU share what they timed.")
@_images
@JSON
def build(
    onnx: Path,
    runtime: "Runtime",
    gpus: tuple[str, ...],
    out: Path | None,
    workspace: int | None,
    level: int,
    timing_iterations: int,
    aux_streams: int | None,
    tf32: bool,
    hardware: str,
    version_compatible: bool,
    verbosity: str,
    timing_cache: Path | None,
    name: str,
    data_root: Path | None,
    split: str,
    as_json: bool,
) -> None:
    """Build an engine from ONNX, a file that `segnas export` wrote.

    Example: segnas build runs/quickstart/model.onnx --runtime tensorrt-rtx --gpu rtx4090 --gpu a100
    """
    from segnas.building import build_engine
    from segnas.data import open_dataset
    from segnas.export.layers import shares_text
    from segnas.export.tensorrt_settings import BuildSettings
    from segnas.files import plain
    from segnas.screen import RichScreen

    settings = BuildSettings(workspace, level, timing_iterations, aux_streams, tf32, hardware, version_compatible, verbosity, timing_cache)
    dataset = None if data_root is None else open_dataset(name, data_root, split)
    with RichScreen().step(f"building an engine of {runtime}") as progress:
        shipped = build_engine(onnx, runtime=runtime, gpus=gpus, settings=settings, out=out, dataset=dataset, progress=progress)
    engine = shipped.engine
    proof = engine.precision[0]
    lines = [
        f"{shipped.path}: {engine.bytes} bytes, sha256 {engine.sha256[:12]}, for {engine.target.device}",
        f"computes {shares_text(proof)} ({proof.source})",
    ]
    lines += [f"parity: agreement {engine.parity.argmax_agreement:.6f} with {engine.parity.reference}"] if engine.parity else []
    lines += [f"not checked: {unrun.check}: {unrun.reason}" for unrun in engine.unrun]
    lines += [f"warning: {warning}" for warning in shipped.warnings]
    emit(plain(engine), as_json, lines)


@click.command("verify")
@click.argument("engine", type=FILE)
@click.option("--run", "runs", is_flag=True, help="Also open it: compare one that TensorRT built with its ONNX file, and complete its manifest.")
@_images
@JSON
def verify(engine: Path, runs: bool, name: str, data_root: Path | None, split: str, as_json: bool) -> None:
    """Check whether ENGINE is what its manifest says and fits this machine, before anything of it is opened.

    Example: segnas verify runs/quickstart/model.sm89.engine
    """
    from segnas.data import open_dataset
    from segnas.files import plain
    from segnas.verifying import require_verified, run_engine, verify_engine

    if data_root is not None and not runs:
        raise UsageError("--data-root was given; images are compared with --run only: add it")
    dataset = None if data_root is None else open_dataset(name, data_root, split)
    found = run_engine(engine, dataset=dataset) if runs else verify_engine(engine)
    emit(
        {"engine": str(found.path), "kind": found.engine.kind, "command": found.command, "outcomes": plain(found.outcomes)},
        as_json,
        [f"{found.path} ({found.engine.kind})", *map(str, found.outcomes)],
    )
    require_verified(found)

"""`segnas export`: a trained network as an engine that can be shipped, with its proof."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from segnas.cli_options import DATASET, FILE, JSON, ROOT, SIZE, THREADS, emit
from segnas.errors import InputError, UsageError
from segnas.target import CPU_BACKENDS, INPUT_CONTRACTS, OUTPUT_CONTRACTS, PRECISIONS

if TYPE_CHECKING:
    from segnas.report import Engine, Sizes


@click.command("export")
@click.option("--arch", type=FILE, required=True, help="Architecture, a JSON file.")
@click.option("--weights", type=FILE, required=True, help="Its weights, a .safetensors file.")
@SIZE
@THREADS
@DATASET
@ROOT
@click.option("--split", default="val", show_default=True, help="Split whose images prove the export.")
@click.option("--parity-images", type=click.IntRange(1), help="So many of them, evenly spread (default: 4 of fp32, 16 of the others).")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Numbers of the engine's inside.")
@click.option("--calibration", type=int, default=64, show_default=True, help="Images that the ranges of int8 are taken from.")
@click.option("--calibration-split", default="train", show_default=True, help="Split of those images, evenly spread.")
@click.option(
    "--for",
    "reader",
    type=click.Choice(("onnxruntime", "tensorrt")),
    default="onnxruntime",
    show_default=True,
    help="What an ONNX file is written for: what is fastest on ONNX Runtime's CPU is not always what TensorRT reads.",
)
@click.option(
    "--min-agreement", type=click.FloatRange(0, 1), default=0.97, show_default=True, help="Least share of pixels of the same class for int8."
)
@click.option(
    "--input",
    "reads",
    type=click.Choice(INPUT_CONTRACTS),
    default="normalised",
    show_default=True,
    help="What the engine reads: normalised float32 (N, 3, H, W), or an image, uint8 (N, H, W, 3).",
)
@click.option("--output", type=click.Choice(OUTPUT_CONTRACTS), default="labels", show_default=True, help="What the engine gives.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images that the engine reads at once.")
@click.option("--output-size", metavar="HxW", help="Size of what it gives (default: the input's).")
@click.option(
    "--dynamic", metavar="HxW:HxW", help="Let the input's size vary from the least to the largest of these; --size is what it is tuned for."
)
@click.option(
    "--runtime",
    type=click.Choice(CPU_BACKENDS),
    default="onnxruntime",
    show_default=True,
    help="What will run it: ONNX Runtime (an ONNX file) or AOTInductor (native code for this machine, compiled here).",
)
@click.option("--out", type=FILE, required=True, help="Folder for the engine and its manifest.")
@click.option("--name", "stem", help="The engine's file name without .onnx or .pt2 (default: model, model.fp16 or model.int8).")
@JSON
def export(
    arch: Path,
    weights: Path,
    size: str,
    threads: int,
    name: str,
    data_root: Path,
    split: str,
    parity_images: int | None,
    precision: str,
    calibration: int,
    calibration_split: str,
    reader: str,
    min_agreement: float,
    reads: str,
    output: str,
    batch: int,
    output_size: str | None,
    dynamic: str | None,
    runtime: str,
    out: Path,
    stem: str | None,
    as_json: bool,
) -> None:
    """Export to ONNX, or compile ahead of time, and prove that the file computes what PyTorch does, in the precision that was asked for.

    Example: segnas export --arch arch.json --weights weights.safetensors --size 512x1024 --data-root DATA --precision fp16 --out engines
    """
    from dataclasses import replace

    from segnas.arch import Architecture
    from segnas.data import open_dataset
    from segnas.exporting import ExportSettings, export_engine
    from segnas.files import plain, read_noun
    from segnas.measuring import processor_target
    from segnas.steps import load_network
    from segnas.target import parse_size

    if runtime != "onnxruntime" and reader != "onnxruntime":
        raise UsageError(f"--for {reader} was given with --runtime {runtime}, which writes no ONNX file: leave one of them out")
    height, width = parse_size(size)
    settings = ExportSettings(
        name=stem or "",
        output_size=None if output_size is None else parse_size(output_size),
        sizes=None if dynamic is None else _sizes(dynamic, size),
        calibration=open_dataset(name, data_root, calibration_split) if precision == "int8" else None,
        calibration_images=calibration,
        reader=reader,
        min_agreement=min_agreement,
        parity_images=parity_images or 0,
    )
    served = processor_target(runtime, height, width, threads, output_contract=output, batch=batch)
    target = replace(served, precision=precision, input_contract=reads)
    network, _ = load_network(read_noun(arch, Architecture), weights)
    engine = export_engine(network, target, out, dataset=open_dataset(name, data_root, split), settings=settings)
    emit(plain(engine), as_json, _lines(out, engine))


def _sizes(dynamic: str, size: str) -> "Sizes":
    """The sizes of a dynamic engine: from the least to the largest, with the target's between."""
    from segnas.export.check import parse_sizes

    least, colon, most = dynamic.partition(":")
    if not colon or ":" in most:
        raise InputError(
            f"--dynamic {dynamic!r} was given; the least and the largest size are written HEIGHTxWIDTH:HEIGHTxWIDTH, such as 256x512:1024x2048"
        )
    return parse_sizes(f"{least}:{size}:{most}")


def _lines(out: Path, engine: "Engine") -> list[str]:
    """What was written, how it agrees, and in what precision it computes."""
    lines = [f"{out / engine.file}: {engine.bytes} bytes, sha256 {engine.sha256[:12]}, {engine.inputs[0]} -> {engine.outputs[0]}"]
    if engine.parity is not None:
        change = engine.parity.miou_change
        told = "" if change is None else f", mIoU {100 * change:+.2f} points"
        lines.append(f"agreement {engine.parity.argmax_agreement:.6f}{told} over {engine.parity.images} images, with {engine.parity.reference}")
    for proof in engine.precision:
        shares = ", ".join(f"{100 * proof.share(share.dtype):.1f} % {share.dtype}" for share in proof.shares if share.macs)
        lines.append(f"multiply-accumulates by {proof.source}: {shares or 'none'}")
    return lines

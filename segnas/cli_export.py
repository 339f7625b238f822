"""`segnas export`: a trained network as an engine that can be shipped, with its proof."""

from pathlib import Path

import click

from segnas.cli_options import DATASET, FILE, JSON, ROOT, SIZE, THREADS, emit
from segnas.target import CPU_BACKENDS


@click.command("export")
@click.option("--arch", type=FILE, required=True, help="Architecture, a JSON file.")
@click.option("--weights", type=FILE, required=True, help="Its weights, a .safetensors file.")
@SIZE
@THREADS
@DATASET
@ROOT
@click.option("--split", default="val", show_default=True, help="Split whose first images prove the export.")
@click.option("--output", type=click.Choice(["labels", "logits"]), default="labels", show_default=True, help="What the engine gives.")
@click.option(
    "--runtime",
    type=click.Choice(CPU_BACKENDS),
    default="onnxruntime",
    show_default=True,
    help="What will run it: ONNX Runtime (an ONNX file) or AOTInductor (native code for this machine, compiled here).",
)
@click.option("--out", type=FILE, required=True, help="Folder for model.onnx (model.pt2 of AOTInductor) and its manifest.")
@JSON
def export(
    arch: Path, weights: Path, size: str, threads: int, name: str, data_root: Path, split: str, output: str, runtime: str, out: Path, as_json: bool
) -> None:
    """Export to ONNX, or compile ahead of time, and prove that the file computes what PyTorch does."""
    from segnas.arch import Architecture
    from segnas.data import open_dataset
    from segnas.exporting import export_engine
    from segnas.files import plain, read_noun
    from segnas.measuring import processor_target
    from segnas.steps import load_network
    from segnas.target import parse_size

    height, width = parse_size(size)
    target = processor_target(runtime, height, width, threads, output_contract=output)
    network, _ = load_network(read_noun(arch, Architecture), weights)
    engine = export_engine(network, target, out, dataset=open_dataset(name, data_root, split))
    parity = engine.parity
    agreed = f"agreement {parity.argmax_agreement:.6f} over {parity.images} images" if parity else "parity: not run"
    emit(plain(engine), as_json, [f"{out / engine.file}: {engine.bytes} bytes, sha256 {engine.sha256[:12]}, {agreed}"])

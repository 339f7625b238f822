"""An engine in ten lines: what goes in and comes out, its layers, its precision, what was proven of it and what was not."""

from pathlib import Path

from segnas.building import layers_path, source_of
from segnas.export.check import checked_onnx
from segnas.export.layers import Layer, onnx_layers, shares_text
from segnas.export.tensorrt_graph import readable_graph
from segnas.export.tensorrt_inspect import inspected_layers
from segnas.report import Engine, Sizes


def engine_lines(engine: Engine, layers: int, where: str) -> list[str]:
    """The lines; `layers` is their number, 0 where they are unknown, and `where` says where they were read, or why they were not."""
    proof = f"{shares_text(engine.precision[0])} ({engine.precision[0].source})" if engine.precision else "not proven"
    return [
        f"engine {engine.file} ({engine.kind}), {engine.bytes} bytes, sha256 {engine.sha256}",
        f"target: {engine.target}; {engine.target.input_contract} -> {engine.target.output_contract}",
        f"reads {', '.join(map(str, engine.inputs)) or 'what its target says'}{_sizes(engine.sizes)}",
        f"gives {', '.join(map(str, engine.outputs)) or engine.target.output_contract}",
        f"layers: {f'{layers} ({where})' if layers else where}",
        f"precision: {engine.target.precision}; {proof}",
        f"architecture {engine.architecture}, weights {engine.weights_sha256[:12]}",
        f"classes: {', '.join(engine.classes)}",
        _parity(engine),
        f"not checked: {'; '.join(f'{unrun.check} ({unrun.reason})' for unrun in engine.unrun) or 'nothing is known to be left'}",
    ]


def layers_of(manifest: Path, engine: Engine) -> tuple[tuple[Layer, ...], str]:
    """The engine's layers, and where they were read: its inspector's JSON beside it, else the ONNX graph; none, and why, where neither is there."""
    artefact = manifest.parent / engine.file
    source = artefact if engine.kind == "onnx" else source_of(artefact, engine)
    if source is None or not source.is_file():
        graph, where = (), "unknown, as no ONNX file that it was built from lies beside it"
    else:
        model = checked_onnx(source.read_bytes(), folder=source.parent, tensorrt=False)
        graph = onnx_layers(model if engine.kind == "onnx" else readable_graph(model)[0], engine.sizes)
        where = "of the graph" if engine.kind == "onnx" else f"of the graph in {source.name}"
    told = layers_path(artefact)
    if told.is_file():
        return inspected_layers(told.read_text(encoding="utf-8"), graph), f"of the engine, in {told.name}"
    return graph, where


def _sizes(sizes: Sizes | None) -> str:
    if sizes is None:
        return ""
    least, best, most = ("x".join(map(str, size)) for size in (sizes.least, sizes.best, sizes.most))
    return f", sizes {least} to {most}, tuned for {best}"


def _parity(engine: Engine) -> str:
    found = engine.parity
    if found is None:
        return "parity: not run"
    return f"parity with {found.reference}: {'passed' if found.passed else 'FAILED'}, agreement {found.argmax_agreement:.6f}"

"""A file of segnas, or the search in a folder, in about ten lines."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segnas.arch import Architecture
from segnas.cost import network_cost
from segnas.errors import InputError, UsageError
from segnas.export.manifest import SUFFIXES, manifest_path, read_engine
from segnas.files import read_json, read_noun
from segnas.report import Accuracy, Engine, Evaluation, Report, Timing

Draw = Callable[[Any], bytes]
"""From "svg" or "png" to that picture."""


@dataclass(frozen=True)
class Shown:
    """What is to be said about a file: lines for people, JSON values, and how to draw it, if it can be drawn."""

    lines: Sequence[str]
    values: Mapping[str, Any]
    draw: Draw | None = None


def shown(path: Path, classes: int | None = None, *, layers: bool = False) -> Shown:
    """What the file holds, or the search in the folder; InputError where it is none of segnas's. An engine is shown by its file or by its manifest.

    `classes` are those of a search's dataset, where neither its trace nor its table tells them; `layers` adds the table of an engine's layers.
    UsageError for either with any other file.
    """
    if path.suffix in SUFFIXES.values():
        path = manifest_path(path)
        read_engine(path)
    content = {} if path.is_dir() or path.suffix == ".jsonl" else read_json(path)
    if not content or ("schema" not in content and {"space", "probabilities"} <= set(content)):
        from segnas.search_view import view_of

        view = view_of(path, classes)
        return Shown([*view.lines(), *_architecture(view.architecture)], view.values(), view.picture)
    if classes is not None:
        raise UsageError(f"--classes was given; {path} is no search: leave it out")
    schema = str(content.get("schema", "")).partition("/")[0]
    if schema == "segnas.engine":
        return _engine(path, content, layers)
    if layers:
        raise UsageError(f"--layers was given; {path} is no engine: leave it out")
    if schema == "segnas.architecture":
        from segnas.search_view import network_picture

        architecture = read_noun(path, Architecture)
        return Shown(_architecture(architecture), content, lambda form: network_picture(architecture, None, form))
    return Shown(_lines(path, schema), content)


def _lines(file: Path, schema: str) -> list[str]:
    """The lines about a file that is not drawn."""
    match schema:
        case "segnas.latency_table":
            return _table(file)
        case "segnas.report":
            from segnas.page import text_summary

            return [text_summary(read_noun(file, Report))]
        case "segnas.benchmark":
            from segnas.bench_page import benchmark_text, read_benchmark

            return [benchmark_text(read_benchmark(file))]
        case "segnas.timing":
            timing = read_noun(file, Timing)
            return [f"median {timing.median_ms:.3f} ms ({timing.fps:.1f} FPS), {timing.runs} runs, {timing.scope}"]
        case "segnas.accuracy":
            accuracy = read_noun(file, Accuracy)
            return [f"mIoU {100 * accuracy.miou:.2f} %, {accuracy.images} images of {accuracy.dataset} {accuracy.split}"]
        case "segnas.evaluation":
            from segnas.score_lines import evaluation_lines

            return evaluation_lines(read_noun(file, Evaluation))
        case _:
            allowed = "architectures, tables, engines, timings, benchmarks, accuracies, evaluations, reports and searches of segnas"
            raise InputError(f"{file} has schema {schema or 'none'!r}; shown are {allowed}")


def _architecture(architecture: Architecture) -> list[str]:
    ops = Counter(node.op for node in architecture.nodes[1:])
    size = 2 ** max(architecture.levels) * 16
    cost = network_cost(architecture, size, 2 * size)
    levels = architecture.levels
    nodes = [
        f"{index:>4} 1/{2 ** levels[index]:<3} {node.channels:>4} ch  {node.kind!s:<40} <- {', '.join(map(str, node.inputs)):<8} {node.label}"
        for index, node in enumerate(architecture.nodes)
    ]
    return [
        f"architecture {architecture.digest}: {len(architecture.nodes)} nodes, {architecture.classes} classes",
        f"{cost.parameters / 1e6:.2f} M parameters, {cost.macs / 1e9:.2f} G multiply-accumulates at {size}x{2 * size}",
        ", ".join(f"{count} {op}" for op, count in ops.most_common()),
        *nodes,
    ]


def _engine(manifest: Path, content: Mapping[str, Any], layers: bool) -> Shown:
    """An engine's manifest in ten lines, and its layers where they are asked for; nothing of it is opened."""
    from segnas.engine_view import engine_lines, layers_of
    from segnas.export.layers import layer_table

    engine = read_noun(manifest, Engine)
    found, where = layers_of(manifest, engine)
    values = {**content, "layers": [asdict(layer) for layer in found]} if layers else content
    return Shown([*engine_lines(engine, len(found), where), *(layer_table(found) if layers else [])], values)


def _table(file: Path) -> list[str]:
    from segnas.latency_tables.store import load_table

    table = load_table(file)
    head = [
        f"latency table of {table.space}: {len(table.entries)} entries on {table.target}",
        f"scale {table.calibration.scale:.3f} from {len(table.calibration.probes)} networks, residual {table.calibration.relative_sd:.1%}",
    ]
    rows = [f"{e.median_ms:9.4f} ms  +-{50 * e.spread:4.1f} %  {e.kind:<8} {e.operation}" for e in sorted(table.entries, key=lambda e: -e.median_ms)]
    return head + rows

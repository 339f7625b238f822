"""What the protocol buys: the same table with its blocks priced alone, in a sandwich, and by the slope, judged on the same held-out networks.

    python benchmarks/table_methods.py TABLE.json

TABLE.json was judged before (`segnas tables judge`): its labels are used again, nothing whole is measured. Only blocks that keep their shape are
priced anew, since what changes it has no place between two equal neighbours; everything else keeps its price.
"""

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from segnas.arch import Architecture, Node, Operation
from segnas.cli_tables import space_of
from segnas.judging import draw, read_judgement
from segnas.kinds import kind
from segnas.latency import LatencyTable
from segnas.latency_tables.compose import reference_ms
from segnas.latency_tables.judge import bare, figures
from segnas.latency_tables.measure import measure_all
from segnas.latency_tables.store import load_table
from segnas.measuring import prepare_probe


def alone(operation: Operation) -> Architecture:
    """The operation in a session of its own."""
    return Architecture((Node(kind("image"), (), operation.inputs[0].channels), Node(operation.kind, (0,), operation.output.channels)))


def between(operation: Operation, copies: int) -> Architecture:
    """The operation `copies` times between two 1x1 convolutions of its width."""
    width = operation.output.channels
    nodes = [Node(kind("image"), (), 16), Node(kind("conv", kernel=1), (0,), width)]
    for _ in range(copies):
        nodes.append(Node(operation.kind, (len(nodes) - 1,), width))
    nodes.append(Node(kind("conv", kernel=1), (len(nodes) - 1,), 16))
    return Architecture(tuple(nodes))


def measured(probes: list[Architecture], size: tuple[int, int], table: LatencyTable) -> list[float]:
    """Latency of each probe in ms at the table's sentinel speed."""
    target = replace(table.target, height=size[0], width=size[1], output_contract="logits")
    return [m.median_ms for m in measure_all(probes, target, prepare=prepare_probe, sentinel_ref_ms=reference_ms(table))]


def main(path: Path) -> None:
    """Measure, and print a row for each method."""
    table = load_table(path)
    judgement = read_judgement(path)
    series = [entry.operation for entry in table.entries if entry.kind == "block" and entry.method.startswith("series")]
    by_size: defaultdict[tuple[int, int], list[Operation]] = defaultdict(list)
    for operation in series:
        by_size[operation.output[1:]].append(operation)
    prices: dict[str, dict[Operation, float]] = {"slope": {}, "alone": {}, "sandwich": {}}
    for size, operations in by_size.items():
        for operation, ms in zip(operations, measured([alone(o) for o in operations], size, table), strict=True):
            prices["alone"][operation] = ms
        pairs = measured([between(o, copies) for o in operations for copies in (0, 1)], size, table)
        for index, operation in enumerate(operations):
            prices["sandwich"][operation] = max(pairs[2 * index + 1] - pairs[2 * index], 1e-4)
    networks = draw(space_of(table, None), table, 0).by_digest
    print(f"{table.space}, {table.target}: {len(series)} of {len(table.entries)} entries priced anew")
    print(f"{'method':<10} {'set':<11} {'level':<6} {'MAPE':>6} {'bias':>7} {'worst':>7} {'hit5':>5} {'tau':>6}")
    for method, changed in prices.items():
        entries = tuple(replace(e, median_ms=changed.get(e.operation, e.median_ms)) for e in table.entries)
        summed = bare(replace(table, entries=entries))
        scaled = summed.calibrated([summed.probe(networks[label.digest], label.ms) for label in judgement.calibration[:10]])
        for level, fitted in (("sum", summed), ("scale", scaled)):
            for name, labels in judgement.sets:
                f = figures(fitted, networks, labels)
                print(f"{method:<10} {name:<11} {level:<6} {f.mape:>6.2f} {f.bias:>+7.2f} {f.worst:>+7.1f} {f.hit5:>5.0f} {f.tau:>6.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

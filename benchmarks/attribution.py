"""Where the milliseconds of whole engines go, by the runtime's own node profile, beside what a table says.

    python benchmarks/attribution.py TABLE.json [NETWORKS]

Prints, for random networks of the table's space on its target: the share of the node time that belongs to operations and reorders, and the share of
each kind of entry, measured in place and predicted.
"""

import sys
from collections import defaultdict
from pathlib import Path
from random import Random
from statistics import fmean

from segnas.export.graph import onnx_from_network
from segnas.latency_tables.probes import entry_kind
from segnas.latency_tables.store import load_table
from segnas.measuring import for_this_machine
from segnas.network import initialised
from segnas.runtime.attribution import attribute
from segnas.search.draws import networks as random_networks
from segnas.search.spaces import space as named_space


def main(path: Path, networks: int) -> None:
    """Profile that many networks and print the shares."""
    table = load_table(path)
    for_this_machine(table)
    target, rng = table.target, Random(7)
    classes = next(e.operation.output.channels for e in table.entries if e.operation.op == "classifier")
    space = named_space(table.space, classes)
    attributed: list[float] = []
    found: defaultdict[str, list[float]] = defaultdict(list)
    predicted: defaultdict[str, list[float]] = defaultdict(list)
    for architecture in random_networks(space, networks, rng):
        result = attribute(onnx_from_network(initialised(architecture, 0).eval(), target), architecture, target)
        attributed.append(result.attributed)
        for kind, ms in result.by_kind(lambda o: entry_kind(o, target)).items():
            found[kind].append(ms / result.total_ms)
        sums: defaultdict[str, float] = defaultdict(float)
        estimate = table.estimate(architecture)
        for operation, ms in estimate.per_operation:
            if ms:
                sums[entry_kind(operation, target)] += ms / estimate.total_ms
        for kind, share in sums.items():
            predicted[kind].append(share)
    least, mean = 100 * min(attributed), 100 * fmean(attributed)
    print(f"{table.space}, {target}: {networks} networks, attributed {least:.2f} % at least, {mean:.2f} % on average")
    for kind in sorted({*found, *predicted}):
        here, there = 100 * sum(found[kind]) / networks, 100 * sum(predicted[kind]) / networks
        print(f"{kind:<14} {here:5.1f} % in place, {there:5.1f} % by the table")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10)

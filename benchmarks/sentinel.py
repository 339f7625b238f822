"""Does a network's time follow the sentinel's? Readings of real networks, in units of this sentinel and of the first protocol's, in random turns.

    python benchmarks/sentinel.py [SPACE ...] [--readings 14] [--seconds 2]

Prints for each network and sentinel the standard deviation of the readings, in percent, and the slope of their logarithm over the sentinel's: 0 where
both are slowed alike, above 0 where what slows the sentinel slows the network more.
"""

import math
import random
import statistics
import time
from contextlib import ExitStack, closing
from dataclasses import replace

import click

from segnas.arch import Architecture, Node
from segnas.kinds import kind
from segnas.latency import Timed
from segnas.latency_tables.measure import READING, RUNS
from segnas.latency_tables.sentinel import Interleaver, sentinel_architecture, sentinel_target
from segnas.measuring import prepare_probe
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.draws import networks
from segnas.search.spaces import space
from segnas.target import Target
from segnas.timing import interquartile_mean, percentile


def first_sentinel() -> Architecture:
    """The first protocol's: three convolutions and a resize, which fit into a core's cache at 128x256."""
    return Architecture(
        (
            Node(kind("image"), (), 16),
            Node(kind("conv"), (0,), 16, 2),
            Node(kind("conv"), (1,), 64, 2),
            Node(kind("conv"), (2,), 64),
            Node(kind("conv", kernel=1), (3,), 16),
            Node(kind("resize"), (4,), 16, up=4),
        )
    )


def reading(network: Timed, sentinel: Timed, target: Target, seconds: float) -> tuple[float, float]:
    """The network's time in units of the sentinel, and the sentinel's in ms, over so many seconds."""
    interleaver, until = Interleaver([sentinel], target, reading=READING), time.monotonic() + seconds
    interleaver.begin()
    visits = [interleaver.visit(network, 1)]
    while time.monotonic() < until:
        visits.append(interleaver.visit(network, RUNS))
    return interquartile_mean([visit.fastest_ratio for visit in visits]), percentile([visit.sentinel_ms for visit in visits], 50)


@click.command()
@click.argument("spaces", nargs=-1)
@click.option("--readings", default=14, show_default=True)
@click.option("--seconds", default=2.0, show_default=True)
def main(spaces: tuple[str, ...], readings: int, seconds: float) -> None:
    """Read, and print what each sentinel leaves."""
    target, found = cpu_target(256, 512), dict[tuple[str, str], list[tuple[float, float]]]()
    with ExitStack() as stack:
        wanted = {
            "the first": (first_sentinel(), replace(sentinel_target(target), height=128, width=256)),
            "this one": (sentinel_architecture(), sentinel_target(target)),
        }
        sentinels = {name: stack.enter_context(closing(prepare_probe(*each))) for name, each in wanted.items()}
        drawn = {name: networks(space(name, 19), 1, random.Random(7))[0] for name in spaces or ("cas-tiny", "fasterseg-small")}
        opened = {name: stack.enter_context(closing(prepare_probe(network, target))) for name, network in drawn.items()}
        pairs = [(network, sentinel) for network in opened for sentinel in sentinels]
        for _ in range(readings):
            for network, sentinel in random.sample(pairs, len(pairs)):
                found.setdefault((network, sentinel), []).append(reading(opened[network], sentinels[sentinel], target, seconds))
    for network, sentinel in pairs:
        ratios, speeds = ([math.log(each[i]) for each in found[network, sentinel]] for i in (0, 1))
        slope = statistics.linear_regression(speeds, ratios).slope
        own, whole = 100 * statistics.stdev(ratios), 100 * statistics.stdev(speeds)
        print(f"{network:<18} by {sentinel:<10} {own:5.2f} %, slope {slope:+.2f}; sentinel {whole:.1f} %")


if __name__ == "__main__":
    main()

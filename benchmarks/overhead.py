"""What the runtime adds to ONNX Runtime: `Session.run` and the samples of `bench` beside a bare loop of `InferenceSession.run`, on the same file.

    python benchmarks/overhead.py [ENGINE] [--milliseconds 5] [--pairs 192] [--openings 48] [--threads 1]

Without an engine, a network is searched that takes about so many milliseconds. The three take turns in random order, in blocks of twenty runs, opened
anew every few blocks, for where its memory lies moves a session by some percent; the figure is the ratio of medians with its interval. The bare loop
is opened with the same options, and is given the same image.
"""

import time
from itertools import pairwise
from pathlib import Path
from random import Random

import click
import numpy as np
import onnxruntime as ort

from segnas.export.graph import onnx_from_network
from segnas.export.manifest import read_engine
from segnas.network import initialised
from segnas.runtime.onnxruntime_session import CPU_PROVIDER, cpu_target, session_options
from segnas.runtime.session import noise, open_session
from segnas.runtime.versus import interval
from segnas.search.spaces import space
from segnas.timing import cpu_times, disturbance, percentile

RUNS = 20


def network_of(milliseconds: float, threads: int) -> tuple[bytes, object]:
    """A network of `cas-fast` and a size at which it takes about so long."""
    made = space("cas-fast", 19)
    network = initialised(made.decode(made.random(Random(0))).architecture, 0).eval()
    height, found = 64, (b"", None)
    while height <= 512:
        target = cpu_target(height, 2 * height, threads)
        content = onnx_from_network(network, target)
        session = open_session(content, target)
        took = percentile(session.sample(10)[3:], 50)
        session.close()
        found = (content, target)
        if took >= 0.8 * milliseconds:
            break
        height += 32
    return found


@click.command()
@click.argument("engine", required=False, type=click.Path(path_type=Path))
@click.option("--milliseconds", default=5.0, show_default=True)
@click.option("--pairs", default=192, show_default=True)
@click.option("--openings", default=48, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(engine: Path | None, milliseconds: float, pairs: int, openings: int, threads: int) -> None:
    """Print the medians and the two ratios."""
    if engine is None:
        content, target = network_of(milliseconds, threads)
    else:
        manifest, artefact = read_engine(engine)
        content, target = artefact.read_bytes(), manifest.target
    dice, before = Random(0), cpu_times()
    groups: dict[str, list[list[tuple[float, float]]]] = {"run": [], "sample": []}
    for _ in range(openings):
        options = session_options(target.threads, dict(target.options).get("optimisation", "all"))
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if dict(target.options).get("spinning") == "on" else "0")
        bare = ort.InferenceSession(content, options, providers=[CPU_PROVIDER])
        ours = open_session(content, target)
        image = np.asarray(noise(ours.specification.input, 0))
        names, feeds = [ours.specification.output.name], {ours.specification.input.name: image}

        def timed(call) -> float:
            stamps = [time.perf_counter()]
            for _ in range(RUNS + 1):
                call()
                stamps.append(time.perf_counter())
            return percentile([1e3 * (b - a) for a, b in pairwise(stamps[1:])], 50)

        ways = {
            "bare": lambda bare=bare, names=names, feeds=feeds: timed(lambda: bare.run(names, feeds)),
            "run": lambda ours=ours, image=image: timed(lambda: ours.run(image)),
            "sample": lambda ours=ours: percentile(ours.sample(RUNS + 1)[1:], 50),
        }
        for way in ways.values():
            way()
        for kept in groups.values():
            kept.append([])
        for _ in range(pairs // openings):
            found = {name: ways[name]() for name in dice.sample(list(ways), len(ways))}
            for name, kept in groups.items():
                kept[-1].append((found[name], found["bare"]))
        ours.close()
    around = disturbance(before, cpu_times())
    print(f"{target}; {pairs} rounds of blocks of {RUNS} runs, {openings} openings; machine idle: {'unknown' if around is None else around.quiet}")
    for name, kept in groups.items():
        mine, bare_ms = (percentile([pair[i] for group in kept for pair in group], 50) for i in (0, 1))
        low, high = interval(kept)
        print(
            f"{name:<7} {mine:.4f} ms, bare {bare_ms:.4f} ms: {100 * (mine / bare_ms - 1):+.2f} % ({100 * (low - 1):+.2f} to {100 * (high - 1):+.2f})"
        )


if __name__ == "__main__":
    main()

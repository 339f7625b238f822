"""Do two calls of `segnas bench` agree? Pairs of calls in new processes, raw and normalised by the sentinel.

    python benchmarks/repeat.py ENGINE [--pairs 10] [--rigor standard]

Prints each pair, and the median over the pairs of |first / second - 1| for both figures; also of those pairs alone in which the machine was idle.
"""

import json
import subprocess
import sys
from pathlib import Path

import click

from segnas.timing import percentile


def called(engine: Path, rigor: str) -> tuple[float, float, bool]:
    """Raw and normalised median in ms of one call, and whether the machine was idle."""
    words = [sys.executable, "-m", "segnas", "bench", str(engine), "--scope", "end_to_end", "--rigor", rigor, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    (timing,) = json.loads(done.stdout)["timings"]
    return timing["median_ms"], timing["normalised_median_ms"], dict(timing["conditions"])["machine_idle"] == "yes"


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--pairs", default=10, show_default=True)
@click.option("--rigor", default="standard", show_default=True)
def main(engine: Path, pairs: int, rigor: str) -> None:
    """Print the pairs and their medians."""
    apart: list[tuple[float, float, bool]] = []
    for index in range(pairs):
        first, second = called(engine, rigor), called(engine, rigor)
        apart.append((abs(first[0] / second[0] - 1), abs(first[1] / second[1] - 1), first[2] and second[2]))
        print(
            f"pair {index + 1:2d}: raw {first[0]:.3f} and {second[0]:.3f} ms ({100 * apart[-1][0]:.2f} %), normalised {first[1]:.3f} and "
            f"{second[1]:.3f} ms ({100 * apart[-1][1]:.2f} %), idle: {'yes' if apart[-1][2] else 'no'}",
            flush=True,
        )
    for name, chosen in (("all pairs", apart), ("idle pairs", [pair for pair in apart if pair[2]])):
        if chosen:
            raw, normalised = (100 * percentile([pair[i] for pair in chosen], 50) for i in (0, 1))
            print(f"{name} ({len(chosen)}): median difference raw {raw:.2f} %, normalised {normalised:.2f} %")


if __name__ == "__main__":
    main()

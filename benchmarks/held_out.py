"""The table of docs/results.md: every committed table's figures on networks that were never used for fitting.

python benchmarks/held_out.py
"""

import math
from pathlib import Path
from statistics import fmean, pstdev

from segnas.judging import read_judgement
from segnas.latency_tables.judge import JUDGED, Figures, Judgement

TABLES = Path(__file__).parents[1] / "latency_tables" / "tables"
HEAD = (
    *("space", "held-out networks: spread, noise, processes", "sum: MAPE", "10 networks: MAPE, hit5, hit10", "40: MAPE, RMSPE"),
    *("tau, and what the labels' noise leaves", "tau in +-10 %", "in the 90 % interval, 10 and 40"),
)
LEVELS = {(0, "sum"): "the sum", (10, "scale"): "one scale, 10 networks", (40, "entries"): "level 2, 40 networks"}


def main() -> None:
    """Print, for each device, a row for each set of each space, the corners and the pooled coverage."""
    devices: dict[str, list[Judgement]] = {}
    for path in sorted(TABLES.glob(f"*{JUDGED}")):
        found = read_judgement(path.with_name(path.name.removesuffix(JUDGED) + ".json"))
        devices.setdefault(found.target.device, []).append(found)
    everywhere: dict[str, list[float]] = {}
    for device, judgements in devices.items():
        print(f"{device}\n")
        covered: dict[str, list[float]] = {}
        _print_device(judgements, covered)
        for level, values in covered.items():
            everywhere.setdefault(level, []).extend(values)
    for level, values in everywhere.items():
        print(f"In the 90 % interval, all devices, {level}: {fmean(values):.1f} %")


def _print_device(judgements: list[Judgement], covered: dict[str, list[float]]) -> None:
    corners: list[str] = []
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for found in judgements:
        noise, spread = dict(found.label_noise), dict(found.spread)
        for name in ("uniform", "stratified"):
            of: dict[str, Figures] = {
                LEVELS[row.fitted_on, row.level]: row.figures for row in found.rows if row.networks == name and (row.fitted_on, row.level) in LEVELS
            }
            summed, scaled, full = of.values()
            for level, figures in list(of.items())[1:]:
                covered.setdefault(level, []).append(figures.covered)
            left = 2 / math.pi * math.asin(math.sqrt(max(0.0, 1 - (noise[name] / spread[name]) ** 2)))  # of a normal distribution of latencies
            band = "-" if full.band_tau is None else f"{full.band_tau:.2f}"
            print(
                f"| `{found.space}` | {name}: {spread[name]:.1f} %, {noise[name]:.2f} %, {found.processes} | {summed.mape:.2f} "
                f"| {scaled.mape:.2f}, {scaled.hit5:.0f}, {scaled.hit10:.0f} | {full.mape:.2f}, {full.rmspe:.2f} "
                f"| {full.tau:.3f}, {left:.3f} | {band} "
                f"| {scaled.covered:.0f}, {full.covered:.0f} |"
            )
        worst = sorted(found.corners, key=lambda item: -abs(item[1]))[:2]
        corners.append(f"`{found.space}` " + ", ".join(f"{error:+.1f} ({name.removeprefix('all ')})" for name, error in worst))
    print("\nCorners, level 2, the worst two: " + "; ".join(corners) + ".")
    for level, values in covered.items():
        print(f"In the 90 % interval, pooled, {level}: {fmean(values):.1f} %")
    for found in judgements:
        if found.together:
            print(_readings(found))
    print()


def _readings(found: Judgement) -> str:
    """How far single readings lie from the labels, as they are and less what networks that were open together share."""
    labels = {label.digest: label for label in (*found.calibration, *(label for _, of_set in found.sets for label in of_set))}
    number: dict[str, int] = {}
    off: list[list[float]] = []
    for role, groups in found.together:
        process = number[role] = number.get(role, -1) + 1
        off += [[math.log(labels[digest].sessions_ms[process] / labels[digest].ms) for digest in group] for group in groups]
    shared, own = pstdev(map(fmean, off)), pstdev([value - fmean(group) for group in off for value in group])
    single = pstdev(value for group in off for value in group)
    return f"`{found.space}`: readings are off by {100 * single:.2f} %; groups together by {100 * shared:.2f}, each beside by {100 * own:.2f}"


if __name__ == "__main__":
    main()

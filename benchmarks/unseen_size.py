"""What an interpolated table is worth: two tables' sizes around that of a judged one, whose labels are used again; nothing is measured.

segnas profile cas-fast --size 192x384 --threads 1 --out small.json
segnas profile cas-fast --size 384x768 --threads 1 --out large.json
python benchmarks/unseen_size.py JUDGED_TABLE.json small.json large.json
"""

import sys
from pathlib import Path

from segnas.cli_tables import space_of
from segnas.judging import draw, read_judgement
from segnas.latency_tables.judge import figures
from segnas.latency_tables.merge import at_speed_of
from segnas.latency_tables.store import load_table
from segnas.measuring import interpolate_tables


def main(judged: Path, small: Path, large: Path) -> None:
    """Print a row for each set of held-out networks."""
    table = load_table(judged)
    space, judgement = space_of(table, None), read_judgement(judged)
    networks = draw(space, table, 0).by_digest
    made = interpolate_tables(space, load_table(small), load_table(large), table.target, lambda done, total, what: None)
    made = at_speed_of(made, table)  # the labels are told at the judged table's
    print(f"{table.space} at {table.target.height}x{table.target.width}, interpolated from {small.name} and {large.name}")
    print(f"{'set':<11} {'MAPE':>6} {'RMSPE':>6} {'bias':>7} {'worst':>7} {'hit5':>5} {'hit10':>5} {'tau':>6} {'in 90 %':>7}")
    for name, labels in judgement.sets:
        f = figures(made, networks, labels)
        errors = f"{f.mape:>6.2f} {f.rmspe:>6.2f} {f.bias:>+7.2f} {f.worst:>+7.1f}"
        print(f"{name:<11} {errors} {f.hit5:>5.0f} {f.hit10:>5.0f} {f.tau:>6.3f} {f.covered:>7.0f}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))

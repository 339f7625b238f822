"""`segnas tables`, the commands that make new tables of those that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from segnas.cli_options import ALLOW, FILE, JSON, SEED, emit, require_suffix
from segnas.cli_tables import CLASSES, space_of, tables

__all__ = ["tables"]


@tables.command()
@click.argument("table", type=FILE)
@click.option("--factor", type=click.FloatRange(0.01, 100), required=True, help="What every price is multiplied by.")
@click.option("--out", type=FILE, required=True, help="The new table.")
@JSON
def rescale(table: Path, factor: float, out: Path, as_json: bool) -> None:
    """Multiply every price of a table, where `tables check --live` found that all changed alike.

    Example: segnas tables rescale cas-fast.json --factor 1.08 --out cas-fast-now.json
    """
    from segnas.latency_tables.live import rescaled
    from segnas.latency_tables.store import load_table, save_table

    require_suffix(out, ".json")
    made = rescaled(load_table(table), factor)
    save_table(out, made)
    emit({"table": str(out), "entries": len(made.entries), "factor": factor}, as_json, [f"{out}: {len(made.entries)} entries, each times {factor:g}"])


@tables.command()
@click.argument("table", type=FILE)
@click.option("--networks", type=click.IntRange(3), default=10, show_default=True, help="Whole random networks that are measured here.")
@click.option("--out", type=FILE, required=True, help="The new table.")
@CLASSES
@SEED
@JSON
def transfer(table: Path, networks: int, out: Path, classes: int | None, seed: int, as_json: bool) -> None:
    """Make a table for this machine from one of another device of its family, by measuring a few whole networks.

    Example: segnas tables transfer cas-fast.json --networks 10 --out cas-fast-here.json
    """
    from segnas.files import require_writable
    from segnas.latency_tables.store import load_table, save_table
    from segnas.measuring import transfer_table
    from segnas.screen import RichScreen

    require_suffix(out, ".json")
    require_writable(out)
    loaded = load_table(table)
    with RichScreen().step(f"measuring {networks} networks") as progress:
        made = transfer_table(space_of(loaded, classes), loaded, networks=networks, seed=seed, progress=progress)
    save_table(out, made)
    found = {"table": str(out), "entries": len(made.entries), "relative_sd": made.calibration.relative_sd}
    emit(found, as_json, [f"{out}: {len(made.entries)} transferred entries, residual {made.calibration.relative_sd:.1%}; {made.target}"])


@tables.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--out", type=FILE, required=True, help="The merged table, a .json file.")
@click.option("--prefer", type=click.Choice(["first", "second"]), help="Whose entry counts where both price the same operation differently.")
@ALLOW
@JSON
def merge(first: Path, second: Path, out: Path, prefer: Any, allow: tuple[str, ...], as_json: bool) -> None:
    """Join the entries of two tables of one space on one target; the result has no calibration.

    Example: segnas tables merge old.json new.json --out both.json --prefer second
    """
    require_suffix(out, ".json")
    from segnas.latency_tables.merge import merge as merge_tables
    from segnas.latency_tables.store import load_table, save_table

    one, other = load_table(first), load_table(second)
    merged = merge_tables(one, other, prefer=prefer, allow=allow)
    save_table(out, merged)
    found = {"table": str(out), "entries": len(merged.entries), "merged": [len(one.entries), len(other.entries)]}
    line = f"{out}: {len(merged.entries)} entries of {len(one.entries)} and {len(other.entries)}, not calibrated; {merged.target}"
    emit(found, as_json, [line])


@tables.command()
@click.argument("first", type=FILE)
@click.argument("second", type=FILE)
@click.option("--size", required=True, metavar="HxW", help="Size that was not measured, HEIGHTxWIDTH, between the tables'.")
@click.option("--out", type=FILE, required=True, help="The interpolated table, a .json file.")
@ALLOW
@CLASSES
@JSON
def interpolate(first: Path, second: Path, size: str, out: Path, allow: tuple[str, ...], classes: int | None, as_json: bool) -> None:
    """Make the table of a resolution between those of two tables; each entry of it says that it is interpolated.

    Example: segnas tables interpolate small.json large.json --size 384x768 --out between.json
    """
    require_suffix(out, ".json")
    from dataclasses import replace

    from segnas.files import require_writable
    from segnas.latency_tables.store import load_table, save_table
    from segnas.measuring import interpolate_tables
    from segnas.screen import RichScreen
    from segnas.target import parse_size

    height, width = parse_size(size)
    one, other = load_table(first), load_table(second)
    target = replace(one.target, height=height, width=width)
    require_writable(out)
    with RichScreen().step("exporting operations") as progress:
        made = interpolate_tables(space_of(one, classes), one, other, target, progress, allow)
    save_table(out, made)
    found = {"table": str(out), "entries": len(made.entries), "scale": made.calibration.scale, "relative_sd": made.calibration.relative_sd}
    emit(found, as_json, [f"{out}: {len(made.entries)} interpolated entries, residual taken to be {made.calibration.relative_sd:.1%}; {target}"])

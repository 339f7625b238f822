"""`segnas tables`: look at latency tables, check and compare them, and make new ones of those that were measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from segnas.cli_options import ALLOW, FILE, JSON, SEED, emit, require_suffix
from segnas.errors import IncompatibleError, InputError, SegnasError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from segnas.arch import Architecture, Operation
    from segnas.latency import Entry, LatencyTable
    from segnas.latency_tables.check import Change
    from segnas.latency_tables.monotone import Inversion
    from segnas.search.space import Space

DEAREST = 10  # entries or changes that are listed unless all are asked for
DRAWN = 50  # random networks of a figure
REPEATABLE_MS = 0.05  # entries from here on should be repeated well by a second profile; what is cheaper is mostly noise
CLASSES = click.option("--classes", type=click.IntRange(2, 256), help="Classes of the dataset.  [default: the classifier's in the table]")


@click.group()
def tables() -> None:
    """Look at latency tables, check and compare them, and make new ones of them."""


@tables.command("list")
@click.argument("folder", type=FILE, required=False)
@JSON
def list_tables(folder: Path | None, as_json: bool) -> None:
    """List the latency tables in FOLDER; without one, those that come with segnas.

    Example: segnas tables list runs
    """
    from segnas.latency_tables.judge import JUDGED

    where = folder or packaged_folder()
    if folder is not None and not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one that holds latency tables, or none for those that come with segnas")
    rows = [_row(file) for file in sorted(where.glob("*.json")) if not file.name.endswith(JUDGED)]
    nothing = f"there are no latency tables in {where}; make one with `segnas profile SPACE --size HxW --out TABLE.json`"
    emit({"folder": str(where), "tables": rows}, as_json, [_row_line(row) for row in rows] or [nothing])


@tables.command()
@click.argument("table", type=FILE)
@click.option("--entries", "everything", is_flag=True, help="List every entry, not only the dearest.")
@JSON
def show(table: Path, everything: bool, as_json: bool) -> None:
    """Show a latency table: its target, where its figures came from, its calibration, its dearest entries.

    Example: segnas tables show cas-fast.json
    """
    from segnas.files import plain
    from segnas.latency_tables.store import content_sha256, load_table

    loaded = load_table(table)
    target, calibration = loaded.target, loaded.calibration
    dearest = sorted(loaded.entries, key=lambda entry: (-entry.median_ms, entry.operation))[: None if everything else DEAREST]
    digest, sources = content_sha256(loaded), _sources(loaded)
    found: dict[str, Any] = {
        "space": loaded.space,
        "content_sha256": digest,
        "target": plain(target),
        "overhead_ms": loaded.overhead_ms,
        "calibration": plain(calibration),
        "provenance": dict(loaded.provenance),
        "sources": sources,
        "entries": [_entry_values(entry) for entry in dearest],
    }
    lines = [
        f"latency table of {loaded.space}: {len(loaded.entries)} entries ({_counted(sources)}), content sha256 {digest[:12]}",
        f"target: {target}; {target.input_contract} -> {target.output_contract}, {target.scope}",
        *(f"  {name} {value}" for name, value in target.options),
        f"calibration: scale {calibration.scale:.3f} from {len(calibration.probes)} networks, residual {calibration.relative_sd:.1%}",
        f"a call with nothing in it: {loaded.overhead_ms:.4f} ms",
        "provenance:",
        *(f"  {name:<20} {value}" for name, value in loaded.provenance),
        "entries:" if everything else f"the {len(dearest)} dearest entries:",
        *(f"{e.median_ms:11.4f} ms  +-{50 * e.spread:5.1f} %  {e.kind:<8} {e.source:<12} {e.operation}" for e in dearest),
    ]
    emit(found, as_json, lines)


@tables.command()
@click.argument("table", type=FILE)
@CLASSES
@click.option("--live", is_flag=True, help="Also measure the sentinel and some entries again, on this machine.")
@ALLOW
@JSON
def check(table: Path, classes: int | None, live: bool, allow: tuple[str, ...], as_json: bool) -> None:
    """Check a latency table against its own space: what it lacks, has too much of, and is not sure of; with --live, against this machine.

    Example: segnas tables check cas-fast.json --live
    """
    from segnas.latency_tables.check import check_coverage
    from segnas.latency_tables.slope import FLOOR_MS
    from segnas.latency_tables.store import load_table

    loaded = load_table(table)
    wanted = space_of(loaded, classes)
    coverage = check_coverage(loaded, wanted.all_operations(loaded.target))
    floor = tuple(sorted(entry.operation for entry in loaded.entries if entry.median_ms <= FLOOR_MS))
    parts = {
        "missing": ("needed and without a price", coverage.missing),
        "unreachable": ("priced, though no network of the space has it", coverage.unreachable),
        "unsure": ("with a spread as large as the price", coverage.unsure),
        "inverted": ("priced above the same operation on larger features", coverage.inverted),
        "at_floor": (f"priced at the least that is believed, {FLOOR_MS} ms, or below", floor),
    }
    lines = [f"{table}: the content matches its sha256; {len(loaded.entries)} entries ({_counted(_sources(loaded))})"]
    for name, (meaning, operations) in parts.items():
        lines += [f"{name:<12}{len(operations):>4}  {meaning}", *(f"    {operation}" for operation in operations[:DEAREST])]
        lines += [f"    and {len(operations) - DEAREST} more"] * (len(operations) > DEAREST)
    found: dict[str, object] = {"entries": len(loaded.entries), **{name: _texts(operations) for name, (_, operations) in parts.items()}}
    advice = ""
    if live:
        from segnas.files import plain
        from segnas.measuring import check_table_live, for_this_machine
        from segnas.screen import RichScreen

        with RichScreen().step("measuring some entries again") as progress:
            here = for_this_machine(loaded, allow)
            now = check_table_live(here, progress)
        found |= {"live": plain(now), "allowed_mismatch": here.allowed_mismatch}
        lines.append(f"{now.verdict}: {len(now.entries)} entries take {now.ratio:.3f} of the table's time ({now.low:.3f} to {now.high:.3f})")
        lines.append(f"the sentinel takes {now.sentinel_ratio:.3f} of the table's: {now.advice}")
        advice = now.advice if now.action in ("rescale", "profile") else ""
    emit(found, as_json, lines)
    if not coverage.complete:
        from segnas.measuring import require_entries

        require_entries(wanted, loaded)
    if advice:
        raise IncompatibleError(f"{table} no longer holds on this machine: {advice}")


@tables.command()
@click.argument("table", type=FILE)
@click.option("--processes", type=click.IntRange(2), default=5, show_default=True, help="Processes whose mean is the truth for a network.")
@click.option(
    "--out", type=FILE, help="The table, calibrated on the networks that were measured; its figures lie beside it.  [default: TABLE itself]"
)
@ALLOW
@CLASSES
@SEED
@JSON
def judge(table: Path, processes: int, out: Path | None, allow: tuple[str, ...], classes: int | None, seed: int, as_json: bool) -> None:
    """Measure networks that were never used for fitting, and say how far the estimates are off, level by level.

    An interrupted judging continues: a process that has finished is not repeated.

    Example: segnas tables judge cas-fast.json --out cas-fast-judged.json
    """
    from segnas.files import plain, require_writable
    from segnas.judging import judge_table, judgement_lines, save_judgement
    from segnas.latency_tables.store import load_table, save_table
    from segnas.measuring import for_this_machine
    from segnas.screen import RichScreen

    result = out or table
    require_suffix(result, ".json")
    loaded = for_this_machine(load_table(table), allow)
    require_writable(result)
    with RichScreen().step(f"judging the table of {loaded.space}") as progress:
        judgement, fitted = judge_table(
            space_of(loaded, classes), loaded, journal=result.with_suffix(".judging.jsonl"), processes=processes, seed=seed, progress=progress
        )
    save_judgement(result, judgement)
    save_table(result, fitted)
    emit(plain(judgement), as_json, judgement_lines(judgement))


@tables.command()
@click.argument("before", type=FILE)
@click.argument("after", type=FILE)
@JSON
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Compare two latency tables: targets, entries that only one has, and how far the prices of shared entries differ.

    Entries are compared before calibration; on one and the same target at one speed of the sentinel, so that two profiles of it can be compared.

    Example: segnas tables diff monday.json tuesday.json
    """
    from dataclasses import replace

    from segnas.latency import Calibration
    from segnas.latency_tables.check import diff_tables
    from segnas.latency_tables.compose import reference_ms
    from segnas.latency_tables.merge import at_speed_of
    from segnas.latency_tables.store import load_table

    first, second = load_table(before), load_table(after)
    speeds = [reference_ms(table) for table in (first, second)]
    one_speed = first.target == second.target and None not in speeds
    told = at_speed_of(second, first) if one_speed else second
    bare = [replace(table, calibration=Calibration()) for table in (first, told)]
    difference = diff_tables(*bare)
    agreement = _agreement(*bare)
    found: dict[str, Any] = {
        "space": [first.space, second.space],
        "target": {name: [here, there] for name, here, there in difference.target},
        "one_speed": one_speed,
        "sentinel_ms": speeds,
        "scale": [table.calibration.scale for table in (first, second)],
        "relative_sd": [table.calibration.relative_sd for table in (first, second)],
        "only_before": _texts(difference.only_before),
        "only_after": _texts(difference.only_after),
        "changed": len(difference.changed),
        "largest": [_change_values(change) for change in difference.changed[:DEAREST]],
        "median_absolute_relative": agreement,
    }
    emit(found, as_json, _difference_lines(found, difference.changed[:DEAREST]))


@tables.command()
@click.argument("table", type=FILE)
@click.option("--out", type=FILE, required=True, help="The figure, a .png or .svg file.")
@click.option("--against", type=FILE, help="A table that is drawn beside it, hollow and grey.")
@JSON
def plot(table: Path, out: Path, against: Path | None, as_json: bool) -> None:
    """Draw a latency table: prices against channels, where the time of random networks goes, predicted against measured.

    Example: segnas tables plot cas-fast.json --out cas-fast.svg
    """
    require_suffix(out, ".png", ".svg")
    from segnas.files import require_writable, write_bytes
    from segnas.latency_tables.store import load_table
    from segnas.table_figures import Priced, table_picture

    require_writable(out)
    drawn = [Priced(loaded, _drawn(loaded)) for loaded in map(load_table, (table, *([against] if against else [])))]
    write_bytes(out, table_picture(*drawn, form="png" if out.suffix == ".png" else "svg"))
    found = {"figure": str(out), "networks": DRAWN, "shares": [priced.shares for priced in drawn]}
    name, share = next(iter(drawn[0].shares.items()))
    emit(found, as_json, [f"{out}: most of {DRAWN} random networks' time, {share:.1%}, goes to {name}"])


def packaged_folder() -> Path:
    """Where the tables lie that come with segnas; the folder may be absent."""
    import segnas.latency_tables

    return Path(segnas.latency_tables.__path__[0]) / "tables"


def _row(file: Path) -> dict[str, object]:
    """What `list` says of a file; the reason where it cannot be used as a table."""
    from segnas.latency_tables.store import load_table

    try:
        table = load_table(file)
    except SegnasError as error:
        return {"file": file.name, "error": str(error)}
    target = table.target
    return {
        "file": file.name,
        "space": table.space,
        "device": target.device,
        "runtime": f"{target.runtime} {target.runtime_version} {target.precision}",
        "size": f"{target.height}x{target.width}",
        "threads": target.threads,
        "entries": len(table.entries),
        "scale": table.calibration.scale,
        "relative_sd": table.calibration.relative_sd,
    }


def _row_line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['file']}: not usable: {row['error']}"
    return (
        f"{row['file']:<32} {row['space']:<10} {row['size']:<10} {row['threads']} threads  {row['entries']:>4} entries  "
        f"scale {row['scale']:.3f}  residual {row['relative_sd']:.1%}  {row['device']}, {row['runtime']}"
    )


def space_of(table: LatencyTable, classes: int | None) -> Space:
    """The space that the table prices; UsageError where it is none of segnas's, or its classes cannot be told from the table."""
    from segnas.search.spaces import space

    widths = {classes} if classes else {e.operation.output.channels for e in table.entries if e.operation.op == "classifier"}
    if len(widths) != 1:
        raise UsageError(f"the table of {table.space!r} has classifiers of {len(widths)} widths: give the number of classes with --classes")
    return space(table.space, *widths)


def _drawn(table: LatencyTable) -> tuple[Architecture, ...]:
    """Random networks of the table's space, always the same ones."""
    from random import Random

    from segnas.search.draws import networks

    return networks(space_of(table, None), DRAWN, Random(0))


def _agreement(before: LatencyTable, after: LatencyTable) -> dict[str, dict[str, float | int | None]]:
    """Median absolute relative difference of the entries that both have: 50 us and more before, and below; None for no entries."""
    from statistics import median

    shared = {entry.operation for entry in before.entries} & {entry.operation for entry in after.entries}
    pairs = [(before.price_ms(o), after.price_ms(o)) for o in shared]
    dear = [abs(b / a - 1) for a, b in pairs if a >= REPEATABLE_MS]
    cheap = [abs(b / a - 1) for a, b in pairs if a < REPEATABLE_MS]
    return {name: {"entries": len(part), "median": median(part) if part else None} for name, part in (("from_50us", dear), ("below_50us", cheap))}


def _difference_lines(found: dict[str, Any], largest: Sequence[Change]) -> list[str]:
    lines = [f"{'space':<18} {found['space'][0]} -> {found['space'][1]}"] if len(set(found["space"])) > 1 else []
    lines += [f"{name:<18} {here} -> {there}" for name, (here, there) in found["target"].items()] or ["the same target"]
    lines += [f"{name:<18} {found[name][0]} -> {found[name][1]}" for name in ("sentinel_ms", "scale", "relative_sd") if len(set(found[name])) > 1]
    lines.append("prices at the speed of the first" if found["one_speed"] else "prices as they stand, each at its own speed")
    for name, side in (("only_before", "the first"), ("only_after", "the second")):
        lines += [f"only in {side}: {len(found[name])}", *(f"    {text}" for text in found[name][:DEAREST])]
    for name, part in (("from_50us", "of 50 us and more"), ("below_50us", "below 50 us")):
        figure = found["median_absolute_relative"][name]
        value = "none" if figure["median"] is None else f"median difference {figure['median']:.2%}"
        lines.append(f"entries {part}: {figure['entries']}, {value}")
    lines.append(f"changed: {found['changed']}{', the largest:' if largest else ''}")
    return lines + [f"    {c.before_ms:9.4f} -> {c.after_ms:9.4f} ms  {c.relative:+8.1%}  {c.operation}" for c in largest]


def _change_values(change: Change) -> dict[str, object]:
    return {"operation": str(change.operation), "before_ms": change.before_ms, "after_ms": change.after_ms, "relative": change.relative}


def _entry_values(entry: Entry) -> dict[str, object]:
    from segnas.files import plain

    return {**cast(dict[str, object], plain(entry)), "operation": str(entry.operation)}


def _sources(table: LatencyTable) -> dict[str, int]:
    from collections import Counter

    return dict(sorted(Counter(entry.source for entry in table.entries).items()))


def _counted(sources: dict[str, int]) -> str:
    return ", ".join(f"{count} {source}" for source, count in sources.items()) or "none"


def _texts(operations: Iterable[Operation | Inversion]) -> list[str]:
    return [str(operation) for operation in operations]

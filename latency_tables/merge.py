"""Merge: two tables of one space and one target as one, such as a table and the entries of operations that its space was given later.

Prices are in ms at the speed at which the table's sentinel takes its reference time, so before two tables are mixed the second's are told at the
first's speed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from segnas.errors import IncompatibleError
from segnas.latency import MISMATCH_KEY, Calibration, Entry, LatencyTable
from segnas.latency_tables.compose import SENTINEL_KEY, reference_ms
from segnas.latency_tables.store import content_sha256
from segnas.target import Target

Preference = Literal["first", "second"]
SAME = 1e-6  # relative difference of two prices that are one: what the rounding of a file leaves


def merge(first: LatencyTable, second: LatencyTable, *, prefer: Preference | None = None, allow: Sequence[str] = ()) -> LatencyTable:
    """The entries of both at the first's speed, uncalibrated: what networks told of one table's entries does not hold for the other's.

    The targets may differ in the fields of `allow`; the result is of the first's, and its provenance names them. Where both price an operation, or a
    call with nothing in it, differently, or hash another graph under one operation, `prefer` says whose counts.
    IncompatibleError names the field in which spaces or targets differ, the table that does not state its sentinel's time where the other does, and
    without `prefer` the operation that they disagree on, with both prices in ms.
    """
    require_alike(first, second, second.target, but=allow)
    told = at_speed_of(second, first).for_target(first.target, allow)
    mine, theirs = ({entry.operation: entry for entry in table.entries} for table in (first, told))
    if prefer is None:
        for operation in sorted(mine.keys() & theirs.keys()):
            _require_agreement(mine[operation], theirs[operation])
        _require_one_price("a call with nothing in it", first.overhead_ms, told.overhead_ms)
    entries = {**mine, **theirs} if prefer == "second" else {**theirs, **mine}
    made = {"merged_from": f"{content_sha256(first)}, {content_sha256(second)}", **({"merge_preferred": prefer} if prefer else {})}
    return replace(
        told if prefer == "second" else first,
        entries=tuple(entries[operation] for operation in sorted(entries)),
        calibration=Calibration(),
        provenance=joint_provenance(first, told, made),
    )


def at_speed_of(table: LatencyTable, other: LatencyTable) -> LatencyTable:
    """The table with its prices in ms at the speed at which the sentinel takes the other's reference time; as it is where neither states one.

    The calibration stays: it is made of ratios, and its networks keep the ms of their own speed. IncompatibleError where only one states a time.
    """
    own, wanted = reference_ms(table), reference_ms(other)
    if own == wanted:
        return table
    if not own or not wanted:
        raise IncompatibleError(
            f"one of the two tables of {table.space!r} states the sentinel's time that its prices refer to, the other does not "
            f"({SENTINEL_KEY}: {wanted} and {own}), so their milliseconds do not mix; run `segnas profile {table.space}` again"
        )
    return replace(scaled(table, wanted / own), provenance=_sorted({**dict(table.provenance), SENTINEL_KEY: dict(other.provenance)[SENTINEL_KEY]}))


def scaled(table: LatencyTable, factor: float) -> LatencyTable:
    """The table with every price, and the cost of a call, times the factor; all else is as it was."""
    entries = tuple(replace(entry, median_ms=rounded(entry.median_ms * factor)) for entry in table.entries)
    return replace(table, entries=entries, overhead_ms=rounded(table.overhead_ms * factor))


def require_alike(first: LatencyTable, second: LatencyTable, target: Target, but: Iterable[str] = ()) -> None:
    """IncompatibleError, naming each field, where the tables' spaces differ, or two of their targets and this one in any field not in `but`."""
    allowed = set(but)
    differing = [("space", first.space, second.space)] if first.space != second.space else []
    pairs = (*first.target.differences(second.target), *first.target.differences(target))
    differing += [pair for pair in dict.fromkeys(pairs) if pair[0] not in allowed]
    if differing:
        lines = "; ".join(f"{name}: {here!r} and {there!r}" for name, here, there in differing)
        raise IncompatibleError(f"these latency tables do not belong together ({lines}); run `segnas profile {first.space}` where they should")


def joint_provenance(first: LatencyTable, second: LatencyTable, made: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What both tables state alike, every mismatch that was allowed, and how the new one was `made`."""
    mismatches = "; ".join(dict.fromkeys(table.allowed_mismatch for table in (first, second) if table.allowed_mismatch))
    alike = {**dict(set(first.provenance) & set(second.provenance)), **({MISMATCH_KEY: mismatches} if mismatches else {})}
    return _sorted({**alike, **made})


def rounded(ms: float) -> float:
    """Nine significant digits: more than any clock knows, and a file that reads well."""
    return float(f"{ms:.9g}")


def _require_agreement(mine: Entry, theirs: Entry) -> None:
    _require_one_price(str(mine.operation), mine.median_ms, theirs.median_ms)
    if mine.graph_sha256 != theirs.graph_sha256:
        raise IncompatibleError(
            f"both tables price {mine.operation}, but of different graphs ({mine.graph_sha256[:12]} and {theirs.graph_sha256[:12]}); "
            "say whose counts with --prefer first or --prefer second"
        )


def _require_one_price(what: str, mine_ms: float, theirs_ms: float) -> None:
    if not math.isclose(mine_ms, theirs_ms, rel_tol=SAME):
        raise IncompatibleError(
            f"both tables price {what}: {mine_ms:.6g} ms and, at the same speed, {theirs_ms:.6g} ms; "
            "say whose counts with --prefer first or --prefer second"
        )


def _sorted(pairs: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(pairs.items()))

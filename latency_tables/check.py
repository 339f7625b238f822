"""Check: what a table covers of a space, and how two tables differ."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from segnas.arch import Operation
from segnas.latency import LatencyTable
from segnas.latency_tables.monotone import Inversion, table_inversions


@dataclass(frozen=True, slots=True)
class Coverage:
    """`missing`: reachable operations without a price; `unreachable`: prices that no network of the space asks for; `unsure`: spread of 1 or more;
    `inverted`: pairs that are not monotone.
    """

    missing: tuple[Operation, ...]
    unreachable: tuple[Operation, ...]
    unsure: tuple[Operation, ...]
    inverted: tuple[Inversion, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing


class Change(NamedTuple):
    """One operation's price in ms in two tables."""

    operation: Operation
    before_ms: float
    after_ms: float

    @property
    def relative(self) -> float:
        """After over before, less one."""
        return self.after_ms / self.before_ms - 1


@dataclass(frozen=True, slots=True)
class TableDifference:
    """How two tables differ; `changed` holds the shared operations whose calibrated price differs, the largest relative change first."""

    target: tuple[tuple[str, object, object], ...]
    only_before: tuple[Operation, ...]
    only_after: tuple[Operation, ...]
    changed: tuple[Change, ...]


def check_coverage(table: LatencyTable, operations: Iterable[Operation]) -> Coverage:
    """What the table lacks and has too much of, where these are all operations of the space, argmax included where the output is labels."""
    reachable = {operation for operation in operations if not operation.is_free}
    return Coverage(
        missing=tuple(sorted(table.missing(reachable))),
        unreachable=tuple(sorted(entry.operation for entry in table.entries if entry.operation not in reachable)),
        unsure=tuple(sorted(entry.operation for entry in table.entries if entry.spread >= 1)),
        inverted=table_inversions(table),
    )


def diff_tables(before: LatencyTable, after: LatencyTable) -> TableDifference:
    """How `after` differs from `before`."""
    first, second = {e.operation for e in before.entries}, {e.operation for e in after.entries}
    shared = [Change(o, before.price_ms(o), after.price_ms(o)) for o in sorted(first & second)]
    changed = sorted((c for c in shared if c.before_ms != c.after_ms), key=lambda c: -abs(c.relative))
    return TableDifference(before.target.differences(after.target), tuple(sorted(first - second)), tuple(sorted(second - first)), tuple(changed))

"""Monotone: an operation that does the same and more should not cost less. Pairs of prices that say so are flagged and measured again.

What stays flagged need not be wrong: a kernel for widths in blocks of 8 may beat one for fewer channels. In FasterSeg's
released table 39 of 500 adjacent widths are such pairs (our count).
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from segnas.arch import Operation
from segnas.latency import LatencyTable
from segnas.latency_tables.slope import half_width_from


class Inversion(NamedTuple):
    """`smaller` is priced above `larger`, which does all of its work and more, by more than the 90 % interval of the difference; in ms."""

    smaller: Operation
    larger: Operation
    smaller_ms: float
    larger_ms: float

    def __str__(self) -> str:
        return f"{self.smaller} {self.smaller_ms:.4f} ms, {self.larger} {self.larger_ms:.4f} ms"


def does_more(larger: Operation, smaller: Operation) -> bool:
    """Whether `larger` is `smaller` on features that are nowhere narrower or lower, and one of them wider or higher.

    A resize must write more, whatever it reads; a residual unit adds its input, so it is compared with its like only.
    """
    if larger == smaller or (larger.kind, larger.stride, len(larger.inputs)) != (smaller.kind, smaller.stride, len(smaller.inputs)):
        return False
    if larger.op == "resize" and larger.output == smaller.output:
        return False
    if larger.op == "inverted_residual" and (larger.inputs[0] == larger.output) != (smaller.inputs[0] == smaller.output):
        return False
    return all(
        b >= s
        for big, small in zip((*larger.inputs, larger.output), (*smaller.inputs, smaller.output), strict=True)
        for b, s in zip(big, small, strict=True)
    )


def inversions(known: Mapping[Operation, tuple[float, float]]) -> tuple[Inversion, ...]:
    """All such pairs among these prices, each with half its 90 % interval, both in ms; the largest relative difference first."""
    alike: defaultdict[object, list[Operation]] = defaultdict(list)
    for operation in sorted(known):
        alike[operation.kind, operation.stride].append(operation)
    found: list[Inversion] = []
    for operations in alike.values():
        for smaller in operations:
            for larger in operations:
                (ms, half_width), (more_ms, more_half_width) = known[smaller], known[larger]
                if ms - more_ms > math.hypot(half_width, more_half_width) and does_more(larger, smaller):
                    found.append(Inversion(smaller, larger, ms, more_ms))
    return tuple(sorted(found, key=lambda pair: pair.larger_ms / pair.smaller_ms))


def table_inversions(table: LatencyTable) -> tuple[Inversion, ...]:
    """Those of a table's entries, whose intervals follow from their spreads as of the fewest rounds that an entry has."""
    return inversions({entry.operation: (entry.median_ms, entry.median_ms * half_width_from(entry.spread)) for entry in table.entries})

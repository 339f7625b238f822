"""Interpolate: a table of a resolution that was not measured, from the tables of two resolutions around it.

An operation's time is what it takes to begin (a launch, the ends of its loops, weights that are read once) and work in proportion to its pixels. So
its price is taken to be affine in its pixels, through the two points that were measured. Where the larger one costs more a pixel than the smaller,
features have outgrown a cache, and that line would begin below zero: there it is the power of the pixels that leads through both points, which lies
between the line and the price of the smaller's pixels. This is our choice: in published tables an affine law, fitted to each block, is 1 to 4 % off
inside its range and 4 to 12 % outside, so nothing is extrapolated. A lookup never interpolates: only this does, and each entry that it makes says so.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from segnas.arch import DEEPEST_LEVEL, Operation, Shape, size_at
from segnas.errors import IncompatibleError, InputError
from segnas.latency import Calibration, Entry, LatencyTable, profile_command
from segnas.latency_tables.merge import at_speed_of, joint_provenance, require_alike, rounded
from segnas.latency_tables.store import content_sha256
from segnas.target import Target

SOURCE = "interpolated"
WIDER, LEAST_SPREAD, LEAST_SD = 1.5, 0.05, 0.03
"""How much less sure than its parents an interpolated figure is (our choice): spreads grow by the factor and by `LEAST_SPREAD`, the calibration's
standard deviation by the factor, to `LEAST_SD` at least."""
BENT = 0.014
"""What the law is off by where the larger size has twice the pixels of the smaller, four times that where it has four times as many: features that
outgrow a cache cost more a pixel. Measured with `cas-fast` at 256x512 on Zen 5, with lines alone: 1.2 % between 224x448 and 320x640, 5.8 % between
192x384 and 384x768, where the tail no longer fits into the last cache; 3.3 % since such operations follow a power."""


def interpolate(
    first: LatencyTable,
    second: LatencyTable,
    operations: Sequence[Operation],
    target: Target,
    *,
    graph_sha256: Callable[[Operation], str],
    allow: Sequence[str] = (),
) -> LatencyTable:
    """The table of these operations at the target's size, between two tables whose targets differ from it in height and width only, and in the
    fields of `allow`, which the provenance then names.

    An operation's counterpart at another size is the one whose features lie at the same levels; prices are those under the tables' corrections,
    without their scales, at the first's speed. Every entry's spread is wider than both its parents', and so is the calibration's `relative_sd`, the
    more the further the two sizes are apart; the scale is the mean of both, and no network stands behind it. `graph_sha256` hashes an operation's
    exported graph and is asked last.

    InputError for a size whose pixels are not between the tables', IncompatibleError for tables or a target that differ in anything else, or where a
    counterpart has no price: it names the operation and the command that measures it.
    """
    require_alike(first, second, target, but=("height", "width", *allow))
    _require_between(first.target, second.target, target)
    parents = [
        table.for_target(replace(target, height=table.target.height, width=table.target.width), allow)
        for table in (first, at_speed_of(second, first))
    ]
    low, high = sorted(parents, key=lambda table: _area(table.target))
    wanted = [operation for operation in dict.fromkeys(operations) if not operation.is_free]
    pairs = {o: (counterpart(o, target, low.target), counterpart(o, target, high.target)) for o in wanted}
    _require_prices(low, [near for near, _ in pairs.values()])
    _require_prices(high, [far for _, far in pairs.values()])
    entries = [_entry(o, low, high, *pairs[o], graph_sha256(o)) for o in sorted(wanted)]
    whole = _share(_area(target), _area(low.target), _area(high.target))
    digests = ", ".join(f"{content_sha256(table)} at {_size(table.target)}" for table in (first, second))
    return LatencyTable(
        first.space,
        target,
        tuple(entries),
        overhead_ms=rounded((1 - whole) * low.overhead_ms + whole * high.overhead_ms),
        calibration=Calibration(
            scale=(low.calibration.scale + high.calibration.scale) / 2,
            relative_sd=math.hypot(
                max(LEAST_SD, WIDER * max(low.calibration.relative_sd, high.calibration.relative_sd)),
                BENT * math.log2(_area(high.target) / _area(low.target)) ** 2,
            ),
        ),
        provenance=joint_provenance(low, high, {"source": SOURCE, "interpolated_from": digests}),
    )


def counterpart(operation: Operation, target: Target, other: Target) -> Operation:
    """The operation that stands in the same place at the other target's size: every feature at the same level, or of the same size at no level."""

    def moved(shape: Shape) -> Shape:
        level = level_of(shape, target)
        return shape if level is None else Shape(shape.channels, *size_at(level, other.height, other.width))

    return replace(operation, inputs=tuple(moved(shape) for shape in operation.inputs), output=moved(operation.output))


def level_of(shape: Shape, target: Target) -> int | None:
    """The level at which a feature of an input of the target's size has that height and width; None where there is none."""
    legal = (level for level in range(DEEPEST_LEVEL + 1) if 2**level <= min(target.height, target.width))
    return next((level for level in legal if size_at(level, target.height, target.width) == shape[1:]), None)


def _entry(operation: Operation, low: LatencyTable, high: LatencyTable, near: Operation, far: Operation, graph_sha256: str) -> Entry:
    parents = low.entry(near), high.entry(far)
    return Entry(
        operation=operation,
        kind=parents[0].kind,
        median_ms=rounded(_between((_pixels(near), _price_ms(low, near)), (_pixels(far), _price_ms(high, far)), _pixels(operation))),
        spread=rounded(WIDER * max(parent.spread for parent in parents) + LEAST_SPREAD),
        samples=sum(parent.samples for parent in parents),
        method=f"{SOURCE} {_size(low.target)},{_size(high.target)}",
        graph_sha256=graph_sha256,
        source=SOURCE,
    )


def _price_ms(table: LatencyTable, operation: Operation) -> float:
    return table.price_ms(operation) / table.calibration.scale


def _between(near: tuple[int, float], far: tuple[int, float], pixels: int) -> float:
    """The price in ms of so many pixels between two points of pixels and ms: affine, and a power where that would begin below zero."""
    (few, small), (many, large) = near, far
    if large * few <= small * many or few >= many:
        share = _share(pixels, few, many)
        return (1 - share) * small + share * large
    return small * (large / small) ** _share(math.log(pixels), math.log(few), math.log(many))


def _share(here: float, near: float, far: float) -> float:
    """How far `here` lies on the way from `near` to `far`; within 0 and 1, as sizes are rounded up at each level and nothing is extrapolated."""
    return 0.5 if near == far else min(max((here - near) / (far - near), 0.0), 1.0)


def _pixels(operation: Operation) -> int:
    return sum(shape.height * shape.width for shape in (*operation.inputs, operation.output))


def _area(target: Target) -> int:
    return target.height * target.width


def _size(target: Target) -> str:
    return f"{target.height}x{target.width}"


def _require_between(first: Target, second: Target, target: Target) -> None:
    if (first.height, first.width) == (second.height, second.width):
        raise InputError(f"both tables are of {_size(first)}; tables of two sizes are needed, with the wanted one between")
    low, high = sorted((first, second), key=_area)
    if not _area(low) <= _area(target) <= _area(high):
        raise InputError(
            f"size {_size(target)} was given, {_area(target)} pixels; these tables allow {_area(low)} ({_size(low)}) to {_area(high)} "
            f"({_size(high)}): measure it with `segnas profile`"
        )


def _require_prices(table: LatencyTable, operations: Iterable[Operation]) -> None:
    missing = table.missing(operations)
    if missing:
        raise IncompatibleError(
            f"the latency table of {table.space!r} at {_size(table.target)} has no entry for {len(missing)} operations that are interpolated from, "
            f"first {missing[0]}; measure them with `{profile_command(table.space, table.target)} --out TABLE.json`"
        )

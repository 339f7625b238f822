"""The picture of a latency table: prices against channels at each resolution, where networks spend their time, and predicted against measured.

Drawn like the pictures of a report (`segnas.figures`): matplotlib's object interface only, the same bytes for the same input.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from segnas.arch import Architecture
from segnas.errors import InputError
from segnas.figures import ACCENT, FAMILIES, INK, MUTED, PAPER, REST, SOFT, STYLE, Form, encoded, family_colour, plain_text
from segnas.latency import Entry, LatencyTable, Probe
from segnas.latency_tables.interpolate import level_of

MARKERS = "os^Dv*"  # a family has at most six operations
TOP_KINDS = 12


@dataclass(frozen=True)
class Priced:
    """A table and random networks of its space, at least one; InputError without, IncompatibleError where the table does not price one of them."""

    table: LatencyTable
    networks: tuple[Architecture, ...]

    def __post_init__(self) -> None:
        if not self.networks:
            raise InputError("a table was to be drawn without any network; at least 1 is needed")

    @cached_property
    def shares(self) -> dict[str, float]:
        """Part of the networks' summed price that each kind of operation has, the largest first; a call with nothing in it counts as one."""
        sums: defaultdict[str, float] = defaultdict(float)
        for network in self.networks:
            for operation, ms in self.table.estimate(network).per_operation:
                full = operation.op == "resize" and level_of(operation.output, self.table.target) == 0
                sums[f"{operation.kind}{' to full size' if full else ''}"] += ms
            sums["call"] += self.table.constant_ms
        total = math.fsum(sums.values())
        return {name: ms / total for name, ms in sorted(sums.items(), key=lambda item: (-item[1], item[0])) if ms > 0}

    @cached_property
    def margin(self) -> float:
        """How far the 90 % interval reaches above the estimate, relative to it: the median over the networks."""
        estimates = [self.table.estimate(network) for network in self.networks]
        return median(estimate.high_ms / estimate.total_ms - 1 for estimate in estimates)

    @cached_property
    def fitted(self) -> tuple[tuple[float, float], ...]:
        """Predicted and measured ms of each network that the table was calibrated with."""
        return tuple((self._predicted_ms(probe), probe.measured_ms) for probe in self.table.calibration.probes)

    def _predicted_ms(self, probe: Probe) -> float:
        if not probe.counts:
            return self.table.calibration.scale * probe.sum_ms
        by_digest = {entry.operation.digest: entry.operation for entry in self.table.entries}
        return self.table.constant_ms + math.fsum(times * self.table.price_ms(by_digest[digest]) for digest, times in probe.counts)


@rc_context(STYLE)
def table_picture(shown: Priced, against: Priced | None = None, *, form: Form = "svg") -> bytes:
    """Three parts: (a) calibrated ms of each operation against its output channels, a panel a resolution; (b) the share of each kind in random
    networks' time; (c) predicted against measured ms of the calibration networks, which the fit knows, with the 90 % band.

    What belongs to `against` is hollow or grey.
    """
    tables = [shown] if against is None else [shown, against]
    figure = Figure(figsize=(11.4, 7.4), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    figure.suptitle("\n".join(_title(priced, index) for index, priced in enumerate(tables)), x=0.01, ha="left", fontsize=9, weight="bold")
    upper, lower = cast(Sequence[SubFigure], figure.subfigures(2, 1, height_ratios=(1.0, 1.1)))
    _draw_prices(upper, tables)
    left, right = lower.subplots(1, 2, width_ratios=(1.5, 1.0))
    _draw_shares(left, tables)
    _draw_calibration(right, tables)
    return encoded(figure, form)


def _title(priced: Priced, index: int) -> str:
    return plain_text(f"{'against ' if index else ''}{priced.table.space} on {priced.table.target}")


def _draw_prices(upper: SubFigure, tables: Sequence[Priced]) -> None:
    """One panel a resolution and the key beside them; a line joins a kind's prices, averaged over what it reads, where it has several widths."""
    by_level: defaultdict[int, list[tuple[int, Entry]]] = defaultdict(list)
    for index, priced in enumerate(tables):
        for entry in priced.table.entries:
            level = level_of(entry.operation.output, priced.table.target)
            by_level[-1 if level is None else level].append((index, entry))
    columns = len(by_level)
    panels: list[Axes] = list(upper.subplots(1, columns + 1, squeeze=False, width_ratios=(*(1.0,) * columns, 0.9)).ravel())
    for panel, (level, entries) in zip(panels, sorted(by_level.items()), strict=False):
        points: defaultdict[tuple[int, str, str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for index, entry in entries:
            operation = entry.operation
            key = (index, operation.op, str(operation.kind), operation.stride)
            points[key][operation.output.channels].append(tables[index].table.price_ms(operation))
        for (index, op, _, _), by_width in sorted(points.items()):
            style = _marker(op, hollow=index == 1)
            widths = sorted(by_width)
            panel.plot(widths, [fmean(by_width[width]) for width in widths], color=family_colour(op), linewidth=0.7, alpha=0.6)
            panel.plot([w for w in widths for _ in by_width[w]], [ms for w in widths for ms in by_width[w]], **style)
        _dress(panel, level, tables, sorted({entry.operation.output.channels for _, entry in entries}))
    panels[0].set_ylabel("ms")
    panels[-1].set_axis_off()
    ops = sorted({entry.operation.op for entries in by_level.values() for _, entry in entries}, key=lambda op: (family_colour(op), op))
    panels[-1].legend(handles=[Line2D([], [], label=op, **_marker(op)) for op in ops], loc="center left", title="operation")


def _dress(panel: Axes, level: int, tables: Sequence[Priced], widths: Sequence[int]) -> None:
    """Title, scales and ticks of one resolution; `level` -1 stands for sizes that belong to no level."""
    targets = [priced.table.target for priced in tables]
    sizes = dict.fromkeys(f"{-(-target.height // 2**level)}x{-(-target.width // 2**level)}" for target in targets) if level >= 0 else {}
    panel.set_title(f"1/{2**level}: {', '.join(sizes)}" if level >= 0 else "other sizes", color=INK)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.margins(x=0.25, y=0.12)
    panel.set_xticks(widths, [str(width) for width in widths], rotation=45 if len(widths) > 4 else 0)
    panel.set_xticks([], minor=True)
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    panel.set_xlabel("output channels")
    panel.tick_params(length=0)


def _draw_shares(axes: Axes, tables: Sequence[Priced]) -> None:
    """Bars from the top; the kinds beyond `TOP_KINDS` of the first table in one. A second table's bars are grey and thinner."""
    first = tables[0].shares
    names = [*first, *(name for priced in tables[1:] for name in priced.shares if name not in first)]
    shown, rest = names[:TOP_KINDS], names[TOP_KINDS:]
    rows = [(name, [priced.shares.get(name, 0.0) for priced in tables]) for name in shown]
    if rest:
        rows.append((f"other: {len(rest)} kinds", [math.fsum(priced.shares.get(name, 0.0) for name in rest) for priced in tables]))
    for place, (name, parts) in enumerate(rows):
        axes.barh(place, 100 * parts[0], height=0.5, color=family_colour(name.partition(" ")[0].partition("(")[0]))
        for part in parts[1:]:
            axes.barh(place + 0.36, 100 * part, height=0.2, color=REST)
        axes.text(100 * max(parts), place, "  " + ", ".join(f"{100 * part:.1f} %" for part in parts), va="center", fontsize=7.5, color=MUTED)
    axes.set_yticks(range(len(rows)), [plain_text(name) for name, _ in rows], color=INK)
    axes.set_ylim(len(rows) - 0.3, -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel("% of the time")
    axes.set_title(f"Where the time of {len(tables[0].networks)} random networks goes", color=INK)
    axes.grid(axis="y", visible=False)
    axes.tick_params(length=0)


def _draw_calibration(axes: Axes, tables: Sequence[Priced]) -> None:
    """The networks that the tables were calibrated with, and the first table's band around equality."""
    axes.set_title("Calibration networks, which the fit knows", color=INK)
    axes.tick_params(length=0)
    values = [value for priced in tables for pair in priced.fitted for value in pair]
    if not values:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no calibration networks", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        return
    ends = (0.95 * min(values), 1.05 * max(values))
    margin = tables[0].margin
    axes.fill_between(ends, [x / (1 + margin) for x in ends], [x * (1 + margin) for x in ends], color=SOFT, linewidth=0)
    axes.plot(ends, ends, color=MUTED, linewidth=0.8)
    for index, priced in enumerate(tables):
        x, y = [predicted for predicted, _ in priced.fitted], [measured for _, measured in priced.fitted]
        axes.plot(x, y, "o", markersize=4, color=ACCENT, markerfacecolor=PAPER if index else ACCENT)
    axes.set_xlim(ends)
    axes.set_xlabel("predicted, ms")
    axes.set_ylabel("measured, ms")
    axes.legend(handles=[Patch(color=SOFT, label=f"90 % interval, up to {100 * margin:.1f} % above")], loc="upper left")


def _marker(op: str, *, hollow: bool = False) -> dict[str, Any]:
    """Line properties of an operation's points: the family's colour, and a shape of its own within the family."""
    colour = family_colour(op)
    members = sorted(next((ops for hue, ops in FAMILIES.values() if hue == colour), {op}))
    place = members.index(op) if op in members else 0
    return {
        "linestyle": "",
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 4.5,
        "color": colour,
        "markerfacecolor": PAPER if hollow else colour,
    }

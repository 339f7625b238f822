"""The drawing of a network: depth from left to right, one band a resolution, a box a node, and edges that never cross a box.

Where everything stands is `architecture_layout`'s; here it is drawn. Units are inches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Rectangle
from matplotlib.path import Path

from segnas.arch import Architecture, Operation, size_at
from segnas.architecture_layout import BOX, GAP, PAD, Layout, Place, rows_of
from segnas.figures import FAMILIES, INK, MUTED, PAPER, RULE, STYLE, Form, encoded, family_colour
from segnas.kinds import Kind

LEFT, EDGE, TITLE, KEY = 0.78, 0.30, 0.22, 0.36
_EDGE_COLOUR, _STRIPE, _BAND = "#93a1b0", "#f0f4f8", "#e9edf2"


@rc_context(STYLE)
def architecture_picture(
    architecture: Architecture,
    height: int,
    width: int,
    prices: Mapping[Operation, float] | None = None,
    *,
    wrap_inches: float | None = None,
    form: Form = "svg",
) -> bytes:
    """The network at an input of height x width; a box says operation, channels and, where `prices` (ms) are given, milliseconds.

    As wide as the network is deep, or broken into rows of at most `wrap_inches`, as music is: an edge that leaves a row is
    numbered, and goes on from that number at the left of a later row.
    """
    operations = architecture.operations(height, width)
    costs = [None if prices is None or o.is_free else prices.get(o) for o in operations]
    layout = Layout(architecture, tuple(_texts(o, up, ms) for o, up, ms in zip(operations, (n.up for n in architecture.nodes), costs, strict=True)))
    rows = rows_of(layout, None if wrap_inches is None else wrap_inches - LEFT - 0.05 - 2 * EDGE + GAP)
    ends = {row[-1] for row in rows}
    cut = sorted({one for one, _ in layout.segments if one[1] in ends}, key=lambda place: (place[1], place[0]))
    marks = {source: number for number, source in enumerate(dict.fromkeys(source for source, _ in cut), 1)}
    systems = [_System(layout, columns, (height, width), marks) for columns in rows]
    across = LEFT + 0.05 + max(system.right - system.left for system in systems)
    down = sum(system.high + 0.16 for system in systems) + 0.03 + KEY
    figure = Figure(figsize=(max(across, 8.4), down))
    top = 0.03
    for system in systems:
        span = system.right - system.left
        axes = figure.add_axes((LEFT / figure.get_figwidth(), 1 - (top + system.high) / down, span / figure.get_figwidth(), system.high / down))
        axes.set_axis_off()
        axes.set_xlim(system.left, system.right)
        axes.set_ylim(system.high, 0)
        system.draw(axes, costs)
        top += system.high + 0.16
    _key(figure, max((ms for ms in costs if ms is not None), default=None))
    return encoded(figure, form)


@dataclass(frozen=True)
class _System:
    """One row of the picture: some columns in a row, with only the bands and the heights that they need."""

    layout: Layout
    columns: range
    size: tuple[int, int]
    marks: Mapping[int, int]

    @cached_property
    def left(self) -> float:
        return self.layout.lefts[self.columns[0]] - EDGE

    @cached_property
    def right(self) -> float:
        return self.layout.lefts[self.columns[-1] + 1] - GAP + EDGE

    @cached_property
    def titles(self) -> float:
        rows = [row for _, first, last, _, row in self.layout.groups if first <= self.columns[-1] and last >= self.columns[0]]
        return TITLE * (max(rows, default=-1) + 1) + 0.04

    @cached_property
    def segments(self) -> tuple[tuple[Place, Place], ...]:
        return tuple(piece for piece in self.layout.segments if any(place[1] in self.columns for place in piece))

    @cached_property
    def bands(self) -> dict[int, tuple[float, float, float]]:
        """Level to (top, bottom, what to add to a height inside the band)."""
        seen = [place for place in self.layout.places if place[1] in self.columns]
        result, top = dict[int, tuple[float, float, float]](), self.titles
        for level in sorted({*map(self.layout.level, seen)}):
            spans = [(self.layout.heights[p], self.layout.tall(p) / 2) for p in seen if self.layout.level(p) == level]
            low, high = min(y - half for y, half in spans), max(y + half for y, half in spans)
            bottom = top + max(high - low, BOX) + 2 * PAD
            result[level] = (top, bottom, (top + bottom) / 2 - (low + high) / 2)
            top = bottom
        return result

    @property
    def high(self) -> float:
        return max(bottom for _, bottom, _ in self.bands.values()) + 0.02

    def y(self, place: Place) -> float:
        return self.layout.heights[place] + self.bands[self.layout.level(place)][2]

    def draw(self, axes: Axes, costs: Sequence[float | None]) -> None:
        self._draw_ground(axes)
        entering: dict[Place, list[int]] = {}
        for one, other in self.segments:
            if one[1] not in self.columns:
                entering.setdefault(other, []).append(one[0])
            elif other[1] in self.columns:
                self._draw_edge(axes, one, other)
        for one in dict.fromkeys(one for one, other in self.segments if other[1] not in self.columns):
            self._draw_cut(axes, self._start(one), self.right - 0.10, (self.y(one), self.y(one)), self.marks[one[0]])
        for other, sources in entering.items():
            for index, source in enumerate(sources):
                beside = self.y(other) + 0.18 * (index - (len(sources) - 1) / 2)
                self._draw_cut(axes, self._end(other), self.left + 0.10, (self.y(other), beside), self.marks[source])
        largest = max((ms for ms in costs if ms is not None), default=0.0) or 1.0
        for node, column in enumerate(self.layout.columns):
            if column in self.columns:
                self._draw_box(axes, node, (costs[node] or 0.0) / largest)

    def _draw_ground(self, axes: Axes) -> None:
        for name, first, last, alone, row in self.layout.groups:
            start, end = self.layout.sides(max(first, self.columns[0]))[0] - 0.11, self.layout.sides(min(last, self.columns[-1]))[1] + 0.11
            if first > self.columns[-1] or last < self.columns[0]:
                continue
            if alone:
                axes.add_patch(Rectangle((start, 0), end - start, self.high, facecolor=_STRIPE, linewidth=0, zorder=0))
            base = TITLE * (row + 1) - 0.02
            axes.plot([start + 0.03, end - 0.03], [base, base], color=MUTED, linewidth=0.7, zorder=1)
            axes.text(start + 0.05, base - 0.06, name, color=MUTED, fontsize=7.8, weight="bold", va="baseline", clip_on=False)
        for index, (level, (top, bottom, _)) in enumerate(self.bands.items()):
            if index:
                axes.plot([self.left, self.right], [top, top], color=RULE, linewidth=0.8, zorder=0.5)
            axes.add_patch(
                Rectangle((self.left - LEFT + 0.04, top + 0.03), LEFT - 0.14, bottom - top - 0.06, facecolor=_BAND, linewidth=0, clip_on=False)
            )
            middle, x = (top + bottom) / 2, self.left - LEFT / 2 - 0.03
            axes.text(x, middle - 0.03, f"1/{2**level}", ha="center", va="bottom", weight="bold", fontsize=8.5)
            axes.text(x, middle + 0.03, "{}×{}".format(*size_at(level, *self.size)), ha="center", va="top", color=MUTED, fontsize=6.6)

    def _draw_edge(self, axes: Axes, one: Place, other: Place) -> None:
        """A horizontal run out of the box or along the lane's column, then a bend in the gap, then a run up to the next box."""
        y0, y1 = self.y(one), self.y(other)
        x0, x1 = self.layout.sides(one[1])[1], self.layout.sides(other[1])[0]
        half = (x0 + x1) / 2
        codes = [Path.MOVETO, Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
        path = Path([(self._start(one), y0), (x0, y0), (half, y0), (half, y1), (x1, y1), (self._end(other), y1)], codes)
        axes.add_patch(PathPatch(path, facecolor="none", edgecolor=_EDGE_COLOUR, linewidth=1.0, capstyle="round", zorder=1.5))

    def _draw_cut(self, axes: Axes, inner: float, outer: float, ys: tuple[float, float], mark: int) -> None:
        """An edge to or from another row: a run to this row's end, where a number names the feature."""
        axes.plot([inner, outer], ys, color=_EDGE_COLOUR, linewidth=1.0, zorder=1.5)
        axes.add_patch(Circle((outer, ys[1]), 0.083, facecolor=PAPER, edgecolor=_EDGE_COLOUR, linewidth=0.8, zorder=2))
        axes.text(outer, ys[1] + 0.032, str(mark), ha="center", va="baseline", fontsize=6.2, color=MUTED, zorder=3)

    def _start(self, place: Place) -> float:
        """Where an edge starts: a box's right side, or the left side of a lane's column."""
        if self.layout.is_box(place):
            return self._middle(place[1]) + self.layout.wide(place[0]) / 2
        return self.layout.sides(place[1])[0]

    def _end(self, place: Place) -> float:
        """Where an edge ends: the left side of a box, or of a lane's column."""
        if self.layout.is_box(place):
            return self._middle(place[1]) - self.layout.wide(place[0]) / 2
        return self.layout.sides(place[1])[0]

    def _draw_box(self, axes: Axes, node: int, part: float) -> None:
        """Name, detail and, along the lower side, a bar as long as the node's part of the slowest one's time."""
        place = (node, self.layout.columns[node])
        x, y, wide = self._middle(place[1]), self.y(place), self.layout.wide(node)
        colour = family_colour(self.layout.architecture.nodes[node].op)
        corner, style = (x - wide / 2, y - BOX / 2), "round,pad=0,rounding_size=0.045"
        axes.add_patch(FancyBboxPatch(corner, wide, BOX, boxstyle=style, facecolor=PAPER, edgecolor="none", zorder=2))
        axes.add_patch(FancyBboxPatch(corner, wide, BOX, boxstyle=style, facecolor=colour, alpha=0.10, edgecolor="none", zorder=2.1))
        if part:
            axes.add_patch(Rectangle((corner[0] + 0.03, y + BOX / 2 - 0.062), (wide - 0.06) * part, 0.042, facecolor=colour, linewidth=0, zorder=2.2))
        axes.add_patch(FancyBboxPatch(corner, wide, BOX, boxstyle=style, facecolor="none", edgecolor=colour, linewidth=0.9, zorder=2.3))
        name, detail = self.layout.names[node]
        axes.text(x, y - 0.035, name, ha="center", va="baseline", fontsize=7.8, color=INK, zorder=3)
        axes.text(x, y + 0.095, detail, ha="center", va="baseline", fontsize=6.8, color=MUTED, zorder=3)

    def _middle(self, column: int) -> float:
        return sum(self.layout.sides(column)) / 2


def _key(figure: Figure, slowest: float | None) -> None:
    """The families' colours and what a box says, along the lower edge."""
    width, height = figure.get_size_inches()
    x, y = 0.1, 0.13
    for name, (colour, _) in FAMILIES.items():
        figure.add_artist(Rectangle((x / width, (y - 0.01) / height), 0.13 / width, 0.11 / height, facecolor=colour, linewidth=0))
        figure.text((x + 0.19) / width, y / height, name, fontsize=7.5, color=MUTED)
        x += 1.02
    text = "channels" if slowest is None else f"channels · ms; a full bar is {slowest:.2f} ms"
    figure.text(x / width, y / height, f"in a box: {text}", fontsize=7.5, color=MUTED)


def _texts(operation: Operation, up: int, ms: float | None) -> tuple[str, str]:
    """A box's two lines: the operation in a few letters, then its channels and milliseconds."""
    name = short_name(operation.kind) + (f" /{operation.stride}" if operation.stride > 1 else f" ×{up}" if up > 1 else "")
    return name, str(operation.output.channels) + ("" if ms is None else f" · {ms:.2f}")


def short_name(kind: Kind) -> str:
    """An operation in a few letters: what can stand in a box, and in the margin of a figure."""
    given = dict(kind.attributes)
    window = f" {given['kernel']}×{given['kernel']}" if "kernel" in given else ""
    dilation = given.get("dilation", (1, 1))
    if isinstance(dilation, tuple) and max(dilation) > 1:
        window += f" d{dilation[0]}" if len(set(dilation)) == 1 else " d" + "·".join(map(str, dilation))
    window += " twice" if given.get("repeats") == 2 else ""
    match kind.op:
        case "conv":
            return f"conv{window}" + (f" g{given['groups']}" if given["groups"] != 1 else "")
        case "separable":
            return f"sep{window}"
        case "max_pool" | "avg_pool":
            return f"{kind.op[:3]}{window}"
        case "double_conv":
            return f"conv{window} twice"
        case "zoomed_conv":
            return f"zoom {given['zoom']}{window}"
        case "inverted_residual":
            return f"inv{window} e{given['expansion']}" + (" se" if given["squeeze"] else "")
        case "pyramid_pool":
            return "pyramid " + "·".join(map(str, kind.integers("bins")))
        case "grid_pool":
            return "grid " + "×".join(map(str, kind.integers("grid")))
        case "factorised_reduce":
            return "halves"
        case "aspp":
            return "aspp " + "·".join(map(str, kind.integers("rates")))
        case "add":
            return "+"
        case op:
            return op

"""The pictures of a search, drawn from its trace: how its decisions came about, and how its losses and its latency went.

Drawn like the pictures of a report (`segnas.figures`): matplotlib's object interface only, the same bytes for the same input.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from segnas.architecture_picture import short_name
from segnas.errors import InputError
from segnas.figures import ACCENT, FAMILIES, INK, MUTED, STYLE, Form, encoded, plain_text, shortened
from segnas.report import Curve
from segnas.search.slots import Choice, Link, Widths
from segnas.search.space import Space
from segnas.search.trace import History

COLUMNS, POINTS, MOST_NAME = 240, 300, 32
WIDTH, LETTER = 11.4, 0.066
ROW, TALLEST, LEAST_LABEL = 0.19, 8.0, 0.14
ROUND = [1, 2, 5, 10]
SCALE = LinearSegmentedColormap.from_list("chosen", ["#f4f7fb", "#b9d3ec", ACCENT, "#12355b"])
COLOURS = (ACCENT, FAMILIES["zoomed"][0], FAMILIES["context"][0])


def option_names(space: Space) -> dict[str, tuple[str, ...]]:
    """What each option of each decision stands for, in a few letters: an operation, a number of channels, where a link comes from."""
    names: dict[str, dict[int, list[str]]] = {decision: {} for decision in space.decisions}
    for slot in space.slots:
        if isinstance(slot.kind, Choice):
            for option, kind in enumerate(slot.kind.options):
                names[slot.kind.decision].setdefault(option, []).append(short_name(kind))
        if isinstance(slot.channels, Widths):
            for option, width in enumerate(slot.channels.options):
                names[slot.channels.decision].setdefault(option, []).append(f"{width} ch")
        for entry in slot.inputs:
            if isinstance(entry, Link) and entry.decision is not None:
                source = space.slots[entry.source].label
                names[entry.decision].setdefault(entry.option, []).append(f"from {source}" if source else "on")
    return {
        decision: tuple(", ".join(dict.fromkeys(names[decision].get(option, ["off"]))) for option in range(size))
        for decision, size in space.decisions.items()
    }


@rc_context(STYLE)
def decisions_picture(history: History, chosen: Mapping[str, int], names: Mapping[str, Sequence[str]], *, form: Form = "svg") -> bytes:
    """A row a decision, from the first step to the last: how probable the option was that was chosen in the end.

    `chosen` is one option a decision, `names` what the options stand for; the chosen one and its last probability stand to the right of its row.
    InputError where no probabilities were kept, or those of other decisions are asked for.
    """
    if not history.kept or set(chosen) != set(history.header.decisions):
        reason = "other decisions are asked for" if history.kept else "its trace holds no probabilities"
        raise InputError(f"the decisions of the search of {history.header.space!r} cannot be drawn: {reason}")
    decisions, last = history.header.decisions, history.kept[-1]
    labels = [(name, names[name][chosen[name]], last[1][name][chosen[name]]) for name in decisions]
    labels = [(shortened(name, MOST_NAME), shortened(option, MOST_NAME), probability) for name, option, probability in labels]
    place = _Place(len(labels), max(len(name) for name, *_ in labels), max(len(option) for _, option, _ in labels))
    figure = Figure(figsize=(WIDTH, place.height))
    axes = figure.add_axes(place.axes)
    values, first = _columns(history, chosen), history.kept[0][0]
    picture = axes.imshow(
        values,
        cmap=SCALE,
        norm=Normalize(0, max(0.1, math.ceil(10 * values.max() - 1e-9) / 10)),
        aspect="auto",
        interpolation="none",
        extent=(first, max(last[0], first + 1), len(labels) - 0.5, -0.5),
    )
    axes.set_title("Probability of the option that was chosen in the end", color=INK, pad=7)
    _dress(axes, place, labels)
    bar = figure.colorbar(picture, cax=figure.add_axes(place.bar), orientation="horizontal", ticks=[0, picture.norm.vmax])
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, pad=1, labelsize=7)
    return encoded(figure, form)


@rc_context(STYLE)
def progress_picture(history: History, *, form: Form = "svg") -> bytes:
    """The losses in one panel, expected and decoded latency with the budget in another, and a panel for each other value of the trace.

    Losses are means over stretches of steps where there are many; everything else is the last value of each stretch.
    """
    losses = [curve for curve in history.curves if curve.name.startswith("loss")]
    latencies = [curve for curve in history.curves if curve.name.endswith("latency, ms")]
    others = [curve for curve in history.curves if curve not in losses and curve not in latencies]
    groups = [*(("loss", losses),) * bool(losses), *(("latency, ms", latencies),) * bool(latencies), *((curve.name, [curve]) for curve in others)]
    columns = min(3, max(1, len(groups)))
    rows = max(1, math.ceil(len(groups) / columns))
    figure = Figure(figsize=(WIDTH if columns == 3 else 3.8 * columns, 2.1 * rows + 0.1), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08))
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for panel, (title, curves) in zip(panels, groups, strict=False):
        _draw(panel, title, curves, history.header.budget_ms if title == "latency, ms" else None)
        panel.set_xlim(0, max(1, history.steps[-1].step))
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    return encoded(figure, form)


@dataclass(frozen=True)
class _Place:
    """Where the parts of the heat map stand, in inches, for so many rows and labels of so many letters."""

    decisions: int
    letters: int
    names: int

    @property
    def rows(self) -> float:
        return min(TALLEST, ROW * self.decisions)

    @property
    def height(self) -> float:
        return self.rows + 0.75

    @property
    def left(self) -> float:
        return LETTER * self.letters + 0.15

    @property
    def inner(self) -> float:
        return WIDTH - self.left - 0.55 - LETTER * self.names

    @property
    def axes(self) -> tuple[float, float, float, float]:
        return self.left / WIDTH, 0.42 / self.height, self.inner / WIDTH, self.rows / self.height

    @property
    def bar(self) -> tuple[float, float, float, float]:
        """Above the right part of the map."""
        return (self.left + self.inner - 2.1) / WIDTH, 1 - 0.15 / self.height, 2.0 / WIDTH, 0.09 / self.height

    @property
    def labelled(self) -> range:
        """Rows that have room for a label."""
        return range(0, self.decisions, math.ceil(LEAST_LABEL * self.decisions / self.rows))


def _dress(axes: Axes, place: _Place, labels: Sequence[tuple[str, str, float]]) -> None:
    """Axes of the heat map: on the left the decisions, on the right the last probability and the name of what was chosen."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=ROUND))
    axes.set_xlabel("steps done", fontsize=7.5, labelpad=2)
    axes.set_yticks(place.labelled, [plain_text(labels[row][0]) for row in place.labelled], color=INK)
    number, name, across = 1 + 0.10 / place.inner, 1 + 0.44 / place.inner, axes.get_yaxis_transform()
    axes.text(number, 1 + 0.10 / place.rows, "last, chosen", transform=axes.transAxes, color=MUTED, fontsize=7.5)
    for row in place.labelled:
        _, option, probability = labels[row]
        axes.text(number, row, f"{probability:.2f}", transform=across, va="center_baseline", color=MUTED, fontsize=7.5)
        axes.text(name, row, plain_text(option), transform=across, va="center_baseline", color=INK, fontsize=7.5)


def _columns(history: History, chosen: Mapping[str, int]) -> NDArray[np.float64]:
    """(decisions, columns): at equal distances of steps, what was kept last."""
    steps = np.array([step for step, _ in history.kept])
    values = np.array([[kept[name][chosen[name]] for _, kept in history.kept] for name in history.header.decisions])
    count = min(COLUMNS, max(1, int(steps[-1] - steps[0])))
    asked = steps[0] + (steps[-1] - steps[0]) * (np.arange(count) + 1) / count
    return values[:, np.searchsorted(steps, asked, side="right") - 1]


def _draw(panel: Axes, title: str, curves: Sequence[Curve], budget_ms: float | None) -> None:
    """One panel: its curves, each in its colour and with its last value, and the budget as a line."""
    keyed = len(curves) > 1 or budget_ms is not None
    panel.set_title(plain_text(title), color=INK, pad=16 if keyed else None)
    for colour, curve in zip(COLOURS * len(curves), curves, strict=False):
        thin = _thinned(curve, mean=title == "loss")
        name = curve.name.removeprefix("loss").removeprefix(" on ").removesuffix("latency, ms").strip()
        last = f"{thin.values[-1]:.4g}"
        panel.plot(thin.steps, thin.values, color=colour, linewidth=1.3, label=plain_text(f"{name} {last}"))
        panel.plot(thin.steps[-1], thin.values[-1], "o", color=colour, markersize=3.5, clip_on=False)
        if not keyed:
            panel.set_title(last, loc="right", color=colour, weight="bold")
    if budget_ms is not None:
        panel.axhline(budget_ms, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=f"budget {budget_ms:.4g}")
    panel.margins(y=0.12)
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND))
    panel.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND))
    panel.tick_params(length=0)
    if keyed:
        panel.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=3, handlelength=1.3, handletextpad=0.4, columnspacing=1.0, borderpad=0.1)


def _thinned(curve: Curve, *, mean: bool) -> Curve:
    """At most `POINTS` points, each standing for a stretch: its last step, with its mean or its last value."""
    width = max(1, math.ceil(len(curve.steps) / POINTS))
    stretches = [slice(start, start + width) for start in range(0, len(curve.steps), width)]
    values = [math.fsum(part) / len(part) if mean else part[-1] for part in (curve.values[stretch] for stretch in stretches)]
    return Curve(curve.name, tuple(curve.steps[stretch][-1] for stretch in stretches), tuple(values))

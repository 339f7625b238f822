"""Scatter plots of networks: clouds of points a source, a panel a quantity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from segnas.errors import InputError
from segnas.figures import ACCENT, INK, MISSED, MUTED, PAPER, STYLE, Form, encoded

LOOKS = (("o", ACCENT, ACCENT), ("o", MUTED, PAPER), ("D", MISSED, MISSED))
"""Marker, edge and face of the clouds, in order."""
COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Cloud:
    """The points of one source; `names` are written beside them, one a point where any is given."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One scatter plot; `front` are points that a line joins in steps, where there is one."""

    title: str
    x_label: str
    clouds: tuple[Cloud, ...]
    front: tuple[tuple[float, float], ...] = ()


@rc_context(STYLE)
def panels_picture(panels: Sequence[Panel], y_label: str, *, form: Form = "png") -> bytes:
    """The panels three in a row, or one larger; all share the axis `y_label`. InputError for none."""
    if not panels:
        raise InputError("no panel was given to draw; at least 1 is needed")
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (6.5, 4.2) if len(panels) == 1 else (3.8 * columns, 3.0 * rows)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=True).ravel())
    for number, (place, panel) in enumerate(zip(axes, panels, strict=False)):
        _draw(place, panel)
        if number % columns == 0:
            place.set_ylabel(y_label)
    for place in axes[len(panels) :]:
        place.set_visible(False)
    labels = dict.fromkeys(cloud.label for panel in panels for cloud in panel.clouds)
    looks = {cloud.label: LOOKS[index % len(LOOKS)] for panel in panels for index, cloud in enumerate(panel.clouds)}
    figure.legend(handles=[_key(label, looks[label]) for label in labels], loc="outside lower center", ncols=len(labels))
    return encoded(figure, form)


def _draw(axes: Axes, panel: Panel) -> None:
    for (marker, edge, face), cloud in zip(LOOKS * len(panel.clouds), panel.clouds, strict=False):
        axes.plot(cloud.x, cloud.y, marker, markersize=4.5, markeredgecolor=edge, markerfacecolor=face)
        for name, x, y in zip(cloud.names, cloud.x, cloud.y, strict=False):
            axes.annotate(name.replace("$", r"\$"), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7, color=MUTED)
    if panel.front:
        axes.step([x for x, _ in panel.front], [y for _, y in panel.front], where="post", color=ACCENT, linewidth=1.0, zorder=1)
    axes.set_title(panel.title.replace("$", r"\$"), color=INK)
    axes.set_xlabel(panel.x_label)
    axes.margins(0.08)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(length=0)


def _key(label: str, look: tuple[str, str, str]) -> Line2D:
    marker, edge, face = look
    return Line2D([], [], linestyle="", marker=marker, markersize=4.5, markeredgecolor=edge, markerfacecolor=face, label=label)

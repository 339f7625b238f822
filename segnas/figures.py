"""The pictures of a report, as SVG or PNG bytes: one calm style, the same bytes for the same input.

Only matplotlib's object interface is used: no window, no global state that outlives a call. The network's drawing is in `architecture_picture`.
Text stays text in an SVG; it is laid out with DejaVu Sans, which is wider than most screen fonts, so that another font still fits.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from segnas.errors import InputError
from segnas.report import Accuracy, Budget, Curve, Share

Form = Literal["svg", "png"]
Bytes = NDArray[np.uint8]

INK, MUTED, RULE, PAPER = "#1f2933", "#5f6c7b", "#dfe4ea", "#ffffff"
ACCENT, SOFT, REST, MET, MISSED = "#2b6cb0", "#dbe8f5", "#bcc5cf", "#2f7d54", "#b83a32"
FAMILIES: dict[str, tuple[str, frozenset[str]]] = {
    "convolution": ("#2b6cb0", frozenset({"stem", "conv", "double_conv", "shortcut", "factorised_reduce", "classifier"})),
    "depthwise": ("#2a8c82", frozenset({"separable", "inverted_residual"})),
    "zoomed": ("#b7791f", frozenset({"zoomed_conv"})),
    "context": ("#855a9e", frozenset({"pyramid_pool", "grid_pool", "aspp"})),
    "pooling": ("#c05c4b", frozenset({"max_pool", "avg_pool"})),
    "wiring": ("#74808d", frozenset({"image", "none", "skip", "resize", "add", "concat", "argmax"})),
}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "segnas",
}
PANEL_GAP, MOST_WIDTH = 6, 1100
TOP_SHARES, MOST_NAME = 12, 62


def family_colour(op: str) -> str:
    """Colour of an operation's family; that of wiring for a name that is no operation."""
    return next((colour for colour, members in FAMILIES.values() if op in members), FAMILIES["wiring"][0])


def family_milliseconds(shares: Sequence[Share]) -> list[tuple[str, float]]:
    """Milliseconds of each family that occurs, most first."""
    sums = {
        family: math.fsum(share.total_ms for share in shares if family_colour(_first_word(share.name)) == colour)
        for family, (colour, _) in FAMILIES.items()
    }
    return sorted(((family, ms) for family, ms in sums.items() if ms), key=lambda pair: -pair[1])


def encoded(figure: Figure, form: Form) -> bytes:
    """The figure's file: no date, no version, no random ids in it; PNG at 144 dots an inch."""
    stream = io.BytesIO()
    if form == "svg":
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return stream.getvalue().replace(b"'DejaVu Sans'", b"system-ui, 'DejaVu Sans', sans-serif")
    figure.savefig(stream, format="png", dpi=144, metadata={"Software": None})
    return stream.getvalue()


@rc_context(STYLE)
def milliseconds_picture(shares: Sequence[Share], *, form: Form = "svg") -> bytes:
    """Where the milliseconds go: a bar an operation, the largest twelve and everything else in one; each with its part of the sum."""
    ordered = sorted(shares, key=lambda share: (-share.total_ms, share.name))
    rows = [(share.name, f"×{share.count}" if share.count > 1 else "", share.total_ms) for share in ordered[:TOP_SHARES]]
    if rest := ordered[TOP_SHARES:]:
        rows.append((f"other: {len(rest)} kinds", f"×{sum(share.count for share in rest)}", math.fsum(share.total_ms for share in rest)))
    total = math.fsum(ms for *_, ms in rows) or 1.0
    largest = max((ms for *_, ms in rows), default=0.0) or 1.0
    figure, axes = _bare_axes(6.5, 0.36 * max(1, len(rows)) + 0.1, len(rows))
    for index, (name, count, ms) in enumerate(rows):
        axes.barh(index + 0.24, 1.0, height=0.2, color=RULE, alpha=0.45)
        axes.barh(index + 0.24, ms / largest, height=0.2, color=REST if index == TOP_SHARES else family_colour(_first_word(name)))
        axes.text(0, index - 0.02, plain_text(shortened(name)), va="center", fontsize=7.6)
        for right, text in ((0.80, count), (0.92, f"{ms:.2f} ms"), (1.0, f"{100 * ms / total:.0f} %")):
            axes.text(right, index - 0.02, text, ha="right", va="center", fontsize=7.6, color=MUTED)
    return encoded(figure, form)


@rc_context(STYLE)
def class_picture(accuracy: Accuracy, *, form: Form = "svg") -> bytes:
    """Intersection over union a class, best first, with the mean as a line; a class that occurs nowhere is named as such."""
    ordered = sorted(accuracy.classes, key=lambda score: -1.0 if score.iou is None else score.iou, reverse=True)
    figure, axes = _bare_axes(6.0, 0.235 * len(ordered) + 0.42, len(ordered), left=1.35, right=0.5, top=0.3)
    for index, score in enumerate(ordered):
        axes.text(-0.02, index, plain_text(score.name), ha="right", va="center")
        if score.iou is None:
            axes.text(0.01, index, "does not occur, not counted", va="center", color=MUTED, style="italic", fontsize=7.5)
            continue
        axes.barh(index, 1.0, height=0.56, color=RULE, alpha=0.45)
        axes.barh(index, score.iou, height=0.56, color=ACCENT)
        axes.text(1.09, index, f"{100 * score.iou:.1f}", ha="right", va="center")
    axes.plot([accuracy.miou] * 2, [-0.5, len(ordered) - 0.5], color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.text(accuracy.miou, -0.6, f"mIoU {100 * accuracy.miou:.1f} %", ha="center", va="bottom", weight="bold", fontsize=7.8)
    return encoded(figure, form)


@rc_context(STYLE)
def budget_picture(budget: Budget, *, form: Form = "svg") -> bytes:
    """The budget as a line, the predicted interval as a band, and each measurement in order: predicted hollow, measured filled and written out.

    A point beyond the budget has another colour and another shape.
    """
    final = ("engine as shipped", budget.predicted_ms, budget.measured_ms)
    rows = [*budget.measurements, final]
    figure = Figure(figsize=(6.5, 0.27 * len(rows) + 1.2))
    axes = _placed(figure, left=1.45, right=0.72, top=0.4, bottom=0.77)
    axes.axvspan(budget.predicted_low_ms, budget.predicted_high_ms, color=SOFT, linewidth=0)
    axes.axvline(budget.budget_ms, color=INK, linewidth=1.3)
    axes.annotate(
        f"budget {budget.budget_ms:.2f} ms", (budget.budget_ms, 1), xycoords=("data", "axes fraction"), xytext=(0, 4),
        textcoords="offset points", ha="center", weight="bold",
    )  # fmt: skip
    for index, (_, predicted, measured) in enumerate(rows):
        over = measured > budget.budget_ms
        axes.plot([predicted, measured], [index, index], color=MUTED, linewidth=0.9, zorder=2)
        axes.plot(predicted, index, "o", markersize=5.5, markerfacecolor=PAPER, markeredgecolor=ACCENT, zorder=3)
        axes.text(1.02, index, f"{measured:.2f} ms", transform=axes.get_yaxis_transform(), va="center", color=MISSED if over else INK)
        axes.plot(measured, index, "D" if over else "o", markersize=5.5, color=MISSED if over else MET, zorder=4)
    axes.set_yticks(range(len(rows)), [plain_text(shortened(name, 20)) for name, *_ in rows], color=INK)
    axes.get_yticklabels()[-1].set_fontweight("bold")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    values = [budget.budget_ms, budget.predicted_low_ms, budget.predicted_high_ms, *(ms for _, *pair in rows for ms in pair)]
    margin = 0.08 * (max(values) - min(values) or max(values))
    axes.set_xlim(min(values) - margin, max(values) + margin)
    axes.set_xlabel("median latency, ms", fontsize=7.5, labelpad=2)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(length=0)
    figure.legend(handles=_budget_key(), loc="lower left", ncols=2, columnspacing=1.2, handletextpad=0.5, borderaxespad=0.2)
    return encoded(figure, form)


@rc_context(STYLE)
def curves_picture(curves: Sequence[Curve], title: str, *, form: Form = "svg") -> bytes:
    """A small panel a curve, three in a row, on their own scales; the last value stands beside its point."""
    columns = min(3, max(1, len(curves)))
    rows = max(1, math.ceil(len(curves) / columns))
    figure = Figure(figsize=(11.4 if columns == 3 else 3.8 * columns, 1.85 * rows + 0.35), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.06))
    if title:
        figure.suptitle(plain_text(title), x=0.01, ha="left", fontsize=9, weight="bold")
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for panel, curve in zip(panels, curves, strict=False):
        panel.plot(curve.steps, curve.values, color=ACCENT, marker="o" if len(curve.steps) <= 12 else None, markersize=3)
        panel.set_title(plain_text(curve.name), color=INK)
        panel.margins(x=0.03, y=0.12)
        panel.locator_params(axis="both", nbins=5)
        panel.tick_params(length=0)
        for step, value in list(zip(curve.steps, curve.values, strict=False))[-1:]:
            panel.plot(step, value, "o", color=ACCENT, markersize=4)
            panel.set_title(f"{value:.4g}", loc="right", color=ACCENT, weight="bold")
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    return encoded(figure, form)


def triptych(image: Bytes, truth_colours: Bytes, prediction_colours: Bytes) -> bytes:
    """A PNG of input, ground truth and prediction side by side, at most 1100 pixels wide.

    All three are (H, W, 3), RGB, of one size. They shrink to fit and never grow; label colours are never mixed.
    """
    panels = (image, truth_colours, prediction_colours)
    if any(panel.shape != image.shape or panel.ndim != 3 or panel.shape[2] != 3 for panel in panels):
        raise InputError(f"a triptych takes three HxWx3 images of one size; given: {', '.join(str(panel.shape) for panel in panels)}")
    height, width = image.shape[:2]
    scale = min(1.0, (MOST_WIDTH - 2 * PANEL_GAP) / 3 / width)
    size = (max(1, int(width * scale)), max(1, round(height * scale)))
    resized = [cv2.resize(panel, size, interpolation=how) for panel, how in zip(panels, (cv2.INTER_AREA, *(cv2.INTER_NEAREST,) * 2), strict=True)]
    gap = np.full((size[1], PANEL_GAP, 3), 255, np.uint8)
    strip = np.concatenate([resized[0], gap, resized[1], gap, resized[2]], axis=1)
    _, content = cv2.imencode(".png", np.ascontiguousarray(strip[..., ::-1]))
    return content.tobytes()


def _budget_key() -> list[Line2D | Patch]:
    return [
        Line2D([], [], linestyle="", marker="o", markersize=5.5, markerfacecolor=PAPER, markeredgecolor=ACCENT, label="predicted"),
        Line2D([], [], linestyle="", marker="o", markersize=5.5, color=MET, label="measured, within budget"),
        Line2D([], [], linestyle="", marker="D", markersize=5.5, color=MISSED, label="measured, over budget"),
        Patch(color=SOFT, label="90 % interval predicted for the engine"),
    ]


def _placed(figure: Figure, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes with margins in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))


def _bare_axes(width: float, height: float, rows: int, *, left: float = 0.05, right: float = 0.05, top: float = 0.02) -> tuple[Figure, Axes]:
    """A figure of `rows` rows from the top, 0 to 1 across, without any axis."""
    figure = Figure(figsize=(width, height))
    axes = _placed(figure, left=left, right=right, top=top, bottom=0.03)
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(max(1, rows) - 0.5, -0.5)
    return figure, axes


def _first_word(name: str) -> str:
    found = re.match(r"\w+", name)
    return found.group() if found else ""


def shortened(name: str, most: int = MOST_NAME) -> str:
    """A name of at most so many letters: its beginning and its end."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def plain_text(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")

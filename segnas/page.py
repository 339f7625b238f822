"""A report as one HTML file that needs nothing else, and as a dozen lines for the terminal.

Pictures are inline SVG, or PNG in data URIs; there is no script, no font and no address in the page. Everything from the report is escaped.
"""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from segnas.arch import Operation
from segnas.architecture_picture import architecture_picture
from segnas.figures import budget_picture, class_picture, curves_picture, family_milliseconds, milliseconds_picture
from segnas.report import Curve, Floor, Report
from segnas.target import Target

Pairs = tuple[tuple[str, str], ...]
NETWORK_INCHES = 11.4


def page(
    report: Report,
    *,
    pictures: Sequence[tuple[str, bytes]] = (),
    prices: Mapping[Operation, float] | None = None,
    notes: Sequence[str] = (),
    search: Sequence[tuple[str, bytes]] = (),
) -> str:
    """The report as HTML.

    `pictures` are (caption, PNG of input, ground truth and prediction side by side); `prices` (ms) go into the network's drawing;
    `notes` are sentences that stand under the verdicts; `search` are (description, SVG) of drawings that stand for the search's curves.
    """
    budget, target = report.budget, report.engine.target
    network = architecture_picture(report.architecture, target.height, target.width, prices, wrap_inches=NETWORK_INCHES)
    drawn = [("" if i else "search", inline_svg(svg, f"search-{i}", description)) for i, (description, svg) in enumerate(search)]
    curves = drawn + [(title, _curves(group, title)) for title, group in _grouped(report.curves) if not (drawn and title == "search")]
    return template("report.html.j2").render(
        report=report,
        budget=budget,
        timing=report.timing,
        accuracy=report.accuracy,
        engine=report.engine,
        parity=report.engine.parity,
        target=target,
        verdicts=verdicts(report),
        warnings=warnings(report),
        notes=notes,
        floor=best_floor(report),
        target_pairs=target_pairs(target),
        network_svg=inline_svg(network, "network", f"the network {report.architecture_digest}"),
        budget_svg=inline_svg(budget_picture(budget), "budget", "budget, prediction and measurements"),
        shares_svg=inline_svg(milliseconds_picture(report.shares), "shares", "milliseconds by operation"),
        classes_svg=inline_svg(class_picture(report.accuracy), "classes", "intersection over union by class"),
        families=family_milliseconds(report.shares),
        shares_ms=sum(share.total_ms for share in report.shares),
        curves=curves,
        pictures=[(caption, _data_uri(png)) for caption, png in pictures],
        seconds_total=sum(seconds for _, seconds in report.seconds),
    )


def text_summary(report: Report) -> str:
    """The report in 10 to 15 lines of plain text, longer only by its warnings."""
    budget, timing, accuracy, target = report.budget, report.timing, report.accuracy, report.engine.target
    floor = best_floor(report)
    over = f", {points(accuracy.miou - floor.miou)} over {floor.name} ({percent(floor.miou)})" if floor else ""
    slowest = sorted(report.shares, key=lambda share: (-share.total_ms, share.name))[:3]
    lines = [
        ("report", f"{report.name}: {report.space}, {report.method}; {report.created}"),
        *(("pass" if ok else "FAIL" if ok is False else "note", text) for ok, text in verdicts(report)),
        ("asked", budget.asked),
        ("predicted", f"{budget.predicted_ms:.2f} ms, 90 % interval {budget.predicted_low_ms:.2f} to {budget.predicted_high_ms:.2f} ms"),
        ("speed", f"{timing.fps:.1f} FPS; median {timing.median_ms:.2f} ms, p99 {timing.p99_ms:.2f} ms, {timing.runs} runs, {timing.scope}"),
        ("accuracy", f"mIoU {percent(accuracy.miou)} on {accuracy.dataset} {accuracy.split}, {accuracy.images} images{over}"),
        ("engine", f"{report.engine.file}, {binary_bytes(report.engine.bytes)}, sha256 {report.engine.sha256[:16]}…"),
        ("target", str(target)),
        ("network", f"{report.architecture_digest}, {len(report.architecture.nodes)} nodes, {cost_text(report)}"),
        ("slowest", "; ".join(f"{share.name} {share.total_ms:.2f} ms" for share in slowest) or "not recorded"),
        ("pretrained", report.pretraining),
        *(("warning", warning) for warning in warnings(report)),
    ]
    return "\n".join(f"{name:<10}  {text}" for name, text in lines) + "\n"


def verdicts(report: Report) -> tuple[tuple[bool | None, str], ...]:
    """What was checked, in a sentence each: whether it held (None: not checked) and by how much."""
    budget, parity = report.budget, report.engine.parity
    met, difference = budget.ratio <= 1, abs(budget.measured_ms - budget.budget_ms)
    side = "under" if met else "over"
    gap = f"{difference:.2f} ms ({100 * abs(budget.ratio - 1):.1f} %) {side}"
    before = f" Trained before it and set aside: {', '.join(f'{ms:.2f}' for ms in budget.missed_ms)} ms." if budget.missed_ms else ""
    judged = f"Budget {'met' if met else 'missed'}: measured {budget.measured_ms:.2f} ms, {gap} the budget of {budget.budget_ms:.2f} ms."
    first = (met, judged + before)
    if parity is None:
        return first, (None, "Parity not checked: nothing shows that the engine computes what was trained.")
    what = f"{agreement(parity.argmax_agreement)} of pixels agree with {parity.reference} over {parity.images} images"
    broken = f"; {parity.non_finite} outputs are not finite" if parity.non_finite else ""
    asked = f"{agreement(parity.required_agreement)} asked for"
    return first, (parity.passed, f"Parity {'passed' if parity.passed else 'failed'}: {what}, {asked}{broken}.")


def warnings(report: Report) -> tuple[str, ...]:
    """What a reader must know before quoting a figure: the timing's own warnings, and figures that do not fit together."""
    found = list(report.timing.warnings)
    if abs(report.timing.median_ms / report.budget.measured_ms - 1) > 0.005:
        found.append(
            f"The benchmark's raw median is {report.timing.median_ms:.2f} ms. The budget is judged by {report.budget.measured_ms:.2f} ms: "
            "the same engine, normalised by a sentinel to the speed that the machine had when its table was measured."
        )
    if report.engine.architecture != report.architecture_digest:
        found.append(f"The engine was made from network {report.engine.architecture}, not from {report.architecture_digest} that is shown here.")
    return tuple(found)


def best_floor(report: Report) -> Floor | None:
    """The floor that is hardest to beat."""
    return max(report.floors, key=lambda floor: floor.miou, default=None)


def target_pairs(target: Target) -> Pairs:
    """Every field of a target as text, its options one by one."""
    plain = tuple((f.name.replace("_", " "), str(getattr(target, f.name))) for f in fields(target) if f.name != "options")
    return (*plain, *((f"option {name}", value) for name, value in target.options))


def cost_text(report: Report) -> str:
    """The network's three costs in a line."""
    cost = report.cost
    return f"{decimal(cost.macs)}MACs, {decimal(cost.parameters)} parameters, {binary_bytes(cost.activation_bytes)} activations"


def percent(part: float) -> str:
    """A fraction in per cent, one decimal."""
    return f"{100 * part:.1f} %"


def agreement(part: float) -> str:
    """A fraction near one in per cent, three decimals, cut off so that only what is whole reads 100."""
    return f"{int(part * 100_000 + 1e-6) / 1000:.3f} %"


def points(difference: float) -> str:
    """A difference of two fractions in percentage points."""
    return f"{100 * difference:+.1f} points".replace("-", "\N{MINUS SIGN}")


def decimal(number: float) -> str:
    """Three digits and a decimal prefix: 1.23 G, 4.56 M."""
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g} {prefix}"
    return f"{number:.3g} "


def binary_bytes(count: float) -> str:
    """Bytes in KiB, MiB or GiB."""
    for scale, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds as people say them: 14.1 s, 10 min 12 s, 3 h 0 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def inline_svg(svg: bytes, prefix: str, description: str) -> Markup:
    """An SVG file as an element of a page: no prolog, no namespaces, ids of its own, and words for those who do not see it."""
    text = svg.decode()
    text = re.sub(r"\s+xmlns(:\w+)?=\"[^\"]*\"", "", text[text.index("<svg") :])
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r'xlink:href="#', f'href="#{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def _grouped(curves: Iterable[Curve]) -> list[tuple[str, list[Curve]]]:
    """Curves by the part of their name before a slash, such as `search/loss`."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        head, slash, tail = curve.name.partition("/")
        groups.setdefault(head if slash else "", []).append(replace(curve, name=tail) if slash else curve)
    return list(groups.items())


def _curves(curves: Sequence[Curve], title: str) -> Markup:
    return inline_svg(curves_picture(curves, ""), f"curves-{re.sub(r'[^a-z0-9]+', '-', title.lower())}", f"curves {title}".strip())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@cache
def template(name: str) -> Template:
    """A template of a page, which escapes all that it is given, with the filters of this module."""
    environment = Environment(loader=PackageLoader("segnas"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    own: tuple[Callable[..., Any], ...] = (percent, agreement, points, decimal, binary_bytes, duration)
    environment.filters.update({function.__name__: function for function in own})
    return environment.get_template(name)

"""The page and the summary: every figure is in them, nothing is loaded from elsewhere, and nothing from the report is markup."""

import base64
import html
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segnas.arch import Architecture, Node
from segnas.cost import network_cost
from segnas.figures import triptych
from segnas.kinds import kind
from segnas.page import (
    agreement,
    best_floor,
    binary_bytes,
    decimal,
    duration,
    inline_svg,
    page,
    percent,
    points,
    text_summary,
    verdicts,
    warnings,
)
from segnas.report import Accuracy, Budget, ClassScore, Curve, Engine, Floor, Parity, Report, Share, Timing
from segnas.search.trace import History, TraceHeader, TraceStep
from segnas.search_figures import decisions_picture, progress_picture
from segnas.target import Target

EVIL = '<script>alert("it\'s")</script> & $x$'
VOID = {"meta", "link", "br", "img", "input", "path", "rect", "use"}


def network(cells: int = 6) -> Architecture:
    """Six nodes a cell at levels 3, 4 and 5, then a decoder: about 40 nodes."""
    nodes = [Node(kind("image"), (), 3), Node(kind("stem"), (0,), 64, 8, label="stem")]
    for cell in range(cells):
        start, stride = len(nodes) - 1, 2 if cell in (2, 4) else 1
        width, name = 64 + 32 * (cell // 2), f"cell{cell}"
        nodes += [
            Node(kind("conv", kernel=1), (start,), width, stride, label=f"{name}.pre"),
            Node(kind("separable", dilation=2), (start + 1,), width, label=f"{name}.a"),
            Node(kind("zoomed_conv"), (start + 1,), width, label=f"{name}.b"),
            Node(kind("skip"), (start + 1,), width, label=f"{name}.skip"),
            Node(kind("add"), (start + 2, start + 3), width, label=f"{name}.sum"),
            Node(kind("add"), (start + 5, start + 4), width, label=f"{name}.out"),
        ]
    last = len(nodes) - 1
    nodes += [
        Node(kind("aspp"), (last,), 96, label="head.aspp"),
        Node(kind("classifier"), (last + 1,), 11, label="head.logits"),
        Node(kind("resize"), (last + 2,), 11, up=32, label="upsample"),
    ]
    return Architecture(tuple(nodes))


@pytest.fixture(scope="module")
def report() -> Report:
    net = network()
    target = Target("AMD EPYC 7B13", "onnxruntime", "1.22.1", "fp32", 360, 480, threads=2, options=(("level", "all"), ("spinning", "1")))
    counted = Counter(o for o in net.operations(360, 480) if not o.is_free)
    names = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
    classes = tuple(ClassScore(name, None if name == "sign" else 0.9 - 0.07 * i) for i, name in enumerate(names))
    return Report(
        name="cells-12ms",
        created="2025-06-03T14:02:11Z",
        space="cas",
        method="gradient descent",
        architecture=net,
        architecture_digest=net.digest,
        engine=Engine(
            "model.onnx", "onnx", "9f2c" * 16, 14_532_112, target, net.digest, "ab12" * 16, names,
            Parity("PyTorch fp32", 20, 3.1e-4, 2.2e-6, 0.9999998, 0, 0.99994, 0.999, True), (("opset", "20"),),
        ),
        budget=Budget("12 ms on this machine", 12.0, 11.2, 10.4, 12.1, 11.64, (("round 1", 12.4, 12.9), ("round 2", 11.2, 11.64))),
        timing=Timing("end_to_end", 400, 50, 5.0, 11.3, 11.64, 11.7, 12.05, 12.31, 13.07, 21.9, 0.031, 86.2, (),
                      (("load", "0.42"), ("steal", "0.1 %"))),
        accuracy=Accuracy("camvid", "test", 233, 0.547, 0.883, classes, "one scale, no flip", ((3, 1), (0, 2))),
        floors=(Floor("majority class", 0.031), Floor("prior per pixel", 0.118)),
        cost=network_cost(net, 360, 480),
        shares=tuple(Share(str(o), count, 0.05 * i * count) for i, (o, count) in enumerate(counted.items(), 1)),
        pretraining="none: random weights",
        recipe=(("crop", "360x480"), ("seed", "7")),
        seconds=(("search", 5400.2), ("train", 10800.9)),
        versions=(("segnas", "0.1.0"), ("torch", "2.13.0+cpu")),
        curves=(Curve("search/loss", (0, 10, 20), (2.0, 1.0, 0.75)), Curve("train/mIoU", (0, 10), (0.1, 0.547))),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(report) -> str:
    """The page of that report with examples, prices and a note."""
    return page(report, **extras(report))


def extras(report: Report) -> dict[str, Any]:
    image = np.full((36, 48, 3), 90, np.uint8)
    strip = triptych(image, image, image)
    prices = dict.fromkeys(report.architecture.operations(360, 480), 0.37)
    return {"pictures": [("street 1", strip), ("street 2", strip)], "prices": prices, "notes": ("Trained for 20 steps.",)}


class Checker(HTMLParser):
    """Which elements are open, and every address, id and reference that occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data", "action"}]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def plain(text: str) -> str:
    """The words that a reader sees, with single spaces."""
    body = re.sub(r"<style.*?</style>", " ", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_every_figure_and_condition_is_on_the_page(report, whole):
    seen = plain(whole)
    timing, target = report.timing, report.engine.target
    for value in (
        f"{1000 / 11.64:.1f} FPS", "11.64 ms", "of a budget of 12.00 ms: ratio 0.970", "54.7 %", "99.994 %", "99.900 % asked for",
        "12 ms on this machine", "11.200 ms", "10.400 to 12.100 ms", "11.640 ms , inside the interval",
        *(f"{ms:.3f}" for ms in (timing.min_ms, timing.median_ms, timing.mean_ms, timing.p90_ms, timing.p95_ms, timing.p99_ms, timing.max_ms)),
        "+51.6 points", "+42.9 points", "majority class", "prior per pixel", "does not occur", "10 of 11 classes",
        *(f"{100 * score.iou:.1f} %" for score in report.accuracy.classes if score.iou is not None),
        *(score.name for score in report.accuracy.classes),
        decimal(report.cost.macs) + "MACs", decimal(report.cost.parameters), binary_bytes(report.cost.activation_bytes),
        report.engine.sha256, report.engine.weights_sha256, report.architecture_digest, "none: random weights",
        "1 h 30 min", "3 h 0 min", "4 h 30 min",
        "2.13.0+cpu", "opset 20", "load 0.42", "steal 0.1 %", "crop 360x480", "Trained for 20 steps.", "option spinning 1", "option level all",
        target.device, target.runtime_version, "input contract normalised", "output contract labels", "scope end_to_end", "threads 2",
        "0.75", "0.547",
        "Budget met: measured 11.64 ms, 0.36 ms (3.0 %) under the budget of 12.00 ms.",
    ):  # fmt: skip
        assert value in seen, value


def test_the_page_needs_nothing_else(whole):
    assert not re.search(r"http|//[a-z]|@import|@font-face|<script|<link|javascript:", re.sub(r"base64,[^\"]+", "", whole))
    checker = checked(whole)
    assert checker.tags["svg"] == 6  # network, budget, shares, classes, two groups of curves
    assert checker.tags["script"] == 0
    assert len(checker.ids) == len(set(checker.ids))
    assert all(address.startswith("data:image/png;base64,") or address[1:] in checker.ids for address in checker.addresses)
    references = set(re.findall(r"url\(#([^)]+)\)", whole))
    assert references <= set(checker.ids)


def test_examples_are_embedded_whole(whole):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', whole)
    assert len(found) == 2
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(found[0]), np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (36, 3 * 48 + 12, 3)


def test_equal_reports_give_equal_pages_and_prices_are_drawn(report, whole):
    assert page(report, **extras(report)) == whole
    assert "64 · 0.37" in whole


def test_drawings_of_the_search_stand_for_its_curves(report, whole):
    decisions = {"a.$1": 2, EVIL: 2}
    lines = tuple(TraceStep(step, {"loss": 1 / step, EVIL: 2.0}, dict.fromkeys(decisions, (0.25, 0.75))) for step in (1, 2, 3))
    history = History(TraceHeader("made-up", 19, decisions, 3, 12.0), lines)
    drawings = [
        ("its decisions", decisions_picture(history, dict.fromkeys(decisions, 1), dict.fromkeys(decisions, ("none", EVIL)))),
        (f"its progress {EVIL}", progress_picture(history)),
    ]
    text = page(report, **extras(report), search=drawings)
    checker = checked(text)
    assert checker.tags["svg"] == 7  # two drawings in place of one group of curves
    assert checker.tags["script"] == 0
    assert len(checker.ids) == len(set(checker.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(checker.ids)
    assert all(address.startswith("data:image/png;base64,") or address[1:] in checker.ids for address in checker.addresses)
    assert 'aria-label="its decisions"' in text
    seen = plain(text)
    assert "Probability of the option that was chosen in the end" in seen
    assert "a.$1" in seen
    assert 'aria-label="curves search"' not in text
    assert 'aria-label="curves train"' in text
    assert 'aria-label="curves search"' in whole


def test_markup_in_a_report_stays_text(report):
    classes = (ClassScore(EVIL, 0.5), *report.accuracy.classes[1:])
    nodes = (*report.architecture.nodes[:-1], replace(report.architecture.nodes[-1], label=f"{EVIL}.x"))
    wild = replace(
        report, name=EVIL, space=EVIL, method=EVIL, pretraining=EVIL, recipe=((EVIL, EVIL),), versions=((EVIL, EVIL),),
        architecture=Architecture(nodes), floors=(Floor(EVIL, 0.1),), seconds=((EVIL, 1.0),), shares=(Share(EVIL, 2, 1.0),),
        curves=(Curve(f"{EVIL}/{EVIL}", (1, 2), (1.0, 2.0)), Curve(EVIL, (1, 2), (1.0, 2.0))),
        accuracy=replace(report.accuracy, classes=classes, protocol=EVIL),
        budget=replace(report.budget, asked=EVIL, measurements=((EVIL, 1.0, 2.0),)),
        timing=replace(report.timing, warnings=(EVIL,), conditions=((EVIL, EVIL),)),
        engine=replace(report.engine, file=EVIL, parity=replace(report.engine.parity, reference=EVIL), versions=((EVIL, EVIL),)),
    )  # fmt: skip
    png = triptych(*[np.zeros((4, 4, 3), np.uint8)] * 3)
    text = page(wild, pictures=[(EVIL, png)], notes=(EVIL,))
    assert checked(text).tags["script"] == 0
    assert "<script" not in text
    assert plain(text).count(EVIL) >= 15


def test_a_missed_budget_and_a_failed_parity_are_as_plain(report, whole):
    bad = replace(
        report,
        budget=replace(report.budget, measured_ms=12.9),
        floors=(Floor("prior", 0.6),),
        timing=replace(report.timing, median_ms=12.9, warnings=("the machine was busy",)),
        engine=replace(report.engine, parity=replace(report.engine.parity, passed=False, argmax_agreement=0.98, non_finite=3)),
    )
    text = page(bad)
    assert "Budget missed: measured 12.90 ms, 0.90 ms (7.5 %) over the budget of 12.00 ms." in plain(text)
    assert "Parity failed: 98.000 % of pixels agree with PyTorch fp32 over 20 images, 99.900 % asked for; 3 outputs are not finite." in plain(text)
    assert "Warning: the machine was busy" in plain(text)
    assert text.count('class="verdict bad"') == 3
    assert whole.count('class="verdict good"') == 2
    assert text.count('class="card bad"') == 2
    assert "no better than a predictor" in plain(text)
    assert "\N{MINUS SIGN}5.3 points" in plain(text)
    assert "budget met" not in plain(text).lower()
    summary = text_summary(bad)
    assert summary.count("FAIL") == 2
    assert "the machine was busy" in summary


def test_what_was_not_checked_is_said(report):
    unchecked = replace(report, engine=replace(report.engine, parity=None), curves=(), shares=(), floors=())
    text = page(unchecked)
    assert "Parity not checked" in plain(text)
    assert "Not recorded." in plain(text)
    assert "Search and training" not in plain(text)
    assert "Examples" not in plain(text)
    assert "64 · " not in text
    assert [ok for ok, _ in verdicts(unchecked)] == [True, None]
    assert best_floor(unchecked) is None
    assert "note        Parity not checked" in text_summary(unchecked)


def test_figures_that_do_not_fit_together_are_warned_about(report):
    odd = replace(report, architecture_digest="0" * 12, timing=replace(report.timing, median_ms=14.0))
    assert warnings(odd) == (
        "The benchmark's raw median is 14.00 ms. The budget is judged by 11.64 ms: the same engine, normalised by a sentinel to the speed that the "
        "machine had when its table was measured.",
        f"The engine was made from network {report.engine.architecture}, not from 000000000000 that is shown here.",
    )
    assert warnings(report) == ()
    assert text_summary(odd).count("warning ") == 2


def test_the_summary_is_short_and_has_the_figures(report):
    text = text_summary(report)
    assert 10 <= len(text.splitlines()) <= 15
    for value in ("85.9 FPS", "11.64 ms", "0.36 ms (3.0 %) under", "54.7 %", "+42.9 points over prior per pixel", "99.994 %", "10.40 to 12.10 ms",
                  "model.onnx", "9f2c9f2c9f2c9f2c", str(report.engine.target), report.architecture_digest, "none: random weights"):  # fmt: skip
        assert value in text, value


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (percent(0.5474), "54.7 %"), (agreement(0.999996), "99.999 %"), (agreement(1.0), "100.000 %"), (agreement(0.99994), "99.994 %"),
        (points(-0.031), "\N{MINUS SIGN}3.1 points"), (points(0.2), "+20.0 points"), (decimal(2.478e9), "2.48 G"), (decimal(714_000), "714 k"),
        (decimal(12), "12 "), (binary_bytes(14_532_112), "13.9 MiB"), (binary_bytes(100), "100 bytes"), (duration(14.12), "14.1 s"),
        (duration(612.4), "10 min 12 s"), (duration(10800.9), "3 h 0 min"),
    ],
)  # fmt: skip
def test_numbers_are_spelled(given, wanted):
    assert given == wanted


def test_ids_of_two_inlined_pictures_differ():
    svg = (
        b'<?xml version="1.0"?><!DOCTYPE svg><svg xmlns="http://a" xmlns:xlink="http://b"><g id="a" clip-path="url(#b)"/><use xlink:href="#a"/></svg>'
    )
    assert inline_svg(svg, "p", 'a "b"') == ('<svg role="img" aria-label="a &#34;b&#34;"><g id="p-a" clip-path="url(#p-b)"/><use href="#p-a"/></svg>')


def test_the_template_lies_in_the_package():
    import segnas

    assert (Path(segnas.__file__).parent / "templates" / "report.html.j2").is_file()

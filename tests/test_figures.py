"""The pictures of a report: they decode, have the size that was meant, show the figures, and come out the same twice."""

import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from segnas.arch import Architecture, Node
from segnas.architecture_layout import GAP, Layout, rows_of, stacked
from segnas.architecture_picture import architecture_picture
from segnas.errors import InputError
from segnas.figures import (
    FAMILIES,
    budget_picture,
    class_picture,
    curves_picture,
    family_colour,
    family_milliseconds,
    milliseconds_picture,
    triptych,
)
from segnas.kinds import SCHEMAS, kind
from segnas.report import Accuracy, Budget, ClassScore, Curve, Share

SHARES = tuple(Share(f"conv {i}x8x8 -> {i}x8x8", i % 3 + 1, 0.1 * i) for i in range(1, 16))
ACCURACY = Accuracy("camvid", "test", 3, 0.4, 0.8, (ClassScore("sky", 0.75), ClassScore("a $ign", 0.05), ClassScore("tree", None)), "whole", ())
BUDGET = Budget("12 ms", 12.0, 11.0, 10.1, 12.2, 12.5, (("first", 13.0, 11.5), ("second", 11.0, 12.75)))
CURVES = tuple(Curve(f"curve {i}", tuple(range(20)), tuple(1 / (i + s + 1) for s in range(20))) for i in range(2))


def network(cells: int = 3) -> Architecture:
    """Two-input cells at levels 3, 4 and 5, a head and the final resize: 11 nodes a cell and 8 more."""
    nodes = [Node(kind("image"), (), 3, label="image")]

    def put(name: str, inputs: list[int], channels: int, label: str, stride: int = 1, up: int = 1, **attributes) -> int:
        nodes.append(Node(kind(name, **attributes), tuple(inputs), channels, stride, up, label))
        return len(nodes) - 1

    stem = put("stem", [0], 64, "stem", stride=8)
    last, low, level = stem, stem, 3
    for cell in range(cells):
        width, stride = (64, 96, 160)[min(cell, 2)], 2 if cell in (1, 2) else 1
        level += stride - 1
        name = f"cell{cell}"
        one = put("separable", [last], width, f"{name}.pre1", stride=stride)
        other = put("conv", [last], width, f"{name}.pre0", stride=stride, kernel=1)
        a = put("separable", [one], width, f"{name}.a", dilation=2)
        b = put("zoomed_conv", [other], width, f"{name}.b")
        s = put("add", [a, b], width, f"{name}.sum1")
        c = put("inverted_residual", [s], width, f"{name}.c")
        d = put("skip", [one], width, f"{name}.d")
        t = put("add", [c, d], width, f"{name}.sum2")
        e = put("max_pool", [t], width, f"{name}.e")
        f = put("avg_pool", [s], width, f"{name}.f")
        last = put("concat", [e, f], 2 * width, f"{name}.out")
        low = last if level == 3 else low
    context = put("aspp", [last], 128, "head.aspp")
    up = put("resize", [context], 128, "head.up", up=2 ** (level - 3)) if level > 3 else context
    side = put("conv", [low], 48, "head.low", kernel=1)
    both = put("concat", [up, side], 176, "head.cat")
    put("resize", [put("classifier", [both], 19, "head.logits")], 19, "upsample", up=8)
    return Architecture(tuple(nodes))


def size_of(png: bytes) -> tuple[int, int]:
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image.shape[1], image.shape[0]


def words(svg: bytes) -> str:
    root = ElementTree.fromstring(svg)  # raises where the file is no XML
    return "\n".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))


PICTURES: dict[str, Callable[..., bytes]] = {
    "network": lambda form: architecture_picture(network(1), 512, 1024, wrap_inches=8.0, form=form),
    "milliseconds": lambda form: milliseconds_picture(SHARES, form=form),
    "classes": lambda form: class_picture(ACCURACY, form=form),
    "budget": lambda form: budget_picture(BUDGET, form=form),
    "curves": lambda form: curves_picture(CURVES, "Search", form=form),
}


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_is_the_same_twice_and_png_has_the_size_of_the_svg(name):
    svg = PICTURES[name]("svg")
    assert svg == PICTURES[name]("svg")
    assert b"Matplotlib" not in svg
    assert not re.search(rb"20\d\d-\d\d-\d\d", svg)
    points = [float(value) for value in re.findall(rb'(?:width|height)="([\d.]+)pt"', svg)[:2]]
    png = PICTURES[name]("png")
    assert png == PICTURES[name]("png")
    assert size_of(png) == pytest.approx([2 * value for value in points], abs=2)  # 144 dots an inch, 72 points an inch


def test_every_operation_has_one_family():
    members = [op for _, ops in FAMILIES.values() for op in ops]
    assert sorted(members) == sorted(SCHEMAS)
    assert family_colour("other: 3 kinds") == family_colour("add")


def test_milliseconds_show_twelve_operations_and_sum_up_the_rest():
    text = words(milliseconds_picture(SHARES))
    assert text.count("->") == 12
    assert "other: 3 kinds" in text
    assert "0.60 ms" in text  # 0.1 + 0.2 + 0.3
    assert "1.50 ms" in text
    assert "12 %" in text  # 1.5 of 12
    assert words(milliseconds_picture(())) == ""


def test_families_add_up():
    shares = (Share("conv 1", 1, 1.0), Share("stem 2", 1, 0.5), Share("add 3", 2, 2.0), Share("aspp 4", 1, 0.25))
    assert family_milliseconds(shares) == [("wiring", 2.0), ("convolution", 1.5), ("context", 0.25)]


def test_classes_are_ordered_and_absent_ones_are_named():
    text = words(class_picture(ACCURACY))
    assert [text.index(name) for name in ("sky", "a $ign", "tree")] == sorted(text.index(name) for name in ("sky", "a $ign", "tree"))
    assert "75.0" in text
    assert "mIoU 40.0 %" in text
    assert "does not occur" in text


def test_budget_shows_every_measurement_in_order():
    text = words(budget_picture(BUDGET))
    order = [text.index(value) for value in ("11.50 ms", "12.75 ms", "12.50 ms")]
    assert order == sorted(order)
    assert "budget 12.00 ms" in text
    exact = replace(BUDGET, predicted_ms=12.0, predicted_low_ms=12.0, predicted_high_ms=12.0, measured_ms=12.0, measurements=())
    assert "12.00 ms" in words(budget_picture(exact))


def test_curves_show_each_name_and_last_value():
    text = words(curves_picture(CURVES, "Search"))
    assert all(curve.name in text and f"{curve.values[-1]:.4g}" in text for curve in CURVES)
    assert words(curves_picture((Curve("lone", (5,), (2.5,)),), "")).count("2.5")


def test_the_network_shows_every_node_with_channels_and_price():
    net = network()
    operations = net.operations(512, 1024)
    assert 36 <= len(operations) <= 44
    prices = {o: round(0.11 + 0.01 * i, 2) for i, o in enumerate(dict.fromkeys(o for o in operations if not o.is_free))}
    text = words(architecture_picture(net, 512, 1024, prices)).splitlines()
    for operation in operations:
        shown = str(operation.output.channels) + ("" if operation.is_free else f" · {prices[operation]:.2f}")
        assert shown in text
    assert text.count("+") == 6
    assert text.count("skip") == 3
    assert {"1/1", "1/8", "1/16", "1/32", "512×1024", "64×128", "32×64", "16×32"} <= set(text)
    assert {"cell0", "cell1", "cell2", "head"} <= set(text)


def test_a_wrapped_network_fits_and_shows_each_box_once():
    whole = words(architecture_picture(network(), 512, 1024)).splitlines()
    svg = architecture_picture(network(), 512, 1024, wrap_inches=9.0)
    assert float(re.findall(rb'width="([\d.]+)pt"', svg)[0]) <= 9.0 * 72
    rows = words(svg).splitlines()
    for name in ("image", "+", "concat", "sep 3×3 d2", "aspp 6·12·18", "classifier", "resize ×8"):
        assert rows.count(name) == whole.count(name) > 0


@pytest.mark.parametrize("cells", [1, 3, 7])
def test_nothing_overlaps_and_edges_run_to_the_right(cells):
    net = network(cells)
    layout = Layout(net, tuple((node.op, str(node.channels)) for node in net.nodes))
    assert layout.columns[0] == 0
    assert all(layout.columns[source] < layout.columns[i] for i, node in enumerate(net.nodes) for source in node.inputs)
    assert all(other[1] == one[1] + 1 for one, other in layout.segments)
    for place in layout.places:
        for other in layout.places:
            if place < other and place[1] == other[1] and layout.level(place) == layout.level(other):
                apart = abs(layout.heights[place] - layout.heights[other])
                assert apart >= (layout.tall(place) + layout.tall(other)) / 2 - 1e-6
    spans = {name: (first, last) for name, first, last, alone, _ in layout.groups if alone}
    assert set(spans) == {*(f"cell{i}" for i in range(cells)), "head"}
    assert all(spans[f"cell{i}"][1] < spans[f"cell{i + 1}"][0] for i in range(cells - 1))
    assert [c for row in rows_of(layout, 6.0) for c in row] == list(range(max(layout.columns) + 1))
    assert layout.lefts[-1] > (max(layout.columns) + 1) * GAP


def test_stacking_keeps_order_and_distance_and_is_nearest_to_the_wishes():
    """Against a search over a fine grid."""
    assert stacked([0.2, 0.8], [0.5, 0.5], 0.0, 2.0) == pytest.approx([0.25, 0.8])
    assert stacked([1.0, 1.0, 1.0], [0.4, 0.4, 0.4], 0.0, 2.0) == pytest.approx([0.6, 1.0, 1.4])
    wishes, grid = [1.2, 0.9, 1.6], np.linspace(0.2, 1.8, 81)
    fits = [(sum((x - w) ** 2 for x, w in zip(t, wishes, strict=True)), t) for t in ((a, b, c) for a in grid for b in grid for c in grid)
            if t[1] - t[0] >= 0.4 - 1e-9 and t[2] - t[1] >= 0.4 - 1e-9]  # fmt: skip
    assert stacked(wishes, [0.4] * 3, 0.0, 2.0) == pytest.approx(min(fits)[1], abs=0.021)


def test_groups_that_run_side_by_side_get_titles_in_rows():
    """Two branches of one depth: neither stands alone in its columns."""

    def conv(source, label, stride=1, channels=8):
        return Node(kind("conv"), (source,), channels, stride, label=label)

    nodes = (Node(kind("image"), (), 3), conv(0, "left.a"), conv(0, "right.a"), conv(1, "left.b"), conv(2, "right.b"),
             Node(kind("add"), (3, 4), 8, label="sum"))  # fmt: skip
    layout = Layout(Architecture(nodes), tuple((node.op, "8") for node in nodes))
    assert [(name, first, last, alone, row) for name, first, last, alone, row in layout.groups] == [
        ("left", 1, 2, False, 0),
        ("right", 1, 2, False, 1),
    ]
    knot = (*nodes[:3], replace(conv(1, "left.b")), replace(conv(2, "left.c")), replace(conv(3, "right.b")), *nodes[5:])
    tied = (*knot[:6], replace(knot[6], inputs=(4, 5)))
    assert Layout(Architecture(tied), tuple((node.op, "8") for node in tied)).columns == (0, 1, 2, 2, 3, 3, 4)
    assert {"left", "right"} <= set(words(architecture_picture(Architecture(nodes), 32, 32)).splitlines())


def test_a_triptych_is_three_panels_with_gaps_and_right_colours():
    image = np.zeros((40, 100, 3), np.uint8)
    image[..., 0] = 200  # red
    truth, prediction = np.full_like(image, (0, 255, 0)), np.full_like(image, (0, 0, 255))
    png = triptych(image, truth, prediction)
    assert png == triptych(image, truth, prediction)
    assert size_of(png) == (312, 40)
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    seen = [decoded[20, x, ::-1].tolist() for x in (50, 103, 156, 209, 262)]
    assert seen == [[200, 0, 0], [255, 255, 255], [0, 255, 0], [255, 255, 255], [0, 0, 255]]


def test_a_large_triptych_shrinks_to_fit_without_new_colours():
    generator = np.random.default_rng(0)
    colours = np.array([(128, 64, 128), (70, 130, 180), (0, 0, 0)], np.uint8)
    truth = colours[generator.integers(0, 3, (1024, 2048))]
    png = triptych(generator.integers(0, 256, (1024, 2048, 3), np.uint8), truth, truth)
    width, height = size_of(png)
    assert 1090 <= width <= 1100
    assert height == pytest.approx((width - 12) / 6, abs=1)
    decoded = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    panel = (width - 12) // 3
    assert {tuple(c) for c in decoded[:, -panel:, ::-1].reshape(-1, 3).tolist()} == {tuple(c) for c in colours.tolist()}


def test_a_triptych_refuses_images_of_other_sizes():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(InputError, match="one size"):
        triptych(image, image[:2], image)

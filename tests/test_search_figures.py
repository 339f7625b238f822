"""The pictures of a search: they show the figures of the trace, row by row and curve by curve, and come out the same twice."""

import base64
import re
from collections.abc import Callable
from random import Random
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from segnas.errors import InputError
from segnas.kinds import kind
from segnas.search.draft import Draft
from segnas.search.slots import Choice, Link, Widths
from segnas.search.spaces import space
from segnas.search.trace import History, TraceHeader, TraceStep
from segnas.search_figures import decisions_picture, option_names, progress_picture

SVG = "{http://www.w3.org/2000/svg}"
NAMES = {"a": ("none", "conv 3×3"), "b.$1": ("skip", "sep 3×3 d2", "max 3×3")}
CHOSEN = {"a": 1, "b.$1": 2}


def history(steps: int = 20, kept: tuple[int, ...] = (1, 10, 20), budget_ms: float | None = 8.5) -> History:
    """Option 1 of `a` rises from 0.1 by 0.02 a step, option 2 of `b.$1` stays at 0.25."""
    lines = [
        TraceStep(
            step,
            {"loss on weights' half": 3 - step / 10, **({"expected latency, ms": 9.0 + step, "decoded latency, ms": 8.0} if step > 5 else {})},
            {"a": (0.9 - step / 50, 0.1 + step / 50), "b.$1": (0.5, 0.25, 0.25)} if step in kept else None,
        )
        for step in range(1, steps + 1)
    ]
    return History(TraceHeader("made-up", 19, {"a": 2, "b.$1": 3}, steps, budget_ms), tuple(lines))


def words(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def raster(svg: bytes) -> np.ndarray:
    """The heat map as (rows, columns, BGR); the colour bar is the other image."""
    found = re.findall(rb'<image xlink:href="data:image/png;base64,([^"]+)"', svg)
    images = [cv2.imdecode(np.frombuffer(base64.b64decode(one), np.uint8), cv2.IMREAD_COLOR) for one in found]
    return next(image for image in images if image is not None and image.shape[0] == 2)


PICTURES: dict[str, Callable[..., bytes]] = {
    "decisions": lambda form: decisions_picture(history(), CHOSEN, NAMES, form=form),
    "progress": lambda form: progress_picture(history(), form=form),
}


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_is_the_same_twice_and_png_has_the_size_of_the_svg(name: str) -> None:
    svg = PICTURES[name]("svg")
    assert svg == PICTURES[name]("svg")
    assert b"Matplotlib" not in svg
    assert not re.search(rb"20\d\d-\d\d-\d\d", svg)
    points = [float(value) for value in re.findall(rb'(?:width|height)="([\d.]+)pt"', svg)[:2]]
    image = cv2.imdecode(np.frombuffer(PICTURES[name]("png"), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert [image.shape[1], image.shape[0]] == pytest.approx([2 * value for value in points], abs=2)


def test_each_decision_is_a_row_with_its_last_probability_and_what_was_chosen() -> None:
    found = words(decisions_picture(history(), CHOSEN, NAMES))
    assert {"a", "b.$1", "conv 3×3", "max 3×3", "0.50", "0.25", "steps done"} <= set(found)
    assert "sep 3×3 d2" not in found
    assert found.index("conv 3×3") < found.index("max 3×3")
    assert {"none", "0.50"} <= set(words(decisions_picture(history(), {"a": 0, "b.$1": 0}, NAMES)))


def test_a_row_darkens_as_its_option_becomes_probable_and_steps_hold_until_the_next() -> None:
    """Kept at steps 1, 10 and 20: three stretches, 0.12, 0.3 and 0.5; columns stand for the steps from 2 to 20."""
    svg = decisions_picture(history(), CHOSEN, NAMES)
    image = raster(svg)
    assert image.shape == (2, 19, 3)
    row = [tuple(pixel) for pixel in image[0].tolist()]
    assert len(dict.fromkeys(row)) == 3
    assert [row.count(colour) for colour in dict.fromkeys(row)] == [8, 10, 1]
    darkness = [sum(colour) for colour in dict.fromkeys(row)]
    assert darkness == sorted(darkness, reverse=True)
    assert len({tuple(pixel) for pixel in image[1].tolist()}) == 1


def test_many_decisions_stay_on_one_sheet_and_few_steps_are_drawn() -> None:
    rng = Random(0)
    decisions = {f"link.{'long' * 20}.{i}": 2 for i in range(400)}
    lines = tuple(TraceStep(s, {}, {name: (p := rng.random(), 1 - p) for name in decisions}) for s in (3, 4))
    many = History(TraceHeader("made-up", 19, decisions, 9), lines)
    names = dict.fromkeys(decisions, ("off", "from " + "far" * 20))
    svg = decisions_picture(many, dict.fromkeys(decisions, 1), names)
    width, height = (float(value) for value in re.findall(rb'(?:width|height)="([\d.]+)pt"', svg)[:2])
    assert (width, height <= 9 * 72) == (pytest.approx(11.4 * 72), True)
    labels = [text for text in words(svg) if text.startswith("link.")]
    assert 40 <= len(labels) <= 60
    assert all("…" in text and len(text) <= 32 for text in labels)
    lone = history(1, (1,))
    assert {"0.12", "0.25"} <= set(words(decisions_picture(lone, CHOSEN, NAMES)))


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(InputError, match="'made-up' cannot be drawn: its trace holds no probabilities"):
        decisions_picture(history(kept=()), CHOSEN, NAMES)
    with pytest.raises(InputError, match="other decisions are asked for"):
        decisions_picture(history(), {"a": 1}, NAMES)


def test_losses_and_latencies_share_a_panel_and_the_budget_is_a_line() -> None:
    found = words(progress_picture(history()))
    assert {"loss", "latency, ms", "expected 29", "decoded 8", "budget 8.5"} <= set(found)
    assert "1" in found  # the last loss: 3 - 20 / 10
    without = words(progress_picture(history(budget_ms=None)))
    assert not [text for text in without if "budget" in text]
    extra = History(history().header, (*history().steps, TraceStep(21, {"entropy $x$": 0.125})))
    assert {"entropy $x$", "0.125"} <= set(words(progress_picture(extra)))
    assert words(progress_picture(History(history().header, ()))) is not None


def test_long_curves_are_thinned_to_the_mean_of_losses_and_the_last_of_the_rest() -> None:
    """900 steps in stretches of 3: the loss alternates 0, 3, 6, the multiplier rises by 1 a step."""
    lines = tuple(TraceStep(step, {"loss": 3.0 * (step % 3), "multiplier": float(step)}) for step in range(1, 901))
    svg = progress_picture(History(TraceHeader("made-up", 19, {}, 900), lines))
    found = words(svg)
    assert {"3", "900"} <= set(found)  # each stretch's mean is 3
    paths = [element.get("d", "") for element in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    assert max(path.count("L") for path in paths) <= 300


# ---- what options are called


def test_options_of_a_registered_space_are_operations() -> None:
    names = option_names(space("cas-tiny", 19))
    assert set(names) == set(space("cas-tiny", 19).decisions)
    assert names["normal.0.0"] == ("none", "skip", "max 3×3", "conv 3×3", "sep 3×3", "sep 3×3 d2", "sep 3×3 d4", "sep 3×3 d8")


def test_options_may_be_widths_and_links() -> None:
    draft = Draft("made-up")
    one = draft.node(kind("stem", width=8), 0, channels=8, stride=2, label="stem")
    other = draft.node(kind("separable"), one, label="side")
    chosen = draft.node("select", Link(one, "from", 0), Link(other, "from", 1), label="chosen")
    wide = draft.node(kind("conv"), chosen, channels=Widths("width", (8, 16)), label="wide")
    added = draft.node("add", one, Link(draft.node(Choice("op", (kind("skip"), kind("conv", kernel=1))), one), "link", 1))
    joined = draft.node(kind("conv", kernel=1), wide, channels=8)
    last = draft.node("add", joined, added)
    draft.resize(draft.node(kind("classifier"), last, channels=5), 0)
    assert option_names(draft.space()) == {
        "from": ("from stem", "from side"),
        "width": ("8 ch", "16 ch"),
        "op": ("skip", "conv 1×1"),
        "link": ("off", "on"),
    }

"""Small search spaces that can be enumerated, and tables of made-up prices, for all tests of the search."""

from collections.abc import Callable

import pytest

from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable
from segnas.search.draft import Draft
from segnas.search.slots import Choice, Link
from segnas.search.space import Space
from segnas.search.spaces import SPACES
from segnas.search.spaces.cells import cell
from segnas.target import Target

FEW = (kind("none"), kind("skip"), kind("conv"))
POINT = kind("conv", kernel=1)
TARGET = Target("made-up", "onnxruntime", "1.0", "fp32", 96, 128)


def cells(shared: bool, keep: tuple[int, int], classes: int = 5) -> Space:
    """Two toy cells of two nodes; shared decisions as in CAS, or decisions of their own as in GAS."""
    draft = Draft("toy-cells")
    features = [draft.node(kind("stem", width=8), 0, channels=8, stride=2)] * 2
    for index in range(2):
        name = "cell" if shared else f"cell{index}"
        features.append(cell(draft, name, *features[-2:], width=8, candidates=FEW, keep=keep, label=f"cell{index}"))
    return _finished(draft, features[-1], classes)


def trellis(owner: str) -> Space:
    """Three layers on two levels, a searched operation per state, one path from the stem to level 1 (Auto-DeepLab, FasterSeg in the small).

    Who owns the decision of a transition: its `source` (where to go) or its `target` (where from). A state also adds the one two layers
    back, if visited.
    """
    draft = Draft("toy-trellis")
    states = {1: draft.node(kind("stem", width=8), 0, channels=8, stride=2)}
    history = [states]
    for layer in range(1, 4):
        reached: dict[int, int] = {}
        for target in (1,) if layer == 3 else (1, 2):
            links: list[Link] = []
            for option, (level, state) in enumerate(states.items()):
                moved = draft.node(kind("resize"), state, up=2) if target < level else state
                moved = draft.node(POINT, moved, stride=2 if target > level else 1)
                name = f"from.{layer}.{target}" if owner == "target" else f"to.{layer}.{level}"
                links.append(Link(moved, name, option if owner == "target" else target - 1))
            chosen = draft.node("select", *links)
            if len(history) > 1 and target in history[-2]:
                chosen = draft.node("add", chosen, Link(history[-2][target]))
            reached[target] = draft.node(Choice(f"op.{layer}.{target}", (kind("skip"), kind("conv"))), chosen)
        states = reached
        history.append(states)
    return _finished(draft, states[1])


def dense(layers: int = 2) -> Space:
    """Each feature reads one or two of all earlier ones through 1x1 units, by links (DCNAS in the small)."""
    draft = Draft("toy-dense")
    stem = draft.node(kind("stem", width=8), 0, channels=8, stride=2)
    features = [stem, draft.node(kind("separable"), stem)]
    for layer in range(layers):
        names = [f"link.{layer}.{source}" for source in range(len(features))]
        links = [Link(draft.node(POINT, feature), name) for feature, name in zip(features, names, strict=True)]
        draft.keep(names, 1, 2)
        features.append(draft.node(Choice(f"op.{layer}", FEW[1:]), draft.node("add", *links)))
    return _finished(draft, features[-1])


def _finished(draft: Draft, feature: int, classes: int = 5) -> Space:
    logits = draft.node(kind("classifier"), feature, channels=classes, label="classifier")
    draft.resize(logits, 0)
    return draft.space()


TOYS: dict[str, Callable[[], Space]] = {
    "cells": lambda: cells(True, (2, 2)),
    "own-cells": lambda: cells(False, (2, 2)),
    "loose-cells": lambda: cells(True, (1, 2)),
    "own-loose-cells": lambda: cells(False, (1, 2)),
    "to-trellis": lambda: trellis("source"),
    "from-trellis": lambda: trellis("target"),
    "dense": dense,
}
LINEAR = ("cells", "own-cells")


@pytest.fixture(params=list(TOYS))
def toy(request: pytest.FixtureRequest) -> Space:
    """Each toy space in turn."""
    return TOYS[request.param]()


LARGE = ("dcnas", "auto-deeplab", "fasterseg", "sparsemask", "dpc", "fast-nas")
"""Their thousands of slots and modules take minutes in tests over every space; `-small` is each time the same graph with fewer of them."""


@pytest.fixture(params=[*(pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in SPACES), *TOYS])
def any_space(request: pytest.FixtureRequest) -> Space:
    """Each registered space and each toy space in turn."""
    return SPACES[request.param](7) if request.param in SPACES else TOYS[request.param]()


@pytest.fixture(scope="session")
def toy_named() -> Callable[[str], Space]:
    """A toy space by name."""
    return lambda name: TOYS[name]()


@pytest.fixture(scope="session")
def toy_cells() -> Callable[[int], Space]:
    """The toy of two cells with decisions of their own, for so many classes."""
    return lambda classes: cells(False, (2, 2), classes)


@pytest.fixture(scope="session")
def made_up_table() -> Callable[[Space], LatencyTable]:
    """A table that prices every operation of a space at 0.05 to 2.05 ms by a hash of the operation: strict for tests of equality, no real
    milliseconds.
    """

    def table(space: Space) -> LatencyTable:
        prices = [(o, 0.05 + 2 * int(o.digest, 16) / 16**12) for o in space.all_operations(TARGET)]
        entries = tuple(Entry(o, "block", ms, 0.0, 1, "made up", "") for o, ms in prices)
        return LatencyTable(space.name, TARGET, entries, overhead_ms=0.3, calibration=Calibration(scale=0.9))

    return table


@pytest.fixture(scope="session")
def stopping() -> Callable[[int], Callable[[int, int, str], None]]:
    """A progress that kills what reports to it when that step is done."""

    def stop(at: int) -> Callable[[int, int, str], None]:
        def progress(step: int, steps: int, text: str) -> None:
            if step == at:
                raise KeyboardInterrupt

        return progress

    return stop

"""Any method on any space where it makes sense, and one clear message where it doesn't: three steps each on tiny streets and made-up prices."""

import math
from pathlib import Path

import pytest

from segnas.data import Dataset, open_dataset
from segnas.errors import SegnasError
from segnas.search.derive import likeliest
from segnas.search.loop import search
from segnas.search.settings import METHODS, SearchSettings, with_method
from segnas.search.spaces import space
from segnas.search.trellis import trellis_of
from segnas.streets import write_streets

SPACES = ("darts-tiny", "auto-deeplab-small", "fasterseg-small")
PARTS = r"search\.parts 4 was given for space '{0}', of which no choice can see a part of its channels at a time .*: give search\.parts = 1"
GUIDANCE = r"search\.guidance was asked for in space '{0}', .* choose search\.guidance = 'none' or the method gumbel"
GATES = r"search\.sampler clamp was given for space '{0}' .* it needs links that decisions switch on and off"
REFUSED = {
    ("darts-tiny", "sparsemask"): GATES,
    ("auto-deeplab-small", "sparsemask"): GATES,
    ("fasterseg-small", "sparsemask"): GATES,
    ("darts-tiny", "dcnas"): PARTS,
    ("auto-deeplab-small", "dcnas"): PARTS,
    ("auto-deeplab-small", "gas"): GUIDANCE,
    ("fasterseg-small", "dcnas"): PARTS,
    ("fasterseg-small", "gas"): GUIDANCE,
}
QUICK = {("darts-tiny", "darts"), ("darts-tiny", "gas"), ("auto-deeplab-small", "auto-deeplab"), ("auto-deeplab-small", "gumbel"), *REFUSED}
QUICK |= {("fasterseg-small", "fasterseg")}
PAIRS = [(name, method) for name in SPACES for method in METHODS if METHODS[method].family == "gradient"]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 8}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


def tiny(method: str, **given: object) -> SearchSettings:
    return SearchSettings(**with_method({"method": method, "steps": 3, "warmup": 1, "batch": 2, "crop": (32, 64), "checkpoint_s": 1e9, **given}))


@pytest.mark.parametrize(("name", "method"), [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in PAIRS])
def test_a_method_searches_a_space_or_is_refused(name: str, method: str, streets: Dataset, made_up_table, tmp_path: Path) -> None:
    made = space(name, 19)
    table, checkpoint = made_up_table(made), tmp_path / "c.safetensors"
    if (name, method) in REFUSED:
        with pytest.raises(SegnasError, match=REFUSED[name, method].format(name)):
            search(made, table, streets, tiny(method), budget_ms=50.0, seed=0, checkpoint=checkpoint)
        assert not checkpoint.exists()
        return
    found = search(made, table, streets, tiny(method), budget_ms=50.0, seed=0, checkpoint=checkpoint)
    assert {n: len(p) for n, p in found.probabilities.items()} == made.decisions
    assert all(math.fsum(p) == pytest.approx(1) for p in found.probabilities.values())
    moved = [n for n, p in found.probabilities.items() if len(p) > 1 and len(set(p)) > 1]
    assert len(moved) == sum(size > 1 for size in made.decisions.values())
    made.decode(likeliest(made, found.probabilities, trellis=trellis_of(made))).architecture.require_segmentation()
    decoded = next(curve for curve in found.curves if curve.name == "search/decoded latency, ms")
    assert all(math.isfinite(value) for value in decoded.values)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_dcnas_with_whole_channels_searches_them_too(name: str, streets: Dataset, made_up_table, tmp_path: Path) -> None:
    """What is left of it are the drawn links: at most four of a node's edges at a time."""
    made = space(name, 19)
    found = search(made, made_up_table(made), streets, tiny("dcnas", parts=1), budget_ms=50.0, seed=0, checkpoint=tmp_path / "c.safetensors")
    made.decode(likeliest(made, found.probabilities, trellis=trellis_of(made)))

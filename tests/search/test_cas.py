from random import Random

import pytest
import torch

from segnas.errors import InputError, UsageError
from segnas.kinds import kind
from segnas.network import Network
from segnas.search.slots import Choice
from segnas.search.spaces import space
from segnas.search.spaces.cells import CANDIDATES
from segnas.search.spaces.stacked import Head, stack

EDGES = {0: (0, 1), 1: (0, 1, 2)}  # node -> sources: the cell's two inputs, then the earlier node
NAMES = {f"{cell}.{node}.{source}" for cell in ("normal", "reduction") for node, sources in EDGES.items() for source in sources}


@pytest.fixture(params=["cas-fast", "cas-tiny"])
def preset(request):
    return space(request.param, 11)


def test_decisions_are_shared_between_cells_of_a_type(preset):
    assert set(preset.decisions) == NAMES
    assert set(preset.decisions.values()) == {8}
    assert preset.count() == (7**2 * 3 * 7**2) ** 2  # both edges of the first node, two of the second's three


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UsageError, match="cas, cas-fast, cas-tiny"):
        space("cas-slow", 3)


@pytest.mark.parametrize(("name", "cells", "strides"), [("cas", 8, (4, 8, 16)), ("cas-fast", 6, (8, 16, 32)), ("cas-tiny", 5, (8, 16, 32))])
def test_cells_and_strides_are_as_planned(name, cells, strides):
    preset = space(name, 11)
    outputs = [i for i, slot in enumerate(preset.slots) if slot.label.endswith(".output") and slot.label.startswith("cell")]
    assert len(outputs) == cells
    assert 2 ** preset.levels[outputs[-1]] == strides[-1]
    assert {2 ** preset.levels[i] for i in outputs} <= set(strides)
    assert preset.levels[-1] == 0


def test_only_edges_from_the_inputs_of_a_reducing_cell_have_stride_2(preset):
    for slot in preset.slots:
        if isinstance(slot.kind, Choice):
            cell, _, source = slot.kind.decision.split(".")
            assert slot.stride == (2 if cell == "reduction" and source in "01" else 1)
            assert slot.kind.options == CANDIDATES


def test_widths_suit_blocked_layouts(preset):
    widths = {slot.channels for slot in preset.slots if slot.channels not in (3, 11)}
    assert all(width % 16 == 0 for width in widths)


def test_decoded_cells_keep_two_edges_per_node_and_repeat_their_type(preset):
    genotype = preset.random(Random(4))
    derived = preset.decode(genotype)
    chosen = {}
    for node, origin in zip(derived.architecture.nodes, derived.origins, strict=True):
        slot = preset.slots[origin]
        if isinstance(slot.kind, Choice):
            chosen.setdefault(slot.label.split(".")[0], {})[slot.kind.decision] = node.kind
    for kinds in chosen.values():
        cell = next(iter(kinds)).split(".")[0]
        assert kinds == {name: CANDIDATES[option] for name, option in genotype.items() if name.startswith(cell) and option}
        assert len(kinds) == 4


def test_networks_run_at_odd_sizes(preset):
    network = Network(preset.decode(preset.random(Random(0))).architecture).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 67, 101)).shape == (1, 11, 67, 101)


def test_a_stack_that_does_not_fit_is_refused():
    def stacked(cells, widths, stride=8):
        return stack("bad", 3, cells=cells, widths=widths, stem=kind("stem"), stem_stride=8, head=Head(kind("aspp"), 32, stride), shared=True)

    with pytest.raises(InputError, match="one width for the stem and one for each R"):
        stacked("NRX", (16, 32))
    with pytest.raises(InputError, match="one width for the stem and one for each R"):
        stacked("NR", (16, 32, 64))
    with pytest.raises(InputError, match="at 1/4 of the image"):
        stacked("NR", (16, 32), 4)

"""DARTS: its cell, its derivation and its published networks (reference 1.9). The second-order gradient has test_second_order.py, the halves of the
images and who moves what test_loop.py, the factorised reduction at odd sizes test_ops.py."""

import itertools
import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segnas.arch import Architecture
from segnas.cost import convolutions, network_cost
from segnas.kinds import kind
from segnas.network import Network
from segnas.search import knapsack
from segnas.search import rules as ruling
from segnas.search.derive import mode, scores_of
from segnas.search.draft import Draft
from segnas.search.expected import ExpectedLatency
from segnas.search.published_darts import AVG, DARTS_V1, DARTS_V2, MAX, SEP, SKIP, DartsCells, darts_cifar, darts_imagenet, linear_parameters
from segnas.search.sampling import softmax, zero_logits
from segnas.search.slots import Choice
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.spaces.darts import CANDIDATES, NODES, STRIDED, cells_of_depth, darts_cell
from segnas.search.supernet import Supernet

OPERATIONS = tuple(CANDIDATES)


@pytest.fixture(scope="module", params=["darts", "darts-tiny"])
def preset(request: pytest.FixtureRequest) -> Space:
    return space(request.param, 11)


# ---- the space


def test_a_cell_has_14_edges_of_eight_operations(preset: Space) -> None:
    names = {f"{cell}.{node}.{source}" for cell in ("normal", "reduction") for node in range(4) for source in range(node + 2)}
    assert set(preset.decisions) == names
    assert len(names) == 2 * 14
    assert set(preset.decisions.values()) == {8}
    assert OPERATIONS == ("none", MAX, AVG, SKIP, SEP, "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


def test_a_cell_has_as_many_architectures_as_published(preset: Space) -> None:
    """1,037,664,180, "about 10^9": by the formula, by listing each node's assignments, and by the space's own count of one cell; squared for two."""
    formula = math.prod(math.comb(sources, 2) * 7**2 for sources in (2, 3, 4, 5))
    listed = 1
    for sources in (2, 3, 4, 5):
        listed *= sum(len([o for o in options if o]) == 2 for options in itertools.product(range(8), repeat=sources))
    of_one_cell = [rule for rule in preset.rules if rule.decisions[0].startswith("normal.")]
    assert formula == listed == math.prod(ruling.count(rule, [8] * len(rule.decisions)) for rule in of_one_cell) == 1_037_664_180
    assert preset.count() == 1_037_664_180**2


def test_stride_2_lies_on_the_edges_from_the_inputs_of_a_reducing_cell_where_the_identity_is_a_factorised_reduction(preset: Space) -> None:
    for slot in preset.slots:
        if isinstance(slot.kind, Choice):
            cell, _, source = slot.kind.decision.split(".")
            halves = cell == "reduction" and source in "01"
            assert slot.stride == (2 if halves else 1)
            assert slot.kinds == tuple((STRIDED if halves else CANDIDATES).values())
    assert STRIDED[SKIP] == kind("factorised_reduce", activation="none")


@pytest.mark.parametrize(
    ("name", "cells", "width", "stride"),
    [("darts", cells_of_depth(8), 16, 4), ("darts-tiny", "NRNRN", 16, 4)],
)
def test_cells_double_their_width_as_they_halve_their_size(name: str, cells: str, width: int, stride: int) -> None:
    made, level = space(name, 11), stride.bit_length() - 1
    outputs = [index for index, slot in enumerate(made.slots) if slot.label.startswith("cell") and slot.label.endswith(".output")]
    assert len(outputs) == len(cells)
    for output, letter in zip(outputs, cells, strict=True):
        level, width = (level + 1, 2 * width) if letter == "R" else (level, width)
        assert (made.levels[output], made.slots[output].channels) == (level, 4 * width)
    stem = next(slot for slot in made.slots if slot.label == "stem")
    assert stem.channels == 3 * 16


def test_reductions_are_at_a_third_and_two_thirds() -> None:
    assert cells_of_depth(8) == "NNRNNRNN"
    assert [index for index, letter in enumerate(cells_of_depth(20)) if letter == "R"] == [6, 13]


@torch.no_grad()
def test_even_probabilities_are_the_mean_of_all_operations() -> None:
    """Softmax rows sum to 1, and `none` is one of the eight."""
    draft = Draft("edge", channels=8)
    draft.node(Choice("edge", tuple(CANDIDATES.values())), 0)
    made = draft.space()
    sample = softmax(made, zero_logits(made))
    assert float(sample.weights["edge"].sum()) == pytest.approx(1)
    supernet, x = Supernet(made).eval(), torch.randn(2, 8, 9, 11)
    each = [supernet.module(1, k)([x], (9, 11)) for k in made.slots[1].kinds[1:]]
    torch.testing.assert_close(supernet(x, sample), sum(each) / 8, rtol=1e-4, atol=1e-6)


def test_networks_run_at_odd_sizes(preset: Space) -> None:
    rng = Random(0)
    all_skips = mode(preset, {name: [0.0 if i != OPERATIONS.index(SKIP) else 1.0 for i in range(8)] for name in preset.decisions}, "strength")
    for genotype in (all_skips, preset.random(rng)):
        with torch.no_grad():
            assert Network(preset.decode(genotype).architecture).eval()(torch.randn(1, 3, 67, 101)).shape == (1, 11, 67, 101)


# ---- derivation


def derived_as_darts_does(alphas: dict[str, list[float]]) -> set[tuple[str, int]]:
    """Written from the description: softmax over all eight; a node's two best distinct predecessors by their best operation but `none`."""
    kept: set[tuple[str, int]] = set()
    for cell, node in itertools.product(("normal", "reduction"), range(NODES)):
        best: list[tuple[float, int, str]] = []
        for source in range(node + 2):
            total = math.fsum(map(math.exp, alphas[f"{cell}.{node}.{source}"]))
            p = [math.exp(alpha) / total for alpha in alphas[f"{cell}.{node}.{source}"]]
            strongest = max(range(1, 8), key=p.__getitem__)
            best.append((p[strongest], strongest, f"{cell}.{node}.{source}"))
        kept |= {(name, option) for _, option, name in sorted(best, reverse=True)[:2]}
    return kept


TINY = space("darts-tiny", 7)


@given(seed=st.integers(0, 10**6), spread=st.floats(0.1, 4))
def test_the_mode_by_strength_is_darts_own_derivation(seed: int, spread: float) -> None:
    rng = Random(seed)
    alphas = {name: [rng.gauss(0, spread) for _ in range(8)] for name in TINY.decisions}
    p = {name: torch.softmax(torch.tensor(values, dtype=torch.float64), 0) for name, values in alphas.items()}
    found = mode(TINY, p, "strength")
    assert {(name, option) for name, option in found.items() if option} == derived_as_darts_does(alphas)
    assert mode(TINY, {name: [math.exp(s) for s in scores] for name, scores in scores_of(TINY, p, "strength").items()}) == found


@pytest.mark.parametrize("ranking", ["odds", "strength"])
def test_decoding_under_a_budget_that_says_nothing_is_the_mode(made_up_table, ranking) -> None:
    """By the multiple-choice knapsack, which is exact here: the price is a sum over nodes."""
    expected, generator = ExpectedLatency(TINY, made_up_table(TINY)), torch.Generator().manual_seed(2)
    assert expected.is_linear
    assert knapsack.suits(TINY)
    prices, constant = expected.linear
    p = {name: torch.softmax(torch.randn(8, generator=generator), 0) for name in TINY.decisions}
    found = knapsack.best_between(TINY, scores_of(TINY, p, ranking), prices, constant, least=0.0, most=1e6)
    assert found == mode(TINY, p, ranking)
    assert mode(TINY, p, "odds") != mode(TINY, p, "strength")  # or the test could not tell them apart


def test_no_derived_cell_holds_none_and_each_node_has_two_distinct_predecessors(preset: Space) -> None:
    rng = Random(1)
    for _ in range(20):
        genotype = preset.random(rng)
        for cell, node in itertools.product(("normal", "reduction"), range(NODES)):
            assert sum(genotype[f"{cell}.{node}.{source}"] > 0 for source in range(node + 2)) == 2
        derived = preset.decode(genotype)
        chosen: dict[str, list[str]] = {}
        for node, origin in zip(derived.architecture.nodes, derived.origins, strict=True):
            slot = preset.slots[origin]
            if isinstance(slot.kind, Choice):
                chosen.setdefault(slot.label.split(".")[0], []).append(node.op)
        assert all(len(operations) == 8 and "none" not in operations for operations in chosen.values())


# ---- published networks

P_DARTS = DartsCells(
    ((SKIP, 0), ("dil_conv_3x3", 1), (SKIP, 0), (SEP, 1), (SEP, 1), (SEP, 3), (SEP, 0), ("dil_conv_5x5", 4)),
    ((AVG, 0), ("sep_conv_5x5", 1), (SEP, 0), ("dil_conv_5x5", 2), (MAX, 0), ("dil_conv_3x3", 1), ("dil_conv_3x3", 1), ("dil_conv_5x5", 3)),
)
"""The cells of P-DARTS (recalled), of whose network for CIFAR-10 a third party counted 3,433,798 parameters (chenxin061/pdarts, issue 7)."""


def by_hand(cells: DartsCells, width: int, depth: int, stem: int, widths: tuple[int, int], classes: int) -> int:
    """Parameters of DARTS's own network, term by term: convolutions as they are there, one normalisation each pair, pools without parameters."""
    before, previous, total = *widths, stem
    for index in range(depth):
        reduces = index in (depth // 3, 2 * depth // 3)
        width *= 2 if reduces else 1
        total += before * width + 2 * width + previous * width + 2 * width  # the inputs' units, a factorised reduction counts the same
        for operation, source in cells.reduction if reduces else cells.normal:
            if operation in (SEP, "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"):
                pair = int(operation[-1]) ** 2 * width + width * width + 2 * width
                total += 2 * pair if operation.startswith("sep") else pair
            elif operation == SKIP and reduces and source < 2:
                total += width * width + 2 * width
        before, previous = previous, 4 * width
    return total + previous * classes + classes


def depthwise_norms(network: Architecture, size: int) -> int:
    """Scales and shifts behind depthwise convolutions, which DARTS has none of: its pairs are depthwise, pointwise, normalisation."""
    found = (c for operation in network.operations(size, size) for c in convolutions(operation))
    return sum(2 * c.output.channels for c in found if c.groups > 1)


CIFAR_STEM = 27 * 108 + 2 * 108
IMAGENET_STEM = 27 * 24 + 2 * 24 + 9 * 24 * 48 + 2 * 48 + 9 * 48 * 48 + 2 * 48


@pytest.mark.parametrize(("cells", "published"), [(DARTS_V1, 3_169_414), (DARTS_V2, 3_349_342), (P_DARTS, 3_433_798)], ids=["V1", "V2", "P-DARTS"])
def test_the_networks_for_cifar_have_the_published_parameters_and_our_normalisations(cells: DartsCells, published: int) -> None:
    """DARTS_V2: 3,349,342 in DARTS's own count (published: 3.3 M, without the auxiliary head), 3,382,606 in ours, 1.0 % more: 33,264 are the scales
    and shifts of the depthwise convolutions, and there is no other difference."""
    network = darts_cifar(cells)
    ours = network_cost(network, 32, 32).parameters + linear_parameters(network, 10)
    assert by_hand(cells, 36, 20, CIFAR_STEM, (108, 108), 10) == published
    assert ours - depthwise_norms(network, 32) == published
    assert ours / published < 1.011
    assert network.nodes[-1].channels == 16 * 36
    assert network.levels[-1] == 2


def test_the_second_orders_network_rounds_to_the_published_figure() -> None:
    network = darts_cifar(DARTS_V2)
    ours = network_cost(network, 32, 32).parameters + linear_parameters(network, 10)
    assert ours == 3_382_606
    assert int(ours / 1e5) == int((ours - depthwise_norms(network, 32)) / 1e5) == 33  # 3.3 M, as the paper cuts it
    assert depthwise_norms(network, 32) == 33_264


def test_the_network_for_imagenet_has_the_published_parameters() -> None:
    """4.7 M: 4,718,752 in DARTS's count, 4,748,320 in ours. Multiply-adds are published as 574 M; ours are 530 M, and why is unknown to us."""
    network = darts_imagenet(DARTS_V2)
    ours = network_cost(network, 224, 224).parameters + linear_parameters(network, 1000)
    assert by_hand(DARTS_V2, 48, 14, IMAGENET_STEM, (48, 48), 1000) == 4_718_752
    assert ours - depthwise_norms(network, 224) == 4_718_752
    odd = [o for o in network.operations(224, 224) if o.op == "factorised_reduce"]
    padding = sum(o.inputs[0].channels * (o.output.channels // 2) * (o.output.height + o.output.width + 1) for o in odd)  # `ops.OddUnit`
    assert network_cost(network, 224, 224).macs - padding + 768 * 1000 == 529_911_552
    assert network.levels[-1] == 5


@pytest.mark.parametrize("cells", [DARTS_V1, DARTS_V2], ids=["V1", "V2"])
def test_published_cells_are_members_of_the_space(cells: DartsCells) -> None:
    genotype = cells.genotype
    TINY.check(genotype)
    for name, edges in (("normal", cells.normal), ("reduction", cells.reduction)):
        for node in range(NODES):
            kept = {(OPERATIONS[genotype[f"{name}.{node}.{source}"]], source) for source in range(node + 2) if genotype[f"{name}.{node}.{source}"]}
            assert kept == set(edges[2 * node : 2 * node + 2])


def test_a_cell_computes_what_darts_says() -> None:
    """A normal cell of the second order by hand: sums of two edges each, nodes 2 and 3 reading earlier ones, and their concatenation."""
    draft = Draft("cell", channels=4)
    before = draft.node(kind("conv"), 0, channels=12, label="before")
    darts_cell(draft, "normal", before, before, width=4, reduce=False, label="cell")
    made = draft.space()
    genotype = {name: option for name, option in DARTS_V2.genotype.items() if name.startswith("normal.")}
    derived = made.decode(genotype)
    network, x = Network(derived.architecture).eval(), torch.randn(1, 4, 10, 10)
    module = {made.slots[origin].label: network.nodes[str(i)] for i, origin in enumerate(derived.origins) if i}
    with torch.no_grad():
        first = module["before"]([x], (10, 10))
        states = [module["cell.before"]([first], (10, 10)), module["cell.previous"]([first], (10, 10))]
        for node in range(NODES):
            pairs = DARTS_V2.normal[2 * node : 2 * node + 2]
            states.append(sum(module[f"cell.{node}.{source}"]([states[source]], (10, 10)) for _, source in pairs))
        torch.testing.assert_close(network(x), torch.cat(states[2:], 1), rtol=1e-4, atol=1e-5)

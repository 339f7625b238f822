"""Fast-NAS: its space against its own spelling, its published decoders, and its two-stage scores (reference 4.7, points 1 and 5 to 11)."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from segnas import measuring
from segnas.augment import Augmentation, batches
from segnas.cost import network_cost
from segnas.data import Dataset, halves, network_input, open_dataset, read_image
from segnas.errors import InputError, UsageError, VerificationError
from segnas.exporting import export_engine
from segnas.kinds import Kind
from segnas.labels import CITYSCAPES
from segnas.metrics import ConfusionMatrix
from segnas.mobilenet import mobilenet_v2_nodes
from segnas.network import Network, initialised
from segnas.ops import build
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.search.auxiliary_cells import AuxiliaryCells, ContextualCell, block_nodes
from segnas.search.controlled_search import candidates, proxy_of, teacher_of
from segnas.search.controlled_settings import StagedSettings
from segnas.search.designs import NONE, OPERATIONS, Design, design_of, design_of_actions
from segnas.search.frozen import Backbone, Tail, backbone_architecture
from segnas.search.polyak import PolyakAverage, re_estimated
from segnas.search.published_fastnas import ARCH0, ARCH1, ARCH2, fast_nas_0
from segnas.search.ranked import Surroundings
from segnas.search.references import reference
from segnas.search.rewards import confusion, qualities
from segnas.search.sampled import Noted
from segnas.search.settings import SampledSettings, SearchSettings, TrainSettings
from segnas.search.slots import Choice
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.spaces.fastnas import fast_nas, fast_nas_proxy, network, operations
from segnas.search.staged_score import Candidate, Gate, TwoStageScore
from segnas.search.trials import SampledTrial
from segnas.streets import write_streets
from segnas.target import Target

PUBLISHED = {"fast-nas-0": ARCH0, "fast-nas-1": ARCH1, "fast-nas-2": ARCH2}


def designs(layers: int = 3, blocks: int = 3, taps: int = 4) -> st.SearchStrategy[Design]:
    """Any decoder that is not refused."""
    operation = st.integers(0, NONE - 1)
    rows = st.tuples(*(st.tuples(*[st.integers(0, 1 + 3 * i)] * 2, operation, operation) for i in range(layers)))
    pairs = st.tuples(*(st.tuples(*[st.integers(0, taps + b - 1)] * 2) for b in range(blocks)))
    return st.builds(Design, operation, rows, pairs, st.just(taps))


@functools.cache
def seven() -> Space:
    return fast_nas(7)


@functools.cache
def proxy_kinds() -> dict[str, tuple[Kind, ...]]:
    """The operations of each decision of a cell, separable ones once."""
    return {s.kind.decision: s.kind.options for s in fast_nas_proxy(5).slots if isinstance(s.kind, Choice)}


@pytest.fixture(scope="module")
def whole() -> Space:
    return seven()


# ---- the space and its spelling


def test_known_counts(whole: Space) -> None:
    """4^2 5^2 6^2 connections and (2 5 8)^2 positions; operations by listing: never `none` first, and at most once behind."""
    connections = math.prod(size for name, size in whole.decisions.items() if name.startswith("block."))
    assert connections == 14_400
    assert math.prod(size for name, size in whole.decisions.items() if ".pos." in name) == (2 * 5 * 8) ** 2
    listed = 10 * sum(sum(o == 0 for o in options) < 2 for options in itertools.product(range(11), repeat=6))
    assert whole.count() == connections * 6400 * listed == 1_474_560_000_000_000
    assert len(OPERATIONS) == 11
    assert space("fast-nas-small", 7).count() == 3**2 * 4**2 * (2 * 5) ** 2 * 10 * (10**4 + 4 * 10**3)


@given(designs())
@settings(max_examples=100, deadline=None)
def test_design_actions_and_genotype_go_round(design: Design) -> None:
    assert design_of_actions(design.actions) == design
    assert design_of(design.genotype) == design
    assert len(design.actions) == 20
    seven().check(design.genotype)


@pytest.mark.parametrize("design", PUBLISHED.values(), ids=PUBLISHED)
def test_published_decoders_are_genotypes_of_the_space(design: Design, whole: Space) -> None:
    whole.check(design.genotype)
    assert design_of(design.genotype) == design
    assert set(design.genotype) == set(whole.decisions)


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ((8, ((0, 2, 5, 2),), ((3, 3),)), "a position of layer 1 is 2; 0 to 1"),
        ((8, ((0, 1, 5, 2), (0, 5, 1, 1)), ((3, 3),)), "a position of layer 2 is 5; 0 to 4"),
        ((8, ((0, 1, 5, 11),), ((3, 3),)), "an operation of layer 1 is 11; 0 to 10"),
        ((8, ((0, 1, 5, 1),), ((3, 3), (4, 5))), "a connection of block 1 is 5; 0 to 4"),
        ((11, (), ((3, 3),)), "the first operation is 11"),
        ((10, ((0, 1, 5, 1),), ((3, 3),)), "1 operations `none`"),
        ((8, ((0, 1, 10, 10),), ((3, 3),)), "2 operations `none`"),
    ],
)
def test_strings_that_are_none_are_refused(
    design: tuple[int, tuple[tuple[int, int, int, int], ...], tuple[tuple[int, int], ...]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Design(*design)


@pytest.mark.parametrize("actions", [(0, 8), (1, *ARCH0.actions[1:]), ARCH0.actions[:-1], (*ARCH0.actions[:2], 2, *ARCH0.actions[3:])])
def test_actions_that_are_none_are_refused(actions: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        design_of_actions(actions)


def test_no_cell_that_obeys_the_rule_is_dead_and_with_two_absences_some_are() -> None:
    """Every choice of positions in a cell of three layers, with `none` nowhere or in one of its six places; the space's own liveness, by hand."""

    def alive(positions: Sequence[int], absent: set[int]) -> bool:
        entries, loose = [True, True], {1}
        for layer in range(3):
            pair = positions[2 * layer : 2 * layer + 2]
            sides = [entries[at] and 2 * layer + side not in absent for side, at in enumerate(pair)]
            entries += [*sides, any(sides)]
            loose = (loose - set(pair)) | {len(entries) - 1}
        return any(entries[at] for at in loose)

    places = list(itertools.product(range(2), range(2), range(5), range(5), range(8), range(8)))
    assert all(alive(at, absent) for at in places for absent in (set[int](), *({i} for i in range(6))))
    assert not all(alive(at, {0, 3}) for at in places)


def test_a_genotype_with_one_absence_decodes_whatever_it_reads() -> None:
    small, rng = space("fast-nas-small", 5), Random(0)
    names = [name for name in small.decisions if ".op." in name and name != "cell.op.0"]
    for name in names:
        for _ in range(40):
            genotype = {**small.random(rng), **dict.fromkeys(names, 3), name: 0}
            small.decode(genotype).architecture.require_segmentation()


# ---- the decoded network, against the decoder as the released code writes it


class ByTheBook:
    """A decoder as nn/micro_decoders.py of the released code runs it, from a design, with modules that are asked for by their place."""

    def __init__(self, design: Design, made: Mapping[str, nn.Module]) -> None:
        self.design, self.made = design, made

    def run(self, place: str, feature: Tensor) -> Tensor:
        return self.made[place]([feature], tuple(feature.shape[-2:]))

    def cell(self, x: Tensor, name: str) -> Tensor:
        entries, loose = [x, self.run(f"{name}.op.0", x)], [1]
        for layer, (left, right, *_) in enumerate(self.design.layers, 1):
            loose = [entry for entry in loose if entry not in (left, right)]
            a, b = self.run(f"{name}.op.{layer}.0", entries[left]), self.run(f"{name}.op.{layer}.1", entries[right])
            entries += [a, b, a + b]
            loose.append(len(entries) - 1)
        return sum((entries[entry] for entry in loose[1:]), start=entries[loose[0]])

    def __call__(self, taps: Mapping[int, Tensor], size: tuple[int, int]) -> Tensor:
        pool = [self.run(f"adapt.{2**level}", tap) for level, tap in taps.items()]
        first, loose = len(pool), list[int]()
        for block, pair in enumerate(self.design.connections):
            sides: list[Tensor] = []
            for side, entry in enumerate(pair):
                name = f"block.{block}.{side}.{round(size[0] / pool[entry].shape[-2])}"
                sides.append(self.run(f"{name}.point", self.cell(pool[entry], name)))
            left, right = alike(sides)
            pool.append(left + right)
            loose = [entry for entry in loose if entry not in pair] + [first + block]
        joined = torch.cat(alike([pool[entry] for entry in loose]), 1).relu()
        stride = round(size[0] / joined.shape[-2])
        scores = self.run(f"output.{stride}.classifier", self.run(f"output.{stride}.point", joined))
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def alike(features: Sequence[Tensor]) -> list[Tensor]:
    """All at the size of the largest."""
    size = max(tuple(f.shape[-2:]) for f in features)
    return [f if tuple(f.shape[-2:]) == size else F.interpolate(f, size=size, mode="bilinear", align_corners=False) for f in features]


def with_statistics(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.eval()


def check_by_the_book(made: Space, design: Design, image: Tensor) -> None:
    """The decoded network's logits are those of the released decoder with the same modules, found by their labels."""
    architecture = made.decode(design.genotype).architecture
    net = Network(architecture)
    with_statistics(net)
    modules = {node.label: net.nodes[str(index)] for index, node in enumerate(architecture.nodes) if index}
    levels = architecture.levels
    last = {levels[i]: i for i, node in enumerate(architecture.nodes) if node.label.startswith("mobilenetv2.")}
    height, width = int(image.shape[-2]), int(image.shape[-1])
    with torch.no_grad():
        logits, found = net.features(image, last.values())
        taps = {
            level: found[last[level]] if level in last else torch.zeros(1, 1, height >> level, width >> level) for level in range(6 - design.taps, 6)
        }
        expected = ByTheBook(design, Spare(modules))(taps, (height, width))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


class Spare(dict[str, nn.Module]):
    """Modules by label; what no block reads (an adapter, here) is none of the network's, and nobody looks at what it gives."""

    def __missing__(self, label: str) -> nn.Module:
        assert label.startswith("adapt.")
        return Unread()


class Unread(nn.Module):
    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        return torch.full((features[0].shape[0], 1, *size), float("nan"))


@pytest.mark.parametrize("design", PUBLISHED.values(), ids=PUBLISHED)
def test_published_decoders_compute_what_the_released_code_says(design: Design, whole: Space) -> None:
    check_by_the_book(whole, design, torch.randn(1, 3, 64, 96))


@given(designs(2, 2, 3), st.integers(0, 10))
@settings(max_examples=12, deadline=None)
def test_any_decoder_computes_what_the_released_code_says(design: Design, seed: int) -> None:
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    check_by_the_book(space("fast-nas-small", 5), design, image)


def test_wide_decoders_with_every_pattern_of_loose_blocks_compute_it_too() -> None:
    """Three blocks: which of the first two are read by none, the other, or the last."""
    made = network("toy", 5, width=8, repeats=1, layers=1, multiplier=0.1)
    for pairs in itertools.product([(0, 1), (2, 3)], [(1, 2), (4, 0), (4, 4)], [(0, 3), (4, 1), (5, 2), (4, 5), (5, 5)]):
        check_by_the_book(made, Design(2, ((1, 0, 3, 4),), pairs), torch.randn(1, 3, 64, 64))


# ---- published networks


@pytest.mark.parametrize(
    ("name", "parameters", "published", "macs", "published_macs"),
    [
        ("fast-nas-0", 2_632_810, 2.6e6, 4_132_691_968, 4.47e9),
        ("fast-nas-1", 2_813_546, 2.8e6, 2_762_178_560, 2.95e9),
        ("fast-nas-2", 2_850_410, 2.9e6, 3_280_461_824, 3.47e9),
    ],
)
def test_published_networks_have_the_published_parameters_to_their_digit(
    name: str, parameters: int, published: float, macs: int, published_macs: float
) -> None:
    """On VOC's 21 classes at 512x512; multiply-adds are 5 to 8 % fewer than published (all figures recalled, no gate)."""
    cost = network_cost(reference(name, 21), 512, 512)
    assert (cost.parameters, cost.macs) == (parameters, macs)
    assert round(cost.parameters / 1e5) == round(published / 1e5)
    assert 0.92 < cost.macs / published_macs < 0.95


def test_parameters_of_the_first_network_term_by_term() -> None:
    """Without `segnas.cost`: encoder, adapters, six cells of [8, [0, 0, 5, 2], [0, 2, 8, 8], [0, 5, 1, 4]], blocks, output."""
    c = 64
    encoder, width = 3 * 9 * 32 + 2 * 32, 32
    for expansion, out, repeats in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
        for _ in range(repeats):
            hidden = width * expansion
            encoder += (width * hidden + 2 * hidden if expansion > 1 else 0) + 9 * hidden + 2 * hidden + hidden * out + 2 * out
            width = out
    unit = c * c + 2 * c
    adapters = 24 * c + 320 * c + 96 * c + 3 * 2 * c  # arch0 reads three of the four taps
    large, small = 2 * (25 * c + 2 * c + unit), 2 * (9 * c + 2 * c + unit)  # separable, twice
    dense = 9 * c * c + 2 * c
    cell = large + (dense + small) + 2 * large + (dense + unit)
    output = 3 * c * c + 2 * c + 9 * c * 21 + 2 * 21
    assert network_cost(fast_nas_0(21), 512, 512).parameters == encoder + adapters + 6 * (cell + unit) + output


def test_the_proxy_has_the_same_decisions_and_is_narrower() -> None:
    whole, proxy = fast_nas(19), fast_nas_proxy(19)
    assert whole.decisions == proxy.decisions
    assert whole.rules == proxy.rules
    genotype = ARCH2.genotype
    assert (
        network_cost(proxy.decode(genotype).architecture, 256, 256).parameters
        < network_cost(whole.decode(genotype).architecture, 256, 256).parameters
    )
    assert proxy_of(whole) == proxy
    assert proxy_of(space("fast-nas-small", 19)).name == "fast-nas-small"


def test_the_encoder_is_mobilenet_v2(whole: Space) -> None:
    nodes = mobilenet_v2_nodes()
    slots = [slot for slot in whole.slots if slot.label.startswith("mobilenetv2.")]
    assert [(s.kind, s.channels, s.stride, s.label) for s in slots] == [(n.kind, n.channels, n.stride, n.label) for n in nodes[1:]]
    adapted = {slot.label: whole.slots[slot.sources[0]].channels for slot in whole.slots if slot.label.startswith("adapt.")}
    assert adapted == {"adapt.4": 24, "adapt.8": 32, "adapt.16": 96, "adapt.32": 320}


# ---- auxiliary cells


@given(designs(3, 1))
@settings(max_examples=15, deadline=None)
def test_an_auxiliary_cell_is_the_searched_cell(design: Design) -> None:
    kinds = proxy_kinds()
    torch.manual_seed(0)
    cell = ContextualCell(kinds, design.genotype, 8)
    with_statistics(cell)
    made = {f"c.{name.removeprefix('cell_').replace('_', '.')}": module for name, module in cell.operations.items()}
    x = torch.randn(1, 8, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(cell(x), ByTheBook(design, made).cell(x, "c"), rtol=1e-5, atol=1e-6)


def test_an_auxiliary_cell_leaves_out_what_is_absent() -> None:
    """With `none` at one side of a layer, the cell is the one with that addend left out, as in the decoded network."""
    kinds = proxy_kinds()
    genotype = {**ARCH0.genotype, "cell.op.1.0": 0}
    cell = ContextualCell(kinds, genotype, 8)
    with_statistics(cell)
    x = torch.randn(1, 8, 16, 24)

    def op(name: str, feature: Tensor) -> Tensor:
        return cell.operations[name]([feature], (16, 24))

    with torch.no_grad():
        first = op("cell_op_0", x)
        # layer 1 reads (0, 0): entries 2 (absent) and 3, sum 4; layer 2 reads (0, 2): 5 and 6 (absent), sum 7; layer 3 reads (0, 5): 8, 9, sum 10
        third = op("cell_op_1_1", x)
        fifth = op("cell_op_2_0", x)
        tenth = op("cell_op_3_0", x) + op("cell_op_3_1", fifth)
        torch.testing.assert_close(cell(x), first + third + fifth + tenth)


def test_auxiliary_cells_are_no_part_of_the_network() -> None:
    small = space("fast-nas-small", 7)
    genotype = small.random(Random(1))
    derived = small.decode(genotype).architecture
    torch.manual_seed(0)
    net = Network(derived)
    with_statistics(net)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net(image)
        names, cost = set(net.state_dict()), network_cost(derived, 64, 96)
        cells = AuxiliaryCells(small, genotype, net)
        logits, features = net.features(image, cells.taps)
        auxiliary = cells.eval()(features)
    assert torch.equal(before, logits)
    assert set(net.state_dict()) == names == set(Network(derived).state_dict())
    assert network_cost(derived, 64, 96) == cost
    assert sum(p.numel() for p in net.parameters()) == cost.parameters
    assert len(auxiliary) == len(block_nodes(derived)) == 2
    assert {tuple(a.shape[:2]) for a in auxiliary} == {(1, 7)}
    assert sum(p.numel() for p in cells.parameters()) > 0


def test_a_space_without_blocks_has_no_auxiliary_cells() -> None:
    tiny = space("cas-tiny", 7)
    genotype = next(tiny.genotypes())
    with pytest.raises(InputError, match="no blocks for auxiliary cells"):
        AuxiliaryCells(tiny, genotype, Network(tiny.decode(genotype).architecture))


# ---- Polyak averages


def test_with_decay_0_the_average_is_the_last_weights_and_else_the_closed_form() -> None:
    parameter = torch.tensor([1.0])
    last, averaged = PolyakAverage({"p": parameter}, 0.0), PolyakAverage({"p": parameter}, 0.3)
    expected = 1.0
    for update in range(1, 8):
        parameter.fill_(float(update * update))
        last.update()
        averaged.update()
        decay = min(0.3, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update * update
    assert float(last.average["p"]) == 49.0
    assert float(averaged.average["p"]) == pytest.approx(expected)
    averaged.swap_in()
    assert float(parameter) == pytest.approx(expected)


def test_statistics_are_estimated_anew() -> None:
    layer = nn.BatchNorm2d(3)
    batches = [torch.randn(4, 3, 5, 6) * 3 + 1 for _ in range(3)]
    layer(torch.full((2, 3, 4, 4), 9.0) + torch.randn(2, 3, 4, 4))
    re_estimated(layer, layer, batches)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    torch.testing.assert_close(layer.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert (layer.training, layer.momentum) == (False, 0.1)
    with pytest.raises(InputError, match="no batch"):
        re_estimated(layer, layer, [])


# ---- the reward


def by_pixels(truth: np.ndarray, predicted: np.ndarray, background: set[str]) -> tuple[float, float, float]:
    """The three factors pixel set by pixel set."""
    known = np.isin(truth, [label.id for label in CITYSCAPES.classes])
    ious, accuracies, weighted, total = [], [], 0.0, 0
    for label in CITYSCAPES.classes:
        if label.name in background:
            continue
        right, there, said = truth == label.id, truth == label.id, (predicted == label.id) & known
        both = int((right & said).sum())
        if there.sum() + said.sum():
            ious.append(both / int((there | said).sum()))
        if there.sum():
            accuracies.append(both / int(there.sum()))
            weighted += int(there.sum()) * ious[-1]
            total += int(there.sum())
    return float(np.mean(ious)), float(np.mean(accuracies)), weighted / total


@given(st.integers(0, 10**6), st.sampled_from([set[str](), {"road"}, {"road", "car"}]))
@settings(max_examples=40, deadline=None)
def test_the_factors_are_those_of_counting_pixels(seed: int, background: set[str]) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 7, 8, 11, 26], (6, 9)).astype(np.uint8)
    truth[0, 0] = 11
    predicted = np.where(rng.random((6, 9)) < 0.5, truth, rng.choice([7, 8, 11, 26, 33], (6, 9))).astype(np.uint8)
    predicted = np.where(np.isin(predicted, [0]), 7, predicted).astype(np.uint8)
    matrix = ConfusionMatrix(CITYSCAPES)
    matrix.add(truth, predicted)
    found = qualities(matrix, background)
    assert (found.mean_iou, found.mean_accuracy, found.weighted_iou) == pytest.approx(by_pixels(truth, predicted, background))
    assert found.reward == pytest.approx((found.mean_iou * found.mean_accuracy * found.weighted_iou) ** (1 / 3))


def test_background_moves_nothing_and_a_factor_of_0_makes_0() -> None:
    truth = np.array([[7, 7, 11, 11]], np.uint8)
    matrix = ConfusionMatrix(CITYSCAPES)
    matrix.add(truth, np.array([[7, 7, 7, 7]], np.uint8))
    assert qualities(matrix).mean_iou == pytest.approx(0.25)
    assert qualities(matrix, {"road"}).reward == 0.0
    assert qualities(ConfusionMatrix(CITYSCAPES)).reward == 0.0


def test_confusion_is_the_argmax_of_resized_logits() -> None:
    logits = torch.randn(1, 19, 4, 8, generator=torch.Generator().manual_seed(0))
    truth = np.full((8, 16), 7, np.uint8)
    matrix = confusion(lambda _: logits, [truth], CITYSCAPES)
    larger = F.interpolate(logits, size=(8, 16), mode="bilinear", align_corners=False)[0].argmax(0)
    expected = ConfusionMatrix(CITYSCAPES)
    expected.add(truth, CITYSCAPES.ids(larger.to(torch.uint8).numpy()))
    assert matrix == expected


# ---- the gate


def test_the_gates_level_is_the_corrected_average() -> None:
    gate = Gate(0.7, 0.0)
    assert gate.level([]) == 0.0
    assert gate.level([0.4]) == pytest.approx(0.4)
    assert gate.level([0.4, 0.4, 0.4]) == pytest.approx(0.4)
    assert gate.level([0.1, 0.5]) == pytest.approx((0.7 * 0.3 * 0.1 + 0.3 * 0.5) / (1 - 0.49))


def test_the_tolerance_shrinks_at_each_threshold_and_never_jumps_over_one() -> None:
    gate = Gate(0.99, 0.9)
    assert [gate.share(n) for n in (0, 99, 100, 199, 200, 1000)] == pytest.approx([0.9, 0.9, 0.81, 0.81, 0.648, 0.9**2 * 0.8 * 0.7 * 0.6])


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.floats(0, 1), st.floats(0, 0.5), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_the_gate_is_monotone(earlier: list[float], reward: float, more: float, seed: int) -> None:
    gate = Gate(0.9, 0.5)
    if gate.passes(reward, earlier, Random(seed)):
        assert gate.passes(reward + more, earlier, Random(seed))
    assert gate.passes(gate.level(earlier) + 1e-9, earlier, Random(seed))
    assert not Gate(0.9, 0.0).passes(gate.level(earlier) - 1e-9, earlier, Random(seed))


# ---- the two stages


QUICK = SearchSettings(
    method="fast-nas",
    crop=(64, 64),
    scale=(0.75, 1.25),
    batch=4,
    sampled=SampledSettings(crops=8, backbone_steps=2),
    staged=StagedSettings(epochs=2, steps=2, batch=2, crop=(64, 64), images=3, gate_decay=0.5, tolerance=0.0),
)
SIZE = (64, 128)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 8}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


@pytest.fixture(scope="module")
def small() -> Space:
    return space("fast-nas-small", 19)


@pytest.fixture(scope="module")
def work(small: Space, streets: Dataset) -> TwoStageScore:
    torch.manual_seed(0)
    teacher = Network(backbone_architecture(small))
    with_statistics(teacher)
    places = {node.label: index for index, node in enumerate(teacher.architecture.nodes) if node.label.startswith("mobilenetv2.")}
    weights = {
        f"{label}/{name.removeprefix(f'nodes.{index}.')}": tensor
        for label, index in places.items()
        for name, tensor in teacher.state_dict().items()
        if name.startswith(f"nodes.{index}.")
    }
    return TwoStageScore(small, Backbone(small, weights, "made up"), teacher, streets, QUICK, SIZE, 0)


def test_cached_features_are_those_of_the_live_encoder(work: TwoStageScore) -> None:
    candidate = Candidate(work, work.space.random(Random(0)))
    candidate.network.eval()
    places = {node.label: index for index, node in enumerate(candidate.network.architecture.nodes)}
    with torch.no_grad():
        for place, index in enumerate(work.judging):
            logits, live = candidate.network.features(work.image(index), [places[label] for label in work.backbone.taps if label in places])
            for label, feature in work.held_out.items():
                if label in places:
                    torch.testing.assert_close(feature[place : place + 1], live[places[label]], rtol=1e-5, atol=1e-6)
            taps = {label: feature[place : place + 1] for label, feature in work.held_out.items()}
            torch.testing.assert_close(candidate.tail(taps, SIZE), logits, rtol=1e-4, atol=1e-5)


def test_cached_crops_are_those_of_the_live_encoder_under_the_same_augmentation(work: TwoStageScore) -> None:
    """The eight crops are two epochs of the four images that are learned from: drawn again, and sent through the whole network and the teacher."""
    network, crops = Candidate(work, work.space.random(Random(0))).network.eval(), work.crops
    assert work.learning.samples == tuple(work.dataset.samples[index] for index in halves(8, 0)[0])
    frozen = Augmentation((64, 64), (0.75, 1.25))
    drawn = [b for epoch in range(2) for b in batches(work.learning, range(4), seed=0, epoch=epoch, batch_size=4, augmentation=frozen, workers=0)]
    images = torch.cat([batch.images for batch in drawn])
    assert not torch.equal(images[:4].sort(0).values, images[4:].sort(0).values)  # each epoch augments otherwise
    assert torch.equal(crops.labels.long(), torch.cat([batch.labels for batch in drawn]))
    places = {node.label: index for index, node in enumerate(network.architecture.nodes)}
    taps = {label: places[label] for label in work.backbone.taps if label in places}
    assert len(taps) > 1
    assert work.teacher is not None
    assert crops.logits is not None
    with torch.no_grad():
        logits, live = network.features(images, taps.values())
        for label, place in taps.items():
            torch.testing.assert_close(crops.features[label], live[place], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(Tail(network)(crops.features, (64, 64)), logits, rtol=1e-4, atol=1e-5)
        taught = F.interpolate(work.teacher(images), size=(8, 8), mode="bilinear", align_corners=False)
        torch.testing.assert_close(crops.logits, taught, rtol=1e-4, atol=1e-5)


def statistics_of(module: nn.Module, run: Callable[[], object]) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean over the calls of mean and variance of what each normalisation of the module is given while `run` runs it in training mode."""
    seen: dict[str, list[Tensor]] = {name: [] for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)}

    def keep(name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[name].append(given[0])

    hooks = [module.get_submodule(name).register_forward_pre_hook(functools.partial(keep, name)) for name in seen]
    module.train()
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return {
        name: (torch.stack([x.mean((0, 2, 3)) for x in xs]).mean(0), torch.stack([x.var((0, 2, 3)) for x in xs]).mean(0)) for name, xs in seen.items()
    }


@pytest.mark.parametrize(("stage", "decay"), [(0, 0.9), (0, 0.0), (1, 0.99)])
def test_each_stage_scores_the_averaged_weights_with_the_statistics_of_those(
    work: TwoStageScore, monkeypatch: pytest.MonkeyPatch, stage: int, decay: float
) -> None:
    """First the average takes the place of the last weights, for good (the released code copies it into the model too), then normalisations are
    estimated. At decay 0 the average is the last weights.
    """
    raw, mean = dict[str, Tensor](), dict[str, Tensor]()
    original = PolyakAverage.swap_in

    def spied(average: PolyakAverage) -> None:
        raw.update({name: tensor.detach().clone() for name, tensor in average.tensors.items()})
        mean.update(average.average)
        original(average)

    monkeypatch.setattr(PolyakAverage, "swap_in", spied)
    staged = replace(QUICK.staged, polyak=decay, final_polyak=decay)
    candidate = Candidate(replace(work, settings=replace(QUICK, staged=staged)), work.space.random(Random(0)))
    work, module = candidate.work, (candidate.tail, candidate.network)[stage]
    (candidate.stage_0, candidate.stage_1)[stage]()
    found = {name: (layer.running_mean, layer.running_var) for name, layer in module.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    found = {name: tuple(value.clone() for value in values if value is not None) for name, values in found.items()}
    assert all(torch.equal(mean[name], parameter) for name, parameter in module.named_parameters())

    def again() -> None:
        if stage:
            images = [network_input(read_image(sample.image), *SIZE) for sample in work.learning.samples]
            for pair in (images[:2], images[2:]):
                module(torch.from_numpy(np.concatenate(pair)))
        else:
            order = np.random.default_rng((0, 3, 0)).permutation(8)
            for chosen in (order[:4], order[4:]):
                module({label: feature[chosen] for label, feature in work.crops.features.items()}, (64, 64))

    expected = statistics_of(module, again)
    assert expected.keys() == found.keys()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    module.load_state_dict(raw, strict=False)
    of_raw = statistics_of(module, again)
    assert (decay == 0.0) == all(torch.equal(raw[name], value) for name, value in mean.items())
    assert (decay == 0.0) == all(torch.allclose(found[name][0], of_raw[name][0], rtol=1e-4, atol=1e-5) for name in found)


def test_the_teacher_is_cached_at_the_finest_features_size(work: TwoStageScore) -> None:
    assert work.crops.logits is not None
    assert work.crops.logits.shape == (8, 19, 8, 8)
    assert len(work.crops) == 8
    assert {label: tuple(f.shape[-2:]) for label, f in work.crops.features.items()}["mobilenetv2.6"] == (8, 8)
    assert work.teacher is not None
    assert not work.teacher.training


def test_stage_0_leaves_the_backbone_as_it_is_and_stage_1_moves_it(work: TwoStageScore) -> None:
    candidate = Candidate(work, work.space.random(Random(0)))
    before = {name: tensor.clone() for name, tensor in candidate.network.state_dict().items()}
    first = candidate.stage_0()
    placed = set(work.backbone.placed(candidate.network.architecture))
    after = candidate.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in placed)
    assert any(not torch.equal(before[name], after[name]) for name in set(after) - placed)
    after = {name: tensor.clone() for name, tensor in after.items()}
    candidate.stage_1()
    assert any(not torch.equal(after[name], tensor) for name, tensor in candidate.network.state_dict().items() if name in placed)
    again = Candidate(work, work.space.random(Random(0)))
    assert again.stage_0() == first  # the same whenever it is asked for


def test_a_rejected_candidate_has_the_reward_of_stage_0_and_says_so(work: TwoStageScore, small: Space) -> None:
    genotype = small.random(Random(0))
    work.hear([SampledTrial(0, "complete", genotype, -0.9, notes={"stage0": -0.9})])  # a few steps may come to a reward of 0, which passes this only
    passed = work.score(genotype)
    work.hear([SampledTrial(0, "complete", genotype, 0.9, notes={"stage0": 0.9}), SampledTrial(1, "failed", genotype)])
    stopped = work.score(genotype)
    work.hear([])
    assert isinstance(passed, Noted)
    assert isinstance(stopped, Noted)
    assert passed.notes == {"stage0": float(stopped)}
    assert stopped.notes == {"stage0": float(stopped), "truncated": 1.0}
    open_gate = replace(work, settings=replace(QUICK, staged=replace(QUICK.staged, gate=False)))
    open_gate.hear([SampledTrial(0, "complete", genotype, 0.9, notes={"stage0": 0.9})])
    assert float(open_gate.score(genotype)) == float(passed)


def test_too_little_memory_and_a_loss_that_is_no_number_are_failures(work: TwoStageScore, small: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Candidate) -> None:
        raise torch.OutOfMemoryError("tried to allocate 40 GiB")

    with monkeypatch.context() as patched:
        patched.setattr(Candidate, "stage_0", no_memory)
        with pytest.raises(MemoryError, match="40 GiB"):
            work.score(small.random(Random(0)))
    broken = replace(work, settings=replace(QUICK, staged=replace(QUICK.staged, rate=1e30, clip=1e30)))
    with pytest.raises(VerificationError, match="the loss of a candidate is"):
        broken.score(small.random(Random(0)))


def test_a_teacher_takes_steps(small: Space, streets: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"search\.staged\.distil asks for a teacher"):
        teacher_of(small, streets, TrainSettings(), 0, Surroundings(tmp_path, None, "cpu", 0, lambda done, total, text="": None))


def test_candidates_are_ordered_by_the_last_stage_and_truncated_ones_come_last() -> None:
    def trial(number: int, score: float, stage0: float, *, truncated: bool = False) -> SampledTrial:
        notes = {"stage0": stage0, **({"truncated": 1.0} if truncated else {})}
        return SampledTrial(number, "complete", {"a": number}, score, price_ms=1.0, notes=notes)

    trials = [trial(0, 0.3, 0.1), trial(1, 0.9, 0.9, truncated=True), trial(2, 0.5, 0.05), SampledTrial(3, "failed", {"a": 3})]
    found = candidates(trials)
    assert [(c.genotype["a"], c.score, c.reranked) for c in found] == [(2, 0.05, 0.5), (0, 0.1, 0.3), (1, 0.9, None)]


def test_what_is_timed_is_in_evaluation_mode(small: Space, streets: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The released code timed networks in training mode (its erratum: 95.7 ms were 52.25)."""
    architecture, target, seen = small.decode(small.random(Random(0))).architecture, cpu_target(64, 64), list[bool]()
    monkeypatch.setattr(measuring, "open_session", lambda *_, **__: None)

    def told(network: Network, _: Target) -> bytes:
        seen.append(network.training)
        return b""

    monkeypatch.setattr(measuring, "engine_from_network", told)
    measuring.prepare_probe(architecture, target)
    assert seen == [False]
    with pytest.raises(InputError, match="the network is in training mode"):
        export_engine(initialised(architecture, 0).train(), target, tmp_path, dataset=streets)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match=r"search\.staged\.batch 1 was given; at least 2"):
        StagedSettings(batch=1)
    with pytest.raises(UsageError, match="polyak 1"):
        StagedSettings(polyak=1)
    with pytest.raises(UsageError, match="tolerance 2"):
        StagedSettings(tolerance=2)


def test_every_tail_is_whole(small: Space) -> None:
    net = Network(small.decode(small.random(Random(4))).architecture)
    assert {label.split(".")[0] for label in Tail(net).taps.values()} == {"mobilenetv2"}
    assert build(operations(1)["skip_connect"], (8,), 8, 1) is not None

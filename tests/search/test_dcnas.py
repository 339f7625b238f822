"""DCNAS: the dense grid, drawn paths, partial channels and their estimators (reference 3.10)."""

import itertools
import math
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.kinds import kind
from segnas.network import Network
from segnas.search.derive import mode, scores_of
from segnas.search.draws import networks
from segnas.search.regularise import Regulariser, gate_logits
from segnas.search.sampling import inclusion, one_hot, paths, softmax, zero_logits
from segnas.search.slots import Link
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.spaces.dcnas import INVERTED, grid
from segnas.search.supernet import Supernet, inherit


def small(layers: int = 2, **given) -> Space:
    return grid("toy-grid", 5, layers=layers, width=8, head=kind("separable"), head_width=8, **given)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Statistics and weights that differ between channels, so that equal outputs mean equal computations."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1, generator=generator)
                layer.running_var.uniform_(0.5, 2, generator=generator)
    return module.eval()


def plackett_luce(p: torch.Tensor, n: int) -> dict[tuple[int, ...], float]:
    """Probability of each ordered draw of n without replacement."""
    found: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(p)), n):
        chance, left = 1.0, 1.0
        for item in order:
            chance *= float(p[item]) / left
            left -= float(p[item])
        found[order] = chance
    return found


# ---- the grid


@pytest.mark.parametrize(("layers", "links"), [(1, 16), (3, 96), (8, 576), (14, 1680)])
def test_every_link_comes_from_an_earlier_layer_and_there_are_as_many_as_known(layers: int, links: int) -> None:
    made = grid("g", 5, layers=layers, width=8, head=kind("conv"), head_width=8)
    names = [name for name in made.decisions if name.startswith("link.")]
    assert len(names) == links == 8 * layers * (layers + 1)
    for name in names:
        layer, _, source, _ = map(int, name.split(".")[1:])
        assert source < layer
    for rule in made.rules:
        layer = int(rule.decisions[0].split(".")[1])
        assert len(rule.decisions) == 4 * layer
        assert (rule.low, rule.high) == (1, min(3, 4 * layer))


def test_the_papers_depth_has_as_many_networks_as_known() -> None:
    assert 10**216 <= space("dcnas", 19).count() < 10**217  # the notes: 10^216 for a fan-in of at most 3 and three operators


def test_fused_features_have_their_cells_shape_also_at_odd_sizes() -> None:
    made = small(1)
    supernet = randomised(Supernet(made))
    wanted = [i for i, slot in enumerate(made.slots) if slot.label.endswith(".fusion")]
    with torch.no_grad():
        logits, features = supernet.features(torch.randn(1, 3, 97, 129), softmax(made, zero_logits(made)), wanted)
    assert logits.shape == (1, 5, 97, 129)
    for index in wanted:
        scale = int(made.slots[index].label.split(".")[1])
        side = [math.ceil(size / 2 ** (scale + 2)) for size in (97, 129)]
        assert tuple(features[index].shape) == (1, 8 * 2**scale, *side)
        sources = {(link.source, made.levels[link.source]) for link in made.slots[index].inputs if isinstance(link, Link)}
        assert {level for _, level in sources} == {scale + 2}


def test_the_first_versions_operators_fit_the_grid() -> None:
    made = small(1, candidates=INVERTED)
    assert made.decisions["cell.1.0"] == 6
    with torch.no_grad():
        assert Network(made.decode(made.random(Random(0))).architecture).eval()(torch.randn(1, 3, 64, 64)).shape == (1, 5, 64, 64)


@pytest.mark.parametrize(("layers", "fan_in"), [(0, 3), (2, 0)])
def test_a_grid_of_nothing_is_refused(layers: int, fan_in: int) -> None:
    with pytest.raises(InputError, match="at least 1 of each"):
        small(layers, fan_in=fan_in)


@pytest.mark.parametrize("name", ["dcnas-small", pytest.param("dcnas", marks=pytest.mark.slow)])
def test_decoded_graphs_are_connected_and_keep_their_fan_in(name: str) -> None:
    made = space(name, 5)
    for architecture in networks(made, 5, Random(0)):
        readers = [0] * len(architecture.nodes)
        for node in architecture.nodes:
            for source in node.inputs:
                readers[source] += 1
        assert all(readers[:-1])  # every node leads to the output
        assert all(node.inputs for node in architecture.nodes[1:])  # and comes from the image
    rng = Random(1)
    for _ in range(5):
        genotype = made.random(rng)
        for rule in made.rules:
            assert 1 <= sum(genotype[link] for link in rule.decisions) <= 3


# ---- drawn paths


def test_draws_follow_plackett_luce() -> None:
    made = small(1)
    rule = made.rules[0]
    logits = {name: values.detach() for name, values in zero_logits(made).items()}
    for name, strength in zip(rule.decisions, (0.0, 1.0, -0.5, 2.0), strict=True):
        logits[name] = torch.tensor([0.0, strength])
    p = torch.softmax(torch.tensor([0.0, 1.0, -0.5, 2.0]), 0)
    expected = dict.fromkeys(rule.decisions, 0.0)
    for order, chance in plackett_luce(p, 2).items():
        for item in order:
            expected[rule.decisions[item]] += chance
    generator, counts, draws = torch.Generator().manual_seed(0), dict.fromkeys(rule.decisions, 0), 4000
    for _ in range(draws):
        sample = paths(made, logits, n=2, generator=generator)
        on = [name for name in rule.decisions if sample.active[name] == (1,)]
        assert len(on) == 2
        assert sum(float(sample.weights[name][1]) for name in rule.decisions) == pytest.approx(1, abs=1e-6)
        for name in on:
            counts[name] += 1
    for name, chance in expected.items():
        assert abs(counts[name] / draws - chance) < 4 * math.sqrt(chance * (1 - chance) / draws)


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=6), st.integers(1, 6))
def test_inclusion_equals_enumeration(strengths: list[float], n: int) -> None:
    p, n = torch.softmax(torch.tensor(strengths, dtype=torch.float64), 0), min(n, len(strengths))
    chances = [0.0] * len(p)
    for order, chance in plackett_luce(p, n).items():
        for item in order:
            chances[item] += chance
    assert inclusion(p, n).tolist() == pytest.approx(chances, abs=1e-9)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_each_estimator_has_its_own_expectation(gate) -> None:
    """Over all draws of 2 of 4: Horvitz-Thompson gives the whole sum; shares give the mean of the renormalised sums, which is another number."""
    made = small(1)
    rule, values = made.rules[0], torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)
    logits = {name: tensor.detach().double() for name, tensor in zero_logits(made).items()}
    odds = torch.tensor([0.4, 1.5, -0.8, -1.0], dtype=torch.float64)
    for name, strength in zip(rule.decisions, odds, strict=True):
        logits[name] = torch.stack([torch.zeros((), dtype=torch.float64), strength])
    strengths = odds.exp() if gate == "softmax" else odds.sigmoid()
    p = strengths / strengths.sum()
    exact_share = sum(c * float((p[list(o)] * values[list(o)]).sum() / p[list(o)].sum()) for o, c in plackett_luce(p, 2).items())
    generator = torch.Generator().manual_seed(0)

    def mean(estimator, draws: int = 1500) -> tuple[float, float]:
        found = []
        for _ in range(draws):
            sample = paths(made, logits, n=2, generator=generator, gate=gate, estimator=estimator)
            found.append(sum(float(sample.weights[name][1]) * float(v) for name, v in zip(rule.decisions, values, strict=True)))
        tensor = torch.tensor(found)
        return float(tensor.mean()), float(tensor.std()) / math.sqrt(draws)

    shares, error = mean("share")
    assert abs(shares - exact_share) < 4 * error
    whole, error = mean("ht")
    assert abs(whole - float((p * values).sum())) < 4 * error
    assert abs(exact_share - float((p * values).sum())) > 0.01  # or the test could not tell them apart


def test_all_links_and_all_channels_are_the_dense_supernet() -> None:
    """The master test: n = m, r = 1 gives the output and the gradients of the sum over every link, weighted by its share."""
    made = small()
    torch.manual_seed(0)
    supernet = randomised(Supernet(made))
    image = torch.randn(2, 3, 64, 96)
    logits = {name: torch.randn(size, requires_grad=True) for name, size in made.decisions.items()}
    drawn = paths(made, logits, n=99, generator=torch.Generator().manual_seed(0))
    output = supernet(image, drawn)
    gradients = torch.autograd.grad(output.pow(2).sum(), list(logits.values()))
    dense = softmax(made, logits)
    for rule in made.rules:
        odds = torch.stack([logits[name][1] - logits[name][0] for name in rule.decisions])
        for name, share in zip(rule.decisions, torch.softmax(odds, 0), strict=True):
            dense.weights[name] = torch.stack([torch.zeros(()), share])
    reference = supernet(image, dense)
    assert torch.allclose(output, reference, atol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(reference.pow(2).sum(), list(logits.values())), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def test_only_drawn_links_get_gradient_from_the_loss_and_all_from_the_fan_in() -> None:
    made = small()
    logits = zero_logits(made)
    sample = paths(made, logits, n=2, generator=torch.Generator().manual_seed(3))
    Supernet(made)(torch.randn(2, 3, 32, 32), sample).pow(2).sum().backward()
    links = [name for name in made.decisions if name.startswith("link.")]
    off = [name for name in links if sample.active[name] == (0,)]
    assert off
    assert all(logits[name].grad is None or not logits[name].grad.abs().sum() for name in off)
    assert any(logits[name].grad is not None and logits[name].grad.abs().sum() > 0 for name in links)
    regulariser = Regulariser(made)
    regulariser.fan_in({name: torch.softmax(values - torch.arange(len(values)) * 9, 0) for name, values in logits.items()}).backward()
    assert all(logits[name].grad is not None and logits[name].grad.abs().sum() > 0 for name in off)


# ---- partial channels


def test_channels_whose_turn_it_is_not_pass_unchanged_and_all_get_their_turn() -> None:
    made = small(1)
    supernet = randomised(Supernet(made, parts=4))
    fusion = {made.slots[i].label: i for i in range(len(made.slots)) if made.slots[i].label.endswith(".fusion")}
    cells = {label.removesuffix(".fusion"): next(i for i, s in enumerate(made.slots) if s.label == label.removesuffix(".fusion")) for label in fusion}
    image, sample = torch.randn(1, 3, 64, 64), softmax(made, zero_logits(made))
    changed: dict[str, set[int]] = {cell: set() for cell in cells}
    for turn in range(4):
        supernet.turn = turn
        with torch.no_grad():
            _, features = supernet.features(image, sample, [*fusion.values(), *cells.values()])
        for cell, index in cells.items():
            before, after = features[fusion[f"{cell}.fusion"]], features[index]
            moved = {c for c in range(before.shape[1]) if not torch.equal(before[:, c], after[:, c])}
            width = before.shape[1] // 4
            assert moved == set(range(turn * width, (turn + 1) * width))
            changed[cell] |= moved
    assert all(len(moved) == made.slots[cells[cell]].channels for cell, moved in changed.items())


def test_a_part_of_the_channels_is_refused_where_weights_are_inherited_or_parts_are_uneven() -> None:
    made = small(1)
    derived = made.decode(made.random(Random(0)))
    with pytest.raises(InputError, match=r"partial channels \(1/4 at a time\)"):
        inherit(Network(derived.architecture), Supernet(made, parts=4), derived)
    with pytest.raises(InputError, match="8 channels cannot be split into 3 equal parts"):
        Supernet(made, parts=3)
    with pytest.raises(InputError, match="0 parts"):
        Supernet(made, parts=0)


def test_with_all_channels_the_decoded_network_is_the_supernet() -> None:
    made = small()
    torch.manual_seed(1)
    supernet = randomised(Supernet(made))
    genotype = made.random(Random(2))
    derived = made.decode(genotype)
    network = Network(derived.architecture)
    inherit(network, supernet, derived)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(network.eval()(image), supernet(image, one_hot(made, genotype)), atol=1e-5)


# ---- regularisers


def test_regularisers_at_the_points_that_they_aim_at() -> None:
    made = small()
    regulariser = Regulariser(made)
    even = {name: torch.full((size,), 1 / size) for name, size in made.decisions.items()}
    assert float(regulariser.operator_entropy(even)) == pytest.approx(math.log(3))
    assert float(regulariser.gate_entropy(even)) == pytest.approx(math.log(2))
    genotype = made.random(Random(0))
    one = one_hot(made, genotype).weights
    assert float(regulariser.operator_entropy(one)) == pytest.approx(0, abs=1e-9)
    assert float(regulariser.gate_entropy(one)) == pytest.approx(0, abs=1e-9)
    assert float(regulariser.fan_in(one)) == 0


@given(st.lists(st.floats(0.01, 0.99), min_size=8, max_size=8))
def test_the_fan_in_is_penalised_exactly_outside_its_bounds(gates: list[float]) -> None:
    made = small()
    p = {name: torch.full((size,), 1 / size) for name, size in made.decisions.items()}
    for rule in made.rules:
        p |= {name: torch.tensor([1 - gate, gate], dtype=torch.float64) for name, gate in zip(rule.decisions, gates, strict=False)}
    totals = [(sum(float(p[name][1]) for name in rule.decisions), rule) for rule in made.rules]
    value = float(Regulariser(made).fan_in(p))
    by_hand = sum(max(0, 1 - g) + max(0, g - rule.high) / len(rule.decisions) for g, rule in totals) / len(totals)
    assert value == pytest.approx(by_hand, abs=1e-9)
    assert (value == 0) == all(1 <= g <= rule.high for g, rule in totals)


@pytest.mark.parametrize(("inputs", "most", "on"), [(56, 3, 6), (4, 3, 2), (8, 3, 4)])
def test_gates_begin_at_about_twice_what_may_stay(inputs: int, most: int, on: float) -> None:
    assert inputs / (1 + math.exp(-gate_logits(inputs, most))) == pytest.approx(on)


# ---- decoding


def on_of(made: Space, genotype: dict[str, int]) -> list[set[str]]:
    return [{name for name in rule.decisions if genotype[name]} for rule in made.rules]


def gated(made: Space, gate: Callable[[str], float]) -> dict[str, tuple[float, ...]]:
    """Probabilities with these gates and even operators."""
    gates = {name: gate(name) for rule in made.rules for name in rule.decisions}
    return {name: (1 - gates[name], gates[name]) if name in gates else (1 / size,) * size for name, size in made.decisions.items()}


@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.9]))
def test_as_many_of_the_strongest_links_are_kept_as_are_expected(seed: int, mean: float) -> None:
    made, dice = small(), Random(seed)
    p = gated(made, lambda _: mean * dice.uniform(0.2, 1.1))
    found = mode(made, p, "expected")
    made.check(found)
    for rule, on in zip(made.rules, on_of(made, found), strict=True):
        count = min(max(round(sum(p[name][1] for name in rule.decisions)), 1), 3)
        assert on == set(sorted(rule.decisions, key=lambda name: p[name][1])[-count:])
    scores = scores_of(made, p, "expected")
    assert {name for name, worth in scores.items() if name.startswith("link.") and worth[1] > worth[0]} == set().union(*on_of(made, found))


@given(st.integers(0, 10**6))
def test_gates_that_fell_apart_are_decoded_as_by_odds(seed: int) -> None:
    made = small()
    genotype = made.random(Random(seed))
    p = gated(made, lambda name: 0.99 if genotype[name] else 0.01)
    assert on_of(made, mode(made, p, "expected")) == on_of(made, mode(made, p, "odds")) == on_of(made, genotype)


def test_a_search_that_learned_nothing_keeps_as_many_links_as_a_cell_may_have() -> None:
    made = small(6)
    inputs = {name: len(rule.decisions) for rule in made.rules for name in rule.decisions}
    untouched = gated(made, lambda name: 1 / (1 + math.exp(-gate_logits(inputs[name], 3))))
    assert {len(on) for on in on_of(made, mode(made, untouched, "expected"))} == {3}  # equals are on together
    assert {len(on) for on in on_of(made, mode(made, untouched, "odds"))} == {1}


# ---- memory


def saved_bytes(supernet: Supernet, sample, image: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once."""
    kept: dict[int, int] = {}
    weights = {p.data_ptr() for p in supernet.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = supernet(image, sample).pow(2).sum()
    total = sum(kept.values())
    del loss
    return total


@pytest.mark.slow
def test_drawn_links_and_a_quarter_of_the_channels_save_memory_at_the_papers_depth() -> None:
    """L = 14, n = 4 links, a quarter of the channels: the activations kept are at least 4 times fewer than the dense supernet's."""
    made = grid("dcnas", 5, layers=14, width=8, head=kind("conv"), head_width=16)
    logits, image = zero_logits(made), torch.randn(2, 3, 64, 128)
    dense = saved_bytes(Supernet(made), softmax(made, logits), image)
    drawn = [saved_bytes(Supernet(made, parts=4), paths(made, logits, n=n, generator=torch.Generator().manual_seed(0)), image) for n in (4, 8, 16)]
    assert dense / drawn[0] >= 4
    slopes = [(drawn[1] - drawn[0]) / 4, (drawn[2] - drawn[1]) / 8]
    assert slopes[1] == pytest.approx(slopes[0], rel=0.35)  # affine in n: one aligned feature a link

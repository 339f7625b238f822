"""SparseMask: its 90 links, the released mask against its published size, gates, sparsity loss and pruning."""

import math
from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from segnas.arch import Architecture
from segnas.augment import Batch
from segnas.cost import convolutions, network_cost
from segnas.data import Dataset, open_dataset
from segnas.errors import IncompatibleError, UsageError
from segnas.export.graph import onnx_from_network
from segnas.network import Network, initialise
from segnas.search import loop
from segnas.search.derive import PRUNED, likeliest, mode, scores_of, under_budget
from segnas.search.draft import Draft
from segnas.search.expected import ExpectedLatency
from segnas.search.frozen import BACKBONE_NAME, frozen_backbone, supernet_start
from segnas.search.gates import separation
from segnas.search.prices import prices
from segnas.search.published_sparsemask import STAGES, WIRING, sparsemask_released
from segnas.search.regularise import Sparsity, gates_wanted
from segnas.search.relaxation import Relaxation
from segnas.search.sampling import Sample, clamp, everything, gate_probabilities, zero_logits
from segnas.search.scoring import Scorer, inherited, supernet_score
from segnas.search.settings import SearchSettings, TrainSettings, with_method
from segnas.search.slots import Link
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.spaces.backbone import mobilenet_v2
from segnas.search.spaces.sparsemask import dense_decoder, genotype, sources
from segnas.search.supernet import Supernet, inherit
from segnas.streets import write_streets
from segnas.target import Target

PROXY = TrainSettings(steps=1, batch=2, crop=(64, 64), warmup=0, auxiliary=0.0)
TARGET = Target("made-up", "onnxruntime", "1.0", "fp32", 64, 128)


@pytest.fixture(scope="module")
def small() -> Space:
    return space("sparsemask-small", 19)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 8}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


def settings(**given: object) -> SearchSettings:
    base = {"method": "sparsemask", "steps": 3, "batch": 2, "crop": (64, 64), "checkpoint_s": 1e9}
    return SearchSettings(**with_method({**base, **given}))


def gated(made: Space, on: set[str]) -> Sample:
    """Every option computed; the gates that are named are 1, the others 0."""
    return Sample({name: torch.tensor([0.0, float(name in on)]) for name in made.decisions}, everything(made))


def used_links(made: Space, chosen: dict[str, int]) -> set[str]:
    """The links that the network of a genotype has."""
    active = {name: (option,) for name, option in chosen.items()}
    live = made.live(active)
    read = (entry for index, lives in enumerate(live) if lives for entry in made.readings(index, active, live))
    return {entry.decision for entry in read if isinstance(entry, Link) and entry.decision is not None}


# --- the space and the released mask


def test_the_space_has_90_links_and_2_to_the_90_wirings_but_those_without_a_way() -> None:
    made = space("sparsemask", 21)
    assert list(made.decisions.values()) == [2] * 90 == [2] * (STAGES * (STAGES + 1))
    assert made.gates == tuple(made.decisions)
    assert made.count() == 2**80 * (2**10 - 1)  # of the finest stage's links from the encoder and the mean one is on
    links = {stage: len(sources(stage, STAGES)) for stage in range(STAGES)}
    assert links == {stage: 2 * (STAGES - stage) for stage in range(STAGES)}
    labels = {slot.label: index for index, slot in enumerate(made.slots)}
    stages = [labels[f"mobilenetv2.{block}"] for block in (0, 1, 3, 6, 10, 13, 16, 17, 18)]
    assert [made.slots[i].channels for i in stages] == [32, 16, 24, 32, 64, 96, 160, 320, 1280]
    assert [made.levels[i] for i in stages] == [1, 1, 2, 3, 4, 4, 5, 5, 5] == [made.levels[labels[f"stage{i}"]] for i in range(STAGES)]
    assert space("sparsemask-small", 19).count() == 2**35 * (2**7 - 1)


def parameters(network: Architecture, of_encoder: bool) -> tuple[int, int]:
    """(weights and biases of convolutions, scales and shifts) of the encoder, or of the rest."""
    kept = [
        c
        for node, operation in zip(network.nodes, network.operations(512, 512), strict=True)
        for c in convolutions(operation)
        if node.label.startswith("mobilenetv2.") == of_encoder
    ]
    return sum(c.weights + c.bias * c.output.channels for c in kept), sum(2 * c.output.channels * c.normalised for c in kept)


def test_the_released_mask_has_15_links_and_the_published_parameters() -> None:
    """2.22 M in the encoder, with its normalisations, and .56 M in the decoder, whose edges lose theirs in the released retraining."""
    network = sparsemask_released(21)
    assert sum(map(len, WIRING.values())) == 15
    units = [node for node in network.nodes if node.label.startswith("stage") and node.op in ("conv", "grid_pool")]
    assert len(units) == 15
    assert sum(parameters(network, True)) == 2_223_872
    widths = [1280, 1280, 160, 1280, 96, 1280, 1280, 320, 160, 96, 32, 1280, 64, 64, 64]
    assert parameters(network, False) == (64 * sum(widths) + 64 * 21 + 21, 2 * 64 * 15)
    assert (round(2_223_872 / 1e4), round(parameters(network, False)[0] / 1e4)) == (222, 56)
    assert network_cost(sparsemask_released(19), 1024, 2048).macs == 14_799_667_200  # DCNAS quotes 36.4 G; size and convention are not said


def test_pruning_leaves_no_dead_stage_and_is_idempotent(small: Space) -> None:
    """Links of stages that nothing reads, or that read nothing, change nothing; without them the genotype is canonical."""
    rng = Random(0)
    for _ in range(50):
        drawn = small.random(rng, {name: [0.8, 0.2] for name in small.decisions})
        network = small.decode(drawn).architecture
        read = {source for node in network.nodes for source in node.inputs}
        assert read == set(range(len(network.nodes) - 1))  # the finest stage is reached, and nothing is left over
        used = used_links(small, drawn)
        canonical = {name: int(name in used) for name in small.decisions}
        assert small.decode(canonical).architecture == network
        assert sum(canonical.values()) <= sum(drawn.values())


# --- the gates


def test_a_gate_affects_its_own_edge_alone(small: Space) -> None:
    torch.manual_seed(0)
    supernet = Supernet(small).eval()
    image, on = torch.randn(1, 3, 64, 64), set(small.decisions)
    stages = [index for index, slot in enumerate(small.slots) if slot.label.startswith("stage") and slot.join]
    with torch.no_grad():
        _, before = supernet.features(image, gated(small, on), range(len(small.slots)))
        for name in ("link.3.e4", "link.1.d3", "link.0.g"):
            stage, source = int(name.split(".")[1]), name.split(".")[2]
            _, after = supernet.features(image, gated(small, on - {name}), range(len(small.slots)))
            index = next(i for i in stages if small.slots[i].label == f"stage{stage}")
            edge = [i for i, slot in enumerate(small.slots) if slot.label in (f"stage{stage}.{source}", f"stage{stage}.{source}.up")][-1]
            assert torch.allclose(before[index] - after[index], before[edge], atol=1e-5)
            changed = {small.slots[i].label for i in stages if not torch.equal(before[i], after[i])}
            assert changed == {f"stage{stage}"} | {f"stage{i}" for i in range(stage)}


def test_gates_start_at_one_stay_in_range_and_their_noise_is_off_outside_of_steps(small: Space) -> None:
    relaxation = Relaxation(small, settings(), 0)
    assert all(p.tolist() == [0.5, 0.5] for p in relaxation.probabilities().values())
    first, second = (relaxation.sample(relaxation.logits(), 0).weights["link.0.g"] for _ in range(2))
    assert not torch.equal(first, second)
    drawn = torch.stack([w[1] for _ in range(20) for w in relaxation.sample(relaxation.logits(), 0).weights.values()])
    assert float(drawn.detach().std()) == pytest.approx(0.1, rel=0.1)
    assert torch.equal(clamp(small, relaxation.logits()).weights["link.0.g"], torch.tensor([1.0, 1.0]))
    with torch.no_grad():
        for parameter in relaxation.raw.values():
            parameter += 5 * torch.randn(2)
    relaxation.project()
    assert all(0 <= value <= 2 for parameter in relaxation.raw.values() for value in parameter.tolist())


def test_only_steps_draw_noise_and_evaluating_twice_gives_the_same(small: Space, streets: Dataset, made_up_table) -> None:
    """A search that is evaluated twice behind each step, by its gates, its network, its price and its supernet, goes the way of one that never is."""
    table, batch = made_up_table(small), Batch(torch.randn(2, 3, 32, 32), torch.randint(0, 19, (2, 32, 32)), (0, 1))
    scorer, image = Scorer(streets, (0,), (32, 64)), torch.randn(1, 3, 32, 32)

    def evaluated(run: loop._Run) -> tuple[object, list[float]]:
        chosen = run.relaxation.mode()
        with torch.no_grad():
            logits = inherited(run.supernet, chosen)(image)
        found = run.probabilities(), chosen, run.limits[0].expected.exact(chosen), supernet_score(run.supernet, chosen, scorer, None)
        return found, logits.flatten().tolist()

    def ended(times: int) -> dict[str, tuple[float, ...]]:
        run = loop._Run(small, prices(small, table, 30.0), settings(decision_rate=0.1), 0, "cpu", {})
        for _ in range(2):
            before = run.relaxation.random.get_state()
            run.advance(batch, None)
            assert not torch.equal(before, run.relaxation.random.get_state())
            seen = [evaluated(run) for _ in range(times)]
            assert all(one == seen[0] for one in seen)
            assert run.supernet.training
        return run.probabilities()

    assert ended(2) == ended(0)


def test_a_gate_at_zero_can_come_back(small: Space) -> None:
    """Cut off to exactly 0 it has a gradient, and one step lifts it; below 0, where noise puts half of the draws, it has none."""
    at_zero = zero_logits(small)
    optimiser = torch.optim.SGD([at_zero["link.0.g"]], lr=0.1)
    (-clamp(small, at_zero).weights["link.0.g"][1]).backward()
    optimiser.step()
    assert clamp(small, at_zero).weights["link.0.g"][1].item() == pytest.approx(0.1)
    logits = zero_logits(small)
    generator, reached, draws = torch.Generator().manual_seed(0), 0, 200
    for _ in range(draws):
        gate = clamp(small, logits, noise=0.1, generator=generator).weights["link.0.g"][1]
        (gradient,) = torch.autograd.grad(gate, logits["link.0.g"])
        assert gradient.tolist() in ([0, 0], [0, 1])
        assert (gradient[1] == 1) == (gate > 0)
        reached += int(gradient[1])
    assert abs(reached - draws / 2) < 4 * math.sqrt(draws) / 2
    low = {name: torch.tensor([0.0, -0.5], requires_grad=True) for name in small.decisions}
    assert torch.autograd.grad(clamp(small, low).weights["link.0.g"][1], low["link.0.g"])[0].tolist() == [0, 0]


def test_a_space_without_links_to_switch_is_refused() -> None:
    for name in ("darts-tiny", "auto-deeplab-small", "dpc-small"):
        with pytest.raises(UsageError, match=r"search\.sampler clamp was given for space .* it needs links that decisions switch on and off"):
            Relaxation(space(name, 19), settings(), 0)


# --- the loss


@given(st.floats(0, 1), st.integers(1, 20))
@example(0.0, 3)
@example(1.0, 3)
def test_the_entropy_term_is_greatest_in_the_middle_and_the_other_at_its_target(p: float, links: int) -> None:
    """All gates of one stage at p: entropy(p) + cross-entropy(target, p), safe at exactly 0 and 1."""
    loss = Sparsity.__new__(Sparsity)
    loss.groups = (tuple(map(str, range(links))),)
    gates = {name: torch.tensor([1 - p, p], dtype=torch.float64, requires_grad=True) for name in loss.groups[0]}
    found = loss(gates)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, list(gates.values())))
    value = float(found.detach())
    q, target = min(max(p, 1e-6), 1 - 1e-6), gates_wanted(links)
    entropy = -(q * math.log(q) + (1 - q) * math.log(1 - q))
    q = min(max(p, 1e-2), 1 - 1e-2)
    assert value == pytest.approx(entropy - target * math.log(q) - (1 - target) * math.log(1 - q), rel=1e-6)
    assert entropy <= math.log(2) + 1e-12
    assert -target * math.log(q) - (1 - target) * math.log(1 - q) >= -target * math.log(target) - (1 - target) * math.log(1 - target) - 1e-9


def test_targets_are_two_links_a_stage_and_at_most_half(small: Space) -> None:
    assert [gates_wanted(n) for n in (1, 2, 4, 18)] == [0.5, 0.5, 0.5, 2 / 18]
    groups = Sparsity(small).groups
    assert sorted(map(len, groups)) == [2, 4, 6, 8, 10, 12]
    assert sum(map(len, groups)) == len(small.decisions)


@pytest.fixture(scope="module")
def toy() -> Space:
    """Three stages, twelve links."""
    draft = Draft("toy")
    return dense_decoder(draft, mobilenet_v2(draft, width=0.5, stages=3)[1:], 19, width=8)


def trained_gates(made: Space, harm: Mapping[str, float], steps: int = 400) -> dict[str, tuple[float, ...]]:
    """Gates that are learned, with their noise, for a loss to which each adds what it does harm."""
    relaxation, loss = Relaxation(made, settings(), 0), Sparsity(made)
    optimiser = torch.optim.SGD(relaxation.raw.values(), lr=0.05, momentum=0.9)
    for step in range(steps):
        logits = relaxation.logits()
        gates = relaxation.sample(logits, step).weights
        task = torch.stack([harm[name] * gates[name][1] for name in made.decisions]).sum()
        optimiser.zero_grad()
        (task + 0.1 * loss(relaxation.probabilities(logits))).backward()
        optimiser.step()
        relaxation.project()
    return {name: tuple(p.tolist()) for name, p in relaxation.probabilities().items()}


def test_useful_links_are_kept_the_others_pruned_and_the_threshold_does_not_matter(toy: Space) -> None:
    useful = {"link.2.e2", "link.1.e1", "link.1.g", "link.0.e0", "link.0.d1"}
    found = trained_gates(toy, {name: -0.05 if name in useful else 0.002 for name in toy.decisions})
    apart = separation(toy, found, PRUNED)
    assert apart is not None
    assert apart.is_clear
    assert str(apart).startswith("separated: ")
    masks = {frozenset(name for name, p in found.items() if p[1] > threshold) for threshold in (1e-4, 3e-4, PRUNED, 3e-3, 1e-2)}
    assert masks == {frozenset(useful)}
    assert {name for name, option in mode(toy, found, "pruned").items() if option} == useful


def test_as_many_links_stay_as_the_targets_say_and_those_that_help_most(toy: Space) -> None:
    rng = Random(3)
    harm = {name: -0.02 * rng.random() for name in toy.decisions}
    found = trained_gates(toy, harm)
    for group in Sparsity(toy).groups:
        kept = [name for name in group if found[name][1] > PRUNED]
        assert abs(len(kept) - gates_wanted(len(group)) * len(group)) <= 1
        assert set(kept) == set(sorted(group, key=harm.__getitem__)[: len(kept)])


def test_gates_that_did_not_fall_apart_are_said_to_be_not_separated(small: Space) -> None:
    spread = {name: (0.0, 10 ** (-4 + 4 * i / 41)) for i, name in enumerate(small.decisions)}
    apart = separation(small, spread, PRUNED)
    assert apart is not None
    assert not apart.is_clear
    assert str(apart).startswith(
        "not separated: 31 of 42 gates are above the threshold of 0.001; the widest gap between neighbouring gates is 0.10 d"
    )
    first, second = list(small.decisions)[:2]
    wide = {**dict.fromkeys(small.decisions, (1.0, 0.0)), first: (0.0, 0.9)}
    for p, clear in ((1.4e-3, False), (4e-3, True)):  # a gap of three decades that begins or ends at the threshold is none
        found = separation(small, {**wide, second: (1 - p, p)}, PRUNED)
        assert found is not None
        assert found.is_clear == clear
    same = separation(small, dict.fromkeys(small.decisions, (0.5, 0.5)), PRUNED)
    assert same is not None
    assert not same.is_clear
    assert separation(space("darts-tiny", 19), {}, PRUNED) is None


# --- deriving


def test_pruning_keeps_what_is_above_the_threshold_however_unlikely(small: Space) -> None:
    rng, names = Random(1), list(small.decisions)
    values = {name: 10 ** rng.uniform(-5, -1) for name in names}
    found = {name: (1 - p, p) for name, p in values.items()}
    chosen = mode(small, found, "pruned")
    assert chosen == {name: int(p > PRUNED) for name, p in values.items()}
    assert likeliest(small, found, "pruned") == chosen
    scores = scores_of(small, found, "pruned")
    assert all((on > off) == (values[name] > PRUNED) for name, (off, on) in scores.items())
    assert sum(mode(small, found).values()) == 1  # by odds the rule alone keeps a link


def test_a_budget_drops_the_weakest_links_first(small: Space, made_up_table) -> None:
    rng, names = Random(2), list(small.decisions)
    found = {name: (1 - p, p) for name, p in ((name, 10 ** rng.uniform(-2, 0)) for name in names)}
    price = ExpectedLatency(small, made_up_table(small)).exact
    scores = scores_of(small, found, "pruned")
    whole = mode(small, found, "pruned")
    assert sum(whole.values()) == len(names)
    limit = 0.6 * price(whole)
    met = under_budget(small, scores, price, limit, Random(0), evaluations=1000)
    assert price(met) <= limit
    used = used_links(small, met)
    kept, dropped = ([found[name][1] for name in names if (name in used) == on] for on in (True, False))
    assert np.mean(np.log(kept)) > np.mean(np.log(dropped))


def test_the_pruned_network_computes_what_the_supernet_computes_without_the_dropped_gates(small: Space) -> None:
    torch.manual_seed(0)
    supernet = Supernet(small)
    initialise(supernet)
    for layer in supernet.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.2)
    supernet.eval()
    wiring = {4: ("e5", "g"), 3: ("e3", "d4"), 0: ("e0", "e4", "g", "d3")}
    chosen = genotype(wiring, 6)
    derived = small.decode(chosen)
    network = Network(derived.architecture).eval()
    inherit(network, supernet, derived)
    image = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        whole = supernet(image, gated(small, {name for name, option in chosen.items() if option}))
        assert torch.allclose(network(image), whole, atol=1e-4 * float(whole.abs().max()))


def test_what_is_exported_and_timed_is_the_pruned_network_without_gates(small: Space) -> None:
    derived = small.decode(genotype({4: ("e5", "g"), 0: ("e0", "d4")}, 6))
    model = onnx.load_from_string(onnx_from_network(Network(derived.architecture).eval(), TARGET))
    convolutions_ = [node for node in model.graph.node if node.op_type == "Conv"]
    expected = sum(len(convolutions(o)) for o in derived.architecture.operations(64, 128))
    assert len(convolutions_) == expected
    assert not [node for node in model.graph.node if node.op_type == "Mul"]


# --- the search


def test_a_search_freezes_scales_keeps_gates_in_range_and_does_not_decay_them(
    small: Space, streets: Dataset, made_up_table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[loop._Run] = []
    original = loop._Run._learn

    def spied(run: loop._Run, batch, *, decides: bool) -> float:
        assert decides  # gates and weights move in one pass, from the first step on
        runs.append(run)
        result = original(run, batch, decides=decides)
        assert all(0 <= value <= 2 for name in run.relaxation.clamped for value in run.relaxation.raw[name].tolist())
        return result

    monkeypatch.setattr(loop._Run, "_learn", spied)
    table = made_up_table(small)
    found = loop.search(small, table, streets, settings(decision_rate=1.0), budget_ms=30.0, seed=0, checkpoint=tmp_path / "c")
    run = runs[-1]
    assert len(runs) == 3
    norms = [layer for layer in run.supernet.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms
    assert not any(parameter.requires_grad for layer in norms for parameter in layer.parameters())  # else scale times gate is not determined
    assert isinstance(run.decision_optimiser, torch.optim.SGD)
    assert [group["weight_decay"] for group in run.decision_optimiser.param_groups] == [0.0]
    assert {curve.name for curve in found.curves} >= {"search/sparsity loss", "search/expected latency, ms"}
    assert all(p[0] + p[1] == pytest.approx(1) and 0 <= p[1] <= 1 for p in found.probabilities.values())
    assert len({p[1] for p in found.probabilities.values()}) > 10


def test_the_probability_of_a_gate_is_half_of_it(small: Space) -> None:
    logits = {name: torch.tensor([7.0, (-1.0, 0.0, 0.5, 2.0, 3.0)[i % 5]]) for i, name in enumerate(small.decisions)}
    assert [p[1].item() for p in list(gate_probabilities(small, logits).values())[:5]] == [0, 0, 0.25, 1, 1]


def test_a_search_starts_from_pretrained_weights_which_learn_slowly(
    small: Space, streets: Dataset, made_up_table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = frozen_backbone(small, streets, PROXY, steps=1, pretrained=None, folder=tmp_path, seed=0)
    start = supernet_start(small, tmp_path / BACKBONE_NAME)
    assert len(start) == len(trained.weights) > 100
    assert supernet_start(space("darts-tiny", 19), tmp_path / BACKBONE_NAME) == {}
    rates: list[set[tuple[bool, float]]] = []
    original = loop._Run._learn

    def spied(run: loop._Run, batch, *, decides: bool) -> float:
        state = run.supernet.state_dict()
        assert rates or all(torch.equal(state[name], value) for name, value in start.items())
        groups = run.weight_optimiser.param_groups
        rates.append({(run.names[p] in start, group["lr"]) for group in groups for p in group["params"]})
        return original(run, batch, decides=decides)

    monkeypatch.setattr(loop._Run, "_learn", spied)
    given = {"budget_ms": 30.0, "seed": 0, "checkpoint": tmp_path / "c", "start": start}
    loop.search(small, made_up_table(small), streets, settings(steps=2), **given)
    assert sorted(rates[0]) == [(False, pytest.approx(0.05)), (True, pytest.approx(0.005))]
    with pytest.raises(IncompatibleError, match="its start is"):
        loop.search(
            small, made_up_table(small), streets, settings(steps=2), **{**given, "start": {**start, next(iter(start)): torch.zeros(16, 3, 3, 3)}}
        )

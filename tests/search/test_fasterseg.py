"""FasterSeg: the space and its count, widths, prices a family at a time, the strength's controller, teacher and student, the published network.

Checked against enumeration, brute force, closed forms, separate modules and the published figures. What of the reference's list stands elsewhere: one
graph for accuracy and latency and a refusal where an engine cannot be opened in tests/export and tests/runtime, the timer's conditions, mixed tables,
wrong entries and held-out networks in tests/latency_tables and tests/test_judging.py.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segnas.arch import Architecture, Node
from segnas.augment import Batch
from segnas.cost import macs, network_cost, parameters
from segnas.data import Dataset, open_dataset
from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.measuring import Services
from segnas.network import Network
from segnas.ops import build
from segnas.search import loop
from segnas.search.expected import ExpectedLatency, ExpectedPrice
from segnas.search.families import at_widths, decoupled, families, narrowest, widest
from segnas.search.incoming import Incoming, suits
from segnas.search.path_decode import PathDecoder
from segnas.search.prices import prices
from segnas.search.published_fasterseg import fasterseg_student
from segnas.search.sampling import drawn_widths, gumbel, one_hot, probabilities_of, softmax
from segnas.search.settings import SearchSettings, with_method
from segnas.search.slimmable import Slimmable
from segnas.search.space import Space
from segnas.search.spaces import SPACES
from segnas.search.spaces.fasterseg import CANDIDATES, SCALES, Widening, branches, origins
from segnas.search.supernet import Supernet, inherit
from segnas.search.teacher import teacher_genotype
from segnas.search.terms import BAND, BOUNDS, Doubling
from segnas.search.trellis import networks, trellis_of
from segnas.steps import derive_network, write_curves
from segnas.streets import write_streets
from segnas.target import Target
from segnas.timing import Measured

TARGET = Target("made-up", "onnxruntime", "1.0", "fp32", 96, 128)


def toy(layers: int, *twelfths: int) -> Space:
    """A small FasterSeg: three or more layers, few widths."""
    return branches(f"toy{layers}", 5, layers=layers, widening=Widening(4, twelfths or (6, 12), ends=9, details=6))


def logits_of(space: Space, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(k, generator=generator, dtype=torch.float64).requires_grad_() for n, k in space.decisions.items()}


def walked(layers: int, ways: dict[str, int]) -> tuple[frozenset[str], set[str], set[str]]:
    """The ways, operations and widths that two branches meet, each followed back from its end: an independent reading of a genotype."""
    met, operations, widths = set[str](), set[str](), set[str]()
    for scale in SCALES[1:]:
        operations.add(f"op.{layers - 1}.{scale}")
        for layer in range(layers - 1, 0, -1):
            widths.add(f"width.{layer}.{scale}")
            options = origins(layer, scale)
            if len(options) > 1:
                met.add(f"from.{layer}.{scale}={ways[f'from.{layer}.{scale}']}")
            scale = options[ways.get(f"from.{layer}.{scale}", 0)]
            operations.add(f"op.{layer - 1}.{scale}")
    return frozenset(met), operations, widths


def every_way(space: Space) -> list[dict[str, int]]:
    names = [name for name in space.decisions if name.startswith("from.")]
    return [dict(zip(names, taken, strict=True)) for taken in itertools.product(range(2), repeat=len(names))]


@pytest.mark.parametrize(("layers", "twelfths"), [(3, (12,)), (4, (6, 12)), (6, (6, 9, 12)), (7, (12,))])
def test_networks_are_counted_without_listing_them(layers: int, twelfths: tuple[int, ...]) -> None:
    space = toy(layers, *twelfths)
    found = {met: 5 ** len(operations) * len(twelfths) ** len(widths) for met, operations, widths in (walked(layers, w) for w in every_way(space))}
    assert suits(space)
    assert networks(space) == sum(found.values())


def test_networks_differ_iff_they_decide_differently_on_their_branches() -> None:
    space, rng, digests = toy(5, 6, 12), Random(0), dict[frozenset[str], str]()
    for _ in range(60):
        genotype = space.random(rng)
        for again in (genotype, space.mutate(genotype, rng), space.mutate(genotype, rng)):
            met, operations, widths = walked(5, again)
            decided = frozenset({*met, *(f"{name}={again[name]}" for name in operations | widths)})
            digest = space.decode(again).architecture.digest
            assert digests.setdefault(decided, digest) == digest
    assert 60 < len(digests) < 180
    assert len(set(digests.values())) == len(digests)


def test_the_papers_space_has_its_parameters() -> None:
    """Rows of alpha, beta and ratio in the released code; the ends that no branch of ours reaches are left out: 1/8 in the last layer."""
    space = SPACES["fasterseg"](19)
    rows = Counter((name.split(".")[0], name.split(".")[2]) for name in space.decisions)
    assert [rows["op", str(s)] for s in SCALES] == [16 - 1, 15, 14]
    assert [rows["from", str(s)] for s in SCALES] == [0, 14, 13]
    assert [rows["width", str(s)] for s in SCALES] == [15 - 1, 15, 14]
    assert all(size == {"op": 5, "from": 2, "width": 5}[name.split(".")[0]] for name, size in space.decisions.items())
    with pytest.raises(InputError, match="2 layers were given; 3 or more"):
        branches("short", 19, layers=2, widening=Widening(12, (12,), 8, 4))


def test_a_genotype_decodes_to_the_cells_on_its_branches() -> None:
    space, rng = toy(6), Random(0)
    for _ in range(100):
        genotype = space.random(rng)
        _, operations, _ = walked(6, genotype)
        cells = [node for node in space.decode(genotype).architecture.nodes if node.label.endswith((".keep", ".down"))]
        layer_scale = [node.label.replace("layer", "op.").rsplit(".", 1)[0] for node in cells]
        assert set(layer_scale) == operations
        assert all(node.kind == tuple(CANDIDATES.values())[genotype[name]] for node, name in zip(cells, layer_scale, strict=True))


def test_keys_and_operations_of_the_space_are_one_to_one() -> None:
    """The published table priced the zoomed double unit as the plain one. Here a key is the operation itself, so two operations never share one."""
    space, widths = SPACES["fasterseg"](19), (4, 6, 8, 10, 12)
    listed = [o for o in space.all_operations(TARGET) if o.kind in CANDIDATES.values() and 96 // o.inputs[0].height in SCALES]
    cells = {(o.kind, o.stride, o.inputs[0].channels, o.output.channels, 96 // o.inputs[0].height) for o in listed}
    wanted: set[tuple[Kind, int, int, int, int]] = set()
    for made, scale, one, other in itertools.product(CANDIDATES.values(), SCALES, widths, widths):
        if made.op != "shortcut" or one != other:
            wanted.add((made, 1, scale * one, scale * other, scale))
        if scale < 32:
            wanted.add((made, 2, scale * one, 2 * scale * other, scale))
    assert wanted <= cells
    assert {(made, stride) for made, stride, *_ in cells - wanted} == {(CANDIDATES["conv"], 1)}  # of merges and head
    assert len(wanted) == 125 * 5 - 3 * 5
    assert len({o.digest for o in space.all_operations(TARGET)}) == len(space.all_operations(TARGET))
    assert len(set(CANDIDATES.values())) == 5


def test_the_price_of_one_network_is_the_sum_over_its_nodes(made_up_table) -> None:
    space, rng = toy(5), Random(1)
    table = made_up_table(space)
    expected = ExpectedLatency(space, table)
    for _ in range(30):
        genotype = space.random(rng)
        architecture = space.decode(genotype).architecture
        by_hand = math.fsum(table.price_ms(o) for o in architecture.operations(TARGET.height, TARGET.width) if not o.is_free)
        by_hand += ExpectedPrice(space, TARGET.height, TARGET.width, lambda o: 0.0, table.constant_ms).exact(genotype)
        tail = table.estimate(architecture).total_ms - by_hand  # the argmax of a labels engine
        assert tail == pytest.approx(table.price_ms(space.all_operations(TARGET)[-1]))
        assert float(expected(one_hot(space, genotype).weights)) == pytest.approx(by_hand + tail, rel=1e-9)
        assert expected.exact(genotype) == pytest.approx(by_hand + tail, rel=1e-9)


def test_the_expected_price_is_the_mean_over_all_networks(made_up_table) -> None:
    space = toy(3, 12)
    expected, p = ExpectedLatency(space, made_up_table(space)), {n: v.detach() for n, v in probabilities_of(logits_of(space)).items()}
    mean = math.fsum(math.prod(float(p[n][o]) for n, o in g.items()) * expected.exact(g) for g in space.genotypes())
    assert expected.walks
    assert float(expected(p)) == pytest.approx(mean, rel=1e-12)


def test_the_expected_price_is_the_mean_of_draws(made_up_table) -> None:
    space, generator = toy(4, 6, 12), torch.Generator().manual_seed(0)
    expected, p = ExpectedLatency(space, made_up_table(space)), {n: v.detach() for n, v in probabilities_of(logits_of(space, 3)).items()}
    options = zip(*(v.multinomial(10_000, replacement=True, generator=generator).tolist() for v in p.values()), strict=True)
    drawn = torch.tensor([expected.exact(dict(zip(p, chosen, strict=True))) for chosen in options])
    assert float(expected(p)) == pytest.approx(float(drawn.mean()), abs=4 * float(drawn.std()) / 100)


def test_the_chances_of_branches_that_meet_are_joint(made_up_table) -> None:
    """What both branches read is paid once, with a chance that is no product: by enumeration of all ways, operations and widths being certain."""
    space = toy(6, 6, 12)
    expected, genotype, logits = ExpectedLatency(space, made_up_table(space)), space.random(Random(4)), logits_of(space, 5)
    p = {name: values.detach() for name, values in probabilities_of(logits).items()}
    mean = sum(math.prod(float(p[n][o]) for n, o in ways.items()) * expected.exact({**genotype, **ways}) for ways in every_way(space))
    certain = {name: values.double() for name, values in one_hot(space, genotype).weights.items() if not name.startswith("from.")}
    assert float(expected({**p, **certain})) == pytest.approx(mean, rel=1e-12)
    walks = Incoming.of(space)
    assert walks is not None
    assert max(stage.size for stage in walks.stages) <= 12


@pytest.mark.parametrize(("family", "shares"), [("operations", (1.0, 0.0, 0.0)), ("ways", (0.0, 1.0, 0.0)), ("widths", (0.0, 0.0, 1.0))])
def test_a_decoupled_price_moves_one_family_only(family: str, shares: tuple[float, float, float], made_up_table) -> None:
    space = toy(5, 6, 9, 12)
    expected, logits = ExpectedLatency(space, made_up_table(space)), logits_of(space)
    decoupled(space, probabilities_of(logits), shares, expected).backward()
    moved = {n for n, v in logits.items() if v.grad is not None and float(v.grad.abs().sum()) > 1e-12}
    assert moved == set(families(space)[family])


def test_the_three_decoupled_prices_are_those_of_their_definition(made_up_table) -> None:
    space = toy(4, 6, 12)
    expected, p = ExpectedLatency(space, made_up_table(space)), {n: v.detach() for n, v in probabilities_of(logits_of(space)).items()}
    even = {n: torch.full_like(v, 1 / len(v)) for n, v in p.items()}
    wide = {n: torch.tensor([0.0, 1.0], dtype=torch.float64) for n in p if n.startswith("width.")}
    of = {prefix: {n: v for n, v in p.items() if n.startswith(prefix)} for prefix in ("op.", "from.", "width.")}
    parts = [expected({**even, **wide, **of["op."]}), expected({**even, **wide, **of["from."]}), expected({**even, **of["width."]})]
    mean = (parts[0] + 497 * parts[1] + 2 * parts[2]) / 500
    assert float(decoupled(space, p, (1 / 500, 497 / 500, 2 / 500), expected)) == pytest.approx(float(mean), rel=1e-12)
    assert sum(SearchSettings().shares) == pytest.approx(1)


def test_a_single_way_beside_searched_widths_is_no_space_whose_paths_are_listed(made_up_table) -> None:
    """Of three layers one has a way to choose, which is a trellis; but what an operation costs is decided by its width too."""
    space = toy(3, 6, 12)
    assert trellis_of(space) is not None
    assert PathDecoder.of(space, trellis_of(space), ExpectedLatency(space, made_up_table(space))) is None


def test_a_space_without_widths_or_ways_decouples_what_it_has(made_up_table) -> None:
    space = SPACES["darts-tiny"](5)
    expected, p = ExpectedLatency(space, made_up_table(space)), {n: v.detach() for n, v in probabilities_of(logits_of(space)).items()}
    assert set(families(space)) == {"operations"}
    assert float(decoupled(space, p, (0.002, 0.994, 0.004), expected)) == pytest.approx(float(expected(p)), rel=1e-12)


def test_drawn_widths_are_one_hot_and_everything_else_is_mixed() -> None:
    space, generator = toy(4, 6, 9, 12), torch.Generator().manual_seed(0)
    logits = logits_of(space)
    sample = drawn_widths(space, logits, tau=1.0, generator=generator)
    for name, weights in sample.weights.items():
        if name.startswith("width."):
            assert sorted(weights.tolist()) == [0, 0, 1]
            assert sample.active[name] == (int(weights.argmax()),)
        else:
            assert weights.tolist() == probabilities_of(logits)[name].tolist()
            assert sample.active[name] == tuple(range(space.decisions[name]))
    sum(weights[sample.active[name][0]] for name, weights in sample.weights.items() if name.startswith("width.")).backward()
    assert all(bool(logits[name].grad.abs().sum() > 0) for name in logits if name.startswith("width."))  # pyright: ignore[reportOptionalMemberAccess]


def test_drawn_widths_follow_the_softmax_at_any_temperature() -> None:
    """The Gumbel-max theorem: the temperature moves the gradient, not the draw."""
    space, generator = toy(3, 6, 9, 12), torch.Generator().manual_seed(1)
    logits = logits_of(space)
    name = next(n for n in space.decisions if n.startswith("width."))
    chances = probabilities_of(logits)[name].tolist()
    for tau in (0.01, 100.0):
        draws = Counter(drawn_widths(space, logits, tau=tau, generator=generator).active[name][0] for _ in range(800))
        assert sum((draws[i] - 800 * c) ** 2 / (800 * c) for i, c in enumerate(chances)) < 13.8  # 0.1 % of chi-squared, two degrees of freedom
    soft = gumbel(space, logits, tau=1e-4, generator=generator).weights[name]
    assert float(soft.detach().max()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("made", [*CANDIDATES.values(), kind("conv", kernel=1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_width_is_the_separate_network_of_its_slice(made: Kind, stride: int) -> None:
    """In training: the same output, the same gradient to the slice and none to the rest, statistics of that width only."""
    torch.manual_seed(0)
    slim = Slimmable(made, (4, 6, 8), (6, 8, 10), stride).train()
    for norm in slim.normalisations.values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    for inputs, outputs in ((4, 6), (8, 8), (6, 10), (8, 10)):
        alone = build(made, (inputs,), outputs, stride).train()
        alone.load_state_dict(slim.tensors(inputs, outputs))
        x, size = torch.randn(2, inputs, 9, 12), (9, 12) if stride == 1 else (5, 6)
        slim.zero_grad()
        one, other = slim([x], size, outputs), alone([x], size)
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        if not list(alone.parameters()):
            assert one is x
            continue
        for value in (one, other):
            (value * torch.linspace(0, 1, value.numel()).view_as(value)).sum().backward()
        for name, layer in alone.named_modules():
            if isinstance(layer, nn.Conv2d):
                held = slim.convolutions[name.replace(".", "-")].weight.grad
                assert held is not None
                o, i = layer.weight.shape[:2]
                torch.testing.assert_close(held[:o, :i], layer.weight.grad, rtol=1e-5, atol=1e-6)
                assert float(held.abs().sum()) == pytest.approx(float(held[:o, :i].abs().sum()))
        torch.testing.assert_close(slim.tensors(inputs, outputs), alone.state_dict(), rtol=1e-6, atol=1e-7)


def test_each_width_has_statistics_of_its_own() -> None:
    slim = Slimmable(kind("conv"), (4,), (6, 8), 1).train()
    before = {name: value.clone() for name, value in slim.tensors(4, 8).items() if "running" in name}
    slim([torch.randn(2, 4, 5, 5)], (5, 5), 6)
    assert all(torch.equal(slim.tensors(4, 8)[name], value) for name, value in before.items())
    assert float(slim.tensors(4, 6)["layers.0.1.running_mean"].abs().sum()) > 0


def test_widest_and_narrowest_are_the_networks_of_those_widths() -> None:
    space = toy(4, 6, 9, 12)
    supernet, genotype = Supernet(space).eval(), space.random(Random(3))
    x = torch.randn(1, 3, 64, 96)
    for widths in (widest(space), narrowest(space)):
        derived = space.decode({**genotype, **widths})
        network = Network(derived.architecture).eval()
        inherit(network, supernet, derived)
        with torch.no_grad():
            torch.testing.assert_close(supernet(x, at_widths(one_hot(space, genotype), space, widths)), network(x), rtol=1e-4, atol=1e-5)
    assert set(widest(space).values()) == {2}
    assert set(narrowest(space).values()) == {0}


def test_shared_cells_are_computed_once_and_change_nothing() -> None:
    """Against the network in which every branch, merge and detail has its own copy of all that it reads, with the same weights."""
    space = toy(4)
    genotype = {**space.random(Random(2)), "op.0.8": 3, "op.1.8": 1, "from.2.16": 0, "from.3.16": 1, "from.3.32": 0}
    architecture = space.decode(genotype).architecture
    labels = Counter(node.label for node in architecture.nodes)
    assert labels["layer0.8.keep"] == labels["layer1.8.down"] == 1
    nodes, copied = [architecture.nodes[0]], [0]

    def copy(index: int) -> int:
        if index:
            node = architecture.nodes[index]
            nodes.append(replace(node, inputs=tuple(map(copy, node.inputs))))
            copied.append(index)
        return len(nodes) - 1 if index else 0

    copy(len(architecture.nodes) - 1)
    alone, network = Network(Architecture(tuple(nodes))).eval(), Network(architecture).eval()
    for index, origin in enumerate(copied):
        if origin:
            alone.nodes[str(index)].load_state_dict(network.nodes[str(origin)].state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(alone(x), network(x), rtol=1e-5, atol=1e-6)
    assert network_cost(alone.architecture, 64, 96).macs > 1.3 * network_cost(architecture, 64, 96).macs


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 100), st.lists(st.floats(0.1, 10), min_size=1, max_size=30), st.floats(0.05, 1))
def test_the_controller_doubles_and_halves_outside_its_band_only(limit: float, shares: list[float], rate: float) -> None:
    held = Doubling(limit, rate)
    for share in shares:
        before = held.multiplier
        held.update(share * limit)
        slow, fast = share * limit >= BAND[1] * limit, share * limit <= BAND[0] * limit
        assert not (slow and fast)
        wanted = before * 2**rate if slow else before / 2**rate if fast else before
        assert held.multiplier == pytest.approx(min(BOUNDS[1], max(BOUNDS[0], wanted)))
    loss, price = torch.tensor(2.0, requires_grad=True), torch.tensor(3 * limit, requires_grad=True)
    total = held(loss, price)
    total.backward()
    assert float(total.detach()) == pytest.approx(2 + 3 * held.multiplier, rel=1e-5)
    assert float(price.grad) == pytest.approx(held.multiplier / limit, rel=1e-5)  # pyright: ignore[reportArgumentType]


def test_the_band_is_the_released_codes() -> None:
    """155 and 175 FPS around the limit's own rate of 165."""
    limit = 1000 / 165
    for fps, turned in ((150, 2), (155, 2), (160, 1), (170, 1), (175, 0.5), (200, 0.5)):
        held = Doubling(limit, 1.0, 0.01)
        held.update(1000 / fps * (1 + 1e-12 if fps == 155 else 1 - 1e-12 if fps == 175 else 1))
        assert held.multiplier == pytest.approx(0.01 * turned)


def test_a_teacher_is_the_widest_without_skips_and_its_probabilities_stay() -> None:
    space = toy(5, 6, 12)
    p = {n: tuple(v.tolist()) for n, v in probabilities_of(logits_of(space)).items()}
    p |= {n: (0.9, 0.025, 0.025, 0.025, 0.025) for n in p if n.startswith("op.")}
    kept = {n: tuple(v) for n, v in p.items()}
    one, other = teacher_genotype(space, p), teacher_genotype(space, p)
    assert one == other
    assert p == kept
    assert {o for n, o in one.items() if n.startswith("width.")} == {1}
    assert 0 not in {o for n, o in one.items() if n.startswith("op.")}
    assert {n: o for n, o in one.items() if n.startswith("from.")} == {n: max((0, 1), key=p[n].__getitem__) for n in p if n.startswith("from.")}


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 8}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


def fasterseg_settings(**changes: object) -> SearchSettings:
    wanted = {"method": "fasterseg", "steps": 4, "warmup": 1, "batch": 2, "crop": (64, 64), "checkpoint_s": 0.0}
    return SearchSettings(**with_method({**wanted, **changes}))


def searching(made_up_table, **changes: object) -> loop._Run:
    space = branches("toy-streets", 19, layers=3, widening=Widening(4, (6, 12), ends=9, details=6))
    return loop._Run(space, prices(space, made_up_table(space), 50.0), fasterseg_settings(**changes), 0, "cpu", {})


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(2, 3, 64, 64, generator=generator), torch.randint(0, 19, (2, 64, 64), generator=generator), (0, 1))


def test_the_weights_step_and_its_clip_leave_the_decisions_alone(made_up_table) -> None:
    run = searching(made_up_table)
    held = {id(p) for group in run.weight_optimiser.param_groups for p in group["params"]}
    assert not held & {id(p) for p in run.decisions.values()}
    assert not {id(p) for p in run.supernet.parameters()} & {id(p) for p in run.decisions.values()}
    before = {name: p.detach().clone() for name, p in run.decisions.items()}
    run._learn(batch(), decides=False)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in run.decisions.items())


def test_student_and_teacher_learn_each_from_their_own_loss_and_only_the_student_pays(made_up_table, monkeypatch: pytest.MonkeyPatch) -> None:
    run = searching(made_up_table, term="cas", term_weight=1.0)
    run.step = 2
    seen: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]] = {}
    monkeypatch.setattr(run, "_move", lambda losses, costs: seen.update(zip(run.decisions, zip(losses, costs, strict=True), strict=True)))
    run._decide(batch(), batch())
    teacher = {name for name in seen if name.startswith("teacher/")}
    assert {name.removeprefix("teacher/") for name in teacher} == {name for name in run.space.decisions if not name.startswith("width.")}
    for name, (of_loss, of_price) in seen.items():
        assert of_loss is not None
        assert float(of_loss.abs().sum()) > 0
        assert (of_price is None) == (name in teacher)


def test_student_and_teacher_are_derived_twice_alike_and_the_search_stays_as_it_is(
    made_up_table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released code took the softmax of its saved logits in place, so that deriving again began from others."""
    monkeypatch.setattr("segnas.search.budget.EVALUATIONS", 4000)
    run = searching(made_up_table)
    run.advance(batch(), None)
    run.advance(batch(), batch())
    kept, logits = tmp_path / "search.checkpoint.safetensors", {name: p.detach().clone() for name, p in run.decisions.items()}
    run.save(kept, {})
    taught = run.taught_probabilities()
    assert run.relaxation.mode() == run.relaxation.mode()
    assert taught is not None
    space, searched, table = run.space, tmp_path / "search.json", made_up_table(run.space)
    write_curves(searched, (), space=space.name, ranking=run.settings.ranking, probabilities=run.probabilities(), teacher=taught)
    before, budget = (kept.read_bytes(), searched.read_bytes()), 1.02 * ExpectedLatency(space, table).exact(run.relaxation.mode())
    services: Any = Services(None, lambda network, prices: Measured(prices.estimate(network).total_ms, 0.001), None)  # type: ignore[arg-type]
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        derive_network(space, searched, table, budget, out=tmp_path / name / "arch.json", seed=0, services=services, progress=lambda *_: None)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("*.json")} for name in ("one", "other")]
    assert files[0] == files[1]
    assert files[0].keys() == {"arch.json", "teacher.arch.json", "derive.json"}
    assert files[0]["arch.json"] != files[0]["teacher.arch.json"]
    run.save(kept, {})
    assert (kept.read_bytes(), searched.read_bytes()) == before
    assert all(torch.equal(logits[name], p) for name, p in run.decisions.items())


def test_the_sandwich_trains_the_extremes(made_up_table, monkeypatch: pytest.MonkeyPatch) -> None:
    run, samples = searching(made_up_table), list[dict[str, tuple[int, ...]]]()
    original = run._loss

    def spied(batch_: Batch, sample, forward=None) -> torch.Tensor:
        samples.append({n: o for n, o in sample.active.items() if n.startswith("width.")})
        return original(batch_, sample, forward)

    monkeypatch.setattr(run, "_loss", spied)
    for step, passes in ((0, 6), (2, 4)):  # student, teacher, widest, narrowest; before the search two random widths more
        run.step, _ = step, samples.clear()
        run._learn(batch(), decides=False)
        assert len(samples) == passes
        assert {o for active in samples[1].values() for o in active} == {o for active in samples[2].values() for o in active} == {1}
        assert {o for active in samples[3].values() for o in active} == {0}


@pytest.mark.slow
def test_an_interrupted_search_of_both_leaves_no_trace(streets: Dataset, made_up_table, tmp_path: Path, stopping) -> None:
    space = branches("toy-streets", 19, layers=3, widening=Widening(4, (6, 12), ends=9, details=6))
    table, usual = made_up_table(space), {"budget_ms": 50.0, "seed": 0}
    whole = loop.search(space, table, streets, fasterseg_settings(), checkpoint=tmp_path / "a.safetensors", **usual)
    with pytest.raises(KeyboardInterrupt):
        loop.search(space, table, streets, fasterseg_settings(), checkpoint=tmp_path / "b.safetensors", progress=stopping(3), **usual)
    again = loop.search(space, table, streets, fasterseg_settings(), checkpoint=tmp_path / "b.safetensors", **usual)
    assert whole.teacher is not None
    assert (again.probabilities, again.teacher) == (whole.probabilities, whole.teacher)
    assert whole.teacher["op.0.8"] != whole.probabilities["op.0.8"]


def test_the_published_student_costs_what_was_counted() -> None:
    """27.77 G multiply-accumulates at 1024x2048 and 3.42 M parameters for 19 classes; here to the last digit that is given."""
    cost = network_cost(fasterseg_student(19), 1024, 2048)
    assert f"{cost.macs / 1e9:.2f} {cost.parameters / 1e6:.2f}" == "27.77 3.42"


def test_the_students_parts_by_their_formulas() -> None:
    """Each part from its widths alone: kernel area times widths times positions."""
    nodes, found = fasterseg_student(19), Counter[str]()
    for node, operation in zip(nodes.nodes, nodes.operations(1024, 2048), strict=True):
        found[node.label.split(".")[0]] += macs(operation)
    at = {2**level: (1024 // 2**level) * (2048 // 2**level) for level in range(1, 7)}
    unit = lambda i, o, scale, area=9: i * o * area * at[scale]  # noqa: E731
    twice = lambda i, o, scale: unit(i, o, scale) + unit(o, o, scale)  # noqa: E731
    assert found["stem"] == unit(3, 32, 2) + twice(32, 64, 4) + twice(64, 64, 8)
    assert found["shared"] == twice(64, 32, 8) + twice(32, 32, 8) + twice(32, 32, 16)
    deep = unit(32, 128, 16) + twice(128, 64, 32) + 2 * twice(64, 64, 32) + twice(64, 128, 32) + twice(128, 128, 64) + twice(128, 256, 64)
    merged = unit(256, 128, 32, 1) + unit(128 + 64, 128, 16) + unit(128, 64, 16, 1) + unit(64 + 32, 64, 8)
    assert found["branch32"] == deep + merged
    shallow = twice(32, 32, 16) + twice(32, 32, 8) + twice(32, 64, 16) + twice(64, 64, 32) + twice(64, 192, 32) + twice(192, 128, 32)
    assert found["branch16"] == shallow + unit(128, 64, 16, 1) + unit(64 + 32, 64, 8)
    assert found["head"] == unit(128, 128, 8, 1) + unit(128, 128, 8) + unit(128, 19, 8, 1)


def test_the_students_graph_is_the_released_one() -> None:
    """16 executed cells; every resize aligns corners; the wide part of the parameters is where the code has it."""
    architecture = fasterseg_student(19)
    cells = [n for n in architecture.nodes if n.kind in CANDIDATES.values() and n.label.split(".")[0] in ("shared", "branch16", "branch32")]
    cells = [n for n in cells if n.label.split(".")[-1].isdecimal() and not n.label.endswith("refine")]
    assert len(cells) == 16
    assert all(n.kind["align_corners"] for n in architecture.nodes if n.op == "resize")
    assert architecture.require_segmentation().classes == 19
    assert sum(parameters(o) for o in architecture.operations(64, 128)) == 3_421_875


def test_softmax_over_widths_is_a_mixture_that_every_width_learns_from() -> None:
    space = toy(3, 6, 9, 12)
    supernet, logits = Supernet(space).train(), logits_of(space)
    supernet(torch.randn(2, 3, 64, 64), softmax(space, {n: v.float() for n, v in logits.items()})).square().mean().backward()
    for name, values in logits.items():
        if name.startswith("width."):
            assert values.grad is not None
            assert int((values.grad.abs() > 0).sum()) == 3


def test_a_shortcut_is_nothing_where_it_stays() -> None:
    image = Node(kind("image"), (), 8)
    for channels, stride, cost in ((8, 1, 0), (12, 1, 8 * 12 * 64), (8, 2, 8 * 4 * (16 + 25))):  # the odd half is padded
        operation = Architecture((image, Node(kind("shortcut"), (0,), channels, stride))).operations(8, 8)[1]
        assert macs(operation) == cost
        assert operation.is_free == (cost == 0)

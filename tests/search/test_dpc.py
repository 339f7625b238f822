"""DPC: its 418,414,128,120 cells, the published cell against its published size, cached features, re-ranking, and two workers of which one dies."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from random import Random

import pytest
import torch
from optuna.storages import InMemoryStorage
from torch import nn

from segnas.cost import convolutions
from segnas.data import Dataset, halves, network_input, open_dataset
from segnas.errors import IncompatibleError, InputError, UsageError
from segnas.kinds import kind
from segnas.latency import LatencyTable
from segnas.network import Network, initialised
from segnas.ops import build
from segnas.search.budget import USUAL_SD, bounds
from segnas.search.cached_score import CachedScore
from segnas.search.cached_search import agreement, proxy_settings, require_backbone, reranked
from segnas.search.checkpoint import load_tensors, save_tensors
from segnas.search.draft import Draft
from segnas.search.frozen import Backbone, Tail, backbone_architecture, frozen_backbone
from segnas.search.pretrained import pretrained_weights
from segnas.search.proposals import Allowed, Strategy, propose
from segnas.search.published_dpc import BEST, cell_from_json, dpc_mobilenet, json_from_cell, published
from segnas.search.ranked import Candidate, in_order, meet_ranked
from segnas.search.sampled import sample
from segnas.search.settings import SampledSettings, SearchSettings, TrainSettings, with_method
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.spaces.dpc import Branch, finish, fixed_cell, genotype, operations
from segnas.search.study import open_storage
from segnas.streets import write_streets
from segnas.timing import Measured

ROOT = Path(__file__).resolve().parents[2]
RELEASED = (
    '[{"kernel": 3, "rate": [1, 6], "op": "conv", "input": -1}, {"kernel": 3, "rate": [18, 15], "op": "conv", "input": 0}, '
    '{"kernel": 3, "rate": [6, 3], "op": "conv", "input": 1}, {"kernel": 3, "rate": [1, 1], "op": "conv", "input": 0}, '
    '{"kernel": 3, "rate": [6, 21], "op": "conv", "input": 0}]'
)
"""The content of dense_prediction_cell_branch5_top1_cityscapes.json."""
PROXY = TrainSettings(steps=3, batch=2, crop=(64, 64), warmup=0, auxiliary=0.0)


@pytest.fixture(scope="module")
def small() -> Space:
    return space("dpc-small", 19)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 8}, height=64, width=128, seed=0)
    return open_dataset("cityscapes", root, "train")


@pytest.fixture(scope="module")
def backbone(small: Space, streets: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("backbone")
    return frozen_backbone(small, streets, replace(PROXY, steps=9), steps=2, pretrained=None, folder=folder, seed=0)


@pytest.fixture
def proxy(backbone: Backbone, streets: Dataset, tmp_path: Path) -> CachedScore:
    return CachedScore(backbone, streets, PROXY, 5, (64, 128), 0, tmp_path)


# --- the space and the published cell


def test_the_space_has_5_factorial_times_81_to_the_5_cells() -> None:
    made = space("dpc", 19)
    assert made.count() == 418_414_128_120 == 120 * 81**5
    assert len(operations()) == len(set(operations())) == 81
    assert [sum(o.op == op for o in operations()) for op in ("conv", "separable", "grid_pool")] == [1, 64, 16]
    assert {o.integers("dilation") for o in operations() if o.op == "separable"} == set(product((1, 3, 6, 9, 12, 15, 18, 21), repeat=2))
    assert {o.integers("grid") for o in operations() if o.op == "grid_pool"} == set(product((1, 2, 4, 8), repeat=2))
    assert space("dpc-small", 19).count() == 120 * 14**5


def test_every_cell_of_a_tiny_space_is_another_network() -> None:
    """Two branches of two operations: 2! 2^2 cells, enumerated by hand as fixed cells and by the space."""
    few = (kind("conv", kernel=1), kind("separable", dilation=(1, 3)))
    from segnas.search.spaces.dpc import dense_cells

    made = dense_cells("two", 19, few, branches=2, width=8, backbone=0.5)
    by_hand = {fixed(made, (Branch(a, 0), Branch(b, source))) for a in few for b in few for source in (0, 1)}
    assert {made.decode(g).architecture.digest for g in made.genotypes()} == by_hand
    assert len(by_hand) == made.count() == 8


def fixed(made: Space, cell: tuple[Branch, ...]) -> str:
    """Digest of a cell on the backbone of a space."""
    draft = Draft("fixed")
    draft.slots = [slot for slot in made.slots if slot.label == "image" or slot.label.startswith("mobilenetv2.")]
    feature = len(draft.slots) - 1
    finish(draft, fixed_cell(draft, feature, cell, width=8), 19, 8)
    return draft.space().decode({}).architecture.digest


@pytest.mark.parametrize(("channels", "weights", "billions"), [(2048, 814_080, 6.83), (320, 356_160, 2.99)])
def test_the_five_branches_of_the_best_cell_hold_what_was_published(channels: int, weights: int, billions: float) -> None:
    """On Xception's feature and on MobileNet-v2's, at 1025x2049 and stride 16, hence 65 x 129 positions, without the projection."""
    draft = Draft("cell", channels=channels)
    finish(draft, fixed_cell(draft, 0, BEST), 19, 256)
    network = draft.space().decode({}).architecture
    walk = zip(network.nodes, network.operations(65, 129), strict=True)
    branches = [c for node, operation in walk if node.label.startswith("branch") for c in convolutions(operation)]
    by_hand = 9 * channels + channels * 256 + 4 * (9 * 256 + 256 * 256)
    assert sum(c.weights for c in branches) == weights == by_hand
    assert sum(c.macs for c in branches) == weights * 65 * 129
    assert round(weights * 65 * 129 / 1e9, 2) == billions
    whole = dpc_mobilenet(19)
    feature = max(i for i, node in enumerate(whole.nodes) if node.label.startswith("mobilenetv2."))
    assert whole.operations(1025, 2049)[feature].output[1:] == (65, 129)


def test_the_best_cell_is_in_the_space_and_in_the_released_file() -> None:
    assert cell_from_json(RELEASED) == BEST
    made = space("dpc", 19)
    assert made.decode(genotype(BEST, operations())).architecture == dpc_mobilenet(19)


def test_a_cell_survives_json_and_building_it_twice() -> None:
    rng, candidates = Random(0), operations()
    for _ in range(50):
        cell = tuple(Branch(rng.choice(candidates), rng.randrange(number)) for number in range(1, 6))
        before = list(cell)
        assert cell_from_json(json_from_cell(cell)) == cell
        assert published(cell, 19) == published(cell, 19)
        assert list(cell) == before
    assert json.loads(json_from_cell(BEST)) == json.loads(RELEASED)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "this is no JSON"),
        ("{}", "is a list of branches"),
        ('[{"op": "conv", "kernel": 3, "rate": [1, 6], "input": 0}]', r"branch 0 .* has input 0; -1 \(the backbone\) to -1 are allowed"),
        ('[{"op": "conv", "kernel": 5, "rate": [1, 6], "input": -1}]', "conv of 1 or 3, or pyramid_pooling, is allowed"),
        ('[{"op": "conv", "kernel": 3, "input": -1}]', "rate"),
        ("[7]", "an object with op and input is needed"),
    ],
)
def test_what_is_no_cell_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cell_from_json(text)


def test_rates_double_at_stride_8() -> None:
    coarse, fine = published(BEST, 19), published(BEST, 19, output_stride=8)
    rates = [[node.kind.integers("dilation") for node in network.nodes if node.label.startswith("branch")] for network in (coarse, fine)]
    assert rates[1] == [(2 * down, 2 * across) for down, across in rates[0]]
    assert [network.levels[-3] for network in (coarse, fine)] == [4, 3]
    with pytest.raises(InputError, match="stands at 8 or 16"):
        published(BEST, 19, output_stride=32)


# --- the operations


@pytest.mark.parametrize("rate", [(1, 6), (18, 15), (6, 3)])
def test_an_anisotropic_rate_taps_where_it_says(rate: tuple[int, int]) -> None:
    """The response to a point, through a depthwise kernel of ones, is the nine taps at (+-r_h, +-r_w), with the size kept."""
    module = build(kind("separable", dilation=rate, activation="none"), (1,), 1, 1).eval()
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    with torch.no_grad():
        found = module([point], (41, 41))[0, 0]
    taps = {(20 + i * rate[0], 20 + j * rate[1]) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert {tuple(place) for place in found.nonzero().tolist()} == taps


def test_a_rate_beyond_the_feature_leaves_the_middle_tap_alone() -> None:
    module = build(kind("separable", dilation=(21, 21), activation="none"), (3,), 3, 1).eval()
    point = nn.Conv2d(3, 3, 1, groups=3, bias=False)
    depthwise, unit = module.layers
    with torch.no_grad():
        point.weight.copy_(depthwise[0].weight[:, :, 1:2, 1:2])
        feature = torch.randn(1, 3, 4, 8)
        assert torch.allclose(module([feature], (4, 8)), unit(depthwise[1](point(feature))), atol=1e-6)


@pytest.mark.parametrize("size", [(5, 7), (9, 13), (3, 2)])
def test_grids_that_do_not_divide_the_feature_run_and_keep_means(size: tuple[int, int]) -> None:
    for rows, columns in product((1, 2, 4, 8), repeat=2):
        module = build(kind("grid_pool", grid=(rows, columns), activation="none"), (2,), 2, 1).eval()
        with torch.no_grad():
            module.unit[0].weight.copy_(torch.eye(2)[:, :, None, None])
            found = module([torch.full((1, 2, *size), 3.0)], size)
        assert found.shape == (1, 2, *size)
        assert torch.allclose(found, torch.tensor(3.0), atol=1e-3)  # the mean of a constant, through a normalisation of 1 + 1e-5


# --- the frozen backbone


def test_a_backbone_of_random_weights_is_refused(small: Space, streets: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="frozen at random weights"):
        frozen_backbone(small, streets, PROXY, steps=0, pretrained=None, folder=tmp_path, seed=0)
    with pytest.raises(UsageError, match="frozen at random weights"):
        require_backbone(SampledSettings(), has_weights=False)
    require_backbone(SampledSettings(), has_weights=True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="has no backbone to freeze"):
        backbone_architecture(space("cas-tiny", 19))


def test_a_backbone_is_trained_once_and_belongs_to_its_training(small: Space, streets: Dataset, tmp_path: Path) -> None:
    first = frozen_backbone(small, streets, PROXY, steps=1, pretrained=None, folder=tmp_path, seed=0)
    again = frozen_backbone(small, streets, PROXY, steps=1, pretrained=None, folder=tmp_path, seed=0, progress=_never)
    assert first.digest == again.digest
    assert first.origin == "trained for 1 steps on 8 images of synthetic-streets train"
    network = small.decode(small.random(Random(0))).architecture
    placed, said = pretrained_weights(network, tmp_path / "backbone.safetensors")
    assert said == "segnas backbone backbone.safetensors, trained for 1 steps on 8 images of synthetic-streets train"
    assert placed.keys() == first.placed(network).keys()
    assert all(torch.equal(value, first.placed(network)[name]) for name, value in placed.items())
    with pytest.raises(InputError, match=r"mobilenetv2|nodes\.1\..* is needed"):
        pretrained_weights(dpc_mobilenet(19), tmp_path / "backbone.safetensors")
    with pytest.raises(IncompatibleError, match="another backbone: its seed is 0, not 1"):
        frozen_backbone(small, streets, PROXY, steps=1, pretrained=None, folder=tmp_path, seed=1)


def _never(done: int, total: int, text: str) -> None:
    raise AssertionError("nothing is left to train")


def test_cached_features_are_those_of_the_live_network(proxy: CachedScore, small: Space) -> None:
    """The same crops of the same seed, in evaluation mode; and the rest of the network on them gives the network's logits."""
    cell = {"op.1": 3, "op.2": 12, "input.2": 1, "op.3": 0, "input.3": 0, "op.4": 13, "input.4": 2, "op.5": 5, "input.5": 4}
    network = initialised(small.decode(cell).architecture, 1)
    network.load_state_dict({**network.state_dict(), **proxy.backbone.placed(network.architecture)})
    network.eval()
    taps = {node.label: index for index, node in enumerate(network.architecture.nodes)}
    crops = list(proxy.crop_batches())
    assert sum(len(batch.indices) for batch in crops) == 5
    assert set().union(*(batch.indices for batch in crops)) <= set(halves(8, 0)[0])
    assert proxy.backbone.taps == ("mobilenetv2.6",)
    proxy.fitted(cell)
    (path,) = proxy.folder.glob("features-*.safetensors")
    kept = load_tensors(path)[0]
    with torch.no_grad():
        images = torch.cat([batch.images for batch in crops])
        logits, live = network.features(images, [taps["mobilenetv2.6"]])
        cached = kept["crops.mobilenetv2.6"]
        assert torch.allclose(cached, live[taps["mobilenetv2.6"]], atol=1e-5)
        assert torch.allclose(Tail(network)({"mobilenetv2.6": cached}, (64, 64)), logits, atol=1e-4)
    assert torch.equal(kept["labels"].long(), torch.cat([batch.labels for batch in crops]))
    image = torch.from_numpy(network_input(proxy.dataset.read(proxy.held_out[1])[0], 64, 128))
    with torch.no_grad():
        whole = network.features(image, [taps["mobilenetv2.6"]])[1][taps["mobilenetv2.6"]]
    assert torch.allclose(kept["held_out.mobilenetv2.6"][1:2], whole, atol=1e-5)


def test_a_proxy_training_moves_the_rest_alone_and_is_repeatable(proxy: CachedScore, small: Space) -> None:
    cell = small.random(Random(2))
    first, second = proxy.fitted(cell), proxy.fitted(cell)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    start = initialised(first.architecture, 0).state_dict()
    placed = proxy.backbone.placed(first.architecture)
    after = first.state_dict()
    assert all(torch.equal(after[name], value) for name, value in placed.items())
    moved = [name for name, value in after.items() if name not in placed and value.dtype.is_floating_point and not torch.equal(value, start[name])]
    assert len(moved) > 10
    assert proxy.score(cell) == proxy.score(cell)
    other = replace(proxy, crops=4)
    assert other.schedule != proxy.schedule
    other.fitted(cell)
    assert len(list(proxy.folder.glob("features-*.safetensors"))) == 2


def test_pretrained_weights_find_the_dilated_backbone(tmp_path: Path, streets: Dataset) -> None:
    """A whole MobileNet-v2 under torchvision's names, shapes only: the strided blocks that became dilated ones take the same weights."""
    made = space("dpc", 19)
    blocks = [node for node in dpc_mobilenet(19).nodes if node.label.startswith("mobilenetv2.")]
    state = Network(dpc_mobilenet(19)).state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for number, _ in enumerate(blocks):
        index = number + 1
        units = sorted({name.split(".")[3] for name in state if name.startswith(f"nodes.{index}.layers.")})
        for unit in units:
            base = f"features.{number}" if number == 0 else f"features.{number}.conv"
            last = number > 0 and unit == units[-1]
            names = (f"{base}.{unit}", f"{base}.{int(unit) + 1}") if last else (f"{base}.{unit}.0", f"{base}.{unit}.1")
            if number == 0:
                names = ("features.0.0", "features.0.1")
            tensors[f"{names[0]}.weight"] = torch.randn_like(state[f"nodes.{index}.layers.{unit}.0.weight"])
            for part in ("weight", "bias", "running_mean", "running_var"):
                tensors[f"{names[1]}.{part}"] = torch.rand_like(state[f"nodes.{index}.layers.{unit}.1.{part}"])
    save_tensors(tmp_path / "mobilenet.safetensors", tensors)
    found = frozen_backbone(made, streets, PROXY, steps=0, pretrained=tmp_path / "mobilenet.safetensors", folder=tmp_path, seed=0)
    assert torch.equal(found.weights["mobilenetv2.15/layers.1.0.weight"], tensors["features.15.conv.1.0.weight"])
    assert found.origin.startswith("MobileNet-v2 backbone from mobilenet.safetensors (torchvision names")


# --- the search


def test_local_proposals_are_half_uniform_and_half_near_the_best(small: Space, made_up_table: Callable[[Space], LatencyTable]) -> None:
    allowed = Allowed(small, lambda _: 1.0, 2.0)
    rng = Random(0)
    scored = [(small.random(rng), float(i)) for i in range(20)]
    best = [g for g, _ in scored[-3:]]

    def distance(found: dict[str, int]) -> int:
        return min(sum(found[name] != parent[name] for name in found) for parent in best)

    found = [propose(Strategy("local", sample=3), allowed, scored, set(), Random(i)) for i in range(400)]
    near = sum(distance(g) <= 1 for g in found)
    assert abs(near - 200) < 60  # uniform draws are hardly ever a step away from one of three cells
    assert distance(propose(Strategy("local", sample=3), allowed, [], set(), Random(1))) > 1
    assert str(Strategy("local", sample=3)) == "local, near the best 3"


def test_the_best_few_are_trained_whole_and_the_agreement_is_said(
    proxy: CachedScore, small: Space, made_up_table: Callable[[Space], LatencyTable]
) -> None:
    table, storage = made_up_table(small), InMemoryStorage()
    given = {"budget_ms": 30.0, "storage": storage, "progress": None}
    found = sample(small, table, Strategy("local"), proxy.scoring, trials=5, name="search", seed=0, **given)
    settings = SampledSettings(trials=5, crops=5, rerank=3, rerank_steps=1)
    candidates = reranked(table, found, proxy, replace(PROXY, auxiliary=0.4), settings, name="re-rank", **given)
    again = [c for c in candidates if c.reranked is not None]
    assert len(again) == 3
    assert candidates[:3] == tuple(again)
    assert [c.reranked for c in again] == sorted((c.reranked for c in again), reverse=True)
    assert {c.score for c in again} == set(sorted((t.score for t in found.trials), reverse=True)[:3])
    assert all(c.price_ms <= 30 for c in candidates)
    once_more = reranked(table, found, proxy, replace(PROXY, auxiliary=0.4), settings, name="re-rank", **given)
    assert once_more == candidates  # the study holds them: nothing is trained again


def test_agreement_is_that_of_the_ranks_by_hand_with_n_and_interval() -> None:
    rng = Random(4)
    pairs = [(rng.random(), rng.random()) for _ in range(12)]
    candidates = in_order([Candidate({}, 1.0, score, again) for score, again in pairs] + [Candidate({}, 1.0, 2.0)])
    agreed = agreement(candidates, 0)
    assert agreed is not None
    assert agreed.networks == 12
    ranks = [[sorted(column).index(value) for value in column] for column in zip(*pairs, strict=True)]
    apart = sum((a - b) ** 2 for a, b in zip(*ranks, strict=True))
    assert agreed.spearman.value == pytest.approx(1 - 6 * apart / (12 * (12**2 - 1)))
    signs = [1 if (a - c) * (b - d) > 0 else -1 for (a, b), (c, d) in combinations(pairs, 2)]
    assert agreed.kendall.value == pytest.approx(sum(signs) / len(signs))
    assert agreed.spearman.low is not None
    assert agreed.spearman.low < agreed.spearman.value < (agreed.spearman.high or -1)
    winner = max(pairs, key=lambda pair: pair[1])
    assert agreed.winner == 1 + sum(score > winner[0] for score, _ in pairs)
    assert str(agreed).startswith("re-ranking of 12 networks: Spearman ")
    assert f"the best was number {agreed.winner} by the proxy" in str(agreed)
    assert agreement(candidates[:1], 0) is None


def test_the_first_candidate_within_the_measured_budget_is_taken(small: Space, made_up_table: Callable[[Space], LatencyTable]) -> None:
    table, rng = made_up_table(small), Random(5)
    candidates = [Candidate(small.random(rng), 1.0, float(-i)) for i in range(12)]
    prices = [table.estimate(small.decode(c.genotype).architecture).total_ms for c in candidates]
    budget = 1.06 * sorted(prices)[6]
    asked: list[str] = []

    def measure(architecture, times: float = 1.05) -> Measured:
        asked.append(architecture.digest)
        return Measured(times * table.estimate(architecture).total_ms, 0.001)

    met = meet_ranked(small, candidates, table, budget, measure=measure)
    fits = next(i for i, price in enumerate(prices) if 1.05 * price <= 0.995 * budget)
    assert met.genotype == candidates[fits].genotype
    assert met.measured_ms == pytest.approx(1.05 * prices[fits])
    before = [i for i, price in enumerate(prices[:fits]) if price <= budget]
    assert len(asked) <= 1 + len(before)  # those that the table holds to be over the budget were not measured
    assert met.table.estimate(met.derived.architecture).total_ms == pytest.approx(1.05 * prices[fits], rel=0.05)
    with pytest.raises(InputError, match="none of 8 candidates met the budget of"):
        meet_ranked(small, candidates, table, budget, measure=lambda architecture: measure(architecture, 9.0))


def test_where_none_is_clearly_within_the_budget_the_cheapest_are_tried_and_the_one_furthest_within_is_taken(
    small: Space, made_up_table: Callable[[Space], LatencyTable]
) -> None:
    table, rng = made_up_table(small), Random(5)
    candidates = [Candidate(small.random(rng), 1.0, float(-i)) for i in range(12)]
    prices = {a.digest: table.estimate(a).total_ms for a in (small.decode(c.genotype).architecture for c in candidates)}
    cheapest = sorted(prices, key=prices.__getitem__)
    budget = 1.01 * prices[cheapest[1]]  # two or more are within it, and none by twice the noise of 5 %
    asked: list[str] = []

    def measure(architecture) -> Measured:
        asked.append(architecture.digest)
        return Measured(prices[architecture.digest], 0.05)

    assert prices[cheapest[0]] > bounds(0.05)[1] * budget
    met = meet_ranked(small, candidates, table, budget, measure=measure)
    assert met.derived.architecture.digest == cheapest[0]
    first = [digest for digest in prices if prices[digest] <= bounds(USUAL_SD)[1] * budget][:1]
    assert asked == [*first, *(digest for digest in cheapest if digest not in first)][:8]


def test_a_recipes_search_section_is_one_networks_schedule() -> None:
    settings = SearchSettings(**with_method({"method": "dpc", "steps": 40, "crop": (64, 96), "batch": 4, "learning_rate": 0.02}))
    proxy = proxy_settings(settings)
    assert (proxy.steps, proxy.crop, proxy.batch, proxy.learning_rate, proxy.auxiliary) == (40, (64, 96), 4, 0.02, 0.0)


# --- two workers in processes of their own

WORKER = """
    import sys, time
    from dataclasses import replace
    from pathlib import Path
    import torch
    from segnas.data import open_dataset
    from segnas.latency import Entry, LatencyTable
    from segnas.search.cached_score import CachedScore
    from segnas.search.frozen import frozen_backbone
    from segnas.search.proposals import Strategy
    from segnas.search.sampled import Pace, Scoring, sample
    from segnas.search.settings import TrainSettings
    from segnas.search.spaces import space
    from segnas.search.study import open_storage
    from segnas.target import Target

    def searched(storage, root, folder, trials, score=lambda proxy: proxy.score):
        torch.set_num_threads(1)
        small, streets = space("dpc-small", 19), open_dataset("cityscapes", Path(root), "train")
        target = Target("made-up", "onnxruntime", "1.0", "fp32", 64, 128)
        table = LatencyTable(small.name, target, tuple(Entry(o, "block", 0.1, 0.0, 1, "made up", "") for o in small.all_operations(target)))
        settings = TrainSettings(steps=2, batch=2, crop=(64, 64), warmup=0, auxiliary=0.0)
        backbone = frozen_backbone(small, streets, settings, steps=1, pretrained=None, folder=Path(folder), seed=0)
        proxy = CachedScore(backbone, streets, settings, 4, (64, 128), 0, Path(folder))
        given = dict(budget_ms=5.0, trials=trials, name="dpc", seed=3, pace=Pace(0.2, 30.0, 0.1))
        return sample(small, table, Strategy("local", sample=2), Scoring(score(proxy), proxy.schedule), storage=storage, **given)

    if __name__ == "__main__":
        address, root, folder, log, trials, stick = sys.argv[1:4] + [Path(sys.argv[4])] + [int(word) for word in sys.argv[5:]]
        calls = [0]

        def logged(proxy):
            def score(genotype):
                calls[0] += 1
                with log.open("a") as stream:
                    stream.write(" ".join(map(str, genotype.values())) + "\\n")
                if calls[0] == stick:
                    time.sleep(120)  # killed here
                return proxy.score(genotype)

            return score

        with open_storage(address) as kept:
            searched(kept, root, folder, trials, logged)
"""


def test_of_two_workers_on_one_storage_one_dies_and_no_trial_is_lost_or_counted_twice(streets: Dataset, tmp_path: Path) -> None:
    script, address, trials = tmp_path / "worker.py", f"sqlite:///{tmp_path / 'study.db'}", 10
    script.write_text(textwrap.dedent(WORKER))
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    toy: dict[str, object] = {"__name__": "toy"}
    exec(script.read_text(), toy)
    searched = toy["searched"]
    alone = searched(InMemoryStorage(), streets.root, tmp_path, 2)  # type: ignore[operator]

    def started(log: Path, stick: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-W", "error", str(script), address, str(streets.root), str(tmp_path), str(log), str(trials), str(stick)]
        return subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)

    def lines(log: Path) -> list[tuple[int, ...]]:
        return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.is_file() else []

    doomed, other = started(logs[0], 2), started(logs[1], 0)
    while len(lines(logs[0])) < 2:
        assert doomed.poll() is None, doomed.communicate()[1]
        time.sleep(0.02)
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.communicate()
    message = other.communicate(timeout=200)[1]
    assert other.returncode == 0, message
    with open_storage(address) as kept:
        found = searched(kept, streets.root, tmp_path, trials)  # type: ignore[operator]
    complete = [tuple(t.genotype.values()) for t in found.trials if t.state == "complete"]
    assert len(complete) == found.counts["complete"] == trials
    assert found.counts["lost"] == 1
    assert set(found.counts) <= {"complete", "lost", "surplus"}
    done = lines(logs[0]) + lines(logs[1])
    cut_short = lines(logs[0])[1]
    assert sorted(done) == sorted([*complete, cut_short])  # what the dead one began was done once more, and nothing else twice
    assert complete.count(cut_short) == 1
    assert alone.trials[0].genotype == found.trials[0].genotype
    assert alone.trials[0].score == found.trials[0].score  # the same score in any process
    assert len({t.worker for t in found.trials if t.state == "complete"}) == 2

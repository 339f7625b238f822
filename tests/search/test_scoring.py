"""Scores of networks with inherited weights: statistics against numpy, scores against pixels counted here, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

from segnas.data import Dataset, network_input, open_dataset
from segnas.errors import IncompatibleError, InputError
from segnas.latency import LatencyTable
from segnas.network import initialised
from segnas.search import scoring
from segnas.search.checkpoint import load_tensors, prefixed, save_tensors
from segnas.search.loop import SearchSettings, search
from segnas.search.sampling import one_hot
from segnas.search.scoring import (
    Scorer,
    StatisticsBatches,
    inherited,
    load_supernet,
    re_estimate,
    score,
    spread_indices,
    supernet_score,
)
from segnas.search.space import Space
from segnas.search.spaces import SPACES
from segnas.search.supernet import Supernet, untrained_supernet
from segnas.streets import write_streets

SIZE = (64, 128)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = write_streets(tmp_path_factory.mktemp("streets"), counts={"train": 6, "val": 3}, height=64, width=128, seed=0)
    return {split: open_dataset("cityscapes", root, split) for split in ("train", "val")}


@pytest.fixture(scope="module")
def space() -> Space:
    return SPACES["cas-tiny"](19)


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, space: Space, made_up_table: Callable[[Space], LatencyTable], streets: dict[str, Dataset]
) -> Path:
    """What a search of two steps leaves."""
    path = tmp_path_factory.mktemp("search") / "search.checkpoint.safetensors"
    settings = SearchSettings(steps=2, warmup=1, batch=2, crop=(32, 32))
    search(space, made_up_table(space), streets["train"], settings, budget_ms=30.0, seed=3, checkpoint=path)
    return path


def batches(count: int, channels: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [1.5 + 2 * torch.randn(4, channels, 6, 5, generator=generator) for _ in range(count)]


def test_a_supernet_comes_back_with_its_weights(space: Space, checkpoint: Path) -> None:
    supernet = load_supernet(space, checkpoint)
    tensors, _ = load_tensors(checkpoint)
    assert not supernet.training
    state = supernet.state_dict()
    assert {f"supernet.{name}" for name in state} == {name for name in tensors if name.startswith("supernet.")}
    assert all(torch.equal(tensor, tensors[f"supernet.{name}"]) for name, tensor in state.items())
    started = untrained_supernet(space, 3).state_dict()
    moved = [name for name, tensor in state.items() if name.endswith("0.weight") and not torch.equal(tensor, started[name])]
    assert moved  # the search began at the untrained one, and went on
    tensors, _ = load_tensors(checkpoint)
    assert torch.equal(started["slots.1.0.layers.0.1.weight"], tensors["supernet.slots.1.0.layers.0.1.weight"])


def test_other_checkpoints_are_refused_by_name(space: Space, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="supernet of 'cas-tiny'; 'cas' is asked for"):
        load_supernet(SPACES["cas"](19), checkpoint)
    with pytest.raises(IncompatibleError, match="another 'cas-tiny' than the one with 11 classes"):
        load_supernet(SPACES["cas-tiny"](11), checkpoint)
    other = tmp_path / "weights.safetensors"
    save_tensors(other, {"nodes.1.weight": torch.zeros(1)}, {"architecture": "abc"})
    with pytest.raises(InputError, match=r"no checkpoint of a search; give the search\.checkpoint\.safetensors"):
        load_supernet(space, other)
    save_tensors(other, prefixed("model", {"a": torch.zeros(1)}), {"identity": {"architecture": "abc"}})
    with pytest.raises(InputError, match="no checkpoint of a search"):
        load_supernet(space, other)


def test_an_inherited_network_is_its_supernet(space: Space, checkpoint: Path) -> None:
    supernet, genotype = load_supernet(space, checkpoint), space.random(Random(0))
    network, image = inherited(supernet, genotype), torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(network(image), supernet(image, one_hot(space, genotype)), rtol=1e-5, atol=1e-6)


def test_statistics_are_the_mean_over_the_batches() -> None:
    """A single normalisation sees the images themselves: mean and unbiased variance a batch, averaged over the batches."""
    layer, given = nn.BatchNorm2d(3, momentum=0.1), batches(5)
    layer.running_mean = torch.tensor([7.0, 8.0, 9.0])
    re_estimate(nn.Sequential(layer), given)
    values = [batch.double().numpy().transpose(1, 0, 2, 3).reshape(3, -1) for batch in given]
    assert layer.running_mean.numpy() == pytest.approx(np.mean([v.mean(axis=1) for v in values], axis=0), rel=1e-5)
    assert layer.running_var is not None
    assert layer.running_var.numpy() == pytest.approx(np.mean([v.var(axis=1, ddof=1) for v in values], axis=0), rel=1e-5)
    assert (layer.momentum, layer.training, int(layer.num_batches_tracked or 0)) == (0.1, False, 5)


def test_re_estimation_touches_no_weight_and_does_not_depend_on_the_past(every_op) -> None:
    network = initialised(every_op, 0)
    given = [torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    re_estimate(network, given)
    once = {name: b.clone() for name, b in network.named_buffers()}
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if "running_var" in name:
                buffer.mul_(9.0)
    re_estimate(network, given)
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())
    assert all(torch.equal(b, once[name]) for name, b in network.named_buffers())
    assert not any(module.training for module in network.modules())


def test_re_estimation_makes_evaluation_agree_with_training_on_the_same_batch() -> None:
    """With one batch, an evaluating normalisation does what a training one does, up to the unbiased variance."""
    network, batch = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), batches(1)[0]
    re_estimate(network, [batch])
    with torch.no_grad():
        evaluated = network(batch)
        trained = network.train()(batch)
    count = batch.shape[0] * 4 * 3
    torch.testing.assert_close(evaluated * (count / (count - 1)) ** 0.5, trained, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("given", "message"), [([], "no batch was given"), ([torch.zeros(1, 3, 6, 5)], "a batch of 1 image")])
def test_too_few_images_are_refused_and_leave_the_network_in_evaluation(given: list[torch.Tensor], message: str) -> None:
    layer = nn.BatchNorm2d(3, momentum=0.3)
    network = nn.Sequential(layer)
    with pytest.raises(InputError, match=message):
        re_estimate(network, given)
    assert (network.training, layer.momentum) == (False, 0.3)


class Fixed(nn.Module):
    """Logits that say one class at the left quarter and another at the rest, whatever the image, at an eighth of its size."""

    def __init__(self, left: int, right: int) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2] // 8, image.shape[-1] // 8
        logits = torch.zeros(1, 19, height, width)
        logits[:, self.left, :, : width // 4] = 1
        logits[:, self.right, :, width // 4 :] = 1
        return logits


def test_a_score_is_the_mean_iou_of_the_enlarged_logits(streets: dict[str, Dataset]) -> None:
    dataset, left, right = streets["val"], 0, 10
    hits, union = np.zeros(19), np.zeros(19)
    for index in (0, 2):
        truth = dataset.labels.train_ids(dataset.read(index)[1])
        predicted = np.where(np.arange(128) < 32, left, right)[None].repeat(64, axis=0)
        for c in range(19):
            mine, theirs = (predicted == c) & (truth != 255), truth == c
            hits[c] += (mine & theirs).sum()
            union[c] += (mine | theirs).sum()
    expected = float((hits[union > 0] / union[union > 0]).mean())
    assert score(Fixed(left, right), dataset, (0, 2), SIZE) == pytest.approx(expected, abs=1e-12)
    assert score(Fixed(left, right), dataset, (0, 2), (128, 256)) == pytest.approx(expected, abs=1e-12)
    assert expected > 0


def test_a_score_is_of_the_network_on_the_image(streets: dict[str, Dataset], space: Space) -> None:
    network = initialised(space.decode(space.random(Random(1))).architecture, 0).eval()
    image, truth = streets["val"].read(1)
    with torch.inference_mode():
        predicted = network(torch.from_numpy(network_input(image, *SIZE)))[0].argmax(0).numpy()
    train_ids = streets["val"].labels.train_ids(truth)
    accuracy = [
        ((predicted == c) & (train_ids == c)).sum() / max(1, (((predicted == c) & (train_ids != 255)) | (train_ids == c)).sum()) for c in range(19)
    ]
    present = [c for c in range(19) if (train_ids == c).any() or ((predicted == c) & (train_ids != 255)).any()]
    assert score(network, streets["val"], (1,), SIZE) == pytest.approx(np.mean([accuracy[c] for c in present]))


def test_supernet_scores_with_and_without_statistics(streets: dict[str, Dataset], space: Space, checkpoint: Path) -> None:
    supernet, genotype = load_supernet(space, checkpoint), space.random(Random(2))
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    scorer = Scorer(streets["val"], (0, 1, 2), SIZE)
    given = StatisticsBatches(streets["train"], count=3, batch=2, size=SIZE, seed=0)
    plain, anew = supernet_score(supernet, genotype, scorer, None), supernet_score(supernet, genotype, scorer, given)
    assert plain == score(inherited(supernet, genotype), streets["val"], (0, 1, 2), SIZE)
    network = inherited(supernet, genotype)
    re_estimate(network, given)
    assert anew == score(network, streets["val"], (0, 1, 2), SIZE)
    assert anew != plain
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def test_a_space_that_cannot_inherit_is_refused_by_name(space: Space, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, streets) -> None:
    def refused(*_: object) -> None:
        raise InputError("slot 3 computes a quarter of its channels")

    monkeypatch.setattr(scoring, "inherit", refused)
    scorer = Scorer(streets["val"], (0,), SIZE)
    with pytest.raises(InputError, match="no network of 'cas-tiny' can be scored with the weights of its supernet: slot 3 computes a quarter"):
        supernet_score(load_supernet(space, checkpoint), space.random(Random(0)), scorer, None)


def test_an_untrained_supernet_follows_from_its_seed(space: Space) -> None:
    one, same, other = (untrained_supernet(space, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert isinstance(untrained_supernet(space, 1), Supernet)


def test_statistics_batches_are_whole_images_each_once_until_all_have_come(streets: dict[str, Dataset]) -> None:
    given = StatisticsBatches(streets["train"], count=6, batch=2, size=(32, 64), seed=4)
    first, again = list(given), list(given)
    assert [tuple(batch.shape) for batch in first] == [(2, 3, 32, 64)] * 6
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    flat = [index for row in given.order for index in row]
    assert sorted(flat[:6]) == sorted(flat[6:]) == list(range(6))
    image, _ = streets["train"].read(flat[0])
    torch.testing.assert_close(first[0][:1], torch.from_numpy(network_input(image, 32, 64)))
    assert given.order == StatisticsBatches(streets["train"], count=6, batch=2, size=SIZE, seed=4).order
    with pytest.raises(InputError, match="at least 1 batch of 2"):
        StatisticsBatches(streets["train"], count=1, batch=1, size=SIZE, seed=0)


def test_images_beyond_the_memory_are_read_again(streets: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(StatisticsBatches(streets["train"], count=3, batch=2, size=SIZE, seed=0))
    monkeypatch.setattr(scoring, "CACHE_BYTES", 2 * 64 * 128 * 3)
    given = StatisticsBatches(streets["train"], count=3, batch=2, size=SIZE, seed=0)
    for found in (list(given), list(given)):
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(5, None, (0, 1, 2, 3, 4)), (5, 9, (0, 1, 2, 3, 4)), (10, 3, (0, 3, 6)), (4, 4, (0, 1, 2, 3)), (7, 1, (0,))]
)
def test_spread_indices(count: int, most: int | None, expected: tuple[int, ...]) -> None:
    assert spread_indices(count, most) == expected


def test_no_index_is_refused() -> None:
    for count, most in ((0, None), (5, 0)):
        with pytest.raises(InputError, match="at least 1"):
            spread_indices(count, most)

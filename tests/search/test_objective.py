"""The losses against slow readings of their definitions, and the latency term against its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segnas.search.objective import cross_entropy, ohem_cross_entropy


def slow_losses(logits: Tensor, labels: Tensor) -> list[float]:
    """-log of the true class's share, pixel by pixel, over what is labelled."""
    losses: list[float] = []
    for n, row, column in torch.cartesian_prod(*(torch.arange(size) for size in labels.shape)).tolist():
        label = int(labels[n, row, column])
        if label != 255:
            powers = [math.exp(value) for value in logits[n, :, row, column].tolist()]
            losses.append(-math.log(powers[label] / sum(powers)))
    return losses


def slow_ohem(logits: Tensor, labels: Tensor, threshold: float, least: float) -> float:
    losses = sorted(slow_losses(logits, labels), reverse=True)
    if not losses:
        return 0.0
    fewest = max(1, int(least * len(losses)))
    hard = [loss for loss in losses if math.exp(-loss) < threshold]
    kept = hard if len(hard) >= fewest else losses[:fewest]
    return sum(kept) / len(kept)


def drawn(seed: int, classes: int = 5, sharpness: float = 2.0, ignored: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(2, classes, 5, 6, generator=generator)
    labels = torch.randint(0, classes, (2, 5, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return logits, labels


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 0.7, 0.99]), st.sampled_from([1 / 16, 0.25, 1.0]), st.sampled_from([0.0, 0.5, 0.97]))
def test_hard_pixels_against_a_slow_reading(seed: int, threshold: float, least: float, ignored: float) -> None:
    logits, labels = drawn(seed, ignored=ignored)
    found = ohem_cross_entropy(logits, labels, threshold=threshold, least=least)
    assert found.item() == pytest.approx(slow_ohem(logits, labels, threshold, least), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_the_plain_loss_against_a_slow_reading(ignored: float) -> None:
    logits, labels = drawn(3, ignored=ignored)
    losses = slow_losses(logits, labels)
    assert cross_entropy(logits, labels).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_easy_pixels_teach_nothing_until_too_few_are_hard() -> None:
    """One of 32 pixels is wrong; the rest have the true class at 0.9. A 16th are 2 pixels: the wrong one and the next."""
    easy = math.log(9.0)
    logits = torch.zeros(1, 2, 4, 8)
    logits[:, 0] = easy
    logits[0, 0, 1, 1] = -easy
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    wrong, right = -math.log(0.1), -math.log(0.9)
    assert ohem_cross_entropy(logits, labels).item() == pytest.approx((wrong + right) / 2, rel=1e-5)
    assert ohem_cross_entropy(logits, labels, least=1 / 32).item() == pytest.approx(wrong, rel=1e-5)
    assert ohem_cross_entropy(logits, labels, threshold=0.95).item() == pytest.approx((wrong + 31 * right) / 32, rel=1e-5)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_without_a_label_the_loss_and_its_gradient_are_zero(loss) -> None:
    logits = torch.randn(2, 5, 3, 4, requires_grad=True)
    value = loss(logits, torch.full((2, 3, 4), 255))
    value.backward()
    assert value.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_ignored_pixels_have_no_say(loss) -> None:
    logits, labels = drawn(11)
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad is not None
    assert (logits.grad.transpose(0, 1)[:, labels == 255] == 0).all()
    other = torch.where((labels == 255)[:, None], logits.detach() * -3 + 1, logits.detach())
    assert loss(other, labels).item() == pytest.approx(loss(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_a_network_that_has_diverged_shows_it(loss) -> None:
    _, labels = drawn(1)
    assert not torch.isfinite(loss(torch.full((2, 5, 5, 6), math.nan), labels))


def test_one_pixel_that_is_no_number_shows_among_hard_ones() -> None:
    logits, labels = drawn(1, ignored=0.0)
    logits[1, :, 2, 3] = math.nan
    assert not torch.isfinite(ohem_cross_entropy(logits, labels, threshold=0.99))


def test_weighted_hard_pixels_against_the_official_weighted_loss() -> None:
    logits, labels = drawn(3)
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])
    official = torch.nn.functional.cross_entropy(logits, labels, weight=weights, ignore_index=255)
    assert ohem_cross_entropy(logits, labels, threshold=1.0, weights=weights).item() == pytest.approx(official.item(), rel=1e-5)
    even = ohem_cross_entropy(logits, labels, threshold=0.3, weights=torch.full((5,), 3.0))
    assert even.item() == pytest.approx(ohem_cross_entropy(logits, labels, threshold=0.3).item(), rel=1e-5)

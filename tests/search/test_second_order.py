"""The second-order gradient: the paper's toy, double backward, finite differences of the whole, and that it leaves everything as it was."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from segnas.network import initialise
from segnas.search.objective import cross_entropy
from segnas.search.sampling import Sample, gumbel, hard, softmax, zero_logits
from segnas.search.second_order import Forward, VirtualStep, exact_second_order_gradient, second_order_gradient
from segnas.search.space import Space
from segnas.search.supernet import Supernet

# ---- the toy of DARTS, figure 2: L_val = a w - 2 a + 1, L_train = w^2 - 2 a w + a^2, from (a, w) = (2, -2); the optimum is (1, 1)


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self) -> Tensor:
        return self.w


def toy_gradient(module: Scalar, a: Tensor, xi: float) -> Tensor:
    return second_order_gradient(
        module,
        [a],
        train_loss=lambda forward: forward() ** 2 - 2 * a * forward() + a**2,
        val_loss=lambda forward: a * forward() - 2 * a + 1,
        step=VirtualStep(xi),
    )[0]


def toy(xi: float, steps: int = 800) -> tuple[float, float]:
    """(a, w) after alternating steps of gradient descent, the decision's first, as DARTS does."""
    module, a = Scalar(-2.0), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        gradient = toy_gradient(module, a, xi)
        with torch.no_grad():
            a -= 0.05 * gradient
            module.w -= 0.05 * (2 * module.w - 2 * a)
    return a.item(), module.w.item()


@pytest.mark.parametrize("xi", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_the_toy_ends_where_the_closed_form_says(xi: float) -> None:
    """dL_val/da + 2 xi dL_val/dw' = 0 at w = a = 2 / (1 + 2 xi): the optimum, 1, at xi = 1/2; at first order 2, where L_val is 1 instead of 0."""
    assert toy(xi) == pytest.approx((2 / (1 + 2 * xi),) * 2, abs=1e-6)


def test_the_toys_gradient_by_hand() -> None:
    """At (2, -2), xi = 0.1: w' = -2 + 0.8 = -1.2; dL_val/da = -3.2; minus 0.1 * (-2) * 2 = +0.4."""
    found = toy_gradient(Scalar(-2.0), torch.tensor(2.0, dtype=torch.float64, requires_grad=True), 0.1)
    assert found.item() == pytest.approx(-2.8, abs=1e-9)


# ---- a small network without normalisation, in float64


class Mixed(nn.Module):
    """Two layers, each a softmax mixture of three smooth operations; 31 weights, 6 decisions' logits from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.ones(4))
        self.scale = nn.Parameter(torch.ones(3))
        self.scale.requires_grad_(False)

    def forward(self, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        for layer, p in zip((self.first, self.second), weights, strict=True):
            x = layer(x)
            x = p[0] * torch.tanh(x) + p[1] * x + p[2] * x.sigmoid()
        return x * self.scale


class Bench:
    """The network, its logits, a training and a validation batch, and the losses on them."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = Mixed().double()
        self.logits = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        self.batches = [(torch.randn(8, 3, dtype=torch.float64), torch.randint(3, (8,))) for _ in range(2)]
        self.buffers = {"first.weight": torch.randn(4, 3, dtype=torch.float64), "second.weight": torch.randn(3, 4, dtype=torch.float64)}
        self.step = VirtualStep(0.3, momentum=0.9, weight_decay=0.05, buffers=self.buffers)

    def loss(self, batch: int, forward: Forward) -> Tensor:
        x, y = self.batches[batch]
        one, other = (values.softmax(0) for values in self.logits)
        return F.cross_entropy(forward(x, (one, other)), y) + 0.1 * one[batch]

    def gradient(self, by: Callable[..., list[Tensor]] = second_order_gradient, step: VirtualStep | None = None) -> Tensor:
        found = by(
            self.module,
            self.logits,
            train_loss=lambda forward: self.loss(0, forward),
            val_loss=lambda forward: self.loss(1, forward),
            step=step or self.step,
        )
        return torch.cat(found)

    def outcome(self) -> float:
        """L_val(w'(logits), logits), the step written out with torch's own SGD on a copy."""
        copy = Mixed().double()
        copy.load_state_dict(self.module.state_dict())
        copy.scale.requires_grad_(False)
        optimiser = torch.optim.SGD([p for p in copy.parameters() if p.requires_grad], lr=self.step.xi, momentum=0.9, weight_decay=0.05)
        parameters = dict(copy.named_parameters())
        for name, buffer in self.buffers.items():
            optimiser.state[parameters[name]]["momentum_buffer"] = buffer.clone()
        self.loss(0, copy).backward()
        optimiser.step()
        with torch.no_grad():
            return float(self.loss(1, copy))


@pytest.fixture(params=range(3))
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_the_exact_gradient_is_that_of_the_loss_after_torchs_own_step(bench: Bench) -> None:
    """Central differences of logits -> L_val(w'(logits), logits), with momentum, decay, a missing buffer, a weight that nothing uses."""
    differences: list[float] = []
    for values in bench.logits:
        for index in range(len(values)):
            found: list[float] = []
            for sign in (1, -1):
                with torch.no_grad():
                    values[index] += sign * 1e-5
                found.append(bench.outcome())
                with torch.no_grad():
                    values[index] -= sign * 1e-5
            differences.append((found[0] - found[1]) / 2e-5)
    wanted = torch.tensor(differences, dtype=torch.float64)
    assert relative(bench.gradient(exact_second_order_gradient), wanted) < 1e-7
    assert relative(bench.gradient(), wanted) < 1e-4


def test_the_second_order_term_is_that_of_double_backward(bench: Bench) -> None:
    """The term alone, without the first part, which both have in common: its sign, its 2 eps, and the weights that it is taken at."""
    parameters = {n: p for n, p in bench.module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(bench.loss(0, bench.module), list(parameters.values()), allow_unused=True)
    ahead = {n: bench.step(n, p, g).detach() for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    first = torch.cat(torch.autograd.grad(bench.loss(1, lambda *inputs: functional_call(bench.module, ahead, inputs)), bench.logits))
    exact = bench.gradient(exact_second_order_gradient)
    assert relative(bench.gradient() - first, exact - first) < 1e-4
    assert relative(first, exact) > 0.01  # it matters here


def test_at_xi_0_it_is_the_first_order_gradient_bit_for_bit(bench: Bench) -> None:
    wanted = torch.cat(torch.autograd.grad(bench.loss(1, bench.module), bench.logits))
    assert torch.equal(bench.gradient(step=VirtualStep(0.0)), wanted)
    assert torch.equal(bench.gradient(step=replace(bench.step, xi=0.0)), wanted)
    assert torch.equal(bench.gradient(step=replace(bench.step, xi=1e-300)), wanted)  # nor does the long way change a bit


def test_the_virtual_step_is_the_optimisers_own(bench: Bench) -> None:
    parameters = {n: p for n, p in bench.module.named_parameters() if p.requires_grad}
    names = {p: n for n, p in parameters.items()} | {values: f"logits{i}" for i, values in enumerate(bench.logits)}
    optimiser = torch.optim.SGD(parameters.values(), lr=0.3, momentum=0.9, weight_decay=0.05)
    for turn in range(3):
        optimiser.zero_grad(set_to_none=True)
        bench.loss(0, bench.module).backward()
        virtual = VirtualStep.of(optimiser, names)
        assert set(virtual.buffers) == ({"first.weight", "second.weight", "second.bias"} if turn else set())
        wanted = {n: virtual(n, p.detach(), p.grad).clone() for n, p in parameters.items()}
        optimiser.step()
        for name, parameter in parameters.items():
            torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("setting", [{"nesterov": True, "momentum": 0.9}, {"dampening": 0.1, "momentum": 0.9}, {"maximize": True}])
def test_another_optimiser_is_refused(setting: dict[str, object]) -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="without dampening, nesterov or maximize"):
        VirtualStep.of(torch.optim.SGD(module.parameters(), lr=0.1, **setting), {})  # pyright: ignore[reportArgumentType]
    groups = [{"params": [module.weight], "lr": 0.1}, {"params": [module.bias], "lr": 0.2}]
    with pytest.raises(ValueError, match="one setting"):
        VirtualStep.of(torch.optim.SGD(groups, lr=0.1), {})


def test_a_validation_loss_without_weights_gets_the_first_part_alone(bench: Bench) -> None:
    """|v| is 0: no division by it."""
    a, b = bench.logits
    found = second_order_gradient(
        bench.module, bench.logits, train_loss=lambda forward: bench.loss(0, forward), val_loss=lambda _: (a * a).sum(), step=bench.step
    )
    torch.testing.assert_close(found, [2 * a.detach(), torch.zeros_like(b)])


def test_what_would_silently_be_first_order_or_move_the_logits_is_refused(bench: Bench) -> None:
    fixed = [values.detach().softmax(0) for values in bench.logits]
    with pytest.raises(ValueError, match="does not depend on the logits"):
        second_order_gradient(
            bench.module,
            bench.logits,
            train_loss=lambda forward: forward(bench.batches[0][0], tuple(fixed)).square().sum(),
            val_loss=lambda forward: bench.loss(1, forward),
            step=bench.step,
        )
    bench.module.register_parameter("alpha", nn.Parameter(torch.zeros(3, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"alpha of the module was given as logits.*keep them outside"):
        second_order_gradient(
            bench.module,
            [bench.module.alpha],
            train_loss=lambda forward: bench.loss(0, forward),
            val_loss=lambda forward: bench.loss(1, forward),
            step=bench.step,
        )


def test_dropout_drops_the_same_in_every_pass() -> None:
    """With masks of their own, the difference of two passes over 2 eps would be noise: here it agrees with double backward."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1)).double()
    a = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    x, y = (torch.randn(6, 4, dtype=torch.float64) for _ in range(2))

    def train_loss(forward: Forward) -> Tensor:
        return (forward(x * a[0]) - forward(x) * a[1]).square().mean()

    def val_loss(forward: Forward) -> Tensor:
        return (forward(y * a[1]) - 1).square().mean()

    state = torch.get_rng_state()
    finite, exact = (
        torch.cat([g[None] if g.dim() == 0 else g for g in by(module, [a], train_loss=train_loss, val_loss=val_loss, step=VirtualStep(0.2))])
        for by in (second_order_gradient, exact_second_order_gradient)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert relative(finite, exact) < 1e-4


# ---- a supernet, with batch normalisation and each sampler


class Search:
    """A supernet in training, its logits, a generator of each kind, and the losses of a search on one batch each."""

    def __init__(self, space: Space, sampler: str) -> None:
        torch.manual_seed(0)
        self.space, self.sampler = space, sampler
        self.supernet = Supernet(space).train()
        self.logits = zero_logits(space)
        self.noise, self.draws = torch.Generator().manual_seed(1), Random(1)
        self.images = [torch.randn(4, 3, 32, 32) for _ in range(2)]
        self.labels = [torch.randint(5, (4, 32, 32)) for _ in range(2)]
        self.buffers = {n: 0.1 * torch.randn_like(p) for n, p in self.supernet.named_parameters()}
        self.seen: list[Sample] = []

    def sample(self) -> Sample:
        match self.sampler:
            case "softmax":
                made = softmax(self.space, self.logits)
            case "gumbel":
                made = gumbel(self.space, self.logits, tau=0.7, generator=self.noise)
            case _:
                made = hard(self.space, self.logits, rng=self.draws)
        self.seen.append(made)
        return made

    def loss(self, batch: int, forward: Forward) -> Tensor:
        return cross_entropy(forward(self.images[batch], self.sample()), self.labels[batch])

    def gradient(self, xi: float) -> list[Tensor]:
        return second_order_gradient(
            self.supernet,
            list(self.logits.values()),
            train_loss=lambda forward: self.loss(0, forward),
            val_loss=lambda forward: self.loss(1, forward),
            step=VirtualStep(xi, 0.9, 3e-4, self.buffers),
            generators=(self.noise, self.draws),
        )

    def state(self) -> Iterator[bytes]:
        """Every bit that a gradient must leave alone."""
        kept = (*self.supernet.state_dict().values(), *self.logits.values(), *self.buffers.values())
        for values in (*kept, self.noise.get_state(), torch.get_rng_state()):
            yield values.detach().numpy().tobytes()
        yield repr(self.draws.getstate()).encode()
        yield repr([p.grad for p in (*self.supernet.parameters(), *self.logits.values())]).encode()


@pytest.mark.parametrize("name", ["cells", "dense"])
@pytest.mark.parametrize("sampler", ["softmax", "gumbel", "hard"])
def test_on_a_supernet_nothing_is_left_behind_and_all_passes_see_one_sample(toy_named: Callable[[str], Space], name: str, sampler: str) -> None:
    search = Search(toy_named(name), sampler)
    next(search.supernet.parameters()).grad = torch.ones_like(next(search.supernet.parameters()))
    before = list(search.state())
    found = search.gradient(0.05)
    assert list(search.state()) == before
    assert len(search.seen) == 4
    for sample in search.seen[1:]:
        assert sample.active == search.seen[0].active
        assert all(torch.equal(sample.weights[n], search.seen[0].weights[n]) for n in sample.weights)
    assert all(torch.isfinite(g).all() for g in found)
    assert any(g.any() for g in found)
    again = search.gradient(0.05)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    wanted = torch.autograd.grad(search.loss(1, search.supernet), list(search.logits.values()), allow_unused=True)
    if sampler != "softmax":
        assert list(search.state()) != before  # the generators have moved on: they are drawn from
    search.noise.manual_seed(1)
    search.draws.seed(1)
    first = search.gradient(0.0)
    assert all(torch.equal(one, torch.zeros_like(one) if other is None else other) for one, other in zip(first, wanted, strict=True))
    assert any(not torch.allclose(one, other, rtol=1e-3) for one, other in zip(first, found, strict=True))


@pytest.mark.parametrize("name", ["cells", "to-trellis", "dense"])
def test_in_single_precision_with_normalisation_it_is_near_double_backward(toy_named: Callable[[str], Space], name: str) -> None:
    """What is left, ReLU's kinks, is an order of magnitude less than what the first order leaves out."""
    search = Search(toy_named(name), "softmax")
    initialise(search.supernet)
    logits, losses = list(search.logits.values()), {"train_loss": partial(search.loss, 0), "val_loss": partial(search.loss, 1)}
    found = [
        torch.cat(by(search.supernet, logits, **losses, step=VirtualStep(xi, 0.9, 3e-4)))
        for by, xi in ((second_order_gradient, 0.05), (second_order_gradient, 0.0), (exact_second_order_gradient, 0.05))
    ]
    assert relative(found[0], found[2]) < 0.006
    assert relative(found[1], found[2]) > 0.02
    assert relative(found[0], found[2]) < 0.1 * relative(found[1], found[2])


def test_random_state_is_put_back_when_a_loss_fails(toy_named: Callable[[str], Space]) -> None:
    search = Search(toy_named("cells"), "gumbel")
    before = list(search.state())

    def broken(forward: Forward) -> Tensor:
        search.sample()
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        second_order_gradient(
            search.supernet, list(search.logits.values()), train_loss=broken, val_loss=broken, step=VirtualStep(0.1), generators=[search.noise]
        )
    assert list(search.state()) == before


@pytest.mark.gpu
def test_on_a_gpu_dropout_and_random_state_are_kept_too() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 1)).double().cuda()
    a = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    x, y = (torch.randn(6, 4, dtype=torch.float64, device="cuda") for _ in range(2))
    before = torch.cuda.get_rng_state(), {n: b.clone() for n, b in module.state_dict().items()}
    finite, exact = (
        by(
            module,
            [a],
            train_loss=lambda forward: (forward(x * a[0].cuda()) - forward(x) * a[1].cuda()).square().mean(),
            val_loss=lambda forward: (forward(y * a[1].cuda()) - 1).square().mean(),
            step=VirtualStep(0.2),
        )[0]
        for by in (second_order_gradient, exact_second_order_gradient)
    )
    assert relative(finite, exact) < 1e-4
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert all(torch.equal(b, before[1][n]) for n, b in module.state_dict().items())

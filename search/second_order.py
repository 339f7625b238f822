"""Second order: the decisions' gradient through one virtual step of the weights (DARTS: Liu et al., ICLR 2019, section 2.3, equations 6 to 8).

    d/da L_val(w'(a), a)  =  dL_val/da (w', a)  -  xi * d2 L_train(w, a)/da dw . v,     v = dL_val/dw' (w', a)

The product with the mixed second derivative is a central difference of the training loss's gradient at w +- eps * v, eps = 0.01 / |v|: four passes
forward and backward in all, and no copy of the module.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import torch
from torch import Tensor, nn
from torch.func import functional_call

Forward = Callable[..., Tensor]
"""The module under some weights: called as the module itself is."""

Loss = Callable[[Forward], Tensor]
"""A scalar from the module under some weights; the closure holds the batch and makes its sample of the logits, with gradient."""

Weights = dict[str, Tensor]

RADIUS = 0.01
"""Length of the two steps along v (DARTS, section 2.3)."""

LEAST_NORM = 1e-12
"""Of v; below it there is no direction to step along, and the second-order term is taken as 0. Our choice."""


@dataclass(frozen=True, slots=True)
class VirtualStep:
    """A step of momentum SGD: w' = w - xi * (momentum * buffer + gradient + weight_decay * w), as DARTS's released code takes it.

    `buffers` are by the parameter's name; where there is none, as before the first step, it is 0. Clipping of the gradient is left out, as there. A
    parameter that the training loss does not depend on stays where it is, as with torch's SGD.
    """

    xi: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    buffers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    @classmethod
    def of(cls, optimiser: torch.optim.SGD, names: Mapping[Tensor, str]) -> "VirtualStep":
        """The step that the optimiser would take next, at its present rate; ValueError for one that this is not the formula of."""
        keys = ("lr", "momentum", "weight_decay", "dampening", "nesterov", "maximize")
        settings = {tuple(float(group[key]) for key in keys) for group in optimiser.param_groups}
        xi, momentum, weight_decay, *others = next(iter(settings))
        if len(settings) > 1 or any(others):
            raise ValueError(f"SGD with {keys} of {sorted(settings)} was given; one setting without dampening, nesterov or maximize is allowed")
        held = {names[parameter]: memory.get("momentum_buffer") for parameter, memory in optimiser.state.items()}
        return cls(xi, momentum, weight_decay, {name: buffer for name, buffer in held.items() if buffer is not None})

    def __call__(self, name: str, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Where the step takes a parameter."""
        if gradient is None:
            return weight
        direction = gradient + self.weight_decay * weight
        if name in self.buffers:
            direction = direction + self.momentum * self.buffers[name]
        return weight - self.xi * direction


def second_order_gradient(
    module: nn.Module,
    logits: Sequence[Tensor],
    *,
    train_loss: Loss,
    val_loss: Loss,
    step: VirtualStep,
    generators: Iterable[torch.Generator | Random] = (),
) -> list[Tensor]:
    """Gradient of L_val(w'(logits), logits) by each of the logits, by finite differences; that of first order at xi = 0, bit for bit.

    A loss is called with the module under some weights, `val_loss` once and `train_loss` three times, on one and the same batch. Each call starts
    from the random state of now, torch's own and that of the `generators` that the losses draw from, and from the module's buffers of now, so all of
    them see one sample. Weights, buffers, `.grad` and random state are afterwards what they were: the weights' step that follows, on that batch,
    draws the very sample that was looked ahead with. Logits that no loss depends on get zeros. ValueError for logits that are the module's own
    parameters, and for a training loss that does not depend on them, which would silently leave the first order.
    """
    with _Setting(module, logits, generators) as setting:
        if step.xi == 0:
            return list(torch.autograd.grad(setting.loss(val_loss, setting.weights), setting.logits, materialize_grads=True))
        ahead = {name: weight.detach().requires_grad_() for name, weight in setting.stepped(train_loss, step).items()}
        first, along = setting.gradients(val_loss, ahead)
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in along.values()])))
        if norm < LEAST_NORM:
            return first
        eps = RADIUS / norm
        up, down = (setting.displaced(train_loss, along, sign * eps) for sign in (1, -1))
        return [g - step.xi * (above - below) / (2 * eps) for g, above, below in zip(first, up, down, strict=True)]


def exact_second_order_gradient(
    module: nn.Module,
    logits: Sequence[Tensor],
    *,
    train_loss: Loss,
    val_loss: Loss,
    step: VirtualStep,
    generators: Iterable[torch.Generator | Random] = (),
) -> list[Tensor]:
    """The same gradient without finite differences, by differentiating through the virtual step: for tests and small modules.

    RuntimeError where the module's operations cannot be differentiated twice (dilated depthwise convolutions in training on a CPU).
    """
    with _Setting(module, logits, generators) as setting:
        ahead = setting.stepped(train_loss, step, create_graph=True)
        return list(torch.autograd.grad(setting.loss(val_loss, ahead), setting.logits, materialize_grads=True))


class _Setting:
    """Where every pass of one gradient starts from: the weights, the buffers and the random state as they are now."""

    def __init__(self, module: nn.Module, logits: Sequence[Tensor], generators: Iterable[torch.Generator | Random]) -> None:
        own = {id(parameter): name for name, parameter in module.named_parameters()}
        if taken := [own[id(values)] for values in logits if id(values) in own]:
            raise ValueError(f"{', '.join(taken)} of the module was given as logits; the virtual step would move them as weights: keep them outside")
        self.module, self.logits = module, tuple(logits)
        self.weights: Weights = {n: p.detach().requires_grad_() for n, p in module.named_parameters() if p.requires_grad}
        self._restorers = _restorers({p.device for p in module.parameters()}, generators)

    def __enter__(self) -> "_Setting":
        return self

    def __exit__(self, *_: object) -> None:
        self.rewind()

    def rewind(self) -> None:
        """Set the random state to what it was."""
        for restore in self._restorers:
            restore()

    def loss(self, of: Loss, weights: Weights) -> Tensor:
        """The loss under these weights; what the module writes to its buffers goes to copies."""
        self.rewind()
        buffers = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        return of(lambda *inputs, **named: functional_call(self.module, {**weights, **buffers}, inputs, named))

    def stepped(self, train_loss: Loss, step: VirtualStep, *, create_graph: bool = False) -> Weights:
        """The weights after the virtual step."""
        loss = self.loss(train_loss, self.weights)
        gradients = torch.autograd.grad(loss, list(self.weights.values()), create_graph=create_graph, allow_unused=True)
        return {name: step(name, weight, g) for (name, weight), g in zip(self.weights.items(), gradients, strict=True)}

    def gradients(self, val_loss: Loss, ahead: Weights) -> tuple[list[Tensor], Weights]:
        """Gradients of the validation loss at those weights, by the logits and by the weights."""
        found = torch.autograd.grad(self.loss(val_loss, ahead), [*self.logits, *ahead.values()], materialize_grads=True)
        return list(found[: len(self.logits)]), dict(zip(ahead, found[len(self.logits) :], strict=True))

    def displaced(self, train_loss: Loss, along: Weights, distance: float) -> tuple[Tensor, ...]:
        """Gradients of the training loss by the logits, with the weights that much further along a direction; the weights have no part in them."""
        loss = self.loss(train_loss, {name: weight.detach() + distance * along[name] for name, weight in self.weights.items()})
        if not loss.requires_grad:
            raise ValueError(
                "the training loss does not depend on the logits: the second-order term would be 0; make its sample without detaching them"
            )
        return torch.autograd.grad(loss, self.logits, materialize_grads=True)


def _restorers(devices: Iterable[torch.device], generators: Iterable[torch.Generator | Random]) -> list[Callable[[], object]]:
    """For each source of randomness what sets it to its present state."""
    found: list[Callable[[], object]] = [partial(torch.set_rng_state, torch.get_rng_state())]
    found += [partial(torch.cuda.set_rng_state, torch.cuda.get_rng_state(d), d) for d in devices if d.type == "cuda"]
    for generator in generators:
        if isinstance(generator, Random):
            found.append(partial(generator.setstate, generator.getstate()))
        else:
            found.append(partial(generator.set_state, generator.get_state()))
    return found

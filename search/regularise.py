"""Regularisers of dense spaces: DCNAS's three purposes, with formulas of ours (the paper's are unknown to us), and SparseMask's loss.

R1 drives each operator's weights to one choice, R2 each link to on or off, R3 the expected number of a cell's inputs into its bounds.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from segnas.search.slots import Link
from segnas.search.space import Space

EDGE, MEAN_EDGE = 1e-6, 1e-2


class Regulariser:
    """R1, R2 and R3 of one space, from the probabilities of its decisions.

    Links are the two-option decisions under a rule (gates); operators are all others. All gates count, sampled or not: R3 is what gives links that
    were not drawn a gradient.
    """

    def __init__(self, space: Space) -> None:
        ruled = {name for rule in space.rules for name in rule.decisions}
        self.gates = tuple(name for name in space.decisions if name in ruled and space.decisions[name] == 2)
        self.operators = tuple(name for name in space.decisions if name not in self.gates)
        self.rules = tuple(rule for rule in space.rules if set(rule.decisions) <= set(self.gates))

    def operator_entropy(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """R1: mean entropy of the operators' probabilities, from 0 (one-hot) to log of the options (even)."""
        return _mean([_entropy(probabilities[name]) for name in self.operators])

    def gate_entropy(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """R2: mean binary entropy of the gates, in [0, log 2]."""
        return _mean([_entropy(probabilities[name]) for name in self.gates])

    def fan_in(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """R3: mean over cells of max(0, low - G) + max(0, G - high) / links, with G the sum of a cell's gates; 0 iff low <= G <= high everywhere.

        The second part is divided by the number of candidate links, since a cell of 56 gates at one half starts 25 above its bound.
        """
        parts: list[Tensor] = []
        for rule in self.rules:
            total = torch.stack([probabilities[name][1] for name in rule.decisions]).sum()
            parts.append((rule.low - total).clamp(min=0) + (total - rule.high).clamp(min=0) / len(rule.decisions))
        return _mean(parts)

    def __call__(self, probabilities: Mapping[str, Tensor], weights: tuple[float, float, float]) -> Tensor:
        """The weighted sum of the three."""
        parts = (self.operator_entropy, self.gate_entropy, self.fan_in)
        return torch.stack([weight * part(probabilities) for weight, part in zip(weights, parts, strict=True)]).sum()


class Sparsity:
    """SparseMask's sparsity loss (section 3.3), summed over the slots that gated links enter.

    Of each the mean binary entropy of its gates, which drives them to 0 or 1, and the cross-entropy between a target and their mean, which says how
    many stay. The target of n gates is min(2 / n, 1/2). A gate counts as at least `EDGE` and at most 1 - `EDGE`, so that 0 and 1 are safe, and stays
    there; a mean as at least `MEAN_EDGE`, with its gradient, so that a stage that lost all its links, or none, is pulled back (ours).
    """

    def __init__(self, space: Space) -> None:
        names, groups = set(space.gates), list[tuple[str, ...]]()
        for slot in space.slots:
            entered = (entry.decision for entry in slot.inputs if isinstance(entry, Link))
            groups.append(tuple(dict.fromkeys(name for name in entered if name is not None and name in names)))
            names -= set(groups[-1])
        self.groups = tuple(group for group in groups if group)

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """A scalar; probabilities of the gates, (2,) each."""
        parts: list[Tensor] = []
        for group in self.groups:
            gates = torch.stack([probabilities[name][1] for name in group])
            on, mean = gates.clamp(EDGE, 1 - EDGE), gates.mean()
            inner = mean + (mean.clamp(MEAN_EDGE, 1 - MEAN_EDGE) - mean).detach()
            parts += [_binary(on, on).mean(), _binary(torch.full_like(mean, gates_wanted(len(group))), inner)]
        return torch.stack(parts).sum() if parts else torch.zeros(())


def gates_wanted(links: int) -> float:
    """The share of a slot's links that SparseMask's loss asks for: two, at most half of them."""
    return min(2 / links, 0.5)


def gate_logits(inputs: int, most: int) -> float:
    """Where the odds of a cell's gates start: about twice as many are on as may be in the end, at most half of them (our choice)."""
    share = min(0.5, 2 * most / max(1, inputs))
    return float(torch.logit(torch.tensor(share, dtype=torch.float64)))


def _binary(target: Tensor, p: Tensor) -> Tensor:
    """Binary cross-entropy between targets and probabilities."""
    return -(target * p.log() + (1 - target) * (1 - p).log())


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp(min=1e-12).log()).sum()


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean() if values else torch.zeros(())

"""Beside: what the weights learn from at a step in addition to the sampled network: a teacher of its own decisions, the widest, the narrowest.

FasterSeg's released code adds up the losses of student, teacher, widest and narrowest, and before the search of widest, narrowest and two at random.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from segnas.search.families import at_widths, narrowest, widest
from segnas.search.relaxation import Relaxation
from segnas.search.sampling import Sample
from segnas.search.settings import SearchSettings
from segnas.search.space import Space

Loss = Callable[[Sample], Tensor]


class Beside:
    """The networks beside the sampled one. A teacher is a softmax over all operations and ways, at the widest."""

    def __init__(self, space: Space, settings: SearchSettings, seed: int) -> None:
        self.space, self.settings, self.widest, self.narrowest = space, settings, widest(space), narrowest(space)
        self.teacher: Relaxation | None = None
        if settings.teacher:
            self.teacher = Relaxation(space, replace(settings, sampler="softmax", guidance="none"), seed)
            self.teacher.fixed = dict(self.widest)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The teacher's logits by name; none without one."""
        if self.teacher is None:
            return {}
        return {f"teacher/{name}": p for name, p in self.teacher.named_parameters() if name not in self.teacher.fixed}

    def taught(self, loss: Loss, step: int, *, decides: bool) -> Tensor | None:
        """The teacher's loss, with gradients to its logits where it `decides`; None without one."""
        if self.teacher is None:
            return None
        logits = {name: values if decides else values.detach() for name, values in self.teacher.logits().items()}
        return loss(self.teacher.sample(logits, step))

    def extremes(self, loss: Loss, sample: Sample, student: Relaxation, step: int) -> Tensor | float:
        """The losses of the sampled network at its widest and narrowest, in the warm-up at two random widths too; none without a sandwich."""
        if not self.settings.sandwich or not self.widest:
            return 0.0
        found = [self.widest, self.narrowest]
        if step < self.settings.warmup:
            found += [{name: student.draws.randrange(self.space.decisions[name]) for name in self.widest} for _ in range(2)]
        plain = Sample({name: values.detach() for name, values in sample.weights.items()}, sample.active)
        total: Tensor | float = 0.0
        for widths in found:
            total = total + loss(at_widths(plain, self.space, widths))
        return total

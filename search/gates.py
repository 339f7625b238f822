"""Gates: decisions that switch links on and off and nothing else; what a search made of them, and whether pruning them is safe."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segnas.search.space import Space

HIGHEST = 2.0
"""The largest value of a clamped gate; half of it stands for the probability of being on (SparseMask's code)."""
FLOOR = 1e-6
"""Gates below this count as this where ratios of gates are looked at; our choice, three decades below the threshold of pruning."""


HALF_DECADE = math.sqrt(10)


@dataclass(frozen=True, slots=True)
class Separation:
    """How gates fell apart: the largest ratio between two neighbours among the sorted gates, in decades, and the two gates at its ends."""

    gates: int
    kept: int
    decades: float
    below: float
    above: float
    threshold: float

    @property
    def is_clear(self) -> bool:
        """Whether the largest gap holds the decade around the threshold, so that one three times as low or as high prunes the same."""
        return self.below <= self.threshold / HALF_DECADE and self.above >= self.threshold * HALF_DECADE

    def __str__(self) -> str:
        what = f"{self.kept} of {self.gates} gates are above the threshold of {self.threshold:g}"
        gap = f"the widest gap between neighbouring gates is {self.decades:.2f} decades, from {self.below:.2e} to {self.above:.2e}"
        if self.is_clear:
            return f"separated: {what}; {gap}"
        return f"not separated: {what}; {gap}: which links are kept depends on the threshold or on the budget; search for more steps"


def separation(space: Space, probabilities: Mapping[str, Sequence[float]], threshold: float) -> Separation | None:
    """How far the gates of a space fell apart; None for fewer than two. A test of ours for what SparseMask says of its gates (section 3.4)."""
    on = sorted(max(FLOOR, float(probabilities[name][1])) for name in space.gates)
    if len(on) < 2:
        return None
    decades, index = max((math.log10(on[i + 1] / on[i]), i) for i in range(len(on) - 1))
    return Separation(len(on), sum(p > threshold for p in on), decades, on[index], on[index + 1], threshold)

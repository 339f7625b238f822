"""Proposals: which genotype a sampling search looks at next: any within the budget, or a child of the fittest (aging evolution).

A proposal is a function of what was scored so far and of a random generator; nothing is remembered between two of them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Protocol

from segnas.errors import InputError, UsageError
from segnas.search.derive import under_budget
from segnas.search.draws import Price
from segnas.search.space import Genotype, Space
from segnas.search.trials import SampledTrial

Key = tuple[int, ...]
"""A genotype's options in the order of the space's decisions."""

STRATEGIES = ("random", "evolution", "local")
UNIFORM = 0.5
"""Of the proposals of `local` so many are uniform draws; our choice: what DPC's search service took is not said."""
REJECTIONS = 1000
"""So many uniform draws may exceed the budget before it counts as too tight for rejection; our choice."""
LISTED = 20_000
"""Up to so many genotypes are listed where rejection is hopeless; our choice, that of `under_budget`."""
STEPS_A_GROUP = 20
"""Steps of the random walk for each group of decisions; our choice."""
MUTATIONS = 100
"""So many children of one parent may exceed the budget before a draw takes their place; our choice."""
REPEATS = 20
"""So many proposals may repeat a genotype of the study before one is accepted again; our choice."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """How genotypes are proposed: `random`; `local`, half of them mutations of one of the best `sample` so far (DPC, section 3.3); or `evolution`,
    with the newest `population` scored ones, of which `sample` compete to be parent.

    Real et al. (Regularized Evolution for Image Classifier Architecture Search, arXiv 1802.01548) took 100 and 25 for 20,000 networks (Methods
    Details); a fifth of each is our choice for studies of some hundred. UsageError for numbers that make no sense.
    """

    name: str = "evolution"
    population: int = 20
    sample: int = 5

    def __post_init__(self) -> None:
        if self.name not in STRATEGIES:
            raise UsageError(f"strategy {self.name!r} was given; allowed: {', '.join(STRATEGIES)}")
        if not 1 <= self.sample <= self.population:
            raise UsageError(f"sample {self.sample} and population {self.population} were given; 1 <= sample <= population is needed")

    def __str__(self) -> str:
        if self.name == "local":
            return f"local, near the best {self.sample}"
        return self.name if self.name == "random" else f"{self.name}, population {self.population}, sample {self.sample}"


class Proposer(Protocol):
    """What proposes genotypes by a way of its own; `str` says which, and by what numbers."""

    def propose(self, allowed: "Allowed", before: Sequence[SampledTrial], taken: Collection[Key], rng: Random) -> dict[str, int]:
        """The next genotype, an allowed one, given the trials before it and the keys of those that are `taken`."""
        ...


@dataclass(frozen=True)
class Allowed:
    """The genotypes of a space that are networks within a budget in ms. InputError, with the range of the prices found, where there is none."""

    space: Space
    price: Price
    budget_ms: float

    def __post_init__(self) -> None:
        _ = self.start  # asked for now, so that a budget that nothing meets is refused before anything is spent

    def key(self, genotype: Genotype) -> Key:
        """What tells genotypes apart."""
        return tuple(genotype[name] for name in self.space.decisions)

    def holds(self, genotype: Genotype) -> bool:
        """Whether it obeys the rules, is within the budget, and leads from the image to the output."""
        if self.price(genotype) > self.budget_ms:
            return False
        try:
            self.space.decode(genotype)
        except InputError:
            return False
        return True

    def draw(self, rng: Random) -> dict[str, int]:
        """One of them, uniformly: by rejection; where that is hopeless, from the list of all in a small space, and by a random walk in a large one.

        Rejection and list are exactly uniform, the walk nearly (`_walked`).
        """
        found = self._rejected(rng)
        if found is None:
            found = rng.choice(self._listed) if self._listed else self._walked(rng)
        return found

    def child(self, parent: Genotype, rng: Random) -> dict[str, int]:
        """A mutation of the parent (`Space.mutate`), drawn again while it is not allowed; a free draw where none of `MUTATIONS` is."""
        for _ in range(MUTATIONS):
            child = self.space.mutate(parent, rng)
            if self.holds(child):
                return child
        return self.draw(rng)

    @cached_property
    def start(self) -> dict[str, int]:
        """One that is allowed, always the same."""
        rng = Random(0)
        found = self._rejected(rng)
        if found is not None:
            return found
        even = {name: (0.0,) * size for name, size in self.space.decisions.items()}
        return under_budget(self.space, even, self._network_price, self.budget_ms, rng)

    def _rejected(self, rng: Random) -> dict[str, int] | None:
        draws = (self.space.random(rng) for _ in range(REJECTIONS))
        return next((genotype for genotype in draws if self.holds(genotype)), None)

    @cached_property
    def _listed(self) -> list[dict[str, int]]:
        """All of them in a small space; nothing in a large one."""
        return [genotype for genotype in self.space.genotypes() if self.holds(genotype)] if self.space.count() <= LISTED else []

    def _walked(self, rng: Random) -> dict[str, int]:
        """The end of a walk by mutations that stays among the allowed.

        A mutation is as probable as its reverse, so the walk tends to the uniform distribution over all that it can reach (Metropolis).
        """
        genotype = self.start
        for _ in range(STEPS_A_GROUP * len(self.space.groups)):
            step = self.space.mutate(genotype, rng)
            if self.holds(step):
                genotype = step
        return genotype

    def _network_price(self, genotype: Genotype) -> float:
        ms = self.price(genotype)
        if ms <= self.budget_ms:
            self.space.decode(genotype)  # raises InputError where the genotype is no network
        return ms


def propose(strategy: Strategy, allowed: Allowed, scored: Sequence[tuple[Genotype, float]], taken: Collection[Key], rng: Random) -> dict[str, int]:
    """The next genotype, an allowed one that is not `taken`, as far as `REPEATS` proposals find one.

    `scored` are the genotypes with their scores (higher is better), the oldest first. Not to score a network twice is our choice: in the paper a
    network that was found again is trained again.
    """
    genotype = _proposal(strategy, allowed, scored, rng)
    for _ in range(REPEATS - 1):
        if allowed.key(genotype) not in taken:
            break
        genotype = _proposal(strategy, allowed, scored, rng)
    return genotype


def _proposal(strategy: Strategy, allowed: Allowed, scored: Sequence[tuple[Genotype, float]], rng: Random) -> dict[str, int]:
    """`local`: a mutation of one of the best, or a draw.

    Else algorithm 1 of Real et al.: draws until the population is full; then the best of `sample`, drawn with replacement, is mutated, and the
    oldest has left.
    """
    if strategy.name == "local" and scored and rng.random() >= UNIFORM:
        best = sorted(scored, key=lambda item: item[1], reverse=True)[: strategy.sample]
        return allowed.child(rng.choice(best)[0], rng)
    population = scored[-strategy.population :]
    if strategy.name != "evolution" or len(population) < strategy.population:
        return allowed.draw(rng)
    parent, _ = max(rng.choices(population, k=strategy.sample), key=lambda item: item[1])
    return allowed.child(parent, rng)

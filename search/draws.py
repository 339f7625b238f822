"""Draws: networks of a space to judge a latency table by: uniform ones, stratified ones, and the corners."""

from collections.abc import Callable
from random import Random

from segnas.arch import Architecture
from segnas.search import rules as ruling
from segnas.search.derive import GROUP, mode
from segnas.search.slots import Choice
from segnas.search.space import Genotype, Space

CANDIDATES = 8
"""So many are drawn for each stratified network that is taken; our choice."""
CONCENTRATION = 0.5
"""Of the Dirichlet distribution of the operations' frequencies: below 1, so that most networks prefer few operations; our choice."""

Price = Callable[[Genotype], float]


def networks(space: Space, count: int, rng: Random) -> tuple[Architecture, ...]:
    """So many networks drawn uniformly; one may come twice."""
    return tuple(space.decode(space.random(rng)).architecture for _ in range(count))


def uniform(space: Space, count: int, rng: Random) -> tuple[Architecture, ...]:
    """Distinct networks drawn uniformly; fewer where the space has fewer."""
    found: dict[str, Architecture] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        architecture = space.decode(space.random(rng)).architecture
        found.setdefault(architecture.digest, architecture)
    return tuple(found.values())


def stratified(space: Space, count: int, price: Price, rng: Random) -> tuple[Architecture, ...]:
    """Distinct networks whose operation frequencies are drawn anew for each from a Dirichlet distribution, taken evenly over the range of prices.

    The range from the cheapest to the dearest candidate is cut into `count` equal strata; each gives the candidate nearest to its middle.
    """
    drawn: dict[str, tuple[float, Architecture]] = {}
    for _ in range(CANDIDATES * count):
        genotype = space.random(rng, _frequencies(space, rng))
        architecture = space.decode(genotype).architecture
        drawn.setdefault(architecture.digest, (price(genotype), architecture))
    left = sorted(drawn.values(), key=lambda item: item[0])
    low, high = left[0][0], left[-1][0]
    chosen: list[Architecture] = []
    for stratum in range(min(count, len(left))):
        middle = low + (high - low) * (stratum + 0.5) / count
        nearest = min(range(len(left)), key=lambda i: abs(left[i][0] - middle))
        chosen.append(left.pop(nearest)[1])
    return tuple(chosen)


def corners(space: Space, price: Price) -> dict[str, Architecture]:
    """The networks at the edges of the space: one option everywhere, as far as the rules allow, the cheapest and the dearest."""
    found: dict[str, Architecture] = {}
    choices = [slot.kind for slot in space.slots if isinstance(slot.kind, Choice)]
    chosen = {choice.decision for choice in choices}
    for option in range(max(space.decisions.values())):
        names = dict.fromkeys(str(choice.options[option]) for choice in choices if option < len(choice.options))
        names.pop("none", None)
        if not names:
            continue
        wanted = {
            name: [1.0 if i == option else 1e-3 if i else 1e-6 for i in range(size)] if name in chosen else [1.0] * size
            for name, size in space.decisions.items()
        }
        found[f"all {' or '.join(names)}"] = space.decode(mode(space, wanted)).architecture
    found["cheapest"] = space.decode(cheapest(space, price)).architecture
    found["dearest"] = space.decode(cheapest(space, lambda genotype: -price(genotype))).architecture
    return found


def cheapest(space: Space, price: Price) -> dict[str, int]:
    """The cheapest genotype that changing one group of decisions at a time leads to; the cheapest of all where the price is a sum over groups."""
    best = mode(space, {name: [1.0] * size for name, size in space.decisions.items()})
    while True:
        before = price(best)
        for group in space.groups:
            sizes = [space.decisions[name] for name in group.decisions]
            small = ruling.count(group, sizes) <= GROUP
            options = ruling.assignments(group, sizes) if small else ruling.near(group, sizes, [best[name] for name in group.decisions])
            best = min(({**best, **dict(zip(group.decisions, chosen, strict=True))} for chosen in options), key=price)
        if price(best) >= before:
            return best


def _frequencies(space: Space, rng: Random) -> dict[str, list[float]]:
    """For each number of options one draw, which all decisions of that many options share."""
    sizes = sorted(set(space.decisions.values()))
    shares = {size: [rng.gammavariate(CONCENTRATION, 1.0) + 1e-6 for _ in range(size)] for size in sizes}
    return {name: shares[size] for name, size in space.decisions.items()}

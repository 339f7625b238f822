"""Draws: networks of a space to judge a latency table by: uniform ones, stratified ones, and the corners; and random ones of a given price."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from random import Random

from segnas.arch import Architecture
from segnas.errors import InputError
from segnas.search import rules as ruling
from segnas.search.derive import GROUP, mode
from segnas.search.slots import Choice
from segnas.search.space import Genotype, Space

CANDIDATES = 20
"""So many are drawn for each stratified network that is taken; our choice."""
CONCENTRATION = 0.25
"""Of the Dirichlet distribution of the operations' frequencies: well below 1, so that most networks prefer few operations and lie anywhere in the
range of prices; our choice."""

REJECTED = 2000
"""So many uniform draws may miss a window of prices before walks lead into it; our choice."""
WALKS = 50
"""So many walks may end outside of it, or at networks that were given before, before there are held to be no more; our choice."""

Price = Callable[[Genotype], float]


def networks(space: Space, count: int, rng: Random) -> tuple[Architecture, ...]:
    """So many networks drawn uniformly; one may come twice."""
    return tuple(space.decode(space.random(rng)).architecture for _ in range(count))


def uniform(space: Space, count: int, rng: Random, taken: Collection[str] = ()) -> tuple[Architecture, ...]:
    """Distinct networks drawn uniformly, none of whose digests is `taken`; fewer where the space has fewer."""
    found: dict[str, Architecture] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        architecture = space.decode(space.random(rng)).architecture
        if architecture.digest not in taken:
            found.setdefault(architecture.digest, architecture)
    return tuple(found.values())


def stratified(space: Space, count: int, price: Price, rng: Random, taken: Collection[str] = ()) -> tuple[Architecture, ...]:
    """Distinct networks whose operation frequencies are drawn anew for each from a Dirichlet distribution, taken evenly over the range of prices.

    The range from the cheapest to the dearest candidate is cut into `count` equal strata; each gives the candidate nearest to its middle. Networks
    whose digests are `taken` are no candidates; fewer than `count` where the space has no more.
    """
    drawn: dict[str, tuple[float, Architecture]] = {}
    for _ in range(CANDIDATES * count):
        genotype = space.random(rng, _frequencies(space, rng))
        architecture = space.decode(genotype).architecture
        if architecture.digest not in taken:
            drawn.setdefault(architecture.digest, (price(genotype), architecture))
    left = sorted(drawn.values(), key=lambda item: item[0])
    low, high = (left[0][0], left[-1][0]) if left else (0.0, 0.0)
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


def distinct(space: Space, rng: Random, probabilities: Mapping[str, Sequence[float]] | None = None) -> Iterator[tuple[dict[str, int], Architecture]]:
    """Networks without end, each once, with the genotype by which it came first: uniform, or by `probabilities`; ends where no new one comes."""
    seen: set[str] = set()
    missed = 0
    while missed < REJECTED:
        genotype = space.random(rng, probabilities)
        architecture = _decoded(space, genotype)
        if architecture is None or architecture.digest in seen:
            missed += 1
            continue
        missed = 0
        seen.add(architecture.digest)
        yield genotype, architecture


def between(space: Space, low: float, high: float, price: Price, rng: Random) -> Iterator[tuple[dict[str, int], Architecture]]:
    """Random networks, each once, whose price lies from `low` to `high`, with the genotype by which it came first; ends where no more are found.

    Uniform ones are drawn, and those outside left out; where too many are, walks from uniform ones follow, each step one group of decisions
    drawn anew and kept where that leads no further from the middle. Those are random, and no longer uniform.
    """
    seen: set[str] = set()
    for found in (_rejected, _walked):
        for genotype in found(space, low, high, price, rng):
            architecture = _decoded(space, genotype)
            if architecture is not None and architecture.digest not in seen:
                seen.add(architecture.digest)
                yield genotype, architecture


def _rejected(space: Space, low: float, high: float, price: Price, rng: Random) -> Iterator[dict[str, int]]:
    """Uniform genotypes in the window, until `REJECTED` draws in a row are outside or were given before."""
    missed, given = 0, set[tuple[int, ...]]()
    while missed < REJECTED:
        genotype = space.random(rng)
        key = tuple(genotype.values())
        missed += 1
        if key not in given and low <= _priced(price, genotype) <= high:
            missed = 0
            given.add(key)
            yield genotype


def _walked(space: Space, low: float, high: float, price: Price, rng: Random) -> Iterator[dict[str, int]]:
    """Genotypes in the window at which walks end, until `WALKS` in a row end outside or where one ended before."""
    middle, missed, given = (low + high) / 2, 0, set[tuple[int, ...]]()
    while missed < WALKS:
        genotype = space.random(rng)
        distance = abs(_priced(price, genotype) - middle)
        for _ in range(20 * len(space.groups)):
            if distance <= (high - low) / 2:
                break
            step = space.mutate(genotype, rng)
            if (further := abs(_priced(price, step) - middle)) <= distance:
                genotype, distance = step, further
        key = tuple(genotype.values())
        missed += 1
        if distance <= (high - low) / 2 and key not in given:
            missed = 0
            given.add(key)
            yield genotype


def _priced(price: Price, genotype: Genotype) -> float:
    """The price; infinite where the genotype is no network."""
    try:
        return price(genotype)
    except InputError:
        return math.inf


def _decoded(space: Space, genotype: Genotype) -> Architecture | None:
    """The network; None where nothing of it reaches the output."""
    try:
        return space.decode(genotype).architecture
    except InputError:
        return None


def cheapest(space: Space, price: Price) -> dict[str, int]:
    """The cheapest genotype that changing one group of decisions at a time leads to; the cheapest of all where the price is a sum over groups.

    Where links have gates that no rule holds, it is looked for from all on too: what stands behind a link that is off costs nothing, so that no one
    step leads there.
    """
    even = {name: [1.0] * size for name, size in space.decisions.items()}
    free = set(space.gates) - {name for rule in space.rules for name in rule.decisions}
    starts = [even, even | {name: [1e-3, 1.0] for name in free}]
    return min((_descended(space, price, mode(space, start)) for start in starts[: 1 + bool(free)]), key=price)


def _descended(space: Space, price: Price, best: dict[str, int]) -> dict[str, int]:
    """One group of decisions after the other at its cheapest, until none helps."""
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

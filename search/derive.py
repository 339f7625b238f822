"""Derive: from what a search learned to one genotype; `mode` takes the most probable, `under_budget` the most probable
within a measured budget.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Literal

from torch import Tensor

from segnas.errors import InputError
from segnas.search import rules as ruling
from segnas.search.slots import Keep, Link
from segnas.search.space import Genotype, Space
from segnas.search.trellis import Trellis

Numbers = Mapping[str, Tensor | Sequence[float]]
"""One number per option of each decision, (options,): probabilities, or scores that add up, such as
log-probabilities.
"""

Ranking = Literal["odds", "strength", "pruned", "expected"]
FLOOR = 1e-30
LEAST = 1e-12
"""A probability below this scores as this."""
PRUNED = 1e-3
"""A gate at or below this is off (SparseMask, section 3.4)."""
TIE = 1e-9
"""Gates whose probabilities differ by less than this share are equals."""
GROUP = 512
"""A group of more assignments than this is searched a small change at a time."""
PAIRS = 4000
"""Most pairs of changes that are tried at one step."""
FINALISTS = 3


def mode(space: Space, probabilities: Numbers, ranking: Ranking = "odds") -> dict[str, int]:
    """The best option of each decision, under the rules.

    Under a rule, `odds` ranks decisions by the odds of their best option against option 0, which gives the most
    probable genotype; `strength` by the probability of that option alone (DARTS, section 2.4). On are as many as beat
    option 0, but at least `low` and at most `high`. `pruned` takes a gate (`Space.gates`) as on where its probability
    is above `PRUNED`, and all else by odds (SparseMask, section 3.4); `expected`, of a rule's gates, as many of the
    strongest as are expected to be on.
    """
    if ranking in ("pruned", "expected"):
        return mode(space, against_threshold(space, probabilities, ranking))
    values = {name: _floats(probabilities[name]) for name in space.decisions}
    ruled = {decision for rule in space.rules for decision in rule.decisions}
    chosen = {name: max(range(int(name in ruled), len(p)), key=p.__getitem__) for name, p in values.items()}
    best = {name: values[name][option] for name, option in chosen.items()}
    odds = {name: math.log(max(best[name], FLOOR)) - math.log(max(p[0], FLOOR)) for name, p in values.items()}
    for rule in space.rules:
        order = sorted(rule.decisions, key=(odds if ranking == "odds" else best).__getitem__, reverse=True)
        for rank, name in enumerate(order):
            if rank >= rule.high or (rank >= rule.low and odds[name] <= 0):
                chosen[name] = 0
    return chosen


def against_threshold(space: Space, probabilities: Numbers, ranking: Ranking) -> dict[str, Sequence[float]]:
    """The probabilities, with those of being off replaced by a threshold for gates: by odds, a gate is then on where it is above that.

    `PRUNED` for all, or, by `expected`, a number for each rule whose decisions are all gates: half-way, in logarithms, between the weakest of those
    that are to be on and the strongest of the others, on being as many as the probabilities sum to, within the rule; equals are on together (ours).
    """
    values: dict[str, Sequence[float]] = {name: _floats(probabilities[name]) for name in space.decisions}
    if ranking == "pruned":
        return values | {name: (PRUNED, values[name][1]) for name in space.gates}
    gates = set(space.gates)
    for rule in space.rules:
        if gates.issuperset(rule.decisions):
            on = sorted((max(values[name][1], LEAST) for name in rule.decisions), reverse=True)
            count, ends = min(max(round(math.fsum(on)), rule.low), rule.high), (1.0, *on, LEAST)
            threshold = math.sqrt(ends[count] * ends[count + 1]) * (1 - TIE)
            values |= {name: (threshold, values[name][1]) for name in rule.decisions}
    return values


def likeliest(space: Space, probabilities: Numbers, ranking: Ranking = "odds", trellis: Trellis | None = None) -> dict[str, int]:
    """The genotype of the most probable network: `mode`, and in a trellis the most probable path (Viterbi), not the best move of each state."""
    if trellis is None:
        return mode(space, probabilities, ranking)
    logs = {name: [math.log(max(p, FLOOR)) for p in _floats(probabilities[name])] for name in trellis.moves}
    moves = {name: [math.exp(score) for score in scores] for name, scores in trellis.pushed(logs).items()}
    return mode(space, {**probabilities, **moves}, ranking)


def scores_of(space: Space, probabilities: Numbers, ranking: Ranking = "odds") -> dict[str, tuple[float, ...]]:
    """Log-probabilities, as scores whose best sum under the rules is what `mode` takes by that ranking.

    By `strength`, under a rule that says exactly how many are on, being off is worth nothing, so that the strongest are on (DARTS, section 2.4);
    under other rules it is worth what it is by `odds`. `pruned` and `expected` score a gate by how far it is above its threshold, in logarithms.
    """
    if ranking in ("pruned", "expected"):
        return scores_of(space, against_threshold(space, probabilities, ranking))
    scores = {name: tuple(math.log(max(p, LEAST)) for p in _floats(probabilities[name])) for name in space.decisions}
    if ranking == "strength":
        for rule in space.rules:
            if rule.low == rule.high:
                scores |= {name: (0.0, *scores[name][1:]) for name in rule.decisions}
    return scores


def score_of(scores: Numbers, genotype: Genotype) -> float:
    """Sum of the chosen options' scores."""
    return math.fsum(float(scores[name][option]) for name, option in genotype.items())


def under_budget(
    space: Space,
    scores: Numbers,
    price: Callable[[Genotype], float],
    budget_ms: float,
    rng: Random,
    *,
    starts: int = 16,
    evaluations: int = 50_000,
    enumerate_up_to: int = 20_000,
    least_ms: float = 0.0,
) -> dict[str, int]:
    """The genotype of the highest summed score whose price, in ms, is within the budget; deterministic given `rng`.

    Spaces of up to `enumerate_up_to` genotypes are searched whole, hence exactly. Others by local search: from the
    mode, from Lagrangian genotypes (best score minus a multiple of the price, groups taken one by one), from draws by
    the scores and from uniform ones. Each climbs by changing one group of decisions; the best three also by changing
    two decisions at once; until nothing helps or `evaluations` prices were asked for. `ExpectedLatency.exact` is a
    price that takes microseconds. Where a network of at least `least_ms` is within the budget, a cheaper one is not
    taken: what a budget allows is to be used. InputError names the cheapest and the dearest network found when nothing fits.
    """
    search = _Search(space, scores, price, budget_ms, rng, evaluations, least_ms)
    is_small = space.count() <= enumerate_up_to
    best = max(space.genotypes(), key=search.rank) if is_small else search.climbed_from(_starts(search, starts))
    if search.price_of(best) > budget_ms:
        raise search.nothing_fits()
    return best


class _Search:
    """A bounded search: what it has priced so far, how it ranks, where it may step."""

    def __init__(
        self, space: Space, scores: Numbers, price: Callable[[Genotype], float], budget_ms: float, rng: Random, evaluations: int, least_ms: float
    ) -> None:
        self.space, self.price, self.budget_ms, self.rng, self.evaluations = space, price, budget_ms, rng, evaluations
        self.least_ms = least_ms
        self.scores = {name: _floats(scores[name]) for name in space.decisions}
        self.sizes = {group: [space.decisions[name] for name in group.decisions] for group in space.groups}
        self.prices: dict[tuple[int, ...], float] = {}
        ruled = {name for rule in space.rules for name in rule.decisions}
        self.links: dict[str, list[tuple[int, int]]] = {name: [] for name in space.gates if name not in ruled}
        for reader, slot in enumerate(space.slots):
            for entry in slot.inputs:
                if isinstance(entry, Link) and entry.decision in self.links:
                    self.links[entry.decision].append((reader, entry.source))

    @property
    def is_spent(self) -> bool:
        """Whether the allowed number of prices was asked for."""
        return len(self.prices) >= self.evaluations

    def price_of(self, genotype: Genotype) -> float:
        """Price in ms, asked for once; infinite where the genotype is no network (nothing reaches the output)."""
        key = tuple(genotype[name] for name in self.scores)
        if key not in self.prices:
            try:
                self.prices[key] = self.price(genotype)
            except InputError:
                self.prices[key] = math.inf
        return self.prices[key]

    def rank(self, genotype: Genotype) -> tuple[float, float, float]:
        """Larger is better: first what exceeds the budget least, then what falls short of the least price least, then what is worth most."""
        price = self.price_of(genotype)
        return -max(0.0, price - self.budget_ms), -max(0.0, self.least_ms - price), self.worth(genotype)

    def worth(self, genotype: Genotype) -> float:
        """Sum of the chosen options' scores; a link that is on without being used, since nothing reads its reader, is worth what it is off."""
        total = score_of(self.scores, genotype)
        if not self.links:
            return total
        live = self.space.live({name: (option,) for name, option in genotype.items()})
        idle = (name for name, ends in self.links.items() if genotype[name] and not any(live[reader] and live[source] for reader, source in ends))
        return total - sum(self.scores[name][1] - self.scores[name][0] for name in idle)

    def climbed_from(self, starts: Iterable[dict[str, int]]) -> dict[str, int]:
        """The best genotype that the climbs end at."""
        ends: dict[tuple[int, ...], dict[str, int]] = {}
        for start in starts:
            end = self.climbed(start, self.regrouped)
            ends[tuple(end.values())] = end
        best = sorted(ends.values(), key=self.rank, reverse=True)[:FINALISTS]
        return max((self.climbed(end, self.changed_twice) for end in best), key=self.rank)

    def climbed(self, genotype: dict[str, int], step: Callable[[dict[str, int]], Iterator[dict[str, int]]]) -> dict[str, int]:
        """Take the best step as long as one is better."""
        while not self.is_spent:
            best = max(step(genotype), key=self.rank, default=genotype)
            if self.rank(best) <= self.rank(genotype):
                break
            genotype = best
        return genotype

    def regrouped(self, genotype: dict[str, int]) -> Iterator[dict[str, int]]:
        """The genotypes that differ in one group of decisions."""
        for group in self.space.groups:
            for options in self.group_options(group, genotype):
                yield {**genotype, **dict(zip(group.decisions, options, strict=True))}

    def changed_twice(self, genotype: dict[str, int]) -> Iterator[dict[str, int]]:
        """The genotypes that differ by up to two small changes; a sample of them where there are many."""
        changes = [dict(zip(group.decisions, options, strict=True)) for group in self.space.groups for options in self.small_changes(group, genotype)]
        pairs = [(a, b) for a, b in itertools.combinations(changes, 2) if a.keys() != b.keys()] if len(changes) <= 400 else []
        if len(changes) > 400:
            pairs = [(self.rng.choice(changes), self.rng.choice(changes)) for _ in range(PAIRS)]
        for one, other in pairs if len(pairs) <= PAIRS else self.rng.sample(pairs, PAIRS):
            yield {**genotype, **one, **other}
        yield from self.regrouped(genotype)

    def group_options(self, group: Keep, genotype: Genotype) -> Iterator[tuple[int, ...]]:
        """Every assignment of a group, or those a small change away where there are many."""
        if ruling.count(group, self.sizes[group]) <= GROUP:
            return ruling.assignments(group, self.sizes[group])
        return self.small_changes(group, genotype)

    def small_changes(self, group: Keep, genotype: Genotype) -> Iterator[tuple[int, ...]]:
        """Assignments in which one decision of the group changes, or one goes off and another on."""
        return ruling.near(group, self.sizes[group], [genotype[name] for name in group.decisions])

    def nothing_fits(self) -> InputError:
        """The error for a budget that no network was found for."""
        found = [price for price in self.prices.values() if math.isfinite(price)]
        low, high = min(found, default=math.inf), max(found, default=math.inf)
        return InputError(
            f"no network of {self.space.name!r} was found within {self.budget_ms:.3f} ms: of {len(self.prices)} that were priced, the cheapest takes "
            f"{low:.3f} ms and the dearest {high:.3f} ms; raise the budget, lower the input size or choose another space"
        )


def _starts(search: _Search, starts: int) -> Iterator[dict[str, int]]:
    """Genotypes to climb from: the mode, Lagrangian ones from free to frugal, the cheapest, draws by the scores and
    uniform ones.
    """
    weights = {name: [math.exp(value - max(values)) for value in values] for name, values in search.scores.items()}
    base = mode(search.space, weights)
    yield base
    before = search.price_of(base)
    table: list[tuple[Keep, list[tuple[tuple[int, ...], float, float]]]] = []
    for group in search.space.groups:
        rows: list[tuple[tuple[int, ...], float, float]] = []
        for options in search.group_options(group, base):
            part = dict(zip(group.decisions, options, strict=True))
            rows.append((options, score_of(search.scores, part), search.price_of({**base, **part}) - before))
        table.append((group, rows))
    spread = sum(max(values) - min(values) for values in search.scores.values()) or 1.0
    for index in range(starts):
        multiplier = spread / max(search.budget_ms, 1e-9) * 4.0 ** (8.0 * index / max(1, starts - 1) - 4.0)
        yield _lagrangian(base, table, multiplier)
    yield _lagrangian(base, table, math.inf)
    for index in range(starts):
        yield search.space.random(search.rng, weights if index % 2 else None)


def _lagrangian(base: dict[str, int], table: Iterable[tuple[Keep, list[tuple[tuple[int, ...], float, float]]]], multiplier: float) -> dict[str, int]:
    """In each group the assignment of the best score minus `multiplier` times its extra price; the cheapest at an
    infinite multiplier.
    """
    result = dict(base)
    for group, rows in table:
        key = (lambda row: (-row[2], row[1])) if math.isinf(multiplier) else (lambda row: row[1] - multiplier * row[2])
        best = max(rows, key=key)
        result.update(zip(group.decisions, best[0], strict=True))
    return result


def _floats(values: Tensor | Sequence[float]) -> list[float]:
    return [float(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]

"""Prices that a search is held to: the budget in ms by the table, and any further constraints, each expected and exact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from segnas.arch import Operation
from segnas.cost import macs, parameters
from segnas.latency import LatencyTable
from segnas.search.expected import ExpectedLatency, ExpectedPrice
from segnas.search.settings import Constraint
from segnas.search.space import Genotype, Space

QUANTITIES: dict[str, Callable[[Operation], int]] = {"multiply_accumulates": macs, "parameters": parameters}


@dataclass(frozen=True)
class Priced:
    """One limit: its name with the unit, the price of a space's networks, and what that should stay within."""

    name: str
    expected: ExpectedPrice
    limit: float

    def share(self, genotype: Genotype) -> float:
        """A network's price over the limit; above 1 breaks it."""
        return self.expected.exact(genotype) / self.limit


def prices(
    space: Space, table: LatencyTable, budget_ms: float, constraints: Sequence[Constraint] = (), tables: Mapping[str, LatencyTable] | None = None
) -> tuple[Priced, ...]:
    """The budget first, then each constraint, all at the size that is deployed; `tables` are those that constraints on time name."""
    found = [Priced("latency, ms", ExpectedLatency(space, table), budget_ms)]
    for constraint in constraints:
        if constraint.quantity == "time":
            other = (tables or {})[constraint.table]
            expected, name = ExpectedLatency(space, other), f"latency on {other.target.device}, ms"
        else:
            expected = ExpectedPrice(space, table.target.height, table.target.width, QUANTITIES[constraint.quantity])
            name = constraint.quantity.replace("_", "-")
        found.append(Priced(name, expected, constraint.limit))
    return tuple(found)


def within_all(limits: Sequence[Priced]) -> Callable[[Genotype], float]:
    """A price in ms that is within the budget iff every limit is kept: the largest share of any limit, times the budget."""
    first, *others = limits
    if not others:
        return first.expected.exact
    return lambda genotype: first.limit * max(limit.share(genotype) for limit in limits)

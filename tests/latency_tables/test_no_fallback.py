"""No silent fallback: with any one entry taken out, whatever asks for it is refused, by name, and nothing gives a number."""

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from segnas.arch import Architecture, Operation
from segnas.errors import IncompatibleError
from segnas.latency import ENTRIES_FROM, Entry, LatencyTable, Timed, priced_operations
from segnas.latency_tables.check import check_coverage
from segnas.latency_tables.compose import calibrate, residuals
from segnas.latency_tables.measure import Measured
from segnas.measuring import require_budget, require_entries
from segnas.search.budget import budget_ms, meet_budget
from segnas.search.expected import ExpectedLatency
from segnas.search.prices import prices
from segnas.search.spaces import space
from segnas.target import Target

TARGET = Target("made up", "onnxruntime", "1.0", "fp32", 64, 128)
TINY = space("cas-tiny", 19)
OPERATIONS = TINY.all_operations(TARGET)
TABLE = LatencyTable(TINY.name, TARGET, tuple(Entry(o, "block", 0.02 + i / 1000, 0.01, 90, "made up", "") for i, o in enumerate(OPERATIONS)), 0.1)
EVEN = {name: (0.0,) * options for name, options in TINY.decisions.items()}


def _users() -> dict[Operation, Architecture]:
    """For each operation a network of the space that runs it."""
    found: dict[Operation, Architecture] = {}
    rng = Random(0)
    for _ in range(1000):
        architecture = TINY.decode(TINY.random(rng)).architecture
        for operation in priced_operations(architecture, TARGET):
            found.setdefault(operation, architecture)
        if found.keys() >= set(OPERATIONS):
            break
    return found


USERS = _users()


def test_every_entry_is_needed_by_a_network() -> None:
    assert [str(o) for o in OPERATIONS if o not in USERS] == []
    assert [str(o) for o in USERS if not o.is_free and o not in OPERATIONS] == []
    assert check_coverage(TABLE, OPERATIONS).complete
    require_entries(TINY, TABLE)


def never(architecture: Architecture, target: Target) -> Timed:
    raise AssertionError("a network was opened though the table lacks an entry of it")


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_without_its_entry_nothing_gives_a_number(operation: Operation) -> None:
    table = replace(TABLE, entries=tuple(entry for entry in TABLE.entries if entry.operation != operation))
    assert len(table.entries) == len(TABLE.entries) - 1
    assert table.missing(OPERATIONS) == check_coverage(table, OPERATIONS).missing == (operation,)
    user = USERS[operation]
    asked: dict[str, Callable[[], object]] = {
        "entry": lambda: table.entry(operation),
        "price_ms": lambda: table.price_ms(operation),
        "raw_sum_ms": lambda: table.raw_sum_ms(user),
        "estimate": lambda: table.estimate(user),
        "probe": lambda: table.probe(user, 5.0),
        "calibrate": lambda: calibrate(table, [user], prepare=never),
        "residuals": lambda: residuals(table, [user], [Measured(5.0, 0.01)]),
        "require_entries": lambda: require_entries(TINY, table),
        "require_budget": lambda: require_budget(TINY, table, 1000.0),
        "ExpectedLatency": lambda: ExpectedLatency(TINY, table),
        "percentile": lambda: budget_ms("p50", TINY, table, 0),
        "meet_budget": lambda: meet_budget(TINY, EVEN, table, prices(TINY, table, 1000.0), measure=lambda _: Measured(5.0, 0.01), seed=0),
    }
    given: dict[str, object] = {}
    for name, ask in asked.items():
        with pytest.raises(IncompatibleError, match=f"{re.escape(str(operation))}.*segnas profile cas-tiny"):
            given[name] = ask()
    assert given == {}


@pytest.mark.parametrize("operation", OPERATIONS[::7], ids=str)
def test_nor_does_a_table_that_knows_each_entrys_correction(operation: Operation) -> None:
    drawn = [TINY.decode(TINY.random(Random(seed))).architecture for seed in range(ENTRIES_FROM)]
    fitted = TABLE.calibrated([TABLE.probe(a, TABLE.raw_sum_ms(a) * (1 + seed % 5 / 100)) for seed, a in enumerate(drawn)], "entries")
    assert operation.digest in dict(fitted.calibration.corrections)
    table = replace(fitted, entries=tuple(entry for entry in fitted.entries if entry.operation != operation))
    for ask in (lambda: table.price_ms(operation), lambda: table.estimate(USERS[operation]), lambda: ExpectedLatency(TINY, table)):
        with pytest.raises(IncompatibleError, match=re.escape(str(operation))):
            ask()


def test_with_every_entry_each_of_them_gives_one() -> None:
    user = USERS[OPERATIONS[0]]
    prices = {operation: 0.02 + index / 1000 for index, operation in enumerate(OPERATIONS)}
    total = 0.1 + sum(prices.get(operation, 0.0) for operation in priced_operations(user, TARGET))
    assert TABLE.estimate(user).total_ms == pytest.approx(total)
    assert TABLE.raw_sum_ms(user) == TABLE.probe(user, 5.0).sum_ms == pytest.approx(total)
    assert residuals(TABLE, [user], [Measured(2 * total, 0.01)])[0].relative == pytest.approx(-0.5)
    assert ExpectedLatency(TINY, TABLE).exact(TINY.random(Random(0))) > 0
    assert budget_ms("p50", TINY, TABLE, 0) > 0
    require_budget(TINY, TABLE, budget_ms("p50", TINY, TABLE, 0))

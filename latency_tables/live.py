"""Live: is a table still true on this machine? Some of its entries are measured again, by the protocol that made it, beside the sentinel.

Prices hold at the speed at which the sentinel takes the table's reference time, so two things may have changed, and are told apart: the machine's
speed, which the sentinel shares and which takes nothing from the table, and the prices at that speed.
"""

import math
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from segnas.arch import Operation
from segnas.calibration import NORMAL_95
from segnas.errors import IncompatibleError, InputError
from segnas.latency import Entry, LatencyTable, Prepare, profile_command
from segnas.latency_tables.compose import PROTOCOL_KEY, reference_ms
from segnas.latency_tables.merge import scaled
from segnas.latency_tables.profile import Progress, profile
from segnas.latency_tables.slope import half_width_from
from segnas.timing import percentile

ENTRIES, ROUNDS = 12, 10
TOLERANCE = 0.05  # what two full profiles of one space may differ by (our goal)
AGREEMENT = 0.02  # a deviation from the common ratio that is none
GROSS = 0.30  # a deviation that counts even if it is the only one (our choice: single entries of two profiles on a shared machine differed by 0.2)
WIDE = 0.15  # half-width of the middle entry's interval above which nothing can be said (our choice; 0.05 to 0.10 on a shared machine)
SESSION_SD = 0.017  # relative standard deviation between sessions (our study, section 2); with it, 3 to 9 % of the intervals missed in three profiles
MISSES = 0.10  # of 90 % intervals
RESCALED_KEY = "rescaled"

Verdict = Literal["same", "faster", "slower", "unclear"]
Action = Literal["keep", "rescale", "profile", "repeat"]


@dataclass(frozen=True, slots=True)
class EntryCheck:
    """One entry measured again: its price in the table and now, both in ms at the table's sentinel speed; now over then, with a 90 % interval.

    The interval comes from both spreads, as of the fewest rounds that an entry has, and from what differs from session to session.
    """

    operation: Operation
    kind: str
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Relative half-width of the interval."""
        return self.high / self.ratio - 1


@dataclass(frozen=True, slots=True)
class LiveCheck:
    """What measuring again said; times over the table's, so that 1.1 is a tenth slower.

    `ratio` is the median of the entries' ratios and `low` to `high` its 90 % interval; `outside` counts the entries whose own interval leaves out 1,
    `apart` those that leave out the common ratio; `advice` says `action` in a sentence. See `check_live` for the rule.
    """

    space: str
    sentinel_before_ms: float
    sentinel_after_ms: float
    entries: tuple[EntryCheck, ...]
    ratio: float
    low: float
    high: float
    outside: int
    apart: int
    verdict: Verdict
    action: Action
    advice: str

    @property
    def sentinel_ratio(self) -> float:
        """The sentinel's time now over the table's: the machine's own speed, which the entries' ratios no longer hold."""
        return self.sentinel_after_ms / self.sentinel_before_ms


def check_live(
    table: LatencyTable,
    *,
    prepare: Prepare,
    graph_sha256: Callable[[Operation], str],
    entries: int = ENTRIES,
    seed: int = 0,
    journal_folder: Path | None = None,
    progress: Progress | None = None,
) -> LiveCheck:
    """Measure the sentinel and `live_entries` again, and compare; the raw samples go to a new journal in `journal_folder`, where one is given.

    - *unclear*, repeat: half of the entries' intervals are wider than `WIDE`.
    - The entries *disagree* where more of them are apart than 90 % intervals miss by chance (5 % level, of 12 more than 3), or one is apart by more
      than `GROSS` and twice its interval: the table is stale, profile again. An entry is apart where its interval leaves out the median ratio by
      more than `AGREEMENT`.
    - *slower* or *faster*: the median ratio is off by more than `TOLERANCE`, and its interval leaves out 1. If the entries agree: rescale.
    - *same*, keep: they agree, and the interval of the median ratio lies within `TOLERANCE` of 1.
    - All else is *unclear*: repeat, unless they disagree.

    The interval of the median is that of the order statistics whose coverage is nearest to 90 %; with fewer than 5 entries, all of theirs together.
    InputError for a table that `profile` did not make; IncompatibleError where it was made by another protocol, or an operation is exported as
    another graph by now.
    """
    before = reference_ms(table)
    if before is None:
        raise InputError(f"the latency table of {table.space!r} holds no sentinel time, so it cannot be checked; run {_command(table)}")
    if table.provenance_of(PROTOCOL_KEY) is None:
        raise IncompatibleError(f"the latency table of {table.space!r} does not say by which protocol it was made; run {_command(table)}")
    chosen = live_entries(table, entries, seed)
    for entry in chosen:
        if graph_sha256(entry.operation) != entry.graph_sha256:
            raise IncompatibleError(f"{entry.operation} is exported as another graph than the table's entry was measured on; run {_command(table)}")
    with _journal(journal_folder) as path:
        fresh = profile(
            table.space,
            [entry.operation for entry in chosen],
            table.target,
            prepare=prepare,
            graph_sha256=graph_sha256,
            journal=path,
            provenance={},
            rounds=ROUNDS,
            repeats=1,
            progress=progress,
            seed=seed,
        )
    after = reference_ms(fresh)
    assert after is not None
    return _judged(table, [_checked(entry, fresh.entry(entry.operation), before / after) for entry in chosen], before, after)


def live_entries(table: LatencyTable, count: int = ENTRIES, seed: int = 0) -> tuple[Entry, ...]:
    """The entries to measure again: as many of each kind as there are, up to an even share, spread from its cheapest to its dearest.

    A kind's entries in the order of their prices are cut into as many parts, and of each part one is drawn from the half with the smaller spread.
    Left out are those that were not measured, or that a round could not resolve (spread of 1 or more). InputError where nothing is left.
    """
    usable = [entry for entry in table.entries if entry.source == "measured" and entry.spread < 1]
    if count < 1 or not usable:
        raise InputError(f"{count} of {len(usable)} measured entries were asked for; at least 1 is needed: run {_command(table)}")
    kinds = sorted({entry.kind for entry in usable})
    by_kind = {name: sorted((e for e in usable if e.kind == name), key=lambda e: (e.median_ms, e.operation)) for name in kinds}
    shares = dict.fromkeys(by_kind, 0)
    for _ in range(min(count, len(usable))):  # the next goes to the kind with the fewest that has more
        shares[min((n for n in shares if shares[n] < len(by_kind[n])), key=lambda n: shares[n])] += 1
    chosen: list[Entry] = []
    for name, ranked in by_kind.items():
        dice, share = random.Random(f"{seed} {name}"), shares[name]
        for i in range(share):
            part = sorted(ranked[i * len(ranked) // share : (i + 1) * len(ranked) // share], key=lambda entry: entry.spread)
            chosen.append(dice.choice(part[: -(-len(part) // 2)]))
    return tuple(chosen)


def rescaled(table: LatencyTable, factor: float) -> LatencyTable:
    """The same table with every price, and the cost of a call, times `factor`; its provenance says so (`rescaled`, the product of all such factors).

    The calibration keeps what was fitted, which is relative, and loses its networks, which were measured before. InputError for a factor that is no
    positive number.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"factor {factor} was given; a positive number is needed")
    origin = dict(table.provenance)
    origin[RESCALED_KEY] = f"{factor * float(origin.get(RESCALED_KEY, '1')):.6f}"
    return replace(scaled(table, factor), calibration=replace(table.calibration, probes=()), provenance=tuple(sorted(origin.items())))


@contextmanager
def _journal(folder: Path | None) -> Generator[Path]:
    name = f"live-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}.jsonl"  # never that of an earlier check, which `profile` would resume
    if folder is not None:
        yield folder / name
        return
    with TemporaryDirectory(prefix="segnas-live-") as temporary:
        yield Path(temporary) / name


def _checked(before: Entry, after: Entry, to_table: float) -> EntryCheck:
    after_ms = after.median_ms * to_table
    ratio = after_ms / before.median_ms
    half_width = math.hypot(half_width_from(before.spread), half_width_from(after.spread), NORMAL_95 * math.sqrt(2) * SESSION_SD)
    return EntryCheck(before.operation, before.kind, before.median_ms, after_ms, ratio, ratio / (1 + half_width), ratio * (1 + half_width))


def _judged(table: LatencyTable, checks: Sequence[EntryCheck], before: float, after: float) -> LiveCheck:
    ratio = percentile([check.ratio for check in checks], 50)
    low, high = median_interval(checks)
    outside = sum(not check.low <= 1 <= check.high for check in checks)
    apart = [c for c in checks if c.low > ratio * (1 + AGREEMENT) or c.high < ratio / (1 + AGREEMENT)]
    gross = any(max(c.ratio / ratio, ratio / c.ratio) - 1 > max(GROSS, 2 * c.half_width) for c in apart)
    verdict: Verdict = "unclear"
    action: Action = "repeat"
    if percentile([check.half_width for check in checks], 50) <= WIDE:
        agree = len(apart) <= missed_by_chance(len(checks)) and not gross
        if max(ratio, 1 / ratio) > 1 + TOLERANCE and not low <= 1 <= high:
            verdict = "slower" if ratio > 1 else "faster"
            action = "rescale" if agree else "profile"
        elif not agree:
            action = "profile"
        elif low >= 1 / (1 + TOLERANCE) and high <= 1 + TOLERANCE:
            verdict, action = "same", "keep"
    measured = f"{len(checks)} entries, {len(apart)} of them apart, take {ratio:.3f} times their prices ({low:.3f} to {high:.3f})"
    said = f"{measured} where the sentinel takes {after / before:.3f} times its own"
    advice = f"{said}: {_advice(action, table, ratio)}"
    return LiveCheck(table.space, before, after, tuple(checks), ratio, low, high, outside, len(apart), verdict, action, advice)


def _advice(action: Action, table: LatencyTable, ratio: float) -> str:
    return {
        "keep": "the table is true here",
        "rescale": f"they agree: `segnas tables rescale TABLE --factor {ratio:.4f} --out NEW.json`, or profile again: {_command(table)}",
        "profile": f"they disagree, so the table is stale; profile again: {_command(table)}",
        "repeat": "that is too unsure for a verdict; close other programs and check again",
    }[action]


def _command(table: LatencyTable) -> str:
    return f"`{profile_command(table.space, table.target)}`"


def median_interval(checks: Sequence[EntryCheck]) -> tuple[float, float]:
    """The order statistics that hold the median ratio in nearest to 90 % of cases (85 to 97 %); below 5 entries, all their intervals together."""
    ratios, count = sorted(check.ratio for check in checks), len(checks)
    if count < 5:
        return min(check.low for check in checks), max(check.high for check in checks)
    left = min(range(count // 2), key=lambda below: abs(2 * at_most(below, count, 0.5) - 0.1))
    return ratios[left], ratios[count - 1 - left]


def missed_by_chance(count: int) -> int:
    """How many of `count` 90 % intervals may miss: more than that do in at most 5 % of cases."""
    return next(most for most in range(count + 1) if at_most(most, count, MISSES) >= 0.95)


def at_most(successes: int, trials: int, chance: float) -> float:
    """Probability of at most so many successes in independent trials."""
    return math.fsum(math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k) for k in range(successes + 1))

"""Versus: two engines timed in turns within one process, and whether one is faster by more than chance.

Engines timed one after the other differ by what the machine did meanwhile. Here they take turns in pairs of blocks, in random order, and are opened
anew from time to time, since where its memory comes to lie moves an engine's time as well. The interval comes from drawing the pairs again.
"""

import math
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Literal

import numpy as np

from segnas.errors import InputError
from segnas.latency import sample_runs
from segnas.runtime.session import Session
from segnas.timing import percentile

Verdict = Literal["faster", "slower", "undecided"]
Open = Callable[[], Session]

DRAWS = 2000
CONFIDENCE = 0.95
_LEAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class Versus:
    """The first engine against the second: medians in ms, their ratio with its interval of `confidence`, and what follows of it.

    `faster` where the whole interval is below 1, `slower` where it is above. `pairs` holds each pair's medians, first and second.
    """

    scope: str
    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    confidence: float
    verdict: Verdict
    openings: int
    runs: int
    pairs: tuple[tuple[float, float], ...]


def versus(
    first: Open,
    second: Open,
    *,
    pairs: int = 40,
    openings: int = 8,
    block_ms: float = 40.0,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Versus:
    """Time both in `pairs` pairs of blocks of about `block_ms`, `openings` times opened anew, both in random order.

    InputError where they are timed in different scopes: their times mean different things.
    """
    if openings < 2 or pairs < openings:
        raise InputError(f"{pairs} pairs over {openings} openings were asked for; at least 2 openings, and a pair in each, are needed")
    dice, scope, runs = random.Random(seed), "", (0, 0)
    groups: list[list[tuple[float, float]]] = []
    for opening in range(openings):
        count = pairs // openings + (opening < pairs % openings)
        with ExitStack() as stack:
            order = dice.sample((0, 1), 2)
            opened = {which: stack.enter_context(closing((first, second)[which]())) for which in order}
            scope = _same_scope(opened[0], opened[1])
            runs = runs if runs != (0, 0) else (_runs_in(opened[0], block_ms), _runs_in(opened[1], block_ms))
            for session in opened.values():
                session.sample(_LEAST_RUNS)
            groups.append([])
            for _ in range(count):
                groups[-1].append(_pair(opened, runs, dice))
                if progress is not None:
                    progress(sum(map(len, groups)) / pairs)
    return _judged(scope, groups, sum(runs) * pairs, seed)


def _pair(opened: dict[int, Session], runs: tuple[int, int], dice: random.Random) -> tuple[float, float]:
    """The medians of a block of each, in random order; the first run of a block is cold, and does not count."""
    found = {which: percentile(opened[which].sample(runs[which] + 1)[1:], 50) for which in dice.sample((0, 1), 2)}
    return found[0], found[1]


def _runs_in(session: Session, block_ms: float) -> int:
    return min(max(round(block_ms / max(session.sample(2)[1] * sample_runs(session), 1e-6)), _LEAST_RUNS), 1000)


def _same_scope(first: Session, second: Session) -> str:
    if first.target.scope != second.target.scope:
        raise InputError(f"the first engine is timed {first.target.scope!r}, the second {second.target.scope!r}; give one --scope for both")
    return first.target.scope


def _judged(scope: str, groups: Sequence[Sequence[tuple[float, float]]], runs: int, seed: int) -> Versus:
    pairs = [pair for group in groups for pair in group]
    low, high = interval(groups, seed=seed)
    medians = tuple(percentile([pair[which] for pair in pairs], 50) for which in (0, 1))
    ratio = medians[0] / medians[1]
    verdict: Verdict = "faster" if high < 1 else "slower" if low > 1 else "undecided"
    return Versus(scope, medians[0], medians[1], ratio, low, high, CONFIDENCE, verdict, len(groups), runs, tuple(pairs))


def interval(
    groups: Sequence[Sequence[tuple[float, float]]], *, draws: int = DRAWS, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the ratio of medians: openings are drawn again with replacement, then pairs within each.

    In two stages, since pairs of one opening share where their memory lies; as many pairs are drawn from each opening as the largest has. With few
    openings the interval is widened by sqrt(n / (n - 1)), as a standard deviation of n values is (our choice).
    """
    generator = np.random.default_rng(seed)
    flat = np.asarray([pair for group in groups for pair in group], np.float64)  # (pairs, 2)
    sizes = np.asarray([len(group) for group in groups])
    starts = np.cumsum(sizes) - sizes
    chosen = generator.integers(len(groups), size=(draws, len(groups), 1))
    places = starts[chosen] + (generator.random((draws, len(groups), int(sizes.max()))) * sizes[chosen]).astype(np.int64)
    medians = np.median(flat[places.reshape(draws, -1)], axis=1)  # (draws, 2)
    ratios = medians[:, 0] / medians[:, 1]
    tail = (1 - confidence) / 2
    low, middle, high = (float(value) for value in np.quantile(np.log(ratios), (tail, 0.5, 1 - tail)))
    wider = math.sqrt(len(groups) / (len(groups) - 1))
    return math.exp(middle - wider * (middle - low)), math.exp(middle + wider * (high - middle))

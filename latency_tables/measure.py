"""Measure whole networks: interleaved with the sentinel and with each other, in shuffled rounds; a turn says its fastest run."""

import math
import random
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TypeVar

from segnas.arch import Architecture
from segnas.latency import Prepare
from segnas.latency_tables.sentinel import Visit, interleaved, steady_rounds
from segnas.target import Target
from segnas.timing import Measured, interquartile_mean, percentile

T = TypeVar("T")
ROUNDS = 8
RUNS, READING = 5, 3
"""Runs in one turn of a network, and of the sentinel; the fastest counts. As many for each network, since the fastest of more is faster. Of eight
networks that six processes read in eight turns, readings were off by 0.9 % so, and by 1.3 % with the middle of the runs of a turn (our study)."""
TOGETHER = 8  # networks that are open at once
LOSS = 1.4  # interquartile mean against mean (1.1), and turns that share a sentinel's reading agree more than they are right (1.3, simulated)


def measure(architecture: Architecture, target: Target, *, prepare: Prepare, sentinel_ref_ms: float | None = None, rounds: int = ROUNDS) -> Measured:
    """Latency of one network; without a reference, at the speed that the machine had meanwhile."""
    return measure_all((architecture,), target, prepare=prepare, sentinel_ref_ms=sentinel_ref_ms, rounds=rounds)[0]


def measure_all(
    architectures: Sequence[Architecture],
    target: Target,
    *,
    prepare: Prepare,
    sentinel_ref_ms: float | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> tuple[Measured, ...]:
    """Latency of several networks, several open at once and visited in shuffled rounds."""
    if not architectures:
        return ()
    dice, visits = random.Random(seed), list[list[Visit]]()
    for group in in_groups(architectures):
        visits += _visited(group, target, prepare, rounds, dice)
    reference = sentinel_ref_ms or percentile([visit.sentinel_ms for turns in visits for visit in turns], 50)
    return tuple(_measured(turns, reference) for turns in visits)


def in_groups(networks: Sequence[T]) -> list[Sequence[T]]:
    """What `measure_all` has open together of these, or of what belongs to each of them."""
    return [networks[first : first + TOGETHER] for first in range(0, len(networks), TOGETHER)]


def _visited(architectures: Sequence[Architecture], target: Target, prepare: Prepare, rounds: int, dice: random.Random) -> list[list[Visit]]:
    with ExitStack() as stack:
        interleaver = stack.enter_context(interleaved(target, prepare, reading=READING))
        networks = [stack.enter_context(closing(prepare(architecture, target))) for architecture in architectures]
        for network in networks:
            network.sample(2)
        visits: list[list[Visit]] = [[] for _ in networks]
        interleaver.begin()
        for _ in range(rounds):
            for index in dice.sample(range(len(networks)), len(networks)):
                visits[index].append(interleaver.visit(networks[index], RUNS))
    return visits


def _measured(turns: Sequence[Visit], reference: float) -> Measured:
    ratios = [turns[i].fastest_ratio for i in steady_rounds([turns])]
    centre = interquartile_mean(ratios)
    deviation = 1.2533 * math.fsum(abs(ratio / centre - 1) for ratio in ratios) / len(ratios)  # of a normal distribution: its standard deviation
    raw = interquartile_mean([interquartile_mean(turn.samples_ms) for turn in turns])
    return Measured(centre * reference, LOSS * deviation / math.sqrt(max(1, len(ratios) - 1)), raw)

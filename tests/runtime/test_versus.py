"""Two engines in turns: the verdict, its interval, and that drift common to both does not decide."""

import itertools
import math
import random

import numpy as np
import pytest

from segnas.errors import InputError
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.versus import Versus, interval, versus
from segnas.target import Target


class Machine:
    """A machine whose speed drifts, on which each opening of an engine lies somewhere else in memory."""

    def __init__(self, *, drift: float = 0.0, noise: float = 0.0, placement: float = 0.0, seed: int = 0) -> None:
        self.drift, self.noise, self.placement = drift, noise, placement
        self.dice, self.runs, self.open, self.opened = random.Random(seed), 0, 0, 0

    def engine(self, ms: float, scope: str = "end_to_end"):
        return lambda: Engine(self, ms, scope)


class Engine:
    def __init__(self, machine: Machine, ms: float, scope: str) -> None:
        self.machine = machine
        self.ms = ms * math.exp(machine.dice.gauss(0, machine.placement))
        self.target: Target = cpu_target(6, 10)
        object.__setattr__(self.target, "scope", scope)
        machine.open += 1
        machine.opened += 1

    def sample(self, runs):
        found = []
        for index in range(runs):
            self.machine.runs += 1
            speed = 1 + self.machine.drift * math.sin(self.machine.runs / 700)
            cold = 1.3 if index == 0 else 1.0
            found.append(cold * self.ms * speed * math.exp(self.machine.dice.gauss(0, self.machine.noise)))
        return tuple(found)

    def close(self):
        self.machine.open -= 1


def judged(machine: Machine, first: float, second: float, **options) -> Versus:
    found = versus(machine.engine(first), machine.engine(second), **options)
    assert machine.open == 0
    return found


@pytest.mark.parametrize(("first", "second", "verdict"), [(5.0, 5.5, "faster"), (5.5, 5.0, "slower")])
def test_a_difference_is_found_under_drift(first, second, verdict):
    found = judged(Machine(drift=0.15, noise=0.02, placement=0.01), first, second)
    assert found.verdict == verdict
    assert found.low < found.ratio < found.high
    assert found.low < first / second < found.high
    assert (len(found.pairs), found.openings, found.confidence) == (40, 8, 0.95)


def test_the_same_engine_is_rarely_called_another():
    shaky = [Machine(drift=0.15, noise=0.02, placement=0.01, seed=seed) for seed in range(40)]
    verdicts = [judged(machine, 5.0, 5.0, seed=seed, pairs=16, block_ms=25).verdict for seed, machine in enumerate(shaky)]
    assert verdicts.count("undecided") >= 35


def test_pairs_and_openings_are_as_asked():
    machine, told = Machine(), list[float]()
    found = judged(machine, 5.0, 5.0, pairs=7, openings=3, progress=told.append)
    assert machine.opened == 6
    assert len(found.pairs) == 7
    assert told == sorted(told)
    assert told[-1] == 1.0
    with pytest.raises(InputError, match="at least 2 openings"):
        versus(machine.engine(1.0), machine.engine(1.0), openings=1)
    with pytest.raises(InputError, match="a pair in each"):
        versus(machine.engine(1.0), machine.engine(1.0), pairs=3, openings=4)


def test_scopes_do_not_mix():
    machine = Machine()
    with pytest.raises(InputError, match="the first engine is timed 'gpu', the second 'end_to_end'"):
        versus(machine.engine(1.0, "gpu"), machine.engine(1.0))
    assert machine.open == 0


def test_the_interval_is_that_of_an_exhaustive_bootstrap():
    """Three openings of one pair each: all 27 draws, by brute force."""
    groups = [[(2.0, 1.0)], [(3.0, 1.0)], [(5.0, 1.5)]]
    ratios = []
    for chosen in itertools.product(groups, repeat=3):
        drawn = np.array([pair for group in chosen for pair in group])
        ratios.append(np.median(drawn[:, 0]) / np.median(drawn[:, 1]))
    low, middle, high = np.quantile(np.log(ratios), (0.025, 0.5, 0.975), method="inverted_cdf")
    wider = math.sqrt(3 / 2)
    found = interval(groups, draws=20_000)
    assert found == pytest.approx((math.exp(middle - wider * (middle - low)), math.exp(middle + wider * (high - middle))), rel=0.02)


def test_pairs_that_agree_leave_no_doubt():
    assert interval([[(2.0, 4.0)] * 3] * 4) == pytest.approx((0.5, 0.5))

"""Labels against closed forms and against a simulated machine whose groups of networks are read too slow or too fast together."""

import math
from random import Random
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.latency_tables.labels import Groups, labels, noise, process_sd

NETWORKS, TOGETHER = 40, 8


def simulated(processes: int, shared: float, own: float, seed: int) -> tuple[dict[str, float], list[Groups]]:
    """What networks take, and readings of them in shuffled groups whose factor has a standard deviation of `shared`."""
    dice = Random(seed)
    true = {f"{index:02}": 5 + index / 20 for index in range(NETWORKS)}
    found: list[Groups] = []
    for _ in range(processes):
        order = dice.sample(sorted(true), NETWORKS)
        factors = [math.exp(dice.gauss(0, shared)) for _ in range(NETWORKS // TOGETHER)]
        found.append(
            [
                {digest: true[digest] * factor * math.exp(dice.gauss(0, own)) for digest in order[first : first + TOGETHER]}
                for first, factor in zip(range(0, NETWORKS, TOGETHER), factors, strict=True)
            ]
        )
    return true, found


def errors(true: dict[str, float], found: dict[str, float]) -> list[float]:
    """Relative errors, but for the one factor that all have in common."""
    logs = [math.log(found[digest] / ms) for digest, ms in true.items()]
    return [value - fmean(logs) for value in logs]


def means(processes: list[Groups]) -> dict[str, float]:
    return {digest: fmean(group[digest] for groups in processes for group in groups if digest in group) for digest in simulated(1, 0, 0, 0)[0]}


def test_alike_groups_leave_the_mean_and_its_noise() -> None:
    found = labels([[{"a": 10.0, "b": 20.0}], [{"a": 10.4, "b": 20.8}], [{"a": 9.8, "b": 19.6}]])
    middle = math.exp(fmean(map(math.log, (10.0, 10.4, 9.8))))
    assert found["a"].ms == pytest.approx(middle)
    assert found["b"].ms == pytest.approx(2 * middle)
    assert found["a"].relative_sd == pytest.approx(0, abs=1e-9), "the two agree in each process but for what they share"
    assert found["a"].sessions_ms == pytest.approx((10.0, 10.4, 9.8)), "as they were read"


def test_what_a_group_shares_is_taken_out() -> None:
    """Whatever the groups' factors are, what is left is the networks' own noise."""
    for seed in range(5):
        true, processes = simulated(5, 0.0, 0.01, seed)
        dice = Random(seed)
        moved = [
            [{digest: ms * factor for digest, ms in group.items()} for group in groups for factor in [dice.uniform(0.9, 1.1)]] for groups in processes
        ]
        plain, shifted = labels(processes), labels(moved)
        assert errors({d: x.ms for d, x in plain.items()}, {d: x.ms for d, x in shifted.items()}) == pytest.approx([0] * NETWORKS, abs=2e-3)
        assert stdev(errors(true, {d: x.ms for d, x in shifted.items()})) < 0.5 * stdev(errors(true, means(moved)))


def test_the_stated_noise_is_the_true_one() -> None:
    stated, found = [], []
    for seed in range(20):
        true, processes = simulated(5, 0.02, 0.015, seed)
        made = labels(processes)
        stated.append(noise([*made.values()]) / 100)
        found.append(stdev(errors(true, {digest: label.ms for digest, label in made.items()})))
    assert fmean(found) == pytest.approx(fmean(stated), rel=0.15)
    assert fmean(found) < 0.75 * math.hypot(0.02, 0.015) / math.sqrt(5), "well below that of plain means"


def test_against_least_squares() -> None:
    """With no outliers the fit is near the ordinary one of networks and groups, solved at once."""
    true, processes = simulated(3, 0.03, 0.01, 3)
    groups = [group for process in processes for group in process]
    digests = sorted(true)
    rows, values = [], []
    for index, group in enumerate(groups):
        for digest, ms in group.items():
            row = np.zeros(NETWORKS + len(groups))
            row[digests.index(digest)] = row[NETWORKS + index] = 1
            rows.append(row)
            values.append(math.log(ms))
    solved = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0][:NETWORKS]
    made = labels(processes)
    assert stdev(errors({d: math.exp(v) for d, v in zip(digests, solved, strict=True)}, {d: x.ms for d, x in made.items()})) < 0.004


def test_a_disturbed_reading_has_little_say() -> None:
    _, processes = simulated(5, 0.02, 0.005, 1)
    disturbed = [[dict(group) for group in groups] for groups in processes]
    for digest in disturbed[2][1]:
        disturbed[2][1][digest] *= 1.5 if digest == min(disturbed[2][1]) else 1.0
    plain, other = ({d: x.ms for d, x in labels(found).items()} for found in (processes, disturbed))
    assert max(map(abs, errors(plain, other))) < 0.015


def test_a_disturbed_group_does_not_move_the_level() -> None:
    """Two of all groups read a fifth and a half too slow: by plain means all networks would."""
    true, processes = simulated(5, 0.01, 0.005, 2)
    disturbed = [[dict(group) for group in groups] for groups in processes]
    for group, factor in ((disturbed[0][0], 1.2), (disturbed[3][1], 1.5)):
        group.update({digest: factor * ms for digest, ms in group.items()})
    level = [fmean(math.log(label.ms / true[digest]) for digest, label in labels(found).items()) for found in (processes, disturbed)]
    assert level[0] == pytest.approx(0, abs=0.006)
    assert level[1] == pytest.approx(level[0], abs=0.004)
    assert fmean(math.log(ms / true[digest]) for digest, ms in means(disturbed).items()) > level[0] + 0.01


@settings(max_examples=25)
@given(st.integers(0, 999), st.floats(0.2, 5.0))
def test_units_do_not_matter(seed: int, unit: float) -> None:
    _, processes = simulated(3, 0.02, 0.01, seed)
    plain = labels(processes)
    scaled = labels([[{digest: unit * ms for digest, ms in group.items()} for group in groups] for groups in processes])
    assert [scaled[d].ms for d in plain] == pytest.approx([unit * x.ms for x in plain.values()], rel=1e-9)


def test_what_follows_each_other_shares_leaves_two_sets_together() -> None:
    """Two sets whose processes share a moment lie apart by what each process adds alone: simulated, and over many draws."""
    stated, found = [], []
    for seed in range(400):
        dice = Random(seed)
        moments = [dice.gauss(0, 0.03) for _ in range(5)]
        first, second = ([moment + dice.gauss(0, 0.01) for moment in moments] for _ in range(2))
        sets = [labels([[{"a": 10 * math.exp(f), "b": 20 * math.exp(f)}] for f in factors]) for factors in (first, second)]
        stated.append(process_sd([*sets[0].values()], [*sets[1].values()]) ** 2)
        found.append((fmean(first) - fmean(second)) ** 2)
    assert math.sqrt(fmean(stated)) == pytest.approx(math.sqrt(fmean(found)), rel=0.15)
    assert math.sqrt(fmean(stated)) == pytest.approx(0.01 * math.sqrt(2 / 5), rel=0.1)


def test_sets_read_in_different_numbers_of_processes_are_refused() -> None:
    few, many = labels([[{"a": 1.0, "b": 2.0}]] * 2), labels([[{"a": 1.0, "b": 2.0}]] * 3)
    with pytest.raises(InputError, match=r"\[2, 3\] processes"):
        process_sd([*few.values()], [*many.values()])


def test_one_process_says_no_noise_and_takes_nothing_out() -> None:
    found = labels([[{"a": 10.0}, {"b": 20.0}]])
    assert [label.ms for label in found.values()] == pytest.approx([10.0, 20.0])
    assert all(math.isnan(label.relative_sd) for label in found.values())
    assert process_sd([found["a"]], [found["b"]]) == 0.0


@pytest.mark.parametrize("processes", [[], [[]], [[{"a": 1.0}], [{"b": 1.0}]], [[{"a": 1.0}], [{"a": 1.0}, {"b": 1.0}]]])
def test_networks_that_one_process_lacks_are_refused(processes: list[Groups]) -> None:
    with pytest.raises(InputError, match="must have measured the same"):
        labels(processes)

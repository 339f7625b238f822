"""Sampling-based search on toy spaces whose best network is known, with an in-memory storage; several processes are in test_sampling_workers.py."""

import math
from collections.abc import Callable
from random import Random
from typing import Any

import optuna
import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from segnas.errors import IncompatibleError, InputError, RequirementError, UsageError, VerificationError
from segnas.latency import Calibration, LatencyTable
from segnas.search.proposals import Allowed, Strategy, propose
from segnas.search.sampled import Pace, Sampled, Score, Scoring, sample
from segnas.search.space import Genotype, Space
from segnas.search.study import ATTEMPTS, SharedStudy, open_storage
from segnas.search.workers import Worker, this_worker

QUICK = Pace(0.005, 0.05, 0.01)
STRANGER = Worker("another machine", 7, "1")


@pytest.fixture(scope="module")
def space(toy_named: Callable[[str], Space]) -> Space:
    return toy_named("own-cells")


@pytest.fixture(scope="module")
def table(space: Space, made_up_table: Callable[[Space], LatencyTable]) -> LatencyTable:
    return made_up_table(space)


@pytest.fixture(scope="module")
def estimates(space: Space, table: LatencyTable) -> dict[tuple[int, ...], float]:
    """What each network costs, by decoding it."""
    return {tuple(g.values()): table.additive_ms(space.decode(g).architecture) for g in space.genotypes()}


@pytest.fixture(scope="module")
def budget(estimates: dict[tuple[int, ...], float]) -> float:
    """What half of the networks meet, between two prices: at a price itself, rounding would decide."""
    prices = sorted(estimates.values())
    below = prices[len(prices) // 2]
    return (below + next(price for price in prices if price > below + 1e-9)) / 2


@pytest.fixture(scope="module")
def score(space: Space) -> Score:
    """A sum of random values of the options, all below 0: a failure that counted as 0 would win."""
    rng = Random(6)
    values = {name: [-1 - rng.random() for _ in range(size)] for name, size in space.decisions.items()}
    return lambda genotype: sum(values[name][option] for name, option in genotype.items())


@pytest.fixture
def work(space: Space, table: LatencyTable, budget: float, score: Score) -> Callable[..., Sampled]:
    """A search with everything given; words replace parts of it."""

    def run(storage: InMemoryStorage, score: Score = score, schedule: dict[str, Any] | None = None, **words: Any) -> Sampled:
        given: dict[str, Any] = {"space": space, "table": table, "strategy": Strategy("evolution", 8, 3), "budget_ms": budget, "trials": 12}
        given |= {"name": "toy", "seed": 4, "pace": QUICK, "storage": storage, "scoring": Scoring(score, schedule or {"score": "sum"}), **words}
        return sample(given.pop("space"), given.pop("table"), given.pop("strategy"), given.pop("scoring"), **given)

    return run


def scored(found: Sampled) -> list[tuple[tuple[int, ...], float]]:
    return [(tuple(t.genotype.values()), t.score) for t in found.trials if t.genotype is not None and t.score is not None]


def test_evolution_through_the_storage_finds_the_optimum(work, space: Space, table: LatencyTable, budget: float, estimates, score: Score) -> None:
    found = work(InMemoryStorage(), strategy=Strategy("evolution", 20, 5), trials=150, seed=1)
    best = max((g for g in space.genotypes() if estimates[tuple(g.values())] <= budget), key=score)
    assert found.genotype == best
    assert found.score == score(best)
    assert found.derived == space.decode(best)
    assert found.estimate == table.estimate(space.decode(best).architecture)
    assert found.counts == {"complete": 150}
    assert [t.number for t in found.trials] == list(range(150))


@pytest.mark.parametrize("name", ["random", "evolution"])
def test_nothing_over_the_budget_is_ever_evaluated(work, budget: float, estimates: dict[tuple[int, ...], float], score: Score, name: str) -> None:
    seen = list[tuple[int, ...]]()

    def noted(genotype: Genotype) -> float:
        seen.append(tuple(genotype.values()))
        return score(genotype)

    found = work(InMemoryStorage(), noted, strategy=Strategy(name, 8, 3), trials=30)
    assert all(estimates[key] <= budget for key in seen)
    assert [key for key, _ in scored(found)] == seen
    assert len(set(seen)) == 30
    assert all(t.price_ms == pytest.approx(estimates[tuple(t.genotype.values())]) for t in found.trials if t.genotype)


def test_equal_seeds_give_equal_trials_and_others_do_not(work, space: Space, table: LatencyTable, budget: float, score: Score) -> None:
    first, second, other = work(InMemoryStorage()), work(InMemoryStorage()), work(InMemoryStorage(), seed=5)
    assert scored(first) == scored(second)
    assert scored(first) != scored(other)
    history = list[tuple[Genotype, float]]()
    allowed = Allowed(space, lambda g: table.additive_ms(space.decode(g).architecture), budget)
    for slot in range(12):  # the same, without Optuna
        taken = {allowed.key(genotype) for genotype, _ in history}
        genotype = propose(Strategy("evolution", 8, 3), allowed, history, taken, Random(f"4 {slot}"))
        history.append((genotype, score(genotype)))
    assert scored(first) == [(tuple(g.values()), value) for g, value in history]


def test_more_trials_go_on_and_fewer_do_nothing(work) -> None:
    storage, whole = InMemoryStorage(), work(InMemoryStorage())
    assert scored(work(storage, trials=5)) == scored(whole)[:5]
    assert scored(work(storage)) == scored(whole)
    assert scored(work(storage, trials=3)) == scored(whole)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_worker_that_stops_loses_nothing(work, score: Score, error: type[BaseException]) -> None:
    storage, stopped, calls = InMemoryStorage(), list[Genotype](), [0]

    def stopping(genotype: Genotype) -> float:
        calls[0] += 1
        if calls[0] in (4, 5, 9):
            stopped.append(genotype)
            raise error
        return score(genotype)

    for _ in range(3):
        with pytest.raises(error):
            work(storage, stopping)
    found = work(storage, stopping)
    assert scored(found) == scored(work(InMemoryStorage()))
    assert found.counts == {"complete": 12, "lost": 3}
    assert [t.genotype for t in found.trials if t.state == "lost"] == stopped
    assert stopped[0] == stopped[1]


# ---- failures


def test_a_failed_evaluation_has_no_score(work, score: Score) -> None:
    plain = [genotype for genotype, _ in scored(work(InMemoryStorage(), strategy=Strategy("random")))]
    errors = {plain[2]: MemoryError("too large"), plain[5]: VerificationError("training diverged"), plain[7]: None}

    def failing(genotype: Genotype) -> float:
        error = errors.get(tuple(genotype.values()), error_free)
        if isinstance(error, Exception):
            raise error
        return math.nan if error is None else score(genotype)

    error_free = object()
    found = work(InMemoryStorage(), failing, strategy=Strategy("random"))
    assert found.counts == {"complete": 9, "failed": 3}
    failed = {tuple(t.genotype.values()): t.reason for t in found.trials if t.state == "failed" and t.genotype}
    assert failed == {plain[2]: "MemoryError: too large", plain[5]: "VerificationError: training diverged", plain[7]: "the score is nan"}
    assert all(t.score is None for t in found.trials if t.state == "failed")
    assert found.score == max(value for _, value in scored(found)) < 0
    assert [genotype for genotype, _ in scored(found)] == [genotype for genotype in plain if genotype not in errors]


def test_failures_are_no_parents_and_are_not_proposed_again(work, score: Score) -> None:
    calls = list[tuple[int, ...]]()

    def failing(genotype: Genotype) -> float:
        calls.append(tuple(genotype.values()))
        if len(calls) % 2:
            raise MemoryError("too large")
        return score(genotype)

    found = work(InMemoryStorage(), failing, trials=40)
    assert found.counts == {"complete": 20, "failed": 20}
    assert len(set(calls)) == 40


def test_a_study_without_any_score_is_an_error(work) -> None:
    def failing(genotype: Genotype) -> float:
        raise VerificationError("training diverged at step 3")

    with pytest.raises(VerificationError, match="none of 4 trials could be scored; the last reason: VerificationError: training diverged at step 3"):
        work(InMemoryStorage(), failing, trials=4)


# ---- refusals


def test_an_impossible_budget_is_refused_before_anything_is_written(work, estimates: dict[tuple[int, ...], float], table: LatencyTable) -> None:
    storage, low = InMemoryStorage(), min(estimates.values())
    with pytest.raises(InputError, match=f"cheapest takes {low:.3f} ms and the dearest"):
        work(storage, budget_ms=low - 0.01)
    assert storage.get_all_studies() == []
    assert table.additive_ms(work(storage, budget_ms=low + 1e-9, trials=1).derived.architecture) == pytest.approx(low)


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("budget_ms", {"budget_ms": 1e9}),
        ("seed", {"seed": 5}),
        ("strategy", {"strategy": Strategy("evolution", 9, 3)}),
        ("schedule", {"schedule": {"score": "sum", "steps": 3}}),
    ],
)
def test_a_study_of_another_search_is_refused_by_its_field(work, field: str, word: dict[str, Any]) -> None:
    storage = InMemoryStorage()
    work(storage, trials=2)
    with pytest.raises(IncompatibleError, match=rf"study 'toy' belongs to another search \({field}: it has [^;]*, asked for is [^;]*\)"):
        work(storage, trials=2, **word)
    assert len(work(storage, trials=2).trials) == 2


def test_another_table_or_space_is_refused(work, table: LatencyTable, toy_named, made_up_table) -> None:
    from dataclasses import replace

    storage = InMemoryStorage()
    work(storage, trials=1)
    dearer = replace(table, entries=tuple(replace(e, median_ms=1.01 * e.median_ms) for e in table.entries))
    for other, word in (
        ("table", {"table": dearer}),
        ("calibration", {"table": replace(table, calibration=Calibration(scale=0.91))}),
        ("definition", {"space": replace(toy_named("own-loose-cells"), name="toy-cells"), "table": made_up_table(toy_named("own-loose-cells"))}),
        ("space", {"space": toy_named("dense"), "table": made_up_table(toy_named("dense"))}),
    ):
        with pytest.raises(IncompatibleError, match=rf"[(; ]{other}: it has"):
            work(storage, trials=1, budget_ms=1e9, **word)


def test_a_study_of_somebody_else_is_refused(work) -> None:
    storage = InMemoryStorage()
    optuna.create_study(storage=storage, study_name="toy").add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(IncompatibleError, match="study 'toy' was not made by `segnas sample`"):
        work(storage)


@pytest.mark.parametrize(
    ("url", "error"), [("study.db", UsageError), ("oracel://host/name", UsageError), ("sqlite:////no/such/folder/s.db", RequirementError)]
)
def test_storages_that_cannot_be_opened(url: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segnas.search.study.time.sleep", lambda _: None)
    with pytest.raises(error, match="storage '"), open_storage(url):
        pass


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(UsageError) as raised, open_storage("oracel://user:secret@host/name"):
        pass
    assert "secret" not in str(raised.value)
    assert "oracel://host/name" in str(raised.value)


# ---- workers that die


@pytest.fixture
def shared(space: Space, table: LatencyTable, budget: float) -> Callable[..., SharedStudy]:
    """A study as the search of `work` sees it, by another worker."""
    from segnas.search.expected import ExpectedLatency
    from segnas.search.sampled import study_identity

    allowed = Allowed(space, ExpectedLatency(space, table).exact, budget)
    identity = study_identity(space, table, Strategy("evolution", 8, 3), budget, 4, {"score": "sum"})

    def made(storage: InMemoryStorage, worker: Worker = STRANGER, silence_s: float = 100.0) -> SharedStudy:
        def choose(before: object, slot: int) -> dict[str, int]:
            return allowed.draw(Random(f"4 {slot}"))

        return SharedStudy(storage, "toy", identity=identity, allowed=allowed, choose=choose, worker=worker, silence_s=silence_s)

    return made


def test_a_silent_worker_of_another_machine_is_given_up(work, shared) -> None:
    storage = InMemoryStorage()
    asked = shared(storage).ask(12)
    assert asked is not None
    found = work(storage)
    assert found.counts == {"complete": 12, "lost": 1}
    assert found.trials[0].state == "lost"
    stand_in = next(t for t in found.trials if t.stands_for == 0)
    assert (stand_in.genotype, stand_in.attempt, stand_in.state) == (asked[1], 2, "complete")


def test_who_comes_back_from_the_dead_does_not_count_twice(work, shared) -> None:
    storage = InMemoryStorage()
    stranger = shared(storage)
    trial, _ = stranger.ask(12)
    work(storage)
    assert not stranger.beat(trial, 1)
    stranger.tell(trial, 1e9, 1.0)
    stranger.fail(trial, "late", 1.0)
    assert stranger.trials()[0].state == "lost"
    assert stranger.trials()[0].score is None


def test_silence_is_counted_from_the_last_beat(shared, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, now = InMemoryStorage(), [1000.0]
    monkeypatch.setattr("segnas.search.study.time.monotonic", lambda: now[0])
    stranger, mine = shared(storage), shared(storage, this_worker(), silence_s=100.0)
    trial, _ = stranger.ask(12)
    for count in range(1, 6):
        mine.reclaim()
        now[0] += 90.0
        assert stranger.beat(trial, count)
    mine.reclaim()
    assert mine.trials()[0].state == "running"
    now[0] += 101.0
    mine.reclaim()
    assert [t.state for t in mine.trials()] == ["lost", "waiting"]
    mine.reclaim()
    assert [t.state for t in mine.trials()] == ["lost", "waiting"]


def test_what_kills_every_worker_is_a_failed_trial(shared) -> None:
    storage = InMemoryStorage()
    for attempt in range(1, ATTEMPTS + 1):
        trial, _ = shared(storage).ask(12)
        assert trial.number == attempt - 1
        mine = shared(storage, this_worker(), silence_s=-1.0)
        mine.reclaim()
    assert [t.state for t in mine.trials()] == [*["lost"] * (ATTEMPTS - 1), "failed"]
    assert mine.trials()[-1].reason == f"the worker died each of {ATTEMPTS} times"
    assert len({tuple(t.genotype.values()) for t in mine.trials()}) == 1


def test_a_worker_that_died_before_it_chose_leaves_its_slot(work, shared) -> None:
    storage = InMemoryStorage()
    shared(storage).study.ask()  # a number, and nothing else yet
    found = work(storage)
    assert found.trials[0].state == "lost"
    assert found.trials[0].genotype is None
    assert found.counts == {"complete": 12, "lost": 1}
    assert {tuple(t.genotype.values()) for t in found.trials if t.genotype} == {key for key, _ in scored(found)}


def test_two_that_queue_the_same_loss_have_it_done_once(work, shared) -> None:
    storage = InMemoryStorage()
    _, genotype = shared(storage).ask(12)
    lost = shared(storage)
    lost.study.enqueue_trial(genotype, user_attrs={"genotype": genotype, "stands_for": 0, "attempt": 2})  # by one that died before it marked the loss
    found = work(storage)
    assert found.counts == {"complete": 12, "lost": 1, "surplus": 1}
    assert [key for key, _ in scored(found)].count(tuple(genotype.values())) == 1


def test_the_last_trial_is_taken_once(shared) -> None:
    storage = InMemoryStorage()
    first, second = shared(storage), shared(storage)
    assert first.ask(1) is not None
    assert second.ask(1) is None
    assert [t.state for t in second.trials()] == ["running", "surplus"]


def test_who_finds_no_work_waits_for_the_others(work, shared, score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, waits = InMemoryStorage(), list[float]()
    stranger = shared(storage)
    trial, genotype = stranger.ask(12)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            stranger.tell(trial, score(genotype), 1.0)

    monkeypatch.setattr("segnas.search.sampled.time.sleep", sleep)
    found = work(storage, pace=Pace(1.0, 1e9, 0.25))
    assert waits == [0.25] * 3
    assert found.counts == {"complete": 12}


def test_a_genotype_that_was_queued_by_hand_is_priced_too(work, space: Space, budget: float, estimates) -> None:
    storage = InMemoryStorage()
    work(storage, trials=1)
    dear = next(g for g in space.genotypes() if estimates[tuple(g.values())] > budget)
    optuna.load_study(storage=storage, study_name="toy").enqueue_trial(dict(dear))
    found = work(storage, trials=3)
    assert found.counts == {"complete": 3, "surplus": 1}
    assert "over the budget" in next(t.reason for t in found.trials if t.state == "surplus")


def test_the_study_is_one_that_optuna_itself_can_read(work, space: Space, score: Score) -> None:
    storage = InMemoryStorage()
    found = work(storage)
    study = optuna.load_study(storage=storage, study_name="toy")
    assert study.best_value == found.score
    assert study.best_params == found.genotype
    assert set(study.user_attrs["identity"]) >= {"space", "table", "budget_ms", "seed", "schedule"}
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        assert list(trial.params) == list(space.decisions)
        assert trial.value == score({name: int(option) for name, option in trial.params.items()})


def test_who_loses_the_race_to_name_a_study_stops(work, score: Score) -> None:
    storage, calls = InMemoryStorage(), list[Genotype]()

    def renamed(genotype: Genotype) -> float:
        calls.append(genotype)
        study = optuna.load_study(storage=storage, study_name="toy")
        study.set_user_attr("identity", {**study.user_attrs["identity"], "seed": 99})
        return score(genotype)

    with pytest.raises(IncompatibleError, match="seed: it has 99, asked for is 4"):
        work(storage, renamed)
    assert len(calls) == 1

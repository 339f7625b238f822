"""The study that the workers of a sampling search share, on any storage of Optuna: who takes which trial, and what if a worker dies.

No step needs a lock. A trial's number is given by the storage; whether it is needed, and what it proposes, follows from the trials of smaller number,
so workers that ask at once agree. A step that is cut short at any point is taken up by the next worker that looks. SQLite may hand a queued trial to
two workers that look in the same moment: both evaluate it, and it still counts once.
"""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from segnas.errors import IncompatibleError, RequirementError, UsageError
from segnas.files import plain, require_writable
from segnas.search.proposals import Allowed
from segnas.search.trials import SampledTrial, is_stood_for, read_trial, slot_of
from segnas.search.workers import SILENCE_S, Worker

Choose = Callable[[Sequence[SampledTrial], int], dict[str, int]]
"""The genotype that a trial proposes, given the trials of smaller number and its slot."""

ATTEMPTS = 3
"""A genotype whose worker died so often is a failed trial (the system may kill whoever evaluates it); our choice."""
OPENINGS = 8
LOCK_S = 60.0
"""A database file that is locked is waited for so long."""


@contextmanager
def open_storage(url: str) -> Generator[BaseStorage]:
    """The storage behind `journal:FILE` (a file in a shared folder) or a database's address (`sqlite:///FILE`, `postgresql://...`).

    UsageError for any other text, RequirementError where a driver is missing or it cannot be opened, IncompatibleError for one of another Optuna.
    """
    if url.startswith("journal:"):
        path = Path(url.removeprefix("journal:"))
        require_writable(path)
        yield JournalStorage(JournalFileBackend(str(path)))
        return
    if "://" not in url:
        raise UsageError(f"storage {url!r} was given; write sqlite:///FILE, journal:FILE, or a database's address such as postgresql://HOST/NAME")
    storage = _database(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


class SharedStudy:
    """One study as one worker sees it; every question reads the storage. A process works on one study at a time."""

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        *,
        identity: Mapping[str, Any],
        allowed: Allowed,
        choose: Choose,
        worker: Worker,
        silence_s: float = SILENCE_S,
    ) -> None:
        self.storage, self.name, self.identity, self.allowed, self.worker, self.silence_s = storage, name, dict(identity), allowed, worker, silence_s
        self._options = {decision: tuple(range(size)) for decision, size in allowed.space.decisions.items()}
        self._heard: dict[int, tuple[int, float]] = {}
        sampler = _Sampler({decision: CategoricalDistribution(options) for decision, options in self._options.items()}, choose)
        pruner = optuna.pruners.NopPruner()
        self.study: Study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True, sampler=sampler, pruner=pruner
        )
        self._study_id = storage.get_study_id_from_name(name)
        if "identity" not in self.study.user_attrs and not self.trials():
            self.study.set_user_attr("identity", self.identity)
        self.require_same()

    def require_same(self) -> None:
        """Refuse a study of something else; IncompatibleError names each field that differs, with both values."""
        theirs = self.study.user_attrs.get("identity")
        if theirs is None:
            raise IncompatibleError(f"study {self.name!r} was not made by `segnas sample`; choose another --study")
        differing = [field for field in sorted({*theirs, *self.identity}) if theirs.get(field) != self.identity.get(field)]
        if differing:
            texts = "; ".join(f"{field}: it has {theirs.get(field)!r}, asked for is {self.identity.get(field)!r}" for field in differing)
            raise IncompatibleError(f"study {self.name!r} belongs to another search ({texts}); choose another --study, or ask for the same")

    def trials(self) -> tuple[SampledTrial, ...]:
        """All trials as they are now, by number."""
        return tuple(read_trial(trial, self._options) for trial in self.study.get_trials(deepcopy=False))

    def reclaim(self) -> None:
        """Mark the trials as lost whose worker died, and queue their genotypes again: first queued, then marked, so that none is ever missing."""
        for trial in self.trials():
            if trial.state != "running" or not self._is_dead(trial):
                continue
            if trial.genotype is None:
                self._end(trial.number, void="lost")
            elif trial.attempt < ATTEMPTS:
                self._queue(trial, trial.attempt + 1)
                self._end(trial.number, void="lost")
            else:
                self._end(trial.number, reason=f"the worker died each of {ATTEMPTS} times")

    def ask(self, total: int) -> tuple[Trial, dict[str, int]] | None:
        """The next trial and its genotype, as long as fewer than `total` count before it; None where it turns out not to be needed."""
        trial = self.study.ask()
        trial.set_user_attr("worker", plain(self.worker))
        trials = self.trials()
        mine = next(t for t in trials if t.number == trial.number)
        if slot_of(trials, trial.number) >= total or (mine.stands_for is not None and is_stood_for(trials, mine)):
            self._end(trial.number, void="surplus")
            return None
        genotype = {name: int(trial.suggest_categorical(name, options)) for name, options in self._options.items()}
        if not self.allowed.holds(genotype):  # queued by hand: nothing over the budget is ever evaluated
            self._end(trial.number, void="surplus", reason="over the budget, or no network of the space")
            return None
        trial.set_user_attr("price_ms", self.allowed.price(genotype))
        return trial, genotype

    def beat(self, trial: Trial, count: int) -> bool:
        """Say that the trial's worker is alive; False once the trial has ended."""
        try:
            trial.set_user_attr("beat", count)
        except UpdateFinishedTrialError:
            return False
        except (StorageInternalError, OSError):
            return True  # the storage was out of reach: the next one will do
        return True

    def tell(self, trial: Trial, score: float, seconds: float, notes: Mapping[str, float] | None = None) -> None:
        """Finish with a score and notes. One that others took for dead meanwhile keeps its end: the trial that stands for it counts."""
        self._end(trial.number, score=score, seconds=seconds, **({"notes": dict(notes)} if notes else {}))

    def fail(self, trial: Trial, reason: str, seconds: float) -> None:
        """Finish without a score: the evaluation failed, and would again."""
        self._end(trial.number, reason=reason, seconds=seconds)

    def give_back(self, trial: Trial) -> None:
        """Queue the genotype for others: this worker stops, and not because of the genotype."""
        mine = next(t for t in self.trials() if t.number == trial.number)
        if mine.genotype is not None:
            self._queue(mine, mine.attempt)
        self._end(trial.number, void="lost")

    def _queue(self, lost: SampledTrial, attempt: int) -> None:
        genotype = dict(lost.genotype or {})
        self.study.enqueue_trial(genotype, user_attrs={"genotype": genotype, "stands_for": lost.number, "attempt": attempt})

    def _end(self, number: int, *, score: float | None = None, **attributes: object) -> None:
        """Keep the attributes, then end the trial, complete where there is a score; nothing where another worker ended it before."""
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        try:
            for key, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, key, value)
            state = TrialState.FAIL if score is None else TrialState.COMPLETE
            self.study.tell(number, score, state=state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            return

    def _is_dead(self, trial: SampledTrial) -> bool:
        """Whether nobody evaluates it any more: its process has ended here, or it was silent for too long by this machine's clock."""
        if trial.worker is not None and (trial.worker == self.worker or trial.worker.has_ended(self.worker)):
            return True  # what this process itself left behind, or one that is gone
        now = time.monotonic()
        beat, since = self._heard.get(trial.number, (-1, now))
        self._heard[trial.number] = (trial.beat, since if beat == trial.beat else now)
        return now - self._heard[trial.number][1] > self.silence_s


class _Sampler(BaseSampler):
    """Optuna's side of a proposal: all decisions at once."""

    def __init__(self, distributions: dict[str, BaseDistribution], choose: Choose) -> None:
        self.distributions, self.choose = distributions, choose

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every decision."""
        return self.distributions

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """The genotype that the strategy proposes after the trials of smaller number."""
        trials = [read_trial(t, self.distributions) for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        return self.choose(trials, slot_of(trials, trial.number))

    def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Never asked: a trial has no parameters but the decisions."""
        raise AssertionError(f"{param_name} is no decision of the space")


def _database(url: str) -> RDBStorage:
    """The database at that address, its tables made where it has none."""
    kwargs = {"connect_args": {"timeout": LOCK_S}} if url.startswith("sqlite") else {}
    for left in reversed(range(OPENINGS)):
        try:
            return RDBStorage(url, engine_kwargs=kwargs)
        except ArgumentError as error:
            raise UsageError(f"storage {_shown(url)!r} was given, which names no known kind of database: {error}") from None
        except ImportError as error:
            raise RequirementError(f"storage {_shown(url)!r} needs a database driver that is not installed: {error}") from None
        except RuntimeError as error:
            raise IncompatibleError(f"storage {_shown(url)!r} was written by another version of Optuna: {error}") from None
        except (SQLAlchemyError, StorageInternalError) as error:
            if not left:
                raise RequirementError(f"storage {_shown(url)!r} cannot be opened: {str(error).splitlines()[0]}") from None
            time.sleep(0.25)  # two workers that make the tables of a new database at once
    raise AssertionError("not reached")


def _shown(url: str) -> str:
    """The address without user and password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"

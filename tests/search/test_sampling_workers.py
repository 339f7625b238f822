"""Workers in processes of their own: two that share a study, one that is killed in the middle of a trial."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from segnas.search.sampled import Sampled
from segnas.search.study import open_storage

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
    import sys, time
    from pathlib import Path
    from random import Random
    from segnas.kinds import kind
    from segnas.latency import Entry, LatencyTable
    from segnas.search.draft import Draft
    from segnas.search.proposals import Strategy
    from segnas.search.sampled import Pace, Scoring, sample
    from segnas.search.spaces.cells import cell
    from segnas.search.study import open_storage
    from segnas.target import Target

    TARGET = Target("made-up", "onnxruntime", "1.0", "fp32", 96, 128)

    def space():
        draft = Draft("toy")
        features = [draft.node(kind("stem", width=8), 0, channels=8, stride=2)] * 2
        for index in range(2):
            candidates = (kind("none"), kind("skip"), kind("conv"))
            features.append(cell(draft, f"cell{index}", *features[-2:], width=8, candidates=candidates, keep=(2, 2), label=f"cell{index}"))
        draft.resize(draft.node(kind("classifier"), features[-1], channels=5), 0)
        return draft.space()

    def table(space):
        prices = [(o, 0.05 + 2 * int(o.digest, 16) / 16**12) for o in space.all_operations(TARGET)]
        return LatencyTable(space.name, TARGET, tuple(Entry(o, "block", ms, 0.0, 1, "made up", "") for o, ms in prices))

    def score(genotype):
        return float(sum(place * option for place, option in enumerate(genotype.values())))

    def searched(storage, scoring, trials):
        given = dict(budget_ms=14.0, trials=trials, name="toy", seed=3, pace=Pace(0.2, 30.0, 0.1))
        return sample(space(), table(space()), Strategy("evolution", 6, 3), Scoring(scoring, {"score": "toy"}), storage=storage, **given)

    if __name__ == "__main__":
        storage, log, trials, stick = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
        calls = [0]

        def logged(genotype):
            calls[0] += 1
            with log.open("a") as stream:
                stream.write(" ".join(map(str, genotype.values())) + "\\n")
            if calls[0] == stick:
                time.sleep(60)  # killed here
            time.sleep(0.03)
            return score(genotype)

        with open_storage(storage) as kept:
            searched(kept, logged, trials)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "toy_worker.py"
    path.write_text(textwrap.dedent(WORKER))
    return path


def started(script: Path, storage: str, log: Path, trials: int, stick: int = 0) -> subprocess.Popen[str]:
    words = [sys.executable, "-W", "error", str(script), storage, str(log), str(trials), str(stick)]
    return subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def finished(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        message = process.communicate(timeout=120)[1]
        assert process.returncode == 0, message


def found(script: Path, storage: object, trials: int) -> Sampled:
    """The study as this process sees it, with nothing left to do; or the whole search, in memory."""
    toy: dict[str, object] = {"__name__": "toy"}
    exec(script.read_text(), toy)
    return toy["searched"](storage, toy["score"], trials)  # type: ignore[operator]


def genotypes(of: Sampled) -> list[tuple[int, ...]]:
    return [tuple(t.genotype.values()) for t in of.trials if t.state == "complete" and t.genotype]


def lines(log: Path) -> list[tuple[int, ...]]:
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()]


@pytest.mark.parametrize("kind", ["sqlite:///", "journal:"])
def test_two_workers_complete_exactly_what_was_asked(script: Path, tmp_path: Path, kind: str) -> None:
    storage, logs = f"{kind}{tmp_path / 'study'}", [tmp_path / "first.log", tmp_path / "second.log"]
    finished(*[started(script, storage, log, 24) for log in logs])
    with open_storage(storage) as kept:
        result = found(script, kept, 24)
    assert result.counts["complete"] == 24
    assert set(result.counts) <= {"complete", "surplus"}
    assert [t.number for t in result.trials] == list(range(len(result.trials)))
    done = [lines(log) for log in logs]
    assert min(map(len, done)) >= 3  # both worked
    assert sorted(done[0] + done[1]) == sorted(genotypes(result))
    assert len({t.worker for t in result.trials if t.state == "complete"}) == 2


@pytest.mark.parametrize(("kind", "sticks"), [("sqlite:///", (3, 5)), ("journal:", (4,))])
def test_a_worker_killed_in_the_middle_of_a_trial_loses_nothing(script: Path, tmp_path: Path, kind: str, sticks: tuple[int, ...]) -> None:
    storage, log = f"{kind}{tmp_path / 'study'}", tmp_path / "worker.log"
    undisturbed = found(script, InMemoryStorage(), 12)
    for stick in sticks:
        before = len(lines(log)) if log.is_file() else 0
        process = started(script, storage, log, 12, stick)
        while not log.is_file() or len(lines(log)) < before + stick:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    finished(started(script, storage, log, 12))
    with open_storage(storage) as kept:
        result = found(script, kept, 12)
    assert genotypes(result) == genotypes(undisturbed)
    assert [t.score for t in result.trials if t.state == "complete"] == [t.score for t in undisturbed.trials]
    assert result.score == undisturbed.score
    assert result.counts == {"complete": 12, "lost": len(sticks)}
    assert len(lines(log)) == 12 + len(sticks)  # each that was killed was evaluated again, and nothing else
    assert [t.attempt for t in result.trials if t.state == "complete"].count(2) == len(sticks)

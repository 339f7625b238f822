"""Whether a process is known to have ended, on processes that are started and killed here."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import replace

import pytest

from segnas.search.workers import Worker, beating, this_worker

SAY_WHO = """
import sys
from segnas.search.workers import this_worker
me = this_worker()
print(me.machine, me.process, me.started, sep="|", flush=True)
sys.stdin.read()
"""
linux = pytest.mark.skipif(not this_worker().machine, reason="this system does not tell one start of a machine from another")


@pytest.fixture
def other() -> Generator[tuple[subprocess.Popen[str], Worker]]:
    """Another process, which waits, and what it says it is."""
    with subprocess.Popen([sys.executable, "-c", SAY_WHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        machine, number, started = process.stdout.readline().strip().split("|")
        yield process, Worker(machine, int(number), started)
        process.kill()


@linux
def test_a_process_has_ended_once_it_was_killed(other: tuple[subprocess.Popen[str], Worker]) -> None:
    process, worker = other
    here = this_worker()
    assert worker == Worker(here.machine, process.pid, worker.started)
    assert not worker.has_ended(here)
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not worker.has_ended(here) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.has_ended(here)  # before its parent has collected it
    assert process.wait() == -signal.SIGKILL
    assert worker.has_ended(here)


@linux
def test_a_later_process_of_the_same_number_is_another(other: tuple[subprocess.Popen[str], Worker]) -> None:
    _, worker = other
    assert replace(worker, started=str(int(worker.started) - 1)).has_ended(this_worker())


def test_processes_of_other_machines_are_not_judged() -> None:
    here = this_worker()
    assert not here.has_ended(here)
    gone = Worker("elsewhere", 2**22 + 1, "1")
    assert not gone.has_ended(here)
    assert not replace(gone, machine="").has_ended(replace(here, machine=""))


def test_beats_count_up_until_the_block_ends_or_one_is_refused() -> None:
    counts = list[int]()
    with beating(lambda count: counts.append(count) is None, 0.001):
        while len(counts) < 3:
            time.sleep(0.001)
    after = len(counts)
    time.sleep(0.01)
    assert counts == list(range(1, after + 1))
    assert "segnas-beat" not in {thread.name for thread in threading.enumerate()}
    refused = list[int]()
    with beating(lambda count: bool(refused.append(count)), 0.001):
        time.sleep(0.02)
    assert refused == [1]

"""Workers: which process evaluates a trial, and whether it still does.

Optuna's own heartbeat serves `Study.optimize` on databases only and is experimental; this one serves every storage and compares no clocks.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BEAT_S = 20.0
"""A worker says so often that it is alive; our choice."""
SILENCE_S = 180.0
"""A worker of another machine that says nothing for so long has died; our choice."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A process: `machine` is a digest of this start of the machine and of its processes' namespace; `started` tells equal numbers apart.

    `machine` is empty where the system does not tell (not Linux): then only silence says that a worker has died.
    """

    machine: str
    process: int
    started: str

    def has_ended(self, here: "Worker") -> bool:
        """Whether it is a process of this machine that is there no more; False of other machines, which cannot be looked at."""
        return bool(self.machine) and self.machine == here.machine and _started(self.process) != self.started


def this_worker() -> Worker:
    """The process that asks."""
    process = os.getpid()
    return Worker(_machine(), process, _started(process))


@contextmanager
def beating(beat: Callable[[int], bool], every_s: float) -> Generator[None]:
    """While the block runs, a thread calls `beat` with 1, 2, ... every so many seconds, until it answers False."""
    over = threading.Event()

    def repeat() -> None:
        count = 1
        while not over.wait(every_s) and beat(count):
            count += 1

    thread = threading.Thread(target=repeat, name="segnas-beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a living process started, in the kernel's ticks; empty where there is none, or only what its parent has not yet collected."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return "" if fields[0] in "ZX" else fields[19]

"""The progress of a build as TensorRT tells it, and Ctrl-C while TensorRT works."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from segnas.tensorrt_api import Api

Progress = Callable[[int, int, str], None]
"""Takes how many of how many hundredths are done, and what is being done."""


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Interruption:
    """Whether the user wants the build to end: by Ctrl-C, which the operating system tells at once (whatever thread TensorRT runs in), or because
    the progress callback raised; what it raised is kept.
    """

    def __init__(self) -> None:
        self.raised: BaseException | None = None
        self.signals: int | None = None
        """A pipe into which the operating system writes the number of each signal, before Python sees it."""

    def interrupt(self) -> None:
        """Ctrl-C came."""
        self.raised = self.raised or KeyboardInterrupt()

    def wanted(self) -> bool:
        """Whether to stop."""
        if self.raised is None and self.signals is not None:
            try:
                told = os.read(self.signals, 64)
            except BlockingIOError:
                told = b""
            if signal.SIGINT in told:
                self.interrupt()
        return self.raised is not None


@contextmanager
def interruptible() -> Generator[Interruption]:
    """Let TensorRT's callbacks see a Ctrl-C, and raise it when they have returned: raised inside one, it would end the process from within C++.

    Signals reach the main thread of Python alone; a build in another thread cannot be interrupted.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = signal.signal(signal.SIGINT, lambda _signal, _frame: interruption.interrupt())
    try:
        with _told_at_once(interruption):
            yield interruption
    finally:
        signal.signal(signal.SIGINT, before)
    if interruption.raised is not None:
        raise interruption.raised


@contextmanager
def _told_at_once(interruption: Interruption) -> Generator[None]:
    """Signals also by way of a pipe: while the main thread is within C++ Python runs no handler, and TensorRT may call back from another thread."""
    if sys.platform == "win32":  # where that takes a socket; a handler has to do
        yield
        return
    reads, writes = os.pipe()
    for end in (reads, writes):
        os.set_blocking(end, False)
    waked = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
    interruption.signals = reads
    try:
        yield
        interruption.wanted()
    finally:
        signal.set_wakeup_fd(waked)
        interruption.signals = None
        os.close(reads)
        os.close(writes)


def progress_monitor(api: Api, progress: Progress | None, interruption: Interruption) -> Any:
    """TensorRT's monitor of a build; it must live as long as the configuration that it is given to."""

    class Monitor(api.module.IProgressMonitor):
        def __init__(self) -> None:
            api.module.IProgressMonitor.__init__(self)
            self.phases: dict[str, _Phase] = {}
            self.share = 0.0
            self.lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase of that many steps begins within its parent."""
            with self.lock:
                self.phases[phase_name] = _Phase(parent_phase, max(1, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step is done; False asks TensorRT to stop."""
            with self.lock:
                if phase_name in self.phases:
                    self.phases[phase_name].done = step + 1
                done = (_share(self.phases, name) for name, phase in self.phases.items() if phase.parent is None)
                self.share = max(self.share, *done)  # a phase may end before all of its steps; progress never falls back
            if progress is not None and interruption.raised is None:
                try:
                    progress(min(99, int(100 * self.share)), 100, phase_name.lower())
                except BaseException as error:  # of the caller's own; raised again when TensorRT has returned
                    interruption.raised = error
            return not interruption.wanted()

        def phase_finish(self, phase_name: str) -> None:
            """A phase ends, all of its steps done or not."""
            with self.lock:
                self.phases.pop(phase_name, None)

    return Monitor()


def _share(phases: dict[str, _Phase], name: str) -> float:
    """How much of a phase is done, 0 to 1, with what of its current step its own phases have done."""
    phase = phases[name]
    inner = max((_share(phases, child) for child, other in phases.items() if other.parent == name and child != name), default=0.0)
    return min(1.0, (phase.done + inner) / phase.steps)

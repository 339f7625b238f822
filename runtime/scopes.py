"""Scopes: what of the way from a picture to its labels is timed, and the longest of them, from the picture's file.

| scope | from | to |
|---|---|---|
| `gpu` | the input on the device | the answer there: device compute alone |
| `end_to_end` | the input in the host's memory | the answer there: copy in, compute, copy out, one query in flight |
| `pipeline` | the encoded picture | labels: decode, resize, normalise, end to end, argmax where the engine has none |
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnas.data import engine_input
from segnas.errors import InputError
from segnas.runtime.session import Session
from segnas.target import CPU_BACKENDS, Target
from segnas.timing import percentile

Bytes = NDArray[np.uint8]
Decode = Callable[[], Bytes]
"""Reads and decodes one picture: (H, W, 3) RGB."""

STEPS = ("decode", "prepare", "infer", "argmax")
_REMEMBERED = 4096


def scopes_of(target: Target) -> tuple[str, ...]:
    """The scopes that can be timed on that target: without a device of its own there is no `gpu`."""
    return ("end_to_end", "pipeline") if target.backend in CPU_BACKENDS else ("gpu", "end_to_end", "pipeline")


def require_scope(scope: str, target: Target) -> None:
    """InputError, with those that there are, for a scope that the target does not have."""
    if scope not in scopes_of(target):
        raise InputError(f"scope {scope!r} was asked for; {target.backend!r} is timed {', '.join(scopes_of(target))}")


class PipelineSession:
    """An open engine behind the decoder: a `Session` of scope `pipeline`, whose samples take the pictures in turn.

    `session` is of scope `end_to_end` and batch 1, and is closed with it; `source` says what the pictures are. The conditions tell the median of
    each step.
    """

    def __init__(self, session: Session, pictures: Sequence[Decode], source: str) -> None:
        if not pictures:
            raise InputError("no picture was given for scope 'pipeline'; at least 1 is needed")
        if session.target.batch != 1:
            raise InputError(f"scope 'pipeline' was asked for with batch {session.target.batch}; it takes one picture at a time: export with batch 1")
        self._session = session
        self._pictures = itertools.cycle(pictures)
        self._told = {"pictures": f"{len(pictures)}: {source}"}
        self._steps: dict[str, deque[float]] = {step: deque(maxlen=_REMEMBERED) for step in STEPS}
        self.target = replace(session.target, scope="pipeline")
        self.specification = session.specification

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """As the engine's own session."""
        return self._session.run(image)

    def sample(self, runs: int) -> tuple[float, ...]:
        """Time in ms from the next picture's file to its labels, `runs` times."""
        return tuple(self._timed(next(self._pictures)) for _ in range(runs))

    def close(self) -> None:
        """Close the engine's session."""
        self._session.close()

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """What the pictures were, the median of each step in ms, and what the engine's session tells."""
        steps = {f"{step}_ms": f"{percentile(times, 50):.4f}" for step, times in self._steps.items() if times}
        return tuple(sorted((dict(getattr(self._session, "conditions", ())) | self._told | steps).items()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the engine's session."""
        return tuple(getattr(self._session, "warnings", ()))

    def _timed(self, decode: Decode) -> float:
        clock, target = time.perf_counter_ns, self.target
        stamps = [clock()]
        picture = decode()
        stamps.append(clock())
        image = engine_input(picture, target.input_contract, target.height, target.width)
        stamps.append(clock())
        answer = self._session.run(image)
        stamps.append(clock())
        if target.output_contract == "logits":
            answer = answer.argmax(axis=1).astype(np.uint8)
        stamps.append(clock())
        for step, before, after in zip(STEPS, stamps, stamps[1:], strict=False):
            self._steps[step].append((after - before) / 1e6)
        return (stamps[-1] - stamps[0]) / 1e6

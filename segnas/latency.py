"""LatencyTable: what each operation costs on one target, where each figure came from, and what they add up to.

A lookup never measures, interpolates or guesses: a missing entry is an error that names the command that measures it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from segnas.arch import Architecture, Operation, argmax_operation
from segnas.errors import IncompatibleError
from segnas.target import Target

ENTRY_KINDS = ("block", "junction", "fixed")
NORMAL_90 = 1.6448536269514722  # two-sided 90 % quantile of the standard normal distribution


class Timed(Protocol):
    """A network that stands ready to be timed on its target; several are open at once, so that they can be interleaved."""

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` calls in a row, one query in flight."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


Prepare = Callable[[Architecture, Target], Timed]
"""Exports an architecture with random weights for a target and opens it; what the four parts are given, so that none imports another."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The price of one operation.

    `kind` is block (a search choice), junction (what lies between choices) or fixed (stem, head, resize to the output, argmax); `spread` is the
    interquartile range over the median of its samples; `method` how it was measured; `source` measured, interpolated or transferred.
    """

    operation: Operation
    kind: str
    median_ms: float
    spread: float
    samples: int
    method: str
    graph_sha256: str
    source: str = "measured"


@dataclass(frozen=True, slots=True)
class Probe:
    """A whole network that was measured: its sum over the entries beside the clock, both in ms."""

    digest: str
    sum_ms: float
    measured_ms: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """One factor from the sum of entries to whole networks, fitted on `probes`; `relative_sd` is the standard deviation of what is left."""

    scale: float = 1.0
    relative_sd: float = 0.10
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted latency in ms, its two-sided 90 % interval, and what each operation adds (calibrated, so that the parts sum to the whole)."""

    total_ms: float
    low_ms: float
    high_ms: float
    per_operation: tuple[tuple[Operation, float], ...]


@dataclass(frozen=True)
class LatencyTable:
    """Entries of one space on one target. `overhead_ms` is what a call costs with nothing in it; `provenance` is sorted pairs of text."""

    space: str
    target: Target
    entries: tuple[Entry, ...]
    overhead_ms: float = 0.0
    calibration: Calibration = Calibration()
    provenance: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _by_operation(self) -> dict[Operation, Entry]:
        return {entry.operation: entry for entry in self.entries}

    def entry(self, operation: Operation) -> Entry:
        """The entry of that operation; IncompatibleError, with the command that measures it, where there is none."""
        entry = self._by_operation.get(operation)
        if entry is None:
            raise IncompatibleError(
                f"the latency table of {self.space!r} ({self.target}) has no entry for {operation}; "
                f"measure it with `segnas profile {self.space} --size {self.target.height}x{self.target.width} --threads {self.target.threads}`"
            )
        return entry

    def price_ms(self, operation: Operation) -> float:
        """Calibrated milliseconds of one operation; 0 for what is nothing at run time."""
        return 0.0 if operation.is_free else self.calibration.scale * self.entry(operation).median_ms

    @property
    def constant_ms(self) -> float:
        """Calibrated milliseconds of a call with no operation in it."""
        return self.calibration.scale * self.overhead_ms

    def missing(self, operations: Iterable[Operation]) -> tuple[Operation, ...]:
        """The operations that have no entry, each once, in order."""
        wanted = dict.fromkeys(o for o in operations if not o.is_free)
        return tuple(o for o in wanted if o not in self._by_operation)

    def estimate(self, architecture: Architecture) -> Estimate:
        """What that network takes on this target, argmax included where the target's output is labels."""
        parts = tuple((o, self.price_ms(o)) for o in priced_operations(architecture, self.target))
        total = self.constant_ms + math.fsum(ms for _, ms in parts)
        margin = NORMAL_90 * self.calibration.relative_sd
        return Estimate(total, total / (1 + margin), total * (1 + margin), parts)

    def require(self, target: Target, allow: Iterable[str] = ()) -> None:
        """Refuse a table of another target: IncompatibleError names each field that differs and is not in `allow`."""
        allowed = set(allow)
        differing = [d for d in self.target.differences(target) if d[0] not in allowed]
        if differing:
            lines = "; ".join(f"{name}: the table has {here!r}, asked for is {there!r}" for name, here, there in differing)
            raise IncompatibleError(f"this latency table belongs to another target ({lines}); run `segnas profile {self.space}` on this one")

    def calibrated(self, probes: Iterable[Probe]) -> "LatencyTable":
        """The same table with one scale fitted on these whole networks: the median ratio of measured to summed."""
        kept = tuple({probe.digest: probe for probe in probes}.values())
        if not kept:
            return self
        ratios = sorted(probe.measured_ms / probe.sum_ms for probe in kept)
        middle = len(ratios) // 2
        scale = ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2
        residual = math.sqrt(math.fsum((r / scale - 1) ** 2 for r in ratios) / max(1, len(ratios) - 1)) if len(ratios) > 2 else 0.05
        return replace(self, calibration=Calibration(scale, max(residual, 0.005), kept))

    def raw_sum_ms(self, architecture: Architecture) -> float:
        """Sum of the entries and the overhead, before any calibration."""
        operations = priced_operations(architecture, self.target)
        return self.overhead_ms + math.fsum(self.entry(o).median_ms for o in operations if not o.is_free)


def priced_operations(architecture: Architecture, target: Target) -> tuple[Operation, ...]:
    """Every operation that the deployed engine runs at the target's size: the walk, and the argmax of a `labels` engine."""
    operations = architecture.operations(target.height, target.width)
    if target.output_contract == "labels":
        return (*operations, argmax_operation(operations[-1].output))
    return operations

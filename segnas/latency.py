"""LatencyTable: what each operation costs on one target, where each figure came from, and what they add up to.

A lookup never measures, interpolates or guesses: a missing entry is an error that names the command that measures it.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from segnas.arch import Architecture, Operation, argmax_operation, canonical_json
from segnas.calibration import NORMAL_95, Floats, Integers, Posterior, fitted, quantile_95
from segnas.cost import parameters
from segnas.errors import IncompatibleError, InputError
from segnas.target import Target
from segnas.timing import percentile

ENTRY_KINDS = ("block", "junction", "fixed")
SOURCES = ("measured", "interpolated", "transferred")
LEVELS = ("sum", "scale", "kinds", "entries")
"""From the sum of entries to whole networks: nothing (level 0), one factor, a correction for each kind of entry as well (level 1), one for each
entry (level 2)."""
MISMATCH_KEY = "allowed_mismatch"
"""Of the provenance: what differs where a table is used on another target than its own."""

MERGING = ("onnxruntime", "onnxruntime-cuda")
"""Backends that compute equal operations without weights once: ONNX Runtime eliminates common subexpressions, whatever its provider (seen on the
CPU)."""

ENTRIES_FROM = 40  # probes from which a correction for each entry is worth while (our study, section 3.2)


class Timed(Protocol):
    """A network that stands ready to be timed on its target; several are open at once, so that they can be interleaved.

    One whose sample is the mean of several runs, as on a GPU, says how many in an attribute `runs_per_sample`; see `sample_runs`.
    """

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` calls in a row, one query in flight."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def sample_runs(network: Timed) -> int:
    """How many runs a sample of this network is the mean of: 1 where it does not say. A sample of 0.1 ms over 20 runs took 2 ms."""
    return int(getattr(network, "runs_per_sample", 1))


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
    """A whole network that was measured: its sum over the entries beside the clock, both in ms, and how often it runs each operation (by digest)."""

    digest: str
    sum_ms: float
    measured_ms: float
    counts: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Calibration:
    """From the sum of entries to whole networks, fitted on `probes`.

    A price is `scale` times the entry's, times 1 plus the `corrections` of its kind and of its operation's digest. `relative_sd` is the standard
    deviation of what is left, `prior_sd` that of the corrections before anything was measured. `process_sd` is that of the factor by which all
    networks that were fitted on lie together beside what another process would say.
    """

    scale: float = 1.0
    relative_sd: float = 0.10
    probes: tuple[Probe, ...] = ()
    level: str = "sum"
    corrections: tuple[tuple[str, float], ...] = ()
    prior_sd: float = 0.0
    process_sd: float = 0.0


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
                f"measure it with `{profile_command(self.space, self.target)}`"
            )
        return entry

    def price_ms(self, operation: Operation) -> float:
        """Calibrated milliseconds of one operation; 0 for what is nothing at run time."""
        if operation.is_free:
            return 0.0
        entry, corrections = self.entry(operation), self._corrections
        factor = 1 + corrections.get(entry.kind, 0.0) + corrections.get(operation.digest, 0.0)
        return self.calibration.scale * factor * entry.median_ms

    @cached_property
    def _corrections(self) -> dict[str, float]:
        return dict(self.calibration.corrections)

    @property
    def prices_digest(self) -> str:
        """12 hexadecimal digits that change with the target, any entry's price, or the speed that the prices refer to."""
        prices = sorted([entry.operation.digest, entry.median_ms] for entry in self.entries)
        content = [astuple(self.target), prices, self.overhead_ms, self.provenance_of("sentinel_ms")]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]

    def provenance_of(self, name: str) -> str | None:
        """One line of the provenance; None where there is none of that name."""
        return dict(self.provenance).get(name)

    @property
    def constant_ms(self) -> float:
        """Calibrated milliseconds of a call with no operation in it."""
        return self.calibration.scale * self.overhead_ms

    def missing(self, operations: Iterable[Operation]) -> tuple[Operation, ...]:
        """The operations that have no entry, each once, in order."""
        wanted = dict.fromkeys(o for o in operations if not o.is_free)
        return tuple(o for o in wanted if o not in self._by_operation)

    def estimate(self, architecture: Architecture) -> Estimate:
        """What that network takes on this target, argmax included where the target's output is labels; what the runtime computes once counts once."""
        operations = executed_operations(architecture, self.target)
        parts = tuple((o, self.price_ms(o)) for o in operations)
        total = self.constant_ms + math.fsum(ms for _, ms in parts)
        quantile = quantile_95(len(self.calibration.probes) - 1) if self.calibration.probes else NORMAL_95
        margin = quantile * math.hypot(self.calibration.relative_sd, self._model_sd(operations), self.calibration.process_sd)
        return Estimate(total, total / (1 + margin), total * (1 + margin), parts)

    def prediction_sd(self, architecture: Architecture) -> float:
        """Relative standard deviation of that network's estimate: what is left after the fit, what the fit does not know, and where it was made."""
        return math.hypot(self.calibration.relative_sd, self.model_sd(architecture), self.calibration.process_sd)

    def model_sd(self, architecture: Architecture) -> float:
        """Relative standard deviation of the estimate by what measuring more networks would tell; 0 for a table that no network has calibrated."""
        self.raw_sum_ms(architecture)  # a missing entry is an error here too
        return self._model_sd(executed_operations(architecture, self.target))

    def _model_sd(self, operations: Iterable[Operation]) -> float:
        if self._posterior is None:
            return self.calibration.relative_sd / math.sqrt(len(self.calibration.probes)) if self.calibration.probes else 0.0
        return self._posterior.model_sd(self._shares([_counts(operations)])[0])

    def for_target(self, target: Target, allow: Iterable[str] = ()) -> "LatencyTable":
        """This table, to be used on that target; where they differ in fields of `allow` alone, one of that target whose provenance says so.

        IncompatibleError names each other field that differs.
        """
        differing = self.differing(target, allow)
        if differing:
            raise IncompatibleError(
                f"this latency table belongs to another target ({differing}); run `segnas profile {self.space}` on this one, or let the fields pass "
                "with --allow-mismatch"
            )
        allowed = self.differing(target)
        if not allowed:
            return self
        return replace(self, target=target, provenance=tuple(sorted({**dict(self.provenance), MISMATCH_KEY: allowed}.items())))

    @property
    def allowed_mismatch(self) -> str:
        """In what the target that the table was measured on differs from this one, where it is used all the same; empty where nothing does."""
        return self.provenance_of(MISMATCH_KEY) or ""

    @property
    def mismatch(self) -> tuple[tuple[str, str], ...]:
        """The same as one of a result's conditions: none, or the pair of `MISMATCH_KEY` and the text."""
        return ((MISMATCH_KEY, self.allowed_mismatch),) if self.allowed_mismatch else ()

    def differing(self, target: Target, allow: Iterable[str] = ()) -> str:
        """Each field in which the table's target differs from that one and that is not in `allow`, with both values; empty where none does."""
        allowed = set(allow)
        fields = [d for d in self.target.differences(target) if d[0] not in allowed]
        return "; ".join(f"{name}: the table has {here!r}, asked for is {there!r}" for name, here, there in fields)

    def probe(self, architecture: Architecture, measured_ms: float) -> Probe:
        """That network as something to calibrate with."""
        counts = _counts(executed_operations(architecture, self.target))
        return Probe(architecture.digest, self.raw_sum_ms(architecture), measured_ms, tuple(sorted(counts.items())))

    def calibrated(self, probes: Iterable[Probe], level: str = "scale", *, process_sd: float | None = None) -> "LatencyTable":
        """The same table fitted on these whole networks, at one of `LEVELS`; a network that comes twice counts with its last measurement.

        The scale is the median ratio of measured to summed. InputError for another level, or for probes without counts where the level needs them.
        """
        if level not in LEVELS:
            raise InputError(f"calibration level {level!r} was given; allowed: {', '.join(LEVELS)}")
        process_sd = self.calibration.process_sd if process_sd is None else process_sd
        kept = tuple({probe.digest: probe for probe in probes}.values())
        if not kept:
            return self
        ratios = [probe.measured_ms / probe.sum_ms for probe in kept]
        scale = 1.0 if level == "sum" else percentile(ratios, 50)
        if level in ("sum", "scale") or len(kept) < 3:
            residual = math.sqrt(math.fsum((r / scale - 1) ** 2 for r in ratios) / max(1, len(ratios) - 1)) if len(ratios) > 2 else 0.05
            made = Calibration(scale, max(residual, 0.005), kept, "sum" if level == "sum" else "scale", process_sd=process_sd)
            return replace(self, calibration=made)
        bare = replace(self, calibration=Calibration(scale, probes=kept, level=level))
        found = fitted(bare._shares([dict(probe.counts) for probe in kept]), np.array(ratios) / scale - 1, bare._groups)
        corrections = tuple(zip(bare._coefficients, map(float, found.mean), strict=True))
        return replace(self, calibration=Calibration(scale, found.noise_sd, kept, level, corrections, found.prior_sd, process_sd))

    @cached_property
    def _coefficients(self) -> tuple[str, ...]:
        """What has a correction of its own at the calibration's level: kinds of entries, or operations by digest."""
        if self.calibration.level == "kinds":
            return tuple(sorted({entry.kind for entry in self.entries}))
        return tuple(sorted(entry.operation.digest for entry in self.entries)) if self.calibration.level == "entries" else ()

    @cached_property
    def _groups(self) -> Integers:
        """Coefficients of one group err alike: the same operation with the same attributes and stride, whatever its shapes."""
        by_digest = {e.operation.digest: f"{e.operation.kind}/{e.operation.stride}" for e in self.entries}
        names = [by_digest.get(name, name) for name in self._coefficients]
        return np.array([names.index(name) for name in names])

    @cached_property
    def _posterior(self) -> Posterior | None:
        """The fit again, with its covariance; None at the levels that have none."""
        if not self._coefficients:
            return None
        made = self.calibration
        ratios = np.array([probe.measured_ms / probe.sum_ms for probe in made.probes])
        shares = self._shares([dict(probe.counts) for probe in made.probes])
        return Posterior(shares, ratios / made.scale - 1, self._groups, made.prior_sd, made.relative_sd)

    def _shares(self, networks: Sequence[dict[str, int]]) -> Floats:
        """The share that each coefficient has in each network's sum: (networks, coefficients). What a call costs by itself has none."""
        kinds = self.calibration.level == "kinds"
        place = {name: index for index, name in enumerate(self._coefficients)}
        prices = {e.operation.digest: (place[e.kind if kinds else e.operation.digest], e.median_ms) for e in self.entries}
        shares = np.zeros((len(networks), len(place)))
        for row, counts in zip(shares, networks, strict=True):
            unknown = [digest for digest in counts if digest not in prices]
            if unknown or not counts:
                raise InputError(f"a calibration network runs operation {unknown[0] if unknown else '(none stated)'}, which the table does not price")
            for digest, times in counts.items():
                index, ms = prices[digest]
                row[index] += times * ms
            row /= self.overhead_ms + row.sum()
        return shares

    def raw_sum_ms(self, architecture: Architecture) -> float:
        """Sum of the entries and the overhead, before any calibration; what the runtime computes once counts once."""
        operations = executed_operations(architecture, self.target)
        return self.overhead_ms + math.fsum(self.entry(o).median_ms for o in operations if not o.is_free)

    def additive_ms(self, architecture: Architecture) -> float:
        """The calibrated prices of all its operations added up, each as often as it comes, and the constant: what a search adds up, decision by
        decision. At least the estimate; above it where the runtime merges some.
        """
        return self.constant_ms + math.fsum(self.price_ms(o) for o in priced_operations(architecture, self.target))


def _counts(operations: Iterable[Operation]) -> Counter[str]:
    """How often each operation that is not free comes, by digest."""
    return Counter(o.digest for o in operations if not o.is_free)


def profile_command(space: str, target: Target) -> str:
    """The command that measures a table of that space on that target."""
    runtime = "" if target.backend == "onnxruntime" else f" --runtime {target.backend}"
    kind = f"--threads {target.threads}" if target.backend in ("onnxruntime", "aotinductor") else f"--precision {target.precision}"
    return f"segnas profile {space} --size {target.height}x{target.width}{runtime} {kind}"


def priced_operations(architecture: Architecture, target: Target) -> tuple[Operation, ...]:
    """Every operation of the deployed network at the target's size: the walk, and the argmax of a `labels` engine."""
    operations = architecture.operations(target.height, target.width)
    if target.output_contract == "labels":
        return (*operations, argmax_operation(operations[-1].output))
    return operations


def executed_operations(architecture: Architecture, target: Target) -> tuple[Operation, ...]:
    """`priced_operations` less those whose result the runtime has already, where it is known to look for them (`MERGING`).

    Two poolings of one feature are computed once, and so are two sums of these: all operations without weights whose inputs are the same.
    """
    operations = priced_operations(architecture, target)
    if target.backend not in MERGING or dict(target.options).get("optimisation") == "none":
        return operations
    first: dict[tuple[Operation, tuple[int, ...]], int] = {}
    same: list[int] = []
    executed: list[Operation] = []
    for index, (node, operation) in enumerate(zip(architecture.nodes, operations, strict=False)):
        inputs = tuple(same[i] for i in node.inputs)
        if operation.is_free and inputs:
            same.append(inputs[0])
        else:
            same.append(index if parameters(operation) else first.setdefault((operation, inputs), index))
        if same[-1] == index or operation.is_free:
            executed.append(operation)
    return (*executed, *operations[len(architecture.nodes) :])

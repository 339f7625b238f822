"""Attribution: where an engine's milliseconds go, by the node profile that ONNX Runtime makes of the very engine.

For attribution only, never for prices: the profiler adds about 3 microseconds to every kernel and cuts its readings to whole ones. So the profile
gives the shares, and the engine as it runs without the profiler gives the total. Where kernels take microseconds, what has many of them still comes
out too dear: an argmax of 55 kernels by 12 % at 64x128 and by 4 % at 128x256, against the difference of two engines (measured, ORT 1.31).

An exported node is called after its place, `nodes.12/0.Conv` or `argmax/3.Max`, its values likewise, `nodes.12.v4`, and the network's output
`logits`. A kernel of ONNX Runtime's optimised graph keeps the node's name, or takes that of its last value with `_nchwc` behind it; what changes the
layout between kernels has a name of its own. An operator that the runtime writes out (HardSwish below optimisation `all`, as HardSigmoid and Mul)
becomes nodes without names, which are told by the value that they lead to in the optimised graph: it lists its nodes in the order in which they run.
"""

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import onnxruntime as ort

from segnas.arch import Architecture, Operation, argmax_operation
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.runtime.onnxruntime_session import CPU_PROVIDER, OnnxRuntimeSession, chosen_options
from segnas.target import Target
from segnas.timing import interquartile_mean, percentile

VISIT = 5  # runs in a row that count; one more before them, cold after the other session, does not
LAYOUT_KERNELS = frozenset({"ReorderInput", "ReorderOutput", "Transpose"})  # no operation of ours has a Transpose of its own
_PLACE = re.compile(r"(?:nodes\.(?P<node>\d+)|(?P<argmax>argmax|labels)|(?P<last>logits))(?:[./_].*)?")
_SUFFIX = "_kernel_time"

Part = Literal["operation", "reorder", "unattributed"]


class Kernel(NamedTuple):
    """One node of the runtime's optimised graph: its name, its type, and its profiled ms."""

    name: str
    op_type: str
    ms: float


class OptimisedNode(NamedTuple):
    """One node of the runtime's optimised graph as it is written to a file: its name (empty for none), its type, what it reads, its first output."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of an attribution; `share` is that of the engine's whole latency.

    `part` is an operation, everything that changes the layout between operations (`reorder`, a junction), or what could not be told
    (`unattributed`). `node` is the operation's place in the architecture, None for the argmax. An operation without kernels was melted into a
    neighbour's.
    """

    part: Part
    node: int | None
    operation: Operation | None
    kernels: tuple[str, ...]
    ms: float
    share: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """An engine's latency told by operations: one row a node that is not free, the argmax, the reorders, and last what is unattributed.

    `total_ms` is the median latency without the profiler, and what the rows sum to; `profiled_ms` the median with it; `kernels_ms` the sum of the
    kernels' times in the profile, from which the shares come; `runs` how many were counted on each side.
    """

    architecture: str
    target: Target
    total_ms: float
    profiled_ms: float
    kernels_ms: float
    runs: int
    rows: tuple[Row, ...]

    @property
    def attributed(self) -> float:
        """Share of the kernels' time that belongs to an operation or a reorder, 0 to 1."""
        return 1 - math.fsum(row.share for row in self.rows if row.part == "unattributed")

    def by_operation(self) -> dict[Operation, float]:
        """Milliseconds of each operation, wherever it stands: a network may hold the same one several times."""
        found: dict[Operation, float] = {}
        for row in self.rows:
            if row.operation is not None:
                found[row.operation] = found.get(row.operation, 0.0) + row.ms
        return found

    def by_kind(self, kind_of: Callable[[Operation], str]) -> dict[str, float]:
        """Milliseconds of each kind of table entry, as `kind_of` tells them; reorders count as junctions, and the rest as `unattributed`."""
        found: dict[str, float] = {}
        for row in self.rows:
            name = "junction" if row.part == "reorder" else row.part if row.operation is None else kind_of(row.operation)
            found[name] = found.get(name, 0.0) + row.ms
        return found


def attribute(artefact: bytes | Path, architecture: Architecture, target: Target, *, runs: int = 20) -> Attribution:
    """Run the engine with and without the profiler in turns, at least `runs` counted runs each, and tell its latency by operations.

    `architecture` is what the engine was exported from, by this version's exporter. InputError for an engine that does not fit the target, or a
    target whose kernels cannot be told apart (another runtime; a GPU provider, whose node times are those of launching); IncompatibleError for an
    engine of another architecture; RequirementError where the profile cannot be had.
    """
    _require(target, runs)
    content = artefact if isinstance(artefact, bytes) else _read(artefact)
    visits = -(-runs // VISIT)
    with (
        TemporaryDirectory(prefix="segnas-profile-") as folder,
        closing(OnnxRuntimeSession(content, target)) as plain,
        closing(_ProfiledSession(content, target, Path(folder))) as profiled,
    ):
        profiled.require(architecture)
        without, under = _interleaved(plain, profiled, visits)
        kernels = kernels_of(profiled.trace(), (visits + 1) * (VISIT + 1))
        values = values_of(kernels, profiled.nodes())
    total = percentile(without, 50)
    rows = rows_of(kernels, architecture, target, total, values)
    return Attribution(architecture.digest, target, total, percentile(under, 50), math.fsum(k.ms for k in kernels), len(without), rows)


def kernels_of(trace: Iterable[Mapping[str, Any]], runs: int) -> tuple[Kernel, ...]:
    """The kernels of a trace of `runs` runs: visits of one run that does not count and `VISIT` that do, the whole first visit being warm-up.

    In the order in which they run; ms of each is the interquartile mean over the runs that count. RequirementError where the trace is not whole.
    """
    events = sorted(trace, key=lambda event: event["ts"])
    starts = [event["ts"] for event in events if event["name"] == "model_run"]
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith(_SUFFIX)]
    keys = [(event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]) for event in nodes]
    calls = Counter(keys)
    if len(starts) != runs or not calls or any(count % runs for count in calls.values()):
        raise RequirementError(f"onnxruntime {ort.__version__} profiled {len(starts)} runs and {len(nodes)} kernels; {runs} whole runs are needed")
    times = {key: [0.0] * runs for key in calls}
    for key, event in zip(keys, nodes, strict=True):
        times[key][bisect_right(starts, event["ts"]) - 1] += event["dur"] / 1e3
    counted = [run for run in range(runs) if run > VISIT and run % (VISIT + 1)]
    return tuple(Kernel(name, op_type, interquartile_mean([by_run[run] for run in counted])) for (name, op_type), by_run in times.items())


def values_of(kernels: Sequence[Kernel], nodes: Sequence[OptimisedNode]) -> dict[str, str]:
    """By its name in the profile, the value that a kernel of a nameless node leads to; none at all where the profile ran other nodes than these."""
    if [kernel.op_type for kernel in kernels] != [node.op_type for node in nodes]:
        return {}
    gives = {read: node.output for node in reversed(nodes) for read in node.inputs}
    found: dict[str, str] = {}
    for kernel, node in zip(kernels, nodes, strict=True):
        if not node.name:
            value = node.output
            while not _PLACE.fullmatch(value) and value in gives:
                value = gives[value]
            found[kernel.name] = value
    return found


def rows_of(
    kernels: Sequence[Kernel], architecture: Architecture, target: Target, total_ms: float, values: Mapping[str, str] | None = None
) -> tuple[Row, ...]:
    """The rows of an attribution, scaled so that they sum to `total_ms`; IncompatibleError for a kernel of a node that the architecture lacks.

    `values` names the value of each kernel whose own name says nothing.
    """
    operations = architecture.operations(target.height, target.width)
    places: dict[int | None, Operation] = {index: operation for index, operation in enumerate(operations) if not _is_nothing(operation)}
    last = max((index for index in places if index is not None), default=None)
    if target.output_contract == "labels":
        places[None] = argmax_operation(operations[-1].output)
    held: dict[int | None, list[Kernel]] = {place: [] for place in places}
    reorders, rest = list[Kernel](), list[Kernel]()
    for kernel in kernels:
        match = _PLACE.fullmatch((values or {}).get(kernel.name, kernel.name))
        if match is None or (match["last"] and last is None):
            (reorders if kernel.op_type in LAYOUT_KERNELS else rest).append(kernel)
            continue
        place = None if match["argmax"] else last if match["last"] else int(match["node"])
        if place not in held:
            raise IncompatibleError(
                f"the engine has a kernel {kernel.name!r}, where architecture {architecture.digest} has no operation: it was made from another one"
            )
        held[place].append(kernel)
    whole = math.fsum(kernel.ms for kernel in kernels)
    if not whole:
        raise RequirementError("every kernel took less than the profiler's microsecond; there is nothing to attribute: give a larger --size")

    def row(part: Part, mine: Sequence[Kernel], node: int | None = None, operation: Operation | None = None) -> Row:
        share = math.fsum(kernel.ms for kernel in mine) / whole
        return Row(part, node, operation, tuple(kernel.name for kernel in mine), share * total_ms, share)

    told = [row("operation", held[place], place, operation) for place, operation in places.items()]
    return (*told, row("reorder", reorders), row("unattributed", rest))


class _ProfiledSession(OnnxRuntimeSession):
    """The same session under the profiler, which writes its trace into `folder`."""

    def __init__(self, content: bytes, target: Target, folder: Path) -> None:
        super().__init__(content, target)
        options = self._open().get_session_options()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "trace")
        self._optimised = folder / "optimised.onnx"
        options.optimized_model_filepath = str(self._optimised)
        self._session = ort.InferenceSession(content, options, providers=[CPU_PROVIDER])

    def require(self, architecture: Architecture) -> None:
        """IncompatibleError where the engine says that it was made from another architecture."""
        stated = self._open().get_modelmeta().custom_metadata_map.get("architecture", architecture.digest)
        if stated != architecture.digest:
            raise IncompatibleError(f"the engine was made from architecture {stated}; {architecture.digest} was given")

    def nodes(self) -> tuple[OptimisedNode, ...]:
        """The graph that runs, in the order in which it runs."""
        import onnx  # only here: running an engine does not need it

        return tuple(OptimisedNode(n.name, n.op_type, tuple(n.input), n.output[0]) for n in onnx.load(self._optimised).graph.node)

    def trace(self) -> list[dict[str, Any]]:
        """End the profile; its events."""
        path = Path(self._open().end_profiling())
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequirementError(f"onnxruntime's profile {path} cannot be read ({error}); is there room on the disk?") from None


def _interleaved(plain: OnnxRuntimeSession, profiled: OnnxRuntimeSession, visits: int) -> tuple[list[float], list[float]]:
    """Milliseconds of the counted runs of both, in turns, so that the machine's speed is the same for both."""
    found: tuple[list[float], list[float]] = ([], [])
    for visit in range(visits + 1):
        for session, times in zip((plain, profiled), found, strict=True):
            samples = session.sample(VISIT + 1)
            times += samples[1:] if visit else ()
    return found


def _is_nothing(operation: Operation) -> bool:
    """Whether the exporter writes no node for it."""
    return operation.is_free or (operation.op == "resize" and operation.inputs[0] == operation.output)


def _require(target: Target, runs: int) -> None:
    if runs < 1:
        raise InputError(f"{runs} profiled runs were asked for; at least 1 is needed")
    if target.runtime != "onnxruntime":
        raise InputError(f"an engine for runtime {target.runtime!r} was given; only the profile of 'onnxruntime' is read")
    provider = chosen_options(target)["provider"]
    if provider != CPU_PROVIDER:
        raise InputError(f"provider {provider!r} was given; its node times are those of launching kernels: only {CPU_PROVIDER!r} is attributed")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; make an engine with `segnas export`") from None

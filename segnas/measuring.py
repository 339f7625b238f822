"""Measuring: tables, whole networks and engines, on the machine that is here; where export, runtime and latency tables are joined."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from random import Random

from segnas.apart import MOST, SURE, measured_apart, sure_of
from segnas.arch import Architecture, Operation
from segnas.cuda_driver import first_device
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export.graph import graph_sha256, onnx_from_network
from segnas.export.manifest import read_engine, versions
from segnas.export.templates import templates
from segnas.files import require_writable, write_bytes
from segnas.latency import LatencyTable, Prepare, Timed, profile_command
from segnas.latency_tables.compose import calibrate, reference_ms
from segnas.latency_tables.interpolate import interpolate
from segnas.latency_tables.live import LiveCheck, check_live, live_entries
from segnas.latency_tables.measure import measure
from segnas.latency_tables.probes import designs, probe_operations
from segnas.latency_tables.profile import REPEATS, ROUNDS, profile
from segnas.latency_tables.sentinel import sentinel_architecture, sentinel_target
from segnas.latency_tables.store import save_table
from segnas.latency_tables.transfer import transferred
from segnas.measurements import MeasurementJournal
from segnas.network import Network, initialised
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.runtime.processor import available_cores
from segnas.runtime.session import open_session
from segnas.search.draws import cheapest
from segnas.search.draws import networks as random_networks
from segnas.search.expected import ExpectedLatency
from segnas.search.space import Space
from segnas.target import GPU_BACKENDS, Target
from segnas.tensorrt_api import MODULES as TENSORRT
from segnas.tensorrt_api import open_api
from segnas.timing import Measured, cpu_times, disturbance

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Services:
    """What is measured with: opening a network for timing, timing a whole one, timing an engine as shipped, in ms; and what refuses a table that
    holds no longer. Tests give others.
    """

    prepare: Prepare
    measure: Callable[[Architecture, LatencyTable], Measured]
    measure_engine: Callable[[Path, Architecture, LatencyTable, float], Measured]
    require_live: Callable[[LatencyTable, Progress], None] | None = None


def prepare_probe(architecture: Architecture, target: Target) -> Timed:
    """Export with random weights and open on the target's runtime; torch runs the network itself, AOTInductor compiles it."""
    network = initialised(architecture, 0).eval()
    if target.runtime == "torch":
        from segnas.runtime.torch_session import open_torch

        return open_torch(network, architecture.nodes[0].channels, target)
    content = engine_from_network(network, target)
    return open_session(content, target, sha256=hashlib.sha256(content).hexdigest())


def engine_from_network(network: Network, target: Target, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """The engine's file for that target: ONNX, a package of AOTInductor, or an engine of TensorRT for the GPU here."""
    if target.runtime == "aotinductor":
        from segnas.export.aotinductor import package_from_network

        return package_from_network(network, target, metadata=metadata)
    content = onnx_from_network(network, target, metadata=metadata)
    if target.runtime in TENSORRT:
        from segnas.export.tensorrt_probes import probe_engine

        return probe_engine(content, open_api(target.runtime), first_device())
    return content


def graph_hashes(target: Target) -> Callable[[Operation], str]:
    """What identifies an operation's exported graph on that target."""
    return lambda operation: graph_sha256(operation, batch=target.batch, runtime=target.backend)


def export_operations(operations: Sequence[Operation], target: Target, progress: Progress) -> None:
    """Export all of these operations at once: one export of many is much faster than many of one."""
    templates(operations, batch=target.batch, progress=lambda done, total: progress(done, total, "exporting operations"))


def export_probes(operations: Sequence[Operation], target: Target, progress: Progress, networks: Sequence[Architecture] = ()) -> None:
    """Export all that the probes of these operations hold.

    For AOTInductor, compile the probes, the sentinel and these networks, several at a time, and for TensorRT build their engines: nothing compiles
    while something is timed.
    """
    plan = designs(operations, target)
    export_operations((*operations, *probe_operations(plan)), target, progress)
    probes = [(rung.architecture, rung.target(target)) for made in plan for rung in made.rungs]
    whole = [(sentinel_architecture(), sentinel_target(target)), *((architecture, target) for architecture in networks)]
    if target.runtime == "aotinductor":
        from segnas.export.aotinductor import compile_probes

        compile_probes([*whole, *probes], progress=lambda done, total: progress(done, total, "compiling networks"))
    elif target.runtime in TENSORRT:
        from segnas.export.tensorrt_probes import build_probes

        api, device = open_api(target.runtime), first_device()
        build_probes([*whole, *probes], api, device, progress=lambda done, total: progress(done, total, "building engines"))


def naming_operations(progress: Progress) -> Callable[[int, int, Operation], None]:
    """`progress` as `profile` reports: with the operation that was finished."""
    return lambda done, total, operation: progress(done, total, str(operation.kind))


def measure_network(architecture: Architecture, table: LatencyTable, *, sure: float = SURE, most: int = MOST, drift: float = 0.0) -> Measured:
    """The sentinel-normalised latency of one network on the table's target, as the mean of several processes; `sure` is the relative standard
    deviation of that mean that is enough, `most` the processes after which it has to do.

    `drift` is the relative standard deviation by which means of this machine differ from moment to moment, whatever they state; it counts beside.
    """
    found = _measured(architecture, table, None, "", partial(sure_of, sure=sure, most=most))
    return found._replace(relative_sd=math.hypot(found.relative_sd, drift))


def measure_engine(path: Path, architecture: Architecture, table: LatencyTable, budget_ms: float, *, sure: float = SURE) -> Measured:
    """The sentinel-normalised latency of an engine's own file, read until it is clear on which side of the budget it lies.

    `architecture` is what it was exported from.
    """
    engine, artefact = read_engine(path)
    return _measured(architecture, table, artefact, engine.sha256, partial(sure_of, sure=sure, limit_ms=budget_ms))


def _measured(
    architecture: Architecture, table: LatencyTable, engine: Path | None, sha256: str, mean_of: Callable[[Callable[[int], Measured]], Measured]
) -> Measured:
    """Readings of a network, or of its engine's file: in new processes with ONNX Runtime on a CPU, else in this one, opened anew for each."""
    target, reference = table.target, reference_ms(table)
    if target.backend != "onnxruntime":

        def prepare(wanted: Architecture, on: Target) -> Timed:
            return open_session(engine, on, sha256=sha256) if engine is not None and wanted == architecture else prepare_probe(wanted, on)

        return mean_of(lambda seed: measure(architecture, target, prepare=prepare, sentinel_ref_ms=reference))
    sentinel = sentinel_architecture()
    engines = {
        architecture.digest: engine.read_bytes() if engine is not None else onnx_from_network(initialised(architecture, 0).eval(), target),
        sentinel.digest: onnx_from_network(initialised(sentinel, 0).eval(), sentinel_target(target)),
    }
    return mean_of(lambda seed: measured_apart({architecture.digest: architecture}, engines, target, reference, seed)[architecture.digest])


def check_table_live(table: LatencyTable, progress: Progress) -> LiveCheck:
    """Some entries of a table of this machine, measured again."""
    table = for_this_machine(table)
    export_probes([entry.operation for entry in live_entries(table)], table.target, progress)
    return check_live(table, prepare=prepare_probe, graph_sha256=graph_hashes(table.target), progress=naming_operations(progress))


def require_live(table: LatencyTable, progress: Progress) -> None:
    """Refuse a table that measuring again contradicts; IncompatibleError with what to run.

    One that `profile` did not make cannot be checked, and one whose mismatch was allowed need not hold.
    """
    if reference_ms(table) is None or table.allowed_mismatch:
        return
    found = check_table_live(table, progress)
    if found.action in ("rescale", "profile"):
        raise IncompatibleError(f"the latency table of {table.space!r} no longer holds on this machine: {found.advice}")


SERVICES = Services(prepare_probe, measure_network, measure_engine, require_live)


def services_for(sure: float, drift: float = 0.0) -> Services:
    """Those services, whose networks are measured until they are known that well, on a machine whose moments differ by that much."""
    return replace(SERVICES, measure=partial(measure_network, sure=sure, drift=drift), measure_engine=partial(measure_engine, sure=sure))


def make_table(
    space: Space,
    target: Target,
    *,
    journal: Path,
    out: Path,
    networks: int,
    seed: int,
    services: Services,
    progress: Progress,
    strict: bool = False,
    rounds: int = ROUNDS,
    repeats: int = REPEATS,
) -> LatencyTable:
    """Measure every operation that the space can need, calibrate the sum on random networks, and write the table.

    What else the machine did meanwhile is kept in the provenance; `strict` refuses to begin (RequirementError) where it is not quiet.
    """
    provenance = {**dict(versions()), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    require_writable(out)
    if strict:
        require_quiet()
    before = cpu_times()
    operations = space.all_operations(target)
    drawn = random_networks(space, networks, Random(seed + 1))
    export_probes(operations, target, progress, drawn)
    table = profile(
        space.name,
        operations,
        target,
        prepare=services.prepare,
        graph_sha256=graph_hashes(target),
        journal=journal,
        provenance=provenance,
        rounds=rounds,
        repeats=repeats,
        progress=naming_operations(progress),
        seed=seed,
    )
    progress(len(operations), len(operations), f"calibrating on {networks} networks")
    if networks:
        measured = MeasurementJournal(journal.with_suffix(".networks.jsonl"), table.prices_digest)
        table = calibrate(table, drawn, prepare=services.prepare, seed=seed, known=measured.known, keep=measured.add)
    around = disturbance(before, cpu_times())
    if around is not None:
        found = {"others_cores": f"{around.others_cores:.2f}", "stolen": f"{around.stolen:.4f}"}
        table = replace(table, provenance=tuple(sorted({**dict(table.provenance), **found}.items())))
    table = _with_timing_cache(table, out)
    save_table(out, table)
    return table


def _with_timing_cache(table: LatencyTable, out: Path) -> LatencyTable:
    """The table with the sha256 of TensorRT's timing cache, which is put beside it: which kernels were timed was decided by what it holds."""
    device = first_device() if table.target.runtime == "tensorrt" else None
    if device is None:
        return table
    from segnas.export.tensorrt_probes import timing_cache_of

    content = timing_cache_of(open_api(table.target.runtime), device)
    write_bytes(out.with_suffix(".timing-cache"), content)
    return replace(table, provenance=tuple(sorted({**dict(table.provenance), "timing_cache": hashlib.sha256(content).hexdigest()}.items())))


def interpolate_tables(
    space: Space, first: LatencyTable, second: LatencyTable, target: Target, progress: Progress, allow: Sequence[str] = ()
) -> LatencyTable:
    """The table of the space at the target's size, between those of two tables; nothing is exported before they are found to belong together."""
    operations = space.all_operations(target)

    @cache
    def hashes() -> dict[Operation, str]:
        export_operations(operations, target, progress)
        return {operation: graph_hashes(target)(operation) for operation in operations}

    return interpolate(first, second, operations, target, graph_sha256=lambda operation: hashes()[operation], allow=allow)


def transfer_table(space: Space, table: LatencyTable, *, networks: int, seed: int, progress: Progress) -> LatencyTable:
    """That table for this machine, by one factor from so many random networks."""
    require_entries(space, table)
    drawn = random_networks(space, networks, Random(seed))
    progress(0, 1, f"{networks} networks")
    return transferred(table, here(table.target), drawn, prepare=prepare_probe, seed=seed)


def require_quiet(seconds: float = 1.0) -> None:
    """RequirementError where others keep the cores busy, or the host takes time away, over that many seconds."""
    before = cpu_times()
    time.sleep(seconds)
    around = disturbance(before, cpu_times())
    if around is not None and not around.quiet:
        raise RequirementError(
            f"this machine is not quiet: other processes keep {around.others_cores:.2f} cores busy and the host takes {around.stolen:.1%} of "
            "the time; stop them, or measure without --strict"
        )


def require_entries(space: Space, table: LatencyTable) -> None:
    """Refuse a table that does not price every operation of the space; IncompatibleError says how many are missing and what measures them."""
    target = table.target
    missing = table.missing(space.all_operations(target))
    if missing:
        raise IncompatibleError(
            f"the latency table of {table.space!r} has no entry for {len(missing)} operations of {space.name!r} with {space.classes} classes, first "
            f"{missing[0]}; run `{profile_command(space.name, target)} --classes {space.classes} --out TABLE.json`"
        )


def require_budget(space: Space, table: LatencyTable, budget: float) -> tuple[float, float]:
    """What the cheapest and the dearest network of the space take in ms, as far as the table knows; InputError for a budget that is not between."""
    price = ExpectedLatency(space, table).exact
    low, high = price(cheapest(space, price)), price(cheapest(space, lambda genotype: -price(genotype)))
    if not low <= budget <= high:
        advice = "raise the budget, lower the input size or choose a faster space" if budget < low else "ask for less, or choose a larger space"
        raise InputError(
            f"a budget of {budget:.3f} ms was given; by its latency table the networks of {space.name!r} take {low:.3f} to {high:.3f} ms: {advice} "
            "(`segnas spaces`)"
        )
    return low, high


def for_this_machine(table: LatencyTable, allow: Iterable[str] = ()) -> LatencyTable:
    """The table, to be used here (`LatencyTable.for_target`); IncompatibleError names the fields but those of `allow` in which this machine or its
    versions differ from the table's.
    """
    return table.for_target(here(table.target), allow)


def here(target: Target) -> Target:
    """This machine, asked as that target asks; where it cannot serve that runtime, as ONNX Runtime on its CPU, which differs."""
    height, width, contract = target.height, target.width, target.output_contract
    threads = min(target.threads, available_cores())
    try:
        if target.backend in GPU_BACKENDS:
            return gpu_target(
                target.backend, height, width, precision=target.precision, output_contract=contract, batch=target.batch, scope=target.scope
            )
        if target.backend == "aotinductor":
            return processor_target(target.backend, height, width, threads, output_contract=contract, batch=target.batch)
    except RequirementError:
        pass  # it is another machine's, and the fields that differ say so
    return replace(cpu_target(height, width, output_contract=contract), threads=threads)


def processor_target(backend: str, height: int, width: int, threads: int, *, output_contract: str = "labels", batch: int = 1) -> Target:
    """This machine's CPU by one of `CPU_BACKENDS`; InputError for more threads than cores, RequirementError for what is not installed."""
    if backend == "aotinductor":
        from segnas.runtime.aotinductor_session import aotinductor_target

        return aotinductor_target(height, width, threads, output_contract=output_contract, batch=batch)
    return cpu_target(height, width, threads, output_contract=output_contract, batch=batch)


def gpu_target(
    backend: str, height: int, width: int, *, precision: str, output_contract: str = "labels", batch: int = 1, scope: str = "gpu"
) -> Target:
    """This machine's CUDA device by one of `GPU_BACKENDS`; RequirementError where the device or the runtime is missing."""
    if backend == "torch":
        from segnas.runtime.torch_session import torch_target as make
    elif backend == "aotinductor-cuda":
        from segnas.runtime.aotinductor_session import aotinductor_cuda_target as make
    elif backend in TENSORRT:
        from segnas.runtime.tensorrt_target import tensorrt_target

        make = partial(tensorrt_target, backend)
    else:
        from segnas.runtime.onnxruntime_cuda_target import onnxruntime_cuda_target as make
    return make(height, width, precision=precision, output_contract=output_contract, batch=batch, scope=scope)

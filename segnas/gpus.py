"""The known GPUs and which release of which runtime serves each, as data with sources: `gpus.json`, read here and printed in `docs/gpus.md`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Literal, cast

from segnas.errors import IncompatibleError, InputError
from segnas.files import read_json, unplain

SCHEMA = "segnas.gpus/1"
Runtime = Literal["torch", "tensorrt", "tensorrt-rtx", "onnxruntime"]
Machine = Literal["x86_64", "aarch64"]
Evidence = Literal["looked up", "reference", "recalled"]

# The distribution whose range in pyproject.toml says which releases of a runtime the project works with.
DISTRIBUTIONS: dict[Runtime, str] = {
    "torch": "torch",
    "tensorrt": "tensorrt-cu13",
    "tensorrt-rtx": "tensorrt-rtx-cu13",
    "onnxruntime": "onnxruntime-gpu",
}
TITLES: dict[Runtime, str] = {"torch": "torch", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime CUDA"}

# What the command line calls the runtimes, the fastest first (our order), and the least capability that each can have.
COMMANDS: dict[Runtime, tuple[tuple[str, str], ...]] = {
    "tensorrt": (("tensorrt", "0.0"),),
    "tensorrt-rtx": (("tensorrt-rtx", "0.0"),),
    "torch": (("aotinductor-cuda", "7.0"), ("torch", "0.0")),  # AOTInductor's kernels are Triton's, which starts at 7.0
    "onnxruntime": (("onnxruntime-cuda", "0.0"),),
}
LOWEST_OF_TENSORRT = "7.5"
"""Below it no TensorRT 10.5 or later and no TensorRT-RTX has code: Turing is the oldest that they serve (source `tensorrt-matrix`)."""

# Integrated GPUs run only code that was compiled for exactly them (source `torch-2.13` of the table).
INTEGRATED = ("5.3", "6.2", "7.2", "8.7")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a fact was read: a page or a file, and how far to trust it."""

    key: str
    evidence: Evidence
    where: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card or module: memory in GB, bandwidth of that memory in GB/s as its maker states it; the sources are keys of `sources()`."""

    name: str
    aliases: tuple[str, ...]
    compute_capability: str
    machine: Machine
    memory_gb: float
    bandwidth_gb_s: float
    capability_source: str
    memory_source: str
    bandwidth_source: str
    notes: str


@dataclass(frozen=True, slots=True)
class RuntimeSupport:
    """Releases `first` to `last` of a runtime, in one build, and the compute capabilities that they are compiled for.

    `9.0a` is code for 9.0 alone. Where `cards` is not empty, the source names those cards only.
    """

    runtime: Runtime
    first: str
    last: str
    build: str
    machine: Machine
    capabilities: tuple[str, ...]
    cards: tuple[str, ...]
    sources: tuple[str, ...]
    note: str

    @property
    def versions(self) -> str:
        """`2.11 to 2.14`, or one release."""
        return self.first if self.first == self.last else f"{self.first} to {self.last}"

    @property
    def label(self) -> str:
        """`2.11 to 2.14 (cu126)`."""
        return f"{self.versions} ({self.build})" if self.build else self.versions


@dataclass(frozen=True, slots=True)
class GpuTable:
    """The whole of `gpus.json`."""

    gpus: tuple[Gpu, ...]
    releases: tuple[RuntimeSupport, ...]
    sources: tuple[Source, ...]


@cache
def gpu_table() -> GpuTable:
    """The table that comes with segnas."""
    with resources.as_file(resources.files("segnas").joinpath("gpus.json")) as path:
        data = read_json(path)
    if (schema := data.pop("schema", None)) != SCHEMA:
        raise IncompatibleError(f"gpus.json has schema {schema!r}; this version of segnas reads {SCHEMA}")
    return cast(GpuTable, unplain(GpuTable, data))


def known_gpus() -> tuple[Gpu, ...]:
    """Every GPU of the table, oldest first within its kind."""
    return gpu_table().gpus


def sources() -> dict[str, Source]:
    """What the table was read from, by key."""
    return {source.key: source for source in gpu_table().sources}


def find_gpu(name_or_capability: str) -> Gpu:
    """The GPU of that name or alias (`RTX 4090`, `rtx4090`); for `8.9` or `sm89` the first of that compute capability. InputError lists the known."""
    wanted = _short(name_or_capability)
    for gpu in known_gpus():
        if wanted in (_short(gpu.name), *gpu.aliases):
            return gpu
    capability = _capability_given(name_or_capability)
    for gpu in known_gpus():
        if gpu.compute_capability == capability:
            return gpu
    names = ", ".join(f"{gpu.name} ({gpu.aliases[0]})" for gpu in known_gpus())
    capabilities = ", ".join(sorted({gpu.compute_capability for gpu in known_gpus()}, key=version_numbers))
    raise InputError(f"no GPU {name_or_capability!r} in the table; known are {names}, and the compute capabilities {capabilities}")


def supported_runtimes(gpu: Gpu) -> tuple[RuntimeSupport, ...]:
    """Every release of the table that serves this GPU, whether in the project's ranges or not."""
    found = releases_for(gpu.compute_capability, gpu.machine)
    return tuple(release for release in found if not release.cards or gpu.name in release.cards)


def releases_for(capability: str, machine: str) -> tuple[RuntimeSupport, ...]:
    """Every release of the table with code for a compute capability (`6.1`) on that kind of host."""
    return tuple(r for r in gpu_table().releases if r.machine == machine and any(runs_on(code, capability) for code in r.capabilities))


def capability_of(name_or_capability: str) -> tuple[str, Gpu | None]:
    """The compute capability that was given (`8.9`, `sm89`), or that of the GPU of that name, with the GPU; InputError for an unknown name."""
    given = _capability_given(name_or_capability)
    if given:
        return given, None
    gpu = find_gpu(name_or_capability)
    return gpu.compute_capability, gpu


def instead_of(runtime: Runtime, capability: str, machine: str) -> tuple[str, ...]:
    """What else serves a compute capability within the project's ranges, as the command line calls it."""
    served = {release.runtime for release in releases_for(capability, machine) if is_in_project_range(release)}
    commands = [command for other in COMMANDS if other in served and other != runtime for command in COMMANDS[other]]
    return tuple(name for name, least in commands if version_numbers(least) <= version_numbers(capability))


def runs_on(code: str, capability: str) -> bool:
    """Whether code compiled for one compute capability runs on a GPU of another.

    Machine code runs on the same major version from its own minor version on, `9.0a` on 9.0 alone, code of an integrated GPU on that GPU alone;
    `12.0+PTX` runs on that and everything newer, through the driver's compiler.
    """
    if code.endswith("a") or capability in INTEGRATED or code in INTEGRATED:
        return code.removesuffix("a") == capability
    ours, device = version_numbers(code.removesuffix("+PTX")), version_numbers(capability)
    return ours <= device and (code.endswith("+PTX") or ours[0] == device[0])


def code_of(architecture: str) -> str:
    """`sm_61` as `6.1`, `sm_90a` as `9.0a`, `compute_120` as `12.0+PTX`: the names that nvcc and torch.cuda.get_arch_list() use."""
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
    if found is None:
        raise InputError(f"{architecture!r} is no name of an architecture; sm_61 and compute_120 are")
    kind, major, minor, suffix = found.groups()
    return f"{major}.{minor}{'a' if suffix == 'a' else '+PTX' if kind == 'compute' else ''}"


def project_range(runtime: Runtime) -> str:
    """The project's own range of a runtime, as `>=2.11,<2.16`, from the installed package's metadata."""
    for requirement in metadata.requires("segnas") or ():
        name, _, _ = requirement.partition(";")
        if found := re.fullmatch(rf"{re.escape(DISTRIBUTIONS[runtime])}([<>=].*)", name.strip()):
            return ",".join(sorted(found[1].replace(" ", "").split(","), reverse=True))
    raise ValueError(f"segnas names no range of {DISTRIBUTIONS[runtime]}")


def in_project_range(runtime: Runtime, version: str) -> bool:
    """Whether a release, such as `11.4.0.106`, lies within the project's own range of that runtime."""
    bounds: dict[str, str] = dict(re.findall(r"(>=|<)([\d.]+)", project_range(runtime)))
    found = version_numbers(".".join(re.findall(r"\d+", version)[:4]))
    return version_numbers(bounds[">="]) <= found < version_numbers(bounds["<"])


def is_in_project_range(support: RuntimeSupport) -> bool:
    """Whether at least one of these releases lies within the project's own range of that runtime."""
    bounds: dict[str, str] = dict(re.findall(r"(>=|<)([\d.]+)", project_range(support.runtime)))
    return version_numbers(bounds[">="]) <= version_numbers(support.last) and version_numbers(support.first) < version_numbers(bounds["<"])


def what_to_install(runtime: Runtime, capability: str, machine: str) -> str:
    """What serves that compute capability: releases within the project's range, else that none does and what would."""
    found = [release for release in releases_for(capability, machine) if release.runtime == runtime]
    inside = [release.label for release in found if is_in_project_range(release)]
    if inside:
        return f"install {runtime} {' or '.join(inside)}"
    none = f"no known {runtime} within the project's range {project_range(runtime)} serves compute capability {capability} on {machine}"
    return f"{none}; outside it {' or '.join(release.label for release in found)} does" if found else none


# ---- as Markdown, for docs/gpus.md


def cards_table() -> str:
    """One row a GPU: what it is, and which releases serve it: those within the project's ranges, else the others in italics."""
    head = ("GPU", "capability", "memory (GB)", "bandwidth (GB/s)", *(f"{TITLES[r]} {project_range(r)}" for r in TITLES))
    return _markdown(head, (_card(gpu) for gpu in known_gpus()))


def releases_table() -> str:
    """One row a release: for whom it is compiled, and where that was read."""
    head = ("runtime", "releases", "host", "compiled for", "sources", "remarks")
    rows = (
        (TITLES[r.runtime], r.label, r.machine, ", ".join(r.capabilities), ", ".join(r.sources), "; ".join(filter(None, (_only(r), r.note))))
        for r in gpu_table().releases
    )
    return _markdown(head, rows)


def facts_table() -> str:
    """One row a GPU: where its figures were read."""
    rows = ((g.name, g.capability_source, g.memory_source, g.bandwidth_source, g.notes) for g in known_gpus())
    return _markdown(("GPU", "capability", "memory", "bandwidth", "remarks"), rows)


def sources_table() -> str:
    """One row a source."""
    return _markdown(("source", "evidence", "where"), ((s.key, s.evidence, s.where) for s in gpu_table().sources))


def _card(gpu: Gpu) -> tuple[str, ...]:
    return (gpu.name, gpu.compute_capability, f"{gpu.memory_gb:g}", f"{gpu.bandwidth_gb_s:g}", *(_cell(gpu, runtime) for runtime in TITLES))


def _cell(gpu: Gpu, runtime: Runtime) -> str:
    found = [release for release in supported_runtimes(gpu) if release.runtime == runtime]
    inside = ", ".join(release.label for release in found if is_in_project_range(release))
    return inside or ", ".join(f"*{release.label}*" for release in found) or "none"


def _only(release: RuntimeSupport) -> str:
    return f"named for {' and '.join(release.cards)}" if release.cards else ""


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def _short(name: str) -> str:
    """`NVIDIA GeForce RTX 4090` as `rtx4090`."""
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9.]", "", name.lower())


def _capability_given(text: str) -> str:
    """`8.9`, `sm89` and `sm_89` as `8.9`; nothing else is a compute capability."""
    found = re.fullmatch(r"(\d+)\.(\d)|sm_?(\d+)(\d)", text.strip().lower())
    return "" if found is None else ".".join(part for part in found.groups() if part is not None)


def version_numbers(version: str) -> tuple[int, ...]:
    """`12.0` as (12, 0): releases and compute capabilities in the order of their numbers, not of their letters."""
    return tuple(int(part) for part in version.split("."))

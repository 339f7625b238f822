"""AOTInductor: a network compiled ahead of time into a `.pt2` package of native code, by `torch.export` and `torch._inductor`.

Like the ONNX engines it reads the image (N, C, H, W), float32 and normalised, and gives `labels`, uint8 (N, H, W), or `logits`, (N, classes, H, W) in
the target's precision; normalisations are folded and everything is static. On a CUDA device it changes to the target's precision and to channels
last inside. A package is code for the processor, the compiler and the torch that made it, with the number of threads compiled in: no exchange format.

A compilation takes seconds (a probe of a few convolutions 7 to 10 s on one core, a whole network 15 to 30 s; torch 2.13, g++ 12), and packages cannot
be joined as templates of ONNX can: what is kept on the disk is each probe's package.
"""

import hashlib
import inspect
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segnas.arch import Architecture, canonical_json
from segnas.compiler import processor_digest, require_compiler
from segnas.depthwise import DepthwiseConv2d
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export.folding import folded_module
from segnas.export.graph import MOST_CLASSES
from segnas.export.kept import keep, kept
from segnas.export.templates import cache_folder, quiet
from segnas.files import plain
from segnas.network import Network, initialised, weights_digest
from segnas.ops import build
from segnas.target import Target

Progress = Callable[[int, int], None]
MOST_PROCESSES = 8
_FORMAT = 1
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def package_from_network(network: Network, target: Target, *, metadata: Mapping[str, str] | None = None, cache: Path | None = None) -> bytes:
    """The network as one `.pt2` package for that target, always with its running statistics; from the cache folder where it is there.

    `metadata` goes into the package beside what the session needs to know; `cache` is the folder (default `packages` in `SEGNAS_CACHE`, else in
    ~/.cache/segnas). InputError for weights that are not finite or a target that AOTInductor does not serve, IncompatibleError for one of another
    torch or compiler, RequirementError without a C++ compiler or the device.
    """
    _require(network, target)
    path = _path(network, target, dict(metadata or {}), cache or cache_folder().with_name("packages"))
    found = kept(path)
    if found is not None:
        return found
    content = _compiled(network, target, dict(metadata or {}))
    keep(path, content)
    return content


def compile_probes(
    probes: Sequence[tuple[Architecture, Target]], *, processes: int | None = None, cache: Path | None = None, progress: Progress | None = None
) -> int:
    """Compile networks with random weights into the cache folder, in other processes, several at once; how many were missing.

    To be called before anything is timed: compilers and clocks must not share cores. `processes` is by default the number of cores that may be used,
    8 at most (each takes up to 1 GB); `progress(done, total)` counts the compiled ones. Errors are those of `package_from_network`.
    """
    folder = cache or cache_folder().with_name("packages")
    missing = [job for job in dict.fromkeys(probes) if not _path(initialised(job[0], 0), job[1], {}, folder).exists()]
    if not missing:
        return 0
    require_compiler()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(len(missing), processes or min(cores, MOST_PROCESSES))
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_compile_probe, architecture, target, folder) for architecture, target in missing]
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if progress is not None:
                    progress(done, len(missing))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return len(missing)


def _compile_probe(architecture: Architecture, target: Target, folder: Path) -> None:
    torch.set_num_threads(1)
    package_from_network(initialised(architecture, 0).eval(), target, cache=folder)


class _Contract(nn.Module):
    """The network between the engine's input and output."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, *, labels: bool, channels_last: bool) -> None:
        super().__init__()
        self.network = network
        self.dtype, self.labels, self.channels_last = dtype, labels, channels_last

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) float32 -> (N, H, W) uint8, or (N, classes, H, W) in the engine's precision."""
        image = image.to(dtype=self.dtype, memory_format=torch.channels_last) if self.channels_last else image.to(dtype=self.dtype)
        logits = self.network(image)
        return logits.argmax(dim=1).to(torch.uint8) if self.labels else logits.contiguous()


def _compiled(network: Network, target: Target, metadata: dict[str, str]) -> bytes:
    from torch._inductor import aoti_compile_and_package  # pyright: ignore[reportPrivateUsage]

    on_cuda = target.backend == "aotinductor-cuda"
    module = folded_module(network)
    if on_cuda:
        module = module.to(device="cuda", dtype=_DTYPES[target.precision], memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    channels = network.architecture.nodes[0].channels
    image = torch.zeros(target.batch, channels, target.height, target.width, device="cuda" if on_cuda else "cpu")
    contract = _Contract(module, _DTYPES[target.precision], labels=target.output_contract == "labels", channels_last=on_cuda).eval()
    options: dict[str, Any] = {
        "aot_inductor.metadata": _described(network, target, metadata),
        "aot_inductor.enable_line_tables": False,
        "cpp.threads": target.threads,
    }
    with tempfile.TemporaryDirectory(prefix="segnas-compile-") as folder, _alone(folder), torch.no_grad():
        try:
            program = torch.export.export(contract, (image,), strict=False)
            path = aoti_compile_and_package(program, package_path=f"{folder}/model.pt2", inductor_configs=options)
        except (RuntimeError, OSError) as error:  # torch's own errors derive from RuntimeError
            told = f"AOTInductor of torch {torch.__version__} could not compile this network: {_reason(error)}"
            raise RequirementError(f"{told}; see `segnas doctor`, or use another --runtime") from error
        return Path(path).read_bytes()


def _reason(error: Exception) -> str:
    """Of the page that it is: its first line, and the first one that the compiler calls an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return "; ".join(dict.fromkeys([lines[0], *[line for line in lines[1:] if "error:" in line][:1]]))


def _described(network: Network, target: Target, metadata: dict[str, str]) -> dict[str, str]:
    """What a session reads before it loads the code."""
    sides = (target.batch, network.architecture.nodes[0].channels, target.height, target.width)
    walk = network.architecture.operations(target.height, target.width)
    shown = (target.batch, *walk[-1].output[1:]) if target.output_contract == "labels" else (target.batch, *walk[-1].output)
    kind = "uint8" if target.output_contract == "labels" else str(_DTYPES[target.precision]).removeprefix("torch.")
    own = {
        "segnas.architecture": network.architecture.digest,
        "segnas.input": f"input float32 {'x'.join(map(str, sides))}",
        "segnas.output": f"{target.output_contract} {kind} {'x'.join(map(str, shown))}",
        "segnas.processor": processor_digest(),
        "segnas.threads": str(target.threads),
        "segnas.torch": torch.__version__,
    }
    return {**metadata, **own}


@contextmanager
def _alone(folder: str) -> Generator[None]:
    """Inductor with its own files in that folder (it keeps the headers that it compiled beforehand in its usual place), and quiet."""
    name, before = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ[name] = f"{folder}/inductor"
    try:
        with warnings.catch_warnings(), quiet("torch"):
            warnings.filterwarnings("ignore", module=r"torch\.|copyreg")  # what torch deprecates of its own
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _require(network: Network, target: Target) -> None:
    on_cuda = target.backend == "aotinductor-cuda"
    for name, value, allowed in (
        ("runtime", target.runtime, ("aotinductor",)),
        ("precision", target.precision, tuple(_DTYPES) if on_cuda else ("fp32",)),
        ("input_contract", target.input_contract, ("normalised",)),
    ):
        if value not in allowed:
            raise InputError(f"target {name} was given {value!r}; {target.backend} compiles {', '.join(allowed)}")
    if target.output_contract == "labels" and network.architecture.nodes[-1].channels > MOST_CLASSES:
        raise InputError(
            f"{network.architecture.nodes[-1].channels} classes do not fit the uint8 output `labels`; at most {MOST_CLASSES}, or ask for 'logits'"
        )
    for name, value in network.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"the weights hold NaN or infinity ({name}); they cannot be compiled: train again or give another checkpoint")
    if on_cuda and not torch.cuda.is_available():
        raise RequirementError(f"a CUDA device is needed to compile for {target.backend}; torch {torch.__version__} sees none: see `segnas doctor`")
    here = {"runtime_version": str(torch.__version__), "compiler": str(require_compiler())}
    given = {"runtime_version": target.runtime_version, "compiler": dict(target.options).get("compiler", here["compiler"])}
    differing = [f"{name}: the target has {value!r}, here is {here[name]!r}" for name, value in given.items() if value != here[name]]
    if differing:
        raise IncompatibleError(f"this target cannot be compiled for here ({'; '.join(differing)}); run `segnas profile` here for one that can")


# ---- the cache on the disk


@cache
def _stamp() -> str:
    """What a package depends on besides its network and its target: the processor, and how operations are defined and compiled."""
    sources = [inspect.getfile(made) for made in (build, DepthwiseConv2d, Network, folded_module, _Contract)]
    parts = [str(_FORMAT), processor_digest(), *(hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _path(network: Network, target: Target, metadata: dict[str, str], folder: Path) -> Path:
    parts = [_stamp(), network.architecture.digest, weights_digest(network.state_dict()), canonical_json(plain(target)), canonical_json(metadata)]
    return folder / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:32]}.package"

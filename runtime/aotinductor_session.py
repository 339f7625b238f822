"""AOTInductor: a network that was compiled ahead of time, on the CPU with the threads that were compiled in, or on a CUDA device as a CUDA graph.

On the CPU a call goes from the image in memory to a new tensor with the answer: the package allocates what it needs in each call, as it does in
production. On a CUDA device what is captured and timed is the same as for PyTorch (`cuda_graph_session`); this path has not run on a real GPU yet.
"""

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnas.compiler import require_compiler
from segnas.errors import InputError, RequirementError
from segnas.runtime.cuda_device import DeviceLayer, arithmetic, memory_errors
from segnas.runtime.cuda_graph_session import CudaGraphSession
from segnas.runtime.package import Package, load, read_package
from segnas.runtime.processor import available_cores, device_name
from segnas.runtime.requirements import chosen_options, defaults, require_fields, require_here
from segnas.runtime.session import Session, require_image
from segnas.runtime.targets import target_on_device, target_on_processor
from segnas.runtime.torch_session import cuda_device
from segnas.target import Target

CUDA_OPTIONS = {"benchmark": ("on", "off"), "device": ("cuda",), "graph": ("on",), "layout": ("channels_last",), "tf32": ("off", "on")}
_FIELDS = {"runtime": ("aotinductor",), "input_contract": ("normalised",)}


class AotInductorSession:
    """One package on the CPU; see `segnas.runtime.session.Session`."""

    def __init__(self, package: Package, target: Target) -> None:
        self.target = target
        self.specification = package.specification
        self._package: Any = load(package)
        self._noise: Tensor | None = None
        self._require_answer()

    def run(self, image: NDArray[np.float32]) -> NDArray[Any]:
        """Labels or logits of a normalised image (N, C, H, W) float32."""
        package = self._open()
        require_image(image, self.specification.input)
        with _threads(self.target.threads):
            return self._answer(package, torch.from_numpy(np.array(image))).numpy()

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` calls in a row, on one fixed random image."""
        package = self._open()
        image = self._image()
        clock, call = time.perf_counter_ns, package.run
        stamps = [0] * (2 * runs)
        with _threads(self.target.threads):
            for index in range(0, 2 * runs, 2):
                stamps[index] = clock()
                answer = call([image])
                stamps[index + 1] = clock()
                del answer
        return tuple((after - before) / 1e6 for before, after in zip(stamps[::2], stamps[1::2], strict=True))

    def close(self) -> None:
        """Give back the package and the image."""
        self._package = self._noise = None

    def _open(self) -> Any:
        if self._package is None:
            raise InputError("this session is closed; open the engine again")
        return self._package

    def _image(self) -> Tensor:
        if self._noise is None:
            self._noise = torch.from_numpy(np.random.default_rng(0).standard_normal(self.specification.input.shape, dtype=np.float32))
        return self._noise

    def _answer(self, package: Any, image: Tensor) -> Tensor:
        try:
            return cast(Tensor, package.run([image])[0])
        except RuntimeError as error:
            raise InputError(f"the engine failed while running: {str(error).splitlines()[0]}; run `segnas export` again") from error

    def _require_answer(self) -> None:
        """The first call: what the package gives is what it says it gives."""
        with _threads(self.target.threads):
            answer = self._answer(self._package, self._image())
        gives = self.specification.output
        found = f"{str(answer.dtype).removeprefix('torch.')} {'x'.join(map(str, answer.shape))}"
        if (str(answer.dtype), tuple(answer.shape)) != (f"torch.{gives.dtype}", gives.shape):
            raise InputError(f"the package says that it gives {gives}, and gave {found}; run `segnas export` again")


def aotinductor_target(height: int, width: int, threads: int = 1, *, output_contract: str = "labels", batch: int = 1) -> Target:
    """The target that this machine's CPU is, compiled for with torch and the C++ compiler as installed.

    InputError for more threads than there are cores to run on, RequirementError without a compiler.
    """
    options = {"compiler": str(require_compiler()), "device": "cpu", **_facts(threads)}
    return target_on_processor(
        "aotinductor", str(torch.__version__), height, width, threads=threads, output_contract=output_contract, batch=batch, options=options
    )


def aotinductor_cuda_target(
    height: int,
    width: int,
    *,
    precision: str = "fp16",
    output_contract: str = "labels",
    batch: int = 1,
    scope: str = "gpu",
    device: DeviceLayer | None = None,
) -> Target:
    """The target that this machine's CUDA device is by AOTInductor; RequirementError where there is no device or no compiler."""
    device = device or cuda_device()
    return target_on_device(
        device.name,
        "aotinductor",
        device.version,
        height,
        width,
        precision=precision,
        output_contract=output_contract,
        batch=batch,
        scope=scope,
        options={**defaults(CUDA_OPTIONS), "compiler": str(require_compiler()), **dict(device.libraries)},
    )


def open_aotinductor(content: bytes, target: Target, sha256: str | None, path: Path | None = None) -> Session:
    """A package of `segnas export`, ready; it is native code, and `sha256` is what vouches for it.

    InputError for a file that is no package or not one of this target, IncompatibleError for one of another machine, device or version,
    RequirementError where this machine lacks what it runs on.
    """
    if target.backend == "aotinductor-cuda":
        return open_on_cuda(content, target, sha256, cuda_device())
    _require_cpu(target)
    return AotInductorSession(read_package(content, target, sha256), target)


def open_on_cuda(content: bytes, target: Target, sha256: str | None, device: DeviceLayer) -> CudaGraphSession:
    """A package for a CUDA device, captured as a CUDA graph there; errors as above, and VerificationError where the graph answers wrongly."""
    chosen = _require_cuda(target, device)
    package = read_package(content, target, sha256)
    with memory_errors(), arithmetic(benchmark=chosen["benchmark"] == "on", tf32=chosen["tf32"] == "on"), torch.no_grad():
        network = load(package, single_threaded=True)
        return CudaGraphSession(lambda image: network.run([image])[0], package.specification.input.shape[1], target, device)


def _facts(threads: int) -> dict[str, str]:
    """Options that are facts of this process: the instruction set that torch's kernels use, and how long a waiting thread spins."""
    facts = {"isa": str(torch.backends.cpu.get_cpu_capability())}
    return facts | ({"spinning": os.environ.get("GOMP_SPINCOUNT", "default")} if threads > 1 else {})


def _require_cpu(target: Target) -> None:
    """It is certain that this process can be that target."""
    facts = _facts(target.threads)
    require_fields(target, "aotinductor", _FIELDS | {"precision": ("fp32",), "scope": ("end_to_end",)})
    chosen_options(target, "aotinductor", {"device": ("cpu",)}, {"compiler": "", **facts})
    require_here(target, device_name(), str(torch.__version__), facts)
    if target.threads > available_cores():
        raise RequirementError(f"the target has {target.threads} threads; {available_cores()} cores can be used here: export with fewer --threads")


def _require_cuda(target: Target, device: DeviceLayer) -> dict[str, str]:
    """The target's options over the defaults, once it is certain that this device is that target."""
    libraries = dict(device.libraries)
    require_fields(target, "aotinductor-cuda", _FIELDS | {"precision": ("fp32", "fp16"), "scope": ("gpu", "end_to_end")})
    require_here(target, device.name, device.version, libraries)
    return chosen_options(target, "aotinductor-cuda", CUDA_OPTIONS, {"compiler": "", **libraries})


@contextmanager
def _threads(count: int) -> Generator[None]:
    """That many threads for torch's own kernels, which are the process's setting; the compiled code has its number inside."""
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)

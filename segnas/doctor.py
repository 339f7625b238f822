"""What this machine can do: devices, runtimes, packages, room on the disk."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from segnas.compiler import Compiler, cpp_compiler
from segnas.gpus import TITLES, code_of, is_in_project_range, releases_for, runs_on, what_to_install
from segnas.runtime.huge_pages import SETTING, huge_pages, huge_pages_allowed
from segnas.target import CUDA_PROVIDER


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked for, what was found, whether it serves, and what to do if not."""

    name: str
    found: str
    ok: bool
    advice: str = ""


def examine() -> tuple[Check, ...]:
    """Look, without changing or measuring anything."""
    return (*_machine(), *_torch(), aotinductor_check(cpp_compiler()), *_onnxruntime(), *_tensorrt(), _camvid())


def _machine() -> tuple[Check, ...]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    version = platform.python_version_tuple()
    python_ok = (3, 11) <= (int(version[0]), int(version[1])) < (3, 14)
    return (
        Check("python", platform.python_version(), python_ok, "" if python_ok else "3.11 to 3.13 is supported"),
        Check("cores", str(cores), True, "" if cores > 1 else "training and timing share one core"),
        Check("free disk", f"{free:.1f} GiB", free > 1, "" if free > 1 else "a run needs about 1 GiB"),
        huge_pages_check(huge_pages(), huge_pages_allowed()),
    )


def huge_pages_check(on: bool, allowed: bool) -> Check:
    """Whether this process has its memory in huge pages, with which ONNX Runtime is some percent faster, or could have."""
    if on:
        return Check("huge pages", "on", True, "tables and engines that are made now hold with them only")
    if not allowed:
        return Check("huge pages", "off: the C library or the kernel gives none", True)
    return Check(
        "huge pages", "off", True, f"{SETTING} before a command puts its memory into them; networks took 4 to 5 % less so: docs/measuring.md"
    )


def _torch() -> tuple[Check, ...]:
    import torch

    threads = Check("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", True)
    if not torch.cuda.is_available():
        return (
            threads,
            Check("cuda device", "none", False, "search and training run on the CPU; --device cuda needs an NVIDIA GPU and a CUDA build"),
        )
    devices = [(torch.cuda.get_device_name(i), ".".join(map(str, torch.cuda.get_device_capability(i)))) for i in range(torch.cuda.device_count())]
    found = Check("cuda device", ", ".join(f"{name} (compute capability {capability})" for name, capability in devices), True)
    if torch.version.cuda is None:  # ROCm, whose architectures have other names
        return (threads, found)
    machine = platform.machine().lower().replace("amd64", "x86_64")
    kernels = (kernels_check(*device, machine, torch.__version__, torch.cuda.get_arch_list()) for device in devices)
    return (threads, found, *kernels, *(runtimes_check(*device, machine) for device in devices))


def kernels_check(name: str, capability: str, machine: str, torch_version: str, architectures: Sequence[str]) -> Check:
    """Whether that build of torch has code for that GPU, by its architectures as torch.cuda.get_arch_list() names them, and else what to install."""
    fitting = [architecture for architecture in architectures if runs_on(code_of(architecture), capability)]
    if fitting:
        return Check("cuda kernels", f"{name}: {' '.join(fitting)} in torch {torch_version}", True)
    found = f"{name}: none for compute capability {capability} in torch {torch_version}, which has {' '.join(architectures) or 'none at all'}"
    return Check("cuda kernels", found, False, what_to_install("torch", capability, machine))


def runtimes_check(name: str, capability: str, machine: str) -> Check:
    """Which runtimes have a release for that GPU within the project's ranges, installed here or not."""
    served = {release.runtime for release in releases_for(capability, machine) if is_in_project_range(release)}
    known = [title for runtime, title in TITLES.items() if runtime in served]
    absent = [title for runtime, title in TITLES.items() if runtime not in served]
    return Check(
        "cuda runtimes",
        f"{name}: {', '.join(known) or 'none known'}",
        bool(known),
        f"docs/gpus.md knows no release for it, within the project's ranges, of {', '.join(absent)}" if absent else "",
    )


def aotinductor_check(compiler: Compiler | None) -> Check:
    """Whether networks can be compiled ahead of time here, with that C++ compiler; to run a package needs none."""
    if compiler is None:
        return Check("aotinductor", "no C++ compiler", False, "--runtime aotinductor compiles: install g++, or name a compiler in CXX")
    return Check("aotinductor", f"compiles with {compiler}", True, "a package runs on a machine like this one only")


def _onnxruntime() -> tuple[Check, Check]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    shown = ", ".join(name.removesuffix("ExecutionProvider") for name in available)
    return Check("onnxruntime", f"{onnxruntime.__version__}: {shown}", True), onnxruntime_cuda_check(available)


def onnxruntime_cuda_check(providers: Sequence[str]) -> Check:
    """Whether this build of ONNX Runtime has the CUDA provider; whether that loads, and takes each node, is proven when an engine is opened."""
    if CUDA_PROVIDER in providers:
        return Check(
            "onnxruntime-cuda", "the CUDA provider is in this build", True, "an engine whose nodes fall to the CPU is refused when it is opened"
        )
    return Check(
        "onnxruntime-cuda",
        f"no {CUDA_PROVIDER} in this build",
        False,
        '--runtime onnxruntime-cuda needs the package onnxruntime-gpu and an NVIDIA GPU: pip install "segnas[cuda]" in an environment of its own',
    )


def _tensorrt() -> tuple[Check, ...]:
    def package(name: str, module: str, install: str, serves: str) -> Check:
        try:
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # of a parent package
            there = False
        if not there:
            return Check(name, "not installed", False, install)
        module = module.partition(".")[0]
        found = sorted(f"{d} {metadata.version(d)}" for d in metadata.packages_distributions().get(module, ()))
        return Check(name, ", ".join(found) or "installed", True, serves)

    anywhere = "`segnas build` makes engines here for RTX GPUs, also without one; running one needs its GPU"
    beside = 'pip install "segnas[tensorrt]"'
    return (
        package("tensorrt-rtx", "tensorrt_rtx", 'pip install "segnas[tensorrt-rtx]"', anywhere),
        package(
            "tensorrt", "tensorrt", 'pip install "segnas[tensorrt]", on a machine with an NVIDIA GPU', "`segnas build` makes engines for the GPU here"
        ),
        package("pycuda", "pycuda", f"engines of TensorRT and TensorRT-RTX run by it: {beside}", "runs engines of TensorRT and TensorRT-RTX"),
        package("cuda-bindings", "cuda.bindings", f"without it TensorRT runs without CUDA graphs: {beside}", "records CUDA graphs of TensorRT"),
    )


def _camvid() -> Check:
    root = os.environ.get("SEGNAS_CAMVID", "")
    if not root:
        return Check("SEGNAS_CAMVID", "not set", False, "set it to the folder of CamVid to run its tests and recipe")
    return Check("SEGNAS_CAMVID", root, Path(root).is_dir(), "" if Path(root).is_dir() else "that folder does not exist")

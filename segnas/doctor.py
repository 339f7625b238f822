"""What this machine can do: devices, runtimes, packages, room on the disk."""

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Check:
    """One line: what was looked for, what was found, whether it serves, and what to do if not."""

    name: str
    found: str
    ok: bool
    advice: str = ""


def examine() -> tuple[Check, ...]:
    """Look, without changing or measuring anything."""
    return (*_machine(), *_torch(), _onnxruntime(), *_tensorrt(), _camvid())


def _machine() -> tuple[Check, ...]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    version = platform.python_version_tuple()
    python_ok = (3, 11) <= (int(version[0]), int(version[1])) < (3, 14)
    return (
        Check("python", platform.python_version(), python_ok, "" if python_ok else "3.11 to 3.13 is supported"),
        Check("cores", str(cores), True, "" if cores > 1 else "training and timing share one core"),
        Check("free disk", f"{free:.1f} GiB", free > 1, "" if free > 1 else "a run needs about 1 GiB"),
    )


def _torch() -> tuple[Check, ...]:
    import torch

    threads = Check("torch", f"{torch.__version__}, {torch.get_num_threads()} threads", True)
    if not torch.cuda.is_available():
        return (
            threads,
            Check("cuda device", "none", False, "search and training run on the CPU; --device cuda needs an NVIDIA GPU and a CUDA build"),
        )
    found = [
        f"{torch.cuda.get_device_name(i)} (compute capability {'.'.join(map(str, torch.cuda.get_device_capability(i)))})"
        for i in range(torch.cuda.device_count())
    ]
    return (threads, Check("cuda device", ", ".join(found), True))


def _onnxruntime() -> Check:
    import onnxruntime

    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    return Check("onnxruntime", f"{onnxruntime.__version__}: {providers}", True)


def _tensorrt() -> tuple[Check, ...]:
    def package(name: str, module: str, install: str) -> Check:
        if importlib.util.find_spec(module) is None:
            return Check(name, "not installed", False, install)
        found = sorted(f"{d} {metadata.version(d)}" for d in metadata.packages_distributions().get(module, ()))
        return Check(name, ", ".join(found) or "installed", True, "builds engines; running one needs its GPU")

    return (
        package("tensorrt-rtx", "tensorrt_rtx", 'pip install "segnas[tensorrt-rtx]"'),
        package("tensorrt", "tensorrt", 'pip install "segnas[tensorrt]", on a machine with an NVIDIA GPU'),
    )


def _camvid() -> Check:
    root = os.environ.get("SEGNAS_CAMVID", "")
    if not root:
        return Check("SEGNAS_CAMVID", "not set", False, "set it to the folder of CamVid to run its tests and recipe")
    return Check("SEGNAS_CAMVID", root, Path(root).is_dir(), "" if Path(root).is_dir() else "that folder does not exist")

"""The target that a CUDA device is by ONNX Runtime: what it depends on, and what of it must be the same here."""

import os
import shutil
import subprocess
from typing import Any, NamedTuple

import onnxruntime as ort

from segnas.errors import RequirementError
from segnas.runtime.requirements import chosen_options, defaults, require_fields, require_here
from segnas.target import CUDA_PROVIDER, Target

OPTIONS = {
    "graph": ("on", "off"),
    "optimisation": ("all", "extended", "basic", "none"),
    "provider": (CUDA_PROVIDER,),
    "search": ("exhaustive", "heuristic", "default"),
    "tf32": ("off", "on"),
}
_FIELDS = {"runtime": ("onnxruntime",), "precision": ("fp32",), "input_contract": ("normalised",), "scope": ("gpu", "end_to_end")}


class CudaFacts(NamedTuple):
    """What a target says of the device, and by which the driver finds it."""

    name: str
    uuid: str


def onnxruntime_cuda_target(
    height: int,
    width: int,
    *,
    precision: str = "fp32",
    output_contract: str = "labels",
    batch: int = 1,
    scope: str = "gpu",
    runtime: Any = ort,
    facts: CudaFacts | None = None,
) -> Target:
    """The target that this machine's CUDA device is, with ONNX Runtime as installed; RequirementError where device or provider is missing."""
    require_provider(runtime)
    device = facts or cuda_facts()
    options = defaults(OPTIONS) | _libraries(runtime)
    target = Target(
        device.name,
        "onnxruntime",
        runtime.__version__,
        precision,
        height,
        width,
        batch=batch,
        output_contract=output_contract,
        scope=scope,
        options=tuple(sorted(options.items())),
    )
    options_here(target, device, runtime)
    return target


def cuda_facts() -> CudaFacts:
    """The first CUDA device that this process may see, by nvidia-smi; RequirementError where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    asked = ["nvidia-smi", "--query-gpu=name,uuid", "--format=csv,noheader", "-i", visible]
    if not visible or shutil.which(asked[0]) is None:
        raise RequirementError("an NVIDIA GPU with its driver is needed, and nvidia-smi is not here or no device is visible: see `segnas doctor`")
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise RequirementError(f"nvidia-smi finds no GPU {visible!r} ({error}): see `segnas doctor`") from None
    name, _, uuid = found.splitlines()[0].rpartition(", ")
    return CudaFacts(name, uuid)


def _libraries(runtime: Any) -> dict[str, str]:
    """Versions of what computes beneath ONNX Runtime, as far as its build says them."""
    cuda = getattr(runtime, "cuda_version", "")
    return {"cuda": str(cuda)} if cuda else {}


def require_provider(runtime: Any) -> None:
    """RequirementError, with the package that has it, where this build of ONNX Runtime has no CUDA provider."""
    available = runtime.get_available_providers()
    if CUDA_PROVIDER not in available:
        raise RequirementError(
            f"provider {CUDA_PROVIDER!r} was asked for; this build of onnxruntime {runtime.__version__} has {', '.join(available)}: `pip install "
            "segnas[cuda]` (package onnxruntime-gpu) in an environment of its own, without the package onnxruntime"
        )


def options_here(target: Target, device: CudaFacts, runtime: Any) -> dict[str, str]:
    """The target's options over the defaults, once it is certain that a session here can be that target.

    InputError for a field or option that it does not serve, IncompatibleError for another device or version.
    """
    require_fields(target, "onnxruntime-cuda", _FIELDS)
    libraries = _libraries(runtime)
    require_here(target, device.name, runtime.__version__, libraries)
    return chosen_options(target, "onnxruntime-cuda", OPTIONS, libraries)

"""The target that a CUDA device is by a provider of ONNX Runtime: what it depends on, and what of it must be the same here."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnxruntime as ort

from segnas.errors import RequirementError
from segnas.runtime.requirements import Choices, chosen_options, defaults, require_fields, require_here
from segnas.runtime.targets import target_on_device
from segnas.target import CUDA_PROVIDER, Target

PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True, slots=True)
class Provider:
    """One way of ONNX Runtime onto a CUDA device.

    `name` is ONNX Runtime's, `backend` ours; `options` are the target's, the first of each the default; `asked(options, precision, graph)` says them
    as the provider takes them; `needs` what must be installed for it.
    """

    name: str
    backend: str
    options: Choices
    asked: Callable[[Mapping[str, str], str, bool], dict[str, str]]
    needs: str


def _asked_of_cuda(chosen: Mapping[str, str], precision: str, graph: bool) -> dict[str, str]:
    return {
        "cudnn_conv_algo_search": chosen["search"].upper(),
        "device_id": "0",
        "enable_cuda_graph": "1" if graph else "0",
        "use_tf32": "1" if chosen["tf32"] == "on" else "0",
    }


CUDA = Provider(
    CUDA_PROVIDER,
    "onnxruntime-cuda",
    {
        "graph": ("on", "off"),
        "optimisation": ("all", "extended", "basic", "none"),
        "provider": (CUDA_PROVIDER,),
        "search": ("exhaustive", "heuristic", "default"),
        "tf32": ("off", "on"),
    },
    _asked_of_cuda,
    "CUDA and cuDNN of the versions that onnxruntime-gpu was built for",
)


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
    input_contract: str = "normalised",
    provider: Provider = CUDA,
    runtime: Any = ort,
    facts: CudaFacts | None = None,
) -> Target:
    """The target that this machine's CUDA device is, with ONNX Runtime as installed; RequirementError where device or provider is missing."""
    require_provider(runtime, provider)
    device = facts or cuda_facts()
    target = target_on_device(
        device.name,
        "onnxruntime",
        runtime.__version__,
        height,
        width,
        precision=precision,
        input_contract=input_contract,
        output_contract=output_contract,
        batch=batch,
        scope=scope,
        options=defaults(provider.options) | libraries_of(runtime),
    )
    options_here(target, device, runtime, provider)
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


def libraries_of(runtime: Any) -> dict[str, str]:
    """Versions of what computes beneath ONNX Runtime, as far as its build says them."""
    cuda = getattr(runtime, "cuda_version", "")
    return {"cuda": str(cuda)} if cuda else {}


def require_provider(runtime: Any, provider: Provider = CUDA) -> None:
    """RequirementError, with the package that has it, where this build of ONNX Runtime has no such provider."""
    available = runtime.get_available_providers()
    if provider.name not in available:
        raise RequirementError(
            f"provider {provider.name!r} was asked for; this build of onnxruntime {runtime.__version__} has {', '.join(available)}: `pip install "
            "segnas[cuda]` (package onnxruntime-gpu) in an environment of its own, without the package onnxruntime"
        )


def options_here(target: Target, device: CudaFacts, runtime: Any, provider: Provider = CUDA) -> dict[str, str]:
    """The target's options over the defaults, once it is certain that a session here can be that target.

    InputError for a field or option that it does not serve, IncompatibleError for another device or version.
    """
    require_fields(target, provider.backend, {"runtime": ("onnxruntime",), "precision": PRECISIONS, "scope": ("gpu", "end_to_end")})
    libraries = libraries_of(runtime)
    require_here(target, device.name, runtime.__version__, libraries)
    return chosen_options(target, provider.backend, provider.options, libraries)

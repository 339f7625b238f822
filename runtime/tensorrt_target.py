"""The target that a CUDA device is by TensorRT or TensorRT-RTX: what a time of it depends on."""

from segnas.runtime.pycuda_device import PycudaDevice
from segnas.runtime.requirements import chosen_options, defaults, require_fields, require_here
from segnas.runtime.targets import target_on_device
from segnas.target import PRECISIONS, Target
from segnas.tensorrt_api import Api, open_api

OPTIONS = {"graph": ("auto", "on", "off")}
"""`graph`: whether the engine is replayed as a CUDA graph; `auto` takes one where it can be had, and the conditions say whether it was."""

FACTS = ("capability",)


def tensorrt_target(
    runtime: str,
    height: int,
    width: int,
    *,
    precision: str = "fp16",
    input_contract: str = "normalised",
    output_contract: str = "labels",
    batch: int = 1,
    scope: str = "gpu",
    api: Api | None = None,
    device: PycudaDevice | None = None,
) -> Target:
    """The target that this machine's CUDA device is, with `tensorrt` or `tensorrt-rtx` as installed; RequirementError where either is missing."""
    api = api or open_api(runtime)
    here = device or PycudaDevice()
    try:
        return target_on_device(
            here.name,
            runtime,
            api.version,
            height,
            width,
            precision=precision,
            input_contract=input_contract,
            output_contract=output_contract,
            batch=batch,
            scope=scope,
            options=defaults(OPTIONS) | dict(here.libraries),
        )
    finally:
        if device is None:
            here.close()


def options_here(target: Target, version: str, device: PycudaDevice) -> dict[str, str]:
    """The target's options over the defaults, once it is certain that a session here can be that target.

    An engine of TensorRT is one GPU model's; one of TensorRT-RTX serves every GPU whose capability it was built for, and TensorRT-RTX itself says
    whether this one is among them. IncompatibleError for another device or version.
    """
    fields = {"runtime": (target.runtime,), "precision": PRECISIONS, "scope": ("gpu", "end_to_end")}
    require_fields(target, target.runtime, fields)
    portable = target.runtime == "tensorrt-rtx"
    facts = {} if portable else dict(device.libraries)
    require_here(target, target.device if portable else device.name, version, facts)
    return chosen_options(target, target.runtime, OPTIONS, dict.fromkeys(FACTS, ""))

"""What of a target is a fact of this machine, and how an engine's target differs from it: asked before an engine of another machine is timed."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from segnas.errors import IncompatibleError, UsageError
from segnas.runtime.huge_pages import OPTION as HUGE_PAGES
from segnas.runtime.huge_pages import SETTING, huge_pages
from segnas.runtime.processor import available_cores, device_name
from segnas.target import Target

Difference = tuple[str, str, str]
"""A field, what the engine's target says, and what is here."""

OFF = "off"
"""What a target says of huge pages that says nothing of them."""


def facts_here(target: Target) -> dict[str, str]:
    """What this machine is for the backend of that target: device, version of the runtime, and options that are facts.

    RequirementError where the backend cannot run here at all: its package, provider or GPU is missing.
    """
    backend = target.backend
    if backend in ("tensorrt", "tensorrt-rtx"):
        return _tensorrt(backend)
    if backend in ("onnxruntime-cuda", "onnxruntime-tensorrt"):
        from segnas.runtime.onnxruntime_cuda_target import CUDA, cuda_facts, libraries_of, require_provider

        if backend == "onnxruntime-tensorrt":
            from segnas.runtime.onnxruntime_tensorrt_session import TENSORRT as provider
        else:
            provider = CUDA
        import onnxruntime

        require_provider(onnxruntime, provider)
        return {"device": cuda_facts().name, "runtime_version": str(onnxruntime.__version__), **libraries_of(onnxruntime)}
    if backend in ("torch", "aotinductor-cuda"):
        from segnas.runtime.torch_session import cuda_device

        device = cuda_device()
        return {"device": device.name, "runtime_version": device.version, **dict(device.libraries)}
    memory = {HUGE_PAGES: "on" if huge_pages() else OFF} if backend == "onnxruntime" else {}
    return {"device": device_name(), "runtime_version": _version(backend), **memory}


def differences(target: Target, facts: Mapping[str, str]) -> tuple[Difference, ...]:
    """Where that target is not this machine: facts that are other ones, and more threads than there are cores to run on."""
    given = {"device": target.device, "runtime_version": target.runtime_version, HUGE_PAGES: OFF, **dict(target.options)}
    if target.runtime == "tensorrt-rtx":
        del given["device"]  # its engines serve every GPU of some capabilities; whether this one is among them, opening it will tell
    found = [(name, given[name], here) for name, here in facts.items() if name in given and given[name] != here]
    if target.threads > available_cores():
        found.append(("threads", str(target.threads), str(available_cores())))
    return tuple(found)


def target_here(target: Target, facts: Mapping[str, str], allowed: Collection[str]) -> tuple[Target, tuple[Difference, ...]]:
    """The target as it is on this machine, and what of it was allowed to differ; IncompatibleError, naming the fields, for any other difference.

    UsageError for a field that is none: those that there are, are listed.
    """
    known = [*facts, "threads"]
    if unknown := sorted(set(allowed) - set(known)):
        raise UsageError(f"--allow-mismatch {unknown[0]} was given; fields of this engine that depend on the machine are {', '.join(known)}")
    found = differences(target, facts)
    refused = [difference for difference in found if difference[0] not in allowed]
    if refused:
        shown = "; ".join(f"{name}: the engine has {there!r}, here is {here!r}" for name, there, here in refused)
        flags = " ".join(f"--allow-mismatch {name}" for name, _, _ in refused)
        memory = f" ({SETTING} before the command is what gives huge pages)" if any(name == HUGE_PAGES for name, _, _ in refused) else ""
        raise IncompatibleError(
            f"the engine was made for another machine ({shown}); make one here with `segnas export`{memory}, or give {flags} to time it all the same"
        )
    changed = {name: here for name, _, here in found} | ({"device": facts["device"]} if target.runtime == "tensorrt-rtx" else {})
    options = {name: changed.get(name, value) for name, value in (*target.options, (HUGE_PAGES, facts.get(HUGE_PAGES, OFF)))}
    if options[HUGE_PAGES] == OFF:
        del options[HUGE_PAGES]
    fields = {name: changed[name] for name in ("device", "runtime_version") if name in changed}
    return replace(target, options=tuple(sorted(options.items())), threads=min(target.threads, available_cores()), **fields), found


def _tensorrt(runtime: str) -> dict[str, str]:
    from segnas.runtime.pycuda_device import PycudaDevice
    from segnas.tensorrt_api import open_api

    api, device = open_api(runtime), PycudaDevice()
    try:
        found = {"device": device.name, "runtime_version": api.version}
        return found if runtime == "tensorrt-rtx" else found | dict(device.libraries)
    finally:
        device.close()


def _version(backend: str) -> str:
    if backend == "aotinductor":
        import torch

        return str(torch.__version__)
    import onnxruntime

    return str(onnxruntime.__version__)

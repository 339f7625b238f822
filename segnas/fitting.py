"""Fitting: what an engine of TensorRT was built with, field by field, against what is here; nothing of the engine is opened.

NVIDIA gives TensorRT no check of its own ("no separate compatibility preflight API"): what an engine needs is therefore written down when it is
built, and compared here. Each check passed, failed or was not made, with the reason; what was not made is never told as passed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from segnas.building import source_of
from segnas.cuda_driver import Device, Driver, cuda_driver
from segnas.errors import RequirementError
from segnas.gpus import version_numbers
from segnas.report import Engine
from segnas.tensorrt_api import Api, here, open_api

GPU = "GPU"
Status = Literal["passed", "failed", "not checked"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check: what was looked at, how it ended, and the facts, or why it was not made."""

    check: str
    status: Status
    detail: str

    def __str__(self) -> str:
        return f"{self.status:<12} {self.check}: {self.detail}"


def fit_checks(engine: Engine, artefact: Path) -> Iterator[Outcome]:
    """Every check of an engine of TensorRT or TensorRT-RTX: release, system, processor, GPU, driver, the engine's head, and its ONNX file."""
    build, machine = dict(engine.build), here()
    try:
        api = open_api(engine.kind)
        yield _release(engine, api, build.get("version_compatible") == "on")
    except RequirementError as error:
        api = None
        yield Outcome("release", "not checked", str(error))
    yield _system(engine, build.get("os", "unknown"), machine["os"])
    yield _same("processor", build.get("machine", "unknown"), machine["machine"])
    driver = cuda_driver()
    device = driver.devices[0] if driver is not None and driver.devices else None
    yield _capability(engine, device)
    if engine.kind == "tensorrt":
        yield _gpu_like(build, device)
    yield _driver(build, driver)
    if engine.kind == "tensorrt-rtx":
        yield _validity(api, artefact, engine, driver)
    source = source_of(artefact, engine)
    missing = f"{build.get('onnx', 'it')} (sha256 {engine.source_sha256[:12]}) does not lie beside the engine; only --run needs it"
    yield Outcome("source", "not checked", missing) if source is None else Outcome("source", "passed", f"{source.name} lies beside it")


def _release(engine: Engine, api: Api, version_compatible: bool) -> Outcome:
    """TensorRT opens what the very same release built; with version compatibility also what an earlier one of its major version did."""
    built, found = engine.target.runtime_version, api.version
    if version_compatible and built.split(".")[0] == found.split(".")[0]:
        older = version_numbers(built) <= version_numbers(found)
        return Outcome("release", "passed" if older else "failed", f"built with {built} to run on it and later ones, here is {found}")
    return _same("release", built, found)


def _system(engine: Engine, built: str, found: str) -> Outcome:
    """Engines of TensorRT stay on their system; those of TensorRT-RTX run on Windows and Linux (NVIDIA's page on engines built without a GPU)."""
    if engine.kind == "tensorrt-rtx" and {built, found} == {"Linux", "Windows"}:
        return Outcome("system", "passed", f"built on {built}, here is {found}; engines of TensorRT-RTX run on both")
    return _same("system", built, found)


def _capability(engine: Engine, device: Device | None) -> Outcome:
    wanted = ", ".join(engine.capabilities)
    if device is None:
        return Outcome(GPU, "not checked", f"{_gpu(device)}; the engine is for compute capability {wanted}")
    newer = dict(engine.build).get("hardware_compatibility") == "ampere+" and version_numbers(device.compute_capability) >= (8, 0)
    if newer or device.compute_capability in engine.capabilities:
        return Outcome(GPU, "passed", f"{device.name}, compute capability {device.compute_capability}")
    return Outcome(GPU, "failed", f"built with compute capability {wanted}, here is {device.compute_capability} ({device.name})")


def _gpu_like(build: dict[str, str], device: Device | None) -> Outcome:
    """An engine that TensorRT tuned runs on the GPU model that it was tuned on, unless it was built to be compatible with others."""
    if device is None:
        return Outcome("GPU model", "not checked", _gpu(device))
    if build.get("hardware_compatibility", "none") != "none":
        return Outcome("GPU model", "passed", f"{device.name}; built to run on {build['hardware_compatibility']}")
    pairs = {"gpu": device.name, "gpu_bus_bits": str(device.bus_bits), "gpu_l2_bytes": str(device.l2_bytes), "gpu_processors": str(device.processors)}
    differing = [f"{name} was {build.get(name, 'unknown')}, here is {value}" for name, value in pairs.items() if build.get(name) != value]
    return Outcome("GPU model", "failed" if differing else "passed", "; ".join(differing) or device.name)


def _driver(build: dict[str, str], driver: Driver | None) -> Outcome:
    """The driver serves the CUDA that the engine was tuned under, or at least the major version that its runtime was made for."""
    wanted = build.get("cuda_driver") or build.get("cuda", "unknown")
    if driver is None:
        return Outcome("driver", "not checked", "no NVIDIA driver here")
    if not wanted[:1].isdecimal():
        return Outcome("driver", "not checked", f"the manifest does not say which CUDA is needed; the driver here serves {driver.cuda}")
    enough = version_numbers(driver.cuda) >= version_numbers(wanted)
    return Outcome("driver", "passed" if enough else "failed", f"CUDA {wanted} or newer is needed, here is {driver.cuda}")


def _validity(api: Api | None, artefact: Path, engine: Engine, driver: Driver | None) -> Outcome:
    """What TensorRT-RTX itself says of the engine's head. Without a driver it calls every engine invalid: only a malformed one is told apart."""
    if api is None:
        return Outcome("engine head", "not checked", "TensorRT-RTX is not installed here")
    if api.version != engine.target.runtime_version:
        return Outcome("engine head", "not checked", f"only release {engine.target.runtime_version} can read it")
    with artefact.open("rb") as stream:
        validity, bits = api.module.Runtime(api.logger).get_engine_validity(stream.read())
    names = [name for name, value in api.module.EngineInvalidityDiagnostics.__members__.items() if int(value) & int(bits)]
    if "MALFORMED_ENGINE" in names:
        return Outcome("engine head", "failed", "TensorRT-RTX calls it malformed")
    if driver is None or not driver.devices:
        return Outcome("engine head", "not checked", "TensorRT-RTX decides it on the GPU only, and there is none here")
    if validity.name == "INVALID":
        return Outcome("engine head", "failed", f"TensorRT-RTX calls it invalid here: {', '.join(names) or 'it does not say why'}")
    return Outcome("engine head", "passed", validity.name.lower())


def _gpu(device: Device | None) -> str:
    return "no NVIDIA GPU here" if device is None else f"here is {device.name} ({device.compute_capability})"


def _same(check: str, built: str, found: str) -> Outcome:
    return Outcome(check, "passed", found) if built == found else Outcome(check, "failed", f"built with {built}, here is {found}")

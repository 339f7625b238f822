"""Engines of probes: networks that a latency table times by TensorRT or TensorRT-RTX, built for the GPU here and kept by what they depend on.

Auxiliary streams are off, so that what one stream was asked to do is what takes the time, and TF32 is off, so that fp32 means fp32. TensorRT chooses
its kernels by timing them: builds on one GPU share a timing cache, so that two networks with one operation in common hold the same kernel of it.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from segnas.arch import Architecture, canonical_json
from segnas.cuda_driver import Device
from segnas.errors import RequirementError
from segnas.export.graph import onnx_from_network
from segnas.export.kept import keep, kept
from segnas.export.templates import cache_folder
from segnas.export.tensorrt_build import engine_from_onnx
from segnas.export.tensorrt_settings import BuildSettings
from segnas.network import initialised
from segnas.target import Target
from segnas.tensorrt_api import Api

Progress = Callable[[int, int], None]
CACHE_NAME = "timing.cache"
WORKSPACE_MIB = 1024
"""The same for every engine: what TensorRT may choose from depends on it."""


def probe_engine(content: bytes, api: Api, device: Device | None, *, cache: Path | None = None) -> bytes:
    """The engine of an ONNX file for the GPU here, from the cache folder where it is there.

    `cache` is the folder (default `engines` in `SEGNAS_CACHE`, else in ~/.cache/segnas), with a folder for each GPU and release. RequirementError
    without a GPU; other errors are those of `engine_from_onnx`.
    """
    if device is None:
        raise RequirementError(f"engines that are timed by {api.title} are built on their GPU, and there is none here: see `segnas doctor`")
    folder = engines_folder(api, device, cache)
    settings = _settings(api, folder)
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.engine"
    if (found := kept(path)) is not None:
        return found
    capabilities = (device.compute_capability,)
    built = engine_from_onnx(content, api, capabilities=capabilities, settings=settings, device=device)
    keep(path, built.content)
    return built.content


def build_probes(
    probes: Sequence[tuple[Architecture, Target]], api: Api, device: Device | None, *, cache: Path | None = None, progress: Progress | None = None
) -> None:
    """Build the engines of networks with random weights into the cache folder, one after the other: the builder times kernels on the same GPU.

    To be called before anything is timed; `progress(done, total)` counts them. Errors are those of `probe_engine`.
    """
    jobs = list(dict.fromkeys(probes))
    for done, (architecture, target) in enumerate(jobs, 1):
        probe_engine(onnx_from_network(initialised(architecture, 0).eval(), target), api, device, cache=cache)
        if progress is not None:
            progress(done, len(jobs))


def timing_cache_of(api: Api, device: Device, *, cache: Path | None = None) -> bytes:
    """What the builds for that GPU have timed so far; nothing for TensorRT-RTX, which times nothing when it builds."""
    path = engines_folder(api, device, cache) / CACHE_NAME
    return path.read_bytes() if path.is_file() else b""


def engines_folder(api: Api, device: Device, cache: Path | None = None) -> Path:
    """Where the engines for that GPU by that release are kept."""
    parts = [api.runtime, api.version, device.name, device.compute_capability, device.processors, device.memory_bytes]
    return (cache or cache_folder().with_name("engines")) / hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


def _settings(api: Api, folder: Path) -> BuildSettings:
    kept = None if api.is_rtx else folder / CACHE_NAME
    return BuildSettings(workspace_mib=WORKSPACE_MIB, auxiliary_streams=0, verbosity="none", timing_cache=kept)

"""ONNX Runtime on a CUDA device, by its CUDA or its TensorRT provider: the one asked for, proven, or an error; never a silent fall to the CPU.

Each engine is first opened under the profiler, run, and held to its nodes' providers (`placement`); then opened again without it, by default with
ONNX Runtime's own CUDA graph, whose answers are compared with those of the profiled session. Image and answer are bound on the device, at addresses
that stay. A run is over when ONNX Runtime has waited for the device, and is timed by the host's clock: its launch is in it. This path has been tested
on a simulated provider only, not on a real GPU yet.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from segnas.errors import InputError, RequirementError, VerificationError
from segnas.runtime.gpu_samples import GpuSamples
from segnas.runtime.nvml import Clocks, nvml_clocks
from segnas.runtime.onnxruntime_cuda_target import CUDA, CudaFacts, Provider, cuda_facts, options_here, require_provider
from segnas.runtime.onnxruntime_session import session_options, specification_of, translated
from segnas.runtime.placement import Placement, require_placement
from segnas.runtime.session import agreement, noise, require_image, require_target
from segnas.target import Target

LEAST_AGREEMENT = 0.999  # share of values that the timed session and the profiled one must have in common
_TOLERANCES = {"fp32": 1e-3, "fp16": 1e-2, "int8": 1e-2}  # of the largest logit: the two sessions may choose other kernels
_CAPTURE_RUNS = 3  # ONNX Runtime captures within the first runs


class OnnxRuntimeCudaSession:
    """One ONNX engine on a CUDA device; see `segnas.runtime.session.Session`, and `GpuSamples` for what a sample is.

    Of scope "gpu", image and answer stay on the device; of "end_to_end", a query copies the image there and the answer back. `runtime` is the module
    onnxruntime: the tests give a simulated one.
    """

    def __init__(self, content: bytes, target: Target, *, provider: Provider = CUDA, runtime: Any = ort, facts: CudaFacts | None = None) -> None:
        require_provider(runtime, provider)
        device = facts or cuda_facts()
        chosen = options_here(target, device, runtime, provider)
        if not content:
            raise InputError("the engine is empty (0 bytes); run `segnas export` again")
        self.target = target
        way = _Way(target, provider, chosen, runtime)
        self.placement, image, expected = _profiled(content, way)
        session = _opened(content, way)
        self.specification = specification_of(session)
        require_target(self.specification, target)
        self._session: Any = session
        self._bind(runtime)
        self._verify(image, expected, chosen["graph"])
        self._holds_noise = False
        self._noise = noise(self.specification.input, 0)
        self._samples = GpuSamples(_HostClock(nvml_clocks(device.uuid)), target.scope, replay=self._replay, query=self._query, host_waits=True)

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """Labels or logits of an image as the target's input contract has it."""
        self._open()
        require_image(image, self.specification.input)
        self._holds_noise = False
        return self._answer(image)

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` samples in a row, on one fixed random image."""
        self._open()
        with translated("the engine failed while running"):
            if not self._holds_noise:
                self._image.update_inplace(self._noise)
                self._holds_noise = True
            return self._samples.take(runs)

    def close(self) -> None:
        """Give back the session and its buffers on the device."""
        self._session = self._binding = self._image = self._output = None

    @property
    def runs_per_sample(self) -> int:
        """How many runs a sample is the mean of."""
        return self._samples.runs_per_sample

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """What the samples were taken under, and where the nodes ran."""
        return tuple(sorted((*self._samples.conditions, *self.placement.conditions)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the numbers must be told."""
        copies = self.placement.copies
        told = f"the engine copies between the devices within a run: {', '.join(map(str, copies))}"
        return (*self._samples.warnings, *([told] if copies else []))

    def _open(self) -> Any:
        if self._session is None:
            raise InputError("this session is closed; open the engine again")
        return self._session

    def _bind(self, runtime: Any) -> None:
        """Image and answer on the device, at addresses that stay."""
        reads, gives = self.specification.input, self.specification.output
        with translated("the GPU's memory cannot be had"):
            self._image: Any = runtime.OrtValue.ortvalue_from_numpy(np.zeros(reads.shape, reads.dtype), "cuda", 0)
            self._output: Any = runtime.OrtValue.ortvalue_from_shape_and_type(list(gives.shape), np.dtype(gives.dtype).type, "cuda", 0)
            self._binding: Any = self._session.io_binding()
            self._binding.bind_ortvalue_input(reads.name, self._image)
            self._binding.bind_ortvalue_output(gives.name, self._output)

    def _replay(self, times: int) -> None:
        session, binding = self._session, self._binding
        for _ in range(times):
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

    def _query(self) -> None:
        self._answer(self._noise)

    def _answer(self, image: NDArray[Any]) -> NDArray[Any]:
        with translated("the engine failed while running"):
            self._image.update_inplace(np.ascontiguousarray(image))
            self._replay(1)
            return cast(NDArray[Any], self._output.numpy())

    def _verify(self, image: NDArray[Any], expected: NDArray[Any], graph: str) -> None:
        """Run until ONNX Runtime has captured its graph, on another image; then the answer must be the profiled session's."""
        for _ in range(_CAPTURE_RUNS):
            self._answer(np.zeros_like(image))
        agreed = agreement(self._answer(image), expected, _TOLERANCES[self.target.precision])
        if agreed < LEAST_AGREEMENT:
            raise VerificationError(
                f"the timed session (CUDA graph {graph}) agrees with the profiled one in {agreed:.2%} of the values; at least "
                f"{LEAST_AGREEMENT:.1%} are needed: it would give wrong answers"
            )


class _HostClock:
    """`GpuClock` for a runtime that waits for the device in each call: an event is the host's time."""

    def __init__(self, clocks: Callable[[], Clocks | None]) -> None:
        self._clocks = clocks

    def event(self) -> float:
        return self.host_ms()

    def elapsed_ms(self, first: float, last: float) -> float:
        return last - first

    def synchronise(self) -> None:
        return

    def host_ms(self) -> float:
        return time.perf_counter_ns() / 1e6

    def clocks(self) -> Clocks | None:
        return self._clocks()


def open_onnxruntime_cuda(content: bytes, target: Target, sha256: str | None = None, path: Path | None = None) -> OnnxRuntimeCudaSession:
    """An ONNX engine on the CUDA device here. Errors are those of `open_session`, and VerificationError where a node that computes features runs
    on the CPU, or the captured graph answers wrongly.
    """
    return OnnxRuntimeCudaSession(content, target)


class _Way(NamedTuple):
    """How an engine is opened: by which provider, with which options, of which onnxruntime."""

    target: Target
    provider: Provider
    chosen: Mapping[str, str]
    runtime: Any


def _opened(content: bytes, way: _Way, trace: Path | None = None) -> Any:
    """A session on the provider with these options in force; under the profiler, and without a CUDA graph, where `trace` says so."""
    name, runtime = way.provider.name, way.runtime
    options = session_options(way.target.threads, way.chosen["optimisation"])
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(trace)
    asked = way.provider.asked(way.chosen, way.target.precision, trace is None and way.chosen["graph"] == "on")
    with translated("onnxruntime cannot open this engine on the CUDA device"):
        session = runtime.InferenceSession(content, options, providers=[(name, asked)], enable_fallback=0)
    providers = session.get_providers()
    if not providers or providers[0] != name:
        raise RequirementError(
            f"provider {name!r} was asked for, and onnxruntime fell back to {', '.join(providers) or 'nothing'}: its libraries cannot be loaded "
            f"({way.provider.needs} are needed): see `segnas doctor`"
        )
    held = session.get_provider_options().get(name, {})
    refused = [f"{option}={held[option]}" for option, value in asked.items() if option in held and _plain(held[option]) != _plain(value)]
    if refused:
        raise RequirementError(f"onnxruntime {runtime.__version__} opened the engine with {', '.join(refused)} instead of what was asked for")
    return session


def _plain(value: object) -> str:
    """An option's value as both sides may spell it: the TensorRT provider takes True and tells 1."""
    text = str(value).upper()
    return {"TRUE": "1", "FALSE": "0"}.get(text, text)


def _profiled(content: bytes, way: _Way) -> tuple[Placement, NDArray[Any], NDArray[Any]]:
    """Where the nodes of that engine run, a random image, and what it answers to it, by a session of its own under the profiler."""
    with tempfile.TemporaryDirectory(prefix="segnas-placement-") as folder:
        session = _opened(content, way, Path(folder) / "trace")
        reads = specification_of(session).input
        image = noise(reads, 1)
        with translated("the engine failed while running"):
            answer = session.run(None, {reads.name: image})[0]
        path = Path(session.end_profiling())
        try:
            trace = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequirementError(f"onnxruntime's profile cannot be read ({error}); is there room on the disk?") from None
    return require_placement(trace, way.provider.name), image, answer

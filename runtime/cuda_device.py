"""The device layer: what a session needs of CUDA, on torch.cuda."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from segnas.errors import RequirementError
from segnas.runtime.nvml import Clocks, GpuClock, nvml_clocks

_WARMUP_RUNS = 3


class Graph(Protocol):
    """Work that was captured once; `output` is where each replay leaves its answer."""

    @property
    def output(self) -> Tensor:
        """The static output."""
        ...

    def replay(self, times: int) -> None:
        """Enqueue it that often; returns at once."""
        ...

    def release(self) -> None:
        """Give back the graph and its memory."""
        ...


class DeviceLayer(GpuClock, Protocol):
    """What a session needs of CUDA, on one stream of its own; the tests give a simulated device."""

    @property
    def name(self) -> str:
        """The device's name."""
        ...

    @property
    def version(self) -> str:
        """Version of torch, with its build."""
        ...

    @property
    def libraries(self) -> tuple[tuple[str, str], ...]:
        """Versions of what computes beneath torch, sorted: ("cuda", "12.8")."""
        ...

    def place(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The module itself, moved to the device in that type, channels last."""
        ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, on_host: bool = False) -> Tensor:
        """A tensor whose address stays: on the device, or in the host's page-locked memory."""
        ...

    def fill_noise(self, tensor: Tensor, seed: int) -> None:
        """Fill a tensor of the device with normal noise, the same for the same seed."""
        ...

    def copy(self, source: Tensor, destination: Tensor) -> None:
        """Enqueue a copy between host and device."""
        ...

    def call(self, function: Callable[[], Tensor]) -> Tensor:
        """A normal run on the stream, finished when it returns."""
        ...

    def capture(self, function: Callable[[], Tensor]) -> Graph:
        """Run it a few times to warm up, then record it."""
        ...


class CudaDevice:
    """`DeviceLayer` on torch.cuda; RequirementError where there is no CUDA device."""

    def __init__(self, index: int | None = None) -> None:
        if not torch.cuda.is_available():
            raise RequirementError(
                f"PyTorch on a GPU needs an NVIDIA GPU and a CUDA build of torch; torch {torch.__version__} sees none here: run `segnas doctor`, or "
                "give --runtime onnxruntime"
            )
        self._device = torch.device("cuda", torch.cuda.current_device() if index is None else index)
        self._stream = torch.cuda.Stream(self._device)
        self._clocks = nvml_clocks(str(torch.cuda.get_device_properties(self._device).uuid))
        self.name = torch.cuda.get_device_name(self._device)
        self.version = str(torch.__version__)
        cudnn = torch.backends.cudnn.version() or 0
        self.libraries = (("cuda", str(torch.version.cuda)), ("cudnn", f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"))

    def place(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The module itself, on the device in that type, channels last."""
        with torch.cuda.stream(self._stream):
            placed = module.to(device=self._device, dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.synchronise()
        return placed

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, on_host: bool = False) -> Tensor:
        """On the device, or page-locked."""
        return torch.empty(*shape, dtype=dtype, pin_memory=True) if on_host else torch.empty(*shape, dtype=dtype, device=self._device)

    def fill_noise(self, tensor: Tensor, seed: int) -> None:
        """Standard normal values."""
        with torch.cuda.stream(self._stream), torch.no_grad():
            tensor.normal_(generator=torch.Generator(self._device).manual_seed(seed))
        self.synchronise()

    def copy(self, source: Tensor, destination: Tensor) -> None:
        """Enqueue a copy."""
        with torch.cuda.stream(self._stream), torch.no_grad():
            destination.copy_(source, non_blocking=True)

    def call(self, function: Callable[[], Tensor]) -> Tensor:
        """A run on the stream, finished."""
        with torch.cuda.stream(self._stream), torch.no_grad():
            result = function()
        self.synchronise()
        return result

    def capture(self, function: Callable[[], Tensor]) -> Graph:
        """Three runs on the stream, which also choose the kernels, and one that is recorded."""
        for _ in range(_WARMUP_RUNS):
            self.call(function)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            output = function()
        self.synchronise()
        return _CudaGraph(graph, output, self._stream)

    def event(self) -> torch.cuda.Event:
        """Recorded on the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def elapsed_ms(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Between two events, by the device's clock."""
        return first.elapsed_time(last)

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def host_ms(self) -> float:
        """time.perf_counter."""
        return time.perf_counter_ns() / 1e6

    def clocks(self) -> Clocks | None:
        """By NVML."""
        return self._clocks()


class _CudaGraph:
    def __init__(self, graph: torch.cuda.CUDAGraph, output: Tensor, stream: torch.cuda.Stream) -> None:
        self._graph = graph
        self._stream = stream
        self.output = output

    def replay(self, times: int) -> None:
        replay = self._graph.replay
        with torch.cuda.stream(self._stream):
            for _ in range(times):
                replay()

    def release(self) -> None:
        self._stream.synchronize()
        self._graph.reset()
        self.output = torch.empty(0)


@contextmanager
def arithmetic(*, benchmark: bool, tf32: bool) -> Generator[None]:
    """How cuDNN chooses its kernels meanwhile; what is captured keeps them."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=tf32):
        yield


@contextmanager
def memory_errors() -> Generator[None]:
    """RequirementError where the device's memory does not suffice."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise RequirementError(f"the GPU's memory does not suffice: {str(error).splitlines()[0]}") from None

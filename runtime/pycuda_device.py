"""The device layer of TensorRT: a CUDA device by pycuda, on the device's primary context, which torch and others share.

Never `pycuda.autoinit`: that makes a context of its own, in which neither torch nor TensorRT finds its memory (inducer/pycuda #285). The context is
current only while a session is at work (`active`), in whichever thread that is. pycuda knows no CUDA graphs; they are recorded by cuda-bindings, the
layer beneath cuda-core, on pycuda's stream. This path has been tested on a simulated driver only, not on a real GPU yet.
"""

import importlib
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segnas.errors import RequirementError
from segnas.runtime.nvml import Clocks, driver_version, nvml_clocks

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for the default stream


class NoGraph(Exception):
    """Work could not be recorded as a CUDA graph; the message says why."""


class PycudaDevice:
    """One CUDA device with one stream, for one session; see `segnas.runtime.nvml.GpuClock` for the part that timing needs.

    `driver` is the module pycuda.driver, `bindings` cuda.bindings.driver or None where that is not installed: the tests give simulated ones.
    RequirementError where there is no pycuda, no driver or no device.
    """

    def __init__(self, index: int = 0, *, driver: Any = None, bindings: Any = None, host_ms: Callable[[], float] | None = None) -> None:
        self._cuda: Any = driver if driver is not None else _pycuda()
        self._bindings: Any = bindings if driver is not None else _bindings()
        self._host_ms = host_ms
        with self._errors("the CUDA device cannot be had"):
            self._cuda.init()
            if not self._cuda.Device.count():
                raise RequirementError("an NVIDIA GPU is needed, and the driver sees none: see `segnas doctor`")
            device = self._cuda.Device(index)
            self._context: Any = device.retain_primary_context()
        try:
            with self.active():
                self._stream: Any = self._cuda.Stream(_NON_BLOCKING)
                self.name: str = device.name()
                self.capability: str = ".".join(map(str, device.compute_capability()))
                self._clocks = nvml_clocks(device.pci_bus_id())
        except BaseException:
            self._context.detach()
            raise
        self.driver = driver_version()

    @property
    def stream(self) -> int:
        """The stream's handle, never that of the default stream."""
        return int(self._stream.handle)

    @property
    def libraries(self) -> tuple[tuple[str, str], ...]:
        """What a target's time depends on beneath the runtime, sorted."""
        return (("capability", self.capability),)

    @contextmanager
    def active(self) -> Generator[None]:
        """The device's primary context, current in this thread meanwhile."""
        with self._errors("the CUDA context cannot be made current"):
            self._context.push()
        try:
            with self._errors("the CUDA device failed"):
                yield
        finally:
            self._cuda.Context.pop()

    def allocate(self, count: int) -> Any:
        """That many bytes on the device: an object with an address (`int`) and `free()`; RequirementError where they cannot be had."""
        with self._errors(f"{count / 2**20:.0f} MiB on the GPU cannot be had"):
            return self._cuda.mem_alloc(max(1, count))

    def pinned(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """An array in the host's page-locked memory; its `base` has `free()`."""
        with self._errors("page-locked memory cannot be had"):
            return self._cuda.pagelocked_empty(shape, np.dtype(dtype))

    def to_device(self, source: NDArray[Any], buffer: Any) -> None:
        """Enqueue a copy."""
        self._cuda.memcpy_htod_async(buffer, source, self._stream)

    def to_host(self, buffer: Any, destination: NDArray[Any]) -> None:
        """Enqueue a copy."""
        self._cuda.memcpy_dtoh_async(destination, buffer, self._stream)

    def fill(self, buffer: Any, value: int, count: int) -> None:
        """Set that many bytes to one value, and wait: on the default stream, so what was enqueued is waited for first."""
        self.synchronise()
        self._cuda.memset_d8(buffer, value, count)
        self._cuda.Context.synchronize()

    def capture(self, enqueue: Callable[[], bool]) -> "StreamGraph":
        """What `enqueue` puts on the stream, recorded. NoGraph where it refuses (nothing was recorded: a replay would give stale answers), where the
        driver cannot record it, or where cuda-bindings is not installed; the stream is out of its recording state in any case.
        """
        if self._bindings is None:
            raise NoGraph("pycuda records no CUDA graphs, and the package cuda-bindings is not installed")
        return StreamGraph(self._bindings, self.stream, enqueue)

    def event(self) -> Any:
        """Recorded on the stream."""
        return self._cuda.Event().record(self._stream)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Between two events, by the device's clock."""
        return float(last.time_since(first))

    def synchronise(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()

    def host_ms(self) -> float:
        """time.perf_counter."""
        return time.perf_counter_ns() / 1e6 if self._host_ms is None else self._host_ms()

    def clocks(self) -> Clocks | None:
        """By NVML."""
        return self._clocks()

    def close(self) -> None:
        """Give back the stream, then the context; what was allocated must have been freed."""
        if self._context is None:
            return
        with self.active():
            self._stream = None
        self._context.detach()
        self._context = None

    @contextmanager
    def _errors(self, what: str) -> Generator[None]:
        try:
            yield
        except self._cuda.MemoryError as error:
            raise RequirementError(f"{what}: the GPU's memory does not suffice ({_first(error)})") from None
        except self._cuda.Error as error:
            raise RequirementError(f"{what}: {_first(error)}; see `segnas doctor`") from error


class StreamGraph:
    """Work of one stream that was recorded once, by cuda-bindings."""

    def __init__(self, bindings: Any, stream: int, enqueue: Callable[[], bool]) -> None:
        self._cuda, self._stream = bindings, stream
        self._graph = self._executable = None
        self._call(bindings.cuStreamBeginCapture, stream, bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        accepted = False
        try:
            accepted = enqueue()
        finally:
            status, graph = bindings.cuStreamEndCapture(stream)
            self._graph = graph if int(status) == 0 else None
            if not accepted:
                self.release()
        if not accepted or self._graph is None:
            raise NoGraph("the enqueue was refused while it was recorded" if not accepted else f"the recording broke off ({status!s})")
        try:
            (self._executable,) = self._call(bindings.cuGraphInstantiate, self._graph, 0)
        except NoGraph:
            self.release()
            raise

    def launch(self, times: int = 1) -> None:
        """Enqueue it that often; returns at once."""
        launch, executable, stream = self._cuda.cuGraphLaunch, self._executable, self._stream
        for _ in range(times):
            (status,) = launch(executable, stream)
            if int(status):
                raise RequirementError(f"a CUDA graph could not be launched ({status!s}); open the engine again, or give option graph off")

    def release(self) -> None:
        """Give back the executable graph, then the graph."""
        if self._executable is not None:
            self._cuda.cuGraphExecDestroy(self._executable)
        if self._graph is not None:
            self._cuda.cuGraphDestroy(self._graph)
        self._executable = self._graph = None

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> tuple[Any, ...]:
        status, *results = function(*arguments)
        if int(status):
            raise NoGraph(f"{function.__name__} failed ({status!s})")
        return tuple(results)


def _pycuda() -> Any:
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise RequirementError(
            f"TensorRT engines run on an NVIDIA GPU by way of pycuda, which cannot be imported here ({_first(error)}): "
            "`pip install segnas[tensorrt]` on a machine with the GPU and the CUDA toolkit, and see `segnas doctor`"
        ) from None


def _bindings() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError:
        return None


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

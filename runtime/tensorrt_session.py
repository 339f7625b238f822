"""TensorRT and TensorRT-RTX: an engine on the GPU, its memory, stream and events by pycuda; both by one code path, checked at every step.

What is timed: scope "gpu" from the input on the device to the answer there; "end_to_end" from page-locked memory to page-locked memory, copies
included, one query in flight. TensorRT is replayed as a CUDA graph that this file records; TensorRT-RTX records its own. Either is proven against a
normal run before it is timed: a refused enqueue records nothing, and would replay stale answers. TensorRT-RTX compiles its kernels in the first run,
which is told apart and never timed; they are kept beside the engine. Tested on a simulated GPU and library only, not on real ones yet.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError, RequirementError, VerificationError
from segnas.runtime.gpu_samples import GpuSamples
from segnas.runtime.pycuda_device import NoGraph, PycudaDevice, StreamGraph
from segnas.runtime.runtime_cache import cache_path, load_cache, save_cache
from segnas.runtime.session import agreement, noise, require_image
from segnas.runtime.tensorrt_engine import deserialised, made, specified
from segnas.runtime.tensorrt_target import options_here
from segnas.runtime.trtexec import Query
from segnas.target import Target
from segnas.tensorrt_api import Api, open_api

LEAST_AGREEMENT = 0.999  # share of values that a replay and a normal run of the same kernels must have in common
_TOLERANCE = 1e-3  # of the largest logit
_POISON = 251


class _Buffers(NamedTuple):
    """Input and output on the device, and in the host's page-locked memory."""

    reads: Any
    gives: Any
    host_reads: NDArray[Any]
    host_gives: NDArray[Any]


class TensorrtSession:
    """One engine; see `segnas.runtime.session.Session`, and `GpuSamples` for what a sample is.

    It owns `device`, and gives it back on `close`. `kernels` is where TensorRT-RTX keeps what it compiles. IncompatibleError for an engine of another
    GPU or version, InputError for one that is not what the target says, VerificationError where replays answer otherwise than normal runs.
    """

    def __init__(self, content: bytes, target: Target, *, api: Api, device: PycudaDevice, kernels: Path | None = None) -> None:
        self.target = target
        self._api = api
        self._device: Any = device
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._graph: StreamGraph | None = None
        self._buffers: Any = None
        self._notes: dict[str, str] = {}
        self._told: list[str] = []
        self._holds_noise = False
        try:
            options = options_here(target, api.version, device)
            with device.active():
                self._prepare(content, options["graph"], kernels)
        except BaseException:
            self.close()
            raise
        self._samples = GpuSamples(device, target.scope, replay=self._replay, query=self._query)

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """Labels or logits of an image as the target's input contract has it."""
        buffers = self._open()
        require_image(image, self.specification.input)
        self._holds_noise = False
        with self._device.active():
            return self._answer(buffers, image)

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` samples in a row, on one fixed random image."""
        buffers = self._open()
        with self._device.active():
            self._fill(buffers)
            return self._samples.take(runs)

    def queries(self, runs: int) -> tuple[Query, ...]:
        """That many queries, copies included, each with the times at which its parts began and ended, as trtexec tells them."""
        buffers, device = self._open(), self._device
        found: list[Query] = []
        with device.active():
            self._fill(buffers)
            device.synchronise()
            base, started = device.event(), device.host_ms()
            for _ in range(runs):
                begun = device.host_ms() - started
                stamps = [device.event()]
                for part in (lambda: self._copy_in(buffers), lambda: self._launch(1), lambda: self._copy_out(buffers)):
                    part()
                    stamps.append(device.event())
                enqueued = device.host_ms() - started
                device.synchronise()
                found.append(Query(begun, enqueued, *(device.elapsed_ms(base, stamp) for stamp in stamps)))
        return tuple(found)

    def close(self) -> None:
        """Give back graph, context, engine, runtime, buffers and stream, in that order; once."""
        if self._device is None:
            return
        device, self._device = self._device, None
        with device.active():
            device.synchronise()
            if self._graph is not None:
                self._graph.release()
            self._graph = None
            self._context = None
            self._engine = None
            self._runtime = None
            if self._buffers is not None:
                for buffer in (self._buffers.reads, self._buffers.gives, self._buffers.host_reads.base, self._buffers.host_gives.base):
                    buffer.free()
            self._buffers = None
        device.close()

    @property
    def runs_per_sample(self) -> int:
        """How many replays a sample is the mean of."""
        return self._samples.runs_per_sample

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """What the samples were taken under; see `GpuSamples.conditions`. `cuda_graph` says whether there was one, and why not."""
        return tuple(sorted((dict(self._samples.conditions) | self._notes).items()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the numbers must be told."""
        return (*self._told, *self._samples.warnings)

    def _open(self) -> _Buffers:
        if self._device is None:
            raise InputError("this session is closed; open the engine again")
        return self._buffers

    def _prepare(self, content: bytes, graph: str, kernels: Path | None) -> None:
        device = self._device
        self._notes = {"driver": device.driver, "compute_capability": device.capability}
        begun = device.host_ms()
        self._runtime, self._engine, told = deserialised(content, self._api, device)
        self._told += told
        built_in = self.target.runtime == "tensorrt-rtx"
        cache: Any = None
        if built_in:
            self._context, cache = self._rtx_context(graph, kernels)
        else:
            self._context = made(self._engine.create_execution_context(), "no execution context could be made", self._api.log)
        if hasattr(self._context, "nvtx_verbosity"):
            self._context.nvtx_verbosity = self._api.module.ProfilingVerbosity.NONE  # an engine built with details enqueues slower with them
        self.specification = specified(self.target, self._api, self._engine, self._context)
        self._buffers = self._bound()
        self._notes["open_ms"] = f"{device.host_ms() - begun:.1f}"
        self._prove(graph, built_in=built_in)
        if cache is not None and kernels is not None:
            save_cache(cache, kernels)

    def _rtx_context(self, graph: str, kernels: Path | None) -> tuple[Any, Any]:
        """A context that compiles every kernel at once, with its own CUDA graph where one is wanted, and the cache that it compiles into."""
        library, engine = self._api.module, self._engine
        config = made(engine.create_runtime_config(), "no runtime configuration could be made", self._api.log)
        strategy = library.CudaGraphStrategy.DISABLED if graph == "off" else library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.cuda_graph_strategy = strategy
        config.dynamic_shapes_kernel_specialization_strategy = library.DynamicShapesKernelSpecializationStrategy.EAGER
        if config.cuda_graph_strategy != strategy:
            raise RequirementError(f"TensorRT-RTX did not take the CUDA graph strategy {strategy}: {self._api.log.said()}")
        cache: Any = config.create_runtime_cache()
        self._notes["kernels"] = "not kept" if kernels is None else load_cache(cache, kernels)
        self._api.log.said()  # a cache that was refused is no error
        if not config.set_runtime_cache(cache):
            raise RequirementError(f"TensorRT-RTX did not take the runtime cache: {self._api.log.said()}")
        return made(engine.create_execution_context(runtime_config=config), "no execution context could be made", self._api.log), cache

    def _bound(self) -> _Buffers:
        """Memory at addresses that stay, known to the context; what was had is given back where the rest cannot be."""
        device, had = self._device, list[Any]()
        try:
            for port in (self.specification.input, self.specification.output):
                had.append(device.allocate(int(np.prod(port.shape)) * np.dtype(port.dtype).itemsize))
                if not self._context.set_tensor_address(port.name, int(had[-1])):
                    raise RequirementError(f"TensorRT did not take the address of {port.name!r}: {self._api.log.said()}")
            host = [device.pinned(port.shape, port.dtype) for port in (self.specification.input, self.specification.output)]
        except BaseException:
            for buffer in had:
                buffer.free()
            raise
        return _Buffers(had[0], had[1], host[0], host[1])

    def _prove(self, graph: str, *, built_in: bool) -> None:
        """The first run, told apart; then a graph where one is wanted; then a replay beside a normal run, on another image, over poisoned memory."""
        buffers, device = self._buffers, self._device
        begun = device.host_ms()
        self._answer(buffers, noise(self.specification.input, 0))
        self._notes["first_run_ms"] = f"{device.host_ms() - begun:.1f}"
        image = noise(self.specification.input, 1)
        expected = self._plainly(buffers, image) if built_in and graph != "off" else self._answer(buffers, image)
        if graph == "off":
            self._notes["cuda_graph"] = "off"
        elif built_in:
            self._require_built_in(graph)
        else:
            self._record(graph)
        device.fill(buffers.gives, _POISON, self._count())
        agreed = agreement(self._answer(buffers, image), expected, _TOLERANCE)
        if agreed < LEAST_AGREEMENT:
            raise VerificationError(
                f"a replay of the engine agrees with a normal run in {agreed:.2%} of the values; at least {LEAST_AGREEMENT:.1%} are needed: it would "
                "give wrong or stale answers (try option graph off)"
            )

    def _record(self, graph: str) -> None:
        try:
            self._graph = self._device.capture(self._enqueued)
        except NoGraph as error:
            self._without_graph(graph, f"{error}{f' ({heard})' if (heard := self._api.log.said()) else ''}")
        else:
            self._notes["cuda_graph"] = "on, recorded from the stream"

    def _require_built_in(self, graph: str) -> None:
        """Whether TensorRT-RTX can record this engine, which it does by itself after the first runs."""
        if self._context.is_stream_capturable(self._device.stream):
            self._notes["cuda_graph"] = "on, TensorRT-RTX's own"
        else:
            self._without_graph(graph, "TensorRT-RTX says that this engine cannot be recorded")

    def _without_graph(self, graph: str, reason: str) -> None:
        if graph == "on":
            raise RequirementError(f"option graph is on, and no CUDA graph can be had: {reason}; install cuda-bindings, or give graph auto or off")
        self._notes["cuda_graph"] = f"none: {reason}"
        self._told.append(f"no CUDA graph was used ({reason}): each run is enqueued anew, which a small network feels")

    def _plainly(self, buffers: _Buffers, image: NDArray[Any]) -> NDArray[Any]:
        """What a second context without any graph answers; it is given back at once."""
        context = made(self._engine.create_execution_context(), "no second execution context could be made", self._api.log)
        ports = ((self.specification.input, buffers.reads), (self.specification.output, buffers.gives))
        taken = context.set_input_shape(self.specification.input.name, self.specification.input.shape)
        if not (taken and all(context.set_tensor_address(port.name, int(buffer)) for port, buffer in ports)):
            raise RequirementError(f"a second context did not take shapes or addresses: {self._api.log.said()}")
        return self._answer(buffers, image, lambda: self._require_enqueued(context))

    def _answer(self, buffers: _Buffers, image: NDArray[Any], launch: Callable[[], None] | None = None) -> NDArray[Any]:
        buffers.host_reads[...] = image
        self._copy_in(buffers)
        (launch or (lambda: self._launch(1)))()
        self._copy_out(buffers)
        self._device.synchronise()
        return buffers.host_gives.copy()

    def _copy_in(self, buffers: _Buffers) -> None:
        self._device.to_device(buffers.host_reads, buffers.reads)

    def _copy_out(self, buffers: _Buffers) -> None:
        self._device.to_host(buffers.gives, buffers.host_gives)

    def _launch(self, times: int) -> None:
        if self._graph is not None:
            self._graph.launch(times)
            return
        for _ in range(times):
            self._require_enqueued(self._context)

    def _enqueued(self) -> bool:
        return bool(self._context.execute_async_v3(self._device.stream))

    def _require_enqueued(self, context: Any) -> None:
        if not context.execute_async_v3(self._device.stream):
            raise RequirementError(
                f"TensorRT refused to run the engine: {self._api.log.said() or 'it does not say why'}; the answer would be a stale one"
            )

    def _replay(self, times: int) -> None:
        self._launch(times)

    def _query(self) -> None:
        buffers = self._buffers
        self._copy_in(buffers)
        self._launch(1)
        self._copy_out(buffers)
        self._device.synchronise()

    def _fill(self, buffers: _Buffers) -> None:
        """The fixed random image where it is read from."""
        if not self._holds_noise:
            buffers.host_reads[...] = noise(self.specification.input, 0)
            self._copy_in(buffers)
            self._device.synchronise()
            self._holds_noise = True

    def _count(self) -> int:
        gives = self.specification.output
        return int(np.prod(gives.shape)) * np.dtype(gives.dtype).itemsize


def open_tensorrt(content: bytes, target: Target, sha256: str | None, path: Path | None = None) -> TensorrtSession:
    """An engine of TensorRT or TensorRT-RTX on the GPU here; to deserialise it is as good as to run it, so `sha256` must vouch for it.

    Errors are those of `open_session`, and VerificationError where replays answer otherwise than normal runs.
    """
    if sha256 is None:
        raise InputError(
            f"an engine of {target.runtime} was given without its sha256; it holds code for the GPU, and is opened only by its manifest: give the "
            "engine that segnas built, with its .json beside it"
        )
    if not content:
        raise InputError("the engine is empty (0 bytes); build it again")
    api = open_api(target.runtime)
    kernels = cache_path(path) if path is not None and target.runtime == "tensorrt-rtx" else None
    return TensorrtSession(content, target, api=api, device=PycudaDevice(), kernels=kernels)

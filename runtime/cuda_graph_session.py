"""What runs on a CUDA device, captured once as a CUDA graph, proven against a normal run, replayed, and timed by events.

It is given as a function of the image on the device: PyTorch runs its modules (`torch_session`), AOTInductor its compiled package
(`aotinductor_session`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segnas.errors import InputError, VerificationError
from segnas.report import Port
from segnas.runtime.cuda_device import DeviceLayer, Graph, memory_errors
from segnas.runtime.gpu_samples import GpuSamples
from segnas.runtime.session import Specification, require_image
from segnas.target import Target

LEAST_AGREEMENT = 0.999  # share of values that a replay and a normal run must have in common
_POISON = 251
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}  # of the largest value


class CudaGraphSession:
    """One network on a CUDA device; see `segnas.runtime.session.Session`, and `GpuSamples` for what a sample is.

    `answer` takes the image (N, C, H, W), float32 and normalised, on the device, and gives `labels` (N, H, W) uint8 or `logits` (N, classes, H, W).
    Of scope "end_to_end", a query goes from the image in page-locked memory to the answer there. InputError where it gives anything else or cannot be
    captured, VerificationError where the captured graph does not compute what a normal run does.
    """

    def __init__(self, answer: Callable[[Tensor], Tensor], input_channels: int, target: Target, device: DeviceLayer) -> None:
        self.target = target
        self._device = device
        self._answer: Callable[[Tensor], Tensor] | None = answer
        self._host: tuple[Tensor, Tensor] | None = None  # the image and the answer in page-locked memory
        self._image = device.empty((target.batch, input_channels, target.height, target.width), torch.float32)
        device.fill_noise(self._image, 0)
        self.specification = self._specified(device.call(self._computed))
        self._graph: Graph | None = self._captured()
        self._verify(self._graph)
        self._holds_noise = False
        self._samples = GpuSamples(device, target.scope, replay=lambda times: self._open().replay(times), query=lambda: self._query(self._open()))

    def run(self, image: NDArray[np.float32]) -> NDArray[Any]:
        """Labels or logits of a normalised image (N, C, H, W) float32."""
        graph = self._open()
        require_image(image, self.specification.input)
        self._holds_noise = False
        with memory_errors():
            host_image, host_answer = self._buffers(graph)
            host_image.numpy()[...] = image
            self._query(graph)
        return host_answer.numpy().copy()

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` samples in a row, on one fixed random image."""
        graph = self._open()
        with memory_errors():
            self._fill(graph)
            return self._samples.take(runs)

    def close(self) -> None:
        """Give back the graph, the network and the buffers."""
        if self._graph is not None:
            self._graph.release()
        self._graph = self._answer = self._host = None
        self._image = torch.empty(0)

    @property
    def runs_per_sample(self) -> int:
        """How many replays a sample is the mean of."""
        return self._samples.runs_per_sample

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """What the samples were taken under; see `GpuSamples.conditions`."""
        return self._samples.conditions

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the numbers must be told."""
        return self._samples.warnings

    def _open(self) -> Graph:
        if self._graph is None:
            raise InputError("this session is closed; open the network again")
        return self._graph

    def _computed(self) -> Tensor:
        assert self._answer is not None
        return self._answer(self._image)

    def _specified(self, answer: Tensor) -> Specification:
        labels, shape = self.target.output_contract == "labels", tuple(answer.shape)
        name, kinds, sides = ("labels", (torch.uint8,), 3) if labels else ("logits", tuple(_TOLERANCES), 4)
        if len(shape) != sides or shape[0] != self.target.batch or answer.dtype not in kinds:
            kind = str(answer.dtype).removeprefix("torch.")
            raise InputError(
                f"the network gives {kind} {'x'.join(map(str, shape))}; output {name!r} of batch {self.target.batch} is needed: "
                f"{'uint8 (N, H, W)' if labels else '(N, classes, H, W)'}"
            )
        reads = Port("input", "float32", tuple(self._image.shape))
        return Specification(reads, Port(name, str(answer.dtype).removeprefix("torch."), shape))

    def _captured(self) -> Graph:
        try:
            return self._device.capture(self._computed)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"the network cannot be captured as a CUDA graph: {reason}; it must have static shapes and read nothing back from the GPU"
            ) from error

    def _verify(self, graph: Graph) -> None:
        """Compare the first replay with a normal run, on an image that the capture did not see; VerificationError where they differ."""
        device = self._device
        device.fill_noise(self._image, 1)
        normal = device.call(self._computed)
        device.call(lambda: graph.output.fill_(_POISON))
        graph.replay(1)
        device.synchronise()
        agreement = float(device.call(lambda: _agreement(graph.output, normal)))
        if agreement < LEAST_AGREEMENT:
            graph.release()
            raise VerificationError(
                f"the first replay of the CUDA graph agrees with a normal run in {agreement:.2%} of the values; at least {LEAST_AGREEMENT:.1%} are "
                "needed: the graph would give wrong answers (does the network keep state, or compute outside torch?)"
            )

    def _buffers(self, graph: Graph) -> tuple[Tensor, Tensor]:
        if self._host is None:
            empty = self._device.empty
            self._host = (
                empty(self.specification.input.shape, torch.float32, on_host=True),
                empty(self.specification.output.shape, graph.output.dtype, on_host=True),
            )
        return self._host

    def _query(self, graph: Graph) -> None:
        """Image in, replay, answer out, all finished."""
        host_image, host_answer = self._buffers(graph)
        self._device.copy(host_image, self._image)
        graph.replay(1)
        self._device.copy(graph.output, host_answer)
        self._device.synchronise()

    def _fill(self, graph: Graph) -> None:
        """The fixed random image where it is read from."""
        if self._holds_noise:
            return
        self._device.fill_noise(self._image, 0)
        if self.target.scope == "end_to_end":
            self._device.copy(self._image, self._buffers(graph)[0])
            self._device.synchronise()
        self._holds_noise = True


def _agreement(replayed: Tensor, normal: Tensor) -> Tensor:
    """Share of values that are equal: labels exactly, logits to a share of the largest; () float32."""
    if not normal.is_floating_point():
        return (replayed == normal).float().mean()
    here, there = replayed.float(), normal.float()
    largest = float(there.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.isclose(here, there, rtol=0.0, atol=_TOLERANCES[normal.dtype] * largest, equal_nan=True).float().mean()

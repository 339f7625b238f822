"""A simulated GPU: one queue, a host that runs ahead of it, and a clock that drifts, is held down at times, and stalls.

What a network costs is known: `Priced` is a network that takes so many ms at the nominal clock, and `true_ms` a made-up price of each operation. What
is captured is not run, as on a real device, and a replay computes where something was written since the last one.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segnas.arch import Architecture, Operation
from segnas.cost import activation_bytes, macs
from segnas.latency import priced_operations
from segnas.runtime.nvml import Clocks
from segnas.target import Target

NOMINAL_MHZ, MEMORY_MHZ = 1980.0, 3201
LAUNCH_MS = 0.0025
CALL_MS = 0.002  # of a network with nothing in it
ENQUEUE_MS = 0.004
NVML_MS = 0.05
BYTES_PER_MS = 2.5e7  # between host and device
BIG = 1 << 20  # values from which an image has one pixel only: nobody looks at it


def true_ms(operation: Operation) -> float:
    """A made-up price at the nominal clock: a launch, and the dearer of arithmetic and traffic, a little at random for each operation."""
    if operation.is_free:
        return 0.0
    jitter = 0.7 + 0.6 * int(operation.digest, 16) / 16**12
    return LAUNCH_MS + jitter * max(macs(operation) / 4e10, activation_bytes(operation) / 3e9)


def network_ms(architecture: Architecture, target: Target) -> float:
    """What a whole network takes at the nominal clock."""
    return CALL_MS + math.fsum(true_ms(operation) for operation in priced_operations(architecture, target))


class Priced(nn.Module):
    """(N, C, H, W) -> (N, classes, H, W): computes nothing, costs `ms`."""

    def __init__(self, device: "FakeDevice", ms: float, shape: Sequence[int]) -> None:
        super().__init__()
        self.device, self.ms, self.shape = device, ms, tuple(shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Priced":
        return self

    def forward(self, image: Tensor) -> Tensor:
        self.device.launch(self.ms)
        return image.reshape(-1)[:1].expand(self.shape)


class FakeDevice:
    """`DeviceLayer` of a GPU whose SM clock swings by `drift`, falls to 70 % every `throttle_every_ms`, and whose samples stall with a chance of
    `outliers`. `fault` is what goes wrong with graphs: stale, or deaf (to the input); or nothing."""

    name = "Simulated GPU"
    version = "2.11.0+cu128"
    libraries = (("cuda", "12.8"), ("cudnn", "9.10.2"))

    def __init__(
        self,
        *,
        drift: float = 0.0,
        noise: float = 0.0,
        outliers: float = 0.0,
        throttle_every_ms: float = math.inf,
        throttle_ms: float = 250.0,
        has_clocks: bool = True,
        enqueue_ms: float = ENQUEUE_MS,
        fault: str = "",
        seed: int = 0,
    ) -> None:
        self.drift, self.noise, self.outliers = drift, noise, outliers
        self.throttle_every_ms, self.throttle_ms, self.has_clocks = throttle_every_ms, throttle_ms, has_clocks
        self.enqueue_ms, self.fault = enqueue_ms, fault
        self.now_ms = 0.0
        self.free_ms = 0.0  # when the device will have done all that was enqueued
        self.open_graphs = 0
        self.replays = self.shots = self.stalls = self.writes = 0
        self.recorded_ms: float | None = None
        self.silent = False
        self.dice = random.Random(seed)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FakeDevice":
        return self

    def speed(self, when_ms: float) -> float:
        """The SM clock over the nominal one."""
        return (1 + self.drift * math.sin(2 * math.pi * when_ms / 4400)) * (0.7 if self.is_throttled(when_ms) else 1.0)

    def is_throttled(self, when_ms: float) -> bool:
        return math.isfinite(self.throttle_every_ms) and when_ms % self.throttle_every_ms > self.throttle_every_ms - self.throttle_ms

    def launch(self, ms: float, times: int = 1) -> None:
        """Enqueue work of that many ms at the nominal clock, so many times; while capturing, only note it."""
        if self.silent:
            return
        if self.recorded_ms is not None:
            self.recorded_ms += ms
            return
        self.shots += 1
        begun = max(self.now_ms, self.free_ms)
        length = ms / self.speed(begun) * math.exp(self.dice.gauss(0, self.noise))
        if self.dice.random() < self.outliers:
            length *= self.dice.uniform(1.5, 6)
            self.stalls += 1
        self.now_ms += times * self.enqueue_ms
        self.free_ms = max(begun + times * length, self.now_ms + length)

    def place(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        return module.to(dtype=dtype, memory_format=torch.channels_last)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, on_host: bool = False) -> Tensor:
        return torch.full((*shape[:2], 1, 1) if math.prod(shape) > BIG else tuple(shape), 7, dtype=dtype)

    def fill_noise(self, tensor: Tensor, seed: int) -> None:
        tensor.normal_(generator=torch.Generator().manual_seed(seed))
        self.writes += 1

    def copy(self, source: Tensor, destination: Tensor) -> None:
        destination.copy_(source)
        self.writes += 1
        self.launch(source.numel() * source.element_size() / BYTES_PER_MS)

    def call(self, function: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad():
            result = function()
        self.writes += 1
        self.synchronise()
        return result

    def capture(self, function: Callable[[], Tensor]) -> "FakeGraph":
        self.recorded_ms = 0.0
        with torch.no_grad():
            output = function().clone()
        recorded, self.recorded_ms = self.recorded_ms, None
        return FakeGraph(self, function, output, recorded or 0.02)

    def event(self) -> float:
        return max(self.now_ms, self.free_ms)

    def elapsed_ms(self, first: float, last: float) -> float:
        assert self.now_ms >= last, "the event has not happened yet"
        return last - first

    def synchronise(self) -> None:
        self.now_ms = max(self.now_ms, self.free_ms)

    def host_ms(self) -> float:
        return self.now_ms

    def clocks(self) -> Clocks | None:
        self.now_ms += NVML_MS
        if not self.has_clocks:
            return None
        held = ("power cap",) if self.is_throttled(self.now_ms) else ()
        return Clocks(15 * round(NOMINAL_MHZ * self.speed(self.now_ms) / 15), MEMORY_MHZ, 55, held)


class FakeGraph:
    def __init__(self, device: FakeDevice, function: Callable[[], Tensor], output: Tensor, ms: float) -> None:
        self.device, self.function, self.output, self.ms = device, function, output, ms
        self.captured = output.clone()
        self.seen = -1  # of the device's writes
        self.is_open = True
        output.fill_(3)  # nothing ran yet
        device.open_graphs += 1

    def replay(self, times: int) -> None:
        assert self.is_open
        self.device.launch(self.ms, times)
        self.device.replays += times
        if self.device.fault == "stale":
            return
        if self.device.fault == "deaf":
            self.output.copy_(self.captured)
            return
        if self.seen != self.device.writes:
            self.seen = self.device.writes
            self.device.silent = True
            with torch.no_grad():
                self.output.copy_(self.function())
            self.device.silent = False

    def release(self) -> None:
        assert self.is_open
        self.is_open = False
        self.device.open_graphs -= 1

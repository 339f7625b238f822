"""PyTorch on a CUDA device: a network captured once as a CUDA graph, replayed, and timed by events.

What is captured is what runs: from the image, float32 (N, C, H, W) normalised, over the change to the target's precision and to channels last, to
`labels`, uint8 (N, H, W), or `logits`, (N, classes, H, W) in that precision. Normalisations are folded into convolutions, as in every exported
engine. Samples are taken as trtexec and nvbench take them: batches of replays between two events, and none at a clock of the moment.
"""

import copy
import functools
import math
import warnings
from collections import Counter, deque
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from segnas.errors import IncompatibleError, InputError, VerificationError
from segnas.runtime.cuda_device import (
    CLOCK_TOLERANCE,
    Clocks,
    CudaDevice,
    DeviceLayer,
    Graph,
    arithmetic,
    memory_errors,
    middle_clocks,
    steady_at,
)
from segnas.runtime.session import Port, Specification, require_image
from segnas.target import Target
from segnas.timing import percentile

OPTIONS = {"batchnorm": ("folded",), "benchmark": ("on", "off"), "graph": ("on",), "layout": ("channels_last",), "tf32": ("off", "on")}
DEFAULTS = {name: allowed[0] for name, allowed in OPTIONS.items()}
SAMPLE_MS = 2.0  # the least that one sample of scope "gpu" lasts; replays are added until it does
BLOCK_MS = 20.0  # queries of scope "end_to_end" between two readings of the clocks
WARMUP_MS = 200.0  # trtexec's; then until three samples in a row agree
STEADY = 0.005
MOST_WARMUP_MS = 1000.0
SPARE_SAMPLES = 2  # a call keeps at most twice the samples asked for, and these, to choose from
PATIENCE_MS, PATIENCE = 500.0, 0.5  # how long a session waits for a clock that is held down: this, and that share of the time its samples took
MOST_REPLAYS = 4096
ENQUEUE_SHARE = 0.8  # trtexec's: above it the host, not the device, sets the pace
LEAST_AGREEMENT = 0.999  # share of values that a replay and a normal run must have in common
MOST_CLASSES = 256
_REMEMBERED = 128
_POISON = 251
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}  # of the largest value
_UNSTEADY = "samples were kept while the GPU's clock jumped by more than 2 % or was held down: cool the GPU, or stop what else runs on it"
_MOVED = "the GPU's clock moved by more than 2 % to either side between samples: their times can be compared in units of a sentinel only"
_UNREAD = "the GPU's clocks cannot be read (`pip install nvidia-ml-py`): neither drift nor throttling was looked for"
_ENQUEUE = "the host takes more than 80 % of the time to enqueue so small a network: it sets the pace, and the GPU may be faster"


class UnsteadyWarning(UserWarning):
    """Something about samples that were kept is in doubt; `TorchSession.conditions` counts them."""


class TorchSession:
    """One network on a CUDA device; see `segnas.runtime.session.Session`.

    A sample of scope "gpu" is the mean of a batch of replays between two events, at least 2 ms long; of scope "end_to_end", one query from the image
    in page-locked memory to the answer there, by the host's clock. Samples during which a clock was held down, or more than 2 % off the median of the
    call, are taken again, a bounded number of times; what has to be kept all the same is warned of (`UnsteadyWarning`) and counted.
    """

    def __init__(self, module: nn.Module, input_channels: int, target: Target, device: DeviceLayer) -> None:
        chosen = _chosen_options(target, device)
        self.target = target
        self._device = device
        self._labels = target.output_contract == "labels"
        self._dtype = _DTYPES[target.precision]
        self._host: tuple[Tensor, Tensor] | None = None  # the image and the answer in page-locked memory
        with memory_errors(), arithmetic(benchmark=chosen["benchmark"] == "on", tf32=chosen["tf32"] == "on"), torch.no_grad():
            self._network: nn.Module | None = device.place(folded(module), self._dtype)
            self._image = device.empty((target.batch, input_channels, target.height, target.width), torch.float32)
            device.fill_noise(self._image, 0)
            self.specification = self._specified(device.call(self._logits))
            self._graph: Graph | None = self._captured()
            self._verify(self._graph)
        self._holds_noise = False
        self._is_warm = False
        self._batch = 1  # replays in a sample of scope "gpu", queries between two readings of the clocks otherwise
        self._sampled_ms = self._waited_ms = 0.0
        self._last: Clocks | None = None
        self._medians: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)  # SM and memory clock of a call of `sample`, in MHz
        self._enqueue_shares: deque[float] = deque(maxlen=_REMEMBERED)
        self._counts: Counter[str] = Counter()
        self._reasons: set[str] = set()
        self._told: list[str] = []

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
            self._make_ready(graph)
            taken = self._collected(graph, runs)
        steady = steady_at([clocks for _, clocks in taken])
        kept = sorted(sorted(range(len(taken)), key=lambda i: (steady[i], i))[len(taken) - runs :])
        self._counts.update(samples=runs, samples_retried=len(taken) - runs, samples_unsteady=sum(not steady[i] for i in kept))
        if known := [clocks for _, clocks in taken if clocks is not None]:
            self._last = known[-1]
            self._medians.append(middle_clocks(known))
        for doubt in self._doubts():
            if doubt not in self._told:
                self._told.append(doubt)
                warnings.warn(doubt, UnsteadyWarning, stacklevel=2)
        return tuple(taken[i][0] for i in kept)

    def close(self) -> None:
        """Give back the graph, the network and the buffers."""
        if self._graph is not None:
            self._graph.release()
        self._graph = self._network = self._host = None
        self._image = torch.empty(0)

    @property
    def conditions(self) -> tuple[tuple[str, str], ...]:
        """What the samples were taken under, sorted: median clocks, temperature, why a clock was held down, samples taken again or kept in doubt."""
        found = {name: str(self._counts[name]) for name in ("samples", "samples_retried", "samples_unsteady")}
        if self.target.scope == "gpu":
            found["replays_per_sample"] = str(self._batch)
        if self._last is not None:
            for name, values in zip(("sm", "memory"), zip(*self._medians, strict=True), strict=True):
                found[f"{name}_clock_mhz"] = f"{percentile(values, 50):.0f} ({min(values):.0f} to {max(values):.0f})"
            found["temperature_c"] = str(self._last.temperature_c)
        found["throttled"] = ", ".join(sorted(self._reasons)) or ("no" if self._last else "unknown")
        return tuple(sorted(found.items()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the numbers must be told; each is also given once as an `UnsteadyWarning`."""
        return tuple(self._told)

    def _open(self) -> Graph:
        if self._graph is None:
            raise InputError("this session is closed; open the network again")
        return self._graph

    def _logits(self) -> Tensor:
        """(N, C, H, W) float32 -> (N, classes, H, W) in the target's precision."""
        network = cast(nn.Module, self._network)
        return cast(Tensor, network(self._image.to(dtype=self._dtype, memory_format=torch.channels_last)))

    def _answer(self) -> Tensor:
        """What is captured: the logits, or their argmax (N, H, W) uint8."""
        logits = self._logits()
        return logits.argmax(dim=1).to(torch.uint8) if self._labels else logits

    def _specified(self, logits: Tensor) -> Specification:
        reads = Port("input", "float32", tuple(self._image.shape))
        if logits.dim() != 4 or logits.shape[0] != reads.shape[0] or (self._labels and logits.shape[1] > MOST_CLASSES):
            raise InputError(
                f"the network gives {'x'.join(map(str, logits.shape))} for {reads}; (N, classes, H, W) is needed, with at most {MOST_CLASSES} "
                "classes for output 'labels'"
            )
        if self._labels:
            return Specification(reads, Port("labels", "uint8", (logits.shape[0], *logits.shape[2:])))
        return Specification(reads, Port("logits", str(self._dtype).removeprefix("torch."), tuple(logits.shape)))

    def _captured(self) -> Graph:
        try:
            return self._device.capture(self._answer)
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
        normal = device.call(self._answer)
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

    def _make_ready(self, graph: Graph) -> None:
        """The fixed random image where it is read from, and the device warm."""
        if not self._holds_noise:
            self._device.fill_noise(self._image, 0)
            if self.target.scope == "end_to_end":
                self._device.copy(self._image, self._buffers(graph)[0])
                self._device.synchronise()
            self._holds_noise = True
        if not self._is_warm:
            self._warm_up(graph)
            self._is_warm = True

    def _warm_up(self, graph: Graph) -> None:
        """Until three samples in a row agree, for 200 ms at least and a second at most."""
        started = self._device.host_ms()
        last: deque[float] = deque(maxlen=3)
        elapsed = 0.0
        while elapsed < MOST_WARMUP_MS:
            last.append(self._taken(graph, 1)[0][0])
            elapsed = self._device.host_ms() - started
            if elapsed >= WARMUP_MS and len(last) == 3 and max(last) <= (1 + STEADY) * min(last):
                break
        if self.target.scope == "end_to_end":
            self._batch = max(1, round(BLOCK_MS / percentile(last, 50)))

    def _taken(self, graph: Graph, most: int) -> tuple[list[float], Clocks | None]:
        """One sample of scope "gpu", a block of at most `most` queries of scope "end_to_end", in ms; and the clocks meanwhile."""
        return self._replays(graph) if self.target.scope == "gpu" else self._queries(graph, most)

    def _replays(self, graph: Graph) -> tuple[list[float], Clocks | None]:
        """Mean time of a replay, of as many as last 2 ms; the clocks are read while they run."""
        device = self._device
        while True:
            graph.replay(1)  # so that the device is at work when its time begins to count, and does not wait for the host
            first, started = device.event(), device.host_ms()
            graph.replay(self._batch)
            enqueued = device.host_ms() - started
            last = device.event()
            clocks = device.clocks()
            device.synchronise()
            elapsed = max(device.elapsed_ms(first, last), 1e-6)
            if elapsed >= SAMPLE_MS or self._batch >= MOST_REPLAYS:
                self._enqueue_shares.append(enqueued / elapsed)
                return [elapsed / self._batch], clocks
            self._batch = min(max(self._batch + 1, math.ceil(1.1 * self._batch * SAMPLE_MS / elapsed)), MOST_REPLAYS)

    def _queries(self, graph: Graph, most: int) -> tuple[list[float], Clocks | None]:
        stamps = [self._device.host_ms()]
        for _ in range(min(most, self._batch)):
            self._query(graph)
            stamps.append(self._device.host_ms())
        return [after - before for before, after in pairwise(stamps)], self._device.clocks()

    def _collected(self, graph: Graph, runs: int) -> list[tuple[float, Clocks | None]]:
        """As many samples as make `runs` steady ones, but at most about twice as many.

        A clock that is held down is waited for, replaying, and what came before does not count: without that, turns at one clock stand beside
        sentinels at another (simulated, 250 ms in every 1.7 s, 120 sums of a table: worst error 0.6 % with and 3.2 % without).
        """
        taken: list[tuple[float, Clocks | None]] = []
        most, steady = 2 * runs + SPARE_SAMPLES, 0
        patience = PATIENCE_MS + PATIENCE * self._sampled_ms - self._waited_ms
        while (enough := len(taken) + min(runs - steady, most - len(taken))) > len(taken):
            while len(taken) < enough:
                found, clocks = self._taken(graph, enough - len(taken))
                span = math.fsum(found) * (self._batch if self.target.scope == "gpu" else 1)
                self._reasons.update(clocks.throttled if clocks is not None else ())
                if clocks is not None and clocks.throttled and patience > 0:
                    patience -= span
                    self._waited_ms += span
                    self._counts["samples_retried"] += len(taken) + len(found)
                    taken, enough = [], runs
                else:
                    self._sampled_ms += span
                    taken += [(ms, clocks) for ms in found]
            steady = sum(steady_at([clocks for _, clocks in taken]))
        return taken

    def _doubts(self) -> list[str]:
        """What is in doubt about the latest samples."""
        found: list[str] = []
        if self._counts["samples_unsteady"]:
            found.append(_UNSTEADY)
        if self._counts["samples"] and self._last is None:
            found.append(_UNREAD)
        if any(max(values) - min(values) > 2 * CLOCK_TOLERANCE * percentile(values, 50) for values in zip(*self._medians, strict=True)):
            found.append(_MOVED)
        if self._enqueue_shares and percentile(self._enqueue_shares, 50) > ENQUEUE_SHARE:
            found.append(_ENQUEUE)
        return found


def torch_target(
    height: int,
    width: int,
    *,
    precision: str = "fp16",
    output_contract: str = "labels",
    batch: int = 1,
    scope: str = "gpu",
    device: DeviceLayer | None = None,
) -> Target:
    """The target that this machine's CUDA device is, with torch as installed; RequirementError where there is none."""
    device = device or _cuda_device()
    target = Target(
        device.name,
        "torch",
        device.version,
        precision,
        height,
        width,
        batch=batch,
        output_contract=output_contract,
        scope=scope,
        options=tuple(sorted({**DEFAULTS, **dict(device.libraries)}.items())),
    )
    _chosen_options(target, device)
    return target


def open_torch(module: nn.Module, input_channels: int, target: Target, device: DeviceLayer | None = None) -> TorchSession:
    """A copy of the module, captured and ready, for images (N, input_channels, H, W) of the target's size; the module stays as it is.

    InputError for a target or module that this runtime does not run, IncompatibleError for a target of another device or version, RequirementError
    without a CUDA device or memory, VerificationError where the captured graph does not compute what the module does.
    """
    return TorchSession(module, input_channels, target, device or _cuda_device())


def folded(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in which each convolution of a `Sequential` has taken in the normalisation right behind it."""
    copied = copy.deepcopy(module).eval()
    for chain in [part for part in copied.modules() if isinstance(part, nn.Sequential)]:
        for index in range(len(chain) - 1):
            convolution, normalisation = chain[index], chain[index + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(normalisation, nn.BatchNorm2d):
                chain[index], chain[index + 1] = fuse_conv_bn_eval(convolution, normalisation), nn.Identity()
    return copied


@functools.cache
def _cuda_device() -> CudaDevice:
    return CudaDevice()


def _chosen_options(target: Target, device: DeviceLayer) -> dict[str, str]:
    """The target's options over our defaults, once it is certain that this session can be that target."""
    for name, value, allowed in (
        ("runtime", target.runtime, ("torch",)),
        ("precision", target.precision, tuple(_DTYPES)),
        ("input_contract", target.input_contract, ("normalised",)),
        ("scope", target.scope, ("gpu", "end_to_end")),
    ):
        if value not in allowed:
            raise InputError(f"target {name} was given {value!r}; a session of torch takes {', '.join(allowed)}")
    libraries = dict(device.libraries)
    here = {"device": device.name, "runtime_version": device.version, **libraries}
    given = {"device": target.device, "runtime_version": target.runtime_version, **{k: v for k, v in target.options if k in libraries}}
    differing = [f"{name}: the target has {value!r}, here is {here[name]!r}" for name, value in given.items() if value != here[name]]
    if differing:
        raise IncompatibleError(f"this target is not the device here ({'; '.join(differing)}); run `segnas profile` on this one")
    chosen = {name: value for name, value in target.options if name not in libraries}
    for name, value in chosen.items():
        if name not in OPTIONS:
            raise InputError(f"target option {name!r} was given; torch takes {', '.join(sorted({*OPTIONS, *libraries}))}")
        if value not in OPTIONS[name]:
            raise InputError(f"target option {name} was given {value!r}; allowed: {', '.join(OPTIONS[name])}")
    return DEFAULTS | chosen


def _agreement(replayed: Tensor, normal: Tensor) -> Tensor:
    """Share of values that are equal: labels exactly, logits to a share of the largest; () float32."""
    if not normal.is_floating_point():
        return (replayed == normal).float().mean()
    here, there = replayed.float(), normal.float()
    largest = float(there.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.isclose(here, there, rtol=0.0, atol=_TOLERANCES[normal.dtype] * largest, equal_nan=True).float().mean()

"""Session: an engine that stands ready on its device; one protocol, one file for each backend beside this one."""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.report import Port
from segnas.target import Target


@dataclass(frozen=True, slots=True)
class Specification:
    """What goes in and what comes out.

    `input` is (N, C, H, W) float of contract `normalised`, (N, H, W, 3) uint8 of contract `image`; `output` (N, H, W) labels or (N, classes, H, W)
    logits.
    """

    input: Port
    output: Port

    @property
    def gives_labels(self) -> bool:
        """Whether the argmax is in the engine."""
        return len(self.output.shape) == 3


class Session(Protocol):
    """An open engine. It is a `segnas.latency.Timed`: several are open at once and sampled in turn.

    One on a GPU also has `runs_per_sample`, `conditions` (sorted pairs of text) and `warnings`: what its samples were taken under.
    """

    @property
    def target(self) -> Target:
        """What it was opened for."""
        ...

    @property
    def specification(self) -> Specification:
        """Names, types and shapes of input and output."""
        ...

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """Labels or logits of what `segnas.data.engine_input` makes for the target's input contract; InputError for another shape or type."""
        ...

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` calls in a row, one query in flight, on one fixed random input; nothing is allocated in between."""
        ...

    def close(self) -> None:
        """Give back what it holds; later calls raise InputError."""
        ...


Opener = Callable[[bytes, Target, str | None, Path | None], Session]
"""Opens an engine's bytes for a target; then the sha256 that vouches for them, and where they lie on disk, as far as these are known."""

OPENERS = {
    "aotinductor": "segnas.runtime.aotinductor_session:open_aotinductor",
    "aotinductor-cuda": "segnas.runtime.aotinductor_session:open_aotinductor",
    "onnxruntime": "segnas.runtime.onnxruntime_session:open_onnxruntime",
    "onnxruntime-cuda": "segnas.runtime.onnxruntime_cuda_session:open_onnxruntime_cuda",
    "onnxruntime-tensorrt": "segnas.runtime.onnxruntime_tensorrt_session:open_onnxruntime_tensorrt",
    "tensorrt": "segnas.runtime.tensorrt_session:open_tensorrt",
    "tensorrt-rtx": "segnas.runtime.tensorrt_session:open_tensorrt",
}
"""What opens the engines of each runtime, named as `Target.backend` is; imported when asked for, as another runtime's machine need not have it."""

NOT_OPENED = {
    "torch": "it runs networks, and has no engine file (`segnas profile --runtime torch` times it)",
}


def open_session(engine: bytes | Path, target: Target, *, sha256: str | None = None) -> Session:
    """Open an engine, given as its bytes or its path, on the runtime that the target names.

    With `sha256`, those bytes and no others; engines that are native code, or as good as that (AOTInductor, TensorRT), are opened only with it, and
    loading one runs its code. Given as a path, an engine of TensorRT-RTX keeps what it compiles for this GPU beside its file.
    InputError where the file is no engine of this target; IncompatibleError where it is another file, or one for another machine; RequirementError
    where this machine lacks the runtime.
    """
    opener = _opener(target.backend)
    content = engine if isinstance(engine, bytes) else _read(engine)
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise IncompatibleError(
            f"the engine has sha256 {found[:12]}, not {sha256[:12]}: it is not the one that was written; run `segnas export` again"
        )
    return opener(content, target, sha256, None if isinstance(engine, bytes) else engine)


def _opener(backend: str) -> Opener:
    if backend not in OPENERS:
        reason = NOT_OPENED.get(backend, "this version of segnas does not know it")
        raise RequirementError(
            f"an engine for runtime {backend!r} was given: {reason}; engines are opened for {', '.join(OPENERS)}: export for one of them"
        )
    module, _, name = OPENERS[backend].partition(":")
    return cast(Opener, getattr(importlib.import_module(module), name))


def require_image(image: NDArray[Any], port: Port) -> None:
    """InputError where an array is not what the engine reads."""
    if image.shape != port.shape or image.dtype != np.dtype(port.dtype):
        given = f"{image.dtype} {'x'.join(map(str, image.shape))}"
        raise InputError(f"the engine reads {port}; {given} was given: resize and normalise the image first, or export for another --size")


def require_target(specification: Specification, target: Target) -> None:
    """InputError for an engine of another size, batch, input or output contract than the target's."""
    reads, gives = specification.input, specification.output
    as_image = target.input_contract == "image"
    sides = reads.shape[:3] if as_image else (*reads.shape[:1], *reads.shape[2:])
    if as_image != (reads.dtype == "uint8") or (as_image and reads.shape[3:] != (3,)):
        raise InputError(f"the engine reads {reads}; the target's input is {target.input_contract!r}: export with that input")
    if len(reads.shape) != 4 or sides != (target.batch, target.height, target.width):
        raise InputError(
            f"the engine reads {reads}; the target is batch {target.batch}, {target.height}x{target.width}: export for it, or give its --size"
        )
    if len(gives.shape) != (3 if target.output_contract == "labels" else 4):
        raise InputError(f"the engine gives {gives}; the target's output is {target.output_contract!r}: export with that output")


def noise(port: Port, seed: int) -> NDArray[Any]:
    """A fixed random image for that input: standard normal values, or bytes."""
    generator = np.random.default_rng(seed)
    if port.dtype == "uint8":
        return generator.integers(0, 256, port.shape, np.uint8)
    return generator.standard_normal(port.shape, dtype=np.float32).astype(port.dtype, copy=False)


def agreement(answer: NDArray[Any], expected: NDArray[Any], tolerance: float) -> float:
    """Share of values that are equal: labels exactly, logits to `tolerance` times the largest; 0 where shape or type differ."""
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return 0.0
    if not np.issubdtype(answer.dtype, np.floating):
        return float((answer == expected).mean())
    largest = float(np.abs(np.nan_to_num(expected, posinf=0.0, neginf=0.0)).max())
    return float(np.isclose(answer, expected, rtol=0.0, atol=tolerance * largest, equal_nan=True).mean())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; make an engine with `segnas export`") from None

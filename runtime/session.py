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
    """What goes in and what comes out: `input` (N, C, H, W); `output` (N, H, W) labels or (N, classes, H, W) logits."""

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

    def run(self, image: NDArray[np.float32]) -> NDArray[Any]:
        """Labels or logits of a normalised image (N, C, H, W); InputError for another shape or type."""
        ...

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` calls in a row, one query in flight, on one fixed random input; nothing is allocated in between."""
        ...

    def close(self) -> None:
        """Give back what it holds; later calls raise InputError."""
        ...


Opener = Callable[[bytes, Target, str | None], Session]
"""Opens an engine's bytes for a target; the last is the sha256 that vouches for them, if there is one."""

OPENERS = {
    "aotinductor": "segnas.runtime.aotinductor_session:open_aotinductor",
    "aotinductor-cuda": "segnas.runtime.aotinductor_session:open_aotinductor",
    "onnxruntime": "segnas.runtime.onnxruntime_session:open_onnxruntime",
    "onnxruntime-cuda": "segnas.runtime.onnxruntime_cuda_session:open_onnxruntime_cuda",
}
"""What opens the engines of each runtime, named as `Target.backend` is; imported when asked for, as another runtime's machine need not have it."""

NOT_OPENED = {
    "torch": "it runs networks, and has no engine file (`segnas profile --runtime torch` times it)",
    "tensorrt": "its engines need an NVIDIA GPU, and this version of segnas does not open them yet",
    "tensorrt-rtx": "its engines need an NVIDIA RTX GPU, and this version of segnas does not open them yet",
}


def open_session(engine: bytes | Path, target: Target, *, sha256: str | None = None) -> Session:
    """Open an engine, given as its bytes or its path, on the runtime that the target names.

    With `sha256`, those bytes and no others; engines that are native code (AOTInductor) are opened only with it, and loading one runs its code.
    InputError where the file is no engine of this target; IncompatibleError where it is another file, or one for another machine; RequirementError
    where this machine lacks the runtime.
    """
    opener = _opener(target.backend)
    content = engine if isinstance(engine, bytes) else _read(engine)
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise IncompatibleError(
            f"the engine has sha256 {found[:12]}, not {sha256[:12]}: it is not the one that was written; run `segnas export` again"
        )
    return opener(content, target, sha256)


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; make an engine with `segnas export`") from None

"""Session: an engine that stands ready on its device; one protocol, one file for each backend beside this one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segnas.errors import InputError, RequirementError
from segnas.target import Target


@dataclass(frozen=True, slots=True)
class Port:
    """Name, element type as numpy writes it, and static shape of an input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {'x'.join(map(str, self.shape))}"


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
    """An open engine. It is a `segnas.latency.Timed`: several are open at once and sampled in turn."""

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


def open_session(engine: bytes | Path, target: Target) -> Session:
    """Open an engine, given as its bytes or its path, on the runtime that the target names.

    InputError where the file is no engine of this target; RequirementError where this machine lacks the runtime.
    """
    content = engine if isinstance(engine, bytes) else _read(engine)
    if target.runtime == "onnxruntime":
        from segnas.runtime.onnxruntime_session import OnnxRuntimeSession  # another runtime's machine need not have it

        return OnnxRuntimeSession(content, target)
    needs = {
        "torch": "a CUDA build of torch and an NVIDIA GPU",
        "tensorrt": "an NVIDIA GPU and `pip install segnas[tensorrt]`",
        "tensorrt-rtx": "an NVIDIA RTX GPU and `pip install segnas[tensorrt-rtx]`",
        "aotinductor": "a CUDA build of torch and an NVIDIA GPU",
    }
    raise RequirementError(
        f"an engine for runtime {target.runtime!r} was given, which needs {needs[target.runtime]}; this version of segnas opens 'onnxruntime' only"
    )


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

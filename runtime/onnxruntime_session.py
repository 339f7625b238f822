"""ONNX Runtime on the CPU: everything that it would choose by itself is said, so that a number can be measured again.

Its default number of threads costs 1.85x where there are fewer cores, and a missing provider falls back to the CPU with a warning: both are refused.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from segnas.errors import InputError, RequirementError
from segnas.files import write_error
from segnas.report import Port
from segnas.runtime.huge_pages import OPTION as HUGE_PAGES
from segnas.runtime.huge_pages import huge_pages
from segnas.runtime.session import Specification, noise, require_image, require_target
from segnas.runtime.targets import target_on_processor
from segnas.target import Target, parse_size

CPU_PROVIDER = "CPUExecutionProvider"
OPTIONS = {"optimisation": ("all", "extended", "basic", "none"), "provider": (), "spinning": ("off", "on"), HUGE_PAGES: ("on",)}
DEFAULTS = {"optimisation": "all", "provider": CPU_PROVIDER, "spinning": "off"}
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
SIZES_KEY = "sizes"
"""The entry of a dynamic engine's metadata with the sizes that it takes: `HxW:HxW:HxW`, the least, the best, the most."""

_FREE = ("height", "width")  # what a dynamic engine's varying sides are called
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
_FATAL = 4


class OnnxRuntimeSession:
    """One ONNX engine opened by ONNX Runtime; see `segnas.runtime.session.Session`."""

    def __init__(self, content: bytes, target: Target) -> None:
        self.target = target
        self._session: ort.InferenceSession | None = _opened(content, target)
        self.specification = specification_of(self._session, target)
        require_target(self.specification, target)
        _require_metadata(self._session.get_modelmeta().custom_metadata_map, target)
        self._binding: ort.IOBinding | None = None

    def run(self, image: NDArray[Any]) -> NDArray[Any]:
        """Labels or logits of an image as the target's input contract has it."""
        session = self._open()
        require_image(image, self.specification.input)
        with translated("the engine failed while running"):
            return cast(NDArray[Any], session.run([self.specification.output.name], {self.specification.input.name: image})[0])

    def sample(self, runs: int) -> tuple[float, ...]:
        """Latency in ms of each of `runs` calls in a row; input and output stay where they are."""
        session = self._open()
        binding = self._binding = self._binding or self._bound(session)
        clock, call = time.perf_counter_ns, session.run_with_iobinding
        stamps = [0] * (2 * runs)
        with translated("the engine failed while running"):
            for index in range(0, 2 * runs, 2):
                stamps[index] = clock()
                call(binding)
                stamps[index + 1] = clock()
        return tuple((after - before) / 1e6 for before, after in zip(stamps[::2], stamps[1::2], strict=True))

    def close(self) -> None:
        """Give back the session and its buffers."""
        self._binding = None
        self._session = None

    def _open(self) -> ort.InferenceSession:
        if self._session is None:
            raise InputError("this session is closed; open the engine again")
        return self._session

    def _bound(self, session: ort.InferenceSession) -> ort.IOBinding:
        reads, gives = self.specification.input, self.specification.output
        binding = session.io_binding()
        binding.bind_ortvalue_input(reads.name, ort.OrtValue.ortvalue_from_numpy(noise(reads, 0)))
        binding.bind_ortvalue_output(gives.name, ort.OrtValue.ortvalue_from_shape_and_type(list(gives.shape), np.dtype(gives.dtype).type))
        return binding


def open_onnxruntime(content: bytes, target: Target, sha256: str | None = None, path: Path | None = None) -> OnnxRuntimeSession:
    """An ONNX engine on the CPU; ONNX Runtime reads it as data, and needs no sha256. Errors are those of `open_session`."""
    return OnnxRuntimeSession(content, target)


def cpu_target(
    height: int,
    width: int,
    threads: int = 1,
    *,
    precision: str = "fp32",
    input_contract: str = "normalised",
    output_contract: str = "labels",
    batch: int = 1,
    spinning: bool = False,
    optimisation: str = "all",
) -> Target:
    """The target that this process on this machine's CPU is, with ONNX Runtime as installed; InputError for more threads than there are cores to
    run on.
    """
    memory = {HUGE_PAGES: "on"} if huge_pages() else {}
    return target_on_processor(
        "onnxruntime",
        ort.__version__,
        height,
        width,
        threads=threads,
        precision=precision,
        input_contract=input_contract,
        output_contract=output_contract,
        batch=batch,
        options={"optimisation": optimisation, "provider": CPU_PROVIDER, "spinning": "on" if spinning else "off", **memory},
    )


def optimised_nodes(content: bytes, target: Target) -> Counter[str]:
    """How many nodes of each type ONNX Runtime really runs, after fusion and changes of layout (`ReorderInput` and `ReorderOutput` among them)."""
    import onnx  # only here: running an engine does not need it

    return Counter(node.op_type for node in onnx.load_from_string(optimised_graph(content, target)).graph.node)


def optimised_graph(content: bytes, target: Target) -> bytes:
    """The graph that ONNX Runtime makes of an engine and executes, an ONNX file with operators of its own. RequirementError for a full disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        try:
            path.write_bytes(bytes(3 * len(content)))  # onnxruntime does not say that a disk is full; half weights become float32
        except OSError as error:
            raise write_error(path, error) from None
        _opened(content, target, path)
        return path.read_bytes()


def session_options(threads: int, optimisation: str) -> ort.SessionOptions:
    """What every session here has in common: nothing left to choose, nothing on stderr."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = _LEVELS[optimisation]
    options.log_severity_level = _FATAL
    return options


def _options(target: Target, optimised: Path | None) -> ort.SessionOptions:
    chosen = chosen_options(target)
    options = session_options(target.threads, chosen["optimisation"])
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if chosen["spinning"] == "on" else "0")
    for name, side in zip(_FREE, (target.height, target.width), strict=True):
        options.add_free_dimension_override_by_name(name, side)  # a dynamic engine is optimised for this size; a static one has no such sides
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return options


def chosen_options(target: Target) -> dict[str, str]:
    """The target's options over our defaults; InputError for one that does not exist."""
    for name, value in target.options:
        allowed = OPTIONS.get(name)
        if allowed is None:
            raise InputError(f"target option {name!r} was given; onnxruntime takes {', '.join(OPTIONS)}")
        if allowed and value not in allowed:
            raise InputError(f"target option {name} was given {value!r}; allowed: {', '.join(allowed)}")
    return DEFAULTS | dict(target.options)


def _opened(content: bytes, target: Target, optimised: Path | None = None) -> ort.InferenceSession:
    provider, available = chosen_options(target)["provider"], ort.get_available_providers()
    if provider not in available:
        raise RequirementError(
            f"provider {provider!r} was asked for; this build of onnxruntime {ort.__version__} has {', '.join(available)}"
            f"{'; `pip install segnas[cuda]` in an environment of its own' if 'CUDA' in provider or 'Tensorrt' in provider else ''}"
        )
    if not content:
        raise InputError("the engine is empty (0 bytes); run `segnas export` again")
    with translated("onnxruntime cannot open this engine"):
        session = ort.InferenceSession(content, _options(target, optimised), providers=[provider])
    if session.get_providers()[0] != provider:
        raise RequirementError(f"provider {provider!r} was asked for, and onnxruntime fell back to {', '.join(session.get_providers())}")
    return session


@contextmanager
def translated(what: str) -> Generator[None]:
    """Turn the exceptions of onnxruntime, which share no base of their own, into ours."""
    try:
        yield
    except MemoryError as error:
        raise RequirementError(f"{what}: out of memory ({error})") from None
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = str(error).splitlines()[0]
        if "allocate memory" in reason:
            raise RequirementError(f"{what}: out of memory; {reason}") from None
        raise InputError(f"{what}: {reason}; the file may be damaged or cut short: run `segnas export` again") from None


def specification_of(session: Any, target: Target | None = None) -> Specification:
    """What the engine reads and gives, a dynamic one at the target's size; InputError where that is no image in and map out of known sides."""
    reads, gives = session.get_inputs(), session.get_outputs()
    if len(reads) != 1 or len(gives) != 1:
        raise InputError(f"the engine has {len(reads)} inputs and {len(gives)} outputs; one image in and one map out is needed")
    free = {} if target is None else dict(zip(_FREE, (target.height, target.width), strict=True))
    ports: list[Port] = []
    for port in (reads[0], gives[0]):
        sides = [free.get(side, side) for side in port.shape]
        known = tuple(side for side in sides if isinstance(side, int))
        if len(known) != len(sides):
            raise InputError(f"the engine's {port.name!r} has shape {port.shape}; a static one is needed: run `segnas export` for one --size")
        if port.type not in _DTYPES:
            raise InputError(f"the engine's {port.name!r} has type {port.type}; allowed: {', '.join(_DTYPES)}")
        ports.append(Port(port.name, _DTYPES[port.type], known))
    return Specification(ports[0], ports[1])


def _require_metadata(metadata: Mapping[str, str], target: Target) -> None:
    """InputError where the engine itself says that it is of another precision, or takes other sizes; what says nothing is believed."""
    precision = metadata.get("precision", target.precision)
    if precision != target.precision:
        raise InputError(f"the engine is of precision {precision!r}; the target's is {target.precision!r}: export with that precision")
    if SIZES_KEY not in metadata:
        return
    try:
        least, _, most = (parse_size(text) for text in metadata[SIZES_KEY].split(":"))
    except (ValueError, InputError):
        raise InputError(f"the engine's sizes {metadata[SIZES_KEY]!r} are damaged; run `segnas export` again") from None
    if not all(low <= side <= high for low, side, high in zip(least, (target.height, target.width), most, strict=True)):
        raise InputError(
            f"the engine takes {least[0]}x{least[1]} to {most[0]}x{most[1]}; {target.height}x{target.width} was asked for: give a size between, or "
            "export for it"
        )

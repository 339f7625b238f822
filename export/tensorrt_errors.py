"""What TensorRT said, as one of our errors: its parser's with node and hint, and the steps that failed in silence but for the log."""

import re
from typing import Any

from segnas.errors import InputError, RequirementError, SegnasError
from segnas.tensorrt_api import Api

_HINTS = {
    "MODEL_DESERIALIZE_FAILED": "the file is damaged: copy it again as binary, or run `segnas export` again",
    "MEM_ALLOC_FAILED": "there is not enough memory: free some, or export for a smaller --size",
    "INVALID_GRAPH": "the graph is damaged, or a file that holds its weights is missing: run `segnas export` again",
    "INVALID_NODE": "no operator of that name or with these inputs exists in TensorRT: export with plain operators",
    "INVALID_VALUE": "a value is out of its operator's range: run `segnas export` again",
}
_UNSUPPORTED = "TensorRT has no such operator in this form: leave the operation out of the search space, or use --runtime onnxruntime-cuda"
_NO_DRIVER = "catchCudaError"
"""Of a line that TensorRT adds to any error where there is no driver: it says nothing about the error."""

_CAUSES: tuple[tuple[str, type[SegnasError], str], ...] = (
    (r"workspace", InputError, "the workspace is too small: give a larger --workspace, or none for all memory"),
    (r"no optimization profile", InputError, "a side of the input varies and no sizes were declared: export with --dynamic, or for one --size"),
    (r"OutOfMemory|out of memory|cudaErrorMemoryAllocation", RequirementError, "the GPU's memory is full: free some, or give a smaller --workspace"),
    (r"Unable to load library", RequirementError, "a library of TensorRT is not installed: see `segnas doctor`"),
    (
        r"cudaError|CUDA_SUCCESS|Cuda Runtime|no CUDA",
        RequirementError,
        "an NVIDIA GPU with a driver that is new enough is needed: see `segnas doctor`",
    ),
)


def parser_error(api: Api, parser: Any) -> InputError:
    """Every error of the parser, each with node, operator and a hint."""
    told = [_described(parser.get_error(index)) for index in range(parser.num_errors)]
    return InputError(f"{api.title} cannot read this graph: {'; '.join(dict.fromkeys(told)) or 'it does not say why'}")


def require_step(api: Api, what: str, result: Any, since: int) -> Any:
    """The result of a step of TensorRT, unless it is None or False or the log holds an error that came since the mark.

    InputError or RequirementError by what the log says; TensorRT's own words are in the message.
    """
    lines = _meant(api.log.errors(since))
    if result is None or result is False or lines:
        raise _error(api, what, lines)
    return result


def require_built(api: Api, plan: Any, since: int) -> tuple[Any, tuple[str, ...]]:
    """The plan of a build, and what was said about it that does not spoil it.

    While TensorRT times kernels it reports, as errors, those that did not fit into the GPU's memory, and goes on with others; with a plan in hand
    these are told and no reason to refuse it (our choice). Every other error line is.
    """
    lines = _meant(api.log.errors(since))
    harmless = tuple(line for line in lines if "OutOfMemory" in line) if plan is not None else ()
    if plan is None or len(harmless) < len(lines):
        raise _error(api, "build an engine", tuple(line for line in lines if line not in harmless))
    return plan, harmless


def _meant(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Errors without those that merely accompany others."""
    return tuple(dict.fromkeys(line for line in lines if _NO_DRIVER not in line)) or tuple(dict.fromkeys(lines))


def _error(api: Api, what: str, lines: tuple[str, ...]) -> SegnasError:
    told = "; ".join(_shortened(line) for line in lines) or "it does not say why"
    for pattern, kind, advice in _CAUSES:
        if any(re.search(pattern, line, re.IGNORECASE) for line in lines):
            return kind(f"{api.title} could not {what}: {told}; {advice}")
    return InputError(f"{api.title} could not {what}: {told}; try --level 2 or lower, or another runtime, and see docs/tensorrt.md")


def _described(error: Any) -> str:
    code, words = error.code().name, " ".join(str(error.desc()).split())
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node() >= 0 else ""
    hint = _UNSUPPORTED if code.startswith("UNSUPPORTED") else _HINTS.get(code, "see docs/tensorrt.md")
    return f"{node}{code}: {_shortened(words)}; {hint}"


def _shortened(line: str, most: int = 300) -> str:
    """A line without the places in NVIDIA's sources, and not without end."""
    text = re.sub(r"\s*In \w+ at /_src/[^)]*", "", " ".join(line.split()))
    text = re.sub(r"\[checkMacros\.cpp::catchCudaError.*", "", text).strip(" ;")
    return text if len(text) <= most else f"{text[:most]}..."

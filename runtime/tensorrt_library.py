"""TensorRT 10.12 to 11 and TensorRT-RTX: one way to both, with names looked up when they are used; and the logger that hears what went wrong.

Most failures of TensorRT raise nothing: a call gives None or False, and says why to the logger only. So every step is held to both.
"""

import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from segnas.errors import RequirementError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The Python module of each of the two runtimes."""

_LEAST = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 7)}
_loggers: dict[int, tuple[Any, Any]] = {}  # by the identity of a module, which is kept with its logger


class Logger(Protocol):
    """A TensorRT logger that keeps errors."""

    errors: list[str]


def tensorrt_library(runtime: str) -> Any:
    """The module of that runtime; RequirementError where it is not installed, cannot be loaded, or is too old."""
    name = MODULES[runtime]
    try:
        library: Any = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RequirementError(
            f"an engine of {runtime} needs the Python package {name}, which cannot be imported here ({reason}): `pip install segnas[{runtime}]`, and "
            "see `segnas doctor`"
        ) from None
    least = _LEAST[runtime]
    if tuple(int(part) for part in str(library.__version__).split(".")[:2]) < least:
        raise RequirementError(f"{name} {library.__version__} is installed; {'.'.join(map(str, least))} or newer is needed: `pip install -U {name}`")
    return library


def logger_of(library: Any) -> Any:
    """The one logger of that module in this process: it must outlive every object that was made with it. Its `errors` is emptied by `said`."""
    key = id(library)
    if key not in _loggers:
        _loggers[key] = (library, _logger_class(library)())
    return _loggers[key][1]


def said(logger: Logger) -> str:
    """What the logger heard of errors since the last time, in a line; empty for nothing."""
    heard, logger.errors[:] = list(dict.fromkeys(logger.errors)), []
    return "; ".join(heard[:3])


def _logger_class(library: Any) -> Callable[[], Any]:
    severity = library.ILogger.Severity

    class Heard(cast(type, library.ILogger)):
        """Keeps what TensorRT says of errors, and prints nothing."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            """Called by TensorRT."""
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Heard

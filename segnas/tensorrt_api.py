"""TensorRT and TensorRT-RTX as one: which of them is installed here, in what release, its Python module, and the logger that all of it shares.

Most of what goes wrong in TensorRT raises nothing: a call returns None or False, or a property keeps its old value, and only the logger is told. So
there is one logger a process and module, which outlives everything made with it (TensorRT keeps a bare pointer), and whoever calls TensorRT asks it
for the errors that came since. Nothing of TensorRT is imported before `open_api`, and no name of it is looked up here that one of the releases lacks
(tests hold that against recorded surfaces of 10.12, 10.16, 11.4 and RTX 1.7).
"""

import importlib
import platform
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, cast

from segnas.errors import InputError, RequirementError
from segnas.gpus import TITLES, Runtime, in_project_range, project_range

MODULES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_BAD = ("INTERNAL_ERROR", "ERROR")


class Log:
    """What TensorRT said at warning and above, in order; safe to be told from several threads."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._told = 0

    def add(self, severity: str, text: str) -> None:
        """Keep a line, unless it is mere information."""
        if severity in (*_BAD, "WARNING"):
            self._lines.append((severity, text))

    def mark(self) -> int:
        """Where the log ends now."""
        return len(self._lines)

    def errors(self, since: int) -> tuple[str, ...]:
        """Errors that came after a mark."""
        return tuple(text for severity, text in self._lines[since:] if severity in _BAD)

    def said(self) -> str:
        """Errors since this was last asked, in a line; empty for none."""
        found, self._told = self.errors(self._told), self.mark()
        return "; ".join(list(dict.fromkeys(found))[:3])

    def warnings(self, since: int) -> tuple[str, ...]:
        """Warnings that came after a mark, each once."""
        return tuple(dict.fromkeys(text for severity, text in self._lines[since:] if severity == "WARNING"))


@dataclass(frozen=True)
class Api:
    """One of the two, ready to be called: `module` is its Python module, `logger` what its objects are made with, `log` what that has heard."""

    runtime: Runtime
    version: str
    module: Any
    logger: Any
    log: Log

    @property
    def is_rtx(self) -> bool:
        """TensorRT-RTX: builds for GPUs that are not there, and finishes the kernels on the one that it runs on."""
        return self.runtime == "tensorrt-rtx"

    @property
    def title(self) -> str:
        """`TensorRT-RTX 1.7.1.116`."""
        return f"{TITLES[self.runtime]} {self.version}"


_kept: dict[int, tuple[Any, Any, Log]] = {}


def open_api(runtime: str) -> Api:
    """The installed TensorRT or TensorRT-RTX; RequirementError where it is missing, does not load, or is a release outside the project's range."""
    if runtime not in MODULES:
        raise InputError(f"runtime {runtime!r} was given; engines are built for {' and '.join(MODULES)}")
    install = f'pip install "segnas[{runtime}]"'
    try:
        module = importlib.import_module(MODULES[runtime])
    except ModuleNotFoundError as error:
        raise RequirementError(f"{TITLES[cast(Runtime, runtime)]} is not installed here ({error}); {install}, and see `segnas doctor`") from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequirementError(
            f"{TITLES[cast(Runtime, runtime)]} is installed and does not load: {reason}; its libraries come from NVIDIA's own package index or tar "
            f"file: {install} with that index, and see `segnas doctor`"
        ) from None
    return api_of(cast(Runtime, runtime), module)


def api_of(runtime: Runtime, module: Any) -> Api:
    """The Api of a module that is there already; RequirementError for a release outside the project's range."""
    version = str(module.__version__)
    if not in_project_range(runtime, version):
        raise RequirementError(
            f'{TITLES[runtime]} {version} is installed; segnas works with {project_range(runtime)}: pip install "segnas[{runtime}]"'
        )
    if id(module) not in _kept:
        log = Log()
        _kept[id(module)] = (module, _logger(module, log), log)
    _, logger, log = _kept[id(module)]
    return Api(runtime, version, module, logger, log)


@cache
def cuda_major(runtime: Runtime) -> str:
    """The CUDA that the installed package was made for (`13` of `tensorrt-rtx-cu13`); empty where its name does not say."""
    for name in metadata.packages_distributions().get(MODULES[runtime], ()):
        _, cu, major = name.replace("_", "-").removesuffix("-libs").removesuffix("-bindings").rpartition("-cu")
        if cu and major.isdecimal():
            return major
    return ""


def here() -> dict[str, str]:
    """Operating system and processor of this machine, as engines name them."""
    return {"os": platform.system(), "machine": platform.machine().lower().replace("amd64", "x86_64")}


def _logger(module: Any, log: Log) -> Any:
    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)  # pybind11 wants it by name

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT, from any of its threads."""
            log.add(severity.name, msg)

    return Logger()

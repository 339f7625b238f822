"""The C++ compiler of this machine, and the processor that it compiles for: what natively compiled engines depend on."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from segnas.errors import RequirementError


@dataclass(frozen=True, slots=True)
class Compiler:
    """A C++ compiler: the command as it is called, and its version."""

    command: str
    version: str

    def __str__(self) -> str:
        return f"{Path(self.command).name} {self.version}"


def cpp_compiler() -> Compiler | None:
    """The compiler that torch would call: `CXX`, else g++ (clang++ on a Mac); None where it is not there or does not run."""
    command = _command()
    if shutil.which(command) is None:
        return None
    try:
        asked = subprocess.run([command, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return Compiler(command, asked.stdout.strip())


def require_compiler() -> Compiler:
    """The compiler; RequirementError, with what to install, where there is none."""
    compiler = cpp_compiler()
    if compiler is None:
        raise RequirementError(
            f"a C++ compiler is needed to compile networks ahead of time, and {_command()!r} is not here or does not run; install one (Debian and "
            "Ubuntu: `apt-get install g++`), or name yours in the environment variable CXX, and see `segnas doctor`"
        )
    return compiler


def processor_digest() -> str:
    """12 hex digits of the processor's model and instruction sets: code that was compiled for one may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    kept = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), *kept]).encode()).hexdigest()[:12]


def _command() -> str:
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")

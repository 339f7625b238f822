"""Huge pages: whether the memory of this process comes in pages of 2 MB, which changes what a network takes by some percent.

glibc asks the kernel for them when a process was started with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (2.35 and later), and the kernel gives them
where its transparent huge pages are not switched off. Networks on ONNX Runtime took 0.95 to 0.96 of their time so (docs/measuring.md). It is a
condition of a figure like a thread count: a table that was measured with them holds with them.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

OPTION = "huge_pages"
"""The target option that says so, as `on`; absent without them."""

SETTING = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
"""What to start a process with."""

_ENVIRONMENT, _KERNEL = Path("/proc/self/environ"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SINCE = (2, 35)


def huge_pages() -> bool:
    """Whether this process was started so that its memory comes in huge pages, on a system that gives them."""
    return is_asked_for(_started_with()) and huge_pages_allowed()


def huge_pages_allowed() -> bool:
    """Whether a process that asks for huge pages is given them here: by its C library and by the kernel."""
    kernel = ""
    with suppress(OSError):
        kernel = _KERNEL.read_text(encoding="utf-8")
    return _libc() >= _SINCE and re.search(r"\[(always|madvise)\]", kernel) is not None


def is_asked_for(tunables: str) -> bool:
    """Whether `GLIBC_TUNABLES` with that value asks for huge pages: `name=value` pairs between colons, of which the last of a name holds."""
    values = [value for name, _, value in (pair.partition("=") for pair in tunables.split(":")) if name == "glibc.malloc.hugetlb"]
    return values[-1:] in (["1"], ["2"])


def _started_with() -> str:
    """`GLIBC_TUNABLES` as it was when this process began: what is set later has no effect."""
    with suppress(OSError):
        pairs = (entry.partition(b"=") for entry in _ENVIRONMENT.read_bytes().split(b"\0"))
        return next((value.decode(errors="replace") for name, _, value in pairs if name == b"GLIBC_TUNABLES"), "")
    return os.environ.get("GLIBC_TUNABLES", "")


def _libc() -> tuple[int, ...]:
    """The version of glibc; empty for another C library."""
    told = ""
    with suppress(AttributeError, OSError, ValueError):
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    found = re.fullmatch(r"glibc (\d+)\.(\d+)", told)
    return tuple(map(int, found.groups())) if found else ()

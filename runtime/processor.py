"""The processor that a session runs on: its name, and how many of its cores may be used."""

import os
import platform
from contextlib import suppress
from pathlib import Path

WIDEST = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2")
"""Instructions, as Linux names them, by which runtimes choose kernels, the most capable first."""


def device_name() -> str:
    """The CPU's model, as exactly as the system tells it, and the machine's number of cores."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        model = model_of(Path("/proc/cpuinfo").read_text(encoding="utf-8")) or model
    count = os.cpu_count() or 1
    return f"{' '.join(model.split())}, {count} core{'s' if count > 1 else ''}"


def model_of(cpuinfo: str) -> str:
    """The model that Linux's /proc/cpuinfo tells; empty where it tells none.

    Virtual machines call processors of several generations by one name ("AMD EPYC" here one with AVX2, there one with AVX-512 that takes other times
    for the same work), so family, model and the most capable of `WIDEST` stand behind it.
    """
    told: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        told.setdefault(name.strip(), value.strip())
    name = told.get("model name") or told.get("Hardware") or ""
    widest = next((flag for flag in WIDEST if flag in told.get("flags", "").split()), "")
    exact = [f"{words} {told[key]}" for key, words in (("cpu family", "family"), ("model", "model")) if key in told] + [widest] * bool(widest)
    return f"{name} ({', '.join(exact)})" if name and exact else name


def available_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

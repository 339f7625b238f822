"""The processor that a session runs on: its name, and how many of its cores may be used."""

import os
import platform
from pathlib import Path


def device_name() -> str:
    """The CPU's model and the machine's number of cores."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))), model)
    except OSError:
        pass
    count = os.cpu_count() or 1
    return f"{' '.join(model.split())}, {count} core{'s' if count > 1 else ''}"


def available_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

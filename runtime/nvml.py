"""What the driver says of a GPU, by NVML where nvidia-ml-py is installed: clocks, temperature, and why a clock is held down."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from segnas.timing import percentile

CLOCK_TOLERANCE = 0.02
_THROTTLES = {0x04: "power cap", 0x08: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}  # bits in nvml.h


class Clocks(NamedTuple):
    """What NVML says of this moment: clocks in MHz, degrees Celsius, and the reasons for which the clock is held down."""

    sm_mhz: int
    memory_mhz: int
    temperature_c: int
    throttled: tuple[str, ...] = ()


class GpuClock(Protocol):
    """What timing needs of a device: events on its stream, the host's clock, and the GPU's own clocks."""

    def event(self) -> Any:
        """An event, recorded now on the stream."""
        ...

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Time between two events that have happened."""
        ...

    def synchronise(self) -> None:
        """Wait for all that was enqueued."""
        ...

    def host_ms(self) -> float:
        """The host's clock."""
        ...

    def clocks(self) -> Clocks | None:
        """The clocks now, work still under way; None where they cannot be read."""
        ...


def steady_at(clocks: Sequence[Clocks | None]) -> list[bool]:
    """Which samples of one call count: nothing held the clocks down, and both lay within 2 % of the call's median.

    Of the call's, not of the session's: what a slow drift does to a sample it does to the sentinel's beside it, and to wait until the clock comes
    back takes them apart (simulated drift of 10 %: worst error of a table's sums 1.0 % that way, 0.6 % this way, in 60 % of the time).
    """
    known = [reading for reading in clocks if reading is not None]
    if not known:
        return [True] * len(clocks)
    middle = middle_clocks(known)
    return [
        reading is None
        or (
            not reading.throttled
            and all(abs(here - there) <= CLOCK_TOLERANCE * there for here, there in zip((reading.sm_mhz, reading.memory_mhz), middle, strict=True))
        )
        for reading in clocks
    ]


def middle_clocks(readings: Sequence[Clocks]) -> tuple[float, float]:
    """Median SM and memory clock in MHz, of the moments at which nothing held them down, if there were any."""
    free = [reading for reading in readings if not reading.throttled] or readings
    return percentile([reading.sm_mhz for reading in free], 50), percentile([reading.memory_mhz for reading in free], 50)


def nvml_clocks(identity: str) -> Callable[[], Clocks | None]:
    """What reads the clocks of the device with that UUID or PCI bus id (`0000:65:00.0`).

    It gives None where nvidia-ml-py is not installed or the driver does not tell.
    """
    found = _device(identity)
    if found is None:
        return lambda: None
    nvml, handle = found

    def read() -> Clocks | None:
        try:
            held = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            sm, memory = (int(nvml.nvmlDeviceGetClockInfo(handle, which)) for which in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM))
            celsius = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        except nvml.NVMLError:
            return None
        return Clocks(sm, memory, celsius, tuple(reason for bit, reason in _THROTTLES.items() if held & bit))

    return read


def driver_version() -> str:
    """The NVIDIA driver's version; `unknown` where NVML does not tell."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return "unknown"
    try:
        nvml.nvmlInit()
        found: object = nvml.nvmlSystemGetDriverVersion()
    except nvml.NVMLError:
        return "unknown"
    return found.decode() if isinstance(found, bytes) else str(found)


def _device(identity: str) -> tuple[Any, Any] | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        if ":" in identity:
            return nvml, nvml.nvmlDeviceGetHandleByPciBusId(identity.encode())
        return nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity.removeprefix('GPU-')}")
    except nvml.NVMLError:
        return None

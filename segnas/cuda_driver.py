"""The NVIDIA driver of this machine and the GPUs that it shows to this process, asked by the driver's own C interface: no CUDA package is needed."""

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

# Of CUdevice_attribute in cuda.h.
_PROCESSORS, _BUS_BITS, _L2_BYTES, _MAJOR, _MINOR = 16, 37, 38, 75, 76


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as the driver describes it: what an engine that was tuned for one GPU depends on."""

    name: str
    compute_capability: str
    processors: int
    bus_bits: int
    l2_bytes: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """The newest CUDA that the driver serves (`13.1`), and its GPUs in the order in which CUDA counts them."""

    cuda: str
    devices: tuple[Device, ...]


def cuda_driver(library: Any = None) -> Driver | None:
    """The driver, or None where there is none, or none that starts; without a GPU (or with CUDA_VISIBLE_DEVICES empty) it has no devices.

    `library` stands in for the driver's library in tests.
    """
    loaded = _library() if library is None else library
    if loaded is None or loaded.cuInit(0) not in (0, _NO_DEVICE):
        return None
    version, count = ctypes.c_int(), ctypes.c_int()
    if loaded.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    if loaded.cuDeviceGetCount(ctypes.byref(count)) != 0:
        count.value = 0
    devices = (_device(loaded, index) for index in range(count.value))
    return Driver(f"{version.value // 1000}.{version.value % 1000 // 10}", tuple(device for device in devices if device is not None))


_NO_DEVICE = 100


def first_device() -> Device | None:
    """The GPU that this process would use, if there is one."""
    driver = cuda_driver()
    return driver.devices[0] if driver is not None and driver.devices else None


def _library() -> Any:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _device(library: Any, index: int) -> Device | None:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    if library.cuDeviceGet(ctypes.byref(handle), index) != 0:
        return None
    asked = (
        library.cuDeviceGetName(name, len(name), handle),
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle),
    )
    numbers = [_attribute(library, which, handle) for which in (_MAJOR, _MINOR, _PROCESSORS, _BUS_BITS, _L2_BYTES)]
    if any(asked) or None in numbers:
        return None
    major, minor, processors, bus_bits, l2_bytes = (number or 0 for number in numbers)
    return Device(name.value.decode(errors="replace"), f"{major}.{minor}", processors, bus_bits, l2_bytes, memory.value)


def _attribute(library: Any, which: int, handle: ctypes.c_int) -> int | None:
    value = ctypes.c_int()
    return value.value if library.cuDeviceGetAttribute(ctypes.byref(value), which, handle) == 0 else None

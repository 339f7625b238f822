"""The driver's C interface, on a library that is not the driver's."""

import ctypes
from typing import Any

from segnas.cuda_driver import Device, Driver, cuda_driver


class Library:
    """libcuda as cuda.h has it: each function gives a CUresult, and its answers through pointers."""

    def __init__(self, *, version: int = 13010, started: int = 0, gpus: int = 1, failing: str = "") -> None:
        self.version, self.started, self.gpus, self.failing = version, started, gpus, failing

    def _put(self, name: str, pointer: Any, value: int) -> int:
        pointer._obj.value = value
        return 999 if name == self.failing else 0

    def cuInit(self, flags: int) -> int:
        return self.started

    def cuDriverGetVersion(self, version: Any) -> int:
        return self._put("cuDriverGetVersion", version, self.version)

    def cuDeviceGetCount(self, count: Any) -> int:
        return self._put("cuDeviceGetCount", count, self.gpus)

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        return self._put("cuDeviceGet", handle, index)

    def cuDeviceGetName(self, name: Any, length: int, handle: ctypes.c_int) -> int:
        name.value = f"NVIDIA Card {handle.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, handle: ctypes.c_int) -> int:
        return self._put("cuDeviceTotalMem_v2", memory, 24 << 30)

    def cuDeviceGetAttribute(self, value: Any, which: int, handle: ctypes.c_int) -> int:
        numbers = {16: 128, 37: 384, 38: 72 << 20, 75: 8, 76: 9}
        return self._put("cuDeviceGetAttribute", value, numbers[which])


def test_what_the_driver_says() -> None:
    found = cuda_driver(Library(gpus=2))
    assert found == Driver("13.1", tuple(Device(f"NVIDIA Card {i}", "8.9", 128, 384, 72 << 20, 24 << 30) for i in range(2)))


def test_versions_are_those_of_cuda() -> None:
    assert [cuda_driver(Library(version=v, gpus=0)) for v in (12090, 13000)] == [Driver("12.9", ()), Driver("13.0", ())]


def test_a_driver_without_a_gpu_and_none_at_all() -> None:
    assert cuda_driver(Library(started=100, gpus=0)) == Driver("13.1", ())
    assert cuda_driver(Library(started=3)) is None
    assert cuda_driver(Library(failing="cuDriverGetVersion")) is None
    assert cuda_driver(Library(failing="cuDeviceGetCount")) == Driver("13.1", ())


def test_a_gpu_that_does_not_answer_is_left_out() -> None:
    for failing in ("cuDeviceGet", "cuDeviceTotalMem_v2", "cuDeviceGetAttribute"):
        assert cuda_driver(Library(failing=failing)) == Driver("13.1", ())


def test_this_machine_answers_either_way() -> None:
    found = cuda_driver()
    assert found is None or found.cuda.count(".") == 1

"""NVML: what is read, and that nothing is where it cannot be."""

import sys
import types

import pytest

from segnas.runtime.nvml import Clocks, driver_version, nvml_clocks


class NVMLError(Exception):
    pass


def refuse(*_: object) -> None:
    raise NVMLError


@pytest.fixture
def nvml(monkeypatch) -> types.SimpleNamespace:
    """A module like pynvml with one GPU."""
    answers = {"nvmlDeviceGetClockInfo": lambda handle, which: {1: 1500, 2: 3200}[which], "nvmlDeviceGetTemperature": lambda handle, which: 61}
    nvml = types.SimpleNamespace(NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0, nvmlInit=lambda: None, **answers)
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: {"GPU-0123": 1}[uuid]
    nvml.nvmlDeviceGetHandleByPciBusId = lambda bus: {b"0000:65:00.0": 1}[bus]
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x1 | 0x4 | 0x40
    nvml.nvmlSystemGetDriverVersion = lambda: b"580.159.03"
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


@pytest.mark.parametrize("identity", ["0123", "GPU-0123", "0000:65:00.0"])
def test_clocks_are_those_of_the_device(nvml, identity):
    read = nvml_clocks(identity)
    assert read() == Clocks(1500, 3200, 61, ("power cap", "hardware thermal"))
    nvml.nvmlDeviceGetClockInfo = refuse
    assert read() is None
    nvml.nvmlDeviceGetHandleByUUID = nvml.nvmlDeviceGetHandleByPciBusId = refuse
    assert nvml_clocks(identity)() is None


def test_the_drivers_version_is_told_or_unknown(nvml):
    assert driver_version() == "580.159.03"
    nvml.nvmlSystemGetDriverVersion = refuse
    assert driver_version() == "unknown"


def test_nothing_is_read_without_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml_clocks("0123")() is None
    assert driver_version() == "unknown"

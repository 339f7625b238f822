"""The processor's name: two generations that a virtual machine calls by one name are two devices."""

import pytest

from segnas.runtime.processor import device_name, model_of

X86 = "processor\t: 0\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx {flags}\n\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n\nHardware\t: BCM2835\n"


@pytest.mark.parametrize(
    ("cpuinfo", "model"),
    [
        (X86.format(family=25, model=1, flags="avx2 fma"), "AMD EPYC (family 25, model 1, avx2)"),
        (X86.format(family=26, model=2, flags="avx2 avx512f avx512_vnni"), "AMD EPYC (family 26, model 2, avx512_vnni)"),
        (X86.format(family=26, model=2, flags="avx2 avx512f"), "AMD EPYC (family 26, model 2, avx512f)"),
        (X86.format(family=6, model=44, flags=""), "AMD EPYC (family 6, model 44)"),
        (X86.format(family=25, model=1, flags="avx2") + X86.format(family=6, model=9, flags="avx512f"), "AMD EPYC (family 25, model 1, avx2)"),
        (ARM, "BCM2835"),
        ("processor\t: 0\n", ""),
        ("", ""),
    ],
)
def test_a_model_is_told_as_exactly_as_the_system_knows_it(cpuinfo: str, model: str) -> None:
    assert model_of(cpuinfo) == model


def test_the_name_ends_with_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, words in ((1, ", 1 core"), (8, ", 8 cores"), (None, ", 1 core")):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        assert device_name().endswith(words)
        assert len(device_name()) > len(words)

"""What a package must be before any of its code is loaded: made of nothing but what a reader may trust."""

import hashlib
import io
import json
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import torch

from segnas.compiler import processor_digest
from segnas.errors import IncompatibleError, InputError
from segnas.report import Port
from segnas.runtime.package import read_package
from segnas.target import Target

TARGET = Target("a CPU", "aotinductor", str(torch.__version__), "fp32", 8, 16, options=(("device", "cpu"),))
TOLD = {
    "AOTI_DEVICE_KEY": "cpu",
    "segnas.architecture": "0123456789ab",
    "segnas.input": "input float32 1x3x8x16",
    "segnas.output": "labels uint8 1x8x16",
    "segnas.processor": processor_digest(),
    "segnas.threads": "1",
    "segnas.torch": str(torch.__version__),
}
PLACE = "model/data/aotinductor/model"


def package(told: object = None, **more: bytes) -> bytes:
    """The archive that AOTInductor writes, without the code; `more` are members by name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{PLACE}/a.wrapper.so", b"code")
        archive.writestr(f"{PLACE}/a.wrapper.cpp", "source")
        archive.writestr(f"{PLACE}/a.kernel_metadata.json", json.dumps({"AOTI_DEVICE_KEY": "cpu"}))
        archive.writestr(f"{PLACE}/a.wrapper_metadata.json", json.dumps(TOLD if told is None else told))
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/.data/serialization_id", "1")
        for name, content in more.items():
            archive.writestr(name, content)
    return stream.getvalue()


def read(content: bytes, target: Target = TARGET) -> Any:
    return read_package(content, target, hashlib.sha256(content).hexdigest())


def test_a_package_says_what_it_reads_and_gives():
    found = read(package())
    assert found.specification.input == Port("input", "float32", (1, 3, 8, 16))
    assert found.specification.output == Port("labels", "uint8", (1, 8, 16))
    assert found.architecture == "0123456789ab"


def test_it_is_opened_only_by_its_sha256():
    content = package()
    with pytest.raises(InputError, match=r"without its sha256; it is native code"):
        read_package(content, TARGET, None)
    other = hashlib.sha256(package({**TOLD, "more": "x"})).hexdigest()
    with pytest.raises(IncompatibleError, match=f"the package's sha256 is not {other[:12]}"):
        read_package(content, TARGET, other)


@pytest.mark.parametrize("name", ["model/data/weights/w.pt", "model/models/model.json", "model/data/sample_inputs/model.pt", "evil.pkl", "../x.so"])
def test_a_package_with_anything_else_inside_is_refused(name):
    """Pickled weights and sample inputs above all: what loads them unpickles."""
    with pytest.raises(InputError, match=f"the package holds '{name}'; one compiled network and nothing else"):
        read(package(**{name: b"anything"}))


@pytest.mark.parametrize("content", [b"", b"no archive", package()[:-30], package()[:100]])
def test_what_is_no_archive_is_refused(content):
    with pytest.raises(InputError, match=r"this is no package of AOTInductor .*segnas export"):
        read(content)


@pytest.mark.parametrize("told", [{}, {"AOTI_DEVICE_KEY": "cpu"}, [], "text", 3])
def test_a_package_of_somebody_else_is_refused(told):
    with pytest.raises(InputError, match="does not say what it reads and gives"):
        read(package(told))


@pytest.mark.parametrize("name", ["segnas.input", "segnas.output"])
@pytest.mark.parametrize("text", ["", "input", "input float32", "input float32 1x", "input float32 1x3x8x16x", "input float32 ax3"])
def test_a_port_that_is_none_is_refused(name, text):
    with pytest.raises(InputError, match=f"the package's {name} is "):
        read(package({**TOLD, name: text}))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AOTI_DEVICE_KEY", "cuda", "device 'cuda', not 'cpu'"),
        ("segnas.torch", "2.11.0", "torch '2.11.0', not"),
        ("segnas.processor", "000000000000", "processor '000000000000', not"),
        ("segnas.threads", "2", "threads '2', not '1'"),
    ],
)
def test_code_for_something_else_is_never_loaded(name, value, words):
    with pytest.raises(IncompatibleError, match=f"was compiled for {words}.*run `segnas export --runtime aotinductor` here"):
        read(package({**TOLD, name: value}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"height": 9}, "the target is batch 1, 9x16"),
        ({"batch": 2}, "the target is batch 2, 8x16"),
        ({"output_contract": "logits"}, "the target's output is 'logits'"),
    ],
)
def test_a_package_of_another_target_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        read(package(), replace(TARGET, **changes))

"""What is compiled ahead of time, when, and what is refused; the compiler itself runs in tests/runtime/test_aotinductor_session.py."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segnas.arch import Architecture, Node
from segnas.compiler import cpp_compiler
from segnas.errors import IncompatibleError, InputError, RequirementError
from segnas.export import aotinductor
from segnas.export.aotinductor import compile_probes, package_from_network
from segnas.kinds import kind
from segnas.network import Network, initialised
from segnas.target import Target

pytestmark = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


def architecture(classes: int = 5) -> Architecture:
    return Architecture((Node(kind("image"), (), 3), Node(kind("conv"), (0,), 8), Node(kind("classifier"), (1,), classes)))


def target_of(**changes: Any) -> Target:
    options = (("compiler", str(cpp_compiler())), ("device", "cpu"), ("isa", "any"))
    return Target("a CPU", "aotinductor", str(torch.__version__), "fp32", **({"height": 8, "width": 16, "options": options} | changes))


@pytest.fixture
def compiled(monkeypatch) -> list[str]:
    """What would have been compiled: each package is a line of text that says of what."""
    made: list[str] = []

    def compile_nothing(network: Network, target: Target, metadata: dict[str, str]) -> bytes:
        made.append(f"{network.architecture.digest} {target} {target.output_contract} {metadata} {len(made)}")
        return made[-1].encode() * 100

    monkeypatch.setattr(aotinductor, "_compiled", compile_nothing)
    return made


def test_a_network_is_compiled_once_for_each_thing_that_it_depends_on(compiled, tmp_path):
    network, target = initialised(architecture(), 0), target_of()
    first = package_from_network(network, target, cache=tmp_path)
    assert package_from_network(initialised(architecture(), 0), target, cache=tmp_path) == first
    assert len(compiled) == 1
    options = dict(target.options)
    others: list[Callable[[], bytes]] = [
        lambda: package_from_network(initialised(architecture(), 1), target, cache=tmp_path),
        lambda: package_from_network(initialised(architecture(6), 0), target, cache=tmp_path),
        lambda: package_from_network(network, target, metadata={"classes": "a"}, cache=tmp_path),
        *(
            lambda changes=changes: package_from_network(network, dataclasses.replace(target, **changes), cache=tmp_path)
            for changes in (
                {"height": 16},
                {"batch": 2},
                {"threads": 2},
                {"output_contract": "logits"},
                {"device": "another CPU"},
                {"options": tuple(sorted((options | {"isa": "other"}).items()))},
            )
        ),
    ]
    for count, other in enumerate(others, 2):
        assert other() != first
        assert len(compiled) == count
        other()
        assert len(compiled) == count
    assert len(list(tmp_path.iterdir())) == len(compiled)


def test_code_of_another_definition_is_compiled_again(compiled, tmp_path, monkeypatch):
    network, target = initialised(architecture(), 0), target_of()
    package_from_network(network, target, cache=tmp_path)
    monkeypatch.setattr(aotinductor, "_stamp", lambda: "operations were changed")
    package_from_network(network, target, cache=tmp_path)
    assert len(compiled) == 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-5], lambda b: b[:20], lambda b: b"", lambda b: b[:40] + b"!" + b[41:], lambda b: b"x" * 32 + b[32:]]
)
def test_a_package_that_is_not_what_was_written_is_made_again(compiled, tmp_path, damage):
    network, target = initialised(architecture(), 0), target_of()
    package_from_network(network, target, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again = package_from_network(network, target, cache=tmp_path)
    assert again == compiled[1].encode() * 100
    assert package_from_network(network, target, cache=tmp_path) == again
    assert len(compiled) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(compiled, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for _ in range(2):
        assert package_from_network(initialised(architecture(), 0), target_of(), cache=tmp_path / "file" / "packages")
    assert len(compiled) == 2


def test_probes_that_are_there_start_no_process(compiled, tmp_path):
    jobs = [(architecture(classes), target_of()) for classes in (5, 6)]
    for made, target in jobs:
        package_from_network(initialised(made, 0).eval(), target, cache=tmp_path)
    assert compile_probes([*jobs, *jobs], cache=tmp_path) == 0


def test_what_cannot_be_compiled_is_refused(compiled, tmp_path):
    broken = initialised(architecture(), 0)
    with torch.no_grad():
        next(broken.parameters())[0] = float("nan")
    network, target = initialised(architecture(), 0), target_of()
    cuda = tuple(sorted((dict(target.options) | {"device": "cuda"}).items()))
    cases: list[tuple[Network, dict[str, Any], type[Exception], str]] = [
        (network, {"runtime": "onnxruntime"}, InputError, "compiles aotinductor"),
        (network, {"precision": "fp16"}, InputError, "aotinductor compiles fp32"),
        (network, {"input_contract": "image"}, InputError, "compiles normalised"),
        (broken, {}, InputError, r"NaN or infinity \(nodes\.1"),
        (initialised(architecture(257), 0), {}, InputError, "257 classes do not fit"),
        (network, {"runtime_version": "2.11.0"}, IncompatibleError, "runtime_version: the target has '2.11.0'"),
        (network, {"options": (("compiler", "g++ 1.0"),)}, IncompatibleError, r"compiler: the target has 'g\+\+ 1\.0'"),
    ]
    if not torch.cuda.is_available():
        cases.append((network, {"options": cuda, "scope": "gpu"}, RequirementError, "a CUDA device is needed to compile for aotinductor-cuda"))
    for given, changes, error, words in cases:
        with pytest.raises(error, match=words):
            package_from_network(given, dataclasses.replace(target, **changes), cache=tmp_path)
    assert not compiled
    assert package_from_network(initialised(architecture(257), 0), dataclasses.replace(target, output_contract="logits"), cache=tmp_path)


def test_without_a_compiler_nothing_is_begun(compiled, tmp_path: Path, monkeypatch):
    target = target_of()
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    for call in (
        lambda: package_from_network(initialised(architecture(), 0), target, cache=tmp_path),
        lambda: compile_probes([(architecture(), target)], cache=tmp_path),
    ):
        with pytest.raises(RequirementError, match=r"C\+\+ compiler is needed"):
            call()
    assert not compiled

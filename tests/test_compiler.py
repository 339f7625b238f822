"""The C++ compiler: asked of whatever CXX names, and missed in words."""

import sys
from pathlib import Path

import pytest

from segnas.compiler import Compiler, cpp_compiler, processor_digest, require_compiler
from segnas.doctor import aotinductor_check
from segnas.errors import RequirementError


def program(path: Path, body: str) -> str:
    """An executable Python program."""
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_the_compiler_is_what_cxx_names(tmp_path, monkeypatch):
    command = program(tmp_path / "my-c++", 'assert "-dumpversion" in sys.argv\nprint("99.1.0")')
    monkeypatch.setenv("CXX", command)
    found = cpp_compiler()
    assert found == require_compiler() == Compiler(command, "99.1.0")
    assert str(found) == "my-c++ 99.1.0"
    assert aotinductor_check(found).ok


@pytest.mark.parametrize("broken", [False, True])
def test_without_a_compiler_it_says_what_to_install(tmp_path, monkeypatch, broken):
    command = str(tmp_path / "none") if not broken else program(tmp_path / "broken", "raise SystemExit(1)")
    monkeypatch.setenv("CXX", command)
    assert cpp_compiler() is None
    with pytest.raises(RequirementError, match=r"a C\+\+ compiler is needed .*apt-get install g\+\+.*CXX.*segnas doctor"):
        require_compiler()
    check = aotinductor_check(None)
    assert not check.ok
    assert "g++" in check.advice


def test_the_processor_has_one_digest():
    assert processor_digest() == processor_digest()
    assert len(processor_digest()) == 12
    int(processor_digest(), 16)

"""The package map of pyproject.toml, the four links and the pins agree with what is on the disk."""

import ast
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("search", "export", "runtime", "latency_tables")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE_DIR: dict[str, str] = PYPROJECT["tool"]["setuptools"]["package-dir"]


def folders_with_code() -> list[Path]:
    """Top folders that hold Python files, without environments, builds and runs."""
    return [ROOT / name for name in ("segnas", *PARTS, "tests", "scripts")]


def python_files() -> list[Path]:
    """Every Python file once, by its real path (rglob does not follow links)."""
    return sorted(chain.from_iterable(folder.rglob("*.py") for folder in folders_with_code()))


def test_every_package_on_disk_is_in_the_map_and_the_reverse():
    on_disk = {
        file.parent.relative_to(ROOT).as_posix()
        for file in python_files()
        if file.name == "__init__.py" and not any(parent.is_symlink() for parent in file.parents)
    }
    assert set(PACKAGE_DIR.values()) == on_disk
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == set(PACKAGE_DIR)


def test_every_folder_of_modules_is_a_package():
    """A folder with modules and no __init__.py works from a checkout and is silently absent from a wheel."""
    bare = {file.parent for part in ("segnas", *PARTS) for file in (ROOT / part).rglob("*.py") if not (file.parent / "__init__.py").exists()}
    assert not bare


@pytest.mark.parametrize("part", PARTS)
def test_link_is_relative_and_resolves(part: str):
    link = ROOT / "segnas" / part
    assert link.is_symlink()
    assert link.readlink() == Path("..") / part
    assert link.resolve() == ROOT / part
    assert PACKAGE_DIR[f"segnas.{part}"] == part


def imported_names(file: Path) -> set[str]:
    """Top-level names that a file imports; a relative import counts as its dots."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level or (node.module or "").split(".")[0])
    return names


def test_no_file_imports_a_root_folder_by_its_bare_name():
    guilty = {file.relative_to(ROOT).as_posix(): sorted(bad) for file in python_files() if (bad := imported_names(file) & {*PARTS, ".", "..", "..."})}
    assert not guilty


def constraints() -> dict[str, str]:
    """Pinned version of each distribution in constraints.txt, by canonical name."""
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    return pins


def test_constraints_pin_every_dependency_within_its_range():
    """Of the project and of the extras that the gate installs; the extras for NVIDIA machines are not pinned."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    pins = constraints()
    for requirement in map(Requirement, [*project["dependencies"], *extras["dev"], *extras["tensorrt-rtx"]]):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt pins no {name}"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not admit {pins[name]}"


def test_constraints_name_no_local_version():
    assert not [name for name, version in constraints().items() if "+" in version]

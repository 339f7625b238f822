"""Record the public Python surface of a TensorRT: names, members, parameters; what tests/export/surfaces/*.json were made with.

    python scripts/record_tensorrt_api.py tensorrt_rtx OUT.json            the installed package
    python scripts/record_tensorrt_api.py WHEEL.whl OUT.json               a bindings wheel, such as tensorrt_cu13_bindings-11.4.0.106-*.whl

A bindings wheel holds the Python surface and none of the libraries beneath: it is imported against empty ones, made here with gcc, that export the
few symbols that the wheel looks for (`createInferBuilder_INTERNAL` and its like). Nothing of them can be called, and nothing is. The wheel must be
one for the Python that runs this script; take it with `pip download --no-deps tensorrt-cu13-bindings==11.4.0.106`. The classes of single layers and
of plugins are left out: segnas builds from ONNX files and uses neither.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import types
import zipfile
from pathlib import Path
from typing import Any

SYMBOLS = re.compile(r" U (\w+_INTERNAL|get\w*PluginRegistry|getNvOnnxParserVersion|initLibNvInferPlugins)\b")
LEFT_OUT = re.compile(r"I?Plugin|I?\w+Layer$|IExprBuilder|IDimensionExpr|DynamicPlugin")
LIBRARIES = re.compile(r"NEEDED\s+(libnv\w+\.so\.\d+)")


def surface_of(module: types.ModuleType) -> dict[str, Any]:
    """The public classes and functions of the module: enumerations by their members, classes by methods, properties and bases."""
    names = {name: value for name, value in vars(module).items() if not name.startswith("_") and LEFT_OUT.match(name) is None}
    classes = {name: _class(value) for name, value in sorted(names.items()) if isinstance(value, type)}
    functions = {name: _calls(value) for name, value in sorted(names.items()) if callable(value) and not isinstance(value, type)}
    return {"module": module.__name__, "version": module.__version__, "classes": classes, "functions": functions}


def _class(made: type) -> dict[str, Any]:
    members = {name: getattr(made, name) for name in dir(made) if not name.startswith("_")}
    if hasattr(made, "__members__"):
        return {"values": {name: int(value) for name, value in sorted(made.__members__.items())}}
    properties = {name: value for name, value in members.items() if isinstance(value, property)}
    return {
        "bases": [base.__name__ for base in made.__mro__[1:] if base.__module__ != "builtins" and "pybind11" not in base.__module__],
        "made": _calls(made.__init__),
        "properties": {name: "read and write" if value.fset else "read" for name, value in sorted(properties.items())},
        "methods": {name: _calls(value) for name, value in sorted(members.items()) if callable(value) and not isinstance(value, type)},
        "constants": sorted(name for name, value in members.items() if (name not in properties and not callable(value)) or isinstance(value, type)),
    }


def _calls(function: Any) -> list[list[str]]:
    """The parameters of each overload, `=` behind those that may be left out, as pybind11 writes them into the docstring; empty where it does not."""
    name = re.escape(getattr(function, "__name__", ""))
    found = re.findall(rf"^\s*(?:\d+\. )?{name}\((.*)\) -> ", getattr(function, "__doc__", None) or "", re.M)
    return [[_parameter(part) for part in _split(text)] for text in found if text != "*args, **kwargs"]


def _split(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _parameter(text: str) -> str:
    return text.partition(":")[0].strip() + ("=" if "=" in text else "")


def _from_wheel(wheel: Path) -> None:
    """In a new process: unpack the wheel, make empty libraries for it, and import it there."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        bindings = next(Path(folder).glob("*_bindings/*.so"))
        told = subprocess.run(["objdump", "-p", bindings], capture_output=True, text=True, check=True).stdout
        undefined = subprocess.run(["nm", "-D", "--undefined-only", bindings], capture_output=True, text=True, check=True).stdout
        source = Path(folder) / "empty.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in sorted(set(SYMBOLS.findall(undefined)))))
        for library in LIBRARIES.findall(told):
            subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", f"{folder}/{library}", source], check=True)
        environment = os.environ | {"LD_LIBRARY_PATH": folder, "PYTHONPATH": folder}
        subprocess.run([sys.executable, __file__, bindings.parent.name, sys.argv[2]], env=environment, check=True)


def main() -> None:
    """Write the surface of what was named."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if sys.argv[1].endswith(".whl"):
        _from_wheel(Path(sys.argv[1]))
        return
    surface = surface_of(importlib.import_module(sys.argv[1]))
    lines = [
        f'"{part}": {{\n' + ",\n".join(f"{json.dumps(n)}: {json.dumps(v)}" for n, v in surface[part].items()) + "\n}"
        for part in ("classes", "functions")
    ]
    text = f'{{"module": {json.dumps(surface["module"])}, "version": {json.dumps(surface["version"])},\n' + ",\n".join(lines) + "}\n"
    Path(sys.argv[2]).write_text(text, encoding="utf-8")
    print(f"{sys.argv[2]}: {surface['module']} {surface['version']}, {len(surface['classes'])} classes, {len(text)} bytes")


if __name__ == "__main__":
    main()

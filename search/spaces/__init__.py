"""The search spaces of the published papers and our own, one module each, as plain data without torch; and spaces of a user's own file."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from segnas.errors import InputError, UsageError
from segnas.search.space import Space
from segnas.search.spaces.autodeeplab import auto_deeplab, auto_deeplab_small
from segnas.search.spaces.cas import cas, cas_fast, cas_tiny
from segnas.search.spaces.darts import darts, darts_tiny
from segnas.search.spaces.dcnas import dcnas, dcnas_small
from segnas.search.spaces.dpc import dpc, dpc_small
from segnas.search.spaces.fasterseg import fasterseg, fasterseg_small
from segnas.search.spaces.fastnas import fast_nas, fast_nas_small
from segnas.search.spaces.gas import gas, gas_fast, gas_fast_shared
from segnas.search.spaces.sparsemask import sparsemask, sparsemask_small

SPACES: dict[str, Callable[[int], Space]] = {
    "cas": cas,
    "cas-fast": cas_fast,
    "cas-tiny": cas_tiny,
    "gas": gas,
    "gas-fast": gas_fast,
    "gas-fast-shared": gas_fast_shared,
    "dcnas": dcnas,
    "dcnas-small": dcnas_small,
    "darts": darts,
    "darts-tiny": darts_tiny,
    "auto-deeplab": auto_deeplab,
    "auto-deeplab-small": auto_deeplab_small,
    "fasterseg": fasterseg,
    "fasterseg-small": fasterseg_small,
    "sparsemask": sparsemask,
    "sparsemask-small": sparsemask_small,
    "dpc": dpc,
    "dpc-small": dpc_small,
    "fast-nas": fast_nas,
    "fast-nas-small": fast_nas_small,
}
"""Every search space by name: number of classes -> space."""


def space(name: str, classes: int) -> Space:
    """The search space of that name for so many classes; `FILE.py:FUNCTION` is one of the user's own, whose code is run.

    UsageError lists the names; InputError where a file has no such function or it makes no space.
    """
    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        return _own(Path(file), function, classes)
    if name not in SPACES:
        raise UsageError(f"no search space is called {name!r}; known spaces: {', '.join(sorted(SPACES))}, or FILE.py:FUNCTION for one of your own")
    return SPACES[name](classes)


def _own(file: Path, function: str, classes: int) -> Space:
    """The space that a function of the user's file makes; it is called what the user called it by, so that tables and runs find it again."""
    if not file.is_file():
        raise InputError(f"{file} does not exist; a Python file with a function of the number of classes is needed (docs/adding-a-space.md)")
    found = importlib.util.spec_from_file_location(f"segnas_space_{file.stem}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    make: object = getattr(module, function, None)
    if not callable(make):
        raise InputError(f"{file} has no function {function!r}; write FILE.py:FUNCTION with one that takes the number of classes")
    made: object = make(classes)
    if not isinstance(made, Space):
        raise InputError(f"{function} of {file} made a {type(made).__name__}; a Space is needed: end it with `return draft.space()`")
    return replace(made, name=f"{file}:{function}")

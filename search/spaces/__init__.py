"""The search spaces of the published papers and our own, one module each, as plain data without torch."""

from collections.abc import Callable

from segnas.errors import UsageError
from segnas.search.space import Space
from segnas.search.spaces.cas import cas, cas_fast, cas_tiny
from segnas.search.spaces.dcnas import dcnas, dcnas_small
from segnas.search.spaces.gas import gas, gas_fast, gas_fast_shared

SPACES: dict[str, Callable[[int], Space]] = {
    "cas": cas,
    "cas-fast": cas_fast,
    "cas-tiny": cas_tiny,
    "gas": gas,
    "gas-fast": gas_fast,
    "gas-fast-shared": gas_fast_shared,
    "dcnas": dcnas,
    "dcnas-small": dcnas_small,
}
"""Every search space by name: number of classes -> space."""


def space(name: str, classes: int) -> Space:
    """The search space of that name for so many classes; UsageError lists the names."""
    if name not in SPACES:
        raise UsageError(f"no search space is called {name!r}; known spaces: {', '.join(sorted(SPACES))}")
    return SPACES[name](classes)

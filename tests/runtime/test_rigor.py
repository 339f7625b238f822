"""How long is timed, by name."""

import pytest

from segnas.errors import InputError
from segnas.runtime.rigor import RIGOR, rigor_named


def test_the_presets_are_those_of_their_sources():
    assert rigor_named("standard", "gpu")[1:3] == (3.0, 100)
    assert rigor_named("mlperf", "end_to_end")[1:3] == (600.0, 1024)
    assert rigor_named("quick", "pipeline").min_seconds < 3
    assert set(RIGOR) == {"quick", "standard", "mlperf"}


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match="rigor 'lax' was given; allowed: quick, standard, mlperf"):
        rigor_named("lax", "gpu")
    with pytest.raises(InputError, match="'mlperf' was asked for with scope 'gpu'"):
        rigor_named("mlperf", "gpu")

"""From answers to labels: against PyTorch and numpy, for any shape."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.runtime.upsample import argmax_at, bilinear, nearest

SIDES = st.integers(1, 12)


@given(SIDES, SIDES, SIDES, SIDES, st.booleans(), st.integers(0, 2**32 - 1))
def test_bilinear_is_that_of_torch(height: int, width: int, rows: int, columns: int, align: bool, seed: int) -> None:
    plane = np.random.default_rng(seed).standard_normal((height, width)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(plane)[None, None], size=(rows, columns), mode="bilinear", align_corners=align)
    ours = bilinear(plane, (rows, columns), align_corners=align)
    assert ours.dtype == np.float32
    assert np.allclose(ours, theirs[0, 0].numpy(), atol=2e-6)


@given(st.integers(1, 40), SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_argmax_is_that_of_numpy_with_ties(classes: int, height: int, width: int, seed: int) -> None:
    logits = np.random.default_rng(seed).integers(-2, 3, (classes, height, width)).astype(np.float32)  # few values: ties everywhere
    assert np.array_equal(argmax_at(logits, (height, width)), logits.argmax(axis=0))


@pytest.mark.parametrize("shape", [(19, 300, 700), (256, 5, 7), (2, 1, 300_000)])
def test_argmax_in_strips(shape: tuple[int, int, int]) -> None:
    logits = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert np.array_equal(argmax_at(logits, shape[1:]), logits.argmax(axis=0))
    half = logits.astype(np.float16)
    assert np.array_equal(argmax_at(half, shape[1:]), half.argmax(axis=0))


def test_a_single_logit_that_is_no_number_is_seen() -> None:
    logits = np.zeros((3, 4, 5), np.float32)
    logits[2, 1, 1] = np.nan
    for size in ((4, 5), (8, 10)):
        with pytest.raises(InputError, match="NaN"):
            argmax_at(logits, size)
    logits[2, 1, 1] = np.inf
    assert argmax_at(logits, (4, 5))[1, 1] == 2


@given(SIDES, SIDES, SIDES, SIDES)
def test_nearest_is_the_label_at_the_pixels_centre(height: int, width: int, rows: int, columns: int) -> None:
    labels = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(labels)[None, None].float(), size=(rows, columns), mode="nearest-exact")
    assert np.array_equal(nearest(labels, (rows, columns)), theirs[0, 0].numpy())
